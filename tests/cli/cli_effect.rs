//! What was typed and changes nothing is an error that names it; what a run cannot mean is a warning.

use crate::cli_common;

use cli_common::*;
use serde_json::json;

/// Every option that another takes its effect from: typed it is an error, and nothing is written.
#[test]
fn what_has_no_effect_is_refused_by_name() {
    let cli = Cli::with_data();
    let scored = json!({"prompt": "w5", "responses": [" w6", " w7 w8"], "scores": [1.0, 2.0]});
    cli.write_rows("scored.jsonl", &[scored]);
    cli.write_rows("implicit.jsonl", &[json!({"chosen": "w5 w6", "rejected": "w5 w7"})]);
    cli.write("template.jinja", "{{ messages[0].content }}");
    let greedy = "with --temperature 0 the likeliest token is always taken; give a --temperature, or leave it out";
    let samples = "it is of the samples of the KL estimate, and";
    for (args, why) in [
        (
            "dpo --model m --data d --out r --optim rmsprop --adam-beta1 0.5",
            "--adam-beta1 has no effect: --optim rmsprop has no such decay; leave it out, or use adamw".to_owned(),
        ),
        (
            "sft --model m --data d --out r --optim rmsprop --adam-beta2 0.999",
            "--adam-beta2 has no effect: --optim rmsprop has no such decay; leave it out, or use adamw".to_owned(),
        ),
        (
            "plan --model m --data d --max-steps 3 --num-train-epochs 2",
            "--num-train-epochs has no effect: --max-steps says where the run ends; leave one of them out".to_owned(),
        ),
        (
            "dpo --model m --data d --out r --loss-type sft --use-weighting",
            "--use-weighting: the sft loss weighs no pairs; leave it out".to_owned(),
        ),
        ("generate --model m --prompt w5 --top-p 0.5", format!("--top-p has no effect: {greedy}")),
        ("generate --model m --prompt w5 --num-return-sequences 3", format!("--num-return-sequences has no effect: {greedy}")),
        ("generate --model m --prompt w5 --seed 42", format!("--seed has no effect: {greedy}")),
        (
            "generate --model m --prompt w5 --chat-template template.jinja --wrap-prompts false",
            "--chat-template has no effect: without --wrap-prompts the prompt is read as it stands; leave one of them out".to_owned(),
        ),
        (
            "eval --model m --data d --kl-samples 0 --kl-max-new-tokens 8",
            format!("--kl-max-new-tokens has no effect: {samples} --kl-samples is 0; leave it out"),
        ),
        ("eval --model m --data d --kl-samples 0 --seed 8", format!("--seed has no effect: {samples} --kl-samples is 0; leave it out")),
        (
            "eval --model m --data d --loss-type simpo --seed 8",
            format!("--seed has no effect: {samples} the simpo loss has no reference to be far from; leave it out"),
        ),
        ("eval --model m --data d --loss-type simpo --ref-model m", "--ref-model: the simpo loss has no reference; leave it out".to_owned()),
        ("eval --model m --data d --loss-type orpo --cache c", "--cache: the orpo loss has no reference; leave it out".to_owned()),
        ("eval --model m --data d --loss-type cpo --kl-samples 4", "--kl-samples: the cpo loss has no reference; leave it out".to_owned()),
        (
            "eval --model m --data d --loss-type sft --kl-max-new-tokens 4",
            format!("--kl-max-new-tokens has no effect: {samples} the sft loss has no reference to be far from; leave it out"),
        ),
        (
            "pack --tokenizer m --input rows.jsonl --out e --max-length 0 --truncation drop",
            "--truncation has no effect: --max-length 0 lets rows be as long as they are; leave one of them out".to_owned(),
        ),
        (
            "pack --tokenizer m --input rows.jsonl --out e --seed 3",
            "--seed has no effect: nothing is held out without --eval-fraction; give that too, or leave it out".to_owned(),
        ),
        (
            "pack --tokenizer m --input rows.jsonl --out e --pairs all",
            "rows.jsonl: --pairs has no effect: no row has responses with scores; leave it out".to_owned(),
        ),
        (
            "pack --tokenizer m --input rows.jsonl --out e --prompt-boundary trl",
            "rows.jsonl: --prompt-boundary has no effect: no row is a pair of plain texts without a prompt; leave it out".to_owned(),
        ),
        (
            "pack --tokenizer m --input scored.jsonl --out e --pairs all --prompt-boundary last-turn",
            "scored.jsonl: --prompt-boundary has no effect: no row is a pair of plain texts without a prompt; leave it out".to_owned(),
        ),
    ] {
        cli.bad(args, 2, &why);
    }
    // Where rows could not be used, it is said: one of them may be what was meant.
    let bad = json!({"prompt": "w5", "responses": [" w6", " w7 w8"], "scores": [1.0]});
    cli.write("some.jsonl", format!("{}{bad}\n", cli.text("rows.jsonl")));
    let ran = cli.run("pack --tokenizer m --input some.jsonl --out e --pairs all");
    let why = "some.jsonl: --pairs has no effect: no row that can be used has responses with scores; leave it out, or mend the rows \
               that cannot be used; some.jsonl: line 25: ";
    assert!(ran.code == 2 && ran.err.contains(why) && !cli.path("e").exists(), "{ran:?}");
    // One row that has a use for them is enough.
    cli.write(
        "mixed.jsonl",
        format!("{}{}{}", cli.text("rows.jsonl"), cli.text("scored.jsonl"), cli.text("implicit.jsonl")),
    );
    cli.ok("pack --tokenizer m --input mixed.jsonl --out e --pairs best-worst --prompt-boundary trl");
    // What a run writes may say more than it had a use for, and is another run's configuration all the same.
    cli.ok("dpo --model m --data d --out r --optim rmsprop --max-steps 1");
    assert!(cli.text("r/config.toml").contains("adam_beta1 = "));
    cli.ok("dpo --config r/config.toml --out again --max-steps 2");
    // The values that change nothing anywhere.
    cli.ok("generate --model m --prompt w5 --max-new-tokens 2 --top-p 1 --num-return-sequences 1 --temperature 0");
}

