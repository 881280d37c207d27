//! What is no step by several processes: the reference's pass, evaluation, log-probs, continuations. All are one process's, to the byte.

use crate::abreast::{abreast, pairs};
use crate::cli_common::{Cli, rows, words};
use crate::mpirun::{Mpirun, said};
use crate::torchrun::Torchrun;
use crate::training::{RUN, some_of, with};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Every file of a folder, by name.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
    };
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(entry).collect();
    all.sort();
    all
}

fn assert_same_content(cli: &Cli, is: &str, was: &str, what: &str) {
    let [is, was] = [is, was].map(|folder| content(&cli.path(folder)));
    let names = |of: &[(String, Vec<u8>)]| of.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&is), names(&was), "{what}");
    assert!(is == was && !is.is_empty(), "{what}: {:?}", names(&is));
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{}", said(output));
    std::str::from_utf8(&output.stdout).unwrap()
}

/// Rows with prompts and responses that share a beginning, as sums over it are kept too.
fn with_many(n: usize) -> Cli {
    let cli = Cli::new();
    let row = |i: usize| {
        let shared = words(i + 7, 1 + i % 3);
        json!({
            "prompt": format!("w{}{}", 3 + i % 94, words(i + 1, 3 + i % 5)),
            "chosen": format!("{shared}{}", words(i + 100, 2 + i % 7)),
            "rejected": format!("{shared}{}", words(i + 200, 1 + i % 6)),
        })
    };
    cli.write_rows("rows.jsonl", &(0..n).map(row).collect::<Vec<_>>());
    cli.ok("pack --tokenizer m --input rows.jsonl --out d --eval-fraction 0.25");
    cli
}

#[test]
fn a_references_pass_is_that_of_one_process() {
    let cli = with_many(70);
    cli.ok("reference --model m --data d --device cpu --token-budget 96 --cache one");
    abreast(2, &pairs(&Mpirun::all(), &[2, 3, 4]), |(mpirun, ranks)| {
        let cache = format!("by-{}-{ranks}", mpirun.name);
        let args = format!("reference --model m --data d --device cpu --token-budget 96 --cache {cache}");
        let ran = with(mpirun, &cli, *ranks, &args);
        assert!(stdout(&ran).contains("140 responses: 140 computed, 0 found"), "{}", said(&ran));
        assert_eq!(said(&ran).matches("responses: ").count(), 1, "one rank speaks: {}", said(&ran));
        assert_same_content(&cli, &cache, "one", &format!("{mpirun:?}, {ranks}"));
        // Nothing is left to do, by any number.
        assert!(stdout(&with(mpirun, &cli, 2, &args)).contains("140 responses: 0 computed, 140 found"));
        let ran = with(mpirun, &cli, 2, &format!("{args} --prune"));
        assert!(stdout(&ran).starts_with("0 sidecars removed") && said(&ran).matches("removed").count() == 1);
    });
}

/// The pass within a run: sums of responses, of what both of a pair have, and of responses beside others' prompts.
#[test]
fn the_pass_within_a_run_is_that_of_one_process() {
    let cli = with_many(40);
    for (i, (args, kinds)) in
        [("dpo", 1), ("dpo --ld-alpha 0.4", 2), ("dpo --loss-type kto", 2)].into_iter().enumerate()
    {
        let args = format!("{args} {RUN} --max-steps 4 --lanes 4");
        cli.ok(&format!("{args} --cache c{i} --out r{i}"));
        assert_eq!(content(&cli.path(&format!("c{i}"))).len(), 2 * kinds, "{args}");
        for (j, mpirun) in Mpirun::all().into_iter().enumerate() {
            for ranks in some_of(&[2, 3], i + j) {
                let by = format!("{i}-{}-{ranks}", mpirun.name);
                let ran = with(&mpirun, &cli, ranks, &format!("{args} --cache c{by} --out r{by}"));
                assert!(ran.status.success(), "{args}: {}", said(&ran));
                assert_same_content(&cli, &format!("c{by}"), &format!("c{i}"), &args);
                assert_eq!(rows(&cli, &format!("r{by}")), rows(&cli, &format!("r{i}")), "{args}");
            }
        }
    }
}

#[test]
fn scores_are_those_of_one_process() {
    let cli = with_many(50);
    for more in ["", "--per-token --token-budget 70"] {
        let args = format!("score --model m --data d --device cpu {more}");
        cli.ok(&format!("{args} --out one.jsonl --overwrite"));
        abreast(2, &Mpirun::all(), |mpirun| {
            for ranks in [2, 4] {
                let by = format!("by-{}.jsonl", mpirun.name);
                let ran = with(mpirun, &cli, ranks, &format!("{args} --out {by} --overwrite"));
                assert!(stdout(&ran).contains(&format!("100 responses scored: {by}")), "{}", said(&ran));
                assert!(cli.bytes(&by) == cli.bytes("one.jsonl"), "{args}, {mpirun:?}, {ranks}");
            }
            let ran = with(mpirun, &cli, 2, &format!("{args} --out -"));
            assert_eq!(stdout(&ran), cli.text("one.jsonl"), "{args}");
        });
    }
}

