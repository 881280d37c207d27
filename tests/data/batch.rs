//! Micro-batches: what the builder gives is sound, whatever it is given, and what would not be it refuses.

use fusedpo::batch::{Batches, Builder, Capacity, MicroBatch, Outliner, chunks};
use fusedpo::error::Result;
use proptest::prelude::*;
use std::ops::Range;

/// A prompt, its responses, and pairs of them.
#[derive(Clone, Debug)]
struct Own {
    prompt: Vec<u32>,
    responses: Vec<Vec<u32>>,
    pairs: Vec<(usize, usize)>,
}

fn own() -> impl Strategy<Value = Own> {
    let tokens = |least| prop::collection::vec(0u32..9, least..7);
    let pairs = prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..5);
    (tokens(0), prop::collection::vec(tokens(1), 1..5), pairs).prop_map(|(prompt, responses, pairs)| {
        let n = responses.len();
        let pairs = pairs.into_iter().map(|(a, b)| (a.index(n), b.index(n))).filter(|(a, b)| a != b).collect();
        Own { prompt, responses, pairs }
    })
}

fn build(groups: &[Own], tail: usize) -> MicroBatch {
    let (mut b, mut ids, mut pairs) = (Builder::default(), 100.., 0..);
    for (id, g) in (7..).zip(groups) {
        b.group(id, g.prompt.iter().copied()).unwrap();
        g.responses.iter().for_each(|r| b.response(ids.next().unwrap(), r.iter().copied()).unwrap());
        g.pairs.iter().for_each(|p| b.pair(p.0, p.1, 0.5, pairs.next().unwrap()).unwrap());
    }
    let slots = b.used() + tail;
    b.finish(slots).unwrap()
}

fn at(r: &Range<u32>) -> Range<usize> {
    r.start as usize..r.end as usize
}

/// A batch's rows one by one, as tokens with all that each attends to before it: independent of how segments are kept.
fn contexts(m: &MicroBatch) -> Vec<Vec<u32>> {
    let row = |r: u32| m.tokens()[r as usize];
    let segments = m.segments().iter().flat_map(|s| {
        (s.start..s.start + s.len).map(move |t| {
            let prefix = s.prefix_start..s.prefix_start + s.prefix_len;
            prefix.chain(s.start..t + 1).map(row).collect()
        })
    });
    segments.collect()
}

