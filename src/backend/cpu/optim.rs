//! Gradient norm and optimiser updates.

use super::check;
use super::device::Cpu;
use super::narrow::in_pieces;
use super::real::Real;
use super::scalar::{Scalar, sum_lanes};
use super::simd::{ask_for, simd_fn};
use crate::backend::ops::element::Gradient;
use crate::backend::ops::optim::{Add, GradNorm, GradNormNarrow, Mix, OptimOps, Root, Rule, Squares, Update};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Elements of a block: fixed, so that neither the norm nor an update depends on the number of threads.
const BLOCK: usize = 1 << 16;

/// Pages that are asked for together while as many are summed up, and sixteens of `f32` in them.
const PAGES: usize = 4;
const LINES: usize = PAGES * 4096 / 64;

simd_fn! {
    /// Sum of squares, each square exact to f64 rounding.
    fn block_sum<S>(g: &[S]) -> f64 {
        let mut acc = [0.0f64; 16];
        let chunks = g.chunks_exact(16);
        for (l, x) in chunks.remainder().iter().enumerate() {
            acc[l] = x.to_f64() * x.to_f64();
        }
        for (i, x) in chunks.enumerate() {
            // From memory, pages in turn come in faster than one after the other.
            let at = i % LINES;
            ask_for(x.as_ptr().wrapping_add(16 * (LINES - at + at % PAGES * (LINES / PAGES) + at / PAGES)));
            for l in 0..16 {
                let x = x[l].to_f64();
                acc[l] += x * x;
            }
        }
        sum_lanes(acc)
    }
}

impl<S: Real> OptimOps for Cpu<S> {
    fn grad_norm(&self, op: GradNorm<'_, Self>) -> Result<()> {
        let level = self.level();
        let GradNorm { norm, g } = op;
        check::len("grad_norm", "norm", norm.len(), &[("numbers", 1)])?;
        self.gemm.scratch.with(g.len().div_ceil(BLOCK), |sums: &mut [f64]| {
            sums.par_iter_mut().zip(g.par_chunks(BLOCK)).for_each(|(s, g)| *s = block_sum(level, g));
            norm[0] = sums.iter().sum::<f64>().sqrt();
        });
        Ok(())
    }

    fn grad_norm_narrow(&self, op: GradNormNarrow<'_, Self>) -> Result<()> {
        let level = self.level();
        let GradNormNarrow { norm, matrices, vectors } = op;
        check::len("grad_norm_narrow", "norm", norm.len(), &[("numbers", 1)])?;
        let blocks = [matrices.len(), vectors.len()].map(|n| n.div_ceil(BLOCK));
        self.gemm.scratch.with(blocks[0] + blocks[1], |sums: &mut [f64]| {
            let (of_matrices, of_vectors) = sums.split_at_mut(blocks[0]);
            of_matrices.par_iter_mut().zip(matrices.par_chunks(BLOCK)).for_each(|(sum, g)| {
                *sum = 0.0;
                in_pieces(g, |_, g: &[S]| *sum += block_sum(level, g));
            });
            of_vectors.par_iter_mut().zip(vectors.par_chunks(BLOCK)).for_each(|(s, g)| *s = block_sum(level, g));
            norm[0] = sums.iter().sum::<f64>().sqrt();
        });
        Ok(())
    }