#[test]
fn an_evaluation_is_that_of_one_process() {
    let cli = with_many(60);
    cli.model("other", "llama");
    cli.ok(&format!("dpo {RUN} --max-steps 3 --out r"));
    let kinds = [
        "--kl-samples 7 --kl-max-new-tokens 6",
        "--ref-model m --kl-samples 1 --token-budget 80 --seed 5",
        "--loss-type bco_pair --kl-samples 0",
        "--loss-type kto --kl-samples 0",
        "--loss-type simpo",
    ];
    for (i, more) in kinds.into_iter().enumerate() {
        let args = format!("eval --model r --data d --device cpu --json {more}");
        let one = cli.ok(&args).out;
        let all: Vec<(usize, Mpirun)> = Mpirun::all().into_iter().enumerate().collect();
        // With the reference's log-probs still to compute, and with those that are there.
        let caches: &[usize] = if more.contains("simpo") { &[1] } else { &[0, 1] };
        abreast(2, &pairs(&all, caches), |((j, mpirun), there)| {
            for ranks in some_of(&[2, 3], i + j + there) {
                let cache = if *there == 1 { "" } else { &format!("--cache c{i}-{}-{ranks}", mpirun.name) };
                let ran = with(mpirun, &cli, ranks, &format!("{args} {cache}"));
                assert_eq!(stdout(&ran), one, "{more}, {mpirun:?}, {ranks}, {cache}");
            }
        });
    }
}

#[test]
fn continuations_are_those_of_one_process() {
    let cli = Cli::new();
    let prompts = |n| (0..n).map(|i| json!({ "prompt": words(i, 2 + i % 5), "more": i })).collect::<Vec<Value>>();
    cli.write_rows("prompts.jsonl", &prompts(7));
    cli.write_rows("two.jsonl", &prompts(2));
    let kinds = [
        "--input prompts.jsonl",
        "--input prompts.jsonl --temperature 0.8 --top-p 0.9 --num-return-sequences 3 --seed 9",
        "--input two.jsonl --temperature 1",
        "--prompt w5 --temperature 1 --num-return-sequences 2",
    ];
    let all: Vec<(usize, Mpirun)> = Mpirun::all().into_iter().enumerate().collect();
    for (i, more) in kinds.into_iter().enumerate() {
        let args = format!("generate --model m --device cpu --max-new-tokens 9 {more}");
        let one = cli.ok(&args).out;
        abreast(2, &all, |(j, mpirun)| {
            for ranks in some_of(&[2, 4], i + j) {
                let ran = with(mpirun, &cli, ranks, &args);
                assert_eq!(stdout(&ran), one, "{more}, {mpirun:?}, {ranks}");
            }
            for ranks in some_of(&[4, 2], i + j) {
                let by = format!("by-{}", mpirun.name);
                let ran = with(mpirun, &cli, ranks, &format!("{args} --out {by} --overwrite"));
                assert!(ran.status.success() && cli.text(&by) == one, "{more}: {}", said(&ran));
            }
        });
    }
    // What is piped reaches rank 0, and is enough.
    let one = cli.ok("generate --model m --device cpu --max-new-tokens 9 --input prompts.jsonl").out;
    for mpirun in Mpirun::all() {
        let mut command = mpirun.command(2);
        command.arg(env!("CARGO_BIN_EXE_fusedpo"));
        command.args("generate --model m --device cpu --max-new-tokens 9 --input -".split(' '));
        command.current_dir(cli.dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&cli.bytes("prompts.jsonl")).unwrap();
        assert_eq!(stdout(&child.wait_with_output().unwrap()), one, "{mpirun:?}");
    }
}