proptest! {
    /// Rows, what they see and what they predict, against the groups' own words.
    #[test]
    fn batches_say_what_was_pushed(groups in prop::collection::vec(own(), 0..6), tail in 0usize..5) {
        let m = build(&groups, tail);
        prop_assert_eq!((m.tokens().len(), m.positions().len(), m.slots()), (m.used() + tail, m.used() + tail, m.used() + tail));
        prop_assert!(m.tokens()[m.used()..].iter().chain(&m.positions()[m.used()..]).all(|x| *x == 0));
        let (mut want, mut predicted) = (Vec::new(), Vec::new());
        let upto = |p: &[u32], r: &[u32], n: usize| [p, &r[..n]].concat();
        for g in &groups {
            want.extend((1..=g.prompt.len()).map(|n| upto(&g.prompt, &[], 0)[..n].to_vec()));
            for r in &g.responses {
                want.extend((1..=r.len()).map(|n| upto(&g.prompt, r, n)));
                let first = usize::from(g.prompt.is_empty());
                predicted.push((first..r.len()).map(|n| (upto(&g.prompt, r, n), r[n])).collect::<Vec<_>>());
            }
        }
        let seen = contexts(&m);
        prop_assert_eq!(&seen, &want);
        let positions: Vec<u32> = seen.iter().map(|c| c.len() as u32 - 1).collect();
        prop_assert_eq!(&m.positions()[..m.used()], &positions[..]);
        prop_assert_eq!(m.responses().len(), predicted.len());
        let mut next = 0;
        for (i, (r, want)) in m.responses().iter().zip(&predicted).enumerate() {
            prop_assert_eq!((r.id, r.predictions.start, r.ref_logp), (100 + i as u64, next, 0.0));
            let own = &m.predictions()[at(&r.predictions)];
            prop_assert!(own.iter().all(|p| p.response as usize == i));
            let got: Vec<_> = own.iter().map(|p| (seen[p.row as usize].clone(), p.target)).collect();
            prop_assert_eq!(&got, want);
            next = r.predictions.end;
        }
        prop_assert_eq!(next as usize, m.predictions().len());
    }

    /// Everything that devices follow without looking.
    #[test]
    fn indices_are_inside_and_in_order(groups in prop::collection::vec(own(), 0..6), tail in 0usize..5) {
        let m = build(&groups, tail);
        let end = m.segments().iter().fold(0, |end, s| {
            assert!(s.start == end && s.len > 0);
            s.start + s.len
        });
        prop_assert_eq!(end as usize, m.used());
        let (mut rows, mut by_row) = (m.rows_by_token().to_vec(), m.predictions_by_row().to_vec());
        prop_assert!(rows.is_sorted_by_key(|r| (m.tokens()[*r as usize], *r)));
        prop_assert!(by_row.is_sorted_by_key(|p| (m.predictions()[*p as usize].row, *p)));
        rows.sort_unstable();
        by_row.sort_unstable();
        prop_assert!(rows.into_iter().eq(0..m.used() as u32) && by_row.into_iter().eq(0..m.predictions().len() as u32));
        let mut ends = (0, 0, 0, 0, 0);
        for (i, (g, own)) in m.groups().iter().zip(&groups).enumerate() {
            let starts = (g.prompt.start, g.segments.start, g.responses.start, g.predictions.start, g.pairs.start);
            prop_assert_eq!((g.id, starts), (7 + i as u64, ends));
            ends = (g.end, g.segments.end, g.responses.end, g.predictions.end, g.pairs.end);
            prop_assert_eq!((g.prompt.len(), g.responses.len(), g.pairs.len()), (own.prompt.len(), own.responses.len(), own.pairs.len()));
            for (p, (chosen, rejected)) in m.pairs()[at(&g.pairs)].iter().zip(&own.pairs) {
                prop_assert_eq!(((p.chosen - g.responses.start) as usize, (p.rejected - g.responses.start) as usize), (*chosen, *rejected));
                prop_assert_eq!(p.weight, 0.5);
            }
        }
        prop_assert!(m.pairs().iter().map(|p| p.id).eq(0..m.pairs().len() as u64));
        let of = |n: usize| n as u32;
        let all = (of(m.used()), of(m.segments().len()), of(m.responses().len()), of(m.predictions().len()), of(m.pairs().len()));
        prop_assert_eq!((ends, m.groups().len()), (all, groups.len()));
    }

    /// A micro-batch is its outline, which is known from lengths alone, and its tokens.
    #[test]
    fn an_outline_with_its_tokens_is_the_batch(groups in prop::collection::vec(own(), 0..6), tail in 0usize..5) {
        let m = build(&groups, tail);
        let (mut o, mut ids, mut pairs) = (Outliner::default(), 100.., 0..);
        for (id, g) in (7..).zip(&groups) {
            o.group(id, g.prompt.len()).unwrap();
            g.responses.iter().for_each(|r| o.response(ids.next().unwrap(), r.len()).unwrap());
            g.pairs.iter().for_each(|p| o.pair(p.0, p.1, 0.5, pairs.next().unwrap()).unwrap());
        }
        let outline = o.finish(m.slots()).unwrap();
        prop_assert_eq!(m.outline(), &outline);
        prop_assert_eq!((outline.capacity(), outline.num_segments()), (m.capacity(), m.segments().len()));
        for g in outline.groups() {
            let rows = outline.responses()[at(&g.responses)].iter().map(|r| r.rows.clone());
            let end = rows.fold(g.prompt.end, |end, rows| {
                assert_eq!(rows.start, end);
                rows.end
            });
            prop_assert_eq!(end, g.end);
        }
        let live = m.tokens()[..m.used()].to_vec();
        let more = [live.clone(), vec![0]].concat();
        let why = format!("{} tokens for {} rows", more.len(), live.len());
        prop_assert!(MicroBatch::of(outline.clone(), more).unwrap_err().to_string().contains(&why));
        prop_assert_eq!(MicroBatch::of(outline, live).unwrap(), m);
    }

    /// What is another's is known by its outline.
    #[test]
    fn shared_batches_are_all_known(groups in prop::collection::vec(own(), 1..6), cut in any::<[prop::sample::Index; 2]>()) {
        let all: Vec<MicroBatch> = groups.iter().map(|g| build(std::slice::from_ref(g), 1)).collect();
        let mut cut = cut.map(|i| i.index(all.len() + 1));
        cut.sort_unstable();
        let mine = cut[0]..cut[1];
        let mut shared = Batches::share(all.clone(), mine.clone());
        prop_assert!(shared.all().eq(all.iter().map(MicroBatch::outline)));
        prop_assert_eq!((&shared.own[..], shared.len()), (&all[mine], all.len()));
        shared.all_mut().zip(0..).for_each(|(of, i)| of.set_ref_logps(|_| Ok(f64::from(i))).unwrap());
        prop_assert!(shared.all().zip(0..).all(|(of, i)| of.responses().iter().all(|r| r.ref_logp == f64::from(i))));
    }

    /// Chunks are whole groups in order, within the rows where a group is, and as few as that allows.
    #[test]
    fn chunks_cover_a_batch(groups in prop::collection::vec(own(), 0..6), rows in 1usize..30) {
        let m = build(&groups, 0);
        let (mut ends, mut g) = ((0, 0, 0), m.groups().iter());
        for c in chunks(&m, rows) {
            prop_assert_eq!((c.responses.start, c.predictions.start, c.pairs.start), ends);
            ends = (c.responses.end, c.predictions.end, c.pairs.end);
            let mut held = 0;
            let last = g.by_ref().find(|g| {
                held += 1;
                g.responses.end as usize == c.responses.end
            });
            prop_assert_eq!(last.map(|g| (g.predictions.end as usize, g.pairs.end as usize)), Some((ends.1, ends.2)));
            prop_assert!(held == 1 || c.predictions.len() <= rows);
            let next = g.clone().next();
            prop_assert!(next.is_none_or(|g| g.predictions.end as usize - c.predictions.start > rows));
        }
        prop_assert_eq!(ends, (m.responses().len(), m.predictions().len(), m.pairs().len()));
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(got: Result<T>, why: &str) {
    let line = got.unwrap_err().to_string();
    assert!(line.starts_with("micro-batch: ") && line.contains(why) && !line.contains('\n'), "{line}");
}

/// What would not be sound is refused in words, and what was there before stays.
#[test]
fn what_would_not_be_sound_is_refused() {
    let mut b = Builder::default();
    refused(b.response(4, [1]), "response 4 belongs to no group");
    refused(b.open_response(4), "response 4 belongs to no group");
    refused(b.pair(0, 1, 1.0, 6), "pair 6 belongs to no group");
    b.group(9, [1, 2]).unwrap();
    refused(b.group(10, [3]), "group 9 has no responses");
    refused(b.response(4, []), "response 4 has no tokens");
    b.response(4, [3, 4]).unwrap();
    refused(b.pair(0, 1, 1.0, 6), "pair 6 names response 1 of a group of 1");
    b.response(5, [5]).unwrap();
    refused(b.pair(1, 1, 1.0, 6), "pair 6 prefers response 1 to itself");
    for weight in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        refused(b.pair(0, 1, weight, 6), "pair 6 has weight");
    }
    refused(b.cached(1, 7), "beside groups");
    b.pair(1, 0, 2.0, 6).unwrap();
    b.group(10, []).unwrap();
    refused(b.open_response(4), "response 4 would begin after an empty prompt");
    refused(b.pair(0, 1, 1.0, 7), "pair 7 names response 0 of a group of 0");
    b.response(6, [8]).unwrap();

    let mut want = Builder::default();
    want.group(9, [1, 2]).unwrap();
    want.response(4, [3, 4]).unwrap();
    want.response(5, [5]).unwrap();
    want.pair(1, 0, 2.0, 6).unwrap();
    want.group(10, []).unwrap();
    want.response(6, [8]).unwrap();
    assert_eq!(b.finish(7).unwrap(), want.finish(7).unwrap());
}

#[test]
fn no_more_rows_than_slots_and_no_group_without_responses() {
    let rows = || {
        let mut b = Builder::default();
        b.group(0, [1, 2, 3]).unwrap();
        b.response(0, [4]).unwrap();
        b
    };
    refused(rows().finish(3), "4 rows do not go into 3 slots");
    refused(rows().finish(usize::MAX), "slots");
    assert_eq!(rows().finish(4).unwrap().used(), 4);
    let mut b = rows();
    b.group(1, [1]).unwrap();
    refused(b.finish(9), "group 1 has no responses");
    let empty = Builder::default().finish(5).unwrap();
    assert_eq!((empty.slots(), empty.used(), empty.tokens()), (5, 0, &[0; 5][..]));
}

#[test]
fn sequences_that_are_being_continued() {
    let mut b = Builder::default();
    b.cached(5, 70).unwrap();
    b.cached(3, 2).unwrap();
    refused(b.group(1, [1]), "group 1 stands beside rows that attend to a cache");
    let m = b.finish(2).unwrap();
    assert_eq!((m.tokens(), m.positions(), m.rows_by_token()), (&[5, 3][..], &[70, 2][..], &[1, 0][..]));
    assert!(m.segments().is_empty() && m.groups().is_empty() && m.pairs().is_empty());
    let predictions: Vec<_> = m.predictions().iter().map(|p| (p.row, p.target, p.response)).collect();
    assert_eq!(predictions, [(0, 0, 0), (1, 0, 1)]);
    let positions_are_lost = MicroBatch::of(m.outline().clone(), vec![5, 3]);
    refused(positions_are_lost.map(drop), "2 rows attend to a cache, and their positions are not known");

    let mut b = Builder::default();
    b.group(3, [6, 7]).unwrap();
    b.open_response(8).unwrap();
    let m = b.finish(2).unwrap();
    assert_eq!((m.segments().len(), m.responses()[0].id, m.groups()[0].end), (1, 8, 2));
    assert_eq!(m.predictions().iter().map(|p| (p.row, p.target, p.response)).collect::<Vec<_>>(), [(1, 0, 0)]);
}

/// A device's copy takes its memory once.
#[test]
fn a_copy_keeps_its_memory() {
    let tokens = vec![1; 40];
    let groups = vec![Own { prompt: vec![2; 9], responses: vec![tokens.clone(), tokens], pairs: vec![(0, 1)] }; 3];
    let (large, small) = (build(&groups, 5), build(&groups[..1], 0));
    let mut copy = MicroBatch::with_capacity(large.capacity());
    let bytes = copy.bytes();
    for from in [&small, &large, &small] {
        copy.clone_from(from);
        assert_eq!((&copy, copy.bytes()), (from, bytes));
    }
    copy.clear();
    assert_eq!((copy == MicroBatch::default(), copy.bytes()), (true, bytes));
    let c = small.capacity();
    assert_eq!(c.or_larger(Capacity { pairs: 7, ..Capacity::default() }), Capacity { pairs: 7, ..c });
    assert!(small.within(&c).is_ok() && large.within(&c).is_err());
}

#[test]
fn reference_log_probs_are_set_in_order() {
    let groups = vec![Own { prompt: vec![2], responses: vec![vec![1], vec![3]], pairs: vec![] }; 2];
    let mut m = build(&groups, 0);
    m.set_ref_logps(|r| Ok(-(r.id as f64))).unwrap();
    assert_eq!(m.responses().iter().map(|r| r.ref_logp).collect::<Vec<_>>(), [-100.0, -101.0, -102.0, -103.0]);
    let why = || fusedpo::Error::Training("none".into());
    assert_eq!(m.set_ref_logps(|r| if r.id == 102 { Err(why()) } else { Ok(0.0) }).unwrap_err().to_string(), "none");
}

/// Each size by itself: what is larger in one of them alone does not fit, and what two need is the larger of each.
#[test]
fn a_capacity_bounds_every_size() {
    let mut b = Builder::default();
    b.group(0, [1, 2]).unwrap();
    (0..3).for_each(|id| b.response(id, [3, 4]).unwrap());
    (1..3).for_each(|i| b.pair(0, i, 1.0, i as u64).unwrap());
    let mb = b.finish(10).unwrap();
    let need = mb.capacity();
    assert_eq!(need, Capacity { slots: 10, predictions: 6, responses: 3, pairs: 2 });
    mb.within(&need).unwrap();
    for (name, less) in [
        ("slots", Capacity { slots: 9, ..need }),
        ("predictions", Capacity { predictions: 5, ..need }),
        ("responses", Capacity { responses: 2, ..need }),
        ("pairs", Capacity { pairs: 1, ..need }),
    ] {
        let e = mb.within(&less).unwrap_err().to_string();
        assert!(e.contains(name), "{name}: {e}");
        assert_eq!([less.or_larger(need), need.or_larger(less)], [need, need], "{name}");
    }
}
