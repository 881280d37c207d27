//! Of a step each rank knows the outlines of all micro-batches, and reads the tokens of its own alone.

use crate::plan::dataset;
use crate::shards::{Own, own_group};

use fusedpo::batch::{Batches, MicroBatch, Outline};
use fusedpo::comm::tree::lanes_of;
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;

const OBJECTIVES: [Objective; 5] =
    [Objective::Preference, Objective::Ranking, Objective::Sft, Objective::Judgement, Objective::Score];

fn outlines(of: &Planner<'_>, step: u64, first: bool) -> Vec<Outline> {
    if first { of.first_outlines(0, step) } else { of.outlines(0, step) }.unwrap()
}

/// Those of rank `rank` of `size`, of as many lanes as `lanes`.
fn own(outlines: &[Outline], rank: usize, size: usize, lanes: usize) -> Range<usize> {
    let own = lanes_of(rank, size, lanes);
    let before = |lane| outlines.partition_point(|of| of.lane() < lane);
    before(own.start)..before(own.end)
}

/// Prompts, by their groups, and responses that stand in `own`.
fn read(own: &[MicroBatch]) -> [BTreeSet<u64>; 2] {
    let prompts = own.iter().flat_map(MicroBatch::groups).map(|g| g.id).collect();
    [prompts, own.iter().flat_map(MicroBatch::responses).map(|r| r.id).collect()]
}

/// `groups` with another token in the place of every one, but in what is spared.
fn garbled(groups: &[Own], [prompts, responses]: &[BTreeSet<u64>; 2], by: u32) -> Vec<Own> {
    let mut ids = 0..;
    let garble = |tokens: &mut Vec<u32>| tokens.iter_mut().for_each(|t| *t = (*t + by) % 3000);
    let mut groups = groups.to_vec();
    for (id, group) in (0..).zip(&mut groups) {
        if !prompts.contains(&id) {
            garble(&mut group.prompt);
        }
        for response in &mut group.responses {
            if !responses.contains(&ids.next().unwrap()) {
                garble(&mut response.0);
            }
        }
    }
    groups
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_rank_reads_the_tokens_of_its_own(
        groups in prop::collection::vec(own_group(3000), 2..16),
        batch_size in 2usize..10,
        lanes in 1usize..6,
        at in any::<[prop::sample::Index; 3]>(),
        tight in any::<bool>(),
        by in 1u32..3000,
        first in any::<bool>(),
        objective in prop::sample::select(&OBJECTIVES[..]),
    ) {
        let o = PlanOptions { objective, batch_size, token_budget: tight.then_some(40), seed: 7, shuffle: true };
        let (_dir, data) = dataset(&groups);
        let Ok(plan) = Planner::new(&data, &o) else { return Ok(()) };
        let plan = plan.in_lanes(lanes);
        let size = at[0].index(lanes) + 1;
        for step in 0..plan.steps_in_epoch(0) {
            let whole = if first { plan.first(0, step) } else { plan.step(0, step) }.unwrap();
            let all = outlines(&plan, step, first);
            prop_assert!(whole.iter().map(MicroBatch::outline).eq(&all));
            let mut joined = Vec::new();
            for rank in 0..size {
                let mine = own(&all, rank, size, lanes);
                let batches = plan.batches(all.clone(), mine.clone()).unwrap();
                prop_assert_eq!((batches.before.len(), batches.after.len()), (mine.start, all.len() - mine.end));
                prop_assert!(batches.all().eq(&all));
                prop_assert_eq!((batches.len(), batches.is_empty()), (all.len(), false));
                prop_assert_eq!(&plan.whole(&batches).unwrap(), &whole);
                joined.extend(batches.own);
            }
            prop_assert_eq!(joined, whole);
        }
        // Where all else is other tokens, a rank has the same.
        let (rank, step) = (at[1].index(size), at[2].index(plan.steps_in_epoch(0) as usize) as u64);
        let all = outlines(&plan, step, first);
        let mine = own(&all, rank, size, lanes);
        let batches = plan.batches(all, mine.clone()).unwrap();
        let of = |groups: &[Own]| -> Batches {
            let (_dir, data) = dataset(groups);
            let plan = Planner::new(&data, &o).unwrap().in_lanes(lanes);
            plan.batches(outlines(&plan, step, first), mine.clone()).unwrap()
        };
        prop_assert_eq!(&of(&garbled(&groups, &read(&batches.own), by)), &batches);
        let other = of(&garbled(&groups, &Default::default(), by));
        prop_assert!(other.all().eq(batches.all()));
        prop_assert_eq!(other == batches, mine.is_empty());
    }
}

/// Tokens and memory of a rank's step, of eight that share one of 64 pairs.
#[test]
fn a_step_takes_memory_for_its_own() {
    let response = |t: u32, n: usize| (vec![t; n], None, None, 0, 0);
    let group = |i: u32| Own {
        prompt: vec![i; 100 + i as usize],
        responses: vec![response(5, 60 + i as usize), response(6, 90)],
        pairs: vec![(0, 1, 1.0)],
    };
    let groups: Vec<Own> = (0..64).map(group).collect();
    let (_dir, data) = dataset(&groups);
    let objective = Objective::Preference;
    let o = PlanOptions { objective, batch_size: 64, token_budget: Some(512), seed: 1, shuffle: true };
    let plan = Planner::new(&data, &o).unwrap().in_lanes(8);
    let whole = plan.step(0, 0).unwrap();
    let bytes = |of: &[MicroBatch]| of.iter().map(MicroBatch::bytes).sum::<usize>();
    let (all, mut tokens) = (outlines(&plan, 0, false), Vec::new());
    for rank in 0..8 {
        let batches = plan.batches(all.clone(), own(&all, rank, 8, 8)).unwrap();
        let others: usize = batches.before.iter().chain(&batches.after).map(Outline::bytes).sum();
        let (mine, of_all) = (bytes(&batches.own) + others, bytes(&whole));
        assert!(7 * mine < of_all * 2, "rank {rank}: {mine} bytes of {of_all}");
        tokens.push(batches.own.iter().map(MicroBatch::used).sum::<usize>());
    }
    assert_eq!(tokens.iter().sum::<usize>(), whole.iter().map(MicroBatch::used).sum::<usize>());
    assert!(tokens.iter().all(|n| *n > 0), "{tokens:?}");
}
