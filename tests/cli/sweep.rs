//! `fusedpo sweep`: each run is what its own command makes, what is there is not made again, and whatever fails costs its row.

use crate::cli_common;

use cli_common::*;
use serde_json::{Value, json};
use std::time::Duration;

/// What all sweeps of these tests have.
const BASE: &str = "model = \"m\"\ndata = \"d\"\ndevice = \"cpu\"\nlearning_rate = 1e-3\n";

/// Characters of a line are its score.
const LENGTH: &str = "scorer = [\"sh\", \"-c\", \"while read -r l; do echo ${#l}; done\"]\n";

const SHORT: &str = "samples = 5\nmax_new_tokens = 8\nkl_samples = 3\n";

fn results(cli: &Cli, out: &str) -> Value {
    serde_json::from_str(&cli.text(&format!("{out}/sweep.json"))).unwrap()
}

fn names(results: &Value) -> Vec<String> {
    results["runs"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
}

/// Weights and metrics of every run, the table and the picture: what must not depend on who was killed, or on how many at a time.
fn content(cli: &Cli, out: &str) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for file in ["sweep.json", "sweep.csv", "frontier.svg"] {
        all.push((file.to_owned(), cli.bytes(&format!("{out}/{file}"))));
    }
    for name in names(&results(cli, out)) {
        let run = format!("{out}/{name}");
        all.push((format!("{name} metrics"), format!("{:?}", rows(cli, &run)).into_bytes()));
        for file in ["model.safetensors", "eval.json", "generations.jsonl", "scores.json"] {
            all.push((format!("{name}/{file}"), cli.bytes(&format!("{run}/{file}"))));
        }
    }
    all
}

#[test]
fn each_row_is_what_the_commands_make_of_it() {
    let cli = Cli::with_data();
    let text = format!(
        "{BASE}max_steps = 4\n[grid]\nbeta = [0.1, 0.7]\nloss_type = [\"sigmoid\", \"ipo\", [\"orpo\", \"sft\"]]\n[sweep]\n{LENGTH}{SHORT}"
    );
    cli.write("s.toml", &text);
    let ran = cli.ok("sweep s.toml --out o --jobs 2");
    let all = results(&cli, "o");
    assert_eq!((all["complete"].as_bool(), names(&all).len()), (Some(true), 6), "{all}");
    assert_eq!(names(&all)[5], "beta-0.7_loss_type-orpo+sft");
    // The reference once, for both splits, in the sweep's own cache.
    assert_eq!(cli.names("o/reference", "").len(), 2);
    assert!(cli.names("d", ".ref-").is_empty());
    for (i, name) in names(&all).iter().enumerate() {
        let (row, run) = (&all["runs"][i], format!("o/{name}"));
        let loss = row["options"]["loss_type"].as_array().map_or_else(
            || row["options"]["loss_type"].as_str().unwrap().to_owned(),
            |l| l.iter().map(|v| v.as_str().unwrap()).collect::<Vec<_>>().join(","),
        );
        let beta = &row["options"]["beta"];
        // The run itself, typed.
        let out = format!("own-{i}");
        cli.ok(&format!(
            "dpo --model m --data d --device cpu --learning-rate 1e-3 --max-steps 4 --beta {beta} --loss-type {loss} --out {out}"
        ));
        assert!(
            cli.bytes(&format!("{out}/model.safetensors")) == cli.bytes(&format!("{run}/model.safetensors")),
            "{name}"
        );
        let last = rows(&cli, &out).pop().unwrap();
        assert_eq!((&row["eval_loss"], &row["steps"]), (&last["eval_loss"], &json!(4)), "{name}: {last}");
        // By one measure.
        let eval = cli.ok(&format!(
            "eval --model {out} --ref-model m --data d --device cpu --loss-type sigmoid --beta 0.1 --kl-samples 3 --kl-max-new-tokens 8 --json"
        ));
        for key in ["accuracy", "kl", "kl_ci95"] {
            assert_eq!(row[key], eval.json()[key], "{name}: {key}");
        }
        // What the scorer was given, and the mean of what it said.
        let lines = cli.text(&format!("{run}/generations.jsonl"));
        let lengths: Vec<f64> = lines.lines().map(|l| l.chars().count() as f64).collect();
        let (mean, reward) = (lengths.iter().sum::<f64>() / lengths.len() as f64, row["reward"].as_f64().unwrap());
        assert!((mean - reward).abs() < 1e-9 && lengths.len() == 5 && row["samples"] == 5, "{name}: {row}");
        let again = cli.ok(&format!(
            "generate --model {out} --input {run}/prompts.jsonl --max-new-tokens 8 --temperature 1 --device cpu"
        ));
        assert_eq!(again.out, lines, "{name}");
        assert!(ran.out.contains(&format!("{mean:.3} +- ")), "{}", ran.out);
    }
    // Nobody has at least its reward at no more KL, and somebody is there.
    let at = |r: &Value| (r["kl"].as_f64().unwrap(), r["reward"].as_f64().unwrap());
    let runs = all["runs"].as_array().unwrap();
    for row in runs {
        let (kl, reward) = at(row);
        let beaten = runs.iter().map(at).any(|(k, r)| k <= kl && r >= reward && (k, r) != (kl, reward));
        assert_eq!(row["on_frontier"], json!(!beaten), "{row}");
    }
    assert_eq!(cli.text("o/frontier.svg").matches("<circle").count(), 6);
    assert_eq!(cli.text("o/sweep.csv").lines().count(), 7);
    // Once more: nothing is made, and the same is said.
    let before: Vec<_> = cli.tree().into_iter().collect();
    let times = || -> Vec<_> {
        names(&all)
            .iter()
            .map(|n| cli.path(&format!("o/{n}/run.json")).metadata().unwrap().modified().unwrap())
            .collect()
    };
    let (then, bytes) = (times(), content(&cli, "o"));
    let again = cli.ok("sweep s.toml --out o");
    assert_eq!((again.out, times()), (ran.out, then));
    assert!(content(&cli, "o") == bytes && cli.tree().into_iter().collect::<Vec<_>>() == before);
    assert_eq!(cli.ok("sweep s.toml --out o --json").json(), all);
    // Another file is another sweep.
    cli.write("t.toml", text.replace("max_steps = 4", "max_steps = 5"));
    cli.bad(
        "sweep t.toml --out o",
        2,
        "o/sweep.toml: is of another sweep than the file that was given; name a new folder, or give this file to go on",
    );
    cli.bad("sweep t.toml --out d", 2, "d: the output folder exists and is not empty; name a new one or remove it");
}