    fn add(&self, op: Add<'_, Self>) -> Result<()> {
        let Add { to, from } = op;
        check::len("add", "from", from.len(), &[("parameters", to.len())])?;
        let blocks = to.par_chunks_mut(BLOCK).zip(from.par_chunks(BLOCK));
        blocks.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to += *from));
        Ok(())
    }

    fn squares(&self, op: Squares<'_, Self>) -> Result<()> {
        let level = self.level();
        let Squares { sums, g, block } = op;
        check::len("squares", "sums", sums.len(), &[("blocks", g.len().div_ceil(block))])?;
        sums.par_iter_mut().zip(g.par_chunks(block)).for_each(|(s, g)| *s = block_sum(level, g));
        Ok(())
    }

    fn root(&self, op: Root<'_, Self>) -> Result<()> {
        let Root { norm, sums } = op;
        check::len("root", "norm", norm.len(), &[("numbers", 1)])?;
        norm[0] = sums.iter().sum::<f64>().sqrt();
        Ok(())
    }

    fn update<G: Gradient>(&self, op: Update<'_, Self, G>) -> Result<()> {
        const OP: &str = "update";
        let level = self.level();
        let Update { w, master, m, v, g, norm, max_grad_norm, rule } = op;
        if let Rule::AdamW { .. } = rule {
            check::len(OP, "m", m.len(), &[("parameters", w.len())])?;
        }
        check::len(OP, "v", v.len(), &[("parameters", w.len())])?;
        check::len(OP, "g", g.len(), &[("parameters", w.len())])?;
        check::len(OP, "norm", norm.len(), &[("numbers", 1)])?;
        no_master(OP, master.is_some())?;
        let Some(clip) = clip(norm[0], max_grad_norm) else { return Ok(()) };
        let s = scalars::<S>(clip, rule);
        let blocks = w.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK)).zip(g.par_chunks(BLOCK));
        match rule {
            Rule::AdamW { .. } => {
                blocks.zip(m.par_chunks_mut(BLOCK)).for_each(|(((w, v), g), m)| {
                    in_pieces(g, |at, g| {
                        let of = at..at + g.len();
                        adamw(level, &mut w[of.clone()], &mut m[of.clone()], &mut v[of], g, s);
                    });
                });
            }
            Rule::RmsProp { .. } => blocks.for_each(|((w, v), g)| {
                in_pieces(g, |at, g| {
                    let of = at..at + g.len();
                    rmsprop(level, &mut w[of.clone()], &mut v[of], g, s);
                });
            }),
        }
        Ok(())
    }

    fn mix(&self, op: Mix<'_, Self>) -> Result<()> {
        const OP: &str = "mix";
        let level = self.level();
        let Mix { w, master, from, from_master, alpha } = op;
        check::len(OP, "from", from.len(), &[("parameters", w.len())])?;
        no_master(OP, master.is_some() || from_master.is_some())?;
        let (keep, take) = (S::from_f64(1.0 - alpha), S::from_f64(alpha));
        let blocks = w.par_chunks_mut(BLOCK).zip(from.par_chunks(BLOCK));
        blocks.for_each(|(w, from)| mix(level, w, from, keep, take));
        Ok(())
    }
}

