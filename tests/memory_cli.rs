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
use fusedpo::train::reference::Keep;
use fusedpo::train::run;
use serde_json::{Value, json};
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
    agrees(&cli, &format!("dpo {common} --out c --lora-r 16"));
    agrees(&cli, &format!("dpo {common} --out b --optim rmsprop --max-steps 2"));
    // What evaluations sample with is no more than it was said to be: the reference's weights beside the policy's, or the policy's
    // on the host meanwhile.
    write_model(&cli, "other");
    let samples = format!("{common} --kl-samples 4 --sample-prompts 3 --max-steps 2");
    agrees(&cli, &format!("dpo {samples} --out d1"));
    agrees(&cli, &format!("dpo {samples} --out d2 --ref-model other"));
    if cli.ok("doctor").out.contains("--dtype bf16: not here") {
        return println!("skipped: small optimiser states, on this machine");
    }
    let common = format!("{common} --max-steps 2 --dtype bf16");
    let full = agrees(&cli, &format!("dpo {common} --out full"));
    let bf16 = agrees(&cli, &format!("dpo {common} --out bf16 --optim adamw_bf16"));
    let least = agrees(&cli, &format!("dpo {common} --out least --optim adamw_8bit --gradient-dtype bf16"));
    // 26 million parameters, of which 4 and 8 bytes less.
    assert!(full - bf16 > 80.0 && bf16 - least > 80.0, "{full} {bf16} {least} MiB");
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
    let run = format!("dpo --model {model} --data d --device cpu --token-budget 1024 --batch-size 4 --max-steps 3");
    let peak = agrees(&cli, &format!("{run} --out o"));
    assert!(peak * 1.048_576 < 3500.0, "{peak} MiB");
    let of_adapter = agrees(&cli, &format!("{run} --out a --lora-r 16"));
    assert!(of_adapter < 0.5 * peak, "{of_adapter} of {peak} MiB");
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
    let ensure = |be| fusedpo::train::reference::ensure(be, &model, &[(&data, 256)], Keep::alone(None), &mut Silent);
    let error = ensure(&small).err().unwrap();
    assert!(error.to_string().starts_with("out of memory: this needs"), "{error}");
    // With enough, the same command goes on.
    let enough = Cpu::<f32>::new().unwrap().with_free(plan.needed());
    let [(_, report)] = ensure(&enough).unwrap()[..] else { panic!("one part, one answer") };
    assert_eq!(report.computed, data.num_responses());
}

/// The buffers of a plan, by name, in MiB as a run prints them.
fn planned(plan: &Value) -> Vec<(String, String)> {
    let parts = plan["parts"].as_array().unwrap().iter();
    let mib = |bytes: &Value| format!("{:.1}", bytes.as_f64().unwrap() / f64::from(1 << 20));
    parts.map(|p| (p["name"].as_str().unwrap().to_owned(), mib(&p["bytes"]))).collect()
}

fn sum(plan: &Value, of: &str) -> u64 {
    plan[of].as_array().unwrap().iter().map(|p| p["bytes"].as_u64().unwrap()).sum()
}