/// Killed at random moments, and stopped once in order, until it is through: the same as undisturbed, and as one at a time.
#[test]
fn a_sweep_that_was_killed_is_one_that_was_not() {
    let cli = Cli::with_data();
    cli.write(
        "s.toml",
        format!(
            "{BASE}max_steps = 40\nsave_steps = 5\n[random]\nbeta = {{ min = 0.01, max = 1.0, log = true }}\nseed = {{ min = 1, max = 9 }}\n\
             [sweep]\ndraws = 3\n{LENGTH}{SHORT}"
        ),
    );
    let whole = std::time::Instant::now();
    cli.ok("sweep s.toml --out whole");
    let whole = whole.elapsed();
    let mut at = u64::from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos());
    println!("moments from {at}");
    let mut kills = 0;
    for round in 0..8 {
        at = at.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let share = (at >> 40) as f64 / (1u64 << 24) as f64;
        let mut child = cli.spawn(&format!("sweep s.toml --out o --jobs {} --log-level error", 1 + round % 2));
        std::thread::sleep(whole.mul_f64(0.6 * share).min(Duration::from_secs(3)));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        signal(&child, if round == 2 { "TERM" } else { "KILL" });
        let ended = child.wait().unwrap();
        kills += u32::from(!ended.success());
    }
    let last = cli.ok("sweep s.toml --out o --jobs 3");
    assert!(kills > 0);
    let (is, want) = (content(&cli, "o"), content(&cli, "whole"));
    for (is, want) in is.iter().zip(&want) {
        assert!(is == want, "after {kills} kills {} is another: {last:?}", is.0);
    }
    assert_eq!(is.len(), want.len());
}

