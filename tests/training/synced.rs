//! A reference that follows the policy (TR-DPO), and sums over the tokens that both responses have (LD-DPO): against a naive
//! recomputation, on every backend, stopped and gone on with, and what is refused.

use crate::cli_common;
use crate::host;

use cli_common::*;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::{Backend, Device, Float};
use fusedpo::batch::{Capacity, MicroBatch};
use fusedpo::data::plan::{Objective, PlanOptions, Planner, shared_lens};
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{Model, ModelDir};
use fusedpo::observe::{Event, Flow, Observe, Silent};
use fusedpo::train::choices::Resume;
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::means;
use fusedpo::train::memory::MemoryPlan;
use fusedpo::train::metrics::Totals;
use fusedpo::train::optim::{OptimOptions, Optimizer};
use fusedpo::train::options::{
    DataOptions, EvalOptions, FileOptions, ReferenceOptions, SaveOptions, Stage, TrainOptions,
};
use fusedpo::train::run::train;
use fusedpo::train::schedule::{Schedule, ScheduleOptions};
use fusedpo::train::team::Ranks;
use fusedpo::train::trained::{Learns, Trained};
use fusedpo::{Error, Result};
use half::bf16;
use serde_json::Value;
use std::f64::consts::LN_2;

fn options(cli: &Cli, out: &str, change: impl FnOnce(&mut TrainOptions)) -> TrainOptions {
    let mut o = TrainOptions {
        files: FileOptions { model: cli.path("m"), data: cli.path("d"), out: cli.path(out) },
        schedule: ScheduleOptions { learning_rate: 1e-3, ..Default::default() },
        data: DataOptions { batch_size: 3, max_steps: Some(6), token_budget: Some(64), ..Default::default() },
        eval: EvalOptions { eval_steps: 3, ..Default::default() },
        save: SaveOptions { save_steps: Some(2), ..Default::default() },
        ..Default::default()
    };
    change(&mut o);
    o.resolve(Stage::Dpo).unwrap()
}

fn synced(alpha: f64, every: u64) -> ReferenceOptions {
    ReferenceOptions {
        sync_ref_model: true,
        ref_model_mixup_alpha: Some(alpha),
        ref_model_sync_steps: Some(every),
        ..Default::default()
    }
}

fn cpu() -> Cpu<f32> {
    Cpu::with(GemmPrecision::Native).unwrap()
}

fn column(cli: &Cli, out: &str, key: &str) -> Vec<f64> {
    rows(cli, out).iter().filter_map(|row| row.get(key)?.as_f64()).collect()
}

fn weights<B: Backend>(be: &B, model: &Model<B>) -> Vec<f64> {
    let mut all = vec![B::Act::from_f64(0.0); model.table.len];
    be.download(&mut all, be.view(&model.weights, 0..model.table.len)).unwrap();
    all.iter().map(|x| x.to_f64()).collect()
}

/// A naive TR-DPO: two engines, the reference mixed on the host.
fn naive(c: &TrainOptions, cli: &Cli) -> (Vec<f64>, Vec<f32>, Vec<f32>) {
    let be = cpu();
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let options = PlanOptions {
        objective: Objective::Preference,
        batch_size: 3,
        token_budget: Some(64),
        seed: c.data.seed,
        shuffle: true,
    };
    let plan = Planner::new(&data, &options).unwrap();
    let dir = ModelDir::open(&cli.path("m")).unwrap();
    let load = || Model::load(&be, &dir, data.longest_row()).unwrap();
    let mut policy = Engine::new(&be, load(), plan.capacity(), Purpose::Train).unwrap();
    let mut reference = Engine::new(&be, load(), plan.capacity(), Purpose::Score).unwrap();
    let mut optimizer = Optimizer::new(&be, &mut policy.state, &c.optim).unwrap();
    let (spec, schedule) = (c.loss(), Schedule::new(&c.schedule, 6).unwrap());
    let (alpha, every) = (c.reference.ref_model_mixup_alpha.unwrap(), c.reference.ref_model_sync_steps.unwrap());
    let mut losses = Vec::new();
    for step in 1..=6u64 {
        let (epoch, place) = policy.state.clock.advance(|epoch| plan.steps_in_epoch(epoch));
        let mut batches = plan.step(epoch, place).unwrap();
        for mb in &mut batches {
            let mut logps = reference.score(mb).unwrap().into_iter();
            mb.set_ref_logps(|_| Ok(logps.next().unwrap())).unwrap();
        }
        let (scales, mut totals) = (means::scales(batches.iter().map(MicroBatch::outline), &spec), Totals::default());
        policy.clear_grads().unwrap();
        batches.iter().for_each(|mb| policy.accumulate(mb, &spec, scales, &mut totals).unwrap());
        losses.push(totals.mean_loss());
        optimizer.step(&be, &mut policy.state, schedule.at(step - 1)).unwrap();
        if step.is_multiple_of(every) {
            let (keep, take) = ((1.0 - alpha) as f32, alpha as f32);
            let (from, to) = (&policy.state.model.weights, &mut reference.state.model.weights);
            for i in 0..policy.state.model.table.len {
                to[i] = to[i] * keep + from[i] * take;
            }
        }
    }
    (losses, policy.state.model.weights.to_vec(), reference.state.model.weights.to_vec())
}

