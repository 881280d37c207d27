//! Whole runs on the kernels, on the host and on a GPU where there is one (`common/device.rs`): SFT, reference pass, DPO on a real,
//! if small, model; the same run with everything switched on that must not change a bit; and what a run leaves behind when its
//! device is lost.

mod cli_common;
#[path = "common/device.rs"]
mod device;
#[path = "common/faulty.rs"]
mod faulty;
#[path = "common/host.rs"]
mod host;

use cli_common::Cli;
use faulty::FaultyDriver;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::gpu::cuda::CudaDriver;
use fusedpo::backend::gpu::host::HostDriver;
use fusedpo::backend::{Backend, Device};
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::observe::Silent;
use fusedpo::train::choices::GraphsChoice;
use fusedpo::train::engine::Purpose;
use fusedpo::train::memory::MemoryPlan;
use fusedpo::train::options::{DataOptions, FileOptions, LossOptions, Stage, TrainOptions};
use fusedpo::train::replay::replay;
use fusedpo::train::run::train;
use fusedpo::train::schedule::{ScheduleOptions, SchedulerType};
use half::bf16;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn gpu() -> Option<Gpu<HostDriver, bf16>> {
    Some(Gpu::new(host::deferred_driver(7)?).unwrap())
}

fn cuda() -> Option<Gpu<CudaDriver, bf16>> {
    Some(Gpu::new(device::cuda_driver()?).unwrap())
}

fn stories(test: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("FUSEDPO_TEST_DATA") else {
        println!("skipped: {test} (FUSEDPO_TEST_DATA is not set)");
        return None;
    };
    Some(Path::new(&root).join("data/stories260k"))
}

/// Short stories, told well or badly: `d` has pairs to train on and some held out.
fn data(cli: &Cli, tokenizer: &Path) {
    let names = ["Tom", "Lily", "Ben", "Mia", "Sam", "Anna"];
    let things = ["ball", "cat", "tree", "toy"];
    let row = |i: usize| {
        let (name, thing) = (names[i % 6], things[i % 4]);
        json!({
            "prompt": format!("Once upon a time, {name} had a {thing}."),
            "chosen": format!(" {name} liked it very much."),
            "rejected": format!(" The {thing} and and not."),
        })
    };
    let rows: Vec<Value> = (0..8).map(row).collect();
    cli.write_rows("rows.jsonl", &rows);
    cli.ok(&format!("pack --tokenizer {} --input rows.jsonl --out d --eval-fraction 0.3", tokenizer.display()));
}

/// The options of a short run in `cli`'s folder.
fn config(cli: &Cli, stage: Stage, model: &Path, out: &str) -> TrainOptions {
    let learning_rate = if stage == Stage::Sft { 2e-4 } else { 5e-5 };
    let options = TrainOptions {
        files: FileOptions { model: model.to_owned(), data: cli.path("d"), out: cli.path(out) },
        loss: LossOptions { beta: (stage == Stage::Dpo).then_some(0.3), ..Default::default() },
        schedule: ScheduleOptions { learning_rate, ..Default::default() },
        data: DataOptions { batch_size: 2, token_budget: Some(64), max_steps: Some(3), ..Default::default() },
        ..Default::default()
    };
    options.resolve(stage).unwrap()
}

/// Metrics without those of the clock.
fn rows(cli: &Cli, out: &str) -> Vec<Value> {
    let mut rows = cli.json_lines(&format!("{out}/metrics.jsonl"));
    for row in rows.iter_mut().filter_map(Value::as_object_mut) {
        row.retain(|key, _| !key.contains("second") && !key.ends_with("_bytes"));
    }
    rows
}

fn column(rows: &[Value], key: &str) -> Vec<f64> {
    rows.iter().filter_map(|r| r.get(key)?.as_f64()).collect()
}

/// SFT, then DPO from its result, into `NAME-sft` and `NAME-dpo`. The reference pass is part of DPO.
fn both_stages<B: Backend>(be: &B, cli: &Cli, model: &Path, name: &str, change: impl Fn(&mut TrainOptions)) {
    for stage in [Stage::Sft, Stage::Dpo] {
        let (from, out) = match stage {
            Stage::Sft => (model.to_owned(), format!("{name}-sft")),
            Stage::Dpo => (cli.path(&format!("{name}-sft")), format!("{name}-dpo")),
        };
        let mut c = config(cli, stage, &from, &out);
        change(&mut c);
        train(be, &c, &mut Silent).unwrap();
    }
}

#[test]
fn sft_reference_and_dpo_agree_with_the_cpu_and_with_themselves() {
    let Some(model) = stories("sft_reference_and_dpo_agree_with_the_cpu_and_with_themselves") else { return };
    agrees(gpu, &model);
    agrees(cuda, &model);
}

