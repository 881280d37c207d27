//! Evaluation during a run: sets by name, the best evaluation, early stopping.

use crate::cli_common::*;
use serde_json::{Value, json};

const RUN: &str = "--model m --data d --device cpu --dtype f32 --learning-rate 3e-3 --batch-size 3 --token-budget 64";

fn evaluations(cli: &Cli, out: &str) -> Vec<Value> {
    let rows = cli.json_lines(&format!("{out}/metrics.jsonl")).into_iter();
    rows.filter(|row| row.as_object().unwrap().keys().any(|key| key.starts_with("eval_"))).collect()
}

#[test]
fn named_sets_have_the_numbers_of_eval() {
    let cli = Cli::with_data();
    cli.write_rows("more.jsonl", &pairs(90)[24..]);
    cli.ok("pack --tokenizer m --input more.jsonl --out more");
    cli.write_rows("judged.jsonl", &judgements(30));
    cli.ok("pack --tokenizer m --input judged.jsonl --out judged --eval-fraction 0.3");
    let cases = [
        ("dpo", "", "--ref-model m"),
        ("dpo", "--loss-type ipo,sft", "--ref-model m --loss-type ipo,sft"),
        ("dpo", "--loss-type simpo", ""),
        ("dpo", "--loss-type kto --data judged", "--ref-model m --data judged"),
        ("dpo", "--lora-r 2", "--ref-model m"),
        ("sft", "", "--loss-type sft"),
    ];
    for (i, (stage, args, of_eval)) in cases.into_iter().enumerate() {
        let (what, out) = (format!("{stage} {args}"), format!("run{i}"));
        let judged = args.contains("kto");
        let base = if judged { RUN.replace("--data d ", "") } else { RUN.to_owned() };
        let set = if judged { "judged" } else { "more" };
        cli.ok(&format!(
            "{stage} {base} {args} --eval-data it={set} --eval-data own=d --eval-steps 2 --max-steps 4 --out {out}"
        )
        .replace(if judged { " --eval-data own=d" } else { "?" }, ""));
        let rows = evaluations(&cli, &out);
        assert_eq!(rows.iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2, 4], "{what}");
        assert!(rows.iter().all(|row| row["eval_seconds"].as_f64().unwrap() > 0.0), "{what}");
        let model = if args.contains("lora") { format!("m --adapter {out}") } else { out.clone() };
        let data = if of_eval.contains("--data") { String::new() } else { format!("--data {set}") };
        let alone = cli
            .ok(&format!("eval --model {model} {data} {of_eval} --token-budget 64 --json --kl-samples 0 --dtype f32"));
        let mut compared = 0;
        for (key, value) in alone.json().as_object().unwrap() {
            let of_run = &rows[2][&format!("eval_it_{key}")];
            if ["split", "pairs", "responses", "accuracy", "accuracy_ci95"].contains(&key.as_str()) {
                continue;
            }
            assert_eq!((of_run, of_run.is_null()), (value, false), "{what}: {key}");
            compared += 1;
        }
        assert!(compared >= 4, "{what}: {compared}");
        // A mean lies within its interval.
        let row = rows[2].as_object().unwrap();
        for (key, ends) in row.iter().filter(|(key, _)| key.ends_with("_ci95")) {
            let (x, ends) = (row[key.trim_end_matches("_ci95")].as_f64().unwrap(), [&ends[0], &ends[1]]);
            let [lo, hi] = ends.map(|end| end.as_f64().unwrap());
            assert!(lo <= x && x <= hi, "{what}: {key} [{lo}, {hi}] of {x}");
        }
        let run: Value = serde_json::from_str(&cli.text(&format!("{out}/run.json"))).unwrap();
        assert_eq!(run["sha256"]["eval_sets"]["it"].as_str().unwrap().len(), 64, "{run}");
        assert!(run["eval_seconds"].as_f64().unwrap() > 0.0, "{run}");
    }
    // Sidecars of the set were kept beside it, and nobody computes them again.
    let again = cli.ok(&format!("dpo {RUN} --eval-data it=more --max-steps 1 --out again"));
    assert!(again.err.contains("found") && !again.err.contains("computed"), "{}", again.err);
    assert!(cli.ok("dpo --config again/config.toml --out from-config").err.contains("evaluated as it: "));
    assert!(
        cli.ok(&format!(
            "dpo {} --eval-data train=more --data more --max-steps 1 --out t",
            RUN.replace("--data d ", "")
        ))
        .err
        .contains("warning: --eval-data train is the training split")
    );
}

