//! Runs that train some parameters and leave the others alone.

use crate::cli_common::*;
use crate::host;
use fusedpo::backend::Backend;
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::Gpu;
use fusedpo::batch::Capacity;
use fusedpo::model::{Model, ModelDir};
use fusedpo::observe::Silent;
use fusedpo::train::engine::Purpose;
use fusedpo::train::memory::MemoryPlan;
use fusedpo::train::optim::OptimOptions;
use fusedpo::train::options::{FileOptions, Stage, TrainOptions};
use fusedpo::train::run::train;
use fusedpo::train::team::Ranks;
use fusedpo::train::trained::{Learns, Trained};
use half::bf16;
use safetensors::SafeTensors;
use std::collections::BTreeSet;

const SOME: &str = r"layers\.1\.self_attn\.[qv]_proj|layers\.1\.mlp\.down|norm";

fn options(cli: &Cli, stage: Stage, out: &str) -> TrainOptions {
    let mut o = TrainOptions {
        files: FileOptions { model: cli.path("m"), data: cli.path("d"), out: cli.path(out) },
        ..Default::default()
    };
    o.train.train = Some(SOME.into());
    o.schedule.learning_rate = 1e-2;
    o.data.max_steps = Some(3);
    o.save.save_steps = Some(2);
    o.resolve(stage).unwrap()
}

/// Names of the tensors that differ between two files, which have the same.
fn differ(cli: &Cli, one: &str, two: &str) -> BTreeSet<String> {
    let [a, b] = [one, two].map(|name| cli.bytes(name));
    let [a, b] = [&a, &b].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    let names = a.names().into_iter().map(String::from).collect::<BTreeSet<_>>();
    assert_eq!(names, b.names().into_iter().map(String::from).collect());
    let same = |n: &String| a.tensor(n).unwrap().data() == b.tensor(n).unwrap().data();
    names.into_iter().filter(|n| !same(n)).collect()
}

/// What trains has changed, all of it; what is frozen has its source's bytes, although a bf16 run's passes round it.
fn on<B: Backend>(be: &B, cli: &Cli, name: &str) {
    let mut table =
        ModelDir::open(&cli.path("m")).map(|d| fusedpo::model::ParamTable::new(d.config()).unwrap()).unwrap();
    Trained::of(Some(SOME)).unwrap().apply(&mut table).unwrap();
    let want: BTreeSet<String> = table.specs.iter().filter(|s| s.trains).map(|s| s.name.clone()).collect();
    assert!(want.len() > 5 && want.len() < table.specs.len(), "{want:?}");
    for stage in [Stage::Sft, Stage::Dpo] {
        let out = format!("{name}-{stage}");
        train(be, &options(cli, stage, &out), &mut Silent).unwrap();
        assert_eq!(differ(cli, "m/model.safetensors", &format!("{out}/model.safetensors")), want, "{out}");
        // A checkpoint has the state of what trains, and is a model with all weights.
        let bytes = cli.bytes(&format!("{out}/checkpoint-2/optimizer.safetensors"));
        let kept = SafeTensors::deserialize(&bytes).unwrap();
        let of = |part: &str| kept.names().into_iter().filter_map(|n| n.strip_prefix(part).map(String::from)).collect();
        let first: BTreeSet<String> = of("first_moment.");
        assert_eq!(first, want);
        Model::load(be, &ModelDir::open(&cli.path(&format!("{out}/checkpoint-2"))).unwrap(), 8).unwrap();
    }
}

#[test]
fn frozen_parameters_keep_their_bytes() {
    let cli = Cli::with_data();
    on(&Cpu::<f32>::new().unwrap(), &cli, "cpu");
    let Some(driver) = host::host_driver(3) else { return };
    on(&Gpu::<_, bf16>::new(driver).unwrap(), &cli, "bf16");
    on(&Gpu::<_, f32>::new(host::host_driver(1).unwrap()).unwrap(), &cli, "f32");
}

/// Gradients, masters and moments of what trains, and no more: on the plan, in the checkpoint, and where the run allocates.
#[test]
fn what_is_frozen_takes_no_memory() {
    fn planned<B: Backend>(be: &B, cli: &Cli, masters: usize) {
        let dir = ModelDir::open(&cli.path("m")).unwrap();
        let optim = OptimOptions::default();
        let plan = |train: &str| {
            let trained = Trained::of(Some(train)).unwrap();
            let capacity = Capacity { slots: 64, predictions: 64, responses: 8, pairs: 4 };
            let learns = Learns { optim: &optim, trained: &trained, synced: false, ranks: Ranks::ALONE };
            MemoryPlan::training_as(be, dir.config(), 40, capacity, (Purpose::Train, learns)).unwrap()
        };
        let mut table = fusedpo::model::ParamTable::new(dir.config()).unwrap();
        let all = table.len;
        Trained::of(Some(SOME)).unwrap().apply(&mut table).unwrap();
        let bytes = |plan: &MemoryPlan, name: &str| {
            plan.table.iter().filter(|(n, _)| n == name).map(|(_, bytes)| *bytes).sum::<usize>()
        };
        let (whole, some) = (plan("all"), plan(SOME));
        for (name, sets) in [
            ("gradients", 1),
            ("optimizer first moment", 1),
            ("optimizer second moment", 1),
            ("master weights", masters),
        ] {
            assert_eq!(
                (bytes(&whole, name), bytes(&some, name)),
                (4 * sets * all, 4 * sets * table.trained_len),
                "{name}"
            );
        }
        assert_eq!(bytes(&whole, "weights"), bytes(&some, "weights"));
        let left = table.num_parameters() - table.num_trained();
        assert_eq!(whole.save.unwrap().disk - some.save.unwrap().disk, ((2 + masters) * 4 * left) as u64);
    }
    let cli = Cli::new();
    planned(&Cpu::<f32>::new().unwrap(), &cli, 0);
    let Some(driver) = host::host_driver(3) else { return };
    planned(&Gpu::<_, bf16>::new(driver).unwrap(), &cli, 1);
}

#[test]
fn refusals() {
    let cli = Cli::with_data();
    let refused = |args: &str, code: i32, want: &str| {
        let ran = cli.run(&format!("dpo --model m --data d --out o {args}"));
        assert!(ran.code == code && ran.err.contains(want) && !ran.err.contains('`'), "{args}: {ran:?}");
        assert!(!cli.path("o").exists());
    };
    refused(
        "--train lm_heat",
        2,
        "--train lm_heat: no parameter of the model has such a name; they are called model.layers.0",
    );
    refused("--train (", 2, "--train (: not a regular expression (unclosed group)");
    refused("--train mlp --sync-ref-model", 2, "--train mlp: a reference that follows (--sync-ref-model)");
    cli.ok("sft --model m --data d --out o --train mlp --max-steps 4 --save-steps 2");
    let other = cli.run("sft --model m --data d --out o --train norm --max-steps 6 --resume auto");
    assert!(other.code == 2 && other.err.contains("--train was mlp, and is norm now"), "{other:?}");
}
