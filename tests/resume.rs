//! Runs that are stopped and gone on with: the same bytes as of one that nobody disturbed, on every backend; and whatever does not
//! belong together is refused in one line. `tests/kill.rs` kills them.

mod cli_common;
#[path = "common/host.rs"]
mod host;

use cli_common::*;
use fusedpo::backend::Backend;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::backend::gpu::Gpu;
use fusedpo::observe::{Event, Flow, Observe, Silent};
use fusedpo::train::choices::{GradientChoice, GraphsChoice, Resume};
use fusedpo::train::optim::OptimizerChoice;
use fusedpo::train::options::{
    DataOptions, EvalOptions, FileOptions, ReferenceOptions, SaveOptions, Stage, TrainOptions,
};
use fusedpo::train::run::train;
use fusedpo::train::schedule::{ScheduleOptions, SchedulerType};
use fusedpo::{Error, Result};
use half::bf16;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[track_caller]
fn equal(cli: &Cli, one: &str, two: &str) {
    assert_eq!(rows(cli, one), rows(cli, two), "{one} {two}");
    let [a, b] = [one, two].map(|out| cli.bytes(&format!("{out}/model.safetensors")));
    assert!(a == b, "{one} {two}: other weights");
}

/// Pauses a run when it has seen the numbers of an evaluation.
struct AtEvaluation(u64);

impl Observe for AtEvaluation {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        let pauses = matches!(event, Event::Evaluation { step, .. } if *step == self.0);
        Ok(if pauses { Flow::Pause } else { Flow::On })
    }
}

/// Ends a run as a crash would, or in order, when it has seen a step.
struct At(u64, Option<Flow>);

impl Observe for At {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        match event {
            Event::Step { step, .. } if *step == self.0 => {
                self.1.map_or_else(|| Err(Error::Training("crash".into())), Ok)
            }
            _ => Ok(Flow::On),
        }
    }
}

fn options(cli: &Cli, stage: Stage, out: &str) -> TrainOptions {
    let o = TrainOptions {
        files: FileOptions { model: cli.path("m"), data: cli.path("d"), out: cli.path(out) },
        reference: ReferenceOptions {
            cache: (stage == Stage::Dpo).then(|| cli.path(&format!("cache-{out}"))),
            ..Default::default()
        },
        schedule: ScheduleOptions { learning_rate: 1e-3, ..Default::default() },
        data: DataOptions { batch_size: 3, max_steps: Some(6), token_budget: Some(64), ..Default::default() },
        eval: EvalOptions { eval_steps: 3, ..Default::default() },
        save: SaveOptions { save_steps: Some(2), ..Default::default() },
        ..Default::default()
    };
    o.resolve(stage).unwrap()
}

/// In peace; crashed after its fifth step and gone on with; paused after its fifth step and gone on with.
fn on<B: Backend>(be: &dyn Fn() -> B, cli: &Cli, name: &str, stages: &[Stage], change: impl Fn(&mut TrainOptions)) {
    let pauses = stages == BOTH;
    for &stage in stages {
        let named = |what: &str| format!("{name}-{stage}-{what}");
        let run = |out: &str, resume: bool, observe: &mut dyn Observe| {
            let mut c = options(cli, stage, out);
            change(&mut c);
            c.resume.resume = resume.then_some(Resume::Auto);
            train(&be(), &c, observe)
        };
        run(&named("peace"), false, &mut Silent).unwrap();
        assert_eq!(cli.names(&named("peace"), "checkpoint-"), ["checkpoint-4", "checkpoint-6"]);
        let crashed = run(&named("crash"), false, &mut At(5, None)).unwrap_err();
        assert_eq!(crashed.to_string(), "crash");
        assert_eq!(cli.names(&named("crash"), "checkpoint-"), ["checkpoint-2", "checkpoint-4"]);
        assert!(!cli.path(&named("crash/model.safetensors")).exists());
        run(&named("crash"), true, &mut Silent).unwrap();
        equal(cli, &named("peace"), &named("crash"));
        if !pauses {
            continue;
        }
        run(&named("pause"), false, &mut At(5, Some(Flow::Pause))).unwrap();
        let paused = cli.names(&named("pause"), "checkpoint-");
        // Where steps overlap, the next was under way when the numbers of the fifth came.
        assert!(paused == ["checkpoint-4", "checkpoint-5"] || paused == ["checkpoint-4", "checkpoint-6"], "{paused:?}");
        run(&named("pause"), true, &mut Silent).unwrap();
        equal(cli, &named("peace"), &named("pause"));
        // A stop that comes when an evaluation is through: it is made again, and has one row. After the last step, too.
        for step in [3, 6] {
            let out = named(&format!("evaluated-{step}"));
            run(&out, false, &mut AtEvaluation(step)).unwrap();
            assert!(cli.names(&out, "checkpoint-").contains(&format!("checkpoint-{step}")));
            run(&out, true, &mut Silent).unwrap();
            equal(cli, &named("peace"), &out);
        }
    }
}

