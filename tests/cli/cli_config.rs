//! `--config` of another stage or another loss: what was typed wins, and what the file cannot mean there is named.

use crate::cli_common;

use cli_common::*;

const FILES: &str = "--model m --data d --max-steps 2 --learning-rate 1e-3";

/// Runs of both stages, `s` and `p`.
fn runs() -> Cli {
    let cli = Cli::with_data();
    cli.ok(&format!("sft {FILES} --out s"));
    cli.ok(&format!("dpo {FILES} --out p --beta 0.5 --label-smoothing 0.1 --ref-model m"));
    cli
}

fn same_weights(cli: &Cli, a: &str, b: &str) {
    let weights = |run: &str| cli.bytes(&format!("{run}/model.safetensors"));
    assert!(weights(a) == weights(b), "{a} and {b}");
}

/// The lines that tell what was left out of a file.
fn left_out(ran: &Ran) -> Vec<&str> {
    ran.err.lines().filter(|l| l.contains(" left out: ")).collect()
}

#[test]
fn the_stage_is_the_one_that_was_typed() {
    let cli = runs();
    let ran = cli.ok("dpo --config s/config.toml --out dpo");
    assert_eq!(left_out(&ran), ["s/config.toml: `loss_type` left out: the file is of sft, this is dpo"]);
    cli.ok(&format!("dpo {FILES} --out plain"));
    same_weights(&cli, "dpo", "plain");
    assert!(cli.json_lines("dpo/metrics.jsonl")[0].get("eval_rewards/margins").is_some());
    assert!(cli.text("dpo/config.toml").contains("stage = \"dpo\"\n"));

    let ran = cli.ok("sft --config p/config.toml --out sft");
    let want =
        "p/config.toml: `loss_type`, `beta`, `label_smoothing`, `ref_model` left out: the file is of dpo, this is sft";
    assert_eq!(left_out(&ran), [want]);
    same_weights(&cli, "sft", "s");
    assert!(cli.text("sft/config.toml").contains("stage = \"sft\"\n"));
    // Its own stage loses nothing.
    for (stage, run) in [("sft", "s"), ("dpo", "p")] {
        let ran = cli.ok(&format!("{stage} --config {run}/config.toml --out {run}-again"));
        assert_eq!(left_out(&ran), [""; 0]);
        same_weights(&cli, run, &format!("{run}-again"));
    }
}

#[test]
fn the_loss_is_the_one_that_was_typed() {
    let cli = runs();
    let ran = cli.ok("dpo --config p/config.toml --loss-type sft --out r");
    let want = "p/config.toml: `beta`, `label_smoothing`, `ref_model` left out: not for the sft loss";
    assert_eq!(left_out(&ran), [want]);
    same_weights(&cli, "r", "s");
    // That loss was chosen, and is kept.
    let ran = cli.ok("dpo --config r/config.toml --out r2");
    assert_eq!(left_out(&ran), [""; 0]);
    same_weights(&cli, "r2", "s");

    let ran = cli.ok("dpo --config p/config.toml --loss-type ipo --out ipo");
    assert_eq!(left_out(&ran), ["p/config.toml: `label_smoothing` left out: not for the ipo loss"]);
    cli.ok(&format!("dpo {FILES} --loss-type ipo --beta 0.5 --out plain"));
    same_weights(&cli, "ipo", "plain");
    // A smoothing of nothing is no loss.
    let ran = cli.ok("dpo --config ipo/config.toml --loss-type hinge --out hinge");
    assert_eq!(left_out(&ran), [""; 0]);
}

#[test]
fn what_was_typed_is_never_left_out() {
    let cli = runs();
    let neither = "--beta: not defined for --loss-type sft; leave it out, or use another loss";
    cli.bad("dpo --config p/config.toml --loss-type sft --beta 0.3 --out r", 2, neither);
    let want = "--ref-model and --cache: the sft loss has no reference; leave them out";
    cli.bad("dpo --config s/config.toml --loss-type sft --cache c --out r", 2, want);
    let want = "--label-smoothing: not defined for --loss-type ipo; leave it out, or use another loss";
    cli.bad("dpo --config p/config.toml --loss-type ipo --label-smoothing 0.1 --out r", 2, want);
    // Nor is a file mended that contradicts itself, or is of no stage.
    for (text, stage, want) in [
        ("loss_type = \"sft\"\nbeta = 0.1\n", "dpo", neither),
        ("stage = \"rlhf\"\n", "dpo", "c.toml: `stage` is \"rlhf\", this is \"dpo\""),
        ("stage = 3\n", "sft", "c.toml: `stage` is 3, this is \"sft\""),
        ("beta = 0.1\n", "sft", "c.toml: `beta` is not an option of this command"),
        ("stage = \"dpo\"\ngamma = 1\n", "sft", "c.toml: `gamma` is not an option of this command"),
    ] {
        cli.write("c.toml", text);
        cli.bad(&format!("{stage} {FILES} --config c.toml --out r"), 2, want);
    }
    #[cfg(unix)]
    cli.bad("dpo --config /dev/zero --out r", 2, "/dev/zero: is a device, not a regular file; name a file");
}

