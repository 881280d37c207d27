//! A micro-batch and its parts.

use super::capacity::Capacity;
use super::outline::{GroupSpan, Outline, PairSlot, ResponseSlot, refused, reserved};
use crate::error::{Error, Result};

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

/// Whole groups in `slots` token slots; or, where sequences are being continued, their newest tokens. Everything is in
/// group order; a group's parts are contiguous in each array.
///
/// What holds of every one of them, as it is laid out by an [`Outline`], which is so:
/// - `tokens` and `positions` have an entry a slot; those of the dummy tail, rows `used..slots`, are 0.
/// - Segments have at least one row, start where the one before ends, and cover the live rows; a response's prefix is the
///   prompt of its group. Or there are no segments and no groups: every live row attends to a cache.
/// - A group has at least one response; every response belongs to one group (unless it is a cached row), and every pair is
///   of two different responses of one group.
/// - Every prediction reads a live row; a response's predictions are contiguous, and those of all responses cover the array.
/// - `rows_by_token` and `predictions_by_row` are permutations, in the order that they name.
#[derive(Debug, Default, PartialEq)]
pub struct MicroBatch {
    outline: Outline,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    segments: Vec<Segment>,
    predictions: Vec<Prediction>,
    rows_by_token: Vec<u32>,
    predictions_by_row: Vec<u32>,
    draws: Option<u64>,
}

impl MicroBatch {
    /// An empty micro-batch with memory for what any within `capacity` holds: [`Clone::clone_from`] then allocates nothing.
    pub fn with_capacity(capacity: Capacity) -> Self {
        let Capacity { slots, predictions, .. } = capacity;
        MicroBatch {
            outline: Outline::with_capacity(capacity),
            tokens: Vec::with_capacity(slots),
            positions: Vec::with_capacity(slots),
            // A segment has at least one row.
            segments: Vec::with_capacity(slots),
            predictions: Vec::with_capacity(predictions),
            rows_by_token: Vec::with_capacity(slots),
            predictions_by_row: Vec::with_capacity(predictions),
            draws: None,
        }
    }

    /// The micro-batch that `outline` is of, `tokens` being those of its live rows, in order.
    ///
    /// Refused with [`Error::Training`]: another number of tokens, and the outline of rows that attend to a cache.
    pub fn of(outline: Outline, tokens: Vec<u32>) -> Result<Self> {
        let (used, got) = (outline.used(), tokens.len());
        if got != used {
            return Err(refused(format!("{got} tokens for {used} rows")));
        }
        if outline.groups().is_empty() && used > 0 {
            return Err(refused(format!("{used} rows attend to a cache, and their positions are not known")));
        }
        Ok(Self::laid_out(outline, tokens))
    }

    /// Of groups, `tokens` being as many as `outline` has rows.
    pub(super) fn laid_out(outline: Outline, tokens: Vec<u32>) -> Self {
        let mut positions = Vec::with_capacity(outline.slots());
        let mut segments = Vec::with_capacity(outline.num_segments());
        let mut predictions = Vec::with_capacity(outline.num_predictions());
        for g in outline.groups() {
            let (prefix_start, prefix_len) = (g.prompt.start, g.prompt.len() as u32);
            if prefix_len > 0 {
                segments.push(Segment { start: prefix_start, len: prefix_len, prefix_start, prefix_len: 0 });
            }
            positions.extend(0..prefix_len);
            for response in g.responses.clone() {
                let rows = outline.responses()[response as usize].rows.clone();
                let (start, len) = (rows.start, rows.len() as u32);
                let own = &tokens[start as usize..rows.end as usize];
                if len > 0 {
                    segments.push(Segment { start, len, prefix_start, prefix_len });
                }
                positions.extend(prefix_len..prefix_len + len);
                if prefix_len > 0 {
                    let target = own.first().copied().unwrap_or(0);
                    predictions.push(Prediction { row: g.prompt.end - 1, target, response });
                }
                let follow = rows.zip(own.get(1..).unwrap_or_default());
                predictions.extend(follow.map(|(row, &target)| Prediction { row, target, response }));
            }
        }
        Self { segments, ..Self::padded(outline, tokens, positions, predictions) }
    }