#[test]
fn sets_that_are_not_for_the_run_are_refused() {
    let cli = Cli::with_data();
    cli.model("other", "llama");
    cli.edit_json("other/tokenizer.json", |t| {
        let vocab = t["model"]["vocab"].as_object_mut().unwrap();
        let [five, six] = ["w5", "w6"].map(|word| vocab[word].clone());
        (vocab["w5"], vocab["w6"]) = (six, five);
    });
    cli.ok("pack --tokenizer other --input rows.jsonl --out foreign");
    cli.ok("pack --tokenizer m --input rows.jsonl --out ends --eos-token w9");
    let dpo = format!("dpo {RUN} --out none");
    for (data, what) in [("foreign", "tokenizer"), ("ends", "end token")] {
        let want = format!(
            "fusedpo: {data}: --eval-data a was packed with another {what} than the training split (d): pack it as that was"
        );
        cli.bad(&format!("{dpo} --eval-data a={data}"), 2, &want.replace("fusedpo: ", ""));
        assert!(!cli.path("none").exists());
    }
    for (args, want) in [
        ("--eval-data d", "`d` is not NAME=DIR"),
        ("--eval-data a/b=d", "`a/b` names no set"),
        ("--eval-data a=d --eval-data a=more", "--eval-data: two sets have the name a"),
        ("--eval-data a=nowhere", "nowhere"),
        ("--eval-data a=d --eval-strategy no", "--eval-data: with --eval-strategy no nothing is evaluated"),
        (
            "--eval-steps 2 --load-best-model-at-end --metric-for-best-model x",
            "--metric-for-best-model eval_x: evaluations of this run have no such number; they have eval_entropy, ",
        ),
        ("--load-best-model-at-end", "give --eval-steps"),
        ("--early-stopping-patience 0 --eval-steps 2", "--early-stopping-patience 0: must be 1 or more"),
        (
            "--early-stopping-patience 1 --eval-steps 2 --early-stopping-threshold nan",
            "--early-stopping-threshold NaN: must be 0 or more",
        ),
        (
            "--greater-is-better --eval-steps 2",
            "has no effect without --load-best-model-at-end or --early-stopping-patience",
        ),
    ] {
        let ran = cli.run(&format!("{dpo} {args}"));
        let lines: Vec<&str> =
            ran.err.lines().filter(|l| l.starts_with("fusedpo: ") || l.starts_with("error: ")).collect();
        assert!(ran.code == 2 && ran.err.contains(want) && lines.len() == 1, "{args}: {ran:?}");
        assert!(!cli.path("none").exists(), "{args}");
    }
}

/// A rate so high that the held-out loss turns: the model is that of the best evaluation.
#[test]
fn the_best_evaluation_is_the_result() {
    let cli = Cli::with_data();
    let base = format!(
        "dpo {} --learning-rate 0.02 --lr-scheduler-type constant --eval-steps 2 --max-steps 14",
        RUN.replace("--learning-rate 3e-3 ", "")
    );
    cli.ok(&format!("{base} --save-steps 0 --out last"));
    let rows = evaluations(&cli, "last");
    let loss = |row: &Value| row["eval_loss"].as_f64().unwrap();
    let best = rows[1..].iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap();
    let step = best["step"].as_u64().unwrap();
    assert!(0 < step && step < 14, "{rows:#?}");
    let ran = cli.ok(&format!("{base} --load-best-model-at-end --save-total-limit 1 --save-steps 2 --out best"));
    assert!(ran.out.contains(&format!("the model is that of step {step}: eval_loss ")), "{ran:?}");
    assert_eq!(crate::cli_common::rows(&cli, "best"), crate::cli_common::rows(&cli, "last"));
    // The same as of a run that had ended there.
    let kept = format!("best/checkpoint-{step}/model.safetensors");
    assert!(tensors(&cli, "best/model.safetensors") == tensors(&cli, &kept), "another model than its checkpoint");
    assert!(tensors(&cli, "best/model.safetensors") != tensors(&cli, "last/model.safetensors"));
    assert_eq!(cli.names("best", "checkpoint-").len(), 2, "the best and the last");
    let run: Value = serde_json::from_str(&cli.text("best/run.json")).unwrap();
    assert_eq!(
        (&run["best"]["step"], &run["best"]["value"], &run["best"]["loaded"]),
        (&best["step"], &best["eval_loss"], &json!(true))
    );
    // Saved even where no checkpoint was due; accuracy is better where it is greater.
    cli.ok(&format!(
        "{base} --load-best-model-at-end --save-steps 0 --metric-for-best-model rewards/accuracies --out accurate"
    ));
    let run: Value = serde_json::from_str(&cli.text("accurate/run.json")).unwrap();
    let accuracy = |row: &Value| row["eval_rewards/accuracies"].as_f64().unwrap();
    let most = rows[1..].iter().map(accuracy).fold(0.0, f64::max);
    let first = rows[1..].iter().find(|row| accuracy(row) == most).unwrap();
    assert_eq!((&run["best"]["step"], &run["best"]["value"]), (&first["step"], &json!(most)), "{rows:#?}");
    assert_eq!(run["options"]["greater_is_better"], true);
}

