//! The model card that a run leaves.

use crate::cli_common::*;

const STEPS: &str =
    "--model m --data d --max-steps 4 --token-budget 64 --batch-size 2 --learning-rate 1e-3 --device cpu";

fn cells(card: &str, name: &str) -> Vec<String> {
    let line = card.lines().find(|l| l.starts_with(&format!("| {name}"))).unwrap_or_else(|| panic!("{name}: {card}"));
    line.split('|').skip(2).map(|c| c.trim().to_owned()).filter(|c| !c.is_empty()).collect()
}

/// What it says is what the run measured; the same run has the same card; one that was changed by hand stays.
#[test]
fn a_run_leaves_a_card() {
    let cli = Cli::with_data();
    cli.ok(&format!("dpo {STEPS} --out a --eval-steps 2"));
    cli.ok(&format!("dpo {STEPS} --out b/a --eval-steps 2"));
    let card = cli.text("a/README.md");
    assert!(card == cli.text("b/a/README.md"), "{card}");
    assert_eq!(cli.text("a/training.svg"), cli.text("b/a/training.svg"));
    let front: Vec<&str> = card.split("---\n").nth(1).unwrap().lines().collect();
    assert_eq!(&front[..2], ["library_name: transformers", "pipeline_tag: text-generation"], "{card}");
    assert_eq!(&front[2..], ["tags:", "- fusedpo", "- dpo", "- sigmoid"]);
    assert!(!card.contains(cli.dir.path().to_str().unwrap()), "{card}");
    let rows: Vec<_> = cli.json_lines("a/metrics.jsonl").into_iter().filter(|r| r.get("eval_loss").is_some()).collect();
    let [first, last] = [&rows[0], &rows[rows.len() - 1]];
    for (name, key) in
        [("loss", "eval_loss"), ("accuracy", "eval_rewards/accuracies"), ("reward margin", "eval_rewards/margins")]
    {
        for (cell, row) in cells(&card, name).iter().zip([first, last]) {
            let (said, is) = (cell.split(' ').next().unwrap().parse::<f64>().unwrap(), row[key].as_f64().unwrap());
            assert!((said - is).abs() <= 5e-3 * is.abs().max(1e-3), "{name}: {said} {is}");
        }
    }
    assert!(cells(&card, "accuracy")[1].contains('[') && card.contains("| `learning_rate` | `0.001` |"), "{card}");
    let svg = cli.text("a/training.svg");
    assert!(svg.starts_with("<svg ") && svg.matches("class=\"mark ").count() >= 3, "{svg}");
}

/// What somebody changed, or put there, stays; what the run wrote itself it writes again.
#[test]
fn a_card_that_is_somebody_elses_stays() {
    let cli = Cli::with_data();
    let run = |steps: usize| {
        let longer = STEPS.replace("--max-steps 4", &format!("--max-steps {steps}"));
        let ran = cli.ok(&format!("dpo {longer} --out e --lr-scheduler-type constant --save-steps 2 --resume auto"));
        ran.out + &ran.err
    };
    assert!(!run(4).contains("no model card"));
    let first = cli.text("e/README.md");
    assert!(!run(6).contains("no model card") && cli.text("e/README.md") != first);
    let (card, picture) = (cli.text("e/README.md"), cli.text("e/training.svg"));
    let mut steps = 6;
    for (name, theirs) in [
        ("README.md", card.replace("# e", "# Mine").into_bytes()),
        ("README.md", b"Caf\xe9".to_vec()),
        ("training.svg", picture.replace("step", "Schritt").into_bytes()),
    ] {
        cli.write("e/README.md", &card);
        cli.write("e/training.svg", &picture);
        cli.write(&format!("e/{name}"), &theirs);
        steps += 2;
        let said = run(steps);
        assert!(said.contains(&format!("no model card: {name} was changed by somebody")), "{said}");
        assert!(cli.bytes(&format!("e/{name}")) == theirs, "{name}");
    }
}

/// Before and after are the model that the run started from and its result, measured; nothing else is called so.
#[test]
fn before_and_after_are_what_they_say() {
    let cli = Cli::with_data();
    let run = |out: &str, steps: usize, more: &str| {
        let longer = STEPS.replace("--max-steps 4", &format!("--max-steps {steps}"));
        let ran = cli
            .ok(&format!("dpo {longer} --out {out} --lr-scheduler-type constant --save-steps 2 --resume auto {more}"));
        (ran.out + &ran.err, cli.text(&format!("{out}/README.md")))
    };
    let (said, card) = run("a", 4, "");
    assert!(said.contains("held-out after") && card.contains("| accuracy"), "{said}{card}");
    let (said, card) = run("a", 6, "--eval-strategy no");
    assert!(!said.contains("held-out after") && !card.contains("| accuracy"), "{said}{card}");
    let (said, card) = run("a", 8, "");
    let before = said.lines().find(|l| l.starts_with("held-out before")).unwrap_or_else(|| panic!("{said}"));
    assert!(before.contains("loss 0.6931") && cells(&card, "loss")[0] == "0.6931", "{said}{card}");
    run("b", 4, "--eval-strategy no");
    let (said, card) = run("b", 6, "");
    assert!(
        said.contains("held-out loss") && !said.contains("held-out before") && !card.contains("| accuracy"),
        "{said}{card}"
    );
}

/// An adapter's is for PEFT; supervised fine-tuning has no rewards.
#[test]
fn cards_of_adapters_and_of_sft() {
    let cli = Cli::with_data();
    cli.ok(&format!("sft {STEPS} --out s --lora-r 2"));
    let card = cli.text("s/README.md");
    assert!(card.contains("library_name: peft") && card.contains("PeftModel") && card.contains("- lora"), "{card}");
    assert!(card.contains("tags:\n- fusedpo\n- sft\n- lora\n") && !card.contains("reward"), "{card}");
    let text = cli.text("s/training.svg");
    assert!(text.contains("token accuracy") && !text.contains("margin"), "{text}");
    cli.ok(&format!("dpo {STEPS} --out t --sync-ref-model --ref-model-sync-steps 2"));
    let card = cli.text("t/README.md");
    assert!(card.contains("- Reference: the starting policy, which follows the policy (TR-DPO).\n"), "{card}");
}