/// Tensors of a checkpoint's file, by name.
fn tensors(cli: &Cli, name: &str) -> Vec<(String, Vec<f32>)> {
    let bytes = cli.bytes(name);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let of = |t: &[u8]| t.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    file.iter().map(|(name, t)| (name.to_owned(), of(t.data()))).collect()
}

#[test]
fn the_reference_follows_as_a_naive_one_does() {
    let cli = Cli::with_data();
    for (name, alpha, every) in [("a", 0.3, 2), ("b", 0.6, 1), ("c", 1e-3, 5), ("d6", 0.5, 7)] {
        let c = options(&cli, name, |c| c.reference = synced(alpha, every));
        train(&cpu(), &c, &mut Silent).unwrap();
        let (losses, policy, reference) = naive(&c, &cli);
        assert_eq!(column(&cli, name, "loss"), losses, "{name}");
        let be = cpu();
        let dir = ModelDir::open(&cli.path("m")).unwrap();
        let table = Model::load(&be, &dir, 40).unwrap().table;
        let at = |name: &str| table.specs.iter().find(|s| s.name == name).unwrap().at.clone();
        let kept = tensors(&cli, &format!("{name}/checkpoint-6/reference.safetensors"));
        assert_eq!(kept.len(), table.specs.len());
        for (tensor, values) in kept {
            let tensor = tensor.strip_prefix("reference.").unwrap();
            assert!(values == reference[at(tensor)], "{name}: {tensor} of the reference");
        }
        for (tensor, values) in tensors(&cli, &format!("{name}/checkpoint-6/model.safetensors")) {
            assert!(values == policy[at(&tensor)], "{name}: {tensor} of the policy");
        }
        assert!(cli.names("d", ".pref.").iter().all(|n| n.ends_with(".pref")), "no sidecar");
    }
}

/// A reference that is the policy after every step: no step sees a difference, be it that its passes come before the sync of
/// the step before.
fn always_at_the_reference<B: Backend>(be: &B, cli: &Cli, name: &str, ld_alpha: Option<f64>) {
    let c = options(cli, name, |c| {
        c.reference = synced(1.0, 1);
        c.loss.ld_alpha = ld_alpha;
    });
    train(be, &c, &mut Silent).unwrap();
    let losses = column(cli, name, "loss");
    assert_eq!(losses.len(), 6);
    assert!(losses.iter().all(|loss| (loss - LN_2).abs() < 1e-12), "{name}: {losses:?}");
    assert!(column(cli, name, "rewards/margins").iter().all(|m| *m == 0.0), "{name}");
    let held_out = column(cli, name, "eval_loss");
    assert!(held_out.len() == 3 && held_out.iter().all(|loss| (loss - LN_2).abs() < 1e-12), "{name}: {held_out:?}");
    assert!(column(cli, name, "grad_norm").iter().all(|n| *n > 0.0), "{name}: and it learns");
}

#[test]
fn a_step_sees_the_sync_of_the_step_before() {
    let cli = Cli::with_data();
    always_at_the_reference(&cpu(), &cli, "f32", None);
    always_at_the_reference(&cpu(), &cli, "ld", Some(0.3));
    always_at_the_reference(&Cpu::<f64>::new().unwrap(), &cli, "f64", Some(0.0));
    if host::host_driver(0).is_none() {
        return;
    }
    let driver = || host::deferred_driver(3).unwrap();
    always_at_the_reference(&Gpu::<_, bf16>::new(driver()).unwrap(), &cli, "kernels-bf16", None);
    always_at_the_reference(&Gpu::<_, f32>::new(driver()).unwrap(), &cli, "kernels-f32", Some(0.5));
}