#[test]
fn patience_ends_a_run() {
    let cli = Cli::with_data();
    let base = format!(
        "dpo {} --learning-rate 0.02 --lr-scheduler-type constant --eval-steps 1 --max-steps 24",
        RUN.replace("--learning-rate 3e-3 ", "")
    );
    cli.ok(&format!("{base} --save-steps 0 --out whole"));
    let rows = evaluations(&cli, "whole");
    let (mut best, mut waited, mut end) = (f64::INFINITY, 0, None);
    for row in &rows[1..] {
        let loss = row["eval_loss"].as_f64().unwrap();
        (best, waited) = if loss < best { (loss, 0) } else { (best, waited + 1) };
        if waited == 3 {
            end.get_or_insert(row["step"].as_u64().unwrap());
        }
    }
    let end = end.expect("three in a row are no better");
    let stops = format!("{base} --early-stopping-patience 3 --out stops");
    let ran = cli.ok(&stops);
    assert!(ran.err.contains("3 evaluations in a row without a better eval_loss; the run ends"), "{}", ran.err);
    let steps = |out: &str| {
        crate::cli_common::rows(&cli, out)
            .into_iter()
            .filter(|row| row["step"].as_u64().unwrap() <= end)
            .collect::<Vec<_>>()
    };
    assert_eq!(crate::cli_common::rows(&cli, "stops"), steps("whole"));
    let run: Value = serde_json::from_str(&cli.text("stops/run.json")).unwrap();
    assert_eq!((&run["outcome"], &run["steps_done"]), (&json!("finished"), &json!(end)), "{run}");
    assert!(run["stopped_early"].as_str().unwrap().contains("eval_loss"), "{run}");
    // Nothing is left to do, unless more patience is asked for.
    let again = cli.ok("dpo --config stops/config.toml --out stops --resume auto");
    assert!(again.out.contains("the run is finished"), "{again:?}");
}

fn tensors(cli: &Cli, path: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = cli.bytes(path);
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = all.tensors().into_iter().map(|(name, t)| (name, t.data().to_vec())).collect();
    all.sort();
    all
}

fn samples(cli: &Cli, out: &str) -> Vec<Value> {
    cli.json_lines(&format!("{out}/samples.jsonl"))
}

/// The divergence is that of `eval` to the bit, whatever trains and wherever the reference is; at first it is 0 to the bit.
#[test]
fn the_divergence_is_that_of_eval() {
    let cli = Cli::with_data();
    cli.model("other", "qwen3");
    let kl = "--kl-samples 5 --kl-max-new-tokens 6";
    for (i, (args, reference, adapter)) in [
        ("", "m", false),
        ("--ref-model other", "other", false),
        ("--lora-r 2", "m", true),
        ("--lora-r 2 --quantize nf4", "m", true),
        ("--train mlp", "m", false),
        ("--gradient-checkpointing --loss-type ipo", "m", false),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("run{i}");
        cli.ok(&format!("dpo {RUN} --learning-rate 0.01 --eval-steps 2 --max-steps 4 {kl} {args} --out {out}")
            .replace("--learning-rate 3e-3 ", ""));
        let rows = evaluations(&cli, &out);
        let of = |row: &Value| row["eval_kl"].as_f64().unwrap();
        if reference == "m" {
            assert_eq!(
                (of(&rows[0]).to_bits(), &rows[0]["eval_kl_ci95"]),
                (0, &json!([0.0, 0.0])),
                "{args}: of the policy with itself"
            );
        }
        assert!(of(&rows[2]) != 0.0, "{args}");
        let model = if adapter { format!("m --adapter {out}") } else { out.clone() };
        let quantize = if args.contains("nf4") { "--quantize nf4" } else { "" };
        let alone = cli.ok(&format!(
            "eval --model {model} --ref-model {reference} --data d {kl} --token-budget 64 --json --dtype f32 {quantize}"
        ));
        let alone = alone.json();
        assert_eq!((&rows[2]["eval_kl"], &rows[2]["eval_kl_ci95"]), (&alone["kl"], &alone["kl_ci95"]), "{args}");
        // What was sampled changes nothing of what is learned.
        cli.ok(&format!("dpo {RUN} --learning-rate 0.01 --eval-steps 2 --max-steps 4 {args} --out {out}-without")
            .replace("--learning-rate 3e-3 ", ""));
        let weights = if adapter { "adapter_model" } else { "model" };
        assert!(
            cli.bytes(&format!("{out}/{weights}.safetensors"))
                == cli.bytes(&format!("{out}-without/{weights}.safetensors")),
            "{args}"
        );
    }
}

