//! Plans: every unit once, nothing outside its group, within capacity, and the same whenever asked.

use crate::shards;

use fusedpo::batch::MicroBatch;
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::data::shard::{Dataset, Group, Pair, Split};
use proptest::prelude::*;
use shards::{Own, meta, own_group, write};
use std::collections::BTreeMap;
use tempfile::TempDir;

pub fn dataset(groups: &[Own]) -> (TempDir, Dataset) {
    let dir = tempfile::tempdir().unwrap();
    let cut = groups.len() / 2;
    write(&dir.path().join("train-00000.pref"), &meta(3000), &groups[..cut]);
    write(&dir.path().join("train-00001.pref"), &meta(3000), &groups[cut..]);
    let data = Dataset::open(dir.path(), Split::Train).unwrap();
    data.verify().unwrap();
    (dir, data)
}

fn options(objective: Objective, batch_size: usize, token_budget: Option<usize>) -> PlanOptions {
    PlanOptions { objective, batch_size, token_budget, seed: 42, shuffle: true }
}

/// Everything that holds within a micro-batch, from the data set's own words.
pub fn check_batch(mb: &MicroBatch, data: &Dataset) {
    assert_eq!((mb.tokens().len(), mb.positions().len()), (mb.slots(), mb.slots()));
    assert!(mb.used() <= mb.slots());
    let (mut row, mut segment, mut response, mut prediction, mut pair) = (0, 0, 0, 0, 0);
    for span in mb.groups() {
        let g = data.group(span.id);
        assert_eq!(
            (span.prompt.start, span.segments.start, span.responses.start, span.predictions.start, span.pairs.start),
            (row, segment, response, prediction, pair)
        );
        row = check_rows(mb, &g, span.clone());
        (segment, response, prediction, pair) =
            (span.segments.end, span.responses.end, span.predictions.end, span.pairs.end);
        assert_eq!(span.end, row);
        for p in &mb.pairs()[span.pairs.start as usize..span.pairs.end as usize] {
            assert!(span.responses.contains(&p.chosen) && span.responses.contains(&p.rejected));
            let own = g.pairs().find(|q| q.id == p.id).expect("a pair of this group");
            assert_eq!(mb.responses()[p.chosen as usize].id, g.response(own.chosen).id);
            assert_eq!(mb.responses()[p.rejected as usize].id, g.response(own.rejected).id);
            assert_eq!(p.weight, own.weight);
        }
    }
    let ends = (mb.used(), mb.segments().len(), mb.responses().len(), mb.predictions().len(), mb.pairs().len());
    assert_eq!((row as usize, segment as usize, response as usize, prediction as usize, pair as usize), ends);
    assert!(mb.tokens()[mb.used()..].iter().chain(&mb.positions()[mb.used()..]).all(|&v| v == 0));
    check_sorted(mb);
}

fn check_rows(mb: &MicroBatch, g: &Group<'_>, span: fusedpo::batch::GroupSpan) -> u32 {
    let prompt = g.prompt().to_vec();
    let p = prompt.len() as u32;
    let at = |r: std::ops::Range<u32>| r.start as usize..r.end as usize;
    assert_eq!(span.prompt, span.prompt.start..span.prompt.start + p);
    assert_eq!(mb.tokens()[at(span.prompt.clone())], prompt);
    assert_eq!(mb.positions()[at(span.prompt.clone())], (0..p).collect::<Vec<_>>());
    let mut segments = mb.segments()[at(span.segments.clone())].iter();
    if p > 0 {
        let s = segments.next().unwrap();
        assert_eq!((s.start, s.len, s.prefix_start, s.prefix_len), (span.prompt.start, p, span.prompt.start, 0));
    }
    let (mut row, mut next) = (span.prompt.end, span.predictions.start);
    for i in at(span.responses.clone()) {
        let slot = &mb.responses()[i];
        let tokens = g.response_by_id(slot.id).tokens.to_vec();
        let (s, n) = (segments.next().unwrap(), tokens.len() as u32);
        assert_eq!((s.start, s.len, s.prefix_start, s.prefix_len), (row, n, span.prompt.start, p));
        assert_eq!(mb.tokens()[at(row..row + n)], tokens);
        assert_eq!(mb.positions()[at(row..row + n)], (p..p + n).collect::<Vec<_>>());
        // The context of each prediction, walked as attention would: prompt, then the response up to the row.
        assert_eq!(slot.predictions.start, next);
        let scored = &tokens[tokens.len() - slot.predictions.len()..];
        assert_eq!(slot.predictions.len(), tokens.len() - usize::from(p == 0));
        for (k, &target) in scored.iter().enumerate() {
            let q = mb.predictions()[next as usize + k];
            assert_eq!((q.target, q.response as usize), (target, i));
            let mut context = prompt.clone();
            if q.row >= row {
                context.extend(&mb.tokens()[at(row..q.row + 1)]);
            } else {
                assert_eq!(q.row + 1, span.prompt.end);
            }
            assert_eq!(context, [&prompt[..], &tokens[..tokens.len() - scored.len() + k]].concat());
        }
        next = slot.predictions.end;
        row += n;
    }
    assert!(segments.next().is_none());
    row
}

