//! `fusedpo run`: each stage is what its own command makes, a second run redoes what changed and nothing else, and the recipes of
//! the docs run.

use crate::cli_common;

use cli_common::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const RECIPE: &str = "[pack]\ninput = [\"rows.jsonl\"]\neval_fraction = 0.25\n\
                      [sft]\nmodel = \"m\"\nlearning_rate = 1e-3\nmax_steps = 3\ndevice = \"cpu\"\n\
                      [reference]\n\
                      [dpo]\nlearning_rate = 1e-3\nmax_steps = 20\nsave_steps = 4\nbeta = 0.3\ndevice = \"cpu\"\n\
                      [eval]\nkl_samples = 3\nkl_max_new_tokens = 6\ndevice = \"cpu\"\n\
                      [report]\n";

fn manifest(cli: &Cli, out: &str) -> Value {
    serde_json::from_str(&cli.text(&format!("{out}/manifest.json"))).unwrap()
}

/// The result of a stage.
fn result(cli: &Cli, out: &str, stage: &str) -> String {
    let all = manifest(cli, out);
    let entry = all["stages"].as_array().unwrap().iter().find(|s| s["stage"] == stage).unwrap();
    format!("{out}/{}", entry["result"].as_str().unwrap())
}

/// Stages that a call made.
fn made(ran: &Ran) -> Vec<&str> {
    let lines = ran.out.lines().filter(|l| !l.ends_with(" is there") && l.contains(": "));
    lines.map(|l| l.split(": ").next().unwrap()).collect()
}

#[test]
fn a_recipe_is_its_commands_and_is_made_once() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &pairs(24));
    cli.write("r.toml", RECIPE);
    let first = cli.ok("run r.toml --out o");
    assert_eq!(made(&first), ["pack", "sft", "reference", "dpo", "eval", "report"], "{first:?}");
    // The same by hand.
    cli.ok("pack --tokenizer m --input rows.jsonl --eval-fraction 0.25 --out d");
    cli.ok("sft --model m --data d --learning-rate 1e-3 --max-steps 3 --device cpu --out s");
    cli.ok("dpo --model s --data d --learning-rate 1e-3 --max-steps 20 --beta 0.3 --device cpu --out p");
    let eval = cli.ok("eval --model p --ref-model s --data d --kl-samples 3 --kl-max-new-tokens 6 --device cpu --json");
    for (stage, own) in [("sft", "s"), ("dpo", "p")] {
        let made = result(&cli, "o", stage);
        assert!(
            cli.bytes(&format!("{made}/model.safetensors")) == cli.bytes(&format!("{own}/model.safetensors")),
            "{stage}"
        );
    }
    assert_eq!(cli.text(&result(&cli, "o", "eval")), eval.out);
    let all = manifest(&cli, "o");
    assert_eq!((all["complete"].as_bool(), all["version"].as_u64()), (Some(true), Some(1)));
    let sums = std::process::Command::new("sha256sum").arg("rows.jsonl").current_dir(cli.dir.path()).output();
    if let Ok(sums) = sums {
        let sum = String::from_utf8(sums.stdout).unwrap().split(' ').next().unwrap().to_owned();
        assert_eq!(all["stages"][0]["inputs"]["rows.jsonl"], Value::from(sum));
    }
    // Again: nothing is made.
    let bytes = cli.bytes("o/manifest.json");
    let again = cli.ok("run r.toml --out o");
    assert_eq!((made(&again).len(), cli.bytes("o/manifest.json") == bytes), (0, true), "{again:?}");
    // Whatever changes is made again, with what comes after it.
    for (change, want) in [
        (("beta = 0.3", "beta = 0.4"), &["dpo", "eval", "report"][..]),
        (("kl_samples = 3", "kl_samples = 4"), &["eval"]),
        (("max_steps = 3\n", "max_steps = 4\n"), &["sft", "reference", "dpo", "eval", "report"]),
    ] {
        let before = names(&cli);
        cli.write("r.toml", RECIPE.replace(change.0, change.1));
        let ran = cli.ok("run r.toml --out o");
        assert_eq!(made(&ran), want, "{change:?}: {ran:?}");
        assert!(before.iter().all(|name| names(&cli).contains(name)), "{change:?}: something is gone");
    }
    // A file's content counts, not its time or name alone.
    cli.write("r.toml", RECIPE);
    cli.write("rows.jsonl", cli.bytes("rows.jsonl"));
    assert_eq!(made(&cli.ok("run r.toml --out o")).len(), 0);
    cli.write_rows("rows.jsonl", &pairs(23));
    assert_eq!(made(&cli.ok("run r.toml --out o")).len(), 6);
}

