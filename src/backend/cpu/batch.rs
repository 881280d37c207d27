//! A micro-batch as the CPU's ops read it: checked once, with the tables that attention and the scatter need.

use crate::backend::{Capacity, Chunk};
use crate::data::batch::{MicroBatch, Segment};
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
}

impl CpuBatch {
    /// Memory for any micro-batch within `capacity`.
    pub(super) fn new(capacity: Capacity) -> Self {
        let Capacity { slots, predictions, responses, pairs } = capacity;
        // A segment has at least one row, and a group at least one response.
        let micro = MicroBatch {
            tokens: Vec::with_capacity(slots),
            positions: Vec::with_capacity(slots),
            segments: Vec::with_capacity(slots),
            groups: Vec::with_capacity(responses),
            predictions: Vec::with_capacity(predictions),
            responses: Vec::with_capacity(responses),
            pairs: Vec::with_capacity(pairs),
            rows_by_token: Vec::with_capacity(slots),
            predictions_by_row: Vec::with_capacity(predictions),
            ..MicroBatch::default()
        };
        CpuBatch {
            capacity,
            micro,
            query_blocks: Vec::with_capacity(2 * slots + 1),
            key_blocks: Vec::with_capacity(2 * slots + 1),
            continuations: Vec::with_capacity(slots),
            prediction_starts: Vec::with_capacity(slots + 1),
            tokens_end: 0,
            positions_end: 0,
            targets_end: 0,
        }
    }

    /// Bytes reserved.
    pub(super) fn bytes(&self) -> usize {
        fn of<T>(v: &Vec<T>) -> usize {
            v.capacity() * size_of::<T>()
        }
        let m = &self.micro;
        of(&m.tokens)
            + of(&m.positions)
            + of(&m.segments)
            + of(&m.groups)
            + of(&m.predictions)
            + of(&m.responses)
            + of(&m.pairs)
            + of(&m.rows_by_token)
            + of(&m.predictions_by_row)
            + of(&self.query_blocks)
            + of(&self.key_blocks)
            + of(&self.continuations)
            + of(&self.prediction_starts)
    }

    /// Rows that ops compute: the live ones.
    pub fn rows(&self) -> usize {
        self.micro.used
    }

    /// Predictions of row `t`, in order.
    pub(super) fn predictions_of(&self, t: usize) -> &[u32] {
        &self.micro.predictions_by_row[self.prediction_starts[t] as usize..self.prediction_starts[t + 1] as usize]
    }

    /// Replaces the content; on an error the batch is empty.
    pub(super) fn load(&mut self, from: &MicroBatch) -> Result<()> {
        self.micro.used = 0;
        self.clear();
        self.check_sizes(from)?;
        check_rows(from)?;
        let m = &mut self.micro;
        m.slots = from.slots;
        m.tokens.clone_from(&from.tokens);
        m.positions.clone_from(&from.positions);
        m.segments.clone_from(&from.segments);
        m.groups.clone_from(&from.groups);
        m.predictions.clone_from(&from.predictions);
        m.responses.clone_from(&from.responses);
        m.pairs.clone_from(&from.pairs);
        m.rows_by_token.clone_from(&from.rows_by_token);
        m.predictions_by_row.clone_from(&from.predictions_by_row);
        cut(&mut self.query_blocks, from, QUERY_BLOCK)?;
        cut(&mut self.key_blocks, from, KEY_BLOCK)?;
        find_continuations(&mut self.continuations, &from.segments)?;
        self.index_predictions(from)?;
        let end = |v: &[u32]| v.iter().max().map_or(0, |m| *m as usize + 1);
        self.tokens_end = end(&from.tokens[..from.used]);
        self.positions_end = end(&from.positions[..from.used]);
        self.targets_end = from.predictions.iter().map(|p| p.target as usize + 1).max().unwrap_or(0);
        self.micro.used = from.used;
        Ok(())
    }

    fn clear(&mut self) {
        let m = &mut self.micro;
        m.predictions.clear();
        m.responses.clear();
        m.pairs.clear();
        m.segments.clear();
        m.rows_by_token.clear();
        self.query_blocks.clear();
        self.key_blocks.clear();
        (self.tokens_end, self.positions_end, self.targets_end) = (0, 0, 0);
    }

    fn check_sizes(&self, from: &MicroBatch) -> Result<()> {
        const OP: &str = "load_batch";
        let c = &self.capacity;
        for (name, got, most) in [
            ("slots", from.slots, c.slots),
            ("predictions", from.predictions.len(), c.predictions),
            ("responses", from.responses.len(), c.responses),
            ("pairs", from.pairs.len(), c.pairs),
        ] {
            if got > most {
                let shape = format!("at most the batch's capacity of {most}");
                return Err(Error::Shape { op: OP, name, got, want: most, shape });
            }
        }
        super::check::at_least(OP, "slots", from.slots, &[("used", from.used)])?;
        for (name, got, want) in [
            ("tokens", from.tokens.len(), from.slots),
            ("positions", from.positions.len(), from.slots),
            ("rows_by_token", from.rows_by_token.len(), from.used),
            ("predictions_by_row", from.predictions_by_row.len(), from.predictions.len()),
        ] {
            super::check::len(OP, name, got, &[("entries", want)])?;
        }
        Ok(())
    }

