//! Element-wise steps of attention on tiles of scores.

use crate::backend::cpu::scalar::dot;
use crate::backend::cpu::simd::simd_fn;

simd_fn! {
    /// Turns a tile of scores into `exp(s - m)` under the running maximum `m`, adds to the running sum `l`, and leaves
    /// in `alpha` what earlier results must be multiplied by. `st`: keys x `r`.
    pub(super) fn online_softmax<S>(st: &mut [S], m: &mut [S], l: &mut [S], alpha: &mut [S]) {
        let r = m.len();
        alpha.copy_from_slice(m);
        for s in st.chunks_exact(r) {
            m.iter_mut().zip(s).for_each(|(m, s)| *m = if *s > *m { *s } else { *m });
        }
        for ((a, m), l) in alpha.iter_mut().zip(&*m).zip(l.iter_mut()) {
            *a = (*a - *m).exp();
            *l *= *a;
        }
        for s in st.chunks_exact_mut(r) {
            for ((s, m), l) in s.iter_mut().zip(&*m).zip(l.iter_mut()) {
                *s = (*s - *m).exp();
                *l += *s;
            }
        }
    }
}
simd_fn! {
    /// `out[i][c] = rows[i][c] * by` for `d` columns, zero from there to `ld`.
    pub(super) fn copy_scaled<S>(out: &mut [S], ld: usize, rows: &[S], width: usize, d: usize, by: S) {
        for (out, row) in out.chunks_exact_mut(ld).zip(rows.chunks(width)) {
            out[..d].iter_mut().zip(&row[..d]).for_each(|(o, x)| *o = *x * by);
            out[d..].fill(S::ZERO);
        }
    }
}
simd_fn! {
    /// Divides every row of `x` by `by`, element by element.
    pub(super) fn divide_columns<S>(x: &mut [S], by: &[S]) {
        for x in x.chunks_exact_mut(by.len()) {
            x.iter_mut().zip(by).for_each(|(x, a)| *x = *x / *a);
        }
    }
}
simd_fn! {
    /// Multiplies every row of `x` by `by`, element by element.
    pub(super) fn scale_columns<S>(x: &mut [S], by: &[S]) {
        for x in x.chunks_exact_mut(by.len()) {
            x.iter_mut().zip(by).for_each(|(x, a)| *x *= *a);
        }
    }
}
simd_fn! {
    /// `p = exp(s - lse)`, `ds = p (dp - delta)`, with a number per column: `s` becomes `ds`.
    pub(super) fn ds_by_column<S>(s: &mut [S], dp: &[S], lse: &[S], delta: &[S]) {
        let r = lse.len();
        for (s, dp) in s.chunks_exact_mut(r).zip(dp.chunks_exact(r)) {
            for (((s, dp), lse), delta) in s.iter_mut().zip(dp).zip(lse).zip(delta) {
                *s = (*s - *lse).exp() * (*dp - *delta);
            }
        }
    }
}
simd_fn! {
    /// As [`ds_by_column`] with a number per row: `s` becomes `p`, `dp` becomes `ds`.
    pub(super) fn p_and_ds_by_row<S>(s: &mut [S], dp: &mut [S], width: usize, lse: &[S], delta: &[S]) {
        for (((s, dp), lse), delta) in s.chunks_exact_mut(width).zip(dp.chunks_exact_mut(width)).zip(lse).zip(delta) {
            for (s, dp) in s.iter_mut().zip(dp) {
                *s = (*s - *lse).exp();
                *dp = *s * (*dp - *delta);
            }
        }
    }
}
simd_fn! {
    pub(super) fn delta_row<S>(delta: &mut [S], dout: &[S], out: &[S], d: usize) {
        for ((x, a), b) in delta.iter_mut().zip(dout.chunks_exact(d)).zip(out.chunks_exact(d)) {
            *x = dot(a, b);
        }
    }
}
