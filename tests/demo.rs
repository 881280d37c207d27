//! `fusedpo demo`, shrunken: the same text twice, and a reward that rises.

use std::path::Path;
use std::process::Command;

/// Runs the demo into `dir/demo`; what it printed on stdout.
fn demo(dir: &Path) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_fusedpo"))
        .current_dir(dir)
        .args(["demo", "--out", "demo", "--device", "cpu", "--steps", "240"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The numbers of a row of the table: SFT's, its interval, DPO's, its interval.
fn row(text: &str, name: &str) -> Vec<f64> {
    let line =
        text.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or_else(|| panic!("no `{name}`:\n{text}"));
    line.trim_start()[name.len()..].split_whitespace().filter_map(|w| w.parse().ok()).collect()
}

#[test]
fn twice_the_same_and_the_reward_rises() {
    let dir = tempfile::tempdir().unwrap();
    let first = demo(dir.path());
    let [before, before_95, after, after_95] = row(&first, "reward (-1 to 1)")[..] else { panic!("{first}") };
    assert!(after - after_95 > before + before_95, "{before} ± {before_95} -> {after} ± {after_95}");
    let accuracy = row(&first, "implicit-reward accuracy");
    assert!(accuracy[1] > 60.0, "{accuracy:?}");
    let weights = |name: &str| std::fs::read(dir.path().join("demo").join(name).join("model.safetensors")).unwrap();
    let models = ["sft", "dpo"].map(weights);

    let second = demo(dir.path());
    assert_eq!(first, second, "a second demo in the same folder prints the same");
    assert!(models == ["sft", "dpo"].map(weights), "and leaves the same models");
}

#[test]
fn a_folder_of_someone_else_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.txt"), "do not lose this").unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_fusedpo")).arg("demo").arg("--out").arg(dir.path()).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.lines().count() == 1 && stderr.contains("not empty"), "{stderr}");
    assert!(dir.path().join("thesis.txt").exists());
}