    /// Of rows that attend to a cache, as many as `outline` has, each of which predicts what follows.
    pub(super) fn of_cached(outline: Outline, tokens: Vec<u32>, positions: Vec<u32>) -> Self {
        let rows = 0..tokens.len() as u32;
        let predictions = rows.map(|row| Prediction { row, target: 0, response: row }).collect();
        Self::padded(outline, tokens, positions, predictions)
    }

    /// With a dummy tail, and in no segment.
    fn padded(outline: Outline, mut tokens: Vec<u32>, mut positions: Vec<u32>, predictions: Vec<Prediction>) -> Self {
        let rows_by_token = sorted(tokens.iter().copied());
        let predictions_by_row = sorted(predictions.iter().map(|p| p.row));
        tokens.resize(outline.slots(), 0);
        positions.resize(outline.slots(), 0);
        let (segments, draws) = (Vec::new(), None);
        Self { outline, tokens, positions, segments, predictions, rows_by_token, predictions_by_row, draws }
    }

    /// What is known of it without its tokens.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }
    /// See [`MicroBatch::outline`], for what a run knows of responses and pairs.
    pub fn outline_mut(&mut self) -> &mut Outline {
        &mut self.outline
    }
    /// Its outline; its tokens are gone.
    pub fn into_outline(self) -> Outline {
        self.outline
    }

    /// Token slots, live and dummy: the fixed token budget `T`.
    pub fn slots(&self) -> usize {
        self.outline.slots()
    }
    /// Live rows; rows `used..slots` are the dummy tail (token 0, position 0, in no segment).
    pub fn used(&self) -> usize {
        self.outline.used()
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
        self.outline.groups()
    }
    /// What is predicted, ordered by response and then by token.
    pub fn predictions(&self) -> &[Prediction] {
        &self.predictions
    }
    /// The responses.
    pub fn responses(&self) -> &[ResponseSlot] {
        self.outline.responses()
    }
    /// The pairs.
    pub fn pairs(&self) -> &[PairSlot] {
        self.outline.pairs()
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
        self.outline.capacity()
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
        let g = &self.outline.groups()[group];
        let rows = g.prompt.start as usize..g.end as usize;
        self.positions[rows].iter_mut().for_each(|p| *p += by);
    }

    /// Tokens of the shortest and of the longest row of group `group`: a prompt with one of its responses.
    pub fn row_lengths(&self, group: usize) -> (usize, usize) {
        let g = &self.outline.groups()[group];
        let prompt = g.prompt.len();
        // The prompt has the first segment, unless it is empty.
        let segments = g.segments.start as usize + usize::from(prompt > 0)..g.segments.end as usize;
        let rows = || self.segments[segments.clone()].iter().map(|s| prompt + s.len as usize);
        (rows().min().unwrap_or(prompt), rows().max().unwrap_or(prompt))
    }

    /// See [`Outline::set_ref_logps`].
    pub fn set_ref_logps(&mut self, of: impl FnMut(&ResponseSlot) -> Result<f64>) -> Result<()> {
        self.outline.set_ref_logps(of)
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
        self.outline.lane()
    }

    /// See [`Outline::shared_len`].
    pub fn shared_len(&self, pair: &PairSlot) -> usize {
        self.outline.shared_len(pair)
    }

    /// Empties it; keeps its memory.
    pub fn clear(&mut self) {
        self.clone_from(&MicroBatch::default());
    }

    /// Bytes of memory reserved on the heap.
    pub fn bytes(&self) -> usize {
        self.outline.bytes()
            + reserved(&self.tokens)
            + reserved(&self.positions)
            + reserved(&self.segments)
            + reserved(&self.predictions)
            + reserved(&self.rows_by_token)
            + reserved(&self.predictions_by_row)
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
        let MicroBatch { outline, tokens, positions, segments, predictions, rows_by_token, predictions_by_row, draws } =
            from;
        self.draws = *draws;
        self.outline.clone_from(outline);
        self.tokens.clone_from(tokens);
        self.positions.clone_from(positions);
        self.segments.clone_from(segments);
        self.predictions.clone_from(predictions);
        self.rows_by_token.clone_from(rows_by_token);
        self.predictions_by_row.clone_from(predictions_by_row);
    }
}

/// Indices in the order of (value, index). One key of both each: a plain integer sort, and no ties.
fn sorted(values: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut keys: Vec<u64> = values.enumerate().map(|(i, v)| u64::from(v) << 32 | i as u64).collect();
    keys.sort_unstable();
    keys.into_iter().map(|k| k as u32).collect()
}
