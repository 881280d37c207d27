//! Lanes: the same steps, cut in another way, and evenly.

use crate::plan::{check_batch, dataset};
use crate::shards::own_group;

use fusedpo::batch::MicroBatch;
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Ids of responses, each with its group, and of pairs.
fn units(batches: &[MicroBatch]) -> (Vec<(u64, u64)>, Vec<u64>) {
    let (mut responses, mut pairs) = (Vec::new(), Vec::new());
    for mb in batches {
        for span in mb.groups() {
            let own = &mb.responses()[span.responses.start as usize..span.responses.end as usize];
            responses.extend(own.iter().map(|r| (span.id, r.id)));
        }
        pairs.extend(mb.pairs().iter().map(|p| p.id));
    }
    responses.sort_unstable();
    pairs.sort_unstable();
    (responses, pairs)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn lanes_share_out_every_step(
        groups in prop::collection::vec(own_group(3000), 2..24),
        batch_size in 2usize..12,
        lanes in 1usize..9,
        tight in any::<bool>(),
        judged in any::<bool>(),
    ) {
        let (_dir, data) = dataset(&groups);
        let objective = if judged { Objective::Judgement } else { Objective::Preference };
        let o = PlanOptions { objective, batch_size, token_budget: tight.then_some(24), seed: 7, shuffle: true };
        let Ok(plain) = Planner::new(&data, &o) else { return Ok(()) };
        let planner = Planner::new(&data, &o).unwrap().in_lanes(lanes);
        prop_assert_eq!(planner.capacity(), plain.capacity());
        for step in 0..plain.steps_in_epoch(0) {
            for first in [false, true] {
                let of = |p: &Planner<'_>| if first { p.first(0, step) } else { p.step(0, step) }.unwrap();
                let (whole, cut) = (of(&plain), of(&planner));
                if lanes == 1 {
                    prop_assert_eq!(&whole, &cut);
                }
                // A group that was cut may repeat a response in one plan and not in the other: its pairs are what counts.
                if !tight || judged {
                    prop_assert_eq!(units(&whole).0, units(&cut).0);
                }
                prop_assert_eq!(units(&whole).1, units(&cut).1);
                prop_assert!(cut.is_sorted_by_key(MicroBatch::lane) && cut.iter().all(|mb| mb.lane() < lanes));
                cut.iter().for_each(|mb| if !judged { check_batch(mb, &data) });
                let mut loads: BTreeMap<usize, usize> = (0..lanes).map(|lane| (lane, 0)).collect();
                cut.iter().for_each(|mb| *loads.get_mut(&mb.lane()).unwrap() += mb.used());
                let largest = cut.iter().flat_map(MicroBatch::groups).map(|g| g.end - g.prompt.start).max().unwrap_or(0);
                let (most, least) = (loads.values().max().unwrap(), loads.values().min().unwrap());
                prop_assert!(most - least <= largest as usize, "{loads:?}, the largest group has {largest}");
            }
        }
    }
}
