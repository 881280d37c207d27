//! Rotary position embedding (Su et al. 2021), NeoX halves.

use super::batch::CpuBatch;
use super::device::Cpu;
use super::linear::{add, column_sums};
use super::real::Real;
use super::simd::simd_fn;
use super::{check, par};
use crate::backend::ops::device::AttnShape;
use crate::backend::ops::rope::{RopeBwd, RopeFwd, RopeOps};
use crate::error::Result;

simd_fn! {
    /// Rotates every head of a row by the angles of one position.
    pub(super) fn rotate<S>(heads: &mut [S], cos: &[S], sin: &[S], sign: S) {
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

/// Compares the lengths of an op that rotates with its shape.
pub(super) fn check_lens(
    op: &'static str,
    qkv: usize,
    bias: Option<usize>,
    table: usize,
    batch: &CpuBatch,
    shape: &AttnShape,
) -> Result<()> {
    check::attn(op, shape)?;
    check::len(op, "qkv", qkv, &[("rows", batch.rows()), ("qkv_width", shape.qkv_width())])?;
    check::len(op, "bias", bias.unwrap_or(shape.qkv_width()), &[("qkv_width", shape.qkv_width())])?;
    check::rows(op, "head_dim", shape.head_dim, "halves", 2)?;
    check::at_least(op, "table", table, &[("positions", batch.positions_end), ("head_dim", shape.head_dim)])
}

/// Cosines and sines of row `t`.
pub(super) fn angles<'a, S>(table: &'a [S], batch: &CpuBatch, t: usize, head_dim: usize) -> (&'a [S], &'a [S]) {
    table[batch.micro.positions()[t] as usize * head_dim..][..head_dim].split_at(head_dim / 2)
}

impl<S: Real> RopeOps for Cpu<S> {
    fn rope_fwd(&self, op: RopeFwd<'_, Self>) -> Result<()> {
        let level = self.level();
        let RopeFwd { qkv, bias, table, batch, shape } = op;
        check_lens("rope_fwd", qkv.len(), bias.map(<[S]>::len), table.len(), batch, &shape)?;
        let (d, turns) = (shape.head_dim, shape.q_width() + shape.kv_width());
        par::rows(qkv, shape.qkv_width(), |t, row| {
            if let Some(bias) = bias {
                add(level, row, bias);
            }
            let (cos, sin) = angles(table, batch, t, d);
            rotate(level, &mut row[..turns], cos, sin, S::ONE);
        });
        Ok(())
    }

    fn rope_bwd(&self, op: RopeBwd<'_, Self>) -> Result<()> {
        let level = self.level();
        let RopeBwd { dqkv, dbias, table, batch, shape } = op;
        check_lens("rope_bwd", dqkv.len(), dbias.as_ref().map(|d| d.len()), table.len(), batch, &shape)?;
        let (d, width, turns) = (shape.head_dim, shape.qkv_width(), shape.q_width() + shape.kv_width());
        par::rows(dqkv, width, |t, row| {
            let (cos, sin) = angles(table, batch, t, d);
            rotate(level, &mut row[..turns], cos, sin, -S::ONE);
        });
        if let Some(dbias) = dbias {
            par::columns(dbias, |at, sums| column_sums(level, sums, dqkv, at, width));
        }
        Ok(())
    }
}