/// The factor for the gradient; none where nothing is to change.
pub(super) fn clip(norm: f64, max_grad_norm: f64) -> Option<f64> {
    let factor = if max_grad_norm > 0.0 { (max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    norm.is_finite().then_some(factor)
}

fn no_master(op: &'static str, given: bool) -> Result<()> {
    let shape = || "no master weights: `w` is the master".into();
    if given { Err(Error::Shape { op, name: "master", got: 1, want: 0, shape: shape() }) } else { Ok(()) }
}

/// The numbers of an update, rounded to the element type once, as torch does with Python floats.
#[derive(Clone, Copy)]
pub(super) struct Scalars<S> {
    pub clip: S,
    pub lr: S,
    pub decay: S,
    pub beta1c: S,
    pub beta2: S,
    pub beta2c: S,
    pub root: S,
    pub eps: S,
}

simd_fn! {
    /// `torch.optim.AdamW`'s single-tensor update, operation by operation; moments that have decayed to nothing are 0, as
    /// those of a token that is never seen would else stay denormal for good. Gradients whose square would be denormal are 0 in
    /// both moments: in the second alone, a small epsilon would leave nothing to divide the first by.
    fn adamw<S>(w: &mut [S], m: &mut [S], v: &mut [S], g: &[S], s: Scalars<S>) {
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = (g.flushed() * s.clip).squarable();
            let old = m.vanished();
            *m = old + (g - old) * s.beta1c;
            *v = v.flushed() * s.beta2 + g * g * s.beta2c;
            let denom = v.sqrt() / s.root + s.eps;
            *w = w.flushed() * s.decay - s.lr * (*m / denom);
        }
    }
}
simd_fn! {
    /// A weighted mean of two sets of weights.
    fn mix<S>(w: &mut [S], from: &[S], keep: S, take: S) {
        for (w, from) in w.iter_mut().zip(from) {
            *w = *w * keep + *from * take;
        }
    }
}
simd_fn! {
    /// `torch.optim.RMSprop`'s update: not centred, no momentum; the decay is an L2 penalty. Small gradients as in [`adamw`].
    fn rmsprop<S>(w: &mut [S], v: &mut [S], g: &[S], s: Scalars<S>) {
        for ((w, v), g) in w.iter_mut().zip(v).zip(g) {
            let g = (g.flushed() * s.clip + s.decay * w.flushed()).squarable();
            *v = v.flushed() * s.beta2 + g * g * s.beta2c;
            *w -= s.lr * (g / (v.sqrt() + s.eps));
        }
    }
}

pub(super) fn scalars<S: Scalar>(clip: f64, rule: Rule) -> Scalars<S> {
    let s = S::from_f64;
    match rule {
        Rule::AdamW { lr, beta1, beta2, eps, weight_decay, step } => {
            // Steps beyond i32 have long since reached the limit, 1.
            let power = |b: f64| b.powi(i32::try_from(step).unwrap_or(i32::MAX));
            Scalars {
                clip: s(clip),
                lr: s(lr / (1.0 - power(beta1))),
                decay: s(1.0 - lr * weight_decay),
                beta1c: s(1.0 - beta1),
                beta2: s(beta2),
                beta2c: s(1.0 - beta2),
                root: s((1.0 - power(beta2)).sqrt()),
                eps: s(eps),
            }
        }
        Rule::RmsProp { lr, alpha, eps, weight_decay } => Scalars {
            clip: s(clip),
            lr: s(lr),
            decay: s(weight_decay),
            beta1c: S::ZERO,
            beta2: s(alpha),
            beta2c: s(1.0 - alpha),
            root: S::ONE,
            eps: s(eps),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::gemm::setup::GemmPrecision;
    use crate::backend::cpu::simd::Level;

    #[test]
    fn rmsprop_needs_no_first_moment() {
        // torch.optim.RMSprop: v = alpha v + (1 - alpha) g^2; w -= lr g / (sqrt(v) + eps).
        let n = BLOCK + 3;
        let g: Vec<f64> = (0..n).map(|i| (i as f64 * 0.37).sin()).collect();
        let rmsprop = Rule::RmsProp { lr: 0.1, alpha: 0.99, eps: 1e-8, weight_decay: 0.0 };
        let adamw = Rule::AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1 };
        for level in Level::available() {
            let cpu = Cpu::<f64>::at(level, GemmPrecision::Native).unwrap();
            let (mut w, mut v) = (vec![1.0; n], vec![0.5; n]);
            let mut step = |rule| {
                let (m, norm) = (&mut [][..], &[1.0][..]);
                cpu.update(Update { w: &mut w, master: None, m, v: &mut v, g: &g, norm, max_grad_norm: 0.0, rule })
            };
            step(rmsprop).unwrap();
            assert!(step(adamw).is_err());
            for i in 0..n {
                let want_v = 0.99 * 0.5 + 0.01 * g[i] * g[i];
                let want = 1.0 - 0.1 * g[i] / (want_v.sqrt() + 1e-8);
                assert!((v[i] - want_v).abs() <= 1e-14 && (w[i] - want).abs() <= 1e-14, "{i}: {} {want}", w[i]);
            }
        }
    }
}