fn names(cli: &Cli) -> Vec<String> {
    cli.names("o", "-")
}

/// Killed at random moments until it is through, a recipe has the manifest, with the hashes of all that it made, of one that was
/// not.
#[test]
fn a_recipe_that_was_killed_is_one_that_was_not() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &pairs(24));
    cli.write("r.toml", RECIPE.replace("max_steps = 20", "max_steps = 80"));
    let whole = std::time::Instant::now();
    cli.ok("run r.toml --out whole");
    let whole = whole.elapsed();
    let mut at = u64::from(SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos());
    println!("moments from {at}");
    let mut kills = 0;
    for round in 0..6 {
        at = at.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let share = (at >> 40) as f64 / (1u64 << 24) as f64;
        let mut child = cli.spawn("run r.toml --out o --log-level error");
        std::thread::sleep(whole.mul_f64(0.8 * share).min(Duration::from_secs(3)));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        signal(&child, if round == 1 { "TERM" } else { "KILL" });
        let ended = child.wait().unwrap();
        kills += u32::from(!ended.success());
    }
    cli.ok("run r.toml --out o");
    assert!(kills > 0);
    let text = |out: &str| cli.text(&format!("{out}/manifest.json")).replace(&format!("{out}/"), "");
    assert_eq!(text("o"), text("whole"));
    assert!(text("o").contains("model.safetensors"));
}

#[test]
fn what_cannot_be_is_said_before_a_stage_begins() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &pairs(8));
    for (text, want) in [
        ("", "r.toml: has no stage: give some of pack, sft, reference, dpo, eval, report, export"),
        ("[dop]\n", "r.toml: `dop` is none of the stages of a recipe: pack, sft, reference, dpo, eval, report, export"),
        ("[dpo]\nout = 'x'\n", "r.toml: [dpo]: `out`: a recipe names the folders of its stages; leave it out"),
        (
            &RECIPE.replace("beta", "bata"),
            "r.toml: [dpo]: `bata` is not an option of this command; did you mean --beta?",
        ),
        (&RECIPE.replace("beta = 0.3", "beta = 0"), "r.toml: [dpo]: --beta 0: must be a finite number greater than 0"),
        (&RECIPE.replace("max_steps = 3\n", "max_steps = 'x'\n"), "r.toml: [sft]: invalid value 'x' for "),
        (
            &RECIPE.replace("model = \"m\"\n", ""),
            "r.toml: [pack]: the following required arguments were not provided: --tokenizer <MODEL>",
        ),
        ("[dpo]\nmodel = 'm'\n", "r.toml: [dpo]: --data is required"),
        (&format!("{RECIPE}[export]\n"), "r.toml: [export]: no stage trains an adapter (--lora-r)"),
    ] {
        cli.write("r.toml", text);
        let before = cli.tree();
        let ran = cli.run("run r.toml --out o");
        let last = ran.err.lines().last().unwrap_or_default();
        assert!(ran.code == 2 && last.starts_with(&format!("fusedpo: {want}")), "{text}: {ran:?}");
        assert_eq!((ran.err.lines().count(), cli.tree()), (1, before), "{text}: {ran:?}");
    }
    // What a command refuses is its stage's, with what was made before it kept.
    cli.write("r.toml", RECIPE.replace("rows.jsonl", "none.jsonl"));
    let ran = cli.run("run r.toml --out o");
    assert!(
        ran.code == 2 && ran.err.contains("fusedpo: r.toml: [pack]: ended with exit code 2: none.jsonl: "),
        "{ran:?}"
    );
}

