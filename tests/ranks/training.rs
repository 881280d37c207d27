//! A run by several processes is the run of one, to the byte: weights, metrics without times, ledger and checkpoints depend on the
//! lanes alone. And what ends it.

use crate::abreast::{abreast, pairs};
use crate::cli_common::{Cli, rows};
use crate::mpirun::{Mpirun, said};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

pub const RUN: &str = "--model m --data d --device cpu --learning-rate 1e-3 --batch-size 5 --token-budget 96 --quiet";

/// Runs that differ in what goes through several ranks.
const KINDS: &[(&str, &str)] = &[
    ("sft", "sft"),
    ("dpo", "dpo --eval-steps 2 --save-steps 2"),
    ("the best evaluation", "dpo --eval-steps 1 --load-best-model-at-end"),
    ("a sum of losses", "dpo --loss-type sigmoid,sft --loss-weights 1,0.5 --optim adamw_8bit --dtype bf16"),
    ("a loss of the whole step", "dpo --loss-type bco_pair"),
    ("judgements", "dpo --loss-type kto"),
    (
        "a reference that follows",
        "dpo --sync-ref-model --ref-model-sync-steps 2 --ref-model-mixup-alpha 0.3 --eval-steps 2",
    ),
    (
        "one that follows a loss of the step",
        "dpo --sync-ref-model --ref-model-sync-steps 1 --loss-type bco_pair --ld-alpha 0.5",
    ),
    (
        "samples",
        "dpo --eval-steps 2 --kl-samples 5 --kl-max-new-tokens 6 --sample-prompts 3 --sample-max-new-tokens 5 --sample-temperature 1",
    ),
    ("samples beside another model", "dpo --ref-model other --kl-samples 3 --kl-max-new-tokens 4 --sample-prompts 1"),
    (
        "samples beside one that follows",
        "dpo --sync-ref-model --ref-model-sync-steps 1 --kl-samples 3 --sample-prompts 2",
    ),
    ("samples without a reference", "sft --sample-prompts 4"),
    ("an adapter", "dpo --lora-r 2 --lora-dropout 0.2 --optim rmsprop"),
];

pub fn with(mpirun: &Mpirun, cli: &Cli, ranks: usize, args: &str) -> Output {
    let mut command = mpirun.command(ranks);
    command.arg(env!("CARGO_BIN_EXE_fusedpo")).args(args.split_whitespace()).current_dir(cli.dir.path());
    command.output().unwrap()
}

/// Every file below `path` that a run's results are, by name.
fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            let of = files(&path).into_iter().map(|(of, bytes)| (format!("{name}/{of}"), bytes));
            all.extend(of.collect::<Vec<_>>());
        } else if name.ends_with(".safetensors")
            || ["ledger.bin", "samples.jsonl"].contains(&&*name)
            || name == "state.bin"
        {
            all.push((name, std::fs::read(path).unwrap()));
        }
    }
    all.sort();
    all
}

pub fn assert_same(cli: &Cli, is: &str, was: &str, what: &str) {
    assert_eq!(rows(cli, is), rows(cli, was), "{what}: metrics");
    let [is, was] = [is, was].map(|run| files(&cli.path(run)));
    let names = |of: &[(String, Vec<u8>)]| of.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&is), names(&was), "{what}");
    for ((name, is), (_, was)) in is.iter().zip(&was) {
        assert!(is == was, "{what}: {name} differs");
    }
    assert!(is.iter().any(|(name, _)| name.ends_with(".safetensors")), "{what}");
}

/// Numbers of processes that a test tries its `case` with, of 2 to 4: one, and all three where `FUSEDPO_RANKS` is `all`
/// (scripts/ranks.sh).
fn sizes(case: usize) -> Vec<usize> {
    some_of(&[2, 3, 4], case)
}

/// What a test tries of `all` with its `case`: one, so that cases in a row try each, and all where `FUSEDPO_RANKS` is `all`.
pub fn some_of<T: Copy>(all: &[T], case: usize) -> Vec<T> {
    match std::env::var("FUSEDPO_RANKS") {
        Ok(which) if which == "all" => all.to_vec(),
        _ => vec![all[case % all.len()]],
    }
}

