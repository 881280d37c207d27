//! A micro-batch as the CPU's ops read it, with the tables that attention and the scatter need.

use crate::backend::dropout;
use crate::batch::{Capacity, Chunk, MicroBatch, Segment};
use crate::error::{Error, Result};
use std::ops::Range;

/// Query rows of a tile. Tiles start at segment starts.
pub(super) const QUERY_BLOCK: usize = 32;
/// Keys of a tile. Tiles start at segment starts.
pub(super) const KEY_BLOCK: usize = 96;

/// Consecutive rows of one segment; `segment` is `u32::MAX` for rows in none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub segment: u32,
    pub start: u32,
    pub len: u32,
}

/// Rows of a block.
pub(super) fn block_rows(b: &Block) -> usize {
    b.len as usize
}

/// A [`MicroBatch`] on the CPU. Made by `new_batch`, filled by `load_batch`, which keeps its memory.
pub struct CpuBatch {
    capacity: Capacity,
    pub(super) micro: MicroBatch,
    /// Rows cut into query tiles, and into key tiles: each covers `0..used` in order.
    pub(super) query_blocks: Vec<Block>,
    pub(super) key_blocks: Vec<Block>,
    /// For every segment the segments that have it as their prompt.
    pub(super) continuations: Vec<Range<u32>>,
    /// `predictions_by_row[prediction_starts[t]..prediction_starts[t + 1]]` belong to row `t`.
    prediction_starts: Vec<u32>,
    /// One past the largest token, position and target.
    pub(super) tokens_end: usize,
    pub(super) positions_end: usize,
    pub(super) targets_end: usize,
    /// What dropout draws from, of rows and of predictions; empty where the batch was loaded without draws, none without room.
    draws: Option<[Vec<u64>; 2]>,
}

impl CpuBatch {
    /// Memory for any micro-batch within `capacity`.
    pub(super) fn new(capacity: Capacity) -> Self {
        let slots = capacity.slots;
        CpuBatch {
            capacity,
            micro: MicroBatch::with_capacity(capacity),
            query_blocks: Vec::with_capacity(2 * slots + 1),
            key_blocks: Vec::with_capacity(2 * slots + 1),
            continuations: Vec::with_capacity(slots),
            prediction_starts: Vec::with_capacity(slots + 1),
            tokens_end: 0,
            positions_end: 0,
            targets_end: 0,
            draws: None,
        }
    }

    /// Gives it room for what dropout draws from.
    pub(super) fn make_room(&mut self, of: [usize; 2]) {
        self.draws = Some(of.map(Vec::with_capacity));
    }

    /// What dropout draws from, of rows or predictions; none without room.
    pub(super) fn draws(&self, predicting: bool) -> Option<&[u64]> {
        self.draws.as_ref().map(|all| &all[usize::from(predicting)][..])
    }

    /// [`CpuBatch::bytes`] of one within `capacity`, without reserving them: they grow with each of its numbers by itself.
    pub(super) fn bytes_of(capacity: Capacity) -> usize {
        let bytes = |slots, predictions, responses, pairs| {
            CpuBatch::new(Capacity { slots, predictions, responses, pairs }).bytes()
        };
        let none = bytes(0, 0, 0, 0);
        let Capacity { slots, predictions, responses, pairs } = capacity;
        let ones = [bytes(1, 0, 0, 0), bytes(0, 1, 0, 0), bytes(0, 0, 1, 0), bytes(0, 0, 0, 1)];
        none + [slots, predictions, responses, pairs].iter().zip(ones).map(|(n, one)| n * (one - none)).sum::<usize>()
    }

    /// Bytes reserved.
    pub(super) fn bytes(&self) -> usize {
        fn of<T>(v: &Vec<T>) -> usize {
            v.capacity() * size_of::<T>()
        }
        self.micro.bytes()
            + of(&self.query_blocks)
            + of(&self.key_blocks)
            + of(&self.continuations)
            + of(&self.prediction_starts)
    }

    /// Rows that ops compute: the live ones.
    pub fn rows(&self) -> usize {
        self.micro.used()
    }

    /// Predictions of row `t`, in order.
    pub(super) fn predictions_of(&self, t: usize) -> &[u32] {
        &self.micro.predictions_by_row()[self.prediction_starts[t] as usize..self.prediction_starts[t + 1] as usize]
    }

