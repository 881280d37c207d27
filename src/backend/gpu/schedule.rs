//! Cuts a micro-batch into the tiles that blocks of the attention kernels take.

use crate::batch::{MicroBatch, Segment};
use std::cmp::Reverse;

/// Packed queries of an entry of the query table; `kQueryRows` in `kernels/attention.cuh`.
pub(super) const QUERY_ROWS: usize = 128;
/// Numbers of an entry of the query table: start of the segment, first and one past the last packed query, start and
/// length of the prefix, keys that the last query sees.
pub(super) const QUERY_WORDS: usize = 8;
/// Numbers of an entry of the key table: first row, rows, first and one past the last packed query of those that see them, row of
/// the tile's partial sums, which part this is, parts.
pub(super) const KEY_WORDS: usize = 8;
/// Packed queries of a part of a key tile. A prompt's keys are seen by all its responses: whole, such a tile keeps one block busy long
/// after the others are done. By the model of `scripts/attention_schedule.py` (which has the same rules) this many are best on an
/// H100: fewer save less time at the end than their sums cost.
pub(super) const PART_QUERIES: usize = 2048;
/// Parts end at multiples of it, as tiles of queries do.
const PART_STEP: usize = 64;

/// Entries of a table: what a sum of rounded-up parts can come to.
pub(super) fn entries(rows: usize, rows_per_entry: usize, spans: usize) -> usize {
    rows / rows_per_entry + spans
}

/// Rows of partial sums that there is scratch for.
pub(super) fn partial_rows(slots: usize) -> usize {
    2 * slots
}

/// What bounds the key table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Most packed queries of a part, unless that made too many parts.
    pub part_queries: usize,
    /// Most rows of partial sums.
    pub partial_rows: usize,
    /// Most entries: at least those of whole tiles.
    pub entries: usize,
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

/// Tiles of `rows` keys that start at segment starts, those that many queries see in parts, most queries first. Where they are cut
/// follows from the batch and from `room`: no partial sum depends on the GPU.
pub(super) fn key_tiles(to: &mut Vec<[u32; QUERY_WORDS]>, spans: &[Span], group: usize, rows: usize, room: Room) {
    let mut most = room.part_queries;
    while !parts(to, spans, group, rows, most, room) {
        assert!(most < usize::MAX, "the table has an entry for every whole tile");
        most = most.saturating_mul(2);
    }
    to.sort_unstable_by_key(|t| (Reverse(t[3] - t[2]), t[0], t[2]));
}

