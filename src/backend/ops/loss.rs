//! From statistics of predictions to losses, metrics and coefficients.

use super::device::{Acc, AccMut, Device};
use crate::batch::Chunk;
use crate::error::Result;
use crate::loss::LossSpec;

/// Numbers per response in [`Loss::responses`]: sum of logp, of entropy, of hits, and the response's own loss (SFT).
pub const RESPONSE_STATS: usize = 4;
/// Numbers per pair in [`Loss::pairs`]: the unweighted loss, reward of chosen, reward of rejected (`beta * (logp - ref_logp)`).
pub const PAIR_STATS: usize = 3;

/// Per-response sums, losses, metrics and coefficients of one chunk of n predictions, from the head's statistics and the
/// batch's reference log-probs.
pub struct Loss<'a, B: Device> {
    /// `dL/dlogp` of every prediction of the chunk; n.
    pub coef: AccMut<'a, B>,
    /// responses x [`RESPONSE_STATS`], of the chunk.
    pub responses: B::ViewMut<'a, f64>,
    /// pairs x [`PAIR_STATS`], of the chunk.
    pub pairs: B::ViewMut<'a, f64>,
    /// The chunk's part, n.
    pub logp: Acc<'a, B>,
    /// The chunk's part, n.
    pub entropy: Acc<'a, B>,
    /// The chunk's part, n.
    pub hit: Acc<'a, B>,
    /// Whose responses and pairs.
    pub batch: &'a B::Batch,
    /// Which of them.
    pub chunk: &'a Chunk,
    /// Which loss.
    pub spec: &'a LossSpec,
    /// 1 / (total pair weight of the global batch), or 1 / (predicted tokens of the global batch) for SFT.
    pub scale: f64,
}

/// The op of the losses. Errors: [`crate::Error::Shape`]; [`crate::Error::Training`] for a chunk that is not made of whole
/// responses and pairs.
pub trait LossOps: Device {
    /// See [`Loss`].
    fn loss(&self, op: Loss<'_, Self>) -> Result<()>;
}
