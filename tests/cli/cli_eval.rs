//! `eval` and `generate` from outside: what they take from the run that made a model, what they refuse to ignore, what
//! a model has no room for, and Ctrl-C.

use crate::cli_common;

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
    cli.bad("eval --model s --data d", 2, "s/config.toml: line 1 is not valid TOML: mend it, or take it away");
}

/// A run that goes on may look at other samples; what it looked at before its first step is then no "before" of them.
#[test]
fn other_samples_are_not_compared() {
    let cli = Cli::with_data();
    let run =
        "sft --model m --data d --out r --device cpu --learning-rate 1e-3 --batch-size 4 --max-steps 4 --save-steps 2";
    cli.ok(&format!("{run} --max-eval-samples 4"));
    let weights = cli.bytes("r/model.safetensors");
    let from = |samples: &str| cli.ok(&format!("{run} --resume r/checkpoint-2 {samples}"));
    let same = from("--max-eval-samples 4");
    assert!(same.out.contains("held-out before: ") && same.out.contains("held-out after: "), "{same:?}");
    for (samples, now) in [("--max-eval-samples 1", "4"), ("--max-eval-samples 5", "8"), ("", "8")] {
        let other = from(samples);
        let said = format!(
            "the evaluation before the first step was of 4 samples, and is not compared with those of {now} now"
        );
        // Rounded up to whole steps, 1 sample is the 4 of before.
        assert_eq!(other.err.contains(&said), now != "4", "{samples}: {other:?}");
        assert_eq!(other.out.contains("held-out before: "), now == "4", "{samples}: {other:?}");
        assert!(cli.bytes("r/model.safetensors") == weights, "{samples}");
        assert_eq!(cli.text("r/README.md").contains("before"), now == "4", "{samples}");
    }
}

/// A run, gone on with without evaluation, gone on with again: the evaluation before the first step is compared with the last one
/// where both are known to be of the same samples, and only there.
#[test]
fn a_call_without_evaluation_lies_between() {
    let cli = Cli::with_data();
    let call = |out: &str, steps: u64, more: &str| {
        let run =
            "sft --model m --data d --device cpu --learning-rate 1e-3 --batch-size 4 --lr-scheduler-type constant";
        cli.ok(&format!("{run} --resume auto --save-steps 2 --out {out} --max-steps {steps} {more}"))
    };
    let before = |ran: &Ran| {
        let line = ran.out.lines().find(|l| l.contains("held-out before: "));
        line.map(|l| l.split_once("held-out before: ").unwrap().1.to_owned())
    };
    let first_said = "the evaluation before the first step was of 8 samples, and is not compared with those of 4 now";
    for (i, (first, last, compared)) in [
        ("", "", true),
        ("--max-eval-samples 4", "", false),
        ("--max-eval-samples 4", "--max-eval-samples 4", false),
        ("", "--max-eval-samples 4", false),
    ]
    .into_iter()
    .enumerate()
    {
        let (out, what) = (format!("r{i}"), format!("{first:?}, then {last:?}"));
        let was = before(&call(&out, 2, first)).expect("the first call compares");
        let between = call(&out, 4, "--eval-strategy no");
        assert_eq!(before(&between), None, "{what}: {between:?}");
        let ran = call(&out, 6, last);
        assert!(ran.err.contains("step 6: held-out "), "{what}: {ran:?}");
        assert_eq!(before(&ran), compared.then_some(was), "{what}: {ran:?}");
        assert_eq!(ran.err.contains(first_said), first.is_empty() && !last.is_empty(), "{what}: {ran:?}");
    }
}

/// A value is said to be the run's where it is the run's, and only there.
#[test]
fn the_origin_of_each_value_is_told() {
    let cli = Cli::with_data();
    cli.ok("dpo --model m --data d --out r --max-steps 1 --beta 0.5 --label-smoothing 0.1");
    cli.ok("dpo --model m --data d --out h --max-steps 1 --beta 2 --loss-type hinge");
    for (args, want) in [
        ("r", "loss sigmoid, beta 0.5, label smoothing 0.1 (from r/config.toml)"),
        (
            "r --beta 0.3",
            "loss sigmoid (from r/config.toml), beta 0.3 (as asked), label smoothing 0.1 (from r/config.toml)",
        ),
        ("r --loss-type ipo", "loss ipo (as asked), beta 0.5 (from r/config.toml), label smoothing 0 (the default)"),
        (
            "h --loss-type sigmoid --label-smoothing 0.2",
            "loss sigmoid (as asked), beta 2 (from h/config.toml), label smoothing 0.2 (as asked)",
        ),
    ] {
        let ran = cli.ok(&format!("eval --data d --kl-samples 0 --model {args}"));
        assert!(ran.err.lines().any(|l| l == want), "{args}: {ran:?}");
    }
    for args in ["m", "r --loss-type sigmoid --beta 0.1 --label-smoothing 0"] {
        let ran = cli.ok(&format!("eval --data d --kl-samples 0 --model {args}"));
        assert!(!ran.err.contains("beta "), "{args}: nothing of a run: {ran:?}");
    }
}