#[test]
fn the_same_bytes_on_the_cpu() {
    let cli = Cli::with_data();
    on(&|| Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &cli, "f32", &BOTH, |_| {});
    on(&|| Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &cli, "less", &BOTH, |c| {
        c.compute.gradient_checkpointing = true;
        c.optim.optim = OptimizerChoice::Rmsprop;
    });
    // Queries alone of a packed weight, one bias of three, nothing below the second layer's attention.
    let some =
        |c: &mut TrainOptions| c.train.train = Some(r"layers\.1\.self_attn\.q_proj|layers.1.mlp.(up|down)".into());
    on(&|| Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &cli, "some", &BOTH, some);
    match Cpu::<f32>::with(GemmPrecision::Bf16) {
        Ok(_) => {
            let be = || Cpu::<f32>::with(GemmPrecision::Bf16).unwrap();
            on(&be, &cli, "bf16", &BOTH, |_| {});
            on(&be, &cli, "bf16-states", &[Stage::Dpo], |c| c.optim.optim = OptimizerChoice::AdamwBf16);
            on(&be, &cli, "8bit-states", &[Stage::Sft], |c| {
                (c.optim.optim, c.optim.gradient_dtype) = (OptimizerChoice::Adamw8bit, GradientChoice::Bf16);
            });
        }
        Err(e) => println!("skipped: bf16 on this CPU ({e})"),
    }
}

