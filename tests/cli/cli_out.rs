//! What commands write: with which permissions, to which targets, and what they leave alone.
#![cfg(unix)]

use crate::cli_common;

use cli_common::*;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

const SCORE: &str = "score --model m --data d --out";
const SAID: &str = "48 responses scored";

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A device node of the test's own: as root, a program at fault would destroy the system's.
fn node(cli: &Cli, name: &str, minor: &str) -> bool {
    let made = Command::new("mknod").arg(cli.path(name)).args(["c", "1", minor]).output();
    // Where it may be made but not be opened (a file system without devices) there is nothing to test either.
    let usable = made.is_ok_and(|o| o.status.success()) && File::options().write(true).open(cli.path(name)).is_ok();
    if !usable {
        let _ = std::fs::remove_file(cli.path(name));
        println!("skipped: a device as --out (this user may not make one)");
    }
    usable
}

#[test]
fn every_file_has_the_mode_of_an_ordinary_new_one() {
    let cli = Cli::with_data();
    for args in [
        "pack --tokenizer m --input rows.jsonl --out o/e --eval-fraction 0.25",
        "reference --model m --data d --cache o/c",
        "dpo --model m --data d --cache o/c --out o/r --max-steps 1",
        "score --model m --data d --out o/s",
    ] {
        let shell = format!("umask 027; exec {} {args}", env!("CARGO_BIN_EXE_fusedpo"));
        let ran = Command::new("sh").args(["-c", &shell]).current_dir(&cli.dir).output().unwrap();
        assert!(ran.status.success(), "{args}: {ran:?}");
    }
    let made: Vec<_> = cli.tree().into_iter().filter(|p| p.starts_with(cli.path("o"))).collect();
    for name in ["o/e/train-00000.pref", "o/e/report.json", "o/r/config.toml", "o/r/metrics.jsonl", "o/s"] {
        assert!(made.contains(&cli.path(name)), "{name} of {made:?}");
    }
    for path in made {
        let want = if path.is_dir() { 0o750 } else { 0o640 };
        assert_eq!(mode(&path), want, "{}: {:o}", path.display(), mode(&path));
    }
}

#[test]
fn an_existing_file_is_replaced_on_request_only() {
    let cli = Cli::with_data();
    let said = cli.ok(&format!("{SCORE} s"));
    assert_eq!((said.out.as_str(), cli.json_lines("s").len()), (format!("{SAID}: s\n").as_str(), 48));
    let scores = cli.text("s");
    cli.write("s", "mine");
    cli.bad(&format!("{SCORE} s"), 2, "s: exists; name another file, or --overwrite to replace it");
    assert_eq!(cli.text("s"), "mine");
    cli.ok(&format!("{SCORE} s --overwrite"));
    assert!(cli.text("s") == scores);
    // Whatever goes wrong leaves the old one.
    let want = "d: no config.json; expected a Hugging Face model directory with config.json and model.safetensors";
    cli.bad("score --model d --data d --out s --overwrite", 2, want);
    assert!(cli.text("s") == scores);
}

#[test]
fn links_lead_to_what_is_written() {
    let cli = Cli::with_data();
    cli.ok(&format!("{SCORE} s"));
    let scores = cli.text("s");
    std::fs::create_dir(cli.path("sub")).unwrap();
    symlink("sub/file", cli.path("link")).unwrap();
    cli.ok(&format!("{SCORE} link"));
    assert!(cli.path("link").is_symlink() && cli.text("sub/file") == scores);
    cli.write("sub/file", "mine");
    cli.bad(&format!("{SCORE} link"), 2, "link: exists; name another file, or --overwrite to replace it");
    cli.ok(&format!("{SCORE} link --overwrite"));
    assert!(cli.path("link").is_symlink() && cli.text("sub/file") == scores);
}

