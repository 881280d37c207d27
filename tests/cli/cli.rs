//! The command line from end to end, on a model of two layers: what each command writes and prints.

use crate::cli_common;

use cli_common::*;
use fusedpo::backend::cpu::Cpu;
use fusedpo::data::text::{TextTokenizer, TokenizerOptions};
use fusedpo::model::{GenerateOptions, Model, ModelDir, generate};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn keys(row: &Value) -> BTreeSet<&str> {
    row.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The rows of metrics.jsonl without times and speeds.
fn timeless(cli: &Cli, run: &str) -> Vec<Value> {
    let mut rows = cli.json_lines(&format!("{run}/metrics.jsonl"));
    for row in &mut rows {
        row.as_object_mut().unwrap().retain(|k, _| !k.contains("second") && !k.ends_with("_bytes"));
    }
    rows
}

fn same_run(cli: &Cli, a: &str, b: &str) {
    let file = |run: &str, name: &str| cli.bytes(&format!("{run}/{name}"));
    assert!(file(a, "model.safetensors") == file(b, "model.safetensors"), "{a} and {b}: weights differ");
    assert_eq!(file(a, "config.toml"), file(b, "config.toml"));
    assert_eq!(timeless(cli, a), timeless(cli, b));
}

const PAIR_KEYS: &[&str] = &[
    "loss",
    "entropy",
    "mean_token_accuracy",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
];
const STEP_KEYS: &[&str] = &[
    "step",
    "epoch",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "step_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
];

#[test]
fn pack_inspect_sft_reference_dpo_eval_score_generate() {
    let cli = Cli::with_data();
    let shown = cli.ok("inspect d --verify --show 1").out;
    for part in ["train: 1 shards", "eval: 1 shards", "every checksum and every token id is right", "group 0: prompt"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    let ran = cli.ok("sft --model m --data d --out s --learning-rate 1e-3 --batch-size 4");
    let said = ran.out.lines().next().unwrap();
    assert!(said.contains(" % of all, for evaluations): s") && !said.contains("reference"), "sft has none: {said}");
    for (args, has) in [("--loss-type simpo", false), ("--sync-ref-model", false), ("", true)] {
        let out = cli
            .ok(&format!("dpo --model m --data d --max-steps 1 --eval-strategy no {args} --out r --resume auto"))
            .out;
        std::fs::remove_dir_all(cli.path("r")).unwrap();
        assert_eq!(out.lines().next().unwrap().ends_with(" s for the reference): r"), has, "{args}: {out}");
    }
    let rows = cli.json_lines("s/metrics.jsonl");
    let steps: Vec<&Value> = rows.iter().filter(|r| r.get("grad_norm").is_some()).collect();
    let mut want: BTreeSet<&str> = STEP_KEYS.iter().copied().collect();
    want.extend(["loss", "entropy", "mean_token_accuracy", "samples_per_second"]);
    assert_eq!(keys(steps[0]), want);
    assert_eq!(steps[0]["step"], 1);

    let said = cli.ok("reference --model s --data d").out;
    assert!(said.starts_with("48 responses: 48 computed, 0 found"), "{said}");
    let said = cli.ok("reference --model s --data d").out;
    assert!(said.starts_with("48 responses: 0 computed, 48 found"), "{said}");

    let ran = cli.ok("dpo --model s --data d --out p --learning-rate 1e-3 --batch-size 4 --num-train-epochs 3");
    assert!(ran.err.contains("responses found in"), "{ran:?}");
    let rows = cli.json_lines("p/metrics.jsonl");
    let (evals, steps): (Vec<&Value>, Vec<&Value>) = rows.iter().partition(|r| r.get("eval_loss").is_some());
    let mut want: BTreeSet<&str> = STEP_KEYS.iter().chain(PAIR_KEYS).copied().collect();
    want.insert("pairs_per_second");
    assert_eq!(keys(steps[0]), want);
    assert_eq!(steps[0]["loss"].as_f64().unwrap() as f32, std::f32::consts::LN_2);
    assert!(steps.iter().enumerate().all(|(i, r)| r["step"] == i + 1));
    let mut eval_keys: Vec<String> = PAIR_KEYS.iter().map(|k| format!("eval_{k}")).collect();
    let of_pairs = |key: &&String| ["eval_loss", "eval_rewards/", "eval_logps/"].iter().any(|of| key.starts_with(of));
    let intervals: Vec<String> = eval_keys.iter().filter(of_pairs).map(|key| format!("{key}_ci95")).collect();
    eval_keys.extend(intervals);
    assert_eq!(keys(evals[0]), eval_keys.iter().map(String::as_str).chain(["step", "eval_seconds"]).collect());
    assert_eq!((evals.len(), &evals[0]["step"]), (2, &json!(0)), "before the first and after the last step");
    let last = steps.last().unwrap();
    assert!(last["loss"].as_f64().unwrap() < 0.6, "three epochs at a high rate must learn: {last}");

    let e = cli.ok("eval --model p --data d --json").json();
    for key in PAIR_KEYS.iter().chain(&["pairs", "responses", "accuracy", "accuracy_ci95", "kl", "kl_ci95"]) {
        assert!(e.get(*key).is_some(), "eval --json has no {key}: {e}");
    }
    let metrics = evals[1]["eval_loss"].as_f64().unwrap();
    for (when, row) in [("before:", evals[0]), ("after: ", evals[1])] {
        let want = format!("held-out {when} loss {:.4}, accuracy ", row["eval_loss"].as_f64().unwrap());
        assert!(ran.out.lines().any(|l| l.starts_with(&want)), "{want}: {ran:?}");
    }
    assert!(ran.out.starts_with(&format!("{} steps in ", steps.len())), "{ran:?}");
    // The files hold f32 weights, as the run did.
    assert!((e["loss"].as_f64().unwrap() - metrics).abs() <= 1e-12, "{e} {metrics}");

    scores(&cli);

    let text = cli.ok("generate --model p --prompt w5 --max-new-tokens 4");
    assert_eq!(text.out.lines().count(), 1, "{text:?}");
    assert_eq!(cli.ok("generate --model p --prompt w5 --max-new-tokens 4").out, text.out);
    cli.write("prompts.jsonl", "{\"prompt\": \"w5 w6\"}\n{\"prompt\": \"w7\"}\n");
    let many =
        cli.ok("generate --model p --input prompts.jsonl --num-return-sequences 2 --temperature 1 --max-new-tokens 5");
    let many: Vec<Value> = many.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let at: Vec<(u64, u64)> = many.iter().map(|r| (r["row"].as_u64().unwrap(), r["index"].as_u64().unwrap())).collect();
    assert_eq!(at, [(0, 0), (0, 1), (1, 0), (1, 1)]);
}

/// Lines of `score`: input order, fields, and sums that agree with their parts.
fn scores(cli: &Cli) {
    cli.ok("score --model p --data d --out scores.jsonl --per-token");
    let lines = cli.json_lines("scores.jsonl");
    let at: Vec<_> = lines.iter().map(|l| (l["row"].as_u64().unwrap(), l["response"].as_u64().unwrap())).collect();
    assert_eq!(at, (0..24).flat_map(|r| [(r, 0), (r, 1)]).collect::<Vec<_>>());
    // Every row has a prompt of its own: a group has one row's two responses, whichever split it is in.
    let groups: BTreeSet<(u64, u64)> =
        lines.iter().map(|l| (l["group"].as_u64().unwrap(), l["row"].as_u64().unwrap())).collect();
    let numbers: BTreeSet<u64> = groups.iter().map(|(group, _)| *group).collect();
    assert_eq!((groups.len(), numbers), (24, (0..24).collect()), "one number a prompt: {groups:?}");
    let rows = pairs(24);
    for l in &lines {
        assert_eq!(
            l.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["row", "response", "group", "num_tokens", "logp", "split", "id", "token_logps"]
        );
        let tokens: Vec<f64> = l["token_logps"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let field = if l["response"] == 0 { "chosen" } else { "rejected" };
        let text = rows[l["row"].as_u64().unwrap() as usize][field].as_str().unwrap();
        assert_eq!(tokens.len(), text.split_whitespace().count() + 1, "words and EOS");
        assert_eq!(l["num_tokens"], tokens.len());
        let (sum, logp) = (tokens.iter().sum::<f64>(), l["logp"].as_f64().unwrap());
        assert!((sum - logp).abs() <= 1e-9 * logp.abs(), "{l}");
    }
    cli.ok("score --model p --data d --out plain.jsonl");
    let plain = cli.json_lines("plain.jsonl");
    assert!(plain.iter().zip(&lines).all(|(a, b)| a["logp"] == b["logp"] && a.get("token_logps").is_none()));
}

#[test]
fn a_configuration_repeats_its_run_to_the_byte() {
    let cli = Cli::with_data();
    for stage in ["sft", "dpo"] {
        cli.ok(&format!("{stage} --model m --data d --out {stage}1 --learning-rate 1e-3 --seed 7 --batch-size 3"));
        cli.ok(&format!("{stage} --config {stage}1/config.toml --out {stage}2"));
        same_run(&cli, &format!("{stage}1"), &format!("{stage}2"));
        cli.ok(&format!("{stage} --config {stage}1/config.toml --out {stage}3 --seed 8"));
        assert!(cli.bytes(&format!("{stage}1/model.safetensors")) != cli.bytes(&format!("{stage}3/model.safetensors")));
    }
}

#[test]
fn threads_and_token_budgets_do_not_change_results() {
    let cli = Cli::with_data();
    let run = |out: &str, threads: &str, more: &str| {
        let args = format!("dpo --model m --data d --cache c-{out} --out {out} --learning-rate 1e-3 {more}");
        let done = cli.command(&args).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    run("one", "1", "");
    run("two", "2", "");
    let same = |name: &str| assert!(cli.bytes(&format!("one/{name}")) == cli.bytes(&format!("two/{name}")), "{name}");
    same("model.safetensors");
    assert_eq!(timeless(&cli, "one"), timeless(&cli, "two"));
    run("small", "2", "--token-budget 40");
    let (a, b) = (timeless(&cli, "one"), timeless(&cli, "small"));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(keys(a), keys(b));
        for (key, x) in a.as_object().unwrap() {
            // An interval has two ends.
            let numbers = |x: &Value| match x.as_array() {
                Some(ends) => ends.iter().map(|x| x.as_f64().unwrap()).collect(),
                None => vec![x.as_f64().unwrap()],
            };
            // Step 1 is the same weights: sums of f64 in another order. Later, weights differ by f32 rounding.
            let first = a["step"].as_u64().unwrap() <= 1 && key != "grad_norm";
            let tolerance = if first { 1e-12 } else { 2e-4 };
            for (x, y) in numbers(x).iter().zip(numbers(&b[key])) {
                assert!((x - y).abs() <= tolerance * x.abs().max(1e-3), "{key}: {x} {y} in {a}");
            }
        }
    }
}

/// What `dpo` says of its reference, split after split.
fn passes(err: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for line in err.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        all.push(match words[..] {
            ["reference", "log-probs", "of", n, "responses", was, ..] => format!("log-probs of {n} {was}"),
            ["reference", done, ..] => format!("reference {}", done.split_once('/').unwrap().1),
            _ if line.contains(": not used: it was made by another model") => "not used".to_owned(),
            _ => continue,
        });
    }
    // The bar is drawn many times.
    all.dedup_by(|a, b| a == b && a.starts_with("reference "));
    all
}

#[test]
fn dpo_and_eval_make_missing_sidecars() {
    let cli = Cli::with_data();
    assert!(cli.names("d", ".ref-").is_empty());
    let cold = cli.ok("dpo --model m --data d --out a --max-steps 1");
    // One step reads eight pairs; what is held out is read whole.
    assert_eq!(
        passes(&cold.err),
        ["reference 16", "log-probs of 16 computed", "reference 16", "log-probs of 16 computed"]
    );
    assert_eq!(cli.names("d", ".ref-").len(), 2, "one beside each shard");
    cli.ok("dpo --model m --data d --out b --max-steps 1 --cache c");
    assert_eq!(cli.names("c", ".ref-").len(), 2);
    assert_eq!(cli.names("d", ".ref-").len(), 2);
    let ran = cli.ok("eval --model m --data d --json --kl-samples 0");
    assert!(ran.err.contains("no --ref-model: rewards are measured against the policy itself, and are 0"), "{ran:?}");
    let e = ran.json();
    assert_eq!((&e["rewards/margins"], &e["accuracy"]), (&json!(0.0), &json!(0.5)), "ties count one half");
    assert_eq!(e["loss"].as_f64().unwrap() as f32, std::f32::consts::LN_2);
    assert!(e.get("kl").is_none());
    let by_run = cli.ok("eval --model a --data d --json");
    assert!(by_run.err.contains("/m (from a/config.toml)"), "{by_run:?}");
    // A split's notes come with its pass.
    let other = cli.ok("dpo --model m --ref-model a --data d --out o --max-steps 1");
    let of_split = |n| ["not used".to_owned(), format!("reference {n}"), format!("log-probs of {n} computed")];
    assert_eq!(passes(&other.err), [of_split(16), of_split(16)].concat());
    let warm = cli.ok("dpo --model m --data d --out w --max-steps 1");
    assert_eq!(passes(&warm.err), ["log-probs of 16 found", "log-probs of 16 found"]);
}

#[test]
fn the_saved_precision_can_be_chosen() {
    let cli = Cli::with_data();
    for (name, dtype) in [("bf16", safetensors::Dtype::BF16), ("f16", safetensors::Dtype::F16)] {
        cli.ok(&format!("dpo --model m --data d --out {name} --save-dtype {name} --max-steps 2"));
        let bytes = cli.bytes(&format!("{name}/model.safetensors"));
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert!(file.iter().all(|(_, t)| t.dtype() == dtype));
        cli.ok(&format!("eval --model {name} --data d --json"));
    }
}

#[test]
fn a_reference_of_other_weights_skips_the_proof() {
    let cli = Cli::with_data();
    cli.model("other", "qwen3");
    cli.ok("dpo --model m --ref-model other --data d --out a --max-steps 2");
    let first = &timeless(&cli, "a")[1];
    assert!(first["rewards/margins"].as_f64().unwrap() != 0.0, "{first}");
    assert!(first["loss"].as_f64().unwrap() as f32 != std::f32::consts::LN_2);
}

/// Waits until `done`, for a minute at most.
#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed().as_secs() < 60, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn ctrl_c_finishes_the_step_and_saves() {
    let cli = Cli::with_data();
    for stage in ["dpo", "sft"] {
        let child = cli.spawn(&format!("{stage} --model m --data d --out {stage} --max-steps 1000000"));
        let metrics = cli.path(&format!("{stage}/metrics.jsonl"));
        until("the run takes steps", || std::fs::read_to_string(&metrics).is_ok_and(|t| t.lines().count() > 5));
        signal(&child, "INT");
        let ran = finish(child);
        assert_eq!(ran.code, 128 + 2, "{ran:?}");
        assert!(ran.err.contains("\nstopping: finishing the step and saving"), "{ran:?}");
        let steps = cli.json_lines(&format!("{stage}/metrics.jsonl"));
        // The last step, and nothing after it: nobody asked for an evaluation there.
        let last = steps.last().filter(|r| r.get("loss").is_some()).unwrap()["step"].as_u64().unwrap();
        let said = format!("stopped after step {last} of 1000000; saving what was learned so far");
        assert!(ran.err.contains(&said), "{said}: {ran:?}");
        let goes_on = format!(
            "stopped after step {last} of 1000000, with checkpoint-{last}; this goes on: fusedpo {stage} --config {stage}/config.toml --out {stage} --resume auto"
        );
        one_line(stage, &ran, 130, &goes_on);
        assert!(cli.path(&format!("{stage}/checkpoint-{last}/trainer_state.json")).exists());
        cli.ok(&format!("eval --model {stage} --data d --kl-samples 0"));
    }
}

#[test]
fn a_killed_reference_pass_goes_on() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &many_pairs(6000));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d --eval-fraction 0.8");
    let train = cli.ok("inspect d/train-00000.pref").out;
    let train: u64 = field(&train, "  responses ");
    let mut child = cli.spawn("reference --model m --data d");
    // The train split's sidecar is written whole when its pass ends; the eval split's pass is four times as long.
    // Killed while the second one's file is made, it would leave a temporary file behind.
    until("the first split is done", || {
        if cli.names("d", "eval-00000.pref.ref-").is_empty() {
            return false;
        }
        let Some(name) = cli.names("d", "train-00000.pref.ref-").pop() else { return false };
        // Bytes 24..32 of the header: how many are filled.
        let bytes = cli.bytes(&format!("d/{name}"));
        bytes.get(24..32).is_some_and(|b| u64::from_le_bytes(b.try_into().unwrap()) == train)
    });
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None, "killed before it ended");
    let said = cli.ok("reference --model m --data d").out;
    let words: Vec<&str> = said.split_whitespace().collect();
    let (all, computed, found): (u64, u64, u64) =
        (words[0].parse().unwrap(), words[2].parse().unwrap(), words[4].parse().unwrap());
    assert_eq!(all, computed + found, "{said}");
    assert!(found >= train && computed > 0, "{said} ({train} were done)");
    assert_eq!(cli.names("d", ".tmp"), Vec::<String>::new());
    cli.ok("dpo --model m --data d --out p --max-steps 1");
}

