//! A recipe that is killed: between its stages or in them, it comes to the bytes of one that was not.
#![cfg(unix)]

use crate::cli_common;

use cli_common::*;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant, SystemTime};

const FROM_ROWS: &str = "[pack]\ninput = [\"rows.jsonl\"]\neval_fraction = 0.25\n\
                         [sft]\nmodel = \"m\"\nlearning_rate = 1e-3\nmax_steps = 8\nsave_steps = 3\ndevice = \"cpu\"\n\
                         [reference]\n\
                         [dpo]\nlearning_rate = 1e-3\nmax_steps = 60\nsave_steps = 4\nbeta = 0.3\ndevice = \"cpu\"\n\
                         [eval]\nkl_samples = 3\nkl_max_new_tokens = 6\n\
                         [report]\n";

const FROM_DATA: &str = "[reference]\n\
                         [dpo]\nmodel = \"m\"\ndata = \"d\"\nlearning_rate = 1e-3\nmax_steps = 80\nsave_steps = 4\ndevice = \"cpu\"\nlora_r = 2\n\
                         [eval]\nkl_samples = 3\nkl_max_new_tokens = 6\n\
                         [export]\n[quantize]\n";

/// The manifest, and every file that it has the hash of or that has no times in it.
fn content(cli: &Cli, out: &str) -> Vec<(String, Vec<u8>)> {
    let text = cli.text(&format!("{out}/manifest.json"));
    let manifest: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(manifest["complete"], true);
    let mut all = vec![("manifest".to_owned(), text.replace(&format!("{out}/"), "").into_bytes())];
    for stage in manifest["stages"].as_array().unwrap() {
        let result = stage["result"].as_str().unwrap();
        let path = cli.path(&format!("{out}/{result}"));
        if path.join("metrics.jsonl").exists() {
            let rows = format!("{:?}", rows(cli, &format!("{out}/{result}")));
            all.push((format!("{result} metrics"), rows.into_bytes()));
        }
        for name in stage["outputs"].as_object().unwrap().keys() {
            all.push((format!("{result}/{name}"), std::fs::read(path.join(name).components().as_path()).unwrap()));
        }
    }
    all
}

fn same(cli: &Cli, what: &str) {
    let (is, want) = (content(cli, "o"), content(cli, "whole"));
    for (is, want) in is.iter().zip(&want) {
        assert!(is == want, "{what}: {} is another", is.0);
    }
    assert_eq!(is.len(), want.len());
}

fn begun(text: &str) -> Cli {
    let cli = Cli::with_data();
    cli.write_rows("rows.jsonl", &pairs(24));
    cli.write("r.toml", text);
    cli
}

/// What the first left beside the data is not there for the second.
fn without_sidecars(cli: &Cli) {
    for sidecar in cli.names("d", ".ref-") {
        std::fs::remove_file(cli.path(&format!("d/{sidecar}"))).unwrap();
    }
}

/// As soon as each of its stages is said to be through.
#[test]
fn killed_between_stages_it_is_one_that_was_not() {
    for (text, stages) in [(FROM_ROWS, 6), (FROM_DATA, 5)] {
        let cli = begun(text);
        cli.ok("run r.toml --out whole");
        without_sidecars(&cli);
        let mut kills = 0;
        for through in 1..stages {
            let mut child = cli.spawn("run r.toml --out o --log-level error");
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let said: Vec<String> = lines.map_while(Result::ok).take(through).collect();
            assert_eq!(said.len(), through, "{said:?}");
            signal(&child, "KILL");
            kills += u32::from(!child.wait().unwrap().success());
        }
        cli.ok("run r.toml --out o");
        // A short last stage may be through before the signal comes.
        assert!(kills > 0 && kills < stages as u32, "{kills} kills");
        same(&cli, "between stages");
    }
}

/// At random instants, and stopped once in order, until it is through.
#[test]
fn killed_at_any_instant_it_is_one_that_was_not() {
    for text in [FROM_ROWS, FROM_DATA] {
        let cli = begun(text);
        let whole = Instant::now();
        cli.ok("run r.toml --out whole");
        let whole = whole.elapsed();
        without_sidecars(&cli);
        let now = SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
        let mut at = u64::from(now);
        println!("moments from {at}");
        let mut kills = 0;
        for round in 0..6 {
            at = at.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let share = (at >> 40) as f64 / (1u64 << 24) as f64;
            let mut child = cli.spawn("run r.toml --out o --log-level error");
            // The first surely in time, however quick the machine is now.
            let most = if round == 0 { 0.2 } else { 0.7 };
            std::thread::sleep(whole.mul_f64(most * share).min(Duration::from_secs(3)));
            if child.try_wait().unwrap().is_some() {
                break;
            }
            signal(&child, if round == 1 { "TERM" } else { "KILL" });
            kills += u32::from(!child.wait().unwrap().success());
        }
        cli.ok("run r.toml --out o");
        assert!(kills > 0);
        same(&cli, &format!("moments from {now}"));
        assert!(content(&cli, "o").iter().any(|(name, _)| name.ends_with("safetensors")));
    }
}

#[test]
fn two_recipes_do_not_share_a_folder() {
    let cli = begun(&FROM_DATA.replace("max_steps = 80", "max_steps = 1000000"));
    let child = cli.spawn("run r.toml --out o");
    let until = Instant::now() + Duration::from_secs(60);
    let runs = || std::fs::read_dir(cli.path("o")).into_iter().flatten().flatten().map(|e| e.path());
    while !runs().any(|run| run.join("metrics.jsonl").exists()) {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(10));
    }
    let second = cli.run("run r.toml --out o");
    one_line("second", &second, 2, "o: another recipe is at work in it; wait for it, or name a new folder");
    signal(&child, "INT");
    let ran = finish(child);
    assert_eq!(ran.code, 130, "{ran:?}");
    let last = "fusedpo: stopped in [dpo]; this goes on: fusedpo run r.toml --out o";
    assert_eq!(ran.err.lines().last(), Some(last), "{ran:?}");
}
