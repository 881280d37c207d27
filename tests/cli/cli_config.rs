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