/// Ends a run as a crash would, when it has seen a step.
pub struct CrashAt(pub u64);

impl Observe for CrashAt {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        match event {
            Event::Step { step, .. } if *step == self.0 => Err(Error::Training("crash".into())),
            _ => Ok(Flow::On),
        }
    }
}

/// In peace; crashed after its fifth step, between two syncs, and gone on with.
fn goes_on<B: Backend>(be: &dyn Fn() -> B, cli: &Cli, name: &str) {
    let run = |out: &str, resume: bool, observe: &mut dyn Observe| {
        let mut c = options(cli, out, |c| c.reference = synced(0.25, 3));
        c.resume.resume = resume.then_some(Resume::Auto);
        train(&be(), &c, observe)
    };
    let [peace, crash] = ["peace", "crash"].map(|what| format!("{name}-{what}"));
    run(&peace, false, &mut Silent).unwrap();
    run(&crash, false, &mut CrashAt(5)).unwrap_err();
    assert_eq!(cli.names(&crash, "checkpoint-"), ["checkpoint-2", "checkpoint-4"]);
    run(&crash, true, &mut Silent).unwrap();
    assert_eq!(rows(cli, &peace), rows(cli, &crash), "{name}");
    for file in ["model", "optimizer", "reference"] {
        let [a, b] = [&peace, &crash].map(|out| cli.bytes(&format!("{out}/checkpoint-6/{file}.safetensors")));
        assert!(a == b, "{name}: {file}");
    }
}

#[test]
fn a_run_goes_on_across_syncs() {
    let cli = Cli::with_data();
    goes_on(&cpu, &cli, "f32");
    if host::host_driver(0).is_none() {
        return;
    }
    goes_on(&|| Gpu::<_, bf16>::new(host::deferred_driver(3).unwrap()).unwrap(), &cli, "bf16");
    let names: Vec<String> = tensors_names(&cli, "bf16-peace/checkpoint-6/reference.safetensors").into_iter().collect();
    assert!(names.iter().any(|n| n.starts_with("reference_master.")), "{names:?}");
}

fn tensors_names(cli: &Cli, name: &str) -> Vec<String> {
    let bytes = cli.bytes(name);
    safetensors::SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(String::from).collect()
}

/// The plan has the reference's memory, and a checkpoint its bytes on the disk.
#[test]
fn the_memory_plan_has_the_reference() {
    let cli = Cli::new();
    let dir = ModelDir::open(&cli.path("m")).unwrap();
    let capacity = Capacity { slots: 64, predictions: 64, responses: 8, pairs: 4 };
    let optim = OptimOptions::default();
    fn both<B: Backend>(be: &B, of: (&ModelDir, Capacity, &OptimOptions), added: &[&str]) {
        let (dir, capacity, optim) = of;
        let plan = |synced| {
            let how = (Purpose::Train, Learns { optim, trained: &Trained::All, synced, ranks: Ranks::ALONE });
            MemoryPlan::training_as(be, dir.config(), 40, capacity, how).unwrap()
        };
        let (with, without) = (plan(true), plan(false));
        let names: Vec<&str> = with.table[without.table.len()..].iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, added);
        let bytes: usize = with.table[without.table.len()..].iter().map(|(_, bytes)| bytes).sum();
        let disk = with.save.unwrap().disk - without.save.unwrap().disk;
        assert!(disk > 0 && disk as usize <= bytes, "{disk} {bytes}");
    }
    both(&cpu(), (&dir, capacity, &optim), &["reference weights"]);
    let Some(driver) = host::host_driver(0) else { return };
    let gpu = Gpu::<_, bf16>::new(driver).unwrap();
    both(&gpu, (&dir, capacity, &optim), &["reference weights", "reference master weights"]);
}

/// Refused in one line with these words in it.
#[track_caller]
fn refused(cli: &Cli, args: &str, words: &str) {
    let ran = cli.run(args);
    assert!(ran.code == 2 && ran.err.contains(words), "{args}: {ran:?}");
    assert_eq!(ran.err.matches("fusedpo: ").count(), 1, "{args}: {ran:?}");
}