fn check_sorted(mb: &MicroBatch) {
    let mut rows: Vec<u32> = (0..mb.used() as u32).collect();
    rows.sort_by_key(|&r| mb.tokens()[r as usize]);
    assert_eq!(mb.rows_by_token(), rows);
    let mut predictions: Vec<u32> = (0..mb.predictions().len() as u32).collect();
    predictions.sort_by_key(|&i| mb.predictions()[i as usize].row);
    assert_eq!(mb.predictions_by_row(), predictions);
}

/// The pairs of which both responses have a token that something predicts.
fn usable(g: Group<'_>) -> impl Iterator<Item = Pair> {
    let scored = move |i: usize| !g.prompt().is_empty() || g.response(i).tokens.len() > 1;
    g.pairs().filter(move |p| scored(p.chosen) && scored(p.rejected))
}

/// Units that a plan of `data` must hold, by id: pairs or responses.
fn expected(data: &Dataset, objective: Objective) -> Vec<u64> {
    let mut ids = Vec::new();
    for g in (0..data.num_groups()).map(|i| data.group(i)) {
        match objective {
            Objective::Preference | Objective::Ranking => ids.extend(usable(g).map(|p| p.id)),
            Objective::Score => ids.extend(g.responses().map(|r| r.id)),
            Objective::Sft | Objective::Judgement => unreachable!("tested elsewhere"),
        }
    }
    ids
}