    /// Replaces the content; on an error, which is a batch beyond the capacity, there is none.
    pub(super) fn load(&mut self, from: &MicroBatch) -> Result<()> {
        self.clear();
        from.within(&self.capacity)?;
        self.micro.clone_from(from);
        cut(&mut self.query_blocks, from, QUERY_BLOCK);
        cut(&mut self.key_blocks, from, KEY_BLOCK);
        find_continuations(&mut self.continuations, from.segments());
        self.index_predictions(from);
        if let (Some([rows, predictions]), Some(draws)) = (&mut self.draws, from.draws()) {
            rows.extend(dropout::rows(from, draws));
            predictions.extend(from.predictions().iter().map(|p| rows[p.row as usize]));
        }
        let end = |v: &[u32]| v.iter().max().map_or(0, |m| *m as usize + 1);
        self.tokens_end = end(&from.tokens()[..from.used()]);
        self.positions_end = end(&from.positions()[..from.used()]);
        self.targets_end = from.predictions().iter().map(|p| p.target as usize + 1).max().unwrap_or(0);
        Ok(())
    }

    fn clear(&mut self) {
        self.micro.clear();
        self.query_blocks.clear();
        self.key_blocks.clear();
        (self.tokens_end, self.positions_end, self.targets_end) = (0, 0, 0);
        self.draws.iter_mut().flatten().for_each(Vec::clear);
    }

    fn index_predictions(&mut self, from: &MicroBatch) {
        self.prediction_starts.clear();
        let by_row = from.predictions_by_row();
        let mut at = 0;
        for t in 0..=from.used() {
            while at < by_row.len() && (from.predictions()[by_row[at] as usize].row as usize) < t {
                at += 1;
            }
            self.prediction_starts.push(at as u32);
        }
    }

    /// Checks that a chunk's predictions lie in the batch: all that the head looks at.
    pub(super) fn check_predictions(&self, op: &'static str, chunk: &Chunk) -> Result<()> {
        let (range, len) = (&chunk.predictions, self.micro.predictions().len());
        if range.start <= range.end && range.end <= len {
            return Ok(());
        }
        Err(Error::Shape { op, name: "chunk.predictions", got: range.end, want: len, shape: format!("within {len}") })
    }

    /// Checks that a chunk lies in the batch and that its responses' predictions are those it names.
    pub(super) fn check_chunk(&self, op: &'static str, chunk: &Chunk) -> Result<()> {
        let m = &self.micro;
        for (name, range, len) in [
            ("chunk.responses", &chunk.responses, m.responses().len()),
            ("chunk.predictions", &chunk.predictions, m.predictions().len()),
            ("chunk.pairs", &chunk.pairs, m.pairs().len()),
        ] {
            if range.start > range.end || range.end > len {
                return Err(Error::Shape { op, name, got: range.end, want: len, shape: format!("within {len}") });
            }
        }
        let inside = |r: &Range<u32>| {
            r.start as usize >= chunk.predictions.start && r.start <= r.end && r.end as usize <= chunk.predictions.end
        };
        if !m.responses()[chunk.responses.clone()].iter().all(|r| inside(&r.predictions)) {
            return Err(Error::Training(format!("{op}: a response of the chunk has predictions outside the chunk")));
        }
        if !m.predictions()[chunk.predictions.clone()].iter().all(|p| chunk.responses.contains(&(p.response as usize)))
        {
            return Err(Error::Training(format!("{op}: a prediction of the chunk belongs to a response outside it")));
        }
        Ok(())
    }
}

/// Cuts every segment, or the rows that attend to a cache, into blocks of at most `most` rows.
fn cut(blocks: &mut Vec<Block>, from: &MicroBatch, most: usize) {
    blocks.clear();
    let mut at = 0u32;
    let mut push = |segment: u32, range: Range<u32>| {
        for start in range.clone().step_by(most) {
            blocks.push(Block { segment, start, len: (most as u32).min(range.end - start) });
        }
    };
    for (s, seg) in (0..).zip(from.segments()) {
        at = seg.start + seg.len;
        push(s, seg.start..at);
    }
    push(u32::MAX, at..from.used() as u32);
}

/// Finds which segments continue which: those that follow it, up to the next without a prefix.
fn find_continuations(out: &mut Vec<Range<u32>>, segments: &[Segment]) {
    out.clear();
    let mut prompt = 0;
    for (s, seg) in segments.iter().enumerate() {
        out.push(s as u32 + 1..s as u32 + 1);
        if seg.prefix_len == 0 {
            prompt = s;
        } else {
            out[prompt].end = s as u32 + 1;
        }
    }
}
