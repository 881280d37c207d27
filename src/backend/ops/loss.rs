//! From statistics of predictions to losses, metrics and coefficients.

use super::device::{Acc, AccMut, Device};
use crate::batch::{Chunk, Outline, PairSlot};
use crate::error::Result;
use crate::loss::{LossSpec, Pair, Scales};

/// Numbers per response in [`Loss::responses`]: sum of logp, of entropy, of hits; the response's own losses (SFT's `-logp`, a
/// list's); sum of `logp - log sum p^2` where the loss weighs by it, else 0; scratch.
pub const RESPONSE_STATS: usize = 6;
/// Numbers per pair in [`Loss::pairs`]: the unweighted losses that are means over pairs; reward of chosen, reward of rejected;
/// those that are means over chosen tokens; sums of logp over as many tokens as the pair's shorter response has, chosen and
/// rejected, for LD-DPO, else 0; the last loss's weighted derivatives by both sums, chosen and rejected.
pub const PAIR_STATS: usize = 8;

/// Per-response sums, losses, metrics and coefficients of one chunk of n predictions, from the head's statistics and the
/// batch's reference log-probs.
///
/// Losses of a whole step ([`crate::loss::Scope::Step`]) add nothing here: what they come to is in the batch
/// ([`crate::batch::PairSlot::given`]), and added to the coefficients with [`Loss::given`].
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
    /// The chunk's part, n.
    pub log_sum_p2: Acc<'a, B>,
    /// Whose responses and pairs.
    pub batch: &'a B::Batch,
    /// Which of them.
    pub chunk: &'a Chunk,
    /// Which loss.
    pub spec: &'a LossSpec,
    /// One over what the losses are means over, in the whole step.
    pub scales: Scales,
    /// Whether the coefficients that the batch was given are added.
    pub given: bool,
}

/// The op of the losses. Errors: [`crate::Error::Shape`]; [`crate::Error::Training`] for a chunk that is not made of whole
/// responses and pairs.
pub trait LossOps: Device {
    /// See [`Loss`].
    fn loss(&self, op: Loss<'_, Self>) -> Result<()>;
}

/// What a formula sees of pair `of` of `batch`: `sums` of its responses' logp, `heads` of those over as many tokens as the
/// shorter one has; with `less`, and where LD-DPO asks for it, tokens beyond those count less.
pub fn pair(batch: &Outline, spec: &LossSpec, of: &PairSlot, [sums, heads]: [[f64; 2]; 2], less: bool) -> Pair {
    let (chosen, rejected) = (&batch.responses()[of.chosen as usize], &batch.responses()[of.rejected as usize]);
    let seen = |sum: f64, head: f64| match spec.ld_alpha {
        Some(alpha) if less => head + alpha * (sum - head),
        _ => sum,
    };
    Pair {
        chosen: seen(sums[0], heads[0]),
        rejected: seen(sums[1], heads[1]),
        ref_chosen: seen(chosen.ref_logp, of.ref_heads[0]),
        ref_rejected: seen(rejected.ref_logp, of.ref_heads[1]),
        chosen_len: chosen.predictions.len() as f64,
        rejected_len: rejected.predictions.len() as f64,
        chosen_score: chosen.score.map_or(f64::NAN, f64::from),
        rejected_score: rejected.score.map_or(f64::NAN, f64::from),
    }
}

/// WPO's weight of a pair, 1 without it: `aligned` are its responses' sums of `logp - log sum p^2`. No gradient goes through it.
pub fn pair_weight(spec: &LossSpec, aligned: [f64; 2], p: &Pair) -> f64 {
    match spec.use_weighting {
        true => (aligned[0] / p.chosen_len).exp() * (aligned[1] / p.rejected_len).exp(),
        false => 1.0,
    }
}