#[test]
fn standard_output_by_any_of_its_names() {
    let cli = Cli::with_data();
    cli.ok(&format!("{SCORE} s"));
    let scores = cli.text("s");
    for name in ["-", "/dev/stdout", "/dev/fd/1"] {
        let ran = cli.ok(&format!("{SCORE} {name}"));
        assert!(ran.out == scores, "{name}: nothing but the scores: {ran:?}");
        assert_eq!(ran.err.lines().last(), Some(SAID), "{name}: {ran:?}");
        // A file that the shell opened is added to, as by any program.
        cli.write("log", "before\n");
        let log = File::options().append(true).open(cli.path("log")).unwrap();
        assert!(cli.command(&format!("{SCORE} {name}")).stdout(log).status().unwrap().success());
        assert!(cli.text("log") == format!("before\n{scores}"), "{name}");
        // A reader that left has all it wanted; a full disk is an error.
        let mut child = cli.spawn(&format!("{SCORE} {name}"));
        drop(child.stdout.take());
        let ran = finish(child);
        assert!(ran.code == 0 && !ran.err.contains("fusedpo: "), "{name}: {ran:?}");
        if let Ok(full) = File::options().write(true).open("/dev/full") {
            let child = cli.command(&format!("{SCORE} {name}")).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
            let want = "standard output: cannot write: No space left on device (os error 28)";
            one_line(name, &finish(child), 2, want);
        }
    }
    assert!(!cli.path("-").exists() && Path::new("/dev/stdout").exists());
}

#[test]
fn devices_and_pipes_are_written_to_and_stay() {
    let cli = Cli::with_data();
    cli.ok(&format!("{SCORE} s"));
    let scores = cli.text("s");
    assert!(Command::new("mkfifo").arg(cli.path("pipe")).status().unwrap().success());
    symlink("pipe", cli.path("to-pipe")).unwrap();
    for name in ["pipe", "to-pipe"] {
        let reader = Command::new("cat").arg(cli.path("pipe")).stdout(Stdio::piped()).spawn().unwrap();
        cli.ok(&format!("{SCORE} {name} --overwrite"));
        assert!(finish(reader).out == scores, "{name}");
        assert!(std::fs::metadata(cli.path("pipe")).unwrap().file_type().is_fifo());
    }
    if node(&cli, "null", "3") && node(&cli, "full", "7") {
        cli.ok(&format!("{SCORE} null"));
        cli.bad(&format!("{SCORE} full"), 2, "full: cannot write: No space left on device (os error 28)");
        for name in ["null", "full"] {
            assert!(std::fs::metadata(cli.path(name)).unwrap().file_type().is_char_device(), "{name} is gone");
        }
    }
}

#[test]
fn one_run_at_a_time_has_a_folder() {
    let cli = Cli::with_data();
    let args = "dpo --model m --data d --out r --max-steps 1000000";
    let mut child = cli.spawn(args);
    let begun = std::time::Instant::now();
    while !std::fs::read_to_string(cli.path("r/metrics.jsonl")).is_ok_and(|t| t.lines().count() > 1) {
        assert!(begun.elapsed().as_secs() < 60, "no step");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for stage in ["dpo", "sft"] {
        let args = format!("{stage} --model m --data d --out r");
        cli.bad(&args, 2, "r: another run is writing to it; name a new folder");
    }
    // Killed, it holds nothing any more.
    child.kill().unwrap();
    child.wait().unwrap();
    cli.bad(args, 2, "r: the output folder exists and is not empty; name a new one or remove it");
}

#[test]
fn what_could_not_begin_leaves_no_folder() {
    let cli = Cli::with_data();
    cli.ok("reference --model m --data d");
    let name = format!("d/{}", cli.names("d", "train-00000.pref.ref-").pop().unwrap());
    let mut sidecar = cli.bytes(&name);
    *sidecar.last_mut().unwrap() ^= 1;
    cli.write(&name, &sidecar);
    let want = format!("{name}: block 0 is damaged: delete it, and the reference pass makes it again");
    cli.bad("dpo --model m --data d --out a/b/r", 2, &want);
    cli.write("bad.jsonl", "{\"prompt\": 1}\n");
    let before = cli.tree();
    assert_eq!(cli.run("pack --tokenizer m --input bad.jsonl --out a/b/e").code, 2);
    assert_eq!(cli.tree(), before);
}
