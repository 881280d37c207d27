//! Memory as the command line tells it and as the kernel measures it: the plan that `dpo` prints before it loads anything
//! against the process's peak resident size; and plans that do not fit.

mod cli_common;
mod model_common;

use cli_common::{Cli, pairs, words};
use fusedpo::backend::cpu::Cpu;
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::model::{Model, ModelConfig, ModelDir, SaveDtype, export};
use fusedpo::observe::Silent;
use fusedpo::train::engine::Purpose;
use fusedpo::train::memory::{Budgets, MemoryPlan};
use fusedpo::train::options::{DataOptions, FileOptions, Stage, TrainOptions};
use fusedpo::train::run;
use serde_json::json;
use std::path::Path;
use std::process::Stdio;

/// MiB that the run said it would come to: what it planned and what was in use when it said so.
fn told(err: &str) -> f64 {
    let line = err.lines().find(|l| l.starts_with("memory: ")).unwrap_or_else(|| panic!("no plan: {err}"));
    let numbers: Vec<f64> = line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    assert_eq!(numbers.len(), 3, "{line}");
    numbers[0] + numbers[1]
}

/// Runs a command; its stderr and its peak resident size in MiB, asked for until the end.
#[cfg(target_os = "linux")]
fn peak(cli: &Cli, args: &str) -> (String, f64) {
    let mut child = cli.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0f64;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let kib = text.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
        peak = peak.max(kib.unwrap_or(0.0) / 1024.0);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let ran = cli_common::finish(child);
    assert_eq!(ran.code, 0, "{args}: {}", ran.err);
    (ran.err, peak)
}

#[cfg(target_os = "linux")]
fn agrees(cli: &Cli, args: &str) -> f64 {
    let (err, peak) = peak(cli, args);
    let told = told(&err);
    println!("told {told:.0} MiB, measured {peak:.0} MiB");
    assert!((told / peak - 1.0).abs() <= 0.1, "told {told:.0} MiB, measured {peak:.0} MiB\n{err}");
    peak
}

/// A model of 26 million parameters: its four copies are hundreds of times the program itself.
fn write_model(cli: &Cli, name: &str) {
    cli.model(name, "llama");
    cli.edit_json(&format!("{name}/config.json"), |c| {
        for (key, value) in [
            ("hidden_size", 512),
            ("intermediate_size", 1536),
            ("num_hidden_layers", 6),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 8),
            ("head_dim", 64),
            ("vocab_size", 4096),
            ("max_position_embeddings", 512),
        ] {
            c[key] = json!(value);
        }
    });
    let be = Cpu::<f32>::new().unwrap();
    let config = ModelConfig::load(&cli.path(name)).unwrap();
    std::fs::remove_file(cli.path(name).join("model.safetensors")).unwrap();
    let model = Model::random(&be, config, 7, 64).unwrap();
    export(&be, &model, None, None, &cli.path("made"), SaveDtype::F32).unwrap();
    std::fs::rename(cli.path("made/model.safetensors"), cli.path(name).join("model.safetensors")).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn the_plan_is_what_the_run_occupies() {
    let cli = Cli::new();
    write_model(&cli, "large");
    let row = |i: usize| json!({"prompt": words(i, 60), "chosen": words(i + 40, 40), "rejected": words(i + 80, 50)});
    cli.write_rows("rows.jsonl", &(0..16).map(row).collect::<Vec<_>>());
    cli.ok("pack --tokenizer large --input rows.jsonl --out d --eval-fraction 0.25 --chat-template none");
    let common = "--model large --data d --device cpu --token-budget 512 --batch-size 4 --learning-rate 1e-5";
    agrees(&cli, &format!("dpo {common} --out a"));
    agrees(&cli, &format!("dpo {common} --out b --optim rmsprop --max-steps 2"));
}

/// The job of docs/results: 135 million parameters, 1024 slots.
#[cfg(target_os = "linux")]
#[test]
fn smollm2_stays_under_its_plan() {
    let (Some(model), Some(data)) =
        (std::env::var_os("FUSEDPO_TEST_MODEL"), model_common::test_data("memory", "goldens"))
    else {
        return println!("skipped: memory of SmolLM2 (FUSEDPO_TEST_MODEL is not set)");
    };
    let cli = Cli::new();
    let rows = std::fs::read_to_string(data.join("hh64.jsonl")).unwrap();
    cli.write("rows.jsonl", rows.lines().take(32).map(|l| format!("{l}\n")).collect::<String>());
    let model = Path::new(&model).display();
    cli.ok(&format!("pack --tokenizer {model} --input rows.jsonl --out d --max-length 512 --chat-template none"));
    let peak = agrees(
        &cli,
        &format!("dpo --model {model} --data d --out o --device cpu --token-budget 1024 --batch-size 4 --max-steps 3"),
    );
    assert!(peak * 1.048_576 < 3500.0, "{peak} MiB");
}

