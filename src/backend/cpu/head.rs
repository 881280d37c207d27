//! The fused head: logits, statistics, and the unscaled gradient in their place.

use super::device::Cpu;
use super::gemm::matrix::{Base, Mat};
use super::linear::Product;
use super::narrow::product;
use super::real::Real;
use super::scalar::{LANES, Scalar, sum_lanes};
use super::simd::{Level, simd_fn};
use super::{check, par};
use crate::backend::ops::device::{Device, Write};
use crate::backend::ops::element::Gradient;
use crate::backend::ops::head::{HeadBwd, HeadFwd, HeadMode, HeadOps, Logits};
use crate::error::Result;
use half::bf16;
use rayon::prelude::*;

/// Elements whose exponentials are summed in the element type, 16 to a lane; the sums of such blocks are added in f64.
const BLOCK: usize = 16 * LANES;

/// What the statistics of a row follow from.
struct RowSums {
    /// `sum e`, `e = exp(z - max)`.
    e: f64,
    /// `sum e (z - max)`.
    ez: f64,
    /// `sum e^2`.
    ee: f64,
}

simd_fn! {
    fn row_max<S>(z: &[S]) -> S {
        let mut acc = [S::NEG_INFINITY; 4 * LANES];
        let chunks = z.chunks_exact(4 * LANES);
        for (a, z) in acc.iter_mut().zip(chunks.remainder()) {
            *a = *z;
        }
        for z in chunks {
            for l in 0..4 * LANES {
                acc[l] = if z[l] > acc[l] { z[l] } else { acc[l] };
            }
        }
        acc.into_iter().fold(S::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
}
simd_fn! {
    /// The sums of a row; `keep`: leaves `e` in place of `z`.
    fn row_sums<S>(z: &mut [S], max: S, keep: bool) -> RowSums {
        let mut total = [[0.0f64; LANES]; 3];
        for block in z.chunks_mut(BLOCK) {
            let mut sums = [[S::ZERO; LANES]; 3];
            let mut chunks = block.chunks_exact_mut(LANES);
            for z in &mut chunks {
                add_terms(z, max, keep, &mut sums);
            }
            add_terms(chunks.into_remainder(), max, keep, &mut sums);
            for (total, sums) in total.iter_mut().zip(sums) {
                total.iter_mut().zip(sums).for_each(|(t, s)| *t += s.to_f64());
            }
        }
        let [e, ez, ee] = total.map(sum_lanes);
        RowSums { e, ez, ee }
    }
}
simd_fn! {
    fn scale<S>(z: &mut [S], by: S) {
        z.iter_mut().for_each(|z| *z *= by);
    }
}
simd_fn! {
    fn scaled_copy<S>(y: &mut [S], x: &[S], by: S) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = *x * by);
    }
}

/// Statistics of one prediction: logp, entropy, `log sum p^2`, hit.
fn row<S: Scalar>(level: Level, z: &mut [S], target: usize, mode: HeadMode) -> [f64; 4] {
    let max = row_max(level, z);
    let at_target = z[target];
    let hit = at_target == max && z[..target].iter().all(|z| *z < max);
    let sums = row_sums(level, z, max, mode == HeadMode::Train);
    if mode == HeadMode::Train {
        scale(level, z, S::from_f64(-1.0 / sums.e));
        z[target] += S::ONE;
    }
    let log_e = sums.e.ln();
    let logp = at_target.to_f64() - max.to_f64() - log_e;
    [logp, log_e - sums.ez / sums.e, sums.ee.ln() - 2.0 * log_e, f64::from(u8::from(hit))]
}

/// Adds the terms of at most [`LANES`] logits to the lanes of the three sums.
#[inline(always)]
fn add_terms<S: Scalar>(z: &mut [S], max: S, keep: bool, [e, ez, ee]: &mut [[S; LANES]; 3]) {
    for (l, z) in z.iter_mut().enumerate() {
        let d = *z - max;
        let x = d.exp();
        e[l] += x;
        ez[l] += x * d;
        ee[l] += x * x;
        *z = if keep { x } else { *z };
    }
}

