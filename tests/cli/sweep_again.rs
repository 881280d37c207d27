//! A sweep that is called again: what it rests on may not have changed, and what it measures with may; and what is known before it begins.

use crate::cli_common;

use cli_common::*;
use serde_json::{Value, json};
use std::path::Path;

const BASE: &str = "model = \"m\"\ndata = \"d\"\ndevice = \"cpu\"\nlearning_rate = 1e-3\nmax_steps = 2\n";
const SHORT: &str = "max_new_tokens = 8\nkl_samples = 3\n";

fn results(cli: &Cli, out: &str) -> Value {
    serde_json::from_str(&cli.text(&format!("{out}/sweep.json"))).unwrap()
}

fn rewards(cli: &Cli) -> Vec<f64> {
    results(cli, "o")["runs"].as_array().unwrap().iter().map(|r| r["reward"].as_f64().unwrap()).collect()
}

fn scorer(score: &str) -> String {
    format!("while read -r l; do echo {score}; done\n")
}

fn prompts(from: usize) -> Vec<Value> {
    (from..from + 4).map(|i| json!({ "prompt": words(i, 3 + i % 3), "completion": " w5" })).collect()
}

#[test]
fn what_changed_is_measured_again_and_nothing_else() {
    let cli = Cli::with_data();
    let text = format!(
        "{BASE}[grid]\nseed = [1, 2]\n[sweep]\nscorer = [\"sh\", \"score.sh\"]\nprompts = \"p.jsonl\"\n{SHORT}"
    );
    cli.write("s.toml", text);
    cli.write("score.sh", scorer("1"));
    cli.write_rows("p.jsonl", &prompts(0));
    cli.ok("sweep s.toml --out o");
    assert_eq!(rewards(&cli), [1.0, 1.0]);
    let kept = ["run.json", "model.safetensors", "eval.json"];
    let state = |files: &[&str]| -> Vec<_> {
        let of = |file: &&str| {
            let path = format!("o/seed-1/{file}");
            (cli.bytes(&path), cli.path(&path).metadata().unwrap().modified().unwrap())
        };
        files.iter().map(of).collect()
    };
    let (runs, said) = (state(&kept), state(&["generations.jsonl"]));
    // Another scorer: the same responses have other scores, and once they have nothing is left to do.
    cli.write("score.sh", scorer("2"));
    let ran = cli.ok("sweep s.toml --out o");
    let told = "score.sh has changed since the sweep began: responses are scored again\n";
    assert!(ran.err.contains(told), "{ran:?}");
    assert_eq!(rewards(&cli), [2.0, 2.0]);
    let scores = state(&["scores.json", "measured.json"]);
    let ran = cli.ok("sweep s.toml --out o");
    assert!(!ran.err.contains("has changed"), "{ran:?}");
    assert!(state(&["scores.json", "measured.json"]) == scores && state(&["generations.jsonl"]) == said);
    // One that is killed between the change and the last score still has them all anew.
    let scoring = cli.path("scoring");
    cli.write("score.sh", scorer("3") + &format!("touch '{}'; sleep 300\n", scoring.display()));
    let mut child = cli.spawn("sweep s.toml --out o --log-level error");
    let begun = std::time::Instant::now();
    while !scoring.exists() {
        assert!(begun.elapsed().as_secs() < 60, "the scorer does not begin");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    signal(&child, "KILL");
    assert!(!child.wait().unwrap().success());
    cli.write("score.sh", scorer("4"));
    cli.ok("sweep s.toml --out o");
    assert_eq!(rewards(&cli), [4.0, 4.0]);
    // Other prompts: other responses.
    cli.write("score.sh", scorer("5"));
    cli.write_rows("p.jsonl", &prompts(4));
    let ran = cli.ok("sweep s.toml --out o");
    let told = "p.jsonl has changed since the sweep began: responses are drawn and scored again\n";
    assert!(ran.err.contains(told), "{ran:?}");
    assert_eq!(rewards(&cli), [5.0, 5.0]);
    assert!(state(&["generations.jsonl"])[0].0 != said[0].0 && state(&kept) == runs);
    // As a sweep that never saw the others.
    cli.ok("sweep s.toml --out fresh");
    for file in ["generations.jsonl", "scores.json", "measured.json"] {
        assert!(cli.bytes(&format!("o/seed-2/{file}")) == cli.bytes(&format!("fresh/seed-2/{file}")), "{file}");
    }
    assert_eq!(results(&cli, "o"), results(&cli, "fresh"));
}

#[test]
fn runs_of_other_models_or_data_are_no_runs_of_this_sweep() {
    let cli = Cli::with_data();
    cli.write("s.toml", format!("{BASE}[grid]\nseed = [1]\n[sweep]\nkl_samples = 0\n"));
    cli.ok("sweep s.toml --out o");
    let why = "has changed since the sweep in o began, and its runs rest on it; put back what was there, or name a new folder";
    let refused = |name: &str| cli.bad("sweep s.toml --out o", 2, &format!("{name}: {why}"));
    let shard = cli.names("d", "train-").remove(0);
    for (file, of) in
        [(format!("d/{shard}"), "d"), ("m/model.safetensors".into(), "m"), ("m/tokenizer.json".into(), "m")]
    {
        let was = cli.bytes(&file);
        cli.write(&file, [&was[..], b" "].concat());
        // Whatever reads it first may find it damaged; else it is another.
        let ran = cli.run("sweep s.toml --out o");
        assert!(ran.code == 2 && ran.err.matches("fusedpo: ").count() == 1, "{ran:?}");
        if file.contains("tokenizer") {
            refused(of);
        }
        cli.write(&file, was);
    }
    // The same rows in another order.
    let was: Vec<_> = cli.names("d", "").into_iter().map(|name| (cli.bytes(&format!("d/{name}")), name)).collect();
    std::fs::remove_dir_all(cli.path("d")).unwrap();
    cli.write_rows("rows.jsonl", &pairs(25));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d --eval-fraction 0.25");
    refused("d");
    std::fs::remove_dir_all(cli.path("d")).unwrap();
    std::fs::create_dir(cli.path("d")).unwrap();
    was.iter().for_each(|(bytes, name)| cli.write(&format!("d/{name}"), bytes));
    // What lies beside a model is no part of it.
    cli.write("m/run.log", "x");
    cli.ok("sweep s.toml --out o");
    let ours = env!("CARGO_PKG_VERSION");
    let inputs = cli.text("o/inputs.json");
    cli.write("o/inputs.json", inputs.replace(&format!("\"{ours}\""), "\"99.1.0\""));
    cli.bad(
        "sweep s.toml --out o",
        2,
        &format!(
            "o: was begun by version 99.1.0 of this program, and this is {ours}: its runs would not compare; go on with that one, \
             or name a new folder"
        ),
    );
    cli.write("o/inputs.json", "{");
    let ran = cli.run("sweep s.toml --out o");
    assert!(ran.code == 2 && ran.err.contains("fusedpo: o/inputs.json: cannot be understood ("), "{ran:?}");
    std::fs::remove_file(cli.path("o/inputs.json")).unwrap();
    let ran = cli.ok("sweep s.toml --out o");
    assert!(ran.err.contains("warning: o/inputs.json: is not there, so that nobody knows"), "{ran:?}");
    assert_eq!(cli.text("o/inputs.json"), inputs);
}

/// What a sweep would find out after hours.
#[test]
fn room_for_responses_is_known_before_a_run() {
    let cli = Cli::with_data();
    let grid = "[grid]\nseed = [1]\n[sweep]\n";
    let refused = |more: &str, want: &str| {
        cli.write("s.toml", format!("{BASE}{grid}{more}"));
        cli.bad("sweep s.toml --out o", 2, &format!("s.toml: [sweep]: {want}"));
    };
    let too_many = |tokens: usize, n: usize| {
        let most = 128 - tokens;
        format!(
            "`max_new_tokens` is {n}, and after the longest prompt ({tokens} tokens) m has positions for {most}; lower it"
        )
    };
    refused("max_new_tokens = 128\n", &too_many(1, 128));
    cli.write("s.toml", format!("{BASE}{grid}kl_samples = 0\n"));
    cli.ok("sweep s.toml --out none");
    cli.write_rows("p.jsonl", &[json!({ "prompt": words(1, 40) }), json!({ "prompt": words(2, 90) })]);
    let long = words(2, 90).split_whitespace().count();
    refused(
        &format!("reward = 'demo'\nprompts = 'p.jsonl'\nmax_new_tokens = {}\n", 129 - long),
        &too_many(long, 129 - long),
    );
    // Of the data's prompts, those that are continued.
    let ran = {
        cli.write("s.toml", format!("{BASE}{grid}reward = 'demo'\nsamples = 6\nmax_new_tokens = 127\n"));
        cli.run("sweep s.toml --out o")
    };
    assert!(ran.code == 2 && ran.err.contains("after the longest prompt ("), "{ran:?}");
    cli.write_rows("p.jsonl", &[json!({ "prompt": words(2, 200) })]);
    let full = "m has 128 positions, which a prompt of 200 tokens fills; give shorter prompts";
    refused("reward = 'demo'\nprompts = 'p.jsonl'\nmax_new_tokens = 1\n", full);
    // And that they can be read.
    cli.write_rows("p.jsonl", &[json!({ "x": "y" })]);
    let ran = cli.run("sweep s.toml --out o");
    assert!(ran.code == 2 && ran.err.contains("fusedpo: p.jsonl: line 1: ") && !cli.path("o").exists(), "{ran:?}");
}

#[test]
fn the_same_run_twice_is_refused() {
    let cli = Cli::with_data();
    let refused = |axis: &str, want: &str| {
        let base = if axis.starts_with("data") { BASE.replace("data = \"d\"\n", "") } else { BASE.to_owned() };
        cli.write("s.toml", format!("{base}[grid]\n{axis}\n"));
        let ran = cli.run("sweep s.toml --out o");
        assert!(ran.code == 2 && ran.err.contains(want) && ran.err.lines().count() == 1, "{axis}: {ran:?}");
        assert!(!cli.path("o").exists());
    };
    refused("beta = [1, 0.5, 1.0]", "fusedpo: s.toml: runs beta-1 and beta-1-");
    refused("beta = [1, 0.5, 1.0]", " are the same run; leave one of the two values out");
    refused("loss_type = ['ipo', ['ipo']]", "fusedpo: s.toml: runs loss_type-ipo and loss_type-ipo-");
    refused("data = ['d', './d']", "are the same run");
    refused("beta = [1, 1]", "[grid]: `beta` has 1 twice");
}

/// Killed while it made its folder: what it left is nobody else's.
#[test]
fn a_folder_that_was_hardly_begun_is_taken() {
    let cli = Cli::with_data();
    cli.write("s.toml", format!("{BASE}[grid]\nseed = [1]\n[sweep]\nkl_samples = 0\n"));
    cli.write("r.toml", "[sft]\nmodel = 'm'\ndata = 'd'\nmax_steps = 1\ndevice = 'cpu'\n");
    for (command, out) in [("sweep s.toml", "o"), ("run r.toml", "p")] {
        std::fs::create_dir(cli.path(out)).unwrap();
        // Of a process that is gone, and under a number that another has now.
        cli.write(&format!("{out}/.tmp-5000000-abc.part"), "half");
        cli.write(&format!("{out}/.tmp-{}-abc.part", std::process::id()), "half");
        cli.ok(&format!("{command} --out {out}"));
        std::fs::create_dir(cli.path(&format!("{out}-2"))).unwrap();
        cli.write(&format!("{out}-2/.tmp-mine"), "");
        cli.bad(
            &format!("{command} --out {out}-2"),
            2,
            &format!("{out}-2: the output folder exists and is not empty; name a new one or remove it"),
        );
    }
}

#[test]
fn a_folder_that_was_moved_has_its_own_cache() {
    let cli = Cli::with_data();
    cli.write("s.toml", format!("{BASE}[grid]\nseed = [1]\n[sweep]\nkl_samples = 0\n"));
    cli.ok("sweep s.toml --out o");
    std::fs::rename(cli.path("o"), cli.path("p")).unwrap();
    std::fs::remove_dir_all(cli.path("p/seed-1")).unwrap();
    cli.ok("sweep s.toml --out p");
    let config: toml::Table = cli.text("p/seed-1.toml").parse().unwrap();
    assert_eq!(config["cache"].as_str(), Some("p/reference"));
    assert!(!cli.path("o").exists());
}

/// A run that a newer program stopped is that program's to go on with.
#[test]
fn a_newer_versions_run_costs_its_row() {
    let cli = Cli::with_data();
    let base = BASE.replace("max_steps = 2", "max_steps = 1000000");
    cli.write("s.toml", format!("{base}[grid]\nseed = [1]\n"));
    let child = cli.spawn("sweep s.toml --out o");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::fs::read_to_string(cli.path("o/seed-1/metrics.jsonl")).unwrap_or_default().lines().count() < 3 {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    signal(&child, "TERM");
    assert_eq!(finish(child).code, 143);
    let checkpoint = cli.names("o/seed-1", "checkpoint-").pop().unwrap();
    cli.edit_json(&format!("o/seed-1/{checkpoint}/trainer_state.json"), |v| {
        let state = if v.get("version").is_some() { v } else { &mut v["fusedpo"] };
        state["version"] = 2.into();
    });
    let ran = cli.run("sweep s.toml --out o");
    let want = "is of a checkpoint of version 2, this program reads 1: go on with the program that wrote it";
    assert!(ran.code == 1 && ran.err.lines().last().unwrap().contains(want), "{ran:?}");
    assert!(results(&cli, "o")["runs"][0]["error"].as_str().unwrap().contains(want));
    assert!(Path::new(&cli.path(&format!("o/seed-1/{checkpoint}"))).exists());
}