/// A signal ends the runs in order, and nothing of a second sweep begins meanwhile.
#[test]
fn a_stop_ends_all_in_order_and_two_do_not_share_a_folder() {
    let cli = Cli::with_data();
    cli.write("s.toml", format!("{BASE}max_steps = 1000000\n[grid]\nseed = [1, 2, 3]\n"));
    let child = cli.spawn("sweep s.toml --out o --jobs 2");
    let steps =
        |seed: u32| std::fs::read_to_string(cli.path(&format!("o/seed-{seed}/metrics.jsonl"))).unwrap_or_default();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while [1, 2].iter().any(|s| steps(*s).lines().count() < 4) {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(Duration::from_millis(10));
    }
    let second = cli.run("sweep s.toml --out o");
    one_line("second", &second, 2, "o: another sweep is at work in it; wait for it, or name a new folder");
    signal(&child, "INT");
    let ran = finish(child);
    assert_eq!(ran.code, 130, "{ran:?}");
    assert!(
        ran.err.ends_with("fusedpo: stopped; 0 of 3 runs are through; this goes on: fusedpo sweep s.toml --out o\n"),
        "{ran:?}"
    );
    for seed in [1, 2] {
        let run: Value = serde_json::from_str(&cli.text(&format!("o/seed-{seed}/run.json"))).unwrap();
        assert_eq!(run["outcome"], "stopped");
        assert_eq!(cli.names(&format!("o/seed-{seed}"), "checkpoint-").len(), 1);
    }
    assert!(!cli.path("o/seed-3").exists());
    let all = results(&cli, "o");
    assert_eq!((&all["complete"], &all["runs"][0]["error"]), (&json!(false), &json!("stopped before its end")));
}