#[test]
fn results_depend_on_the_lanes_alone() {
    let all = Mpirun::all();
    let cli = Cli::with_data();
    cli.model("other", "llama");
    let kinds: Vec<(usize, &(&str, &str))> = KINDS.iter().enumerate().collect();
    abreast(3, &kinds, |(i, (kind, args))| {
        let usable = !args.contains("bf16") || !cli.ok("doctor").out.contains("--dtype bf16: not here");
        if !usable {
            return println!("skipped: {kind} (no products in bf16 here)");
        }
        let one = format!("r{i}-1");
        cli.ok(&format!("{args} {RUN} --max-steps 5 --lanes 4 --out {one}"));
        // Of another number of lanes another rounding: what is compared below can differ. bf16 may hide it.
        if !args.contains("bf16") {
            cli.ok(&format!("{args} {RUN} --max-steps 5 --out r{i}-0"));
            assert!(files(&cli.path(&format!("r{i}-0"))) != files(&cli.path(&one)), "{kind}");
        }
        for (j, mpirun) in all.iter().enumerate() {
            for ranks in sizes(i + j) {
                let run = format!("r{i}-{}-{ranks}", mpirun.name);
                let ran = with(mpirun, &cli, ranks, &format!("{args} {RUN} --max-steps 5 --lanes 4 --out {run}"));
                assert!(ran.status.success(), "{kind}, {mpirun:?}, {ranks} ranks: {}", said(&ran));
                assert_same(&cli, &run, &one, &format!("{kind}, {}, {ranks} ranks", mpirun.name));
                let once = said(&ran).matches(" steps in ").count();
                assert_eq!(once, 1, "one rank speaks: {}", said(&ran));
            }
        }
    });
}

#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    let cli = Cli::with_data();
    let args = format!("dpo {RUN} --lr-scheduler-type constant --save-steps 2");
    cli.ok(&format!("{args} --max-steps 7 --lanes 4 --out whole"));
    abreast(2, &Mpirun::all(), |mpirun| {
        let out = format!("parts-{}", mpirun.name);
        let ran = with(mpirun, &cli, 3, &format!("{args} --max-steps 2 --lanes 4 --out {out}"));
        assert!(ran.status.success(), "{}", said(&ran));
        // Nobody names the lanes: they are the checkpoint's.
        let ran = with(mpirun, &cli, 2, &format!("{args} --max-steps 4 --out {out} --resume auto"));
        assert!(ran.status.success(), "{}", said(&ran));
        cli.ok(&format!("{args} --max-steps 6 --out {out} --resume auto"));
        let ran = with(mpirun, &cli, 4, &format!("{args} --max-steps 7 --out {out} --resume auto"));
        assert!(ran.status.success(), "{}", said(&ran));
        let [last, whole] = [&out, "whole"].map(|run| cli.bytes(&format!("{run}/model.safetensors")));
        assert!(last == whole, "{}: weights differ", mpirun.name);
        let trained =
            |run: &str| rows(&cli, run).into_iter().filter(|row| row.get("loss").is_some()).collect::<Vec<_>>();
        assert_eq!(trained(&out), trained("whole"));
        // More than share the lanes of then.
        let ran = with(mpirun, &cli, 5, &format!("{args} --max-steps 8 --out {out} --resume auto"));
        let text = said(&ran);
        assert!(text.contains("the checkpoint's --lanes, 4: fewer than the 5 processes"), "{text}");
        let ran = with(mpirun, &cli, 2, &format!("{args} --max-steps 7 --out {out} --resume auto"));
        assert!(said(&ran).contains("the run is finished, after 7 steps"), "{}", said(&ran));
    });
}

#[test]
fn a_launcher_gives_eight_lanes() {
    let cli = Cli::with_data();
    for mpirun in Mpirun::all() {
        for ranks in [1, 2] {
            let out = format!("{}-{ranks}", mpirun.name);
            let ran = with(&mpirun, &cli, ranks, &format!("sft {RUN} --max-steps 2 --out {out}"));
            assert!(ran.status.success(), "{}", said(&ran));
            assert!(cli.text(&format!("{out}/config.toml")).contains("\nlanes = 8\n"));
        }
        assert_same(&cli, &format!("{}-1", mpirun.name), &format!("{}-2", mpirun.name), mpirun.name);
    }
    cli.ok(&format!("sft {RUN} --max-steps 2 --out plain"));
    assert!(!cli.text("plain/config.toml").contains("lanes"));
}