#[test]
fn what_does_not_belong_together_is_refused_in_a_line() {
    let cli = Cli::with_data();
    let base = "dpo --model m --data d --device cpu --dtype f32 --batch-size 3 --max-steps 2 --save-steps 1 \
                --lr-scheduler-type constant --warmup-steps 0";
    for (args, want) in [
        (
            "--ref-model-sync-steps 3",
            "--ref-model-sync-steps: only a reference that follows has it; give --sync-ref-model",
        ),
        ("--ref-model-mixup-alpha 0.5", "--ref-model-mixup-alpha: only a reference that follows has it"),
        ("--sync-ref-model false --ref-model-mixup-alpha 0.5", "--ref-model-mixup-alpha: only a reference"),
        (
            "--sync-ref-model --ref-model-mixup-alpha 0",
            "--ref-model-mixup-alpha 0: must be greater than 0, and at most 1",
        ),
        ("--sync-ref-model --ref-model-mixup-alpha 1.5", "--ref-model-mixup-alpha 1.5: must be"),
        ("--sync-ref-model --ref-model-mixup-alpha NaN", "--ref-model-mixup-alpha NaN: must be"),
        ("--sync-ref-model --ref-model-sync-steps 0", "--ref-model-sync-steps 0: must be 1 or more"),
        (
            "--sync-ref-model --cache c",
            "--cache: a reference that follows the policy (--sync-ref-model) has no sidecars",
        ),
    ] {
        refused(&cli, &format!("{base} --out bad {args}"), want);
        assert!(!cli.path("bad").exists(), "{args}");
    }
    refused(&cli, "sft --model m --data d --out bad --sync-ref-model", "unexpected argument");
    // Another shape: nothing to mix.
    cli.model("other", "llama");
    cli.edit_json("other/config.json", |c| c["rms_norm_eps"] = 1e-3.into());
    refused(&cli, &format!("{base} --out bad --sync-ref-model --ref-model other"), "their weights cannot be mixed");
    assert!(!cli.path("bad").exists());
    // A checkpoint with a reference that follows, and one without.
    let said = cli.ok(&format!("{base} --out with --sync-ref-model --ref-model-sync-steps 1")).err;
    assert!(said.contains("reference: a copy of the starting policy (sha256 "), "{said}");
    assert!(said.contains("which takes 0.6 of the policy every step"), "{said}");
    let run: Value = serde_json::from_str(&cli.text("with/run.json")).unwrap();
    assert!(run["reference"].as_str().unwrap().contains("a copy of the starting policy"), "{run}");
    assert_eq!(run["options"]["ref_model_mixup_alpha"], 0.6);
    let said = cli.ok(&format!("{base} --out without")).err;
    assert!(said.contains("reference: the starting policy (sha256 ") && said.contains("from sidecars"), "{said}");
    let base = base.replace("--max-steps 2", "--max-steps 3");
    refused(
        &cli,
        &format!("{base} --out with --resume auto"),
        "--sync-ref-model was true, and is not given now: give true",
    );
    refused(
        &cli,
        &format!("{base} --out without --resume auto --sync-ref-model"),
        "--sync-ref-model was not given, and is true now: leave it out",
    );
    let other = "--sync-ref-model --ref-model-sync-steps 2";
    refused(&cli, &format!("{base} --out with --resume auto {other}"), "--ref-model-sync-steps was 1, and is 2 now");
    let said = cli.ok("eval --model with --data d --device cpu --dtype f32 --kl-samples 0").err;
    assert!(said.contains("as it was before it followed the policy"), "{said}");
}

/// Sums of the reference over whole responses and over what both of a pair have, as slices of log-probs by token.
fn naive_sums(cli: &Cli, model: &str) -> Vec<([f64; 2], [f64; 2])> {
    let be = cpu();
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let options = PlanOptions {
        objective: Objective::Preference,
        batch_size: 3,
        token_budget: Some(64),
        seed: 42,
        shuffle: true,
    };
    let plan = Planner::new(&data, &options).unwrap();
    let model = Model::load(&be, &ModelDir::open(&cli.path(model)).unwrap(), data.longest_row()).unwrap();
    let mut engine = Engine::new(&be, model, plan.capacity(), Purpose::Score).unwrap();
    let mut all = Vec::new();
    for mb in plan.step(0, 0).unwrap() {
        engine.score(&mb).unwrap();
        let logps = engine.token_logps(&mb).unwrap();
        for pair in mb.pairs() {
            let of = |r: u32, len: Option<usize>| {
                let at = &mb.responses()[r as usize].predictions;
                let at = at.start as usize..at.end as usize;
                logps[at][..].iter().take(len.unwrap_or(usize::MAX)).sum::<f64>()
            };
            let shared = Some(mb.shared_len(pair));
            let ends = [pair.chosen, pair.rejected];
            all.push((ends.map(|r| of(r, None)), ends.map(|r| of(r, shared))));
        }
    }
    all
}