/// An adapter goes from stage to stage beside its base, and in the end into it.
#[test]
fn an_adapter_is_exported_into_its_base() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &pairs(24));
    let text = RECIPE.replace("model = \"m\"\n", "model = \"m\"\nlora_r = 2\n") + "[export]\n";
    cli.write("r.toml", text.replace("max_steps = 20", "max_steps = 2"));
    cli.ok("run r.toml --out o");
    let (dpo, export) = (result(&cli, "o", "dpo"), result(&cli, "o", "export"));
    assert!(cli.path(&format!("{dpo}/adapter_model.safetensors")).exists());
    cli.ok(&format!("merge --model m --adapter {dpo} --out own"));
    assert!(cli.bytes("own/model.safetensors") == cli.bytes(&format!("{export}/model.safetensors")));
}

/// The recipes of the docs, on the data that they are for and a small model in place of theirs, with few steps.
#[test]
fn the_recipes_of_the_docs_run() {
    let Some(data) = std::env::var_os("FUSEDPO_TEST_DATA").map(|d| PathBuf::from(d).join("data")) else {
        return println!("skipped: recipes of the docs (FUSEDPO_TEST_DATA is not set)");
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        let name = entry.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&entry).unwrap();
        assert!(text.starts_with("# ") && text.contains("https://"), "{name}: says from where the data is");
        let mut recipe: toml::Table = text.parse().unwrap();
        let cli = Cli { dir: tempfile::TempDir::new().unwrap() };
        let small = data.join("stories260k").display().to_string();
        let of_pairs = recipe.contains_key("dpo");
        for (stage, table) in recipe.iter_mut() {
            let table = table.as_table_mut().unwrap();
            for key in ["model", "tokenizer"] {
                if let Some(value) = table.get_mut(key) {
                    *value = small.clone().into();
                }
            }
            match stage.as_str() {
                "pack" => {
                    let names: Vec<String> =
                        table["input"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect();
                    let first = rows_of(&data.join(&name), &names);
                    cli.write("rows.jsonl", first);
                    table["input"] = vec!["rows.jsonl".to_owned()].into();
                    // A small model knows no template of chats.
                    table.remove("wrap_prompts");
                    table["max_length"] = 256.into();
                    table["eval_fraction"] = 0.4.into();
                }
                "sft" | "dpo" => {
                    table.remove("num_train_epochs");
                    table.insert("max_steps".into(), 1.into());
                    table.insert("batch_size".into(), 2.into());
                    table.insert("max_eval_samples".into(), 2.into());
                    table.insert("device".into(), "cpu".into());
                }
                // Without pairs there is nothing to be far from.
                "eval" if !of_pairs => drop(table.insert("device".into(), "cpu".into())),
                "eval" => {
                    table.insert("kl_samples".into(), 1.into());
                    table.insert("kl_max_new_tokens".into(), 4.into());
                    table.insert("device".into(), "cpu".into());
                }
                _ => {}
            }
        }
        cli.write("r.toml", recipe.to_string());
        cli.ok("run r.toml --out o");
        assert_eq!(manifest(&cli, "o")["complete"], true, "{name}");
        seen += 1;
    }
    assert!(seen >= 3, "{seen}");
}

/// The first rows of the first of `names` that lies in `folder`, by its own name.
fn rows_of(folder: &Path, names: &[String]) -> String {
    let mut file = folder.join(Path::new(&names[0]).file_name().unwrap());
    if !file.exists() {
        file.add_extension("gz");
    }
    let text = match file.extension().is_some_and(|e| e == "gz") {
        true => {
            let out = std::process::Command::new("gzip").arg("-dc").arg(&file).output().unwrap();
            String::from_utf8(out.stdout).unwrap()
        }
        false => std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())),
    };
    match serde_json::from_str::<Vec<Value>>(&text) {
        Ok(all) => all.iter().take(16).map(|row| format!("{row}\n")).collect(),
        Err(_) => text.lines().take(16).map(|l| format!("{l}\n")).collect(),
    }
}
