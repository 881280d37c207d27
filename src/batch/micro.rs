//! A micro-batch and its parts.

use super::capacity::Capacity;
use crate::error::{Error, Result};
use std::ops::Range;

/// Rows `start..start + len` attend causally to themselves and to all of `prefix_start..prefix_start + prefix_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: u32,
    /// Rows; at least 1.
    pub len: u32,
    /// First row of the prompt that the segment continues.
    pub prefix_start: u32,
    /// Rows of that prompt; 0 for a prompt itself, and for a response whose prompt is empty.
    pub prefix_len: u32,
}

/// One prompt and its responses: contiguous in every array of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpan {
    /// Index of the group in the data set.
    pub id: u64,
    /// Rows of the prompt (may be empty), followed without a gap by the responses' rows.
    pub prompt: Range<u32>,
    /// The group's segments: the prompt's first, unless it is empty; then one per response that has tokens.
    pub segments: Range<u32>,
    /// The group's responses in [`MicroBatch::responses`].
    pub responses: Range<u32>,
    /// The group's predictions in [`MicroBatch::predictions`].
    pub predictions: Range<u32>,
    /// The group's pairs in [`MicroBatch::pairs`].
    pub pairs: Range<u32>,
    /// One past the last row of the group.
    pub end: u32,
}

/// Row `row` predicts token `target`, which belongs to response `response` of the micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The row whose hidden state makes the prediction.
    pub row: u32,
    /// The token that follows; 0 where it is yet to be drawn.
    pub target: u32,
    /// Index in [`MicroBatch::responses`].
    pub response: u32,
}

/// A response of the micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseSlot {
    /// Index of the response in the data set (its place in the sidecar).
    pub id: u64,
    /// Its predictions, in token order; one fewer than its tokens when the prompt is empty.
    pub predictions: Range<u32>,
    /// Reference log-probability, the sum over its predictions; 0 where the loss needs none.
    pub ref_logp: f64,
    /// What the data say that it is worth.
    pub score: Option<f32>,
    /// `dL/dlogp` that a loss of the whole step came to; 0 where there is none.
    pub given: f64,
    /// What it is there for.
    pub role: Role,
}

/// What a response of a micro-batch is there for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// A response to its group's prompt, and how often it is judged, by weight: 0 where it is not.
    Own {
        /// As one to have more of.
        desirable: f32,
        /// As one to have less of.
        undesirable: f32,
    },
    /// A response to another prompt, for the divergence of the policy from the reference. It takes no gradient.
    Mismatched {
        /// The group that it stands in.
        group: u64,
        /// Its weight in the mean.
        weight: f32,
    },
}

impl Role {
    /// A response that nobody judged.
    pub const PLAIN: Role = Role::Own { desirable: 0.0, undesirable: 0.0 };

    /// How often it is judged, by weight.
    pub fn judged(self) -> f64 {
        match self {
            Role::Own { desirable, undesirable } => f64::from(desirable) + f64::from(undesirable),
            Role::Mismatched { .. } => 0.0,
        }
    }

    /// Whether it is a response to another prompt.
    pub fn is_mismatched(self) -> bool {
        matches!(self, Role::Mismatched { .. })
    }
}

/// A preference between two responses of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairSlot {
    /// Index in [`MicroBatch::responses`] of the preferred response.
    pub chosen: u32,
    /// Index in [`MicroBatch::responses`] of the other.
    pub rejected: u32,
    /// Weight of the pair in the mean; 1 unless the data say otherwise.
    pub weight: f32,
    /// Index of the pair in the data set.
    pub id: u64,
    /// Reference log-probability of the first tokens of both responses, as many as the shorter one has; 0 where the loss
    /// needs none.
    pub ref_heads: [f64; 2],
    /// `dL/dlogp` of chosen and rejected that a loss of the whole step came to; 0 where there is none.
    pub given: [f64; 2],
}

