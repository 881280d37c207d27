//! Runs that train an adapter: what they leave behind, how they go on, and what is refused.

use crate::cli_common::*;
use crate::host;
use crate::synced::CrashAt;
use fusedpo::backend::Backend;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::backend::gpu::Gpu;
use fusedpo::model::{ModelDir, Quantize};
use fusedpo::observe::{Observe, Silent};
use fusedpo::train::choices::{GraphsChoice, Resume};
use fusedpo::train::options::{FileOptions, Stage, TrainOptions};
use fusedpo::train::run::train;
use half::bf16;
use serde_json::Value;

fn options(cli: &Cli, out: &str) -> TrainOptions {
    let mut o = TrainOptions {
        files: FileOptions { model: cli.path("m"), data: cli.path("d"), out: cli.path(out) },
        ..Default::default()
    };
    o.train.lora_r = Some(4);
    o.schedule.learning_rate = 1e-2;
    (o.data.batch_size, o.data.max_steps, o.data.token_budget) = (3, Some(5), Some(64));
    (o.save.save_steps, o.eval.eval_steps) = (Some(2), 3);
    o
}

/// In peace, and crashed after the third step and gone on with: the same adapter and metrics; a checkpoint is an adapter too.
fn on<B: Backend>(be: &dyn Fn() -> B, cli: &Cli, name: &str, change: impl Fn(&mut TrainOptions)) {
    for stage in [Stage::Sft, Stage::Dpo] {
        let run = |out: &str, resume: bool, observe: &mut dyn Observe| {
            let mut c = options(cli, out);
            change(&mut c);
            let mut c = c.resolve(stage).unwrap();
            c.resume.resume = resume.then_some(Resume::Auto);
            train(&be(), &c, observe)
        };
        let [peace, crash] = ["peace", "crash"].map(|what| format!("{name}-{stage}-{what}"));
        run(&peace, false, &mut Silent).unwrap();
        assert_eq!(run(&crash, false, &mut CrashAt(3)).unwrap_err().to_string(), "crash");
        assert_eq!(cli.names(&crash, "checkpoint-"), ["checkpoint-2"]);
        run(&crash, true, &mut Silent).unwrap();
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            assert!(cli.bytes(&format!("{peace}/{file}")) == cli.bytes(&format!("{crash}/{file}")), "{peace}: {file}");
        }
        assert_eq!(rows(cli, &peace), rows(cli, &crash), "{peace}");
        if stage == Stage::Dpo {
            let first = rows(cli, &peace).into_iter().find_map(|r| r["loss"].as_f64()).unwrap();
            assert_eq!(first as f32, std::f32::consts::LN_2, "{name}: step 0 is exact");
        }
        assert!(!cli.path(&format!("{peace}/config.json")).exists());
        assert!(!cli.path(&format!("{peace}/model.safetensors")).exists());
        let base = ModelDir::open(&cli.path("m")).unwrap();
        let [last, before] =
            ["", "/checkpoint-2"].map(|at| base.with_adapter(&cli.path(&format!("{peace}{at}"))).unwrap());
        assert_ne!(last.identity().unwrap(), before.identity().unwrap());
    }
}

#[test]
fn runs_of_an_adapter_go_on_to_the_bit() {
    let cli = Cli::with_data();
    on(&|| Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &cli, "cpu", |_| {});
    on(&|| Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &cli, "less", |c| {
        c.compute.gradient_checkpointing = true;
        c.train.use_rslora = true;
        c.train.lora_target_modules = Some(vec!["v_proj".into(), "q_proj".into(), "down_proj".into()]);
    });
    let nf4 = |c: &mut TrainOptions| {
        (c.train.quantize, c.train.double_quant) = (Some(Quantize::Nf4), Some(true));
    };
    on(&|| Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &cli, "nf4", nf4);
    let dropout = |c: &mut TrainOptions| c.train.lora_dropout = Some(0.3);
    on(&|| Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &cli, "dropout", dropout);
    // Cut into other micro-batches and computed again in the backward pass: the same within rounding.
    on(&|| Cpu::<f32>::with(GemmPrecision::Native).unwrap(), &cli, "dropout-again", |c| {
        dropout(c);
        (c.data.token_budget, c.compute.gradient_checkpointing) = (Some(192), true);
    });
    let [one, other] = ["dropout", "dropout-again"].map(|name| rows(&cli, &format!("{name}-dpo-peace")));
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(&other) {
        let [a, b] = [one, other].map(|r| r["loss"].as_f64().unwrap_or_default());
        assert!((a - b).abs() <= 1e-5, "{one} {other}");
    }
    assert_ne!(rows(&cli, "cpu-dpo-peace"), one);
    if host::host_driver(0).is_none() {
        return;
    }
    let driver = || host::deferred_driver(3).unwrap();
    on(&|| Gpu::<_, bf16>::new(driver()).unwrap(), &cli, "bf16", |_| {});
    on(&|| Gpu::<_, f32>::new(driver()).unwrap(), &cli, "graphs", |c| c.compute.cuda_graphs = GraphsChoice::On);
    on(&|| Gpu::<_, f32>::new(driver()).unwrap(), &cli, "dropout-graphs", |c| {
        dropout(c);
        c.compute.cuda_graphs = GraphsChoice::On;
    });
    on(&|| Gpu::<_, f32>::new(driver()).unwrap(), &cli, "dropout-eager", dropout);
    assert_eq!(rows(&cli, "dropout-graphs-dpo-peace"), rows(&cli, "dropout-eager-dpo-peace"));
    on(&|| Gpu::<_, bf16>::new(driver()).unwrap(), &cli, "nf4-bf16", |c| {
        nf4(c);
        c.compute.cuda_graphs = GraphsChoice::On;
    });
}