/// Ranks that were told different things, and what goes wrong for all or for one: a line, and all end.
#[test]
fn what_goes_wrong_ends_all() {
    let cli = with_many(20);
    cli.model("bad", "llama");
    let mut bytes = cli.bytes("bad/model.safetensors");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let all: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let [from, to] = [0, 1].map(|i| header + all["model.norm.weight"]["data_offsets"][i].as_u64().unwrap() as usize);
    bytes[from..to].chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&f32::MAX.to_le_bytes()));
    cli.write("bad/model.safetensors", bytes);
    cli.write_rows("prompts.jsonl", &(0..6).map(|i| json!({ "prompt": words(i, 3) })).collect::<Vec<_>>());
    let cases = [
        ("reference --model bad --data d --cache c", "has the reference log-probability"),
        ("score --model bad --data d --out s.jsonl", "its log-probability is"),
        ("eval --model bad --ref-model m --data d --kl-samples 0 --cache e", ""),
        (
            "generate --model bad --input prompts.jsonl --out g",
            "prompt 1: after 0 new tokens the model computes no finite",
        ),
        ("reference --model nowhere --data d", "nowhere"),
        ("score --model m --data nowhere --out s.jsonl", "nowhere"),
        ("generate --model m --input nowhere.jsonl", "nowhere.jsonl"),
    ];
    abreast(4, &cases, |(args, want)| {
        let (begun, torchrun) = (Instant::now(), Torchrun::new(3));
        let all = Torchrun::end(torchrun.start(|_| cli.command(&format!("{args} --device cpu"))));
        let text: String = all.iter().map(said).collect();
        assert!(all.iter().all(|ran| !ran.status.success()) && text.contains(want), "{args}: {text}");
        assert_eq!(String::from_utf8_lossy(&all[0].stderr).matches("fusedpo: ").count(), 1, "{args}: {text}");
        assert!(all.iter().all(|ran| ran.stdout.is_empty()), "{args}: {text}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{args}");
        assert!(!cli.path("s.jsonl").exists() && !cli.path("g").exists(), "{args}");
    });
    let different = [
        ("score --model m --data d --out s.jsonl", "--per-token", "rank 1 has another set of options than rank 0"),
        ("generate --model m --prompt w5", "--max-new-tokens 3", "rank 1 has another set of options than rank 0"),
        ("reference --model m --data d", "--token-budget 99", "rank 1 has another token budget than rank 0"),
        ("eval --model m --data d", "--kl-samples 3", "rank 1 has another samples than rank 0"),
    ];
    abreast(4, &different, |(args, more, want)| {
        let torchrun = Torchrun::new(2);
        let of = |rank| cli.command(&format!("{args} --device cpu {}", if rank == 1 { more } else { &"" }));
        let all = Torchrun::end(torchrun.start(of));
        let text: String = all.iter().map(said).collect();
        assert!(all.iter().all(|ran| !ran.status.success()) && text.contains(want), "{args}: {text}");
    });
}

/// Rows so long and so many that a pass over them takes seconds, in `d`.
fn with_long() -> Cli {
    let cli = Cli::new();
    let row = |i: usize| json!({ "prompt": words(i, 45), "chosen": words(i, 50), "rejected": words(i + 1, 50) });
    cli.write_rows("rows.jsonl", &(0..3000).map(row).collect::<Vec<_>>());
    cli.ok("pack --tokenizer m --input rows.jsonl --out d");
    cli
}

/// Three ranks at `args`, which fill the cache `by`, and a signal to rank 1 in the middle; and how long they lived after it.
fn struck(cli: &Cli, (args, by): (&str, &str), signal: &str) -> (Vec<Output>, Duration) {
    let torchrun = Torchrun::new(3);
    let all = torchrun.start(|_| cli.command(&format!("{args} --cache {by}")));
    let begun = Instant::now();
    while !cli.path(by).is_dir() || cli.names(by, "train-").is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(Command::new("kill").args([signal, &all[1].id().to_string()]).status().unwrap().success());
    let struck = Instant::now();
    (Torchrun::end(all), struck.elapsed())
}

/// A signal to any rank is heard within the pass by all; what was computed is kept, and any number of processes goes on from it. One
/// that is killed ends all, in a line that names it.
#[test]
fn a_signal_to_any_rank_ends_the_pass() {
    let cli = with_long();
    let args = "reference --model m --data d --device cpu --token-budget 512";
    cli.ok(&format!("{args} --cache one"));
    abreast(2, &["-TERM", "-KILL"], |signal| {
        let by = &signal[1..];
        let (all, took) = struck(&cli, (args, by), signal);
        let text: String = all.iter().map(said).collect();
        if *signal == "-TERM" {
            assert!(text.contains(" responses still to do; the same command goes on from here"), "{text}");
            assert_eq!(text.matches("still to do").count(), 1, "rank 0 alone says it: {text}");
            assert_eq!(
                all.iter().map(|ran| ran.status.code()).collect::<Vec<_>>(),
                [130, 143, 130].map(Some),
                "{text}"
            );
            assert!(took < Duration::from_secs(20), "{took:?}");
        } else {
            for rank in [0, 2] {
                let text = String::from_utf8_lossy(&all[rank].stderr);
                let lines: Vec<&str> = text.lines().filter(|line| line.contains("fusedpo: ")).collect();
                assert!(lines.len() == 1 && lines[0].contains("rank 1 is lost"), "{rank}: {text}");
                assert_eq!(all[rank].status.code(), Some(1), "{rank}: {text}");
            }
            assert!(took < Duration::from_secs(15), "{took:?}");
        }
        let ran = cli.ok(&format!("{args} --cache {by}"));
        let found: u64 = ran.out.split(" computed, ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(*signal == "-KILL" || 0 < found && found < 6000, "{ran:?}");
        assert_same_content(&cli, by, "one", signal);
    });
}
