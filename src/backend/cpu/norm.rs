//! RMSNorm, and Qwen3's norm of query and key heads with the rotation behind it.

use super::batch::CpuBatch;
use super::device::Cpu;
use super::real::Real;
use super::rope::{angles, check_lens, rotate};
use super::scalar::{LANES, Scalar, dot, sum_lanes};
use super::simd::{Level, simd_fn};
use super::{check, par};
use crate::backend::ops::device::AttnShape;
use crate::backend::ops::norm::{NormOps, QkNormBwd, QkNormFwd, RmsNormBwd, RmsNormFwd};
use crate::error::Result;

simd_fn! {
    /// `y = x * r * w`.
    fn apply<S>(y: &mut [S], x: &[S], w: &[S], r: S) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x.flushed() * r * w.flushed();
        }
    }
}
simd_fn! {
    /// `x = x * r * w`.
    fn apply_in_place<S>(x: &mut [S], w: &[S], r: S) {
        for (x, w) in x.iter_mut().zip(w) {
            *x = x.flushed() * r * w.flushed();
        }
    }
}
simd_fn! {
    fn sum_squares<S>(x: &[S]) -> S {
        dot(x, x)
    }
}
simd_fn! {
    /// `dx {=,+=} r * w dy - x * r^3 * mean(w dy x)`.
    fn row_bwd<S>(dx: &mut [S], dy: &[S], x: &[S], w: &[S], r: S, add: bool) {
        let c = correction(dy, x, w, r);
        let term = |((dy, x), w): ((&S, &S), &S)| r * (w.flushed() * dy.flushed()) - x.flushed() * c;
        let terms = dy.iter().zip(x).zip(w).map(term);
        if add {
            dx.iter_mut().zip(terms).for_each(|(d, t)| *d += t);
        } else {
            dx.iter_mut().zip(terms).for_each(|(d, t)| *d = t);
        }
    }
}
simd_fn! {
    /// As [`row_bwd`], the gradient replaced in place.
    fn row_bwd_in_place<S>(d: &mut [S], x: &[S], w: &[S], r: S) {
        let c = correction(d, x, w, r);
        for ((d, x), w) in d.iter_mut().zip(x).zip(w) {
            *d = r * (w.flushed() * d.flushed()) - x.flushed() * c;
        }
    }
}
simd_fn! {
    /// `dw += sum over rows of dy * x * rstd` for the columns from `at`; rows in order.
    fn weight_bwd<S>(dw: &mut [S], dy: &[S], x: &[S], rstd: &[S], at: usize, dim: usize) {
        let mut acc = [S::ZERO; 64];
        let acc = &mut acc[..dw.len()];
        for ((dy, x), r) in dy.chunks_exact(dim).zip(x.chunks_exact(dim)).zip(rstd) {
            for ((a, dy), x) in acc.iter_mut().zip(&dy[at..at + dw.len()]).zip(&x[at..at + dw.len()]) {
                *a += dy.flushed() * (x.flushed() * *r);
            }
        }
        dw.iter_mut().zip(acc).for_each(|(d, a)| *d += *a);
    }
}

/// `r^3 * mean(w dy x)`.
#[inline(always)]
fn correction<S: Scalar>(dy: &[S], x: &[S], w: &[S], r: S) -> S {
    let mut acc = [S::ZERO; LANES];
    let full = x.len() / LANES * LANES;
    for ((dy, x), w) in
        dy[..full].chunks_exact(LANES).zip(x[..full].chunks_exact(LANES)).zip(w[..full].chunks_exact(LANES))
    {
        for l in 0..LANES {
            acc[l] += dy[l].flushed() * x[l].flushed() * w[l].flushed();
        }
    }
    for (l, ((dy, x), w)) in dy[full..].iter().zip(&x[full..]).zip(&w[full..]).enumerate() {
        acc[l] += dy.flushed() * x.flushed() * w.flushed();
    }
    sum_lanes(acc) / S::from_f64(x.len() as f64) * (r * r * r)
}

fn rstd_of<S: Scalar>(level: Level, x: &[S], eps: f64) -> S {
    S::from_f64(1.0 / (sum_squares(level, x).to_f64() / x.len() as f64 + eps).sqrt())
}

impl<S: Real> NormOps for Cpu<S> {
    fn rmsnorm_fwd(&self, op: RmsNormFwd<'_, Self>) -> Result<()> {
        const OP: &str = "rmsnorm_fwd";
        let level = self.level();
        let RmsNormFwd { y, rstd, x, w, eps } = op;
        let n = check::rows(OP, "x", x.len(), "dim", w.len())?;
        check::len(OP, "y", y.len(), &[("rows", n), ("dim", w.len())])?;
        check::len(OP, "rstd", rstd.len(), &[("rows", n)])?;
        par::rows2((y, w.len()), (rstd, 1), |t, y, r| {
            let x = &x[t * w.len()..][..w.len()];
            r[0] = rstd_of(level, x, eps);
            apply(level, y, x, w, r[0]);
        });
        Ok(())
    }

