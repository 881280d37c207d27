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

/// Sets with names stand in a table of their own, as they are at the evaluation that the model is of.
#[test]
fn a_card_has_the_named_sets() {
    let cli = Cli::with_data();
    cli.write_rows("more.jsonl", &pairs(50)[24..]);
    cli.ok("pack --tokenizer m --input more.jsonl --out more");
    let best = "--load-best-model-at-end --learning-rate 0.02 --lr-scheduler-type constant --max-steps 14";
    let ends = format!("{best} --early-stopping-patience 2");
    let often = STEPS.replace("--max-steps 4", "").replace("--learning-rate 1e-3", "");
    let sets = "--eval-steps 2 --eval-data it_1=more --eval-data own=d";
    for (args, of_pairs, out) in [
        (format!("dpo {STEPS} {sets}"), true, "last"),
        (format!("dpo {often} {best} {sets}"), true, "best"),
        (format!("dpo {often} {ends} {sets}"), true, "early"),
        (format!("sft {STEPS} {sets}"), false, "sft"),
    ] {
        cli.ok(&format!("{args} --out {out}"));
        let run: serde_json::Value = serde_json::from_str(&cli.text(&format!("{out}/run.json"))).unwrap();
        let at = run["best"]["step"].as_u64().unwrap_or(4);
        assert!(!["best", "early"].contains(&out) || at < 14, "the loss turns");
        let rows = cli.json_lines(&format!("{out}/metrics.jsonl"));
        let row = rows.iter().find(|r| r["step"] == at && r.get("eval_own_loss").is_some()).unwrap();
        let card = cli.text(&format!("{out}/README.md"));
        let titles = cells(&card, "set, after");
        assert_eq!(titles.iter().any(|t| t.starts_with("accuracy")), of_pairs, "{card}");
        let steps = run["steps_done"].as_u64().unwrap();
        let said = match out {
            "best" => format!(": 14 steps of 2; the weights are those of step {at}, the best by `eval_loss`."),
            "early" => format!(
                ": {steps} steps of 2; ended at step {steps} of 14: 2 evaluations in a row without a better eval\\_loss; the weights \
                 are those of step {at}, the best by `eval_loss`."
            ),
            _ => ": 4 steps of 2.".to_owned(),
        };
        assert!(card.contains(&said) && !card.contains("num_train_epochs"), "{said}: {card}");
        for (cell, set) in [(r"it\_1", "it_1"), ("own", "own")] {
            let said = cells(&card, cell);
            assert_eq!(said.len(), titles.len(), "{card}");
            let loss = said[titles.iter().position(|t| t == "loss").unwrap()].parse::<f64>().unwrap();
            let is = row[format!("eval_{set}_loss")].as_f64().unwrap();
            assert!((loss - is).abs() <= 5e-4 * is.abs(), "{card} {is}");
            if of_pairs {
                let ends = &row[format!("eval_{set}_rewards/accuracies_ci95")];
                let want = format!(
                    "{:.3} [{:.3}, {:.3}]",
                    row[format!("eval_{set}_rewards/accuracies")].as_f64().unwrap(),
                    ends[0].as_f64().unwrap(),
                    ends[1].as_f64().unwrap()
                );
                assert_eq!(said[0], want, "{card}");
            }
        }
    }
    cli.ok(&format!("dpo {STEPS} --out none"));
    assert!(!cli.text("none/README.md").contains("set, after"));
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