/// A plan is what the run says of itself, whatever changes its memory: by its name and size every buffer that the run names,
/// and their sum.
#[test]
fn a_plan_is_what_the_run_says() {
    let cli = Cli::new();
    write_model(&cli, "large");
    write_model(&cli, "other");
    cli.write_rows("rows.jsonl", &pairs(24));
    cli.ok("pack --tokenizer large --input rows.jsonl --out d --eval-fraction 0.25");
    for (stage, more) in [
        ("dpo", ""),
        ("dpo", "--lora-r 4"),
        ("dpo", "--lora-r 4 --lora-dropout 0.1 --token-budget 333"),
        ("dpo", "--train mlp --optim rmsprop"),
        ("dpo", "--lora-r 4 --quantize nf4 --double-quant"),
        ("dpo", "--gradient-checkpointing --batch-size 2"),
        ("dpo", "--sync-ref-model"),
        ("dpo", "--loss-type kto"),
        ("dpo", "--loss-type simpo --token-budget 333"),
        ("sft", ""),
        ("sft", "--lora-r 2 --lora-target-modules q_proj,down_proj --dtype f32"),
        ("dpo", "--dtype bf16 --optim adamw_bf16"),
        ("sft", "--dtype bf16 --optim adamw_8bit --gradient-dtype bf16"),
        // Samples of evaluations: the weights that train are on the host while the reference is in their place, ...
        ("dpo", "--kl-samples 3 --kl-max-new-tokens 9"),
        ("dpo", "--kl-samples 2 --sample-prompts 5 --lora-r 4 --token-budget 333"),
        ("dpo", "--sample-prompts 4 --ref-model large"),
        // ... or it is loaded beside the policy, of the same shape or of another, ...
        ("dpo", "--kl-samples 3 --ref-model other"),
        ("dpo", "--sample-prompts 3 --ref-model m --sample-max-new-tokens 200"),
        ("dpo", "--sample-prompts 3 --ref-model other --lora-r 2 --quantize nf4"),
        // ... or follows in memory, or there is none.
        ("dpo", "--kl-samples 3 --sync-ref-model --ref-model other"),
        ("sft", "--sample-prompts 4 --sample-max-new-tokens 7"),
        ("dpo", "--loss-type simpo --sample-prompts 6"),
    ] {
        if more.contains("--dtype bf16") && cli.ok("doctor").out.contains("--dtype bf16: not here") {
            println!("skipped: {more}, on this machine");
            continue;
        }
        let options = format!("--model large --data d --device cpu {more}");
        let before = cli.tree();
        let plan = cli.ok(&format!("plan --stage {stage} {options} --json")).json();
        assert_eq!(cli.tree(), before, "{options}: a plan leaves nothing behind");
        let out = format!("o{}", cli.tree().len());
        let err = cli.ok(&format!("{stage} {options} --max-steps 1 --out {out}")).err;
        let told: Vec<(String, String)> = err
            .lines()
            .filter_map(|l| l.strip_prefix("  ")?.trim_start().split_once(" MiB  "))
            .map(|(mib, name)| (name.to_owned(), mib.to_owned()))
            .collect();
        let planned = planned(&plan);
        assert!(told.len() > 4, "{err}");
        for part in told.iter().filter(|(name, _)| name != "everything else") {
            assert!(planned.contains(part), "{options}: {part:?} is not in {planned:?}");
        }
        let line = err.lines().find(|l| l.starts_with("memory: ")).unwrap();
        let mib: u64 = line.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(sum(&plan, "parts").div_ceil(1 << 20).abs_diff(mib) <= 1, "{options}: {line}");
        let sampled = plan["parts"].as_array().unwrap().iter().any(|p| p["samples"] == true);
        assert_eq!(sampled, more.contains("-samples") || more.contains("sample-prompts"), "{options}: {planned:?}");
        let needed = plan["at"]["needed"].as_u64().unwrap();
        assert_eq!(needed, sum(&plan, "parts") + plan["margin"].as_u64().unwrap());
        assert_eq!(plan["all"].as_u64().unwrap(), needed + sum(&plan, "beside"));
        let slots = plan["at"]["token_budget"].to_string();
        assert!(err.contains(&format!("{slots} token slots")), "{options}: {slots} {err}");
    }
}

/// Room that a plan leaves is room that the run has: of samples too, which shrink where memory does, and are refused where even that
/// is too much.
#[test]
fn samples_are_in_what_fits() {
    let cli = Cli::new();
    write_model(&cli, "large");
    write_model(&cli, "other");
    cli.write_rows("rows.jsonl", &pairs(24));
    cli.ok("pack --tokenizer large --input rows.jsonl --out d --eval-fraction 0.25");
    for more in ["--kl-samples 4", "--kl-samples 4 --ref-model other", "--sample-prompts 3 --sync-ref-model"] {
        let options = format!("--model large --data d --device cpu --token-budget 256 {more}");
        let plan = |memory: usize| cli.run(&format!("plan {options} --device-memory {memory} --json")).json();
        let ample = plan(8 << 30);
        let beside = sum(&ample, "beside");
        let without = cli.ok(&format!(
            "plan --model large --data d --device cpu --token-budget 256 --device-memory 8GiB --json {}",
            if more.contains("--sync") { "--sync-ref-model" } else { "" }
        ));
        let [least, steps] = [ample.clone(), without.json()].map(|plan| plan["at"]["needed"].as_u64().unwrap());
        assert!(least > steps, "{more}: {least} and {steps}");
        let [with, without] = [&ample, &without.json()].map(|plan| plan["least_needed"].as_u64().unwrap());
        // Weights on the host, or another model; of a reference that follows a cache alone.
        let least_of_samples = if more.contains("--sync") { 0 } else { 50 << 20 };
        assert!(with > without + least_of_samples, "{more}: of the least budget, {with} and {without}");
        let c: TrainOptions = resolved(&cli, more);
        let run =
            |free: u64| run::train(&Cpu::<f32>::new().unwrap().with_free(free as usize), &c, &mut Silent).map(drop);
        // Between what the steps take and what samples take at least, neither begins.
        let scarce = plan((steps + beside) as usize + 1);
        // What the program itself takes is not the same each time.
        assert!(scarce["fits"] == false || least - steps < 64 << 20, "{more}: {scarce}");
        let why = run(steps + 1).unwrap_err().to_string();
        assert!(why.contains("with what is sampled at evaluations") || why.contains("out of memory"), "{more}: {why}");
        // Where the plan's own numbers fit, both do.
        let tight = plan((least + beside) as usize + (16 << 20));
        assert_eq!((&tight["fits"], &tight["at"]["needed"]), (&json!(true), &json!(least)), "{more}");
        run(least).unwrap_or_else(|e| panic!("{more}: {e}"));
        std::fs::remove_dir_all(cli.path("o")).unwrap();
    }
}