/// Log-probs of every response as `score` prints them.
fn scores(cli: &Cli, args: &str) -> Vec<f64> {
    let text = cli.ok(&format!("score --data d --out - {args}")).out;
    text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["logp"].as_f64().unwrap()).collect()
}

#[test]
fn every_command_takes_an_adapter() {
    let cli = Cli::with_data();
    let ran = cli.ok("dpo --model m --data d --out a --lora-r 4 --learning-rate 1e-2 --max-steps 4");
    assert!(ran.err.contains("parameters train, the others are frozen"), "{ran:?}");
    assert!(ran.err.contains("reference: the starting policy"), "{ran:?}");
    let (plain, adapted) = (scores(&cli, "--model m"), scores(&cli, "--model m --adapter a"));
    assert!(plain != adapted);
    // Merged is the same model within rounding; merging leaves nothing half-done and replaces nothing.
    cli.ok("merge --model m --adapter a --out merged");
    let merged = scores(&cli, "--model merged");
    assert!(merged.iter().zip(&adapted).all(|(a, b)| (a - b).abs() <= 1e-4), "{merged:?} {adapted:?}");
    let again = cli.run("merge --model m --adapter a --out merged");
    assert!(again.code == 2 && again.err.contains("merged"), "{again:?}");
    let said = cli.ok("generate --model m --adapter a --prompt ab --max-new-tokens 5 --chat-template none").out;
    assert_eq!(said, cli.ok("generate --model merged --prompt ab --max-new-tokens 5 --chat-template none").out);
    // Its reference is the model without it, its loss what the run's configuration says.
    let eval = cli.ok("eval --model m --adapter a --data d --json --kl-samples 0");
    assert!(eval.err.contains("reference: m without the adapter"), "{eval:?}");
    let reference = cli.ok("reference --model m --adapter a --data d --cache c").out;
    assert!(reference.contains("computed, 0 found"), "{reference}");
    // A loaded adapter: the reference is the model with it, and step 0 exact against that.
    let ran = cli.ok("dpo --model m --adapter a --data d --out b --max-steps 3 --learning-rate 1e-2");
    assert!(ran.err.contains("reference: the starting policy"), "{ran:?}");
    let first = rows(&cli, "b").into_iter().find_map(|r| r["loss"].as_f64()).unwrap();
    assert_eq!(first as f32, std::f32::consts::LN_2);
    assert!(scores(&cli, "--model m --adapter b") != adapted);
    // Under dropout it is not while it trains: the first step is evaluated too, which drops nothing.
    let ran =
        cli.ok("dpo --model m --adapter a --data d --out drops --max-steps 3 --learning-rate 1e-2 --lora-dropout 0.5");
    assert!(ran.err.contains("the adapter drops 0.5 of its input in the passes that train it"), "{ran:?}");
    let first = rows(&cli, "drops").into_iter().find_map(|r| r["loss"].as_f64()).unwrap();
    assert!((first - std::f64::consts::LN_2).abs() > 1e-6 && (first - std::f64::consts::LN_2).abs() < 0.5, "{first}");
    // What it drops is in its files, is taken from there, and changes nothing that does not train.
    let config: Value = serde_json::from_slice(&cli.bytes("drops/adapter_config.json")).unwrap();
    assert_eq!(config["lora_dropout"], 0.5);
    let ran = cli.ok("dpo --model m --adapter drops --data d --out drops2 --max-steps 1");
    assert!(ran.err.contains("the adapter drops 0.5"), "{ran:?}");
    let ran = cli.ok("dpo --model m --adapter drops --data d --out calm --max-steps 1 --lora-dropout 0");
    assert!(!ran.err.contains("the adapter drops"), "{ran:?}");
    // Every step drops anew: the same pairs and weights twice.
    let losses = |out: &str, p: &str| -> Vec<f64> {
        let all = "dpo --model m --adapter a --data d --batch-size 1000 --max-steps 2 --learning-rate 1e-30";
        cli.ok(&format!("{all} --lora-dropout {p} --out {out}"));
        rows(&cli, out).iter().filter_map(|r| r["loss"].as_f64()).collect()
    };
    let [calm, dropping] = [losses("twice", "0"), losses("twice-drops", "0.5")];
    assert!((calm[0] - calm[1]).abs() < 1e-6 && (dropping[0] - dropping[1]).abs() > 1e-4, "{calm:?} {dropping:?}");
    // A run goes on with what its adapter's files said.
    cli.ok(
        "dpo --model m --adapter drops --data d --out more --max-steps 2 --save-steps 1 --lr-scheduler-type constant",
    );
    let before = scores(&cli, "--model m --adapter drops");
    let changed = String::from_utf8(cli.bytes("drops/adapter_config.json")).unwrap().replace("0.5", "0.9");
    cli.write("drops/adapter_config.json", &changed);
    assert_eq!(scores(&cli, "--model m --adapter drops"), before);
    let ran = cli.run(
        "dpo --model m --adapter drops --data d --out more --max-steps 3 --resume auto --lr-scheduler-type constant",
    );
    assert!(ran.code != 0 && ran.err.contains("--lora-dropout was 0.5, and is 0.9 now: give 0.5"), "{ran:?}");
    cli.ok("dpo --model m --adapter drops --data d --out more --max-steps 3 --resume auto --lr-scheduler-type constant --lora-dropout 0.5");
    cli.write("drops/adapter_config.json", changed.replace("0.9", "1.0"));
    // With 1 it computes, and does not train.
    assert_eq!(scores(&cli, "--model m --adapter drops"), before);
    cli.ok("eval --model m --adapter drops --data d --loss-type sft");
    let ran = cli.run("dpo --model m --adapter drops --data d --out none --max-steps 1");
    let why = "the adapter's dropout is 1, which leaves nothing to train on: give a --lora-dropout below 1";
    assert!(ran.code == 2 && ran.err.contains(why) && !cli.path("none").exists(), "{ran:?}");
    cli.ok("dpo --model m --adapter drops --data d --out some --max-steps 1 --lora-dropout 0.1");
    for bad in ["1.5", "\"lots\""] {
        cli.write("drops/adapter_config.json", changed.replace("0.9", bad));
        let ran = cli.run("score --model m --adapter drops --data d --out -");
        assert!(ran.code == 2 && ran.err.contains("`lora_dropout` must be a number from 0 to 1"), "{ran:?}");
    }
    cli.write("drops/adapter_config.json", &changed);
    cli.ok("sft --model m --adapter a --data d --out s --max-steps 2");
    assert_eq!(cli.ok("sft --model m --adapter a --data d --out s --max-steps 2 --resume auto").out.lines().count(), 1);
}