/// The best evaluation and the patience are part of what a run goes on from: a rate at which the held-out loss turns, so that the
/// model is that of a checkpoint, saved by the call that was ended or by the one before it.
#[test]
fn the_best_evaluation_and_patience_survive() {
    let cli = Cli::with_data();
    let run = |out: &str, patience: Option<u64>, resume: bool, observe: &mut dyn Observe| {
        let mut c = options(&cli, Stage::Dpo, out);
        (c.schedule.learning_rate, c.schedule.lr_scheduler_type) = (0.02, SchedulerType::Constant);
        (c.data.max_steps, c.save.save_steps, c.save.save_total_limit) = (Some(14), Some(5), 1);
        (c.eval.eval_steps, c.eval.load_best_model_at_end, c.eval.early_stopping_patience) = (2, true, patience);
        (c.eval.kl_samples, c.eval.sample_prompts, c.eval.sample_max_new_tokens) = (2, 2, Some(4));
        c.eval.kl_max_new_tokens = Some(3);
        let mut c = c.resolve(Stage::Dpo).unwrap();
        c.resume.resume = resume.then_some(Resume::Auto);
        train(&Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &c, observe)
    };
    let best = |out: &str| {
        let run: Value = serde_json::from_str(&cli.text(&format!("{out}/run.json"))).unwrap();
        (run["best"].clone(), run["stopped_early"].clone())
    };
    let checkpoints = |out: &str| (cli.names(out, "checkpoint-"), cli.text(&format!("{out}/samples.jsonl")));
    for patience in [None, Some(2)] {
        let named = |what: &str| format!("{what}-{}", patience.unwrap_or(0));
        run(&named("peace"), patience, false, &mut Silent).unwrap();
        let of_best = best(&named("peace")).0["step"].as_u64().unwrap();
        let metrics = cli.json_lines(&format!("{}/metrics.jsonl", named("peace")));
        let last = metrics.last().unwrap()["step"].as_u64().unwrap();
        assert!(0 < of_best && of_best < last, "{of_best} {last}");
        // Before the first checkpoint, about the best evaluation, and at the end.
        for at in BTreeSet::from([1, of_best, of_best + 1, last - 1]) {
            let out = named(&format!("crash-{at}"));
            run(&out, patience, false, &mut At(at, None)).unwrap_err();
            run(&out, patience, true, &mut Silent).unwrap();
            equal(&cli, &named("peace"), &out);
            assert_eq!((best(&out), checkpoints(&out)), (best(&named("peace")), checkpoints(&named("peace"))), "{out}");
            let out = named(&format!("pause-{at}"));
            run(&out, patience, false, &mut At(at, Some(Flow::Pause))).unwrap();
            run(&out, patience, true, &mut Silent).unwrap();
            equal(&cli, &named("peace"), &out);
            assert_eq!(best(&out), best(&named("peace")), "{out}");
        }
        for at in [of_best, last] {
            let out = named(&format!("evaluated-{at}"));
            run(&out, patience, false, &mut AtEvaluation(at)).unwrap();
            run(&out, patience, true, &mut Silent).unwrap();
            equal(&cli, &named("peace"), &out);
            assert_eq!(best(&out), best(&named("peace")), "{out}");
            assert_eq!(checkpoints(&out).1, checkpoints(&named("peace")).1, "{out}");
        }
    }
}

#[test]
fn the_same_bytes_on_the_kernels() {
    if host::host_driver(0).is_none() {
        return;
    }
    let cli = Cli::with_data();
    let driver = || host::deferred_driver(3).unwrap();
    on(&|| Gpu::<_, bf16>::new(driver()).unwrap(), &cli, "bf16", &BOTH, |_| {});
    // Other numerics may be allowed, but a state has the same sections all the same.
    let mut c = options(&cli, Stage::Sft, "elsewhere");
    c.resume.resume = Some(Resume::Path(cli.path("bf16-sft-peace/checkpoint-4")));
    c.resume.allow_other_numerics = true;
    let e = train(&Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &c, &mut Silent).unwrap_err().to_string();
    assert!(e.contains("holds weights in bf16, master in f32, ") && e.contains("and this run weights in f32, "), "{e}");
    on(&|| Gpu::<_, f32>::new(driver()).unwrap(), &cli, "f32", &[Stage::Dpo], |_| {});
    on(&|| Gpu::<_, bf16>::new(driver()).unwrap(), &cli, "8bit-states", &[Stage::Dpo], |c| {
        (c.optim.optim, c.optim.gradient_dtype) = (OptimizerChoice::Adamw8bit, GradientChoice::Bf16);
    });
    on(&|| Gpu::<_, bf16>::new(driver()).unwrap(), &cli, "graphs", &[Stage::Sft], |c| {
        c.compute.cuda_graphs = GraphsChoice::On
    });
}

const BOTH: [Stage; 2] = [Stage::Sft, Stage::Dpo];

const BASE: &str =
    "--model m --data d --device cpu --learning-rate 1e-3 --batch-size 3 --max-steps 8 --eval-steps 3 --dtype f32";

/// Everything in a folder, by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            all.extend(files(&entry.path()).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            all.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    all
}

/// Refused in one line with these words in it; nothing in the run's folder is touched.
#[track_caller]
fn refused(cli: &Cli, args: &str, want: &[&str]) {
    let before = files(&cli.path("r"));
    let ran = cli.run(args);
    let last = ran.err.lines().last().unwrap_or_default();
    assert_eq!(ran.code, 2, "{args}: {ran:?}");
    assert!(want.iter().all(|w| last.contains(w)), "{args}: {want:?}: {last}");
    assert_eq!(ran.err.matches("fusedpo: ").count(), 1, "{args}: {ran:?}");
    assert!(files(&cli.path("r")) == before, "{args}: something was changed");
}