/// The tiles in parts of up to `most` packed queries, equal up to [`PART_STEP`]; whether there was room for them.
fn parts(to: &mut Vec<[u32; QUERY_WORDS]>, spans: &[Span], group: usize, rows: usize, most: usize, room: Room) -> bool {
    to.clear();
    let mut partial = 0;
    for Span { segment: s, readers_end, dummy } in spans {
        for first in (0..s.len).step_by(rows) {
            let (start, count) = (s.start + first, (s.len - first).min(rows as u32));
            let queries = if *dummy { 0 } else { (readers_end - start) as usize * group };
            let even = queries.div_ceil(queries.div_ceil(most).max(1));
            let step = even.next_multiple_of(PART_STEP).max(PART_STEP);
            let parts = queries.div_ceil(step).max(1);
            let sums = if parts > 1 { partial } else { 0 };
            if to.len() + parts > room.entries || (parts > 1 && partial + parts * count as usize > room.partial_rows) {
                return false;
            }
            for part in 0..parts {
                let (begin, end) = (part * step, queries.min((part + 1) * step));
                to.push([start, count, begin as u32, end as u32, sums as u32, part as u32, parts as u32, 0]);
            }
            partial += if parts > 1 { parts * count as usize } else { 0 };
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Builder;

    const WHOLE: Room = Room { part_queries: usize::MAX, partial_rows: 0, entries: usize::MAX };

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
        key_tiles(&mut t, &s, 3, 64, WHOLE);
        assert_eq!(t[0], [0, 64, 0, 600, 0, 0, 1, 0], "the prompt's keys are seen up to its last response");
        assert_eq!(t[1], [64, 36, 0, 408, 0, 0, 1, 0]);
        assert_eq!(t.last().unwrap()[..4], [205, 7, 0, 0], "nobody sees a dummy row");
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
            key_tiles(&mut t, &s, group, 64, WHOLE);
            assert!(t.len() <= entries(b.slots(), 64, s.len()));
        }
    }

    /// The tables that `scripts/attention_schedule.py` makes for the same batches: what it predicts is of these.
    #[test]
    fn tables_are_those_of_the_model() {
        let json = include_str!("../../../tests/golden/attention_tables.json");
        let cases: serde_json::Value = serde_json::from_str(json).unwrap();
        let number = |v: &serde_json::Value| v.as_u64().unwrap() as usize;
        let numbers =
            |v: &serde_json::Value| v.as_array().unwrap().iter().map(|x| number(x) as u32).collect::<Vec<_>>();
        for case in cases.as_array().unwrap() {
            let groups: Vec<_> =
                case["groups"].as_array().unwrap().iter().map(|g| (number(&g[0]), numbers(&g[1]))).collect();
            let groups: Vec<(u32, &[u32])> = groups.iter().map(|(p, r)| (*p as u32, &r[..])).collect();
            let b = batch(&groups, number(&case["slots"]));
            let (mut s, mut t) = (Vec::new(), Vec::new());
            spans(&mut s, &b, b.slots());
            let tables = |t: &[[u32; 8]], words: usize| t.iter().map(|e| e[..words].to_vec()).collect::<Vec<_>>();
            let want = |name: &str| case[name].as_array().unwrap().iter().map(numbers).collect::<Vec<_>>();
            let group = number(&case["group"]);
            query_tiles(&mut t, &s, group);
            assert_eq!(tables(&t, 6), want("queries"), "{groups:?}");
            let [part_queries, partial_rows, entries] = [0, 1, 2].map(|i| number(&case["room"][i]));
            key_tiles(&mut t, &s, group, number(&case["rows"]), Room { part_queries, partial_rows, entries });
            assert_eq!(tables(&t, 7), want("keys"), "{groups:?}");
        }
    }

    #[test]
    fn parts_cover_every_query_once_and_never_share_sums() {
        let b = batch(&[(300, &[200, 90, 1]), (0, &[130]), (5, &[64])], 800);
        let mut s = Vec::new();
        spans(&mut s, &b, b.slots());
        for (most, partial_rows, entries) in
            [(64, 1600, 60), (512, 1600, 60), (64, 700, 30), (64, 100, 20), (usize::MAX, 0, 18)]
        {
            let (mut t, group) = (Vec::new(), 5);
            key_tiles(&mut t, &s, group, 64, Room { part_queries: most, partial_rows, entries });
            assert!(t.len() <= entries);
            assert!(t.is_sorted_by_key(|e| Reverse(e[3] - e[2])), "longest first");
            let mut whole = Vec::new();
            key_tiles(&mut whole, &s, group, 64, WHOLE);
            let mut rows_of_sums = vec![0; partial_rows];
            for tile in &whole {
                let mut parts: Vec<_> = t.iter().filter(|e| e[0] == tile[0]).collect();
                parts.sort_by_key(|e| e[5]);
                assert!(
                    parts
                        .iter()
                        .enumerate()
                        .all(|(i, e)| (e[1], e[5], e[6]) == (tile[1], i as u32, parts.len() as u32))
                );
                assert!(parts.windows(2).all(|w| w[0][3] == w[1][2] && w[0][3] % 64 == 0 && w[0][4] == w[1][4]));
                assert_eq!((parts[0][2], parts.last().unwrap()[3]), (0, tile[3]));
                if parts.len() > 1 {
                    let first = parts[0][4] as usize;
                    rows_of_sums[first..first + parts.len() * tile[1] as usize].iter_mut().for_each(|n| *n += 1);
                }
            }
            assert_eq!(t.iter().filter(|e| e[5] == 0).count(), whole.len());
            assert!(rows_of_sums.iter().all(|n| *n <= 1), "two parts in one place");
            assert!(most > 64 || partial_rows < 700 || t.len() > whole.len());
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
        key_tiles(&mut t, &s, 3, 64, WHOLE);
        assert_eq!(t, [[0, 4, 0, 0, 0, 0, 1, 0]], "no readers");
    }
}