/// A configuration as TRL's users have it makes the run that our own options make.
#[test]
fn yaml_under_trls_names() {
    let cli = Cli::with_data();
    let yaml = "# trl dpo --config run.yaml\nmodel_name_or_path: m\ndata: d\noutput_dir: y\nlearning_rate: 1.0e-3\nnum_train_epochs: 1\n\
                max_steps: -1\nbatch_size: 3\nloss_type: [sigmoid, sft]\nbeta: 0.2\nlr_scheduler_type: cosine\nwarmup_ratio: 0.25\n\
                use_peft: true\nlora_r: 2\nlora_alpha: 4\nlora_target_modules: [q_proj, v_proj]\nprecompute_ref_log_probs: true\n\
                eval_strategy: \"no\"\nseed: 7\nref_model: null\n";
    cli.write("run.yaml", yaml);
    cli.ok("dpo --config run.yaml");
    cli.ok(
        "dpo --model m --data d --out o --learning-rate 1e-3 --num-train-epochs 1 --batch-size 3 --loss-type sigmoid,sft --beta 0.2 \
         --lr-scheduler-type cosine --warmup-ratio 0.25 --lora-r 2 --lora-alpha 4 --lora-target-modules q_proj,v_proj --eval-strategy no --seed 7",
    );
    assert!(cli.bytes("y/adapter_model.safetensors") == cli.bytes("o/adapter_model.safetensors"));
    assert_eq!(cli.text("y/config.toml"), cli.text("o/config.toml"));
    // What was typed wins; the other ending is the same; and the stage is the one that was typed.
    cli.write("run.yml", yaml);
    cli.ok("dpo --config run.yml --out z --seed 8");
    assert!(cli.bytes("z/adapter_model.safetensors") != cli.bytes("o/adapter_model.safetensors"));
    for (text, args, want) in [
        (
            "per_device_train_batch_size: 4\ngradient_accumulation_steps: 2\n",
            "dpo",
            "`per_device_train_batch_size`: fusedpo has `batch_size`, pairs a step over all devices and micro-batches, which `token_budget` \
             cuts: write `batch_size: 8` in place of per_device_train_batch_size and gradient_accumulation_steps (on one device)",
        ),
        ("lerning_rate: 1\n", "dpo", "`lerning_rate` is not an option of this command; did you mean `learning_rate`?"),
        ("beta: 1\n", "sft", "`beta` is not an option of this command"),
        ("learning_rate: fast\n", "sft", "`learning_rate`: invalid type: string \"fast\", expected f64"),
        ("a: &x 1\nb: *x\n", "sft", "line 1: an anchor (`&name`); leave it out"),
        (
            "dataset_name: trl-lib/x\n",
            "dpo",
            "`dataset_name`: fusedpo trains on shards: pack the rows (`fusedpo pack --input FILE --out DATA`) and write `data: DATA`",
        ),
        ("eval_strategy: epoch\n", "dpo", "`eval_strategy`: unknown variant `epoch`, expected one of `no`, `steps`"),
    ] {
        cli.write("bad.yaml", text);
        cli.bad(&format!("{args} {FILES} --config bad.yaml --out r"), 2, &format!("bad.yaml: {want}"));
    }
    // TOML answers them too, where it has no translation.
    for (text, want) in [
        ("model_name_or_path = 'm'\n", "`model_name_or_path`: here it is `model`"),
        (
            "max_length = 512\n",
            "`max_length`: rows are cut when they are packed: `fusedpo pack --max-length N`; leave it out",
        ),
        (
            "labelsmoothing = 0.1\n",
            "`labelsmoothing` is not an option of this command; did you mean `label_smoothing`?",
        ),
    ] {
        cli.write("bad.toml", text);
        cli.bad(&format!("dpo {FILES} --config bad.toml --out r"), 2, &format!("bad.toml: {want}"));
    }
}