/// A run `r` that was stopped after its fourth step: a checkpoint there, and one before it.
fn stopped(cli: &Cli, stage: Stage, change: impl Fn(&mut TrainOptions)) {
    let o: toml::Table = "model = 'm'\ndata = 'd'\nout = 'r'".parse().unwrap();
    let mut c = TrainOptions::from_table(stage, &o).unwrap();
    (c.files.model, c.files.data, c.files.out) = (cli.path("m"), cli.path("d"), cli.path("r"));
    (c.schedule.learning_rate, c.data.batch_size, c.data.max_steps) = (1e-3, 3, Some(8));
    (c.eval.eval_steps, c.save.save_steps) = (3, Some(2));
    change(&mut c);
    let be = Cpu::<f32>::with(GemmPrecision::Native).unwrap();
    train(&be, &c.resolve(stage).unwrap(), &mut At(4, Some(Flow::Pause))).unwrap();
    assert_eq!(cli.names("r", "checkpoint-"), ["checkpoint-2", "checkpoint-4"]);
}

#[test]
fn another_run_does_not_go_on_from_here() {
    let cli = Cli::with_data();
    stopped(&cli, Stage::Dpo, |_| {});
    cli.model("other", "qwen3");
    cli.write_rows("others.jsonl", &pairs(25));
    cli.ok("pack --tokenizer m --input others.jsonl --out d2 --eval-fraction 0.25");
    cli.write_rows("eval.jsonl", &pairs(24));
    let go_on = |args: &str| format!("dpo {BASE} --out r --resume auto {args}");
    let at = "fusedpo: r/checkpoint-4: ";
    for (args, want) in [
        ("--learning-rate 2e-3", "--learning-rate was 0.001, and is 0.002 now: give 0.001, or name a new --out"),
        ("--beta 0.2", "--beta was 0.1, and is 0.2 now"),
        ("--loss-type ipo", "--loss-type was sigmoid, and is ipo now"),
        ("--seed 7", "--seed was 42, and is 7 now"),
        ("--batch-size 4", "--batch-size was 3, and is 4 now"),
        ("--token-budget 64", "--token-budget was 2048, and is 64 now: give 2048"),
        ("--optim rmsprop", "--optim was adamw, and is rmsprop now"),
        ("--optim adamw_8bit --dtype bf16", "--optim was adamw, and is adamw_8bit now: give adamw"),
        ("--gradient-dtype bf16 --dtype bf16", "--gradient-dtype was not given, and is bf16 now: leave it out"),
        ("--weight-decay 0.1", "--weight-decay was 0.0, and is 0.1 now"),
        ("--lr-scheduler-type cosine", "--lr-scheduler-type was linear, and is cosine now"),
        ("--warmup-steps 2", "its warm-up had 0 steps, now 2"),
        (
            "--max-steps 9",
            "the run had 8 steps, now 9, and the rates of its linear schedule depend on that: give --max-steps 8",
        ),
        ("--ref-model other", "was trained with another reference"),
        ("--data d2", "was made on another content of the training shards"),
    ] {
        // The last of two wins in the base's favour otherwise.
        let mut base: Vec<&str> = BASE.split(' ').collect();
        for name in args.split(' ').filter(|word| word.starts_with("--")) {
            if let Some(i) = base.iter().position(|w| *w == name) {
                base.drain(i..i + 2);
            }
        }
        let args = format!("dpo {} --out r --resume auto {args}", base.join(" "));
        refused(&cli, &args, &[at, want]);
    }
    refused(
        &cli,
        &format!("sft {BASE} --out r --resume auto"),
        &[at, "is of a run of dpo, this is sft: name a new --out"],
    );
    // Another model under the same name; its tokenizer is the same.
    std::fs::rename(cli.path("m"), cli.path("first")).unwrap();
    cli.model("m", "qwen3");
    refused(&cli, &go_on(""), &[at, "was trained from another model", "give the --model that the run started from"]);
    std::fs::remove_dir_all(cli.path("m")).unwrap();
    std::fs::rename(cli.path("first"), cli.path("m")).unwrap();
    refused(&cli, &format!("dpo {BASE} --out r --resume r/checkpoint-3"), &["r/checkpoint-3: is not there"]);
    refused(&cli, &format!("dpo {BASE} --out r --resume m"), &["m: is no checkpoint: it has no trainer_state.json"]);
    refused(&cli, &format!("dpo {BASE} --out r"), &["fusedpo: r: the output folder exists and is not empty"]);
    refused(
        &cli,
        &format!("dpo {BASE} --out r --allow-other-numerics"),
        &["--allow-other-numerics: ", "give --resume too"],
    );
    // What may change without asking: threads, paths, intervals, how it is saved.
    std::fs::rename(cli.path("d"), cli.path("moved")).unwrap();
    let args = BASE.replace("--data d", "--data moved").replace("--eval-steps 3", "--eval-steps 4");
    let ran = cli
        .command(&format!("dpo {args} --out r --resume auto --save-steps 3 --gradient-checkpointing --save-dtype f32"));
    let ran = { ran }.env("RAYON_NUM_THREADS", "1").output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    cli.ok(&format!("dpo {args} --out peace --save-dtype f32 --save-steps 0"));
    let [a, b] = ["r", "peace"].map(|out| cli.bytes(&format!("{out}/model.safetensors")));
    assert!(a == b);
    assert_eq!(cli.json_lines("r/metrics.jsonl").iter().filter(|r| r.get("loss").is_some()).count(), 8);
}