/// SFT's learning rate is TRL's for SFT, and DPO's for DPO; a stage's default is not handed to the other stage.
#[test]
fn each_stage_has_its_learning_rate() {
    let cli = Cli::with_data();
    let rate =
        |run: &str| cli.text(&format!("{run}/config.toml")).parse::<toml::Table>().unwrap()["learning_rate"].as_float();
    let run = |args: &str, out: &str| cli.ok(&format!("{args} --out {out} --max-steps 1"));
    run("sft --model m --data d", "s");
    run("dpo --model m --data d", "p");
    assert_eq!([rate("s"), rate("p")], [Some(2e-5), Some(1e-6)]);
    let said = run("dpo --config s/config.toml", "s-p").err;
    let want = "s/config.toml: `loss_type`, `learning_rate` left out: the file is of sft, this is dpo";
    assert!(said.lines().any(|l| l == want), "{said}");
    run("sft --config p/config.toml", "p-s");
    assert_eq!([rate("p-s"), rate("s-p")], [Some(2e-5), Some(1e-6)]);
    // One that was chosen is.
    run("sft --model m --data d --learning-rate 3e-4", "c");
    run("dpo --config c/config.toml", "c-p");
    assert_eq!(rate("c-p"), Some(3e-4));
    run("dpo --config s/config.toml --learning-rate 2e-5", "t");
    assert_eq!(rate("t"), Some(2e-5));
}

/// The tour's runs that ended with 0 and without a word: each has one line that says what to do, and no other.
#[test]
fn a_run_that_cannot_be_meant_is_warned_of_once() {
    let cli = Cli::with_data();
    let said = |args: &str, out: &str| {
        let ran = cli.ok(&format!("{args} --model m --data d --device cpu --out {out}"));
        let warnings = ran.err.lines().filter_map(|l| l.strip_prefix("warning: ")).map(str::to_owned);
        (warnings.collect::<Vec<_>>(), ran.err.clone())
    };
    let rate = "the learning rate is 0: no weight will change; give a larger --learning-rate";
    assert_eq!(said("dpo --learning-rate 0", "zero").0, [rate]);
    let warm = "the warm-up of 500 steps does not end within the run's 3: the learning rate reaches 0.4 % of its peak; lower \
                --warmup-steps or --warmup-ratio, or take more steps";
    assert_eq!(said("dpo --warmup-steps 500 --max-steps 3", "warm").0, [warm]);
    for stage in ["sft", "dpo"] {
        let (warnings, err) =
            said(&format!("{stage} --learning-rate 100 --num-train-epochs 20"), &format!("{stage}-100"));
        let [one] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(
            one.starts_with("the loss diverged: ") && one.contains("; lower --learning-rate (1e2), or warm it up"),
            "{one}"
        );
        // Beside the bar stand means of the steps, not the last of a few pairs.
        let rows = cli.json_lines(&format!("{stage}-100/metrics.jsonl"));
        let last = rows.iter().rfind(|row| row.get("loss").is_some()).unwrap()["loss"].as_f64().unwrap();
        let bar =
            err.lines().rfind(|l| l.starts_with(&format!("{stage} 40/40 loss "))).unwrap_or_else(|| panic!("{err}"));
        let shown: f64 = bar.split(' ').nth(3).unwrap().parse().unwrap();
        let all = rows.iter().filter_map(|row| row.get("loss")?.as_f64());
        let [low, high] = [f64::min, f64::max].map(|f| all.clone().reduce(f).unwrap());
        assert!(low < shown && shown < high && (shown / last - 1.0).abs() > 1e-6, "{bar}: {last}, of {low} to {high}");
        assert!(bar.contains(if stage == "dpo" { " margin " } else { " token acc " }), "{bar}");
    }
    // A run as it should be has none.
    for stage in ["sft", "dpo"] {
        assert_eq!(said(&format!("{stage} --max-steps 8"), &format!("{stage}-well")).0, [""; 0]);
    }
}