/// A number of `inspect`.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    line[name.len()..].trim().replace(',', "").parse().unwrap()
}

/// Like [`pairs`], with prompts that differ far longer.
fn many_pairs(n: usize) -> Vec<Value> {
    let mut rows = pairs(n);
    for (i, row) in rows.iter_mut().enumerate() {
        row["prompt"] = json!(format!("w{} w{} w{}", 3 + i % 90, 3 + i / 90 % 90, 3 + i / 8100));
    }
    rows
}

/// After an empty prompt nothing predicts the first token: it is neither scored nor counted.
#[test]
fn the_first_token_of_a_text_is_not_scored() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &[json!({"text": "w5 w6 w7"}), json!({"prompt": "w5", "completion": " w6 w7"})]);
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    cli.ok("score --model m --data d --out s --per-token");
    let lines = cli.json_lines("s");
    for (line, scored) in lines.iter().zip([3, 3]) {
        assert_eq!(
            (line["num_tokens"].as_u64(), line["token_logps"].as_array().unwrap().len()),
            (Some(scored), 3),
            "{line}"
        );
    }
    // The same words in the same order: the same predictions.
    for i in 0..3 {
        let [a, b] = [0, 1].map(|row: usize| lines[row]["token_logps"][i].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-5 * b.abs(), "{lines:?}");
    }
}