fn dpo(cli: &Cli, token_budget: usize) -> TrainOptions {
    let options = TrainOptions {
        files: FileOptions { model: cli.path("m"), data: cli.path("d"), out: cli.path("o") },
        data: DataOptions { token_budget: Some(token_budget), ..Default::default() },
        ..Default::default()
    };
    options.resolve(Stage::Dpo).unwrap()
}

/// Plans of that run by token budget, and the least budget that its data allow.
fn plans(cli: &Cli, be: &Cpu<f32>, c: &TrainOptions) -> (impl Fn(usize) -> usize + use<>, usize) {
    let config = ModelConfig::load(&c.files.model).unwrap();
    let splits = [Split::Train, Split::Eval].map(|s| Dataset::open(&cli.path("d"), s).unwrap());
    let options = |shuffle| PlanOptions {
        objective: Objective::Preference,
        batch_size: c.data.batch_size,
        token_budget: c.data.token_budget,
        seed: 0,
        shuffle,
    };
    let planners =
        [Planner::new(&splits[0], &options(true)).unwrap(), Planner::new(&splits[1], &options(false)).unwrap()];
    let positions = splits.iter().map(Dataset::longest_row).max().unwrap();
    let least = planners.iter().map(Planner::least_budget).max().unwrap();
    let capacity = |slots| planners[0].capacity_at(slots).or_larger(planners[1].capacity_at(slots));
    let table: std::collections::BTreeMap<usize, usize> = (least..=c.data.token_budget.unwrap())
        .map(|slots| {
            (
                slots,
                MemoryPlan::training(be, &config, positions, capacity(slots), (Purpose::Train, &c.optim))
                    .unwrap()
                    .needed(),
            )
        })
        .collect();
    (move |slots| table[&slots], least)
}

#[test]
fn a_run_that_does_not_fit_says_what_would() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &pairs(60));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d --eval-fraction 0.25");
    let be = || Cpu::<f32>::new().unwrap();
    let c = dpo(&cli, 1000);
    let (needed, least) = plans(&cli, &be(), &c);
    let run = |free: usize| run::train(&be().with_free(free), &c, &mut Silent).map(drop);
    let before = cli.tree();
    for free in [needed(1000) - 1, needed(700), needed(128), needed(least)] {
        let error = run(free).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        assert!(!text.contains('\n') && text.starts_with("out of memory: this needs "), "{text}");
        let best: usize = text.split("`token_budget` ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(text.contains("would fit") && !text.contains("not even"), "{text}");
        assert!(needed(best) <= free && best >= least, "{text}: {} of {free}", needed(best));
        // The next one that would be suggested does not fit, or is what was asked for.
        let next = (best / 64 + 1) * 64;
        assert!(next >= 1000 || needed(next) > free, "{text}: {next} fits too");
        assert_eq!(cli.tree(), before, "nothing was written");
    }
    let text = run(needed(least) - 1).unwrap_err().to_string();
    assert!(
        text.contains(&format!("not even `token_budget` {least}, the least that these data allow, would fit")),
        "{text}"
    );
    assert_eq!(cli.tree(), before);
    run(needed(1000)).unwrap();
    assert!(cli.path("o/model.safetensors").is_file());
}

/// A reference that is larger than the policy is refused by its own plan.
#[test]
fn a_reference_that_does_not_fit() {
    let cli = Cli::with_data();
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let options =
        PlanOptions { objective: Objective::Score, batch_size: 64, token_budget: Some(256), seed: 0, shuffle: false };
    let planner = Planner::new(&data, &options).unwrap();
    let (config, be) = (ModelConfig::load(&cli.path("m")).unwrap(), Cpu::<f32>::new().unwrap());
    let plan = |capacity| MemoryPlan::scoring(&be, &config, 64, capacity);
    let plan = Budgets::of([&planner]).fitting(&be, plan).unwrap();
    let small = Cpu::<f32>::new().unwrap().with_free(plan.needed() / 2);
    let model = ModelDir::open(&cli.path("m")).unwrap();
    let ensure = |be| fusedpo::train::reference::ensure(be, &model, &[(&data, 256)], None, &mut Silent);
    let error = ensure(&small).err().unwrap();
    assert!(error.to_string().starts_with("out of memory: this needs"), "{error}");
    // With enough, the same command goes on.
    let enough = Cpu::<f32>::new().unwrap().with_free(plan.needed());
    let [(_, report)] = ensure(&enough).unwrap()[..] else { panic!("one part, one answer") };
    assert_eq!(report.computed, data.num_responses());
}