#[test]
fn what_has_no_meaning_is_refused_in_a_line() {
    let cli = Cli::with_data();
    let refused = |args: &str, want: &str| {
        let ran = cli.run(&format!("dpo --model m --data d --out o {args}"));
        assert!(ran.code == 2 && ran.err.contains(want) && ran.err.trim().lines().count() == 1, "{args}: {ran:?}");
        assert!(!cli.path("o").exists(), "{args}");
    };
    refused("--lora-alpha 4", "--lora-alpha: only a new adapter has it; give --lora-r too");
    refused("--use-rslora", "--use-rslora: only a new adapter has it");
    refused("--lora-r 0", "--lora-r 0: must be 1 or more");
    refused("--lora-r 4 --lora-alpha 0", "--lora-alpha 0: must be a finite number greater than 0");
    for bad in ["1", "1.5", "-0.1", "nan"] {
        refused(&format!("--lora-r 4 --lora-dropout={bad}"), "must be from 0 on, and below 1");
    }
    refused("--lora-dropout 0.1", "--lora-dropout: only an adapter has it; give --lora-r or --adapter too");
    refused(
        "--lora-r 4 --lora-target-modules q_proj,lm_head",
        "--lora-target-modules lm_head: an adapter can be on q_proj",
    );
    refused("--lora-r 4 --train mlp", "--train mlp: with an adapter the adapter alone is trained");
    refused("--lora-r 4 --sync-ref-model", "an adapter: a reference that follows (--sync-ref-model)");
    refused("--train adapters", "--train adapters: there is no adapter");
    refused("--lora-r 4 --adapter m", "--lora-r: an adapter that is loaded (--adapter) has its own");
    refused("--adapter m --lora-alpha 3", "--lora-alpha: an adapter that is loaded (--adapter) has its own");
    refused("--adapter m", "m: is no adapter: it has no adapter_config.json");
    let ran = cli.ok("sft --model m --data d --out w --lora-r 32 --use-rslora --max-steps 1 --train adapters");
    assert!(
        ran.err.contains("llama.cpp") && ran.err.contains("vLLM") && ran.err.contains("--lora-alpha 362.03"),
        "{ran:?}"
    );
}