/// One run cannot be trained and one program is as bad as it can be: the others have their rows.
#[test]
fn what_fails_costs_its_row() {
    let cli = Cli::with_data();
    let base = BASE.replace("learning_rate = 1e-3\n", "");
    let sweep = |scorer: &str| {
        format!(
            "{base}max_steps = 4\n[grid]\nlearning_rate = [1e-3, 1e39]\n[sweep]\nscorer = [\"sh\", \"-c\", '{scorer}']\n{SHORT}"
        )
    };
    cli.write("s.toml", sweep("while read -r l; do echo 0.5; done"));
    let ran = cli.ok("sweep s.toml --out o");
    let all = results(&cli, "o");
    let error = all["runs"][1]["error"].as_str().unwrap();
    assert!(error.starts_with("training ended with exit code 1: "), "{error}");
    assert!(all["runs"][0]["error"].is_null() && all["runs"][0]["reward"] == 0.5, "{all}");
    assert!(ran.err.contains("warning: learning_rate-1e39: training ended with exit code 1: "), "{ran:?}");
    for (i, (scorer, want)) in [
        ("echo 1", "the scorer printed 1 scores for 5 responses"),
        (
            "while read -r l; do echo 1; echo 2; done",
            "the scorer printed more lines than the 5 responses that it was given",
        ),
        ("while read -r l; do echo good; done", "the scorer printed `good` in line 1, which is no finite number"),
        ("while read -r l; do echo inf; done", "the scorer printed `inf` in line 1, which is no finite number"),
        ("echo one >&2; echo no model >&2; exit 3", "the scorer ended with exit code 3: no model"),
        ("kill -9 $$", "the scorer was ended by signal 9"),
        ("sleep 300 & sleep 300", "the scorer had not ended after 0.5 s, and was ended"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("o{i}");
        cli.write("s.toml", sweep(scorer).replace("1e-3, 1e39", "1e-3") + "scorer_timeout = 0.5\n");
        if i > 0 {
            // Its run is there already.
            std::fs::create_dir(cli.path(&out)).unwrap();
            cli.write(&format!("{out}/sweep.toml"), cli.bytes("s.toml"));
            std::fs::rename(
                cli.path(&format!("o{}/learning_rate-0.001", i - 1)),
                cli.path(&format!("{out}/learning_rate-0.001")),
            )
            .unwrap();
        }
        let ran = cli.run(&format!("sweep s.toml --out {out}"));
        let row = results(&cli, &out)["runs"][0].clone();
        assert_eq!(row["error"], want, "{scorer}");
        assert!(row["reward"].is_null() && row["kl"].is_number() && row["accuracy"].is_number(), "{row}");
        one_line(
            scorer,
            &ran,
            1,
            &format!("the run was trained, but not measured to its end; learning_rate-0.001: {want}"),
        );
    }
    // Only some trained: the first error of them.
    cli.write("s.toml", sweep("exit 4"));
    let ran = cli.run("sweep s.toml --out p");
    let want = "1 of 2 runs were trained, but none was measured to its end; learning_rate-0.001: the scorer ended with exit code 4";
    assert_eq!(ran.err.lines().last(), Some(format!("fusedpo: {want}").as_str()), "{ran:?}");
    assert_eq!(ran.code, 1);
}

#[test]
fn what_cannot_be_is_said_before_anything_begins() {
    let cli = Cli::with_data();
    let grid = "[grid]\nseed = [1]\n";
    for (text, want) in [
        (format!("{BASE}[grid]\n"), "[grid] is empty: nothing is searched over"),
        (format!("{BASE}[grid]\nbeta = []\n"), "[grid]: `beta` is empty; give values, or leave it out"),
        (format!("{BASE}bata = 1\n{grid}"), "`bata` is not an option of this command; did you mean `beta`?"),
        (format!("{BASE}[grid]\nbata = [1]\n"), "`bata` is not an option of this command; did you mean `beta`?"),
        (format!("{BASE}[grid]\nbeta = [0.1, -1]\n"), "run beta--1: `beta` -1: must be a finite number greater than 0"),
        (format!("{BASE}[grid]\nloss_type = ['sigmoid', 'nope']\n"), "run loss_type-nope: "),
        (format!("{BASE}out = 'x'\n{grid}"), "`out`: a sweep names the folders of its runs; leave it out"),
        (format!("{BASE}[grid]\nresume = ['auto']\n"), "`resume`: a sweep's runs go on by themselves; leave it out"),
        (format!("model = 'm'\n{grid}"), "`data` is missing: every run needs it"),
        (
            format!("{BASE}{grid}[sweep]\nscorers = ['a']\n"),
            "[sweep]: `scorers` is none of what this table has: draws, ",
        ),
        (format!("{BASE}stage = 'sft'\nbeta = 1\n{grid}"), "run seed-1: `beta` is not an option of this command"),
    ] {
        cli.write("s.toml", &text);
        let before = cli.tree();
        let ran = cli.run("sweep s.toml --out o");
        let last = ran.err.lines().last().unwrap_or_default();
        assert!(ran.code == 2 && last.starts_with(&format!("fusedpo: s.toml: {want}")), "{text}: {ran:?}");
        assert_eq!((ran.err.lines().count(), cli.tree()), (1, before), "{text}: {ran:?}");
    }
    cli.write("s.toml", format!("{}{grid}", BASE.replace("\"m\"", "\"none\"")));
    cli.bad("sweep s.toml --out o", 2, "none: is not there, and s.toml names it as a model");
    cli.write("s.toml", format!("{BASE}{grid}"));
    let ran = cli.run("sweep s.toml --out o --jobs 0");
    assert!(ran.code == 2 && ran.err.contains("give a whole number from 1 to 256"), "{ran:?}");
    cli.bad(
        "sweep s.toml --out o --gpus 0,1",
        2,
        "--gpus has no effect: every run is on the CPU (--device); leave it out",
    );
    cli.write("s.toml", format!("{}{grid}", BASE.replace("\"cpu\"", "\"cuda:1\"")));
    cli.bad(
        "sweep s.toml --out o --gpus 0,1",
        2,
        "--gpus has no effect: a run names its GPU (--device cuda:1), and would see one alone; leave one of them out",
    );
    cli.bad("sweep none.toml --out o", 2, "none.toml: cannot read the sweep: No such file or directory (os error 2)");
    cli.bad(
        "sweep s.toml --out -",
        2,
        "--out -: a folder is written, which standard output cannot hold; name a folder",
    );
}

/// SFT, adapters, and the reward that the program knows.
#[test]
fn adapters_sft_and_the_demos_reward() {
    let cli = Cli::with_data();
    cli.write(
        "s.toml",
        format!("{BASE}stage = 'sft'\nmax_steps = 2\n[grid]\nlora_r = [1, 2]\n[sweep]\nreward = 'demo'\n{SHORT}"),
    );
    cli.ok("sweep s.toml --out o");
    let all = results(&cli, "o");
    for row in all["runs"].as_array().unwrap() {
        assert!(row["error"].is_null() && row["reward"] == 0.0 && row["kl"].is_number(), "{row}");
        assert!(cli.path(&format!("o/{}/adapter_model.safetensors", row["name"].as_str().unwrap())).exists());
    }
}