fn agrees<B: Backend>(device: fn() -> Option<B>, model: &Path) {
    let Some(be) = device() else { return };
    let cli = Cli::new();
    data(&cli, model);
    both_stages(&Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &cli, model, "cpu", |_| {});
    both_stages(&be, &cli, model, "gpu", |_| {});
    for stage in ["sft", "dpo"] {
        let [want, got] = ["cpu", "gpu"].map(|name| rows(&cli, &format!("{name}-{stage}")));
        for key in ["loss", "eval_loss", "grad_norm", "rewards/margins", "eval_rewards/margins", "logps/chosen"] {
            let (want, got) = (column(&want, key), column(&got, key));
            println!("{stage} {key}: cpu {want:.4?}, kernels in bf16 {got:.4?}");
            assert_eq!(want.len(), got.len());
            // bf16 keeps 8 bits, and a number meets a few dozen roundings on its way: 3 % of the largest. AdamW's first
            // steps take every weight as far as the next, whatever the size of its gradient, and the weights that the
            // passes see are rounded too: what a run has changed, it has changed with another tenth of error.
            let largest = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
            let allowed = |w: f64| 0.03 * largest + 0.1 * (w - want[0]).abs();
            assert!(
                want.iter().zip(&got).all(|(w, g)| (w - g).abs() <= allowed(*w)),
                "{stage} {key}: {want:?} {got:?}"
            );
        }
        let loss = column(&want, "eval_loss");
        assert!(loss.len() == 2 && loss[1] < loss[0], "the run learns: {loss:?}");
    }
    let dpo = rows(&cli, "gpu-dpo");
    assert_eq!(column(&dpo, "loss")[0] as f32, std::f32::consts::LN_2, "step 0 is exact");
    assert_eq!(column(&dpo, "step"), [0.0, 1.0, 2.0, 3.0, 3.0], "rows are in order, though late");

    both_stages(&device().unwrap(), &cli, model, "all", |c| {
        c.compute.gradient_checkpointing = true;
        c.compute.cuda_graphs = GraphsChoice::On;
    });
    for stage in ["sft", "dpo"] {
        let [one, two] = ["gpu", "all"].map(|name| rows(&cli, &format!("{name}-{stage}")));
        assert_eq!(one, two, "{stage}");
        let [one, two] = ["gpu", "all"].map(|name| cli.bytes(&format!("{name}-{stage}/model.safetensors")));
        assert!(one == two, "{stage}");
    }
}

/// Whatever call is the first to fail: one line that says what happened, no model, and metrics of whole steps alone.
#[test]
fn a_device_lost_in_the_middle_leaves_nothing_half_written() {
    if host::host_driver(0).is_none() {
        return;
    }
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &cli_common::pairs(6));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    let model = cli_common::golden("llama");
    let run = |driver: HostDriver, healthy: u64, out: &str, graphs: GraphsChoice| {
        let be = Gpu::<_, bf16>::new(FaultyDriver::new(driver, healthy, LOST));
        let mut c = config(&cli, Stage::Dpo, &model, out);
        c.data.max_steps = Some(2);
        c.compute.cuda_graphs = graphs;
        // A cache of its own, so that every run has the same calls to make.
        std::fs::create_dir(cli.path(&format!("{out}-cache"))).unwrap();
        c.reference.cache = Some(cli.path(&format!("{out}-cache")));
        let done = be.and_then(|be| train(&be, &c, &mut Silent).map(|_| be.driver().calls()));
        (done, cli.path(out))
    };
    for (name, graphs) in [("eager", GraphsChoice::Off), ("graphs", GraphsChoice::On)] {
        let (calls, _) = run(host::host_driver(0).unwrap(), u64::MAX, name, graphs);
        let calls = calls.unwrap();
        let whole = cli.text(&format!("{name}/metrics.jsonl")).lines().count();
        for i in 0..10 {
            let healthy = calls * i / 10 + i % 3;
            let (done, out) = run(host::host_driver(0).unwrap(), healthy, &format!("{name}-{i}"), graphs);
            let error = done.unwrap_err();
            let line = error.to_string();
            assert!(line.contains(LOST) && !line.contains('\n'), "{line}");
            assert_eq!(error.exit_code(), 1, "{line}");
            let left: Vec<String> = match std::fs::read_dir(&out) {
                Ok(dir) => dir.map(|f| f.unwrap().file_name().into_string().unwrap()).collect(),
                Err(_) => continue,
            };
            assert!(
                left.iter().all(|f| ["config.toml", "metrics.jsonl", "run.json"].contains(&f.as_str())),
                "{name}, call {healthy}: {left:?}"
            );
            let rows = cli.json_lines(&format!("{name}-{i}/metrics.jsonl"));
            assert!(rows.len() <= whole && rows.iter().all(Value::is_object));
        }
    }
}
const LOST: &str = "CUDA: cannot finish what was enqueued: the launch timed out and was terminated";

/// Weights that have left the range of floats: every step is skipped on the device, which the host learns a step later. The
/// run ends after as many steps as on the CPU, with the same rows.
#[test]
fn a_run_without_a_finite_gradient_ends() {
    ends_as_on_the_cpu(gpu);
    ends_as_on_the_cpu(cuda);
}