/// The options of a run of one step.
fn resolved(cli: &Cli, more: &str) -> TrainOptions {
    let mut c = TrainOptions {
        files: FileOptions { model: cli.path("large"), data: cli.path("d"), out: cli.path("o") },
        data: DataOptions { token_budget: Some(256), max_steps: Some(1), ..Default::default() },
        ..Default::default()
    };
    c.eval.kl_samples = if more.contains("--kl-samples") { 4 } else { 0 };
    c.eval.sample_prompts = if more.contains("--sample-prompts") { 3 } else { 0 };
    c.reference.ref_model = more.contains("--ref-model").then(|| cli.path("other"));
    c.reference.sync_ref_model = more.contains("--sync-ref-model");
    c.resolve(Stage::Dpo).unwrap()
}

/// One line that has `want` in it, and the code.
fn refused(what: &str, ran: &cli_common::Ran, code: i32, want: &str) {
    let last = ran.err.lines().last().unwrap_or_default();
    assert!(last.starts_with("fusedpo: ") && last.contains(want) && !last.contains("options."), "{what}: {ran:?}");
    assert_eq!((ran.code, ran.err.matches("fusedpo: ").count()), (code, 1), "{what}: {ran:?}");
}

/// The largest budget that fits does, the next does not; and what would make a run fit, does.
#[test]
fn what_a_plan_says_fits_does() {
    let cli = Cli::new();
    let q = json!({
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": true,
    });
    cli.write("q.json", q.to_string());
    for (device, memory, more) in
        [("cuda", "24GB", ""), ("auto", "16GiB", "--lora-r 16"), ("cpu", "16GB", "--gradient-checkpointing")]
    {
        let plan = |more: &str| {
            cli.run(&format!(
                "plan --model q.json --lengths ultrafeedback --device {device} --device-memory {memory} --json {more}"
            ))
        };
        let best = plan(more).json()["largest"].clone();
        let slots = best["token_budget"].as_u64().unwrap();
        let at = plan(&format!("{more} --token-budget {slots}"));
        assert_eq!((at.code, at.json()["fits"].as_bool()), (0, Some(true)), "{at:?}");
        assert!(at.json()["device"].as_str().unwrap().starts_with(if device == "cpu" { "CPU" } else { "CUDA, bf16" }));
        let beyond = plan(&format!("{more} --token-budget {}", slots + 64));
        refused("a budget that does not fit", &beyond, 1, &format!("{slots} would fit"));
        assert_eq!(beyond.json()["fits"], false);
    }
    // Of layers below the lowest that trains nothing is kept.
    let kept = |more: &str| {
        let plan = cli.ok(&format!("plan --model q.json --lengths hh --device-memory 80GB --json {more}")).json();
        let part = |name: &str| plan["parts"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap().clone();
        ["gate_up", "residual"].map(|name| part(name)["buffers"].as_u64().unwrap())
    };
    assert_eq!(kept(""), [24, 49]);
    assert_eq!(kept(r"--train layers\.(20|21|22|23)\."), [4 + 1, 8 + 1 + 2]);
    assert_eq!(kept("--train lm_head|model.norm"), [1, 3]);
    assert_eq!(kept(r"--train layers\.23 --gradient-checkpointing"), [1, 4]);
    // 4 GB hold neither 0.5B's moments nor its gradients.
    let small = |more: &str| {
        cli.run(&format!("plan --model q.json --lengths hh --device cuda --device-memory 4GB --json {more}"))
    };
    let none = small("");
    refused("nothing fits", &none, 1, "what would fit: --lora-r 16");
    let plan = none.json();
    assert!(plan["largest"].is_null() && plan["fits"] == false && !plan["would_fit"].as_array().unwrap().is_empty());
    assert_eq!(small("--lora-r 16").code, 0);
    let nowhere = cli.run("plan --model q.json --lengths hh --device cuda --device-memory 100MiB");
    refused("nothing can help", &nowhere, 1, "use a smaller model");
    assert!(nowhere.out.contains("does not fit") && nowhere.out.contains("held throughout"), "{nowhere:?}");
}

#[test]
fn plans_of_nonsense_are_refused() {
    let cli = Cli::with_data();
    cli.write("bad.json", "{\"model_type\": \"mamba\"}");
    cli.write("no.json", "{");
    cli.write("c.toml", "data = 'd'\nmodel = 'm'\nlora_r = 2\n");
    cli.ok("pack --tokenizer m --input rows.jsonl --out none");
    cli.ok("plan --config c.toml --device cpu");
    // Of lengths there is nothing held out that prompts could be taken from; what stands for it is as long.
    let plan =
        cli.ok("plan --config c.toml --lengths hh --max-length 64 --sample-prompts 2 --device cpu --json").json();
    assert!(plan["parts"].as_array().unwrap().iter().any(|part| part["samples"] == true), "{plan}");
    cli.ok("plan --config c.toml --lengths hh --max-length 64 --device-memory 80GiB");
    for (args, code, want) in [
        ("--model m", 2, "--data or --lengths"),
        ("--lengths hh", 2, "--model is required"),
        ("--model m --data d --lengths hh", 2, "--data"),
        ("--model m --data d --max-length 5", 2, "--lengths"),
        ("--model m --lengths hhh", 2, "hhh"),
        ("--model m --lengths hh --token-budget 999999999 --device cpu --device-memory 4GB", 1, " would fit ("),
        ("--model m --lengths hh --token-budget 999999999 --device-memory 4GB", 1, " would fit ("),
        ("--model m --lengths hh --max-length 1", 2, "--max-length 1"),
        ("--model m --data d --device-memory 80", 1, "out of memory"),
        ("--model m --data d --device-memory lots", 2, "80GiB"),
        ("--model m --data d --stage sft --beta 0.1", 2, "--beta"),
        ("--model m --data d --beta -1", 2, "--beta"),
        ("--model m --data d --device cpu --logits-dtype bf16", 2, "--logits-dtype"),
        ("--model m --data d --device cpu --cuda-graphs on", 2, "graphs"),
        ("--model m --data d --device cpu --matmul-plans p.json", 2, "--matmul-plans"),
        ("--model m --data d --device cpu --token-budget 3", 2, "--token-budget 3"),
        ("--model m --data d --device cpu --train nothing", 2, "--train nothing"),
        ("--model m --data d --device cpu --quantize nf4", 2, "--lora-r"),
        ("--model m --data d --device cpu --adapter m", 2, "no adapter"),
        (
            "--model m --data d --device cpu --eval-steps 2 --load-best-model-at-end --metric-for-best-model lost",
            2,
            "evaluations of this run have no such number; nearest: eval_loss",
        ),
        ("--model m --data none --device cpu --kl-samples 4", 2, "has no held-out split to take prompts from"),
        ("--model m --data nowhere", 2, "nowhere"),
        ("--model nowhere.json --lengths hh", 2, "nowhere.json"),
        ("--model bad.json --lengths hh", 2, "mamba"),
        ("--model no.json --lengths hh", 2, "no.json"),
    ] {
        let (before, ran) = (cli.tree(), cli.run(&format!("plan {args}")));
        refused(args, &ran, code, want);
        assert!(cli.tree() == before && (code == 1 || ran.out.is_empty()), "{args}: {ran:?}");
    }
}

/// Whatever is an option of `dpo` is one of `plan`.
#[test]
fn a_plan_takes_the_options_of_the_run() {
    let cli = Cli::new();
    let named = |command: &str| -> std::collections::BTreeSet<String> {
        let help = cli.ok(&format!("{command} --help")).out;
        help.split_whitespace()
            .filter(|w| w.starts_with("--"))
            .map(|w| w.trim_matches(|c: char| !c.is_alphanumeric()).to_owned())
            .collect()
    };
    let missing: Vec<String> = named("dpo").difference(&named("plan")).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The page's table of models is what the program plans.
#[test]
fn the_page_is_up_to_date() {
    let python = std::env::var("FUSEDPO_PYTHON").unwrap_or_else(|_| "python3".into());
    let args = ["-B", "scripts/memory_table.py", "--check", "--fusedpo", env!("CARGO_BIN_EXE_fusedpo")];
    match std::process::Command::new(python).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output() {
        Ok(ran) => assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr)),
        Err(e) => println!("skipped: docs/memory.md (no python3, {e}; FUSEDPO_PYTHON names one)"),
    }
}
