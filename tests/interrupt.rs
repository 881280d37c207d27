//! Ctrl-C while there is work that it must not lose, and Ctrl-C again.

mod cli_common;

use cli_common::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::ChildStderr;

/// `n` pairs with prompts of their own.
fn many(n: usize) -> Vec<Value> {
    let mut rows = pairs(n);
    for (i, row) in rows.iter_mut().enumerate() {
        row["prompt"] = json!(format!("w{} w{} w{}", 3 + i % 90, 3 + i / 90 % 90, 3 + i / 8100));
    }
    rows
}

/// Reads lines of stderr up to the one that begins so.
fn wait_for(err: &mut BufReader<ChildStderr>, begin: &str) {
    let mut line = String::new();
    while !line.starts_with(begin) {
        line.clear();
        assert!(err.read_line(&mut line).unwrap() > 0, "it ended before it said {begin:?}");
    }
}

/// The rest of stderr and the exit code.
fn end(mut child: Running, mut err: BufReader<ChildStderr>) -> (String, Option<i32>) {
    let mut rest = String::new();
    err.read_to_string(&mut rest).unwrap();
    (rest, child.wait().unwrap().code())
}

/// What `reference` says it did: responses, computed, found.
fn counts(said: &str) -> [u64; 3] {
    let words: Vec<&str> = said.split_whitespace().collect();
    [words[0], words[2], words[4]].map(|w| w.parse().unwrap_or_else(|_| panic!("{said}")))
}

#[test]
fn an_interrupted_reference_pass_keeps_what_it_has() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &many(12_000));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    let mut child = cli.spawn("reference --model m --data d");
    let mut err = BufReader::new(child.stderr.take().unwrap());
    // Said when the first micro-batches are done; written to disk every five seconds.
    wait_for(&mut err, "reference ");
    signal(&child, "INT");
    let (rest, code) = end(child, err);
    assert_eq!(code, Some(1), "{rest}");
    let last = rest.lines().last().unwrap();
    let left = last.strip_prefix("fusedpo: stopped: ").unwrap_or_else(|| panic!("{rest}"));
    let left: u64 =
        left.strip_suffix(" responses still to do; the same command goes on from here").unwrap().parse().unwrap();
    assert!(0 < left && left < 24_000, "{left}");
    let [all, computed, found] = counts(&cli.ok("reference --model m --data d").out);
    assert_eq!((all, computed, found), (24_000, left, 24_000 - left), "it goes on where it stopped");
    assert_eq!(cli.names("d", ".tmp"), Vec::<String>::new());
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let cli = Cli::new();
    cli.write_rows("rows.jsonl", &many(20_000));
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    // One step of seconds: nobody who asks twice wants to wait for it.
    let mut child = cli.spawn("sft --model m --data d --out r --batch-size 20000 --max-steps 1");
    let mut err = BufReader::new(child.stderr.take().unwrap());
    wait_for(&mut err, "memory");
    signal(&child, "INT");
    wait_for(&mut err, "stopping");
    signal(&child, "INT");
    let (rest, code) = end(child, err);
    assert_eq!(code, Some(130), "{rest}");
    assert!(!rest.contains("saved"), "{rest}");
    assert!(!cli.path("r/model.safetensors").exists());
}
