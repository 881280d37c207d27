//! A micro-batch on the device, with the tables that kernels follow without looking: a [`MicroBatch`] is sound by construction.
//!
//! All tables lie in one buffer, at places that depend on the capacity alone. They are put together in one of two pieces of
//! page-locked host memory that take turns, and travel in one copy that nobody waits for.

use super::check;
use super::context::{Gpu, GpuFloat};
use super::driver::{Driver, View};
use super::memory::Buf;
use super::pinned::Pinned;
use super::tiles::Tables;
use crate::backend::dropout;
use crate::backend::ops::device::AttnShape;
use crate::batch::{Capacity, Chunk, GroupSpan, MicroBatch, ResponseSlot};
use crate::error::{Error, Result};
use std::marker::PhantomData;
use std::ops::Range;

/// Numbers to which tables are aligned: 64 bytes.
const ALIGN: usize = 16;
/// Numbers of rows that ops compute are multiples of this, and of an eighth of the capacity's.
const ROWS: usize = 512;

/// Rows that ops compute for `used` live ones: few enough numbers that libraries choose, and graphs are recorded, for a few
/// shapes; near enough that the last micro-batch of a step, which may be almost empty, does not cost as much as a full one.
pub(super) fn computed_rows(used: usize, slots: usize, capacity: usize) -> usize {
    let step = capacity.div_ceil(8).next_multiple_of(ROWS);
    used.max(1).next_multiple_of(step).min(slots)
}

/// Where each table of a batch of some [`Capacity`] starts, in `u32`s.
struct Layout {
    /// Three numbers a response, f64.
    of_responses: usize,
    /// Five numbers a pair, f64.
    of_pairs: usize,
    tokens: usize,
    positions: usize,
    rows_by_token: usize,
    prediction_rows: usize,
    targets: usize,
    starts: usize,
    by_row: usize,
    spans: usize,
    pairs: usize,
    groups: usize,
    /// Attention's tables: queries, keys.
    attention: [usize; 2],
    len: usize,
}

impl Layout {
    fn new(c: Capacity, attention: [usize; 2]) -> Layout {
        let mut len = 0;
        let mut next = |n: usize| {
            let start = len;
            len = (start + n).next_multiple_of(ALIGN);
            start
        };
        Layout {
            of_responses: next(2 * 3 * c.responses),
            of_pairs: next(2 * 5 * c.pairs),
            tokens: next(c.slots),
            positions: next(c.slots),
            rows_by_token: next(c.slots),
            prediction_rows: next(c.predictions),
            targets: next(c.predictions),
            starts: next(c.slots + 1),
            by_row: next(c.predictions),
            spans: next(2 * c.responses),
            pairs: next(2 * c.pairs),
            groups: next(4 * c.responses), // a group has at least one response
            attention: attention.map(next),
            len,
        }
    }
}

/// What dropout draws from: two words a slot, then two a prediction. A copy of its own, as few runs drop anything.
struct Draws<D: Driver> {
    memory: Buf<D, u32>,
    staging: [Pinned<D, u32>; 2],
    /// Whether the batch was loaded with any.
    loaded: bool,
}

/// A [`MicroBatch`] on the device. Made by `new_batch`, filled by `load_batch`, which allocates nothing.
pub struct GpuBatch<D: Driver> {
    capacity: Capacity,
    layout: Layout,
    slots: usize,
    /// Live rows.
    pub(super) used: usize,
    predictions: usize,
    pairs: usize,
    /// Predictions of every response.
    spans: Vec<Range<u32>>,
    groups: Vec<GroupSpan>,
    /// One past the largest token, position, target.
    pub(super) tokens_end: usize,
    pub(super) positions_end: usize,
    pub(super) targets_end: usize,
    memory: Buf<D, u32>,
    staging: [Pinned<D, u32>; 2],
    /// Which piece of staging memory is next.
    turn: usize,
    /// What attention needs.
    pub(super) attention: Tables,
    draws: Option<Draws<D>>,
}

