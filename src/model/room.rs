//! How to generate, what that allocates, and how many sequences there is room for.

use super::acts::Workspace;
use super::cache::Cache;
use super::load::Model;
use super::packed::PackedWeights;
use crate::backend::{Backend, Layout};
use crate::batch::Capacity;
use crate::error::Result;

/// Tokens of prompts computed at a time, where one prompt is not longer.
const PREFILL_TOKENS: usize = 2048;

/// How to generate. Names are Hugging Face's.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens a sequence, its end token included.
    pub max_new_tokens: usize,
    /// 0: greedy.
    pub temperature: f64,
    /// Share of probability to draw from, in `(0, 1]`.
    pub top_p: f64,
    /// Sequences a prompt; they share its computation.
    pub num_return_sequences: usize,
    /// Sequence `k` of prompt `p` draws from stream `p * num_return_sequences + k` of this seed.
    pub seed: u64,
    /// Tokens that end a sequence; usually the configuration's.
    pub eos_token_ids: Vec<u32>,
    /// Bytes that the key/value cache and the logits may take; at least one sequence always fits.
    pub cache_bytes: usize,
    /// Whether the weights are laid out once more for products of few rows, on devices where that is faster: the same bits,
    /// for at most the weights' memory again.
    pub pack_weights: bool,
}

/// Fewest new tokens for which weights are packed: packing costs about as much as two steps without.
const PACKED_FROM: usize = 4;

/// Most tokens that are guessed before the weights themselves say which of them they would have drawn: with the token before
/// them as many rows as the least tile has.
const GUESSES: usize = 3;
/// Most rows of such a pass: no more than a tile of the products has, so that they cost little beside reading the weights.
const GUESSED_ROWS: usize = 12;

/// How many tokens to guess for each of `live` sequences.
pub(super) fn guesses(live: usize) -> usize {
    (GUESSED_ROWS / live).saturating_sub(1).min(GUESSES)
}

/// What generating has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Sequences at a time.
    pub sequences: usize,
    /// Predictions of a batch: of each sequence, and of those that are guessed.
    pub rows: usize,
    /// Token slots of its batches.
    pub slots: usize,
    /// Bytes of logits on the host, beside the device's.
    pub host_bytes: usize,
}

/// Everything that `generate` allocates on the device.
pub(super) struct Buffers<B: Backend> {
    pub room: Room,
    pub ws: Workspace<B>,
    pub cache: Cache<B>,
    pub packed: Option<PackedWeights<B>>,
    /// Weights that guess, where that is worth while.
    pub drafts: Option<PackedWeights<B>>,
}

/// Allocates it.
pub(super) fn buffers<B: Backend>(
    be: &B,
    model: &Model<B>,
    prompts: &[Vec<u32>],
    o: &GenerateOptions,
) -> Result<Buffers<B>> {
    let c = &model.config;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let stride = longest + o.max_new_tokens;
    let cached = stride * c.attn_shape().kv_width() * 2 * c.num_hidden_layers * size_of::<B::Act>();
    let logits = c.vocab_size * size_of::<B::Acc>();
    let sequences = (o.cache_bytes / (cached + logits)).min(prompts.len() * o.num_return_sequences);
    // Cache rows are numbered in u32, u32::MAX meaning none.
    let sequences = sequences.min((u32::MAX as usize - 1) / stride).max(1);
    let tokens = prompts.iter().map(Vec::len).sum::<usize>().min(PREFILL_TOKENS).max(longest);
    let packs = o.pack_weights && o.max_new_tokens >= PACKED_FROM;
    let room = |layout| PackedWeights::room(be, model, layout);
    let drafts = (packs && guesses(sequences) > 0).then(|| room(Layout::Draft)).transpose()?;
    let drafts = drafts.filter(PackedWeights::any);
    let guessing = drafts.is_some();
    // Weights that are read once for several tokens are worth half their memory, not all of it.
    let packed = packs.then(|| room(if guessing { Layout::Half } else { Layout::Whole })).transpose()?;
    // Of all numbers of sequences that may be left.
    let rows = (1..=sequences).map(|n| n * (1 + if guessing { guesses(n) } else { 0 })).max().unwrap_or(sequences);
    let slots = tokens.max(rows);
    let capacity = Capacity { slots, predictions: rows, responses: rows, pairs: 0 };
    let room = Room { sequences, rows, slots, host_bytes: rows * logits };
    let ws = Workspace::new(be, model, capacity, rows, false)?;
    let cache = Cache::new(be, model, sequences, stride)?;
    Ok(Buffers { room, ws, cache, packed, drafts })
}
