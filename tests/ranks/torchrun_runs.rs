//! Runs by processes that torchrun started: those of one process, to the byte; and every way in which a rank is lost ends all.

use crate::abreast::abreast;
use crate::cli_common::Cli;
use crate::mpirun::said;
use crate::torchrun::Torchrun;
use crate::training::{RUN, assert_same};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn run(cli: &Cli, ranks: usize, args: &str) -> Vec<Output> {
    let torchrun = Torchrun::new(ranks);
    Torchrun::end(torchrun.start(|_| cli.command(args)))
}

#[test]
fn results_are_those_of_one_process() {
    let cli = Cli::with_data();
    for (i, args) in ["sft", "dpo --loss-type bco_pair --eval-steps 2 --save-steps 2"].iter().enumerate() {
        let args = format!("{args} {RUN} --max-steps 4 --lanes 4");
        cli.ok(&format!("{args} --out r{i}-1"));
        for ranks in [2, 3] {
            let out = format!("r{i}-{ranks}");
            let all = run(&cli, ranks, &format!("{args} --out {out}"));
            let text: String = all.iter().map(said).collect();
            assert!(all.iter().all(|ran| ran.status.success()), "{args}: {text}");
            assert_eq!(text.matches(" steps in ").count(), 1, "one rank speaks: {text}");
            assert_same(&cli, &out, &format!("r{i}-1"), &format!("{args}, {ranks} ranks"));
        }
    }
}

#[test]
fn ranks_of_a_machine_add_up_first_and_come_to_the_same() {
    let cli = Cli::with_data();
    for (i, args) in ["sft --optim adamw_8bit --dtype bf16", "dpo --save-steps 2"].iter().enumerate() {
        if args.contains("bf16") && cli.ok("doctor").out.contains("--dtype bf16: not here") {
            println!("skipped: {args} (no products in bf16 here)");
            continue;
        }
        // Lanes that machines have as many of, and a tree that does not end where they do.
        for (lanes, ranks, beside) in [(4, 4, 2), (7, 6, 3)] {
            let args =
                format!("{args} {RUN} --max-steps 4 --batch-size 8 --lanes {lanes}").replace("--batch-size 5 ", "");
            let (one, all) = (format!("m{i}-{lanes}-1"), format!("m{i}-{lanes}-{ranks}"));
            cli.ok(&format!("{args} --out {one}"));
            let torchrun = Torchrun::new(ranks).on_machines(beside);
            let ran = Torchrun::end(torchrun.start(|_| cli.command(&format!("{args} --out {all}"))));
            let text: String = ran.iter().map(said).collect();
            assert!(ran.iter().all(|ran| ran.status.success()), "{args}: {text}");
            assert_same(&cli, &all, &one, &format!("{args}, {ranks} ranks, {beside} a machine"));
        }
    }
}

/// Waits for `file` to have `lines` of them.
fn await_lines(file: &Path, lines: usize) {
    let begun = Instant::now();
    while std::fs::read_to_string(file).unwrap_or_default().lines().count() < lines {
        assert!(begun.elapsed() < Duration::from_secs(60), "{file:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A signal to rank 2 in the middle of a run of four; the others have two seconds of patience.
fn struck(signal: &str) -> (Vec<Output>, Duration) {
    let cli = Cli::with_data();
    let torchrun = Torchrun::new(4);
    let args = format!("sft {RUN} --max-steps 100000 --lanes 4 --save-steps 0 --eval-strategy no --out o");
    let of = |_| {
        let mut command = cli.command(&args);
        command.env("FUSEDPO_COMM_TIMEOUT", "2");
        command
    };
    let mut all = torchrun.start(of);
    await_lines(&cli.path("o/metrics.jsonl"), 3);
    let lost = all.remove(2);
    let kill = |signal: &str| Command::new("kill").args([signal, &lost.id().to_string()]).status().unwrap();
    assert!(kill(signal).success());
    let begun = Instant::now();
    let others = Torchrun::end(all);
    let took = begun.elapsed();
    let _ = kill("-KILL");
    drop(Torchrun::end(vec![lost]));
    (others, took)
}

#[test]
fn a_rank_that_is_killed_or_stuck_ends_all() {
    let signals = [
        ("-KILL", "rank 2 is lost: its connection was closed"),
        ("-STOP", ": rank 2 is lost or stuck (FUSEDPO_COMM_TIMEOUT"),
    ];
    abreast(2, &signals, |(signal, why)| {
        let (others, took) = struck(signal);
        for (i, ran) in others.iter().enumerate() {
            let text = String::from_utf8_lossy(&ran.stderr).into_owned();
            let lines: Vec<&str> = text.lines().filter(|line| line.contains("fusedpo: ")).collect();
            // Who waits for all names those too that wait for rank 2.
            let named = lines[0].contains("rank 2") || lines[0].contains("ranks ") && lines[0].contains(" 2,");
            assert!(lines.len() == 1 && named, "{signal}, {i}: {text}");
            assert_eq!(ran.status.code(), Some(1), "{signal}, {i}: {text}");
        }
        let all: Vec<String> = others.iter().map(said).collect();
        assert!(all.iter().any(|text| text.contains(why)), "{signal}: {all:?}");
        assert!(took < Duration::from_secs(15), "{signal}: {took:?}");
    });
}