#[test]
fn a_budget_ends_a_run_where_it_is_reached() {
    let cli = Cli::with_data();
    let base = format!(
        "dpo {} --learning-rate 0.01 --eval-steps 1 --max-steps 12 --kl-samples 6 --kl-max-new-tokens 5",
        RUN.replace("--learning-rate 3e-3 ", "")
    );
    cli.ok(&format!("{base} --out whole"));
    let kls: Vec<f64> = evaluations(&cli, "whole").iter().map(|row| row["eval_kl"].as_f64().unwrap()).collect();
    let budget = kls[1..6].iter().copied().fold(0.0, f64::max);
    assert!(budget > 0.0, "{kls:?}");
    let first = kls.iter().position(|kl| *kl >= budget).unwrap() as u64;
    let ran = cli.ok(&format!("{base} --kl-budget {budget} --out stops"));
    assert!(ran.err.contains("has reached the budget of"), "{}", ran.err);
    let run: Value = serde_json::from_str(&cli.text("stops/run.json")).unwrap();
    assert_eq!((&run["steps_done"], &run["outcome"]), (&json!(first), &json!("finished")), "{kls:?} {run}");
}

#[test]
fn policy_and_reference_side_by_side() {
    let cli = Cli::with_data();
    let base = format!("{RUN} --eval-steps 2 --max-steps 4 --sample-prompts 3 --sample-max-new-tokens 7");
    cli.ok(&format!("dpo {base} --out dpo"));
    let rows = samples(&cli, "dpo");
    assert_eq!(rows.iter().map(|row| row["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 0, 0, 2, 2, 2, 4, 4, 4]);
    for (i, row) in rows.iter().enumerate() {
        let first = &rows[i % 3];
        assert_eq!(first["policy"], first["reference"], "at first they are the same");
        for key in ["row", "prompt", "reference", "reference_tokens", "reference_finished"] {
            assert_eq!(row[key], first[key], "{key}");
        }
        assert!((1..=7).contains(&row["policy_tokens"].as_u64().unwrap()) && row["policy_finished"].is_boolean());
        // As `generate` continues the prompt, greedily.
        if i >= 6 {
            let given = json!({"prompt": row["prompt"]});
            cli.write_rows("prompt.jsonl", &[given]);
            cli.ok("generate --model dpo --input prompt.jsonl --max-new-tokens 7 --wrap-prompts=false --dtype f32 --out g.jsonl --overwrite");
            assert_eq!(cli.json_lines("g.jsonl")[0]["completion"], row["policy"], "{row}");
        }
    }
    // Another temperature draws, the same each time; without a reference there is none to stand beside.
    for out in ["hot", "again"] {
        cli.ok(&format!("sft {base} --sample-temperature 1.5 --out {out}"));
    }
    assert_eq!(cli.text("hot/samples.jsonl"), cli.text("again/samples.jsonl"));
    assert!(samples(&cli, "hot").iter().all(|row| row["reference"].is_null() && row["policy"].is_string()));
    let row = evaluations(&cli, "dpo").pop().unwrap();
    assert!(row["eval_samples/tokens"].is_f64() && row["eval_samples/finished_reference"].is_f64(), "{row}");
    let nothing = cli.run("dpo --model m --data none --out none --kl-samples 2");
    assert!(nothing.code == 2);
    cli.ok("pack --tokenizer m --input rows.jsonl --out whole");
    cli.bad(
        "dpo --model m --data whole --out none --sample-prompts 2",
        2,
        "--sample-prompts: whole has no held-out split to take prompts from; pack with --eval-fraction, give --eval-data, or leave it out",
    );
    cli.bad(
        "dpo --model m --data d --out none --kl-samples 2 --loss-type simpo",
        2,
        "--kl-samples: the simpo loss has no reference to be far from; leave it out",
    );
}