#[test]
fn what_several_processes_do_not_do_is_refused_once() {
    let cli = Cli::with_data();
    let cases = [
        ("dpo --lanes 1 --max-steps 2", "--lanes 1: fewer than the 2 processes that are to share them", 2),
        ("sft --model nowhere", "nowhere", 2),
    ];
    abreast(4, &pairs(&Mpirun::all(), &cases), |(mpirun, (args, why, code))| {
        let run = RUN.replace("--model m", if args.contains("--model") { "" } else { "--model m" });
        let ran = with(mpirun, &cli, 2, &format!("{args} {run} --out refused"));
        let text = said(&ran);
        assert_eq!(text.matches("fusedpo: ").count(), 1, "{args}: {text}");
        assert!(text.contains(why) && ran.status.code() == Some(*code), "{args}: {:?} {text}", ran.status);
        assert!(!cli.path("refused").exists(), "{args}");
    });
    let ran = cli.run(&format!("dpo {RUN} --lanes 0 --out refused"));
    assert!(ran.code == 2 && ran.err.contains("--lanes 0: must be 1 or more"), "{ran:?}");
}

/// Rank 0 chooses the token budget for all, the one that one process chooses; a run that goes on keeps its own.
#[test]
fn a_budget_is_chosen_for_all() {
    let cli = Cli::with_data();
    let run = RUN.replace("--token-budget 96", "");
    cli.ok(&format!("dpo {run} --fit --max-steps 3 --lanes 4 --out one"));
    abreast(2, &Mpirun::all(), |mpirun| {
        let out = format!("by-{}", mpirun.name);
        let args = format!("dpo {run} --fit --lr-scheduler-type constant --lanes 4 --out {out}").replace("--quiet", "");
        let ran = with(mpirun, &cli, 3, &format!("dpo {run} --fit --max-steps 3 --lanes 4 --out {out}-1"));
        assert!(ran.status.success(), "{}", said(&ran));
        assert_same(&cli, &format!("{out}-1"), "one", mpirun.name);
        assert!(cli.text(&format!("{out}-1/config.toml")).contains("\ntoken_budget = 512\n"));
        let ran = with(mpirun, &cli, 2, &format!("{args} --max-steps 2 --save-steps 1"));
        assert_eq!(said(&ran).matches("token budget 512, as --fit asks for").count(), 1, "{}", said(&ran));
        let ran = with(mpirun, &cli, 3, &format!("{args} --max-steps 3 --resume auto"));
        assert!(ran.status.success() && said(&ran).contains("token budget 512, the checkpoint's"), "{}", said(&ran));
    });
}

/// A rank that fails alone, as one whose disk has other shards: its line names it, and all end.
#[test]
fn a_rank_that_differs_ends_all() {
    let cli = Cli::with_data();
    cli.write_rows("other.jsonl", &crate::cli_common::pairs(25));
    cli.ok("pack --tokenizer m --input other.jsonl --out e --eval-fraction 0.25");
    abreast(2, &Mpirun::all(), |mpirun| {
        let begun = Instant::now();
        let mut command = mpirun.command(1);
        let [mine, other] = ["d", "e"].map(|data| {
            format!("sft {} --out differ --max-steps 2", RUN.replace("--data d", &format!("--data {data}")))
        });
        command.arg(env!("CARGO_BIN_EXE_fusedpo")).args(mine.split_whitespace());
        command.args([":", "-n", "1"]).arg(env!("CARGO_BIN_EXE_fusedpo")).args(other.split_whitespace());
        let ran = command.current_dir(cli.dir.path()).output().unwrap();
        let text = said(&ran);
        assert!(text.contains("rank 1 has another content of the training shards than rank 0"), "{text}");
        assert!(!ran.status.success() && begun.elapsed() < Duration::from_secs(30));
        assert!(!cli.path("differ").exists());
    });
}
