//! Rotary position embedding (Su et al. 2021), NeoX halves.

use super::device::Cpu;
use super::real::Real;
use super::simd::simd_fn;
use super::{check, par};
use crate::backend::ops::rope::{Rope, RopeOps, Rotation};
use crate::error::Result;

simd_fn! {
    /// Rotates every head of a row by the angles of one position.
    fn rotate<S>(heads: &mut [S], cos: &[S], sin: &[S], sign: S) {
        let half = cos.len();
        for head in heads.chunks_exact_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                let s = sign * *s;
                (*a, *b) = (*a * *c - *b * s, *b * *c + *a * s);
            }
        }
    }
}

impl<S: Real> RopeOps for Cpu<S> {
    fn rope(&self, op: Rope<'_, Self>) -> Result<()> {
        const OP: &str = "rope";
        let level = self.level();
        let Rope { qkv, table, batch, shape, direction } = op;
        check::attn(OP, &shape)?;
        check::len(OP, "qkv", qkv.len(), &[("rows", batch.rows()), ("qkv_width", shape.qkv_width())])?;
        check::rows(OP, "head_dim", shape.head_dim, "halves", 2)?;
        check::at_least(OP, "table", table.len(), &[("positions", batch.positions_end), ("head_dim", shape.head_dim)])?;
        let d = shape.head_dim;
        let sign = S::from_f64(if direction == Rotation::Forward { 1.0 } else { -1.0 });
        par::rows(qkv, shape.qkv_width(), |t, row| {
            let (cos, sin) = table[batch.micro.positions()[t] as usize * d..][..d].split_at(d / 2);
            rotate(level, &mut row[..shape.q_width() + shape.kv_width()], cos, sin, sign);
        });
        Ok(())
    }
}
