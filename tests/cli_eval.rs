//! `eval` and `generate` from outside: what they take from the run that made a model, what they refuse to ignore, what
//! a model has no room for, and Ctrl-C.

mod cli_common;

use cli_common::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};

/// The last evaluation of a run.
fn held_out(cli: &Cli, run: &str) -> f64 {
    let rows = cli.json_lines(&format!("{run}/metrics.jsonl"));
    rows.iter().rev().find_map(|r| r.get("eval_loss")?.as_f64()).unwrap()
}

#[test]
fn the_loss_is_that_of_the_run() {
    let cli = Cli::with_data();
    let eval = |args: &str| cli.ok(&format!("eval --data d --json --kl-samples 0 {args}"));
    let loss = |args: &str| eval(args).json()["loss"].as_f64().unwrap();
    let close = |got: f64, want: f64| assert!((got - want).abs() <= 1e-12 * want.abs(), "{got} {want}");
    for (run, options) in [
        ("sigmoid", "--beta 0.5 --label-smoothing 0.1"),
        ("hinge", "--loss-type hinge --beta 2"),
        ("ipo", "--loss-type ipo --beta 0.3"),
    ] {
        cli.ok(&format!("dpo --model m --data d --out {run} --learning-rate 1e-3 {options}"));
        close(loss(&format!("--model {run}")), held_out(&cli, run));
        // Said, with where from; and what was asked for wins.
        let said = format!("loss {run}, beta {}", options.split("beta ").nth(1).unwrap().split(' ').next().unwrap());
        assert!(eval(&format!("--model {run}")).err.contains(&said), "{said}");
        assert!(loss(&format!("--model {run} --beta 0.1")) != held_out(&cli, run));
        // Label smoothing is not for other losses, whatever the run had.
        assert!(loss(&format!("--model {run} --loss-type hinge --beta 1")).is_finite());
    }
    let as_asked = "--model sigmoid --ref-model m --loss-type sigmoid --beta 0.5 --label-smoothing 0.1";
    close(loss(as_asked), held_out(&cli, "sigmoid"));
    // An SFT run has no beta; pairs are still evaluated as pairs.
    cli.ok("sft --model m --data d --out s --max-steps 1");
    let e = eval("--model s").json();
    assert!(e.get("rewards/margins").is_some(), "{e}");
    cli.write("s/config.toml", "beta = ");
    cli.bad("eval --model s --data d", 2, "s/config.toml: not valid TOML: mend it, or take it away");
}

#[test]
fn what_the_sft_loss_would_ignore_is_refused() {
    let cli = Cli::with_data();
    for option in ["--beta 0.1", "--label-smoothing 0", "--ref-model m", "--cache c", "--kl-samples 3"] {
        let flag = option.split(' ').next().unwrap();
        let want = format!("{flag}: the sft loss (that of data without pairs) has no use for it; leave it out");
        cli.bad(&format!("eval --model m --data d --loss-type sft {option}"), 2, &want);
    }
    cli.ok("eval --model m --data d --loss-type sft --kl-samples 0");
    let want = "--ref-model and --cache: the sft loss has no reference; leave them out";
    for option in ["--ref-model m", "--cache c"] {
        cli.bad(&format!("dpo --model m --data d --out r --loss-type sft {option}"), 2, want);
    }
}

/// Samples keep within a sliding window that the data keep within, the policy's and the reference's.
#[test]
fn samples_stay_within_what_both_models_have() {
    let cli = Cli::with_data();
    cli.model("window", "llama");
    cli.edit_json("window/config.json", |c| {
        c["model_type"] = json!("mistral");
        c["architectures"] = json!(["MistralForCausalLM"]);
        c["sliding_window"] = json!(24)
    });
    for args in ["--model window --ref-model m", "--model m --ref-model window"] {
        let e = cli.ok(&format!("eval {args} --data d --json")).json();
        assert_eq!((&e["kl_max_new_tokens"], e["kl"].is_f64()), (&json!(12), true), "half of 24: {e}");
    }
}

#[test]
fn rows_beyond_a_models_positions_are_told() {
    let cli = Cli::with_data();
    let warns = |args: &str| cli.ok(args).err.contains("warning: rows of up to ");
    for (positions, want) in [(128, false), (8, true)] {
        cli.edit_json("m/config.json", |c| c["max_position_embeddings"] = json!(positions));
        for args in ["dpo --max-steps 1 --out r", "sft --max-steps 1 --out r", "eval", "score --overwrite --out s"] {
            assert_eq!(warns(&format!("{args} --model m --data d")), want, "{args} {positions}");
            let _ = std::fs::remove_dir_all(cli.path("r"));
        }
        // The prompt alone is longer.
        let ran =
            cli.command("generate --model m --max-new-tokens 1").args(["--prompt", &words(1, 20)]).output().unwrap();
        let err = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(err.contains("warning: rows of up to "), want, "{err}");
    }
}

#[test]
fn ctrl_c_ends_what_saves_nothing() {
    let cli = Cli::with_data();
    // Without an end token: hours of work.
    cli.edit_json("m/config.json", |c| c["eos_token_id"] = Value::Null);
    let _ = std::fs::remove_file(cli.path("m/generation_config.json"));
    let child = cli.spawn("generate --model m --prompt w5 --max-new-tokens 500000");
    std::thread::sleep(std::time::Duration::from_millis(500));
    signal(&child, "INT");
    let ran = finish(child);
    one_line("generate", &ran, 1, "stopped while generating; nothing was written");
    assert!(ran.err.contains("\nstopping (Ctrl-C again ends at once)") && ran.out.is_empty(), "{ran:?}");

    cli.write_rows("many.jsonl", &pairs(40_000));
    cli.ok("pack --tokenizer m --input many.jsonl --out many");
    let mut child = cli.spawn("eval --model m --data many --loss-type sft");
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("evaluation ") {
        line.clear();
        assert!(err.read_line(&mut line).unwrap() > 0, "no evaluation began");
    }
    signal(&child, "INT");
    let mut rest = String::new();
    err.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.ends_with("fusedpo: stopped; what was evaluated so far is not kept\n"), "{rest}");
}