impl<D: Driver> GpuBatch<D> {
    /// An empty batch with memory for any micro-batch within `capacity`, for attention over `shape`.
    pub fn new<A: GpuFloat>(gpu: &Gpu<D, A>, capacity: Capacity, shape: AttnShape) -> Result<Self> {
        check::attn("new_batch", &shape)?;
        let attention = Tables::new(A::DTYPE, capacity, &shape);
        let layout = Layout::new(capacity, attention.words());
        Ok(GpuBatch {
            memory: gpu.alloc("batch", layout.len)?,
            staging: [gpu.pinned(layout.len)?, gpu.pinned(layout.len)?],
            turn: 0,
            attention,
            spans: Vec::with_capacity(capacity.responses),
            groups: Vec::with_capacity(capacity.responses),
            capacity,
            layout,
            slots: 0,
            used: 0,
            predictions: 0,
            pairs: 0,
            tokens_end: 0,
            positions_end: 0,
            targets_end: 0,
            draws: None,
        })
    }

    /// Gives it room for what dropout draws from.
    pub(super) fn make_room<A: GpuFloat>(&mut self, gpu: &Gpu<D, A>) -> Result<()> {
        let len = 2 * (self.capacity.slots + self.capacity.predictions);
        let staging = [gpu.pinned(len)?, gpu.pinned(len)?];
        self.draws = Some(Draws { memory: gpu.alloc("dropout draws", len)?, staging, loaded: false });
        Ok(())
    }

    /// Replaces the content; on an error, which is a batch beyond the capacity or a lost device, there is none. Waits only for the copy of the load before the last.
    pub fn load(&mut self, from: &MicroBatch) -> Result<()> {
        (self.slots, self.used, self.predictions, self.pairs) = (0, 0, 0, 0);
        self.spans.clear();
        self.groups.clear();
        from.within(&self.capacity)?;
        let slots = computed_rows(from.used(), from.slots(), self.capacity.slots);
        self.attention.load(from, slots);
        if let Some(all) = &mut self.draws {
            all.loaded = from.draws().is_some();
            if let Some(draws) = from.draws() {
                let staging = &mut all.staging[self.turn];
                stage_draws(staging.open()?, self.capacity.slots, from, draws);
                staging.upload(all.memory.all_mut())?;
            }
        }
        let staging = &mut self.staging[self.turn];
        self.turn = 1 - self.turn;
        let words = staging.open()?;
        stage(&self.layout, words, from);
        self.attention.stage(self.layout.attention, words);
        staging.upload(self.memory.all_mut())?;
        self.spans.extend(from.responses().iter().map(|r| r.predictions.clone()));
        self.groups.extend_from_slice(from.groups());
        let end = |v: &[u32]| v.iter().max().map_or(0, |m| *m as usize + 1);
        self.tokens_end = end(from.tokens());
        self.positions_end = end(from.positions());
        self.targets_end = from.predictions().iter().map(|p| p.target as usize + 1).max().unwrap_or(0);
        (self.slots, self.used) = (slots, from.used());
        (self.predictions, self.pairs) = (from.predictions().len(), from.pairs().len());
        Ok(())
    }

    /// From the next load on, cuts a tile of keys that more than so many packed queries see into parts (2,048 where this is not
    /// called). For tests: small batches then have parts, and [`usize::MAX`] gives the order of sums without any.
    pub fn cut_key_tiles_at(&mut self, packed_queries: usize) {
        self.attention.cut_at(packed_queries);
    }

    /// Rows that ops compute: the live ones and some, so that there are few shapes.
    pub fn slots(&self) -> usize {
        self.slots
    }
    /// Predictions of the micro-batch.
    pub fn num_predictions(&self) -> usize {
        self.predictions
    }

