//! A recipe's results that are no longer as they were made, and stages that would be in vain: told, and mended or refused.

use crate::cli_common;

use cli_common::*;
use serde_json::Value;

const RECIPE: &str = "[pack]\ninput = [\"rows.jsonl\"]\neval_fraction = 0.25\n\
                      [sft]\nmodel = \"m\"\nlearning_rate = 1e-3\nmax_steps = 3\ndevice = \"cpu\"\n\
                      [reference]\n\
                      [dpo]\nlearning_rate = 1e-3\nmax_steps = 6\nbeta = 0.3\ndevice = \"cpu\"\n\
                      [eval]\nkl_samples = 0\n[report]\n[quantize]\n";

fn begun(recipe: &str) -> Cli {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &pairs(24));
    cli.write("r.toml", recipe);
    cli
}

fn manifest(cli: &Cli) -> Value {
    serde_json::from_str(&cli.text("o/manifest.json")).unwrap()
}

fn result(cli: &Cli, stage: &str) -> String {
    let all = manifest(cli);
    let entry = all["stages"].as_array().unwrap().iter().find(|s| s["stage"] == stage).unwrap();
    format!("o/{}", entry["result"].as_str().unwrap())
}

/// Stages that a call made.
fn made(ran: &Ran) -> Vec<&str> {
    let lines = ran.out.lines().filter(|l| !l.ends_with(" is there") && l.contains(": "));
    lines.map(|l| l.split(": ").next().unwrap()).collect()
}

fn remove(cli: &Cli, file: &str) {
    std::fs::remove_file(cli.path(file)).unwrap();
}

fn flip(cli: &Cli, file: &str) {
    let mut bytes = cli.bytes(file);
    *bytes.last_mut().unwrap() ^= 1;
    cli.write(file, bytes);
}

#[test]
fn what_was_destroyed_is_made_again_and_told() {
    let cli = begun(RECIPE);
    cli.ok("run r.toml --out o");
    let of = |stage: &str| result(&cli, stage);
    let whole = cli.text("o/manifest.json");
    let shard = cli.names(&of("pack"), "train-").remove(0);
    let files = [
        (format!("{}/model.safetensors", of("sft")), cli.bytes(&format!("{}/model.safetensors", of("sft")))),
        (format!("{}/{shard}", of("pack")), cli.bytes(&format!("{}/{shard}", of("pack")))),
        (of("eval"), cli.bytes(&of("eval"))),
    ];
    let said = |ran: &Ran, stage: &str, why: &str, aside: &str| {
        let line = format!(
            "warning: {stage}: {} {why}: it is made again, and what was there is kept as {}{aside}",
            of(stage),
            of(stage)
        );
        assert!(ran.err.lines().any(|l| l == line), "{line}: {ran:?}");
    };
    // Gone, empty, cut short.
    remove(&cli, &files[0].0);
    remove(&cli, &files[1].0);
    cli.write(&of("eval"), "");
    cli.write(&of("reference"), "");
    let page = cli.bytes(&of("report"));
    cli.write(&of("report"), &page[..page.len() / 2]);
    remove(&cli, &format!("{}/config.json", of("quantize")));
    let ran = cli.ok("run r.toml --out o");
    assert_eq!(made(&ran), ["pack", "sft", "reference", "eval", "report", "quantize"], "{ran:?}");
    for (stage, why) in [
        ("pack", format!("has lost its {shard}")),
        ("sft", "has lost its model.safetensors".to_owned()),
        ("reference", "is empty".to_owned()),
        ("eval", "is not what was written".to_owned()),
        ("report", "is no whole page".to_owned()),
        ("quantize", "has no config.json or adapter_config.json".to_owned()),
    ] {
        said(&ran, stage, &why, ".damaged");
    }
    assert!(cli.text("o/manifest.json") == whole && files.iter().all(|(file, bytes)| cli.bytes(file) == *bytes));
    assert_eq!(made(&cli.ok("run r.toml --out o")).len(), 0);
    // Other bytes of the same length; what was set aside before stays.
    flip(&cli, &files[0].0);
    let ran = cli.ok("run r.toml --out o");
    assert_eq!(made(&ran), ["sft"]);
    said(&ran, "sft", "has a model.safetensors that is not what was written", ".damaged-2");
    assert!(cli.bytes(&files[0].0) == files[0].1 && cli.path(&format!("{}.damaged", of("sft"))).is_dir());
    // What comes out as something else makes what was made from it anew, and no more.
    cli.edit_json("o/manifest.json", |v| v["stages"][1]["outputs"]["model.safetensors"] = "0".repeat(64).into());
    let ran = cli.ok("run r.toml --out o");
    assert_eq!(made(&ran), ["sft", "reference", "dpo", "report"], "{ran:?}");
    said(&ran, "dpo", "was made from another result of [sft] than is there now", ".damaged");
    assert_eq!(cli.text("o/manifest.json"), whole);
}

