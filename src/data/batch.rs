//! A micro-batch: whole groups packed into a fixed number of token slots, each prompt once.
//!
//! ```text
//! slots      | p p p p  a a a  b b | q q  c c c  d d d d | . . dummy tail . . |
//! positions  | 0 1 2 3  4 5 6  4 5 | 0 1  2 3 4  2 3 4 5 | 0 ...              |
//! ```
//! A prompt attends to itself causally; a response to all of its prompt and causally to itself. The prompt's last
//! row predicts the first token of every response of its group. No row of one group sees another group.

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
    /// The group's segments (the prompt's first, unless it is empty; then one per response).
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
    /// The token that follows.
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
}

/// Whole groups in `slots` token slots. Everything is in group order; a group's parts are contiguous in each array.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// Token slots, live and dummy: the fixed token budget `T`.
    pub slots: usize,
    /// Live rows; rows `used..slots` are the dummy tail (token 0, position 0, in no segment).
    pub used: usize,
    /// Token ids, `[slots]`.
    pub tokens: Vec<u32>,
    /// Positions for RoPE, `[slots]`; responses restart at their prompt's length.
    pub positions: Vec<u32>,
    /// Who attends to whom.
    pub segments: Vec<Segment>,
    /// The groups.
    pub groups: Vec<GroupSpan>,
    /// What is predicted, ordered by response and then by token.
    pub predictions: Vec<Prediction>,
    /// The responses.
    pub responses: Vec<ResponseSlot>,
    /// The pairs.
    pub pairs: Vec<PairSlot>,
    /// Live rows sorted by (token id, row): fixed order for the embedding's backward sum.
    pub rows_by_token: Vec<u32>,
    /// Predictions sorted by (row, index): fixed order for the sum of gradients of a row that predicts several tokens.
    pub predictions_by_row: Vec<u32>,
}