    fn index_predictions(&mut self, from: &MicroBatch) -> Result<()> {
        self.prediction_starts.clear();
        let mut row = |n: &u32| from.predictions[*n as usize].row as usize;
        if !from.predictions_by_row.is_sorted_by_key(&mut row) {
            return Err(malformed("`predictions_by_row` is not in the order of rows".into()));
        }
        let mut at = 0;
        for t in 0..=from.used {
            while at < from.predictions_by_row.len() && row(&from.predictions_by_row[at]) < t {
                at += 1;
            }
            self.prediction_starts.push(at as u32);
        }
        Ok(())
    }

    /// Checks that a chunk's predictions lie in the batch: all that the head looks at.
    pub(super) fn check_predictions(&self, op: &'static str, chunk: &Chunk) -> Result<()> {
        let (range, len) = (&chunk.predictions, self.micro.predictions.len());
        if range.start <= range.end && range.end <= len {
            return Ok(());
        }
        Err(Error::Shape { op, name: "chunk.predictions", got: range.end, want: len, shape: format!("within {len}") })
    }

    /// Checks that a chunk lies in the batch and that its responses' predictions are those it names.
    pub(super) fn check_chunk(&self, op: &'static str, chunk: &Chunk) -> Result<()> {
        let m = &self.micro;
        for (name, range, len) in [
            ("chunk.responses", &chunk.responses, m.responses.len()),
            ("chunk.predictions", &chunk.predictions, m.predictions.len()),
            ("chunk.pairs", &chunk.pairs, m.pairs.len()),
        ] {
            if range.start > range.end || range.end > len {
                return Err(Error::Shape { op, name, got: range.end, want: len, shape: format!("within {len}") });
            }
        }
        let inside = |r: &Range<u32>| {
            r.start as usize >= chunk.predictions.start && r.start <= r.end && r.end as usize <= chunk.predictions.end
        };
        if !m.responses[chunk.responses.clone()].iter().all(|r| inside(&r.predictions)) {
            return Err(Error::Training(format!("{op}: a response of the chunk has predictions outside the chunk")));
        }
        if !m.predictions[chunk.predictions.clone()].iter().all(|p| chunk.responses.contains(&(p.response as usize))) {
            return Err(Error::Training(format!("{op}: a prediction of the chunk belongs to a response outside it")));
        }
        Ok(())
    }
}

fn malformed(why: String) -> Error {
    Error::Training(format!("load_batch: {why}; the micro-batch was put together wrongly"))
}

/// Indices that ops follow without looking.
fn check_rows(from: &MicroBatch) -> Result<()> {
    let used = from.used;
    if let Some(r) = from.rows_by_token.iter().find(|r| **r as usize >= used) {
        return Err(malformed(format!("`rows_by_token` names row {r} of {used}")));
    }
    let token = |r: &u32| (from.tokens[*r as usize], *r);
    if !from.rows_by_token.is_sorted_by(|a, b| token(a) < token(b)) {
        return Err(malformed("`rows_by_token` is not in the order of (token, row)".into()));
    }
    let n = from.predictions.len();
    if let Some(p) = from.predictions_by_row.iter().find(|p| **p as usize >= n) {
        return Err(malformed(format!("`predictions_by_row` names prediction {p} of {n}")));
    }
    if let Some(p) = from.predictions.iter().find(|p| p.row as usize >= used) {
        return Err(malformed(format!("a prediction reads row {} of {used}", p.row)));
    }
    Ok(())
}

/// Cuts every segment, and the gaps between them, into blocks of at most `most` rows.
fn cut(blocks: &mut Vec<Block>, from: &MicroBatch, most: usize) -> Result<()> {
    blocks.clear();
    let mut at = 0u32;
    let mut push = |segment: u32, range: Range<u32>| {
        for start in range.clone().step_by(most) {
            blocks.push(Block { segment, start, len: (most as u32).min(range.end - start) });
        }
    };
    for (s, seg) in from.segments.iter().enumerate() {
        if seg.start < at || seg.len == 0 {
            return Err(malformed(format!("segment {s} is empty or overlaps the one before")));
        }
        push(u32::MAX, at..seg.start);
        at = seg.start.saturating_add(seg.len);
        if at as usize > from.used {
            return Err(malformed(format!("segment {s} ends at row {at} of {}", from.used)));
        }
        push(s as u32, seg.start..at);
    }
    push(u32::MAX, at..from.used as u32);
    Ok(())
}

/// Finds which segments continue which; they must follow it without another in between.
fn find_continuations(out: &mut Vec<Range<u32>>, segments: &[Segment]) -> Result<()> {
    out.clear();
    let mut prompt = None;
    for (s, seg) in segments.iter().enumerate() {
        out.push(s as u32 + 1..s as u32 + 1);
        if seg.prefix_len == 0 {
            prompt = Some(s);
            continue;
        }
        let of = |p: &usize| segments[*p].start == seg.prefix_start && segments[*p].len == seg.prefix_len;
        let Some(p) = prompt.filter(of) else {
            return Err(malformed(format!("segment {s} continues rows that are not the prompt before it")));
        };
        out[p].end = s as u32 + 1;
    }
    Ok(())
}