#[test]
fn what_was_made_before_a_change_is_looked_at_too() {
    let cli = begun(RECIPE);
    cli.ok("run r.toml --out o");
    let (whole, dpo) = (manifest(&cli), result(&cli, "dpo"));
    cli.write("r.toml", RECIPE.replace("beta = 0.3", "beta = 0.4"));
    cli.ok("run r.toml --out o");
    flip(&cli, &format!("{dpo}/model.safetensors"));
    cli.write("r.toml", RECIPE);
    let ran = cli.ok("run r.toml --out o");
    assert_eq!(made(&ran), ["dpo"], "{ran:?}");
    assert_eq!(manifest(&cli)["stages"], whole["stages"]);
    assert_eq!(manifest(&cli)["earlier"].as_object().unwrap().len(), 4, "dpo, eval, report and quantize of the change");
}

/// Killed while it mends what was destroyed, it comes to the same.
#[cfg(unix)]
#[test]
fn mending_that_was_killed_goes_on() {
    let cli = begun(&RECIPE.replace("max_steps = 6\n", "max_steps = 300\nsave_steps = 5\n"));
    cli.ok("run r.toml --out o");
    let (whole, dpo) = (cli.text("o/manifest.json"), result(&cli, "dpo"));
    let weights = cli.bytes(&format!("{dpo}/model.safetensors"));
    remove(&cli, &format!("{dpo}/model.safetensors"));
    let mut child = cli.spawn("run r.toml --out o --log-level error");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let at = || std::fs::read_to_string(cli.path(&format!("{dpo}/metrics.jsonl"))).unwrap_or_default().lines().count();
    while !cli.path(&format!("{dpo}.damaged")).exists() || at() < 12 {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert_eq!(manifest(&cli)["complete"], false);
    signal(&child, "KILL");
    assert!(!child.wait().unwrap().success());
    let ran = cli.ok("run r.toml --out o");
    assert_eq!(made(&ran), ["dpo"], "{ran:?}");
    assert!(cli.bytes(&format!("{dpo}/model.safetensors")) == weights && cli.text("o/manifest.json") == whole);
}

#[test]
fn a_manifest_of_a_newer_program_is_kept_and_garbage_is_told() {
    let cli = begun("[pack]\ninput = [\"rows.jsonl\"]\ntokenizer = \"m\"\n");
    cli.ok("run r.toml --out o");
    let whole = cli.text("o/manifest.json");
    let newer = whole.replace("\"version\": 1", "\"version\": 99");
    cli.write("o/manifest.json", &newer);
    cli.bad(
        "run r.toml --out o",
        2,
        "o/manifest.json: is a manifest of version 99, this program reads 1: go on with the program that wrote it, or name a new folder",
    );
    assert_eq!(cli.text("o/manifest.json"), newer);
    for garbage in [&b""[..], b"{\"version\"", b"\xff\xfe", b"[1]"] {
        cli.write("o/manifest.json", garbage);
        let ran = cli.ok("run r.toml --out o");
        let told = ran.err.matches("warning: o/manifest.json: cannot be understood (").count();
        assert_eq!((told, made(&ran).len()), (1, 0), "{ran:?}");
        assert_eq!(cli.text("o/manifest.json"), whole);
    }
}

/// A path is the same however it is written; a copy under another name is, too, by what it holds, but not by its name.
#[test]
fn a_path_is_one_however_it_is_written() {
    let cli = begun(RECIPE);
    cli.ok("run r.toml --out o");
    let stages = |cli: &Cli| -> Vec<Value> {
        manifest(cli)["stages"].as_array().unwrap().iter().map(|s| s["sha256"].clone()).collect()
    };
    let plain = stages(&cli);
    cli.write("r.toml", RECIPE.replace("\"rows.jsonl\"", "\"./rows.jsonl\"").replace("\"m\"", "\".//m/./\""));
    assert_eq!(made(&cli.ok("run r.toml --out o")).len(), 0);
    assert_eq!(stages(&cli), plain);
}

#[test]
fn a_reference_that_nothing_reads_is_refused() {
    let cli = Cli::with_data();
    cli.ok("sft --model m --data d --max-steps 1 --device cpu --out other");
    let run = "model = \"m\"\ndata = \"d\"\nmax_steps = 1\ndevice = \"cpu\"\n";
    for (reference, dpo, want) in [
        ("", "loss_type = \"simpo\"\n", "the simpo loss of [dpo] has no reference"),
        ("", "loss_type = [\"orpo\", \"sft\"]\n", "loss of [dpo] has no reference"),
        ("", "sync_ref_model = true\n", "that of [dpo] follows the policy (--sync-ref-model)"),
        ("model = \"other\"\n", "", "its --model is other, and that of [dpo] (--model) is m"),
        ("model = \"m\"\n", "ref_model = \"other\"\n", "its --model is m, and that of [dpo] (--ref-model) is other"),
        ("cache = \"c\"\n", "", "its --cache is not that of [dpo]"),
    ] {
        cli.write("r.toml", format!("[reference]\n{reference}[dpo]\n{run}{dpo}"));
        let before = cli.tree();
        let ran = cli.run("run r.toml --out o");
        let (begin, end) = ("fusedpo: r.toml: [reference]: no run reads it: ", "; leave it out\n");
        assert!(ran.code == 2 && ran.err.starts_with(begin) && ran.err.ends_with(end), "{dpo}: {ran:?}");
        assert!(ran.err.contains(want) && ran.err.lines().count() == 1 && cli.tree() == before, "{dpo}: {ran:?}");
    }
    // The same by another name, and one that a measure reads.
    for (reference, dpo, eval) in [
        ("model = \"./m\"\n", "", ""),
        ("model = \"other\"\n", "ref_model = \"./other/\"\n", ""),
        ("model = \"other\"\n", "", "[eval]\nref_model = \"other\"\nkl_samples = 0\n"),
    ] {
        cli.write("r.toml", format!("[reference]\n{reference}[dpo]\n{run}{dpo}{eval}"));
        cli.ok("run r.toml --out o");
    }
}

/// Names of parameters are known before anything is trained.
#[test]
fn what_trains_nothing_is_refused_before_the_first_stage() {
    let cli = begun("");
    let text = RECIPE.replace("[reference]\n", "");
    for (was, is, stage) in
        [("[dpo]\n", "[dpo]\ntrain = \"zzz\"\n", "dpo"), ("[sft]\n", "[sft]\ntrain = \"zzz\"\n", "sft")]
    {
        cli.write("r.toml", text.replace(was, is));
        let before = cli.tree();
        let ran = cli.run("run r.toml --out o");
        let want = format!("fusedpo: r.toml: [{stage}]: --train zzz: no parameter of the model has such a name; ");
        assert!(ran.code == 2 && ran.err.starts_with(&want) && cli.tree() == before, "{ran:?}");
    }
    cli.write("r.toml", text.replace("[dpo]\n", "[dpo]\ntrain = \"layers\\\\.0\\\\.\"\n"));
    cli.ok("run r.toml --out o");
}

/// What is to be made again is known to whoever goes on, and a run that is half done of what is no more does not go on.
#[cfg(unix)]
#[test]
fn what_is_stale_is_known_to_the_next_call() {
    let cli = begun(&RECIPE.replace("max_steps = 6\n", "max_steps = 300\nsave_steps = 5\n"));
    cli.ok("run r.toml --out o");
    let (whole, dpo, report) = (cli.text("o/manifest.json"), result(&cli, "dpo"), result(&cli, "report"));
    cli.edit_json("o/manifest.json", |v| v["stages"][1]["outputs"]["model.safetensors"] = "0".repeat(64).into());
    remove(&cli, &format!("{}/model.safetensors", result(&cli, "sft")));
    cli.edit_json(&format!("{dpo}/run.json"), |v| v["outcome"] = "stopped".into());
    let mut child = cli.spawn("run r.toml --out o --log-level error");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let at = || std::fs::read_to_string(cli.path(&format!("{dpo}/metrics.jsonl"))).unwrap_or_default().lines().count();
    while !cli.path(&format!("{dpo}.damaged")).exists() || at() < 12 {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    signal(&child, "KILL");
    assert!(!child.wait().unwrap().success());
    let left = manifest(&cli);
    let name = |result: &str| result.trim_start_matches("o/").to_owned();
    assert_eq!((&left["complete"], &left["stale"][name(&report)]), (&false.into(), &"sft".into()), "{left}");
    assert_eq!(left["stale"].get(name(&dpo)), None, "what is there now is of what is there now: {left}");
    let ran = cli.ok("run r.toml --out o");
    assert_eq!(made(&ran), ["dpo", "report"], "{ran:?}");
    assert!(ran.err.contains("going on after step") && !cli.path(&format!("{dpo}.damaged-2")).exists(), "{ran:?}");
    assert_eq!(cli.text("o/manifest.json"), whole);
}