/// Whole groups in `slots` token slots; or, where sequences are being continued, their newest tokens. Everything is in
/// group order; a group's parts are contiguous in each array.
///
/// What holds of every one of them, as [`super::Builder`] is the only way to make one:
/// - `tokens` and `positions` have an entry a slot; those of the dummy tail, rows `used..slots`, are 0.
/// - Segments have at least one row, start where the one before ends, and cover the live rows; a response's prefix is the
///   prompt of its group. Or there are no segments and no groups: every live row attends to a cache.
/// - A group has at least one response; every response belongs to one group (unless it is a cached row), and every pair is
///   of two different responses of one group.
/// - Every prediction reads a live row; a response's predictions are contiguous, and those of all responses cover the array.
/// - `rows_by_token` and `predictions_by_row` are permutations, in the order that they name.
#[derive(Debug, Default, PartialEq)]
pub struct MicroBatch {
    pub(super) slots: usize,
    pub(super) used: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) positions: Vec<u32>,
    pub(super) segments: Vec<Segment>,
    pub(super) groups: Vec<GroupSpan>,
    pub(super) predictions: Vec<Prediction>,
    pub(super) responses: Vec<ResponseSlot>,
    pub(super) pairs: Vec<PairSlot>,
    pub(super) rows_by_token: Vec<u32>,
    pub(super) predictions_by_row: Vec<u32>,
    pub(super) draws: Option<u64>,
    pub(super) lane: usize,
}

impl MicroBatch {
    /// An empty micro-batch with memory for what any within `capacity` holds: [`Clone::clone_from`] then allocates nothing.
    pub fn with_capacity(capacity: Capacity) -> Self {
        let Capacity { slots, predictions, responses, pairs } = capacity;
        MicroBatch {
            slots: 0,
            used: 0,
            tokens: Vec::with_capacity(slots),
            positions: Vec::with_capacity(slots),
            // A segment has at least one row, and a group at least one response.
            segments: Vec::with_capacity(slots),
            groups: Vec::with_capacity(responses),
            predictions: Vec::with_capacity(predictions),
            responses: Vec::with_capacity(responses),
            pairs: Vec::with_capacity(pairs),
            rows_by_token: Vec::with_capacity(slots),
            predictions_by_row: Vec::with_capacity(predictions),
            draws: None,
            lane: 0,
        }
    }

    /// Token slots, live and dummy: the fixed token budget `T`.
    pub fn slots(&self) -> usize {
        self.slots
    }
    /// Live rows; rows `used..slots` are the dummy tail (token 0, position 0, in no segment).
    pub fn used(&self) -> usize {
        self.used
    }
    /// Token ids, `[slots]`.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    /// Positions for RoPE, `[slots]`; responses restart at their prompt's length.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }
    /// Who attends to whom, in the order of rows.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
    /// The groups.
    pub fn groups(&self) -> &[GroupSpan] {
        &self.groups
    }
    /// What is predicted, ordered by response and then by token.
    pub fn predictions(&self) -> &[Prediction] {
        &self.predictions
    }
    /// The responses.
    pub fn responses(&self) -> &[ResponseSlot] {
        &self.responses
    }
    /// The pairs.
    pub fn pairs(&self) -> &[PairSlot] {
        &self.pairs
    }
    /// Live rows sorted by (token id, row), `[used]`: fixed order for the embedding's backward sum.
    pub fn rows_by_token(&self) -> &[u32] {
        &self.rows_by_token
    }
    /// Predictions sorted by (row, index): fixed order for the sum of gradients of a row that predicts several tokens.
    pub fn predictions_by_row(&self) -> &[u32] {
        &self.predictions_by_row
    }

