//! What the commands do where stdout or stderr is full, or nobody reads it; and how values are told from options.

use crate::cli_common;

use cli_common::*;
use std::fs::File;
use std::io::Write;
use std::process::Stdio;

/// Commands that print a result and keep nothing.
const TELLING: [&str; 5] = [
    "inspect d --show 3",
    "eval --model m --data d --kl-samples 2",
    "eval --model m --data d --kl-samples 2 --json",
    "generate --model m --prompt w5 --num-return-sequences 300 --temperature 1 --max-new-tokens 4",
    "doctor",
];

#[test]
fn a_reader_that_left_is_no_error() {
    let cli = Cli::with_data();
    for args in TELLING {
        let mut child = cli.spawn(args);
        drop(child.stdout.take());
        let ran = finish(child);
        assert!(ran.code == 0 && !ran.err.contains("fusedpo: "), "{args}: {ran:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let cli = Cli::with_data();
    for args in TELLING {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let child = cli.command(args).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        one_line(args, &finish(child), 2, "standard output: cannot write: No space left on device (os error 28)");
    }
}

/// What is told to people on the way never ends a run: not where they left, not where their log's disk is full.
#[test]
fn a_run_goes_on_when_nobody_reads_its_progress() {
    let cli = Cli::with_data();
    let trains = |out: &str| format!("dpo --model m --data d --out {out} --max-steps 3");
    cli.ok(&trains("read"));
    let mut child = cli.spawn(&trains("left"));
    drop(child.stderr.take());
    assert_eq!(finish(child).code, 0);
    let same =
        |out: &str| assert!(cli.bytes(&format!("{out}/model.safetensors")) == cli.bytes("read/model.safetensors"));
    same("left");
    if let Ok(full) = File::options().write(true).open("/dev/full") {
        assert!(cli.command(&trains("full")).stderr(full).status().unwrap().success());
        same("full");
    }
}

#[test]
fn a_minus_begins_a_value_where_a_value_is_due() {
    let cli = Cli::with_data();
    for (args, want) in [
        ("dpo --model m --data d --out r --beta -0.1", "--beta -0.1: must be a finite number greater than 0"),
        ("eval --model m --data d --beta -1", "--beta -1: must be a finite number greater than 0"),
        ("pack --tokenizer m --input rows.jsonl --out e --eval-fraction -0.1", "--eval-fraction -0.1 is not in [0, 1)"),
        ("generate --model m --prompt w5 --temperature -1", "--temperature -1: must be a finite number, at least 0"),
        (
            "dpo --model m --data d --out r --max-steps -1",
            "invalid value '-1' for '--max-steps <N>': invalid digit found in string; see --help",
        ),
    ] {
        cli.bad(args, 2, want);
    }
    // A list is a prompt like any other.
    let ran = cli.command("generate --model m --max-new-tokens 2").args(["--prompt", "- w5"]).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
}

/// A pipe that brings nothing more does not keep a command from stopping.
#[cfg(unix)]
#[test]
fn a_signal_ends_the_wait_for_standard_input() {
    let cli = Cli::with_data();
    for args in ["pack --tokenizer m --input - --out x", "generate --model m --input -"] {
        let mut command = cli.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // More than a pipe holds: once all is written, it is being read.
        stdin.write_all(&vec![b'\n'; 1 << 19]).unwrap();
        signal(&child, "INT");
        one_line(args, &finish(child), 130, "stopped; nothing was written");
        drop(stdin);
    }
    assert!(!cli.path("x").exists());
}
