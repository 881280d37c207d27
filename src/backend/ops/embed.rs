//! Token embedding.

use super::device::{Act, ActMut, Device};
use super::element::Gradient;
use crate::error::Result;

/// `x[t] = table[token[t]]`.
pub struct EmbedFwd<'a, B: Device> {
    /// rows x dim.
    pub x: ActMut<'a, B>,
    /// vocab x dim.
    pub table: Act<'a, B>,
    /// Whose tokens.
    pub batch: &'a B::Batch,
    /// Hidden size.
    pub dim: usize,
}

/// `dtable[id] += sum of dx[t] over live rows with token id`, in row order; all of it is rounded once, to nearest.
pub struct EmbedBwd<'a, B: Device, G: Gradient = <B as Device>::Acc> {
    /// vocab x dim.
    pub dtable: B::ViewMut<'a, G>,
    /// rows x dim.
    pub dx: Act<'a, B>,
    /// Whose tokens.
    pub batch: &'a B::Batch,
    /// Hidden size.
    pub dim: usize,
}

/// Ops of the embedding. Errors: [`crate::Error::Shape`], a token beyond the table among them.
pub trait EmbedOps: Device {
    /// See [`EmbedFwd`].
    fn embed_fwd(&self, op: EmbedFwd<'_, Self>) -> Result<()>;
    /// See [`EmbedBwd`].
    fn embed_bwd<G: Gradient>(&self, op: EmbedBwd<'_, Self, G>) -> Result<()>;
}
