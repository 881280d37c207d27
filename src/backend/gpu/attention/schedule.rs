//! Cuts a micro-batch into the tiles that blocks of the attention kernels take.

use crate::data::batch::{MicroBatch, Segment};
use crate::error::{Error, Result};
use std::cmp::Reverse;

/// Packed queries of an entry of the query table; `kQueryRows` in `kernels/attention.cuh`.
pub(super) const QUERY_ROWS: usize = 128;
/// Numbers of an entry of the query table: start of the segment, first and one past the last packed query, start and
/// length of the prefix, keys that the last query sees.
pub(super) const QUERY_WORDS: usize = 8;
/// Numbers of an entry of the key table: first row, rows, one past the last row whose queries see them.
pub(super) const KEY_WORDS: usize = 4;

/// A segment with the end of the rows that read its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    segment: Segment,
    /// One past the last row that sees keys of this segment: its own end; of a prompt, the end of its last response.
    readers_end: u32,
    /// The rows are in no segment: outputs become zeros.
    dummy: bool,
}

/// Fills `to` with the segments and, last, the dummy tail, up to `slots`. Without any segment all rows are dummies: those of sequences
/// that are being continued, which attend to a cache instead. Errors: segments with gaps, overlaps, or a prefix that is
/// not the prompt right before them; the kernels take from it that whoever sees a key lies behind it.
pub(super) fn spans(to: &mut Vec<Span>, from: &MicroBatch, slots: usize) -> Result<()> {
    to.clear();
    let malformed = |i: usize, why: &str| {
        Err(Error::Training(format!("load_batch: segment {i} {why}; the micro-batch was put together wrongly")))
    };
    let (mut end, mut prompt) = (0u32, None::<usize>);
    for (i, s) in from.segments.iter().enumerate() {
        if s.start != end || s.len == 0 || s.len > slots as u32 - end {
            return malformed(i, "does not start where the one before ends, or leaves the slots");
        }
        end = s.start + s.len;
        if s.prefix_len == 0 {
            prompt = Some(i);
        } else {
            let Some(p) = prompt.map(|p| &mut to[p]) else { return malformed(i, "has a prefix before any prompt") };
            if (p.segment.start, p.segment.len) != (s.prefix_start, s.prefix_len) {
                return malformed(i, "continues another prompt than the last one");
            }
            p.readers_end = end;
        }
        to.push(Span { segment: *s, readers_end: end, dummy: false });
    }
    let covered = from.segments.is_empty() || end as usize == from.used;
    if !covered || from.used > slots {
        return malformed(from.segments.len(), "would be needed: live rows are in no segment");
    }
    let len = slots as u32 - end;
    if len > 0 {
        let segment = Segment { start: end, len, prefix_start: end, prefix_len: 0 };
        to.push(Span { segment, readers_end: end, dummy: true });
    }
    Ok(())
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

    fn batch(segments: &[(u32, u32, u32, u32)], slots: usize) -> MicroBatch {
        let segments: Vec<Segment> = segments
            .iter()
            .map(|&(start, len, prefix_start, prefix_len)| Segment { start, len, prefix_start, prefix_len })
            .collect();
        let used = segments.last().map_or(0, |s| (s.start + s.len) as usize);
        MicroBatch { slots, used, segments, ..Default::default() }
    }

    #[test]
    fn tiles_cover_every_query_and_key_once() {
        // A prompt of 100 with responses of 30 and 70, then a lone response of 5; 7 dummy rows.
        let b = batch(&[(0, 100, 0, 0), (100, 30, 0, 100), (130, 70, 0, 100), (200, 5, 200, 0)], 212);
        let (mut s, mut t) = (Vec::new(), Vec::new());
        spans(&mut s, &b, b.slots).unwrap();
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
            let segments: Vec<_> = lens
                .iter()
                .scan(0, |at, &len| {
                    *at += len;
                    Some((*at - len, len, 0, 0))
                })
                .collect();
            let b = batch(&segments, lens.iter().sum::<u32>() as usize + 3);
            let (mut s, mut t) = (Vec::new(), Vec::new());
            spans(&mut s, &b, b.slots).unwrap();
            query_tiles(&mut t, &s, group);
            assert!(t.len() <= super::super::entries(b.slots * group, QUERY_ROWS, s.len()));
            key_tiles(&mut t, &s, 64);
            assert!(t.len() <= super::super::entries(b.slots, 64, s.len()));
        }
    }

    #[test]
    fn malformed_segments_are_refused() {
        let mut s = Vec::new();
        for (segments, why) in [
            (vec![(0, 5, 0, 0), (6, 2, 0, 5)], "segment 1 does not start where"),
            (vec![(0, 5, 0, 0), (5, 0, 0, 5)], "segment 1 does not start where"),
            (vec![(0, 90, 0, 0)], "segment 0 does not start where"),
            (vec![(0, 5, 0, 5)], "segment 0 has a prefix before"),
            (vec![(0, 5, 0, 0), (5, 5, 5, 0), (10, 2, 0, 5)], "segment 2 continues another prompt"),
        ] {
            let error = spans(&mut s, &batch(&segments, 20), 20).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let error = spans(&mut s, &MicroBatch { used: 9, ..batch(&[(0, 5, 0, 0)], 20) }, 20).unwrap_err().to_string();
        assert!(error.contains("live rows are in no segment"), "{error}");
    }

    #[test]
    fn rows_that_attend_to_a_cache_are_all_dummies() {
        let (mut s, mut t) = (Vec::new(), Vec::new());
        spans(&mut s, &MicroBatch { slots: 4, used: 4, ..Default::default() }, 4).unwrap();
        query_tiles(&mut t, &s, 3);
        assert_eq!(t, [[0, 0, 12, 0, 0, 0, 0, 0]], "no keys");
        key_tiles(&mut t, &s, 64);
        assert_eq!(t, [[0, 4, 0, 0, 0, 0, 0, 0]], "no readers");
    }
}