impl<S: Real> Cpu<S> {
    /// Logits by `product`.
    pub(super) fn product(&self, name: &'static str, op: Logits<'_, Self>, product: Product<S>) -> Result<()> {
        let Logits { logits, x, w, dim } = op;
        let n = check::rows(name, "x", x.len(), "dim", dim)?;
        let vocab = check::rows(name, "w", w.len(), "dim", dim)?;
        check::at_least(name, "logits", logits.len(), &[("rows", n), ("vocab", vocab)])?;
        let (x, w) = (Mat::by_line(x, dim), Mat::by_line(w, dim));
        product(&self.gemm, &mut logits[..n * vocab], Base::Zero, x, w, [n, vocab, dim]);
        Ok(())
    }
}

impl<S: Real> HeadOps for Cpu<S> {
    fn head_fwd(&self, op: HeadFwd<'_, Self>) -> Result<()> {
        const OP: &str = "head_fwd";
        let g = &self.gemm;
        let HeadFwd { logp, entropy, log_sum_p2, hit, logits, x, w, batch, chunk, mode } = op;
        batch.check_predictions(OP, chunk)?;
        let n = chunk.predictions.len();
        for (name, stat) in [("logp", &*logp), ("entropy", &*entropy), ("log_sum_p2", &*log_sum_p2), ("hit", &*hit)] {
            check::len(OP, name, stat.len(), &[("predictions", n)])?;
        }
        if n == 0 {
            return Ok(());
        }
        let dim = check::rows(OP, "x", x.len(), "predictions", n)?;
        let vocab = check::rows(OP, "w", w.len(), "dim", dim)?;
        check::at_least(OP, "w", w.len(), &[("largest target + 1", batch.targets_end), ("dim", dim)])?;
        check::at_least(OP, "logits", logits.len(), &[("predictions", n), ("vocab", vocab)])?;
        let logits = &mut logits[..n * vocab];
        S::gemm(g, logits, Base::Zero, Mat::by_line(x, dim), Mat::by_line(w, dim), [n, vocab, dim]);
        let predictions = &batch.micro.predictions()[chunk.predictions.clone()];
        let rows = logits.par_chunks_exact_mut(vocab).zip(predictions);
        rows.zip(logp).zip(entropy).zip(log_sum_p2).zip(hit).for_each(|(((((z, p), logp), entropy), p2), hit)| {
            if self.narrow_logits {
                let exact = z[p.target as usize];
                z.iter_mut().for_each(|z| *z = S::from_f64(bf16::from_f64(z.to_f64()).to_f64()));
                z[p.target as usize] = exact;
            }
            let s = row(g.level, z, p.target as usize, mode).map(S::from_f64);
            (*logp, *entropy, *p2, *hit) = (s[0], s[1], s[2], s[3]);
        });
        Ok(())
    }

    fn logits(&self, op: Logits<'_, Self>) -> Result<()> {
        self.product("logits", op, S::gemm)
    }

    fn head_bwd<G: Gradient>(&self, op: HeadBwd<'_, Self, G>) -> Result<()> {
        const OP: &str = "head_bwd";
        let g = &self.gemm;
        let HeadBwd { dx, dw, scaled, logits, x, w, coef } = op;
        let n = coef.len();
        if n == 0 {
            check::len(OP, "dx", dx.len(), &[("predictions", 0)])?;
            check::len(OP, "x", x.len(), &[("predictions", 0)])?;
            return match dw {
                Some((dw, Write::Set)) => self.clear(dw),
                _ => Ok(()),
            };
        }
        let dim = check::rows(OP, "dx", dx.len(), "predictions", n)?;
        check::len(OP, "x", x.len(), &[("predictions", n), ("dim", dim)])?;
        let vocab = check::rows(OP, "w", w.len(), "dim", dim)?;
        check::at_least(OP, "logits", logits.len(), &[("predictions", n), ("vocab", vocab)])?;
        let logits = &logits[..n * vocab];
        if let Some((dw, write)) = dw {
            check::len(OP, "dw", dw.len(), &[("vocab", vocab), ("dim", dim)])?;
            check::at_least(OP, "scaled", scaled.len(), &[("predictions", n), ("dim", dim)])?;
            let scaled = &mut scaled[..n * dim];
            par::rows(scaled, dim, |i, y| scaled_copy(g.level, y, &x[i * dim..][..dim], coef[i]));
            product(g, (dw, write), (logits, vocab), Mat::by_k(scaled, dim), [vocab, dim, n]);
        }
        S::gemm(g, dx, Base::Zero, Mat::by_line(logits, vocab), Mat::by_k(w, dim), [n, dim, vocab]);
        par::rows(dx, dim, |i, dx| scale(g.level, dx, coef[i]));
        Ok(())
    }
}
