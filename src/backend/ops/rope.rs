//! Rotary position embedding (Su et al. 2021), with the bias of the projection before it.

use super::device::{Acc, AccMut, Act, ActMut, AttnShape, Device};
use crate::error::Result;

/// Adds `bias` to every row, then rotates its queries and keys in place, NeoX halves: `(a, b) -> (a cos - b sin, b cos + a sin)`
/// with `a`, `b` elements `i` and `i + head_dim/2`.
pub struct RopeFwd<'a, B: Device> {
    /// rows x qkv_width.
    pub qkv: ActMut<'a, B>,
    /// qkv_width; `None`: the projection has none, or it was added before.
    pub bias: Option<Act<'a, B>>,
    /// positions x head_dim: head_dim/2 cosines, then as many sines.
    pub table: Acc<'a, B>,
    /// Whose positions.
    pub batch: &'a B::Batch,
    /// Heads and their width.
    pub shape: AttnShape,
}

/// Rotates the gradients of queries and keys in place by the negative angles; `dbias += sum over rows` of what `dqkv` is then.
pub struct RopeBwd<'a, B: Device> {
    /// rows x qkv_width.
    pub dqkv: ActMut<'a, B>,
    /// qkv_width.
    pub dbias: Option<AccMut<'a, B>>,
    /// positions x head_dim, as [`RopeFwd::table`].
    pub table: Acc<'a, B>,
    /// Whose positions.
    pub batch: &'a B::Batch,
    /// Heads and their width.
    pub shape: AttnShape,
}

/// Ops of the rotary embedding. Errors: [`crate::Error::Shape`], a position beyond the table among them.
pub trait RopeOps: Device {
    /// See [`RopeFwd`].
    fn rope_fwd(&self, op: RopeFwd<'_, Self>) -> Result<()>;
    /// See [`RopeBwd`].
    fn rope_bwd(&self, op: RopeBwd<'_, Self>) -> Result<()>;
}
