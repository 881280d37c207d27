//! `fusedpo run`: each stage is what its own command makes, a second run redoes what changed and nothing else, and the recipes of
//! the docs run.

use crate::cli_common;

use cli_common::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

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

#[test]
fn what_cannot_be_is_said_before_a_stage_begins() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &pairs(8));
    for (text, want) in [
        ("", "r.toml: has no stage: give some of pack, sft, reference, dpo, eval, report, export, quantize"),
        (
            "[dop]\n",
            "r.toml: `dop` is none of the stages of a recipe: pack, sft, reference, dpo, eval, report, export, quantize",
        ),
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
    cli.write("r.toml", RECIPE);
    cli.write("rows.jsonl", "{\n");
    let ran = cli.run("run r.toml --out o");
    assert!(ran.code == 2 && ran.err.contains("fusedpo: r.toml: [pack]: ended with exit code 2: "), "{ran:?}");
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

/// Where the data of the docs' recipes lies below the tests' data, with the name that it has for its script; without one it is what
/// `pack` is given.
const SETS: [(&str, &str, Option<&str>); 10] = [
    ("gsm8k", "gsm8k/train.jsonl.gz", None),
    ("gsm8k-scored", "gsm8k/scored.jsonl.gz", None),
    ("hh-harmless", "hh-harmless/test.jsonl.gz", None),
    ("movie-reviews", "movie-reviews/movie_reviews.jsonl.gz", Some("movie_reviews")),
    ("oasst", "oasst-100/en_100_tree.jsonl.gz", Some("en_100_tree.jsonl")),
    ("pandalm", "pandalm/testset-v1.json", Some("testset-v1.json")),
    ("persona", "persona/agreeableness.jsonl", None),
    ("qa-feedback", "qa-feedback/scored.jsonl.gz", None),
    ("rasbt-polite", "rasbt-polite/instruction-data-with-preference.json", None),
    ("ultrafeedback", "ultrafeedback-1200/train_clean.jsonl.gz", None),
];

/// The recipes of the docs, on the data that they are for and a small model in place of theirs, with few steps.
#[test]
fn the_recipes_of_the_docs_run() {
    let Some(data) = std::env::var_os("FUSEDPO_TEST_DATA").map(|d| PathBuf::from(d).join("data")) else {
        return println!("skipped: recipes of the docs (FUSEDPO_TEST_DATA is not set)");
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, SETS.map(|(name, ..)| name));
    for (name, file, original) in SETS {
        let text = std::fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap();
        assert!(text.starts_with("# ") && text.contains("https://"), "{name}: says from where the data is");
        let mut recipe: toml::Table = text.parse().unwrap();
        let cli = Cli { dir: tempfile::TempDir::new().unwrap() };
        let input = recipe["pack"]["input"].as_array().unwrap();
        let script = text.lines().find_map(|l| l.strip_prefix("# Rows: "));
        assert!(
            input.len() == 1 && script.is_none_or(|s| s.ends_with(&format!(" --out {}", input[0].as_str().unwrap())))
        );
        let rows = match (script, original) {
            (Some(words), original) if !converted(words, original.map(|o| (o, data.join(file))), &cli) => {
                println!("skipped: {name} (FUSEDPO_PYTHON)");
                continue;
            }
            (Some(_), Some(_)) => cli.path("converted.jsonl"),
            _ => data.join(file),
        };
        cli.write("rows.jsonl", some_rows(&rows));
        smaller(&mut recipe, name, &data.join("stories260k"));
        cli.write("r.toml", recipe.to_string());
        cli.ok("run r.toml --out o");
        assert_eq!(manifest(&cli, "o")["complete"], true, "{name}");
    }
}

/// The recipe with few rows and steps.
fn smaller(recipe: &mut toml::Table, name: &str, model: &Path) {
    let small = model.display().to_string();
    let of_pairs = recipe.contains_key("dpo");
    for (stage, table) in recipe.iter_mut() {
        let table = table.as_table_mut().unwrap();
        for key in ["model", "tokenizer"] {
            if let Some(value) = table.get_mut(key) {
                *value = small.clone().into();
            }
        }
        let mut set = |key: &str, value: toml::Value| drop(table.insert(key.to_owned(), value));
        match stage.as_str() {
            "pack" => {
                set("input", vec!["rows.jsonl".to_owned()].into());
                set("max_length", 256.into());
                set("eval_fraction", 0.4.into());
                // The small model has none of its own, and a long way from passages to an answer.
                if ["oasst", "pandalm", "ultrafeedback"].contains(&name) {
                    set("chat_template", "chatml".into());
                }
                if name == "qa-feedback" {
                    set("max_length", 510.into());
                    set("truncation", "prompt-left".into());
                }
            }
            "sft" | "dpo" => {
                set("max_steps", 1.into());
                set("batch_size", 2.into());
                set("max_eval_samples", 2.into());
                set("device", "cpu".into());
                table.remove("num_train_epochs");
            }
            "eval" => {
                set("device", "cpu".into());
                // Without pairs there is nothing to be far from.
                if of_pairs {
                    set("kl_samples", 1.into());
                    set("kl_max_new_tokens", 4.into());
                }
            }
            _ => {}
        }
    }
}

/// Makes `converted.jsonl` by the words of a recipe, of what it calls `original.0`; without such a file the script is only there.
/// False: there is no Python.
fn converted(words: &str, original: Option<(&str, PathBuf)>, cli: &Cli) -> bool {
    let words: Vec<&str> = words.split(' ').collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(words[1]);
    assert!(words[0] == "python3" && script.is_file(), "{words:?}");
    let Some((name, file)) = original else { return true };
    assert!(words[2..].contains(&name), "{words:?}");
    let Some(python) = std::env::var_os("FUSEDPO_PYTHON") else { return false };
    let mut command = std::process::Command::new(python);
    command.arg("-B").arg(script).current_dir(cli.dir.path());
    let end = words.len() - 1;
    for word in &words[2..end] {
        if *word == name {
            command.arg(&file)
        } else {
            command.arg(word)
        };
    }
    let ran = command.arg("converted.jsonl").output().unwrap();
    assert!(ran.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ran.stderr));
    true
}

/// Some rows of a file, from its beginning to its end.
fn some_rows(file: &Path) -> String {
    let text = match file.extension().is_some_and(|e| e == "gz") {
        true => {
            let out = std::process::Command::new("gzip").arg("-dc").arg(file).output().unwrap();
            String::from_utf8(out.stdout).unwrap()
        }
        false => std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display())),
    };
    let rows: Vec<String> = match serde_json::from_str::<Vec<Value>>(&text) {
        Ok(all) => all.iter().map(Value::to_string).collect(),
        Err(_) => text.lines().map(str::to_owned).collect(),
    };
    rows.iter().step_by(rows.len().div_ceil(16)).map(|row| format!("{row}\n")).collect()
}