/// Texts without their special tokens, and the sums of what the model says of each token.
#[test]
fn lines_of_generate_are_what_was_generated() {
    let cli = Cli::new();
    // Half of the words end a text, so that some do.
    let ends: Vec<u32> = std::iter::once(2).chain((3..97).step_by(2)).collect();
    cli.edit_json("m/config.json", |c| c["eos_token_id"] = json!(ends));
    cli.write("prompts.jsonl", "{\"prompt\": \"w5 w6\"}\n{\"prompt\": \"w7\"}\n{\"prompt\": \"w9\"}\n");
    let args = "generate --model m --input prompts.jsonl --max-new-tokens 6 --device cpu --dtype f32";
    let printed: Vec<Value> = cli.ok(args).out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let tok = TextTokenizer::load(&cli.path("m"), &TokenizerOptions::default()).unwrap();
    let be = Cpu::<f64>::new().unwrap();
    let model = Model::load(&be, &ModelDir::open(&cli.path("m")).unwrap(), 64).unwrap();
    let o = GenerateOptions {
        max_new_tokens: 6,
        temperature: 0.0,
        top_p: 1.0,
        num_return_sequences: 1,
        seed: 42,
        eos_token_ids: ends,
        cache_bytes: 1 << 20,
        pack_weights: true,
    };
    let prompts = ["w5 w6", "w7", "w9"].map(|p| tok.encode(p).unwrap());
    let all = generate(&be, &model, &prompts, &o).unwrap();
    assert_eq!(printed.len(), 3);
    for (row, (line, one)) in printed.iter().zip(all.iter().flatten()).enumerate() {
        assert_eq!((&line["row"], &line["finished"]), (&json!(row), &json!(one.finished)));
        assert_eq!(line["num_tokens"], one.tokens.len());
        assert_eq!(line["completion"], tok.decode(&one.tokens, true).unwrap());
        let (got, want) = (line["logp"].as_f64().unwrap(), one.logps.iter().sum::<f64>());
        assert!((got - want).abs() <= 1e-4 * want.abs(), "{line} {want}");
    }
    // Special tokens are not shown: here all words are.
    cli.edit_json("m/tokenizer.json", |t| {
        let special = |id: u64| {
            json!({"id": id, "content": format!("w{id}"), "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
        };
        t["added_tokens"].as_array_mut().unwrap().extend((3..97).map(special));
    });
    assert_eq!(cli.ok("generate --model m --prompt w5 --max-new-tokens 6 --device cpu").out.trim(), "");
}
