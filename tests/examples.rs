//! The programs in examples/ run without arguments in seconds, and with paths do what they say.

#[path = "../examples/tiny/mod.rs"]
mod tiny;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// An example's program: `cargo test` puts them beside the tests.
fn example(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(program.is_file(), "{} is not there: cargo build --release --examples", program.display());
    let mut command = Command::new(program);
    command.env("RAYON_NUM_THREADS", "2").env_remove("RUST_BACKTRACE");
    command
}

/// Runs a program that must succeed; what it prints.
fn printed(command: &mut Command) -> String {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

fn fusedpo(arguments: &[&str], folder: &Path) -> String {
    printed(Command::new(env!("CARGO_BIN_EXE_fusedpo")).args(arguments).current_dir(folder))
}

/// A folder with `model`, `pairs.jsonl` and `pairs.tsv`, as the examples make them for themselves.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    tiny::write_model(&folder.path().join("model")).unwrap();
    std::fs::write(folder.path().join("pairs.jsonl"), tiny::jsonl()).unwrap();
    std::fs::write(folder.path().join("pairs.tsv"), tiny::PAIRS).unwrap();
    folder
}

fn paths(folder: &TempDir, names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| folder.path().join(name)).collect()
}

/// The numbers of a line that stand after `before`.
fn number(line: &str, before: &str) -> f64 {
    let rest = line.split(before).nth(1).unwrap_or_else(|| panic!("no `{before}` in {line}"));
    let text: String = rest.chars().take_while(|c| "+-.0123456789".contains(*c)).collect();
    text.parse().unwrap_or_else(|_| panic!("no number after `{before}` in {line}"))
}

/// What is wrong with the arguments is one line, and no success.
#[test]
fn other_arguments_are_refused() {
    for name in ["score_pairs", "write_shard", "dpo_from_rust"] {
        let ran = example(name).arg("one").output().unwrap();
        let error = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{error}");
        assert!(error.starts_with(&format!("{name}: give a model directory")) && error.lines().count() == 1, "{error}");
    }
}

/// The same numbers as `fusedpo score`, and the same with paths as without.
#[test]
fn score_pairs() {
    let folder = folder();
    let text = printed(&mut example("score_pairs"));
    assert_eq!(printed(example("score_pairs").args(paths(&folder, &["model", "pairs.jsonl"]))), text);
    fusedpo(&["pack", "--tokenizer", "model", "--input", "pairs.jsonl", "--out", "shards"], folder.path());
    let cpu = ["--device", "cpu", "--dtype", "f32"];
    let score = ["score", "--model", "model", "--data", "shards", "--out", "scores.jsonl"];
    fusedpo(&[&score[..], &cpu].concat(), folder.path());
    let scores = std::fs::read_to_string(folder.path().join("scores.jsonl")).unwrap();
    let logps: Vec<f64> =
        scores.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["logp"].as_f64().unwrap()).collect();
    let lines: Vec<&str> = text.lines().collect();
    let (pairs, last) = lines.split_at(8);
    let mut preferred = 0;
    for (row, line) in pairs.iter().enumerate() {
        assert!(line.starts_with(&format!("row {row}: ")), "{line}");
        let [chosen, rejected] = [logps[2 * row], logps[2 * row + 1]];
        // Three digits are printed.
        for (what, want) in [("chosen ", chosen), ("rejected ", rejected), ("difference ", chosen - rejected)] {
            let got = number(line, what);
            assert!((got - want).abs() <= 5.1e-4, "{line}: {what}{got}, {want} by `fusedpo score`");
        }
        preferred += usize::from(chosen > rejected);
    }
    assert_eq!(last, [format!("the chosen response is the likelier one in {preferred} of 8 pairs")]);
}

/// A shard that reads back as the rows, and that a run takes.
#[test]
fn write_shard() {
    let folder = folder();
    let text = printed(&mut example("write_shard"));
    assert_eq!(printed(example("write_shard").args(paths(&folder, &["model", "pairs.tsv", "shards"]))), text);
    let words: usize = tiny::PAIRS.split_whitespace().count();
    // BOS in front of every prompt, EOS behind every response.
    let tokens = words + 8 + 16;
    let bytes = std::fs::metadata(folder.path().join("shards/train-00000.pref")).unwrap().len();
    assert!(text.starts_with(&format!("train-00000.pref: 8 pairs, {tokens} tokens, {bytes} bytes\n")), "{text}");
    let vocabulary = std::fs::read(folder.path().join("model/tokenizer.json")).unwrap();
    let vocabulary = &serde_json::from_slice::<Value>(&vocabulary).unwrap()["model"]["vocab"];
    let ids = |text: &str| text.split_whitespace().map(|w| vocabulary[w].as_u64().unwrap()).collect::<Vec<_>>();
    let (prompt, chosen) = ([vec![1], ids("the film was")].concat(), [ids("good , really good ."), vec![2]].concat());
    assert!(text.ends_with(&format!("the first prompt is {prompt:?}, its chosen response {chosen:?}\n")), "{text}");
    let dpo = ["dpo", "--model", "model", "--data", "shards", "--out", "out", "--max-steps", "2", "--device", "cpu"];
    let ran = fusedpo(&dpo, folder.path());
    assert!(ran.starts_with("2 steps in "), "{ran}");

    std::fs::write(folder.path().join("bad.tsv"), "a prompt\tone response\n").unwrap();
    let ran = example("write_shard").args(paths(&folder, &["model", "bad.tsv", "bad"])).output().unwrap();
    let error = String::from_utf8(ran.stderr).unwrap();
    assert!(error.ends_with("bad.tsv: line 1: expected three columns, found 2\n"), "{error}");
    assert!(!folder.path().join("bad/train-00000.pref").exists());
}

/// The loss begins at ln 2, the observer ends the run when the margin is there, and the model is saved all the same.
#[test]
fn dpo_from_rust() {
    let folder = folder();
    let pack = ["pack", "--tokenizer", "model", "--input", "pairs.jsonl", "--out", "shards", "--eval-fraction", "0.25"];
    fusedpo(&pack, folder.path());
    let text = printed(&mut example("dpo_from_rust"));
    assert_eq!(printed(example("dpo_from_rust").args(paths(&folder, &["model", "shards", "out"]))), text);
    let lines: Vec<&str> = text.lines().collect();
    let (steps, end) = lines.split_at(lines.len() - 2);
    assert!(steps[0] == "step 1: loss 0.6931, margin 0.0000", "{text}");
    let margins: Vec<f64> = steps.iter().map(|line| number(line, "margin ")).collect();
    let (last, before) = margins.split_last().unwrap();
    // Four digits are printed. One more step may be under way when a step is told; it is the last.
    assert!(before.iter().rev().skip(1).all(|m| *m < 0.5) && *last > 0.4, "{text}");
    assert!((3..100).contains(&steps.len()), "{text}");
    assert!(end[0].starts_with(&format!("{} steps, the margin was reached; ", steps.len())), "{text}");
    assert!(end[1].starts_with("held-out loss 0.6931 before, ") && number(end[1], "before, ") < 0.69, "{text}");
    let metrics = std::fs::read_to_string(folder.path().join("out/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().filter(|l| l.contains("\"learning_rate\"")).count(), steps.len());
    assert!(folder.path().join("out/model.safetensors").is_file());
}