#[test]
fn ld_dpo_compares_with_the_references_own_sums() {
    let cli = Cli::with_data();
    let run = |out: &str, change: &dyn Fn(&mut TrainOptions)| {
        let c = options(&cli, out, |c| change(c));
        train(&cpu(), &c, &mut Silent).unwrap();
    };
    let alpha = 0.3;
    // Policy and reference are the same: the proof passes, and the loss is log 2.
    run("first", &|c| c.loss.ld_alpha = Some(alpha));
    assert!((column(&cli, "first", "loss")[0] - LN_2).abs() < 1e-12);
    let heads = cli.names("d", ".heads-");
    assert_eq!(heads.len(), 2, "{heads:?}: a file a split");
    // Found again, with the same bits; also of other options of the loss.
    let before: Vec<Vec<u8>> = heads.iter().map(|n| cli.bytes(&format!("d/{n}"))).collect();
    run("again", &|c| c.loss.ld_alpha = Some(alpha));
    assert_eq!(rows(&cli, "first"), rows(&cli, "again"));
    run("other", &|c| c.loss.ld_alpha = Some(0.9));
    assert!(column(&cli, "other", "loss") != column(&cli, "first", "loss"));
    let after: Vec<Vec<u8>> = heads.iter().map(|n| cli.bytes(&format!("d/{n}"))).collect();
    assert!(before == after);
    // All of the other tokens: the plain loss, but for rounding.
    run("plain", &|_| {});
    run("all", &|c| c.loss.ld_alpha = Some(1.0));
    for (a, b) in column(&cli, "plain", "loss").iter().zip(column(&cli, "all", "loss")) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    // Another reference: the first step's loss by hand, as TRL computes it.
    run("else", &|c| {
        c.reference.ref_model = Some(cli.path("first"));
        c.loss.ld_alpha = Some(alpha);
    });
    let seen = |(sums, heads): &([f64; 2], [f64; 2]), i: usize| heads[i] + alpha * (sums[i] - heads[i]);
    let (policy, reference) = (naive_sums(&cli, "m"), naive_sums(&cli, "first"));
    let losses = policy.iter().zip(&reference).map(|(p, r)| {
        let h = (seen(p, 0) - seen(r, 0)) - (seen(p, 1) - seen(r, 1));
        (-0.1 * h).exp().ln_1p()
    });
    let (n, want) = (policy.len() as f64, losses.sum::<f64>());
    let got = column(&cli, "else", "loss")[0];
    assert!(n >= 3.0 && (got - want / n).abs() < 1e-12, "{got} {}", want / n);
    // The held-out numbers of `eval` are those of the run.
    let eval =
        cli.ok("eval --model else --data d --device cpu --dtype f32 --kl-samples 0 --token-budget 64 --json").json();
    let last = *column(&cli, "else", "eval_loss").last().unwrap();
    assert!((eval["loss"].as_f64().unwrap() - last).abs() < 1e-9, "{eval} {last}");
}

/// What was computed once, and kept, is what the reference says: else the run does not begin. Damage is refused.
#[test]
fn sums_that_nobody_computed_are_found_out() {
    let cli = Cli::with_data();
    let run = |out: &str| train(&cpu(), &options(&cli, out, |c| c.loss.ld_alpha = Some(0.3)), &mut Silent);
    run("first").unwrap();
    let name = cli.names("d", "train-00000.pref.heads-").remove(0);
    let path = format!("d/{name}");
    let whole = cli.bytes(&path);
    // Every value a little off, with the right checksums.
    let mut forged = whole.clone();
    let entries = 384..forged.len() - 8;
    for entry in forged[entries.clone()].chunks_exact_mut(24) {
        let value = f64::from_le_bytes(entry[16..].try_into().unwrap()) - 1e-9;
        entry[16..].copy_from_slice(&value.to_le_bytes());
    }
    let crc = crc32fast::hash(&forged[entries.clone()]);
    forged[entries.end..entries.end + 4].copy_from_slice(&crc.to_le_bytes());
    cli.write(&path, &forged);
    let e = run("forged").unwrap_err().to_string();
    assert!(e.contains("of its first ") && e.contains("the reference itself"), "{e}");
    let mut cut = whole.clone();
    cut.pop();
    cli.write(&path, &cut);
    let e = run("cut").unwrap_err().to_string();
    assert!(e.contains(&name) && e.contains("delete it"), "{e}");
    std::fs::remove_file(cli.path(&path)).unwrap();
    run("anew").unwrap();
    assert_eq!(rows(&cli, "anew"), rows(&cli, "first"));
    assert!(cli.bytes(&path) == whole, "the same bytes, made again");
}

