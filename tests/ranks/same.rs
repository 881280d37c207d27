//! Ranks that were given different things: who has another of what, before anything is computed or written.

use crate::cli_common::Cli;
use crate::mpirun::{Mpirun, said};
use crate::torchrun::Torchrun;
use std::process::Output;
use std::time::{Duration, Instant};

const RUN: &str = "--model m --data d --max-steps 4 --batch-size 8 --learning-rate 1e-3 --device cpu";

/// All of two ranks at `dpo` of [`RUN`], the second one with `more`, into `out`.
fn two(cli: &Cli, of: impl Fn(usize) -> String) -> Vec<Output> {
    let torchrun = Torchrun::new(2);
    Torchrun::end(torchrun.start(|rank| cli.command(&of(rank))))
}

#[test]
fn options_that_differ_are_named() {
    let cli = Cli::with_data();
    cli.ok("pack --tokenizer m --input rows.jsonl --out e");
    let cases = [
        ("--eval-steps 1", "--eval-steps: 1 on rank 1, and 0 on rank 0"),
        ("--sample-prompts 2", "--sample-prompts: 2 on rank 1, and not given on rank 0"),
        ("--eval-data p=e", "--eval-data: [\"p\"] on rank 1, and [] on rank 0"),
        ("--seed 7", "--seed: 7 on rank 1, and 42 on rank 0"),
        ("--lora-r 4", "--lora-r: 4 on rank 1, and not given on rank 0"),
        ("--fit", "--fit: true on rank 1, and false on rank 0"),
        ("--lanes 5", "--lanes: 5 on rank 1, and not given on rank 0"),
        ("--save-steps 1", "--save-steps: 1 on rank 1, and not given on rank 0"),
    ];
    // Each waits some seconds before its second rank speaks.
    std::thread::scope(|all| {
        for (i, (more, want)) in cases.iter().enumerate() {
            let cli = &cli;
            all.spawn(move || {
                let ran = two(cli, |rank| format!("dpo {RUN} --out o{i} {}", if rank == 1 { more } else { "" }));
                let text: String = ran.iter().map(said).collect();
                assert!(text.contains(&format!("fusedpo: {want}; give all the same options")), "{more}: {text}");
                assert_eq!(ran.iter().map(|ran| ran.status.code()).collect::<Vec<_>>(), [Some(2); 2], "{text}");
                assert!(!cli.path(&format!("o{i}")).exists(), "{more}");
            });
        }
    });
}

#[test]
fn where_files_lie_is_each_machines_own() {
    let cli = Cli::with_data();
    cli.ok("dpo --model m --data d --max-steps 4 --batch-size 8 --learning-rate 1e-3 --device cpu --lanes 8 --out one");
    let copied = |from: &str, to: &str| {
        std::fs::create_dir(cli.path(to)).unwrap();
        for file in std::fs::read_dir(cli.path(from)).unwrap().flatten() {
            std::fs::copy(file.path(), cli.path(to).join(file.file_name())).unwrap();
        }
    };
    copied("m", "m1");
    copied("d", "d1");
    let ran = two(&cli, |rank| match rank {
        0 => format!("dpo {RUN} --out r"),
        _ => format!("dpo {} --out elsewhere", RUN.replace("--model m --data d", "--model m1 --data d1")),
    });
    assert!(ran.iter().all(|ran| ran.status.success()), "{}", ran.iter().map(said).collect::<String>());
    assert!(cli.bytes("r/model.safetensors") == cli.bytes("one/model.safetensors"));
    assert!(!cli.path("elsewhere").exists());
}

#[test]
fn ranks_at_different_commands_are_refused() {
    let cli = Cli::with_data();
    let ran = two(&cli, |rank| match rank {
        0 => format!("dpo {RUN} --out r"),
        _ => "eval --model m --data d --device cpu".to_owned(),
    });
    let text: String = ran.iter().map(said).collect();
    assert!(text.contains("rank 1 has another command than rank 0: `eval`, and rank 0 `dpo`"), "{text}");
    assert!(!cli.path("r").exists() && ran.iter().all(|ran| ran.status.code() == Some(2)), "{text}");
}

/// Calls that do not belong to each other are not even made: under an MPI they would be the end of the process, or worse.
#[test]
fn under_an_mpi_too() {
    let cli = Cli::with_data();
    for mpirun in Mpirun::all() {
        let begun = Instant::now();
        let args = format!("dpo {RUN} --out r");
        let mut command = mpirun.command(1);
        command.arg(env!("CARGO_BIN_EXE_fusedpo")).args(args.split_whitespace());
        command.args([":", "-n", "1"]).arg(env!("CARGO_BIN_EXE_fusedpo")).args(args.split_whitespace());
        let ran = command.args(["--eval-steps", "1"]).current_dir(cli.dir.path()).output().unwrap();
        let text = said(&ran);
        assert!(text.contains("--eval-steps: 1 on rank 1, and 0 on rank 0"), "{}: {text}", mpirun.name);
        assert!(!ran.status.success() && begun.elapsed() < Duration::from_secs(30) && !cli.path("r").exists());
    }
}