    /// The capacity that this needs.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            slots: self.slots,
            predictions: self.predictions.len(),
            responses: self.responses.len(),
            pairs: self.pairs.len(),
        }
    }

    /// Checks that this is within `capacity`. Errors: [`Error::Shape`] naming the first size that is not.
    pub fn within(&self, capacity: &Capacity) -> Result<()> {
        let (need, c) = (self.capacity(), capacity);
        for (name, got, want) in [
            ("slots", need.slots, c.slots),
            ("predictions", need.predictions, c.predictions),
            ("responses", need.responses, c.responses),
            ("pairs", need.pairs, c.pairs),
        ] {
            if got > want {
                let shape = format!("at most the batch's capacity of {want}");
                return Err(Error::Shape { op: "load_batch", name, got, want, shape });
            }
        }
        Ok(())
    }

    /// Moves the positions of group `group` by `by`: to another table of the rotary embedding, behind the first.
    pub fn move_positions(&mut self, group: usize, by: u32) {
        let rows = self.groups[group].prompt.start as usize..self.groups[group].end as usize;
        self.positions[rows].iter_mut().for_each(|p| *p += by);
    }

    /// Tokens of the shortest and of the longest row of group `group`: a prompt with one of its responses.
    pub fn row_lengths(&self, group: usize) -> (usize, usize) {
        let g = &self.groups[group];
        let prompt = g.prompt.len();
        // The prompt has the first segment, unless it is empty.
        let segments = g.segments.start as usize + usize::from(prompt > 0)..g.segments.end as usize;
        let rows = || self.segments[segments.clone()].iter().map(|s| prompt + s.len as usize);
        (rows().min().unwrap_or(prompt), rows().max().unwrap_or(prompt))
    }

    /// Gives every response the reference log-probability that `of` has for it, the sum over its predictions, in order.
    /// Errors: the first of `of`; responses before that one have their new value by then.
    pub fn set_ref_logps(&mut self, mut of: impl FnMut(&ResponseSlot) -> Result<f64>) -> Result<()> {
        self.responses.iter_mut().try_for_each(|r| {
            r.ref_logp = of(r)?;
            Ok(())
        })
    }

    /// The responses, for what a run knows of them.
    pub fn responses_mut(&mut self) -> impl Iterator<Item = &mut ResponseSlot> {
        self.responses.iter_mut()
    }

    /// The pairs, for what a run knows of them.
    pub fn pairs_mut(&mut self) -> impl Iterator<Item = &mut PairSlot> {
        self.pairs.iter_mut()
    }

    /// What the random draws of a pass over it are made from; `None`: it draws nothing, as in every pass that does not train.
    pub fn draws(&self) -> Option<u64> {
        self.draws
    }

    /// Says what passes over it draw from.
    pub fn draw_from(&mut self, key: u64) {
        self.draws = Some(key);
    }

    /// Which of its step's sums its gradient goes into.
    pub fn lane(&self) -> usize {
        self.lane
    }

    /// Of lane `lane`.
    pub fn in_lane(self, lane: usize) -> Self {
        Self { lane, ..self }
    }

    /// Tokens that the shorter response of `pair` has: those that LD-DPO takes of both.
    pub fn shared_len(&self, pair: &PairSlot) -> usize {
        let len = |r: u32| self.responses[r as usize].predictions.len();
        len(pair.chosen).min(len(pair.rejected))
    }

    /// Empties it; keeps its memory.
    pub fn clear(&mut self) {
        self.clone_from(&MicroBatch::default());
    }

    /// Bytes of memory reserved on the heap.
    pub fn bytes(&self) -> usize {
        fn of<T>(v: &Vec<T>) -> usize {
            v.capacity() * size_of::<T>()
        }
        of(&self.tokens)
            + of(&self.positions)
            + of(&self.segments)
            + of(&self.groups)
            + of(&self.predictions)
            + of(&self.responses)
            + of(&self.pairs)
            + of(&self.rows_by_token)
            + of(&self.predictions_by_row)
    }
}

impl Clone for MicroBatch {
    fn clone(&self) -> Self {
        let mut to = MicroBatch::default();
        to.clone_from(self);
        to
    }

    /// Keeps the memory of what was there.
    fn clone_from(&mut self, from: &Self) {
        let MicroBatch {
            slots,
            used,
            tokens,
            positions,
            segments,
            groups,
            predictions,
            responses,
            pairs,
            rows_by_token,
            predictions_by_row,
            draws,
            lane,
        } = from;
        (self.slots, self.used, self.draws, self.lane) = (*slots, *used, *draws, *lane);
        self.tokens.clone_from(tokens);
        self.positions.clone_from(positions);
        self.segments.clone_from(segments);
        self.groups.clone_from(groups);
        self.predictions.clone_from(predictions);
        self.responses.clone_from(responses);
        self.pairs.clone_from(pairs);
        self.rows_by_token.clone_from(rows_by_token);
        self.predictions_by_row.clone_from(predictions_by_row);
    }
}