fn ends_as_on_the_cpu<B: Backend>(device: fn() -> Option<B>) {
    let Some(gpu) = device() else { return };
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &cli_common::pairs(12));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    let model = cli_common::golden("llama");
    let run = |out: &str, train: &dyn Fn(&TrainOptions) -> Option<String>| {
        let mut c = config(&cli, Stage::Sft, &model, out);
        (c.schedule.learning_rate, c.data.max_steps) = (1e30, Some(20));
        c.schedule.lr_scheduler_type = SchedulerType::Constant;
        (c.save.save_steps, c.save.save_total_limit) = (Some(1), 0);
        (train(&c).unwrap(), column(&rows(&cli, out), "step"))
    };
    let cpu = Cpu::<f32>::with(GemmPrecision::Native).unwrap();
    let want = run("cpu", &|c| train(&cpu, c, &mut Silent).err().map(|e| e.to_string()));
    let got = run("gpu", &|c| train(&gpu, c, &mut Silent).err().map(|e| e.to_string()));
    let stop = "no finite gradient in 3 steps in a row, the last was step 4:";
    assert!(want.0.starts_with(stop) && got.0.starts_with(stop), "{want:?} {got:?}");
    assert_eq!(want.1, [1.0, 2.0, 3.0]);
    assert_eq!(got.1, want.1);
    assert!(!cli.path("gpu/model.safetensors").exists());
    // Its steps taken again on a device of its kind, from its checkpoints with their master weights: the run's own numbers.
    let again = |step| {
        let mut c = config(&cli, Stage::Sft, &model, "gpu");
        (c.schedule.learning_rate, c.data.max_steps) = (1e30, Some(20));
        c.schedule.lr_scheduler_type = SchedulerType::Constant;
        replay(device().unwrap(), &c, step, &mut Silent).unwrap()
    };
    for (step, from) in [(1, 0), (2, 1), (4, 3)] {
        let r = again(step);
        assert_eq!((r.from.step, r.agreement.difference.as_deref(), r.agreement.compared), (from, None, 1), "{step}");
        assert_eq!(r.first().is_some(), step > 1, "{step}: {}", r.verdict());
        assert_eq!((r.updated, r.agreement.batch.is_some()), (step == 1, step > 1), "{step}");
        let stages: std::collections::BTreeSet<&str> = r.ops.iter().map(|op| op.stage).collect();
        assert_eq!(stages.len(), 6, "{stages:?}");
        assert!(r.state.iter().any(|(part, _)| *part == "master"));
    }
}

/// A GPU that is a little too small is refused before the first step, with what would do: and that does.
#[test]
fn a_device_too_small_is_refused_with_what_would_fit() {
    let Some(driver) = host::host_driver(0) else { return };
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &cli_common::pairs(6));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    let model = cli_common::golden("llama");
    let mut c = config(&cli, Stage::Sft, &model, "run");
    (c.data.max_steps, c.data.token_budget) = (Some(1), Some(1024));
    let be = Gpu::<_, bf16>::new(driver).unwrap();
    let shape = fusedpo::model::ModelConfig::load(&model).unwrap();
    let data = Dataset::open(&c.files.data, Split::Train).unwrap();
    let options = PlanOptions {
        objective: Objective::Sft,
        batch_size: c.data.batch_size,
        token_budget: c.data.token_budget,
        seed: c.data.seed,
        shuffle: true,
    };
    let capacity = Planner::new(&data, &options).unwrap().capacity();
    let plan = |purpose| MemoryPlan::training(&be, &shape, 64, capacity, (purpose, &c.optim)).unwrap();
    let (full, less) = (plan(Purpose::Train), plan(Purpose::Recompute));
    // Of two layers, one whose MLP has a row for every prediction alone.
    assert!(less.bytes() < full.bytes() * 9 / 10, "{} of {} bytes", less.bytes(), full.bytes());
    let memory = be.memory().unwrap().unwrap().used + (full.needed() + less.needed()) / 2;

    let small = || Gpu::<_, bf16>::new(host::host_driver(0).unwrap().with_memory(memory)).unwrap();
    let error = train(&small(), &c, &mut Silent).unwrap_err();
    let line = error.to_string();
    assert!(line.starts_with("out of memory: this needs ") && !line.contains('\n'), "{line}");
    assert!(line.contains("; so would `gradient_checkpointing` ("), "{line}");
    assert_eq!(error.exit_code(), 1);
    assert!(!c.files.out.exists());
    c.compute.gradient_checkpointing = true;
    train(&small(), &c, &mut Silent).unwrap();
}

#[test]
fn graphs_are_refused_on_the_cpu_before_anything_is_written() {
    let cli = Cli::with_data();
    let mut c = config(&cli, Stage::Sft, &cli_common::golden("llama"), "run");
    c.compute.cuda_graphs = GraphsChoice::On;
    let error = train(&Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &c, &mut Silent).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("`cuda_graphs` on: this device records no graphs"), "{error}");
    assert!(!cli.path("run").exists());
}