#[test]
fn other_numerics_only_where_that_is_allowed() {
    let cli = Cli::with_data();
    if cli.ok("doctor").out.contains("--dtype bf16: not here") {
        return println!("skipped: bf16 on this machine");
    }
    stopped(&cli, Stage::Dpo, |_| {});
    let args = format!("dpo {} --out r --resume auto", BASE.replace("--dtype f32", "--dtype bf16"));
    let want =
        ["was computed another way (`cpu-f32-", "now `cpu-f32-bf16-", "go on all the same with --allow-other-numerics"];
    refused(&cli, &args, &want);
    cli.ok(&format!("{args} --allow-other-numerics --save-steps 3"));
    let run: Value = serde_json::from_str(&cli.text("r/run.json")).unwrap();
    assert_eq!(run["resumptions"][0]["other_numerics"], true, "{run}");
    assert_eq!(run["dtype"], "bf16");
    let state: Value = serde_json::from_str(&cli.text("r/checkpoint-6/trainer_state.json")).unwrap();
    let before = state["saved"]["identity"]["numerics_before"].as_array().unwrap();
    assert!(before.len() == 1 && before[0].as_str().unwrap().starts_with("cpu-f32-"), "{before:?}");
}

#[test]
fn damaged_mixed_foreign_and_newer_checkpoints() {
    let cli = Cli::with_data();
    stopped(&cli, Stage::Sft, |_| {});
    let args = format!("sft {BASE} --out r --resume auto");
    let instead = "remove r/checkpoint-4, and --resume auto goes on from the checkpoint before it, or begins";
    let damage = |name: &str, change: &dyn Fn(&mut Vec<u8>), want: &str| {
        let good = cli.bytes(name);
        let mut bad = good.clone();
        change(&mut bad);
        cli.write(name, &bad);
        refused(&cli, &args, &[name, want]);
        cli.write(name, good);
    };
    for name in ["r/checkpoint-4/model.safetensors", "r/checkpoint-4/optimizer.safetensors"] {
        let len = cli.bytes(name).len();
        for cut in [0, 1, 7, 8, len / 2, len - 1] {
            damage(name, &|b| b.truncate(cut), &format!("is {cut} bytes long, not {len}: {instead}"));
        }
        damage(name, &|b| b.push(0), "bytes long, not");
        for at in [0, 9, 200] {
            damage(name, &|b| b[at] ^= 1, "has tensors of another checkpoint, or is damaged");
        }
        for at in [len - 1, len / 2 + 5000] {
            damage(name, &|b| b[at] ^= 0x10, "is not what was saved with it (CRC-32)");
        }
        // The same file of the checkpoint before.
        let other = cli.bytes(&name.replace('4', "2"));
        damage(name, &|b| b.clone_from(&other), "has tensors of another checkpoint");
        let good = cli.bytes(name);
        std::fs::remove_file(cli.path(name)).unwrap();
        refused(&cli, &args, &[name, "is missing", instead]);
        cli.write(name, good);
    }
    let state = "r/checkpoint-4/trainer_state.json";
    let text = cli.text(state);
    let edit = |from: &str, to: &str, want: &str| {
        assert!(text.contains(from), "{from}");
        damage(state, &|b| *b = text.replacen(from, to, 1).into_bytes(), want);
    };
    edit(
        "\"version\": 1",
        "\"version\": 2",
        "is of a checkpoint of version 2, this program reads 1: go on with the program that wrote it (0.1.0)",
    );
    edit("\"version\": 1", "\"version\": 0", "is damaged (it has no version that ever was)");
    edit("fusedpo checkpoint", "another", "is not of a checkpoint of fusedpo");
    edit("\"updates\": 4", "\"updates\": 5", "is damaged (its sum is not that of its content)");
    // By somebody who repairs its sum.
    let forged = |change: &dyn Fn(&mut Value), want: &str| {
        let mut whole: Value = serde_json::from_str(&text).unwrap();
        change(&mut whole["saved"]);
        let saved = serde_json::from_value(whole["saved"].take()).unwrap();
        let bad = fusedpo::train::checkpoint::Manifest::new(saved).to_text();
        damage(state, &|b| *b = bad.clone().into_bytes(), want);
    };
    forged(&|saved| saved["clock"]["step"] = 3.into(), "is damaged (its clock stands at another step)");
    let weights = "r/checkpoint-4/model.safetensors";
    let good = cli.bytes(weights);
    let begin = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut bad = good.clone();
    bad[begin..begin + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    cli.write(weights, &bad);
    let sum = crc32fast::hash(&bad[begin..]);
    let mut saved: Value = serde_json::from_str::<Value>(&text).unwrap()["saved"].take();
    saved["sections"][0]["crc32"] = sum.into();
    let bad = fusedpo::train::checkpoint::Manifest::new(serde_json::from_value(saved).unwrap()).to_text();
    cli.write(state, bad);
    refused(&cli, &args, &[weights, "weights in it are not finite", instead]);
    cli.write(weights, good);
    cli.write(state, &text);
    edit("\"updates\": 4", "\"update\": 4", "is damaged (unknown field `update`");
    damage(state, &|b| b.truncate(b.len() / 2), "is damaged (EOF");
    damage(state, &|b| b.clear(), "is damaged (EOF");
    damage(state, &|b| *b = b"{\"global_step\": 4}".to_vec(), "is not of a checkpoint of fusedpo");
    let before = cli.bytes("r/checkpoint-2/trainer_state.json");
    cli.write(state, before);
    refused(&cli, &args, &["r/checkpoint-4/model.safetensors: has tensors of another checkpoint"]);
    cli.write(state, &text);
    // The metrics of another run.
    let name = "r/metrics.jsonl";
    let good = cli.bytes(name);
    for bad in [&good[..good.len() / 2], &b"x".repeat(good.len())[..], b""] {
        // Written in place: replaced, it would be another file, and nobody's lock.
        cli.write(name, bad);
        refused(&cli, &args, &["metrics.jsonl: does not begin as it did when r/checkpoint-4 was saved"]);
    }
    std::fs::remove_file(cli.path(name)).unwrap();
    cli.write(name, good);
    cli.ok(&args);
    cli.ok(&format!("sft {BASE} --out peace"));
    equal(&cli, "peace", "r");
}

/// Every byte of the state's file: refused, or, where it stands between values, the same.
#[test]
fn every_flipped_byte_of_the_state_is_seen() {
    let cli = Cli::with_data();
    stopped(&cli, Stage::Sft, |_| {});
    let dir = cli.path("r/checkpoint-4");
    let good = cli.bytes("r/checkpoint-4/trainer_state.json");
    let want = fusedpo::train::checkpoint::Manifest::read(&dir).unwrap();
    for at in 0..good.len() {
        for flip in [1u8, 0x20, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            cli.write("r/checkpoint-4/trainer_state.json", &bad);
            match fusedpo::train::checkpoint::Manifest::read(&dir) {
                Ok(read) => assert!(read == want, "byte {at} ^ {flip}"),
                Err(e) => assert!(!e.to_string().contains('\n'), "{e}"),
            }
        }
    }
}

#[test]
fn longer_where_the_rates_allow_it_and_done_when_done() {
    let cli = Cli::with_data();
    let base = format!("sft {BASE} --lr-scheduler-type constant --save-steps 4");
    cli.ok(&format!("{base} --out r"));
    cli.model("m2", "qwen3");
    cli.write_rows("others.jsonl", &pairs(25));
    cli.ok("pack --tokenizer m --input others.jsonl --out d2 --eval-fraction 0.25");
    let whole = files(&cli.path("r"));
    let ran = cli.ok(&format!("{base} --out r --resume auto"));
    assert_eq!(ran.out, "r: the run is finished, after 8 steps; nothing is left to do\n");
    let fewer = cli.ok(&format!("{} --out r --resume auto", base.replace("--max-steps 8", "--max-steps 5")));
    assert!(fewer.out.contains("the run is finished, after 8 steps"), "{fewer:?}");
    assert!(files(&cli.path("r")) == whole, "a finished run is left as it is");
    // It is not, where another run is asked for.
    for (args, want) in [
        (base.replace("1e-3", "2e-3"), "r/checkpoint-8: --learning-rate was 0.001, and is 0.002 now"),
        (base.replace("--data d", "--data d2"), "r/checkpoint-8: was made on another content of the training shards"),
        (base.replace("--model m", "--model m2"), "r/checkpoint-8: was trained from another model"),
        (format!("{base} --warmup-steps 2"), "r/checkpoint-8: its warm-up had 0 steps, now 2"),
        (format!("{base} --token-budget 64"), "r/checkpoint-8: --token-budget was 2048, and is 64 now"),
    ] {
        refused(&cli, &format!("{args} --out r --resume auto"), &[want]);
    }
    // Under other names it is the same; gone, its data do not matter any more.
    std::fs::rename(cli.path("d"), cli.path("d3")).unwrap();
    std::fs::rename(cli.path("m"), cli.path("m3")).unwrap();
    for args in [base.replace("--data d", "--data d3").replace("--model m", "--model m3"), base.clone()] {
        let ran = cli.ok(&format!("{args} --out r --resume auto"));
        assert!(ran.out.contains("the run is finished, after 8 steps"), "{ran:?}");
    }
    std::fs::rename(cli.path("d3"), cli.path("d")).unwrap();
    std::fs::rename(cli.path("m3"), cli.path("m")).unwrap();
    assert!(files(&cli.path("r")) == whole);
    let longer = base.replace("--max-steps 8", "--max-steps 12");
    cli.ok(&format!("{longer} --out r --resume auto"));
    cli.ok(&format!("{longer} --out peace"));
    // The eighth step is the last of the one and in the middle of the other, which is evaluated at every third.
    let [a, b] = ["r", "peace"].map(|out| cli.bytes(&format!("{out}/model.safetensors")));
    assert!(a == b);
    assert_eq!(rows(&cli, "r"), rows(&cli, "peace"));
    let written: toml::Table = cli.text("r/config.toml").parse().unwrap();
    assert_eq!(written["max_steps"].as_integer(), Some(12));
    let run: Value = serde_json::from_str(&cli.text("r/run.json")).unwrap();
    assert_eq!(
        (&run["resumptions"][0]["before"], &run["resumptions"][0]["from_step"]),
        (&"finished".into(), &8.into())
    );
    refused(
        &cli,
        &format!("{base} --out r --resume r/checkpoint-12").replace("--max-steps 8", "--max-steps 9"),
        &["has taken 12 steps, 9 are asked for: give a larger --max-steps"],
    );
    // Back to an older one: what came after it goes.
    cli.ok(&format!("{longer} --out r --resume r/checkpoint-8"));
    equal(&cli, "peace", "r");
    // Into a new folder.
    cli.ok(&format!("{longer} --out branch --resume r/checkpoint-8"));
    let [a, b] = ["branch", "peace"].map(|out| cli.bytes(&format!("{out}/model.safetensors")));
    assert!(a == b);
    assert_eq!(rows(&cli, "branch")[..], rows(&cli, "peace")[rows(&cli, "peace").len() - rows(&cli, "branch").len()..]);
    // Under another step's name it would be taken for what it is not, and taken away.
    std::fs::rename(cli.path("branch/checkpoint-12"), cli.path("branch/checkpoint-13")).unwrap();
    let ran = cli.run(&format!("{longer} --out branch --resume auto").replace("--max-steps 12", "--max-steps 14"));
    one_line("name", &ran, 2, "branch/checkpoint-13: is the checkpoint of step 12: name it checkpoint-12 again");
    std::fs::rename(cli.path("branch/checkpoint-13"), cli.path("branch/checkpoint-12")).unwrap();
    // A record that somebody took away: it goes on, and a new one says so.
    std::fs::remove_file(cli.path("branch/run.json")).unwrap();
    cli.ok(&format!("{longer} --out branch --resume auto").replace("--max-steps 12", "--max-steps 13"));
    let run: Value = serde_json::from_str(&cli.text("branch/run.json")).unwrap();
    assert_eq!((&run["resumptions"][0]["from_step"], &run["steps_done"]), (&12.into(), &13.into()), "{run}");
    // Finished, and without a checkpoint.
    cli.ok(&format!("{} --out short --save-steps 0", base.replace("--save-steps 4", "")));
    let args = format!("{longer} --out short --resume auto");
    one_line(
        "short",
        &cli.run(&args),
        2,
        "short: its run is finished and has no checkpoint to go on from; name a new --out",
    );
    // A checkpoint is a model, too.
    cli.ok("eval --model r/checkpoint-8 --data d --json");
    cli.ok("generate --model r/checkpoint-12 --prompt w5 --max-new-tokens 2");
}

#[test]
fn auto_begins_where_there_is_no_checkpoint() {
    let cli = Cli::with_data();
    let args = format!("dpo {BASE} --save-steps 0 --resume auto");
    cli.ok(&format!("{args} --out new"));
    std::fs::create_dir(cli.path("empty")).unwrap();
    cli.ok(&format!("{args} --out empty"));
    equal(&cli, "new", "empty");
    // As one that was killed in its first steps leaves it.
    std::fs::create_dir(cli.path("r")).unwrap();
    cli.write("r/metrics.jsonl", "{\"step\":1,\"lo");
    std::fs::create_dir(cli.path("r/.checkpoint-2.77-0.tmp")).unwrap();
    cli.write("r/.tmp-x.part", "half");
    let ran = cli.ok(&format!("{args} --out r"));
    assert!(ran.err.contains("r: no checkpoint to go on from; the run begins again"), "{ran:?}");
    equal(&cli, "new", "r");
    assert_eq!(cli.names("r", "tmp"), Vec::<String>::new());
    // Nobody's run.
    std::fs::create_dir(cli.path("mine")).unwrap();
    cli.write("mine/thesis.tex", "x");
    cli.bad(
        &format!("{args} --out mine"),
        2,
        "mine: the output folder exists and is not empty; name a new one or remove it",
    );
}