/// Held-out evaluation of a run can be capped, in whole steps, and left out.
#[test]
fn evaluation_can_be_capped_and_left_out() {
    let cli = Cli::with_data();
    let base = "--model m --data d --device cpu --max-steps 2 --batch-size 3 --learning-rate 1e-3";
    let evals = |run: &str| -> Vec<serde_json::Value> {
        // Without times.
        rows(&cli, run).into_iter().filter(|row| row.get("eval_loss").is_some()).collect()
    };
    let run = |more: &str, out: &str| cli.ok(&format!("dpo {base} {more} --out {out}"));
    let all = run("", "all");
    assert!(all.out.contains("margin 0.0000, 8 pairs"), "{all:?}");
    for (most, pairs) in [(1, 3), (3, 3), (4, 6), (8, 8), (1000, 8)] {
        let (out, more) = (format!("most-{most}"), format!("--max_eval_samples {most}"));
        let ran = run(&more, &out);
        assert!(ran.out.lines().filter(|l| l.ends_with(&format!(", {pairs} pairs"))).count() == 2, "{more}: {ran:?}");
        assert!(
            ran.err.contains(&format!("held out: the first {pairs} of 8 are evaluated, in whole steps\n")),
            "{more}: {ran:?}"
        );
        assert_eq!(evals(&out) == evals("all"), pairs == 8, "{more}");
        assert!(cli.bytes(&format!("{out}/model.safetensors")) == cli.bytes("all/model.safetensors"), "{more}");
    }
    let none = run("--eval-strategy no", "none");
    assert!(!none.out.contains("held-out") && !none.err.contains("evaluation") && evals("none").is_empty(), "{none:?}");
    assert!(cli.bytes("none/model.safetensors") == cli.bytes("all/model.safetensors"));
    // Groups of three pairs are whole.
    let row = |i: usize| serde_json::json!({"prompt": words(i, 4), "responses": [words(i + 9, 3), words(i + 30, 4), words(i + 50, 2)], "scores": [3, 2, 1]});
    cli.write_rows("k.jsonl", &(0..12).map(row).collect::<Vec<_>>());
    cli.ok("pack --tokenizer m --input k.jsonl --out k --eval-fraction 0.5");
    let ran = cli.ok("dpo --model m --data k --device cpu --max-steps 1 --batch-size 2 --max-eval-samples 4 --out k4");
    assert!(ran.out.lines().filter(|l| l.ends_with(", 6 pairs")).count() == 2, "{ran:?}");
    cli.ok("pack --tokenizer m --input rows.jsonl --out bare");
    for (args, want) in [
        (format!("dpo {base} --out r --max-eval-samples 0"), "--max-eval-samples 0: must be 1 or more"),
        (
            format!("dpo {base} --out r --eval-strategy no --eval-steps 2"),
            "--eval-steps: with --eval-strategy no nothing is evaluated; leave one of them out",
        ),
        (
            format!("sft {base} --out r --eval-strategy no --max-eval-samples 2"),
            "--max-eval-samples: with --eval-strategy no nothing is evaluated; leave one of them out",
        ),
        (
            "dpo --model m --data bare --out r --max-eval-samples 2".into(),
            "--max-eval-samples 2: bare has no held-out split; pack with --eval-fraction, or leave it out",
        ),
    ] {
        cli.bad(&args, 2, want);
    }
}