/// Only for pairs that the run reads.
#[test]
fn a_short_run_computes_few_sums() {
    let cli = Cli::with_data();
    let c = options(&cli, "short", |c| {
        c.data.max_steps = Some(1);
        c.loss.ld_alpha = Some(0.3);
    });
    train(&cpu(), &c, &mut Silent).unwrap();
    let name = cli.names("d", "train-00000.pref.heads-").remove(0);
    let entries = (cli.bytes(&format!("d/{name}")).len() - 384 - 8) / 24;
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let all: usize = (0..data.num_groups()).map(|g| shared_lens(&data.group(g)).count()).sum();
    assert!(all >= 15 && (6..=10).contains(&entries), "{entries} of {}", 2 * all);
}

/// On the kernels too the reference's sums are those of the policy's own op.
#[test]
fn ld_dpo_on_the_kernels() {
    if host::host_driver(0).is_none() {
        return;
    }
    let cli = Cli::with_data();
    let c = options(&cli, "kernels", |c| c.loss.ld_alpha = Some(0.3));
    train(&Gpu::<_, f32>::new(host::deferred_driver(3).unwrap()).unwrap(), &c, &mut Silent).unwrap();
    let c = options(&cli, "cpu", |c| c.loss.ld_alpha = Some(0.3));
    train(&cpu(), &c, &mut Silent).unwrap();
    for (a, b) in column(&cli, "kernels", "loss").iter().zip(column(&cli, "cpu", "loss")) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

/// Gradients of the whole model against finite differences in f64, responses of different lengths.
#[test]
fn ld_dpo_gradients() {
    let cli = Cli::with_data();
    let be = Cpu::<f64>::new().unwrap();
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let options = PlanOptions {
        objective: Objective::Preference,
        batch_size: 4,
        token_budget: Some(128),
        seed: 1,
        shuffle: true,
    };
    let plan = Planner::new(&data, &options).unwrap();
    let mut mb: MicroBatch = plan.step(0, 0).unwrap().remove(0);
    assert!(mb.pairs().iter().any(|p| {
        let len = |r: u32| mb.responses()[r as usize].predictions.len();
        len(p.chosen) != len(p.rejected)
    }));
    mb.outline_mut().responses_mut().enumerate().for_each(|(i, r)| r.ref_logp = -20.0 - i as f64);
    mb.outline_mut().pairs_mut().enumerate().for_each(|(i, p)| p.ref_heads = [-15.0 - i as f64, -14.0]);
    let model = Model::load(&be, &ModelDir::open(&cli.path("m")).unwrap(), data.longest_row()).unwrap();
    let mut engine = Engine::new(&be, model, plan.capacity(), Purpose::Train).unwrap();
    let n = engine.state.model.table.len;
    let start = weights(&be, &engine.state.model);
    let way: Vec<f64> = (0..n).map(|i| (i as f64 * 0.7).sin() * if start[i] == 0.0 { 0.0 } else { 1.0 }).collect();
    for (loss_type, alpha) in [(LossType::Sigmoid, 0.0), (LossType::Sigmoid, 0.4), (LossType::Ipo, 0.7)] {
        let mut spec = LossSpec::of(loss_type).beta(0.2);
        spec.ld_alpha = Some(alpha);
        engine.clear_grads().unwrap();
        engine.accumulate(&mb, &spec, 0.5, &mut Totals::default()).unwrap();
        let grads = engine.state.grads.as_ref().unwrap().all().unwrap();
        let by: f64 = grads.iter().zip(&way).map(|(g, d)| g * d).sum();
        let mut at = |h: f64| {
            let moved: Vec<f64> = start.iter().zip(&way).map(|(w, d)| w + h * d).collect();
            be.upload(be.view_mut(&mut engine.state.model.weights, 0..n), &moved).unwrap();
            let mut totals = Totals::default();
            engine.evaluate(&mb, &spec, &mut totals).unwrap();
            0.5 * totals.mean_loss() * totals.weight
        };
        let h = 1e-5;
        let want = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        at(0.0);
        assert!((by - want).abs() <= 1e-7 * want.abs().max(1e-3), "{loss_type:?} {alpha}: {by} {want}");
    }
}
