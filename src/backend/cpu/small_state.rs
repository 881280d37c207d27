//! AdamW on weights that are their own master, with moments in bf16 or 8 bits. `f32` weights hold numbers that bf16 has, once they
//! were updated.

use super::check;
use super::device::Cpu;
use super::narrow::in_pieces;
use super::optim::{Scalars, clip, scalars};
use super::real::Real;
use super::scalar::Scalar;
use super::simd::simd_fn;
use crate::backend::code8::{self, BLOCK, Code, SIGNED, UNSIGNED};
use crate::backend::ops::element::Gradient;
use crate::backend::ops::optim::Rule;
use crate::backend::ops::small_state::{SmallStateOps, Update8bit, UpdateBf16};
use crate::backend::rounding::{Rounding, stochastic, widened};
use crate::error::{Error, Result};
use half::bf16;
use rayon::prelude::*;

/// Blocks that a task has.
const TASK: usize = 64;

/// The update of one weight, operation by operation as [`super::optim`] has it; nothing overflows in a moment, which a code of 8 bits
/// has no way to say.
#[inline(always)]
fn step<S: Scalar>(w: S, m: S, v: S, g: S, s: &Scalars<S>, most: S) -> [S; 3] {
    let g = (g.flushed() * s.clip).squarable();
    let old = m.vanished();
    let m = old + (g - old) * s.beta1c;
    let v = v.flushed() * s.beta2 + g * g * s.beta2c;
    let (m, v) = (if m > most { most } else { m }, if v > most { most } else { v });
    let m = if m < -most { -most } else { m };
    let denom = v.sqrt() / s.root + s.eps;
    [w.flushed() * s.decay - s.lr * (m / denom), m, v]
}

#[inline(always)]
fn single<S: Scalar>(x: S) -> f32 {
    x.to_f64() as f32
}

#[inline(always)]
fn of<S: Scalar>(x: f32) -> S {
    S::from_f64(f64::from(x))
}

simd_fn! {
    /// Neighbours in the arena.
    fn in_bf16<S>(w: &mut [S], m: &mut [bf16], v: &mut [bf16], g: &[S], s: Scalars<S>, rounding: Rounding) {
        let most = of(f32::MAX);
        for (e, (((w, m), v), g)) in w.iter_mut().zip(m).zip(v).zip(g).enumerate() {
            let [of_w, of_m, of_v] = rounding.draws(e);
            let [new, first, second] = step(*w, of(widened(*m)), of(widened(*v)), *g, &s, most);
            *w = of(widened(stochastic(single(new), of_w)));
            *m = stochastic(single(first), of_m);
            *v = stochastic(single(second), of_v);
        }
    }
}
simd_fn! {
    /// One block, to moments in single precision; gives the largest sizes of both.
    fn in_blocks<S>(w: &mut [S], m: &mut [f32], v: &mut [f32], g: &[S], s: Scalars<S>, rounding: Rounding) -> [f32; 2] {
        let most = of(f32::MAX);
        let mut largest = [[0f32; 16]; 2];
        for (e, (((w, m), v), g)) in w.iter_mut().zip(m).zip(v).zip(g).enumerate() {
            let [new, first, second] = step(*w, of(*m), of(*v), *g, &s, most);
            *w = of(widened(stochastic(single(new), rounding.draws(e)[0])));
            // What would not survive the next step has no part in a scale either.
            (*m, *v) = (single(first).vanished(), single(second).flushed());
            let lane = e % 16;
            largest[0][lane] = largest[0][lane].max(m.abs());
            largest[1][lane] = largest[1][lane].max(*v);
        }
        largest.map(|lanes| lanes.into_iter().fold(0.0, f32::max))
    }
}

/// `code`'s numbers times `scale`.
fn decode(codes: &[u8], scale: f32, code: &Code, to: &mut [f32; BLOCK]) {
    to.iter_mut().zip(codes).for_each(|(to, c)| *to = code.values[usize::from(*c)] * scale);
}

fn encode(from: &[f32], largest: f32, code: &Code, codes: &mut [u8], scale: &mut f32) {
    *scale = largest;
    let unit = if largest > 0.0 { largest } else { 1.0 };
    codes.iter_mut().zip(from).for_each(|(c, x)| *c = code.nearest(x / unit));
}

fn adam<S: Real>(op: &'static str, norm: &[f64], max_grad_norm: f64, rule: Rule) -> Result<Option<Scalars<S>>> {
    check::len(op, "norm", norm.len(), &[("numbers", 1)])?;
    match rule {
        Rule::AdamW { .. } => Ok(clip(norm[0], max_grad_norm).map(|clip| scalars(clip, rule))),
        Rule::RmsProp { .. } => Err(Error::usage(format!("{op}: small states are AdamW's alone"))),
    }
}

impl<S: Real> SmallStateOps for Cpu<S> {
    fn update_bf16<G: Gradient>(&self, op: UpdateBf16<'_, Self, G>) -> Result<()> {
        const OP: &str = "update_bf16";
        const CHUNK: usize = TASK * BLOCK;
        let level = self.level();
        let UpdateBf16 { w, m, v, g, norm, max_grad_norm, rule, rounding } = op;
        for (name, len) in [("m", m.len()), ("v", v.len()), ("g", g.len())] {
            check::len(OP, name, len, &[("parameters", w.len())])?;
        }
        let Some(s) = adam(OP, norm, max_grad_norm, rule)? else { return Ok(()) };
        let blocks = w.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
        blocks.zip(g.par_chunks(CHUNK)).enumerate().for_each(|(t, (((w, m), v), g))| {
            in_pieces(g, |at, g| {
                let of = at..at + g.len();
                let (w, m, v) = (&mut w[of.clone()], &mut m[of.clone()], &mut v[of]);
                in_bf16(level, w, m, v, g, s, rounding.after(t * CHUNK + at));
            });
        });
        Ok(())
    }

    fn update_8bit<G: Gradient>(&self, op: Update8bit<'_, Self, G>) -> Result<()> {
        const OP: &str = "update_8bit";
        let level = self.level();
        let Update8bit { w, m, m_scale, v, v_scale, g, norm, max_grad_norm, rule, rounding } = op;
        for (name, len) in [("m", m.len()), ("v", v.len()), ("g", g.len())] {
            check::len(OP, name, len, &[("parameters", w.len())])?;
        }
        for (name, len) in [("m_scale", m_scale.len()), ("v_scale", v_scale.len())] {
            check::len(OP, name, len, &[("blocks", code8::blocks(w.len()))])?;
        }
        let Some(s) = adam(OP, norm, max_grad_norm, rule)? else { return Ok(()) };
        let first = m.par_chunks_mut(BLOCK).zip(m_scale);
        let second = v.par_chunks_mut(BLOCK).zip(v_scale);
        let blocks = w.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(first).zip(second);
        blocks.enumerate().with_min_len(TASK).for_each(|(b, (((w, g), (m, m_scale)), (v, v_scale)))| {
            let (mut first, mut second) = ([0f32; BLOCK], [0f32; BLOCK]);
            decode(m, *m_scale, SIGNED, &mut first);
            decode(v, *v_scale, UNSIGNED, &mut second);
            let n = w.len();
            let (first, second) = (&mut first[..n], &mut second[..n]);
            let mut largest = [0.0; 2];
            // A block is one piece at most.
            in_pieces(g, |_, g| largest = in_blocks(level, w, first, second, g, s, rounding.after(b * BLOCK)));
            let [of_m, of_v] = largest;
            encode(first, of_m, SIGNED, m, m_scale);
            encode(second, of_v, UNSIGNED, v, v_scale);
        });
        Ok(())
    }
}