/// What cannot be read is never taken for what is not there: the beta would be another.
#[test]
fn a_configuration_that_cannot_be_read_is_an_error() {
    let cli = Cli::with_data();
    cli.ok("dpo --model m --data d --out r --max-steps 1 --beta 0.5");
    let text = cli.text("r/config.toml");
    let eval = "eval --data d --model r";
    let instead = "mend it, or give --loss-type, --beta, --label-smoothing and --ref-model";
    let unreadable = |why: &str| {
        let want = format!("r/config.toml: cannot be read ({why}), and says how the model was made: {instead}");
        cli.bad(eval, 2, &want);
        // None of it is needed then, nor for the loss of responses.
        cli.ok(&format!("{eval} --loss-type sigmoid --beta 0.5 --label-smoothing 0 --ref-model m --kl-samples 0"));
        cli.ok(&format!("{eval} --loss-type ipo --beta 0.5 --ref-model m --kl-samples 0"));
        cli.ok(&format!("{eval} --loss-type sft"));
        let file = cli.path("r/config.toml");
        if file.is_dir() { std::fs::remove_dir(file) } else { std::fs::remove_file(file) }.unwrap();
    };
    cli.write("r/config.toml", b"beta = 0.5 # \xff");
    unreadable("stream did not contain valid UTF-8");
    std::fs::create_dir(cli.path("r/config.toml")).unwrap();
    unreadable("is a folder, not a regular file; name a file");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", cli.path("r/config.toml")).unwrap();
        unreadable("is a link that leads nowhere; put a file there");
        let made = std::process::Command::new("mkfifo").arg(cli.path("r/config.toml")).status();
        assert!(made.unwrap().success());
        unreadable("is a pipe, not a regular file; name a file");
    }
    let model = text.lines().find(|l| l.starts_with("model = ")).unwrap();
    for (line, key, want) in [
        ("beta = 0.5", "beta = \"0.5\"", "`beta` is \"0.5\", not a number: mend it, or give --beta"),
        (
            "label_smoothing = 0.0",
            "label_smoothing = []",
            "`label_smoothing` is [], not a number: mend it, or give --label-smoothing",
        ),
        (
            "loss_type = \"sigmoid\"",
            "loss_type = \"tdpo\"",
            "`loss_type` is \"tdpo\", not a loss that this program knows: mend it, or give --loss-type",
        ),
        ("beta = 0.5", "beta = -1", "`beta` is -1, not a finite number above 0: mend it, or give --beta"),
        ("beta = 0.5", "beta = nan", "`beta` is nan, not a finite number above 0: mend it, or give --beta"),
        (
            "label_smoothing = 0.0",
            "label_smoothing = 0.5",
            "`label_smoothing` is 0.5, not in [0, 0.5): mend it, or give --label-smoothing",
        ),
        ("beta = 0.5", "beta =", "line 7 is not valid TOML: mend it, or take it away"),
        (model, "ref_model = 1", "`ref_model` is 1, not the folder of a model: mend it, or give --ref-model"),
    ] {
        assert!(text.contains(line), "{line} in {text}");
        cli.write("r/config.toml", text.replace(line, key));
        cli.bad(eval, 2, &format!("r/config.toml: {want}"));
    }
    cli.write("r/config.toml", &text);
    assert!(cli.ok(eval).err.contains("beta 0.5"));
}

/// The numbers of a training split are never shown as if they were of held-out pairs.
#[test]
fn a_training_split_is_named() {
    let cli = Cli::with_data();
    cli.ok("pack --tokenizer m --input rows.jsonl --out all");
    let eval = |data: &str| cli.ok(&format!("eval --model m --kl-samples 0 --json --data {data}"));
    cli.ok("eval --model m --kl-samples 0 --data d --cache kept");
    assert_eq!(cli.names("kept", "eval-00000.pref.ref-").len(), 1, "--cache is where they go");
    assert_eq!(cli.names("d", ".ref-").len(), 0);
    let held_out = eval("d");
    assert_eq!((held_out.json()["split"].as_str(), held_out.err.contains("warning: ")), (Some("eval"), false));
    for data in ["all", "d/train-00000.pref"] {
        let ran = eval(data);
        let want = format!(
            "warning: {data} has no held-out split: these are the numbers of its training split; pack with --eval-fraction to hold prompts out"
        );
        assert_eq!(ran.json()["split"], "train");
        assert!(ran.err.lines().any(|l| l == want), "{ran:?}");
    }
    let text = cli.ok("eval --model m --kl-samples 0 --data all").out;
    assert!(text.lines().any(|l| l.split_whitespace().eq(["split", "train"])), "{text}");
    // Nor is it passed over that there is nothing to evaluate on during a run.
    for stage in ["dpo", "sft"] {
        let want = "--eval-steps 2: all has no held-out split; pack with --eval-fraction, or leave it out";
        cli.bad(&format!("{stage} --model m --data all --out r --eval-steps 2"), 2, want);
    }
    cli.ok("dpo --model m --data all --out r --eval-steps 0 --max-steps 1");
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
    one_line("generate", &ran, 128 + 2, "stopped while generating; nothing was written");
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
    assert_eq!(child.wait().unwrap().code(), Some(128 + 2), "{rest}");
    assert!(rest.ends_with("fusedpo: stopped; what was evaluated so far is not kept\n"), "{rest}");
}
