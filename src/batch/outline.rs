//! What is known of a micro-batch without a look at its tokens: what lies where, and for what.

use super::capacity::Capacity;
use crate::error::{Error, Result};
use std::ops::Range;

/// One prompt and its responses: contiguous in every array of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpan {
    /// Index of the group in the data set.
    pub id: u64,
    /// Rows of the prompt (may be empty), followed without a gap by the responses' rows.
    pub prompt: Range<u32>,
    /// The group's segments: the prompt's first, unless it is empty; then one per response that has tokens.
    pub segments: Range<u32>,
    /// The group's responses in [`Outline::responses`].
    pub responses: Range<u32>,
    /// The group's predictions in [`super::MicroBatch::predictions`].
    pub predictions: Range<u32>,
    /// The group's pairs in [`Outline::pairs`].
    pub pairs: Range<u32>,
    /// One past the last row of the group.
    pub end: u32,
}

/// A response of the micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseSlot {
    /// Index of the response in the data set (its place in the sidecar).
    pub id: u64,
    /// Its rows, one a token; none where it is yet to be drawn.
    pub rows: Range<u32>,
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
    /// Index in [`Outline::responses`] of the preferred response.
    pub chosen: u32,
    /// Index in [`Outline::responses`] of the other.
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

/// A micro-batch but for its tokens: its shape, and what a run knows of its responses and pairs. Of what another process computes
/// it is all that a process has.
///
/// Made by [`super::Outliner`] alone, so that what [`super::MicroBatch`] says of groups, responses and pairs holds of it too.
#[derive(Debug, Default, PartialEq)]
pub struct Outline {
    pub(super) slots: usize,
    pub(super) used: usize,
    pub(super) segments: u32,
    pub(super) predictions: u32,
    pub(super) groups: Vec<GroupSpan>,
    pub(super) responses: Vec<ResponseSlot>,
    pub(super) pairs: Vec<PairSlot>,
    pub(super) lane: usize,
}

impl Outline {
    /// An empty one with memory for what any within `capacity` holds.
    pub(super) fn with_capacity(capacity: Capacity) -> Self {
        Self {
            // A group has at least one response.
            groups: Vec::with_capacity(capacity.responses),
            responses: Vec::with_capacity(capacity.responses),
            pairs: Vec::with_capacity(capacity.pairs),
            ..Self::default()
        }
    }

    /// Token slots, live and dummy.
    pub fn slots(&self) -> usize {
        self.slots
    }
    /// Live rows.
    pub fn used(&self) -> usize {
        self.used
    }
    /// How many segments there are.
    pub fn num_segments(&self) -> usize {
        self.segments as usize
    }
    /// How many tokens are predicted.
    pub fn num_predictions(&self) -> usize {
        self.predictions as usize
    }
    /// The groups.
    pub fn groups(&self) -> &[GroupSpan] {
        &self.groups
    }
    /// The responses.
    pub fn responses(&self) -> &[ResponseSlot] {
        &self.responses
    }
    /// The pairs.
    pub fn pairs(&self) -> &[PairSlot] {
        &self.pairs
    }
    /// Which of its step's sums its gradient goes into.
    pub fn lane(&self) -> usize {
        self.lane
    }

    /// Of lane `lane`.
    pub fn in_lane(self, lane: usize) -> Self {
        Self { lane, ..self }
    }

    /// The capacity that this needs.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            slots: self.slots,
            predictions: self.num_predictions(),
            responses: self.responses.len(),
            pairs: self.pairs.len(),
        }
    }

    /// Tokens that the shorter response of `pair` has: those that LD-DPO takes of both.
    pub fn shared_len(&self, pair: &PairSlot) -> usize {
        let len = |r: u32| self.responses[r as usize].predictions.len();
        len(pair.chosen).min(len(pair.rejected))
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

    /// Bytes of memory reserved on the heap.
    pub fn bytes(&self) -> usize {
        reserved(&self.groups) + reserved(&self.responses) + reserved(&self.pairs)
    }
}

impl Clone for Outline {
    fn clone(&self) -> Self {
        let mut to = Outline::default();
        to.clone_from(self);
        to
    }

    /// Keeps the memory of what was there.
    fn clone_from(&mut self, from: &Self) {
        let Outline { slots, used, segments, predictions, groups, responses, pairs, lane } = from;
        (self.slots, self.used, self.lane) = (*slots, *used, *lane);
        (self.segments, self.predictions) = (*segments, *predictions);
        self.groups.clone_from(groups);
        self.responses.clone_from(responses);
        self.pairs.clone_from(pairs);
    }
}

/// Bytes of memory that `v` has reserved.
pub(super) fn reserved<T>(v: &Vec<T>) -> usize {
    v.capacity() * size_of::<T>()
}

pub(super) fn refused(why: String) -> Error {
    Error::Training(format!("micro-batch: {why}; it was put together wrongly"))
}
