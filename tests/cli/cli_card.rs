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
    assert!(svg.starts_with("<svg ") && svg.matches("<circle").count() >= 9, "{svg}");
    // Changed by hand: it stays, and the run says so.
    cli.ok(&format!("dpo {STEPS} --out c --lr-scheduler-type constant"));
    cli.write("c/README.md", format!("{}Mine.\n", cli.text("c/README.md")));
    cli.ok(&format!("dpo {STEPS} --out e --lr-scheduler-type constant --save-steps 2"));
    for (kept, dir) in [(false, "e"), (true, "e")] {
        if kept {
            cli.write("e/README.md", cli.text("e/README.md").replace("# e", "# Mine"));
        }
        let steps = if kept { 8 } else { 6 };
        let longer = STEPS.replace("--max-steps 4", &format!("--max-steps {steps}"));
        let ran = cli.ok(&format!("dpo {longer} --out {dir} --lr-scheduler-type constant --resume auto"));
        let card = cli.text("e/README.md");
        assert_eq!(card.contains("# Mine"), kept, "{card}");
        assert_eq!(
            ran.err.contains("changed by somebody") || ran.out.contains("changed by somebody"),
            kept,
            "{}",
            ran.err
        );
    }
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
}