    fn table(&self, start: usize, len: usize) -> View<'_, u32> {
        self.memory.view(start..start + len)
    }
    /// Attention's table number `which`, given the numbers of both.
    pub(super) fn attention_table(&self, which: usize, words: [usize; 2]) -> View<'_, u32> {
        self.table(self.layout.attention[which], words[which])
    }
    fn doubles(&self, start: usize, len: usize) -> View<'_, f64> {
        View { at: self.table(start, 2 * len).at, len, life: PhantomData }
    }
    pub(super) fn tokens(&self) -> View<'_, u32> {
        self.table(self.layout.tokens, self.slots)
    }
    pub(super) fn positions(&self) -> View<'_, u32> {
        self.table(self.layout.positions, self.slots)
    }
    pub(super) fn rows_by_token(&self) -> View<'_, u32> {
        self.table(self.layout.rows_by_token, self.used)
    }
    pub(super) fn prediction_rows(&self) -> View<'_, u32> {
        self.table(self.layout.prediction_rows, self.predictions)
    }
    pub(super) fn targets(&self, range: Range<usize>) -> View<'_, u32> {
        self.table(self.layout.targets, self.predictions).part(range)
    }
    /// Where each row's predictions start, and the predictions in that order.
    pub(super) fn predictions_by_row(&self) -> (View<'_, u32>, View<'_, u32>) {
        (self.table(self.layout.starts, self.slots + 1), self.table(self.layout.by_row, self.predictions))
    }
    pub(super) fn spans(&self) -> View<'_, u32> {
        self.table(self.layout.spans, 2 * self.spans.len())
    }
    pub(super) fn pairs(&self) -> View<'_, u32> {
        self.table(self.layout.pairs, 2 * self.pairs)
    }
    pub(super) fn groups(&self, range: Range<usize>) -> View<'_, u32> {
        self.table(self.layout.groups, 4 * self.groups.len()).part(4 * range.start..4 * range.end)
    }
    /// Reference logp, score (NaN: none) and given coefficient of each response.
    pub(super) fn of_responses(&self) -> View<'_, f64> {
        self.doubles(self.layout.of_responses, 3 * self.spans.len())
    }
    /// Weight, the reference's logp of the shared tokens of both responses, and their given coefficients, of each pair.
    pub(super) fn of_pairs(&self) -> View<'_, f64> {
        self.doubles(self.layout.of_pairs, 5 * self.pairs)
    }

    /// What dropout draws from, two words of each row or prediction; none without room, or loaded without draws.
    pub(super) fn draws(&self, predicting: bool) -> Option<View<'_, u32>> {
        let all = self.draws.as_ref().filter(|all| all.loaded)?;
        let (start, n) = if predicting { (self.capacity.slots, self.predictions) } else { (0, self.slots) };
        Some(all.memory.view(2 * start..2 * (start + n)))
    }

    /// Checks that a chunk's predictions lie in the batch: all that the head looks at.
    pub(super) fn check_predictions(&self, op: &'static str, chunk: &Chunk) -> Result<()> {
        let (range, len) = (&chunk.predictions, self.predictions);
        if range.start <= range.end && range.end <= len {
            return Ok(());
        }
        Err(Error::Shape { op, name: "chunk.predictions", got: range.end, want: len, shape: format!("within {len}") })
    }

    /// Checks that a chunk lies in the batch and that its responses' predictions are those it names.
    pub(super) fn check_chunk(&self, op: &'static str, chunk: &Chunk) -> Result<()> {
        for (name, range, len) in [
            ("chunk.responses", &chunk.responses, self.spans.len()),
            ("chunk.predictions", &chunk.predictions, self.predictions),
            ("chunk.pairs", &chunk.pairs, self.pairs),
        ] {
            if range.start > range.end || range.end > len {
                return Err(Error::Shape { op, name, got: range.end, want: len, shape: format!("within {len}") });
            }
        }
        let mut at = chunk.predictions.start;
        for span in &self.spans[chunk.responses.clone()] {
            if span.start as usize != at {
                let why = "a chunk's responses and predictions do not belong together";
                return Err(Error::Training(format!("{op}: {why}")));
            }
            at = span.end as usize;
        }
        check::len(op, "chunk.predictions", at, &[("end of the last response", chunk.predictions.end)])
    }

    /// The groups that make up a chunk. Errors: a chunk that cuts a group.
    pub(super) fn groups_of(&self, op: &'static str, chunk: &Chunk) -> Result<Range<usize>> {
        let before = |g: &GroupSpan, response: usize| (g.responses.start as usize) < response;
        let first = self.groups.partition_point(|g| before(g, chunk.responses.start));
        let end = self.groups.partition_point(|g| before(g, chunk.responses.end)).max(first);
        let groups = &self.groups[first..end];
        let whole = match (groups.first(), groups.last()) {
            (Some(a), Some(b)) => {
                a.responses.start as usize == chunk.responses.start
                    && b.responses.end as usize == chunk.responses.end
                    && a.pairs.start as usize == chunk.pairs.start
                    && b.pairs.end as usize == chunk.pairs.end
            }
            _ => chunk.responses.is_empty() && chunk.pairs.is_empty(),
        };
        if whole {
            return Ok(first..end);
        }
        Err(Error::Training(format!("{op}: a chunk must hold whole groups")))
    }
}

