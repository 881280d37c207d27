//! Sequences that are continued: what prompts may be, the batches that go through the model, and where draws fall.

use super::load::Model;
use super::room::GenerateOptions;
use super::sample::uniform;
use crate::backend::Backend;
use crate::batch::{Builder, MicroBatch};
use crate::error::{Error, Result};

/// Most sequences a prompt: far beyond any use, and small enough to be counted with.
pub const MAX_SEQUENCES: usize = 1 << 16;

/// One sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// New tokens, the end token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each under the model itself (temperature 1, all tokens), nats.
    pub logps: Vec<f64>,
    /// Whether it ended by an end token.
    pub finished: bool,
}

/// Refuses what cannot be continued, `before` prompts of others being before `prompts`.
pub(super) fn check<B: Backend>(
    model: &Model<B>,
    (prompts, before): (&[Vec<u32>], usize),
    o: &GenerateOptions,
) -> Result<()> {
    if o.max_new_tokens == 0 || o.num_return_sequences == 0 {
        return Err(Error::usage("`max_new_tokens` and `num_return_sequences`: must be at least 1"));
    }
    if o.num_return_sequences > MAX_SEQUENCES {
        return Err(Error::usage(format!(
            "`num_return_sequences` {}: must be at most {MAX_SEQUENCES}",
            o.num_return_sequences
        )));
    }
    if !(o.temperature >= 0.0 && o.temperature.is_finite()) {
        return Err(Error::usage(format!("`temperature` {}: must be a finite number, at least 0", o.temperature)));
    }
    if !(o.top_p > 0.0 && o.top_p <= 1.0) {
        return Err(Error::usage(format!("`top_p` {}: must be in (0, 1]", o.top_p)));
    }
    for (i, prompt) in prompts.iter().enumerate() {
        let n = before + i + 1;
        if prompt.is_empty() {
            return Err(Error::usage(format!(
                "prompt {n} has no tokens: nothing to continue; start it with a BOS token"
            )));
        }
        let all = prompt.len().saturating_add(o.max_new_tokens);
        if let Some(most) = model.config.rope.turning_point().filter(|most| all > *most) {
            return Err(Error::usage(format!(
                "prompt {n} has {} tokens; with {} new ones it exceeds the {most} that this model turns by the same \
                 frequencies, and continuing beyond is not implemented; lower `options.max_new_tokens`",
                prompt.len(),
                o.max_new_tokens
            )));
        }
        if all > model.max_positions {
            return Err(Error::usage(format!(
                "prompt {n} has {} tokens; with {} new ones it exceeds the {} positions that the model was loaded for",
                prompt.len(),
                o.max_new_tokens,
                model.max_positions
            )));
        }
    }
    Ok(())
}

/// A sequence in a slot.
pub(super) struct Live {
    /// Its number: `prompt * num_return_sequences + k`.
    pub sequence: usize,
    /// Rows of its slot that hold keys and values.
    pub cached: usize,
    /// Its newest token, not yet in the cache.
    pub last: u32,
}

/// Where a sequence's draw falls that is `j` tokens after its next, `before` prompts of others being before it.
pub(super) fn luck((o, before): (&GenerateOptions, usize), out: &[Generated], x: &Live, j: usize) -> f64 {
    let number = before * o.num_return_sequences + x.sequence;
    uniform(o.seed, number as u64, (out[x.sequence].tokens.len() + j) as u64)
}

/// Whole prompts, one after another; the last row of each predicts.
pub(super) fn prompt_batch(prompts: &[&[u32]]) -> Result<MicroBatch> {
    let mut b = Builder::default();
    for (i, prompt) in (0..).zip(prompts) {
        b.group(i, prompt.iter().copied())?;
        b.open_response(i)?;
    }
    let slots = b.used();
    b.finish(slots)
}

/// A row of every sequence, `first` after its newest token's place, then of every one the next, in no segment: their attention
/// goes through the cache.
pub(super) fn decode_batch(live: &[Live], tokens: &[Vec<u32>], first: usize) -> Result<MicroBatch> {
    let mut b = Builder::default();
    for (j, tokens) in (first..).zip(tokens) {
        live.iter().zip(tokens).try_for_each(|(x, token)| b.cached(*token, (x.cached + j) as u32))?;
    }
    b.finish(live.len() * tokens.len())
}
