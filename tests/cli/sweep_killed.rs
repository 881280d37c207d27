//! A sweep that is killed: where it is in its work makes no difference, and nothing that it started outlives it.
#![cfg(target_os = "linux")]

use crate::cli_common;

use cli_common::*;
use serde_json::Value;
use std::time::{Duration, Instant};

const BASE: &str = "model = \"m\"\ndata = \"d\"\ndevice = \"cpu\"\nlearning_rate = 1e-3\n";
const SHORT: &str = "samples = 5\nmax_new_tokens = 8\nkl_samples = 3\n";

/// Waits until it is so.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < end, "{what}: not in a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process is at work: one that ended and that nobody asked after is not.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next()).is_some_and(|state| !"ZX".contains(state))
}

/// All files of a sweep that have no times in them.
fn content(cli: &Cli, out: &str) -> Vec<(String, Vec<u8>)> {
    let of_folder = ["sweep.toml", "inputs.json", "sweep.json", "sweep.csv", "frontier.svg"];
    let of_run =
        ["model.safetensors", "eval.json", "prompts.jsonl", "generations.jsonl", "measured.json", "scores.json"];
    let file = |name: String| (name.clone(), cli.bytes(&format!("{out}/{name}")));
    let mut all: Vec<_> = of_folder.map(|name| file(name.to_owned())).into();
    let results: Value = serde_json::from_str(&cli.text(&format!("{out}/sweep.json"))).unwrap();
    for run in results["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        all.extend(of_run.map(|file_of| file(format!("{name}/{file_of}"))));
        let text = cli.text(&format!("{out}/{name}.toml")).replace(&format!("\"{out}/"), "\"");
        all.push((format!("{name}.toml"), text.into_bytes()));
        all.push((format!("{name} metrics"), format!("{:?}", rows(cli, &format!("{out}/{name}"))).into_bytes()));
    }
    all
}

/// Killed as soon as each of its files is there, the folder's own first: between any two of its steps.
#[test]
fn killed_between_its_steps_it_is_one_that_was_not() {
    let cli = Cli::with_data();
    let length = "scorer = [\"sh\", \"-c\", \"while read -r l; do echo ${#l}; done\"]\n";
    cli.write(
        "s.toml",
        format!("{BASE}max_steps = 8\nsave_steps = 3\n[grid]\nseed = [1, 2]\n[sweep]\n{length}{SHORT}"),
    );
    cli.ok("sweep s.toml --out whole");
    let mut kills = 0;
    let of_run = ["run.json", "model.safetensors", "eval.json", "prompts.jsonl", "generations.jsonl", "scores.json"];
    let of_runs = ["seed-1", "seed-2"].map(|run| of_run.map(|file| format!("{run}/{file}"))).concat();
    let first = ["sweep.toml", "inputs.json", "reference", "seed-1.toml"].map(str::to_owned);
    for file in first.iter().chain(&of_runs) {
        let mut child = cli.spawn("sweep s.toml --out o --log-level error");
        let path = cli.path("o").join(file);
        until(file, || path.exists() || child.try_wait().unwrap().is_some());
        if child.try_wait().unwrap().is_none() {
            signal(&child, "KILL");
        }
        kills += u32::from(!child.wait().unwrap().success());
    }
    cli.ok("sweep s.toml --out o");
    assert!(kills > 8, "{kills}");
    let (is, want) = (content(&cli, "o"), content(&cli, "whole"));
    for (is, want) in is.iter().zip(&want) {
        assert!(is == want, "after {kills} kills {} is another", is.0);
    }
    assert_eq!(is.len(), want.len());
}

/// The scorer, and what it started in its group.
#[test]
fn a_scorer_does_not_outlive_its_sweep() {
    let cli = Cli::with_data();
    let scorer = "scorer = [\"sh\", \"-c\", \"sleep 300 & echo $! > pids; echo $$ >> pids; wait\"]\n";
    cli.write("s.toml", format!("{BASE}max_steps = 1\n[grid]\nseed = [1]\n[sweep]\n{scorer}{SHORT}"));
    for name in ["KILL", "TERM"] {
        let mut child = cli.spawn("sweep s.toml --out o");
        let pids = || -> Vec<String> {
            let text = std::fs::read_to_string(cli.path("pids")).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect()
        };
        until("the scorer", || pids().len() == 2 && pids().iter().all(|pid| lives(pid)));
        signal(&child, name);
        child.wait().unwrap();
        until("its end", || !pids().iter().any(|pid| lives(pid)));
        std::fs::remove_file(cli.path("pids")).unwrap();
    }
    // It sees nothing of what stands before it.
    let scorer = "scorer = [\"sh\", \"-c\", \"env > env; while read -r l; do echo 1; done; echo $0 $1 >> env\", \"a b\", \"--c\"]\n";
    cli.write("s.toml", format!("{BASE}max_steps = 1\n[grid]\nseed = [1]\n[sweep]\n{scorer}{SHORT}"));
    cli.ok("sweep s.toml --out p");
    let env = cli.text("env");
    assert!(!env.contains("FUSEDPO_GUARDS") && !env.contains("FUSEDPO_PARENT") && env.ends_with("a b --c\n"), "{env}");
}

/// A run whose sweep ended before it could tell the system to follow it.
#[test]
fn an_orphan_does_not_begin() {
    let cli = Cli::with_data();
    let before = cli.tree();
    let train = "sft --model m --data d --out o --max-steps 1 --device cpu";
    let ran = cli.command(train).env("FUSEDPO_PARENT", "1").output().unwrap();
    assert_eq!((ran.status.code(), cli.tree()), (Some(143), before));
    let own = std::process::id().to_string();
    assert!(cli.command(train).env("FUSEDPO_PARENT", own).status().unwrap().success());
}

/// Values of `key` in the environments of the runs that the process `parent` started.
fn seen(parent: u32, key: &str) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let text = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let vars: Vec<String> = text.split(|b| *b == 0).map(|v| String::from_utf8_lossy(v).into_owned()).collect();
        if vars.contains(&format!("FUSEDPO_PARENT={parent}")) {
            all.extend(vars.iter().find_map(|v| v.strip_prefix(&format!("{key}=")).map(str::to_owned)));
        }
    }
    all.sort();
    all
}

#[test]
fn runs_at_a_time_have_a_gpu_each() {
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return println!("skipped: names of GPUs that are not there (a machine without one)");
    }
    let cli = Cli::with_data();
    let base = BASE.replace("device = \"cpu\"\n", "");
    cli.write("s.toml", format!("{base}max_steps = 1000000\n[grid]\nseed = [1, 2]\n"));
    for (options, variable, want) in [
        ("--gpus 5,GPU-7a", "2,3", ["5", "GPU-7a"]),
        ("--jobs 2", "2,3", ["2", "3"]),
        ("--jobs 2 --gpus 4", "2,3", ["4", "4"]),
    ] {
        let mut command = cli.command(&format!("sweep s.toml --out o {options} --threads 2"));
        command.env("CUDA_VISIBLE_DEVICES", variable);
        let child = Running::from(command.stderr(std::process::Stdio::null()).spawn().unwrap());
        until(options, || seen(child.id(), "CUDA_VISIBLE_DEVICES") == want);
        signal(&child, "TERM");
        finish(child);
    }
}