fn check_epoch(data: &Dataset, planner: &Planner<'_>, o: &PlanOptions, epoch: u64) {
    let (mut seen, mut groups) = (BTreeMap::new(), Vec::new());
    let steps = planner.steps_in_epoch(epoch);
    for step in 0..steps {
        let batches = planner.step(epoch, step).unwrap();
        let mut held = 0;
        for mb in &batches {
            check_batch(mb, data);
            let c = planner.capacity();
            assert_eq!(mb.slots(), c.slots);
            assert!(mb.predictions().len() <= c.predictions && mb.responses().len() <= c.responses, "{c:?}");
            assert!(mb.pairs().len() <= c.pairs, "{c:?}");
            let pairs = mb.pairs().iter().map(|p| p.id);
            let responses = mb.responses().iter().map(|r| r.id);
            let units: Vec<u64> = if o.objective.is_of_pairs() { pairs.collect() } else { responses.collect() };
            held += units.len();
            units.into_iter().for_each(|u| *seen.entry(u).or_insert(0) += 1);
        }
        assert!(held >= o.batch_size || step + 1 == steps, "step {step} of {steps} holds {held}");
        let of_step = planner.step_groups(epoch, step);
        assert!(batches.iter().flat_map(|b| b.groups()).all(|g| of_step.contains(&g.id)));
        groups.extend(of_step);
        assert_eq!(batches, planner.step(epoch, step).unwrap());
    }
    assert!(planner.step(epoch, steps).unwrap().is_empty() && planner.step(epoch, u64::MAX).unwrap().is_empty());
    let want: BTreeMap<u64, i32> = expected(data, o.objective).into_iter().map(|u| (u, 1)).collect();
    assert_eq!(seen, want, "every unit exactly once");
    groups.sort_unstable();
    groups.windows(2).for_each(|w| assert!(w[0] < w[1], "a group in two steps"));
    assert_eq!(groups.len() as u64 + planner.skipped_groups(), data.num_groups());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_ranking_is_never_cut(groups in prop::collection::vec(own_group(3000), 1..24), batch_size in 1usize..9) {
        let (_dir, data) = dataset(&groups);
        let o = options(Objective::Ranking, batch_size, None);
        if let Ok(planner) = Planner::new(&data, &o) {
            check_epoch(&data, &planner, &o, 1);
            let slots = |g: u64| {
                let group = data.group(g);
                let in_pairs: std::collections::BTreeSet<usize> = usable(group).flat_map(|p| [p.chosen, p.rejected]).collect();
                group.prompt().len() + in_pairs.into_iter().map(|i| group.response(i).tokens.len()).sum::<usize>()
            };
            let largest = (0..planner.steps_in_epoch(1)).flat_map(|s| planner.step_groups(1, s)).map(slots).max().unwrap();
            prop_assert!(Planner::new(&data, &options(Objective::Ranking, batch_size, Some(largest - 1))).is_err() || largest == 1);
            let tight = Planner::new(&data, &options(Objective::Ranking, batch_size, Some(largest))).unwrap();
            for mb in (0..tight.steps_in_epoch(1)).flat_map(|s| tight.step(1, s).unwrap()) {
                let ids = mb.groups().iter().map(|g| (g.id, g.pairs.len()));
                ids.for_each(|(id, pairs)| assert!(pairs <= data.group(id).num_pairs()));
                assert!(mb.groups().windows(2).all(|g| g[0].id != g[1].id), "a group twice");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn an_epoch_holds_every_unit_once(
        groups in prop::collection::vec(own_group(3000), 1..24), batch_size in 1usize..9, tight in any::<bool>(), preference in any::<bool>()
    ) {
        let (_dir, data) = dataset(&groups);
        let objective = if preference { Objective::Preference } else { Objective::Score };
        // 24 slots hold any unit (8 of the prompt, 8 and 8), but not every group of 4 responses.
        let o = options(objective, batch_size, tight.then_some(24));
        match Planner::new(&data, &o) {
            Err(e) => {
                prop_assert!(expected(&data, objective).is_empty(), "{}", e);
                prop_assert!(e.to_string().contains("no usable pair"), "{}", e);
            }
            Ok(planner) => {
                prop_assert_eq!(planner.units() as usize, expected(&data, objective).len());
                prop_assert_eq!(planner.unscorable(), if preference { data.num_pairs() - planner.units() } else { 0 });
                for epoch in [0, 3] {
                    check_epoch(&data, &planner, &o, epoch);
                }
                let again = Planner::new(&data, &o).unwrap();
                prop_assert_eq!(planner.step(3, 0).unwrap(), again.step(3, 0).unwrap());
                let unshuffled = Planner::new(&data, &PlanOptions { shuffle: false, ..o }).unwrap();
                let all: Vec<u64> = (0..unshuffled.steps_in_epoch(5)).flat_map(|s| unshuffled.step_groups(5, s)).collect();
                prop_assert!(all.is_sorted());
            }
        }
    }
}

fn own(prompt: usize, responses: &[usize], pairs: &[(u32, u32)]) -> Own {
    let response = |(i, &n): (usize, &usize)| (vec![7; n], None, None, 40, i as u32);
    Own {
        prompt: vec![5; prompt],
        responses: responses.iter().enumerate().map(response).collect(),
        pairs: pairs.iter().map(|&(c, r)| (c, r, 1.0)).collect(),
    }
}

fn refusal(groups: &[Own], o: &PlanOptions) -> String {
    let (_dir, data) = dataset(groups);
    let e = Planner::new(&data, o).map(|_| ()).unwrap_err().to_string();
    assert!(!e.contains('\n'), "{e}");
    e
}

#[test]
fn a_pair_that_does_not_fit_names_its_row_and_the_budget() {
    let groups = [own(3, &[2, 2], &[(0, 1)]), own(1000, &[100, 200], &[(0, 1)])];
    let e = refusal(&groups, &options(Objective::Preference, 8, Some(1299)));
    assert!(e.contains("input row 40") && e.contains("needs 1300") && e.contains("1536"), "{e}");
    let e = refusal(&groups, &options(Objective::Score, 8, Some(1199)));
    assert!(e.contains("needs 1200"), "{e}");
    let (_dir, data) = dataset(&groups);
    let planner = Planner::new(&data, &options(Objective::Preference, 8, Some(1300))).unwrap();
    assert_eq!(planner.step(0, 0).unwrap().len(), 2);
    assert!(refusal(&groups, &options(Objective::Score, 0, None)).contains("batch size"));
    assert!(refusal(&groups, &options(Objective::Score, 1, Some(1 << 40))).contains("too large"));
}

#[test]
fn the_automatic_budget_takes_the_largest_unit() {
    for (len, want) in [(10, 2048), (2040, 2304), (3000, 3072)] {
        let (_dir, data) = dataset(&[own(3, &[len, 60], &[(0, 1)])]);
        let p = Planner::new(&data, &options(Objective::Preference, 8, None)).unwrap();
        assert_eq!(p.token_budget(), want, "{len}");
        assert_eq!((p.capacity().responses, p.capacity().pairs, p.capacity().predictions), {
            let groups = (want / (len + 63)).min(8);
            // One group of 73 slots fits 28 times, but a step holds 8 pairs.
            if len == 10 { (16, 8, 8 * 70) } else { (2 * groups, groups, (want * (len + 60)) / (len + 63)) }
        });
    }
}

#[test]
fn what_nothing_predicts_is_left_out_and_counted() {
    let groups = [own(0, &[1, 5], &[(0, 1)]), own(0, &[2, 5], &[(0, 1)]), own(1, &[1, 1], &[(0, 1)])];
    let (_dir, data) = dataset(&groups);
    let p = Planner::new(&data, &options(Objective::Preference, 8, None)).unwrap();
    assert_eq!((p.unscorable(), p.skipped_groups(), p.units()), (1, 1, 2));
    let p = Planner::new(&data, &options(Objective::Sft, 8, None)).unwrap();
    assert_eq!((p.unscorable(), p.skipped_groups(), p.units()), (1, 1, 2));
    let p = Planner::new(&data, &options(Objective::Score, 8, None)).unwrap();
    assert_eq!((p.unscorable(), p.skipped_groups(), p.units()), (0, 0, 6));
    let slot = p.step(0, 0).unwrap().into_iter().flat_map(|b| b.responses().to_vec()).find(|r| r.id == 0).unwrap();
    assert_eq!(slot.predictions.len(), 0);
    let e = refusal(&groups[..1], &options(Objective::Preference, 8, None));
    assert!(e.contains("no usable pair") && e.contains("1 with a response of one token"), "{e}");
}

/// Local indices that Sft takes from a group of (score, label, index in row) responses with `pairs`.
fn imitated(responses: &[(Option<f32>, Option<bool>, u32)], pairs: &[(u32, u32)]) -> Vec<u64> {
    let mut g = own(2, &vec![3; responses.len()], pairs);
    for (r, &(score, label, index)) in g.responses.iter_mut().zip(responses) {
        (r.1, r.2, r.4) = (score, label, index);
    }
    let (_dir, data) = dataset(&[g]);
    match Planner::new(&data, &options(Objective::Sft, 8, None)) {
        Ok(p) => p.step(0, 0).unwrap().into_iter().flat_map(|b| b.responses().to_vec()).map(|r| r.id).collect(),
        Err(e) => {
            assert!(e.to_string().contains("nothing to imitate"), "{e}");
            vec![]
        }
    }
}

#[test]
fn sft_imitates_the_best_and_never_the_rejected() {
    let (plain, bad) = ((None, None, 0), (None, Some(false), 0));
    assert_eq!(imitated(&[(None, None, 1), plain], &[(1, 0)]), [1], "chosen");
    assert_eq!(imitated(&[plain, (None, None, 1), plain, (None, None, 1)], &[(2, 3), (0, 1)]), [0, 2], "of every pair");
    let scored = [(Some(1.0), None, 0), (Some(3.0), None, 1), (Some(3.0), None, 2), (Some(2.0), None, 3)];
    assert_eq!(imitated(&scored, &[(3, 0), (1, 0)]), [1, 2], "every top score");
    assert_eq!(imitated(&scored[1..3], &[]), [0, 1], "equal scores make no pair");
    assert_eq!(imitated(&[plain, plain], &[]), [0, 1], "completions nobody compared");
    assert_eq!(imitated(&[bad, (None, Some(true), 0)], &[]), [1], "desirable");
    assert_eq!(imitated(&[bad], &[]), [0u64; 0], "undesirable");
    assert_eq!(imitated(&[bad, (None, None, 1)], &[(0, 1)]), [0u64; 0], "chosen, and undesirable");
    assert_eq!(imitated(&[(Some(3.0), Some(false), 0), (Some(2.0), None, 1)], &[(0, 1)]), [1], "the best that is not");
    assert_eq!(imitated(&[(None, None, 1)], &[]), [0u64; 0], "the rejected half of a dropped pair");
    assert_eq!(imitated(&[plain, (None, None, 1), plain], &[(0, 1)]), [0, 2], "a pair and a completion");
    let two = [plain, (None, None, 1), scored[0], scored[1], scored[2]];
    assert_eq!(imitated(&two, &[(0, 1), (3, 2), (4, 2)]), [0, 3, 4], "the chosen of one row, the best two of another");
    let ranked = [plain, (None, None, 1), (None, None, 2)];
    assert_eq!(imitated(&ranked, &[(0, 1), (1, 2)]), [0], "chosen, and rejected for a better one");
    let turn = (None, Some(true), 3);
    assert_eq!(imitated(&[turn, (None, None, 3)], &[]), [0], "a turn of a conversation; half of a dropped pair");
}

#[test]
fn packing_is_tight() {
    // 64 groups of 100..163 slots in 1024: the fill of the best packing is bounded by 1 - 163/1024.
    let groups: Vec<Own> = (0..64).map(|i| own(40, &[30, 30 + i], &[(0, 1)])).collect();
    let (_dir, data) = dataset(&groups);
    let p = Planner::new(&data, &options(Objective::Preference, 64, Some(1024))).unwrap();
    let batches = p.step(0, 0).unwrap();
    let used: usize = batches.iter().map(|b| b.used()).sum();
    assert_eq!(batches.len(), used.div_ceil(1024), "fill {}", used as f64 / (batches.len() * 1024) as f64);
}
