//! Cuts a micro-batch into the tiles that blocks of the attention kernels take.

use crate::batch::{MicroBatch, Segment};
use std::cmp::Reverse;

/// Packed queries of an entry of the query table; `kQueryRows` in `kernels/attention.cuh`.
pub(super) const QUERY_ROWS: usize = 128;
/// Numbers of an entry of the query table: start of the segment, first and one past the last packed query, start and
/// length of the prefix, keys that the last query sees.
pub(super) const QUERY_WORDS: usize = 8;
/// Numbers of an entry of the key table: first row, rows, one past the last row whose queries see them.
pub(super) const KEY_WORDS: usize = 4;

/// Entries of a table: what a sum of rounded-up parts can come to.
pub(super) fn entries(rows: usize, rows_per_entry: usize, spans: usize) -> usize {
    rows / rows_per_entry + spans
}

/// A segment with the end of the rows that read its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    segment: Segment,
    /// One past the last row that sees keys of this segment: its own end; of a prompt, the end of its last response.
    readers_end: u32,
    /// The rows are in no segment: outputs become zeros.
    dummy: bool,
}

/// Fills `to` with the segments and, last, the dummy tail, up to `slots` (at least the live rows). Without any segment all
/// rows are dummies: those of sequences that are being continued, which attend to a cache instead. The kernels take from the
/// order of segments that whoever sees a key lies behind it.
pub(super) fn spans(to: &mut Vec<Span>, from: &MicroBatch, slots: usize) {
    to.clear();
    let (mut end, mut prompt) = (0u32, 0);
    for (i, s) in from.segments().iter().enumerate() {
        end = s.start + s.len;
        if s.prefix_len == 0 {
            prompt = i;
        } else {
            to[prompt].readers_end = end;
        }
        to.push(Span { segment: *s, readers_end: end, dummy: false });
    }
    let len = slots as u32 - end;
    if len > 0 {
        let segment = Segment { start: end, len, prefix_start: end, prefix_len: 0 };
        to.push(Span { segment, readers_end: end, dummy: true });
    }
}

/// Tiles of [`QUERY_ROWS`] packed queries that start at segment starts, most keys first.
pub(super) fn query_tiles(to: &mut Vec<[u32; QUERY_WORDS]>, spans: &[Span], group: usize) {
    to.clear();
    for Span { segment: s, dummy, .. } in spans {
        let packed = s.len as usize * group;
        for first in (0..packed).step_by(QUERY_ROWS) {
            let end = packed.min(first + QUERY_ROWS);
            let keys = if *dummy { 0 } else { s.prefix_len + ((end - 1) / group) as u32 + 1 };
            to.push([s.start, first as u32, end as u32, s.prefix_start, s.prefix_len, keys, 0, 0]);
        }
    }
    to.sort_unstable_by_key(|t| (Reverse(t[5]), t[0], t[1]));
}

/// Tiles of `rows` keys that start at segment starts, most queries first.
pub(super) fn key_tiles(to: &mut Vec<[u32; QUERY_WORDS]>, spans: &[Span], rows: usize) {
    to.clear();
    for Span { segment: s, readers_end, dummy } in spans {
        for first in (0..s.len).step_by(rows) {
            let start = s.start + first;
            let end = if *dummy { start } else { *readers_end };
            to.push([start, (s.len - first).min(rows as u32), end, 0, 0, 0, 0, 0]);
        }
    }
    to.sort_unstable_by_key(|t| (Reverse(t[2] - t[0]), t[0]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Builder;

    /// Groups of a prompt's length and its responses' lengths.
    fn batch(groups: &[(u32, &[u32])], slots: usize) -> MicroBatch {
        let mut b = Builder::default();
        for (id, (prompt, responses)) in (0..).zip(groups) {
            b.group(id, 0..*prompt).unwrap();
            responses.iter().for_each(|len| b.response(id, 0..*len).unwrap());
        }
        b.finish(slots).unwrap()
    }

    #[test]
    fn tiles_cover_every_query_and_key_once() {
        // A prompt of 100 with responses of 30 and 70, then a lone response of 5; 7 dummy rows.
        let b = batch(&[(100, &[30, 70]), (0, &[5])], 212);
        let (mut s, mut t) = (Vec::new(), Vec::new());
        spans(&mut s, &b, b.slots());
        assert_eq!(s.len(), 5);
        query_tiles(&mut t, &s, 3);
        let mut seen = vec![0; 212 * 3];
        for e in &t {
            (e[1]..e[2]).for_each(|m| seen[(e[0] * 3 + m) as usize] += 1);
        }
        assert!(seen.iter().all(|n| *n == 1), "{seen:?}");
        assert!(t.is_sorted_by_key(|e| Reverse(e[5])), "longest first");
        assert_eq!(t[0], [130, 128, 210, 0, 100, 170, 0, 0]);
        assert_eq!(t.last().unwrap()[5], 0, "the dummy tail sees nothing");
        key_tiles(&mut t, &s, 64);
        assert_eq!(t[0], [0, 64, 200, 0, 0, 0, 0, 0], "the prompt's keys are seen up to its last response");
        assert_eq!(t[1], [64, 36, 200, 0, 0, 0, 0, 0]);
        assert_eq!(t.last().unwrap()[..3], [205, 7, 205], "nobody sees a dummy row");
        assert_eq!(t.iter().map(|e| e[1]).sum::<u32>(), 212);
    }

    #[test]
    fn tables_hold_any_batch_within_capacity() {
        for (lens, group) in [(vec![1; 40], 1), (vec![127, 129, 1, 64, 65], 7), (vec![1], 8)] {
            let groups: Vec<(u32, &[u32])> = lens.chunks(1).map(|len| (0, len)).collect();
            let b = batch(&groups, lens.iter().sum::<u32>() as usize + 3);
            let (mut s, mut t) = (Vec::new(), Vec::new());
            spans(&mut s, &b, b.slots());
            query_tiles(&mut t, &s, group);
            assert!(t.len() <= entries(b.slots() * group, QUERY_ROWS, s.len()));
            key_tiles(&mut t, &s, 64);
            assert!(t.len() <= entries(b.slots(), 64, s.len()));
        }
    }

    #[test]
    fn rows_that_attend_to_a_cache_are_all_dummies() {
        let (mut s, mut t) = (Vec::new(), Vec::new());
        let mut b = Builder::default();
        (0..4).for_each(|i| b.cached(7, i).unwrap());
        spans(&mut s, &b.finish(4).unwrap(), 4);
        query_tiles(&mut t, &s, 3);
        assert_eq!(t, [[0, 0, 12, 0, 0, 0, 0, 0]], "no keys");
        key_tiles(&mut t, &s, 64);
        assert_eq!(t, [[0, 4, 0, 0, 0, 0, 0, 0]], "no readers");
    }
}
