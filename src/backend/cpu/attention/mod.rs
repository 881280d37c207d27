//! Softmax attention over segments with a shared prefix: tiles, no mask tensor, no rows x rows memory.
//!
//! Forward and dQ walk over the keys of one query tile (prompt first, then the segment's own), dK/dV over the queries of
//! one key tile (the segment's own, then those of every continuation). The query heads of a key/value head share its
//! tiles. Tiles start at segment starts and sums run in one order, so a row does not depend on what is packed beside it.
//! Products keep the vector lanes along query rows (forward, dQ: softmax has no horizontal step) or along keys (dK/dV).
//! With bf16 products, operands of every product are rounded to bf16; scores, softmax and sums are `f32`.

mod bwd;
mod fwd;
mod softmax;
mod stacks;

use super::device::Cpu;
use super::real::Real;
use crate::backend::ops::attention::{AttentionBwd, AttentionFwd, AttentionOps};
use crate::error::Result;

impl<S: Real> AttentionOps for Cpu<S> {
    fn attention_fwd(&self, op: AttentionFwd<'_, Self>) -> Result<()> {
        fwd::run(&self.gemm, op)
    }

    fn attention_bwd(&self, op: AttentionBwd<'_, Self>) -> Result<()> {
        bwd::run(&self.gemm, op)
    }
}