/// Writes the tables of `from`, but attention's, to their places. What lies behind their ends stays as it was.
fn stage(l: &Layout, words: &mut [u32], from: &MicroBatch) {
    let mut fill = |at: usize, values: &mut dyn Iterator<Item = u32>| {
        words[at..].iter_mut().zip(values).for_each(|(w, v)| *w = v);
    };
    let halves = |x: f64| [x.to_bits() as u32, (x.to_bits() >> 32) as u32];
    let score = |r: &ResponseSlot| r.score.map_or(f64::NAN, f64::from);
    let of_responses = from.responses().iter().flat_map(|r| [r.ref_logp, score(r), r.given]);
    fill(l.of_responses, &mut of_responses.flat_map(halves));
    let of_pairs = from.pairs().iter().flat_map(|p| {
        let ([head_chosen, head_rejected], [chosen, rejected]) = (p.ref_heads, p.given);
        [p.weight.into(), head_chosen, head_rejected, chosen, rejected]
    });
    fill(l.of_pairs, &mut of_pairs.flat_map(halves));
    fill(l.tokens, &mut from.tokens().iter().copied());
    fill(l.positions, &mut from.positions().iter().copied());
    fill(l.rows_by_token, &mut from.rows_by_token().iter().copied());
    fill(l.prediction_rows, &mut from.predictions().iter().map(|p| p.row));
    fill(l.targets, &mut from.predictions().iter().map(|p| p.target));
    fill(l.by_row, &mut from.predictions_by_row().iter().copied());
    fill(l.spans, &mut from.responses().iter().flat_map(|r| [r.predictions.start, r.predictions.end]));
    fill(l.pairs, &mut from.pairs().iter().flat_map(|p| [p.chosen, p.rejected]));
    let group = |g: &GroupSpan| [g.responses.start, g.responses.end, g.pairs.start, g.pairs.end];
    fill(l.groups, &mut from.groups().iter().flat_map(group));
    let mut at = 0;
    let row = |n: u32| from.predictions()[n as usize].row as usize;
    let mut starts = (0..=from.slots()).map(|t| {
        while at < from.predictions_by_row().len() && row(from.predictions_by_row()[at]) < t {
            at += 1;
        }
        at as u32
    });
    fill(l.starts, &mut starts);
}

/// Writes what dropout draws from, of a batch with room for so many slots: to where the row is, and again where it predicts. Rows
/// behind the live ones draw from whatever is there: nobody reads them.
fn stage_draws(words: &mut [u32], slots: usize, from: &MicroBatch, draws: u64) {
    let (rows, predictions) = words.split_at_mut(2 * slots);
    for (to, row) in rows.chunks_exact_mut(2).zip(dropout::rows(from, draws)) {
        to.copy_from_slice(&[row as u32, (row >> 32) as u32]);
    }
    for (to, p) in predictions.chunks_exact_mut(2).zip(from.predictions()) {
        to.copy_from_slice(&rows[2 * p.row as usize..][..2]);
    }
}

#[cfg(test)]
mod tests {
    use super::computed_rows;

    #[test]
    fn an_eighth_of_the_capacity_is_the_finest_step() {
        for (used, want) in [(0, 2048), (1, 2048), (2048, 2048), (2049, 4096), (14_000, 14_336), (16_384, 16_384)] {
            assert_eq!(computed_rows(used, 16_384, 16_384), want, "{used}");
        }
        assert_eq!(computed_rows(1100, 2048, 2048), 1536);
        assert_eq!(computed_rows(1100, 1300, 2048), 1300, "no more than there are slots");
        assert_eq!(computed_rows(3, 20, 64), 20);
        assert_eq!(computed_rows(0, 0, 64), 0);
        let shapes = |capacity: usize| {
            let mut all: Vec<usize> = (0..=capacity).map(|used| computed_rows(used, capacity, capacity)).collect();
            all.dedup();
            all.len()
        };
        assert!([1, 512, 2048, 5000, 16_384, 16_385].iter().all(|c| shapes(*c) <= 8));
    }
}
