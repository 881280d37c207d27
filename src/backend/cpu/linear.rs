//! Linear layers and biases.

use super::gemm::{Base, Gemm, Mat};
use super::simd::simd_fn;
use super::{Real, check, par};
use crate::backend::Write;
use crate::error::Result;

fn rows(
    op: &'static str,
    y: (&'static str, usize),
    x: (&'static str, usize),
    w: (&'static str, usize),
    out: usize,
    inp: usize,
) -> Result<usize> {
    let n = check::rows(op, y.0, y.1, "out", out)?;
    check::nonzero(op, "inp", inp)?;
    check::len(op, x.0, x.1, &[("rows", n), ("inp", inp)])?;
    check::len(op, w.0, w.1, &[("out", out), ("inp", inp)])?;
    Ok(n)
}

/// See [`crate::backend::Backend::linear_fwd`].
pub(super) fn fwd<S: Real>(
    g: &Gemm,
    y: &mut [S],
    x: &[S],
    w: &[S],
    out: usize,
    inp: usize,
    write: Write<&[S]>,
) -> Result<()> {
    const OP: &str = "linear_fwd";
    let n = rows(OP, ("y", y.len()), ("x", x.len()), ("w", w.len()), out, inp)?;
    let base = match write {
        Write::Set => Base::Zero,
        Write::Add => Base::Output,
        Write::Plus(p) => {
            check::len(OP, "plus", p.len(), &[("rows", n), ("out", out)])?;
            Base::Other(p)
        }
    };
    S::gemm(g, y, base, Mat::by_line(x, inp), Mat::by_line(w, inp), n, out, inp);
    Ok(())
}

/// See [`crate::backend::Backend::linear_bwd_input`].
pub(super) fn bwd_input<S: Real>(
    g: &Gemm,
    dx: &mut [S],
    dy: &[S],
    w: &[S],
    out: usize,
    inp: usize,
    write: Write<()>,
) -> Result<()> {
    const OP: &str = "linear_bwd_input";
    let n = rows(OP, ("dy", dy.len()), ("dx", dx.len()), ("w", w.len()), out, inp)?;
    let base = if super::adds(write) { Base::Output } else { Base::Zero };
    S::gemm(g, dx, base, Mat::by_line(dy, out), Mat::by_k(w, inp), n, inp, out);
    Ok(())
}

/// See [`crate::backend::Backend::linear_bwd_weight`].
pub(super) fn bwd_weight<S: Real>(g: &Gemm, dw: &mut [S], dy: &[S], x: &[S], out: usize, inp: usize) -> Result<()> {
    let n = rows("linear_bwd_weight", ("dy", dy.len()), ("x", x.len()), ("dw", dw.len()), out, inp)?;
    S::gemm(g, dw, Base::Output, Mat::by_k(dy, out), Mat::by_k(x, inp), out, inp, n);
    Ok(())
}

simd_fn! {
    fn add<S>(y: &mut [S], x: &[S]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += *x);
    }
}
simd_fn! {
    /// Sums down the rows, in order, for the columns from `at`.
    fn column_sums<S>(out: &mut [S], x: &[S], at: usize, dim: usize) {
        let mut acc = [S::ZERO; 64];
        let acc = &mut acc[..out.len()];
        for x in x.chunks_exact(dim) {
            acc.iter_mut().zip(&x[at..at + out.len()]).for_each(|(a, x)| *a += *x);
        }
        out.iter_mut().zip(acc).for_each(|(o, a)| *o += *a);
    }
}

/// See [`crate::backend::Backend::bias_fwd`].
pub(super) fn bias_fwd<S: Real>(level: super::Level, y: &mut [S], bias: &[S]) -> Result<()> {
    check::rows("bias_fwd", "y", y.len(), "dim", bias.len())?;
    par::rows(y, bias.len(), |_, y| add(level, y, bias));
    Ok(())
}

/// See [`crate::backend::Backend::bias_bwd`].
pub(super) fn bias_bwd<S: Real>(level: super::Level, dbias: &mut [S], dy: &[S]) -> Result<()> {
    let dim = dbias.len();
    check::rows("bias_bwd", "dy", dy.len(), "dim", dim)?;
    par::columns(dbias, |at, d| column_sums(level, d, dy, at, dim));
    Ok(())
}
