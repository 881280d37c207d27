//! Rotary position embedding (Su et al. 2021).

use super::device::{Acc, ActMut, AttnShape, Device};
use crate::error::Result;

/// Direction of the rotary embedding: backward rotates by the negative angle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// `+theta`.
    Forward,
    /// `-theta`.
    Backward,
}

/// Rotates queries and keys in place, NeoX halves: `(a, b) -> (a cos - b sin, b cos + a sin)` with `a`, `b` elements `i` and
/// `i + head_dim/2`.
pub struct Rope<'a, B: Device> {
    /// rows x qkv_width.
    pub qkv: ActMut<'a, B>,
    /// positions x head_dim: head_dim/2 cosines, then as many sines.
    pub table: Acc<'a, B>,
    /// Whose positions.
    pub batch: &'a B::Batch,
    /// Heads and their width.
    pub shape: AttnShape,
    /// Which way.
    pub direction: Rotation,
}

/// The op of the rotary embedding. Errors: [`crate::Error::Shape`], a position beyond the table among them.
pub trait RopeOps: Device {
    /// See [`Rope`].
    fn rope(&self, op: Rope<'_, Self>) -> Result<()>;
}