    fn rmsnorm_bwd(&self, op: RmsNormBwd<'_, Self>) -> Result<()> {
        const OP: &str = "rmsnorm_bwd";
        let level = self.level();
        let RmsNormBwd { dx, dw, dy, x, w, rstd, write, again } = op;
        let dim = w.len();
        let n = check::rows(OP, "x", x.len(), "dim", dim)?;
        check::len(OP, "dx", dx.len(), &[("rows", n), ("dim", dim)])?;
        check::len(OP, "dy", dy.len(), &[("rows", n), ("dim", dim)])?;
        check::len(OP, "rstd", rstd.len(), &[("rows", n)])?;
        if let Some(dw) = &dw {
            check::len(OP, "dw", dw.len(), &[("dim", dim)])?;
        }
        let add = write.adds();
        if let Some(dw) = dw {
            par::columns(dw, |at, dw| weight_bwd(level, dw, dy, x, rstd, at, dim));
        }
        let row = |t: usize| t * dim..(t + 1) * dim;
        if again {
            par::rows2((dx, dim), (dy, dim), |t, dx, dy| {
                row_bwd(level, dx, dy, &x[row(t)], w, rstd[t], add);
                apply(level, dy, &x[row(t)], w, rstd[t]);
            });
        } else {
            par::rows(dx, dim, |t, dx| row_bwd(level, dx, &dy[row(t)], &x[row(t)], w, rstd[t], add));
        }
        Ok(())
    }

    fn qk_norm_fwd(&self, op: QkNormFwd<'_, Self>) -> Result<()> {
        let level = self.level();
        let QkNormFwd { qkv, raw, rstd, w, table, batch, shape, eps } = op;
        check_qk("qk_norm_fwd", qkv.len(), raw.len(), rstd.len(), w.len(), table.len(), batch, &shape)?;
        let ((width, heads), (wq, wk)) = (qk(&shape), w.split_at(shape.head_dim));
        par::rows2((qkv, shape.qkv_width()), (raw, width), |_, row, raw| raw.copy_from_slice(&row[..width]));
        let raw = &*raw;
        par::rows2((qkv, shape.qkv_width()), (rstd, heads), |t, row, rstd| {
            for (h, r) in rstd.iter_mut().enumerate() {
                let at = h * shape.head_dim..(h + 1) * shape.head_dim;
                *r = rstd_of(level, &raw[t * width..][at.clone()], eps);
                apply_in_place(level, &mut row[at], if h < shape.heads { wq } else { wk }, *r);
            }
            let (cos, sin) = angles(table, batch, t, shape.head_dim);
            rotate(level, &mut row[..width], cos, sin, S::ONE);
        });
        Ok(())
    }

    fn qk_norm_bwd(&self, op: QkNormBwd<'_, Self>) -> Result<()> {
        const OP: &str = "qk_norm_bwd";
        let level = self.level();
        let QkNormBwd { dqkv, dw, raw, rstd, w, table, batch, shape } = op;
        check_qk(OP, dqkv.len(), raw.len(), rstd.len(), w.len(), table.len(), batch, &shape)?;
        let (d, (width, heads), (wq, wk)) = (shape.head_dim, qk(&shape), w.split_at(shape.head_dim));
        check::len(OP, "dw", dw.as_ref().map_or(2 * d, |dw| dw.len()), &[("2", 2), ("head_dim", d)])?;
        par::rows(dqkv, shape.qkv_width(), |t, row| {
            let (cos, sin) = angles(table, batch, t, d);
            rotate(level, &mut row[..width], cos, sin, -S::ONE);
        });
        let parts = dw.into_iter().flat_map(|dw| dw.chunks_mut(d)); // of the queries, of the keys
        for (dw, range) in parts.zip([0..shape.heads, shape.heads..heads]) {
            let dqkv = &*dqkv;
            par::columns(dw, |at, dw| {
                let mut acc = [S::ZERO; 64];
                for (t, row) in dqkv.chunks_exact(shape.qkv_width()).enumerate() {
                    for h in range.clone() {
                        let (dy, x) = (&row[h * d + at..][..dw.len()], &raw[t * width + h * d + at..][..dw.len()]);
                        let r = rstd[t * heads + h];
                        acc.iter_mut().zip(dy).zip(x).for_each(|((a, dy), x)| *a += dy.flushed() * (x.flushed() * r));
                    }
                }
                dw.iter_mut().zip(acc).for_each(|(d, a)| *d += a);
            });
        }
        par::rows(dqkv, shape.qkv_width(), |t, row| {
            for h in 0..heads {
                let at = h * d..(h + 1) * d;
                let w = if h < shape.heads { wq } else { wk };
                row_bwd_in_place(level, &mut row[at.clone()], &raw[t * width..][at], w, rstd[t * heads + h]);
            }
        });
        Ok(())
    }
}

/// Width of the queries and keys in a row of `qkv`, and their heads.
fn qk(shape: &AttnShape) -> (usize, usize) {
    (shape.q_width() + shape.kv_width(), shape.heads + shape.kv_heads)
}

#[allow(clippy::too_many_arguments)]
fn check_qk(
    op: &'static str,
    qkv: usize,
    raw: usize,
    rstd: usize,
    w: usize,
    table: usize,
    batch: &CpuBatch,
    shape: &AttnShape,
) -> Result<()> {
    check_lens(op, qkv, None, table, batch, shape)?;
    let (n, (width, heads)) = (batch.rows(), qk(shape));
    check::len(op, "raw", raw, &[("rows", n), ("q_width + kv_width", width)])?;
    check::len(op, "rstd", rstd, &[("rows", n), ("heads + kv_heads", heads)])?;
    check::len(op, "w", w, &[("2", 2), ("head_dim", shape.head_dim)])
}
