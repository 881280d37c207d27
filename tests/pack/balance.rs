//! How evenly the lanes of real data are loaded: eight of them, eight pairs each a step.

use crate::pack_common::test_data;

use fusedpo::data::pack::{PackOptions, pack};
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::data::shard::{Dataset, Split};

const LANES: usize = 8;

#[test]
fn lanes_of_real_data_are_evenly_loaded() {
    let Some(data) = test_data("lanes_of_real_data_are_evenly_loaded") else { return };
    let dir = tempfile::tempdir().unwrap();
    for (input, least) in [
        ("ultrafeedback-1200/train_clean.jsonl.gz", 0.98),
        ("hh-harmless/test.jsonl.gz", 0.98),
        // A step is eleven groups of four responses.
        ("qa-feedback/scored.jsonl.gz", 0.82),
    ] {
        let mut o = PackOptions::new(
            data.join("data/tokenizers/smollm2.json"),
            vec![data.join("data").join(input)],
            dir.path().join("out"),
        );
        o.tokenizer_options.eos_token = Some("<|im_end|>".into());
        (o.max_length, o.overwrite) = (0, true);
        pack(&o, &mut |_| Ok(())).unwrap();
        let packed = Dataset::open(&o.out, Split::Train).unwrap();
        let options = PlanOptions {
            objective: Objective::Preference,
            batch_size: 8 * LANES,
            token_budget: None,
            seed: 42,
            shuffle: true,
        };
        let plan = Planner::new(&packed, &options).unwrap().in_lanes(LANES);
        // The last step of an epoch has what is left.
        let steps: Vec<(u64, u64)> =
            (0..6).flat_map(|epoch| (0..plan.steps_in_epoch(epoch) - 1).map(move |step| (epoch, step))).collect();
        let share = |&(epoch, step): &(u64, u64)| {
            let mut loads = [0; LANES];
            plan.step(epoch, step).unwrap().iter().for_each(|mb| loads[mb.lane()] += mb.used());
            loads.iter().sum::<usize>() as f64 / LANES as f64 / *loads.iter().max().unwrap() as f64
        };
        let mean = steps.iter().map(share).sum::<f64>() / steps.len() as f64;
        println!("{input}: mean over max {mean:.4} in {} steps", steps.len());
        assert!(mean >= least, "{input}: {mean:.4}, and it was {least} at least");
    }
}
