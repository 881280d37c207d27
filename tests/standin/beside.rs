//! A rank that fails while gradients of it travel.

use crate::cli_common::Cli;
use crate::library;
use crate::mpirun::said;
use crate::ranks::{RUN, on_stand_ins};
use crate::stand::Switches;
use crate::torchrun::Torchrun;
use std::time::{Duration, Instant};

/// The device of rank 1 fails in the step's last backward pass, when gradients that were whole before are on their way already.
#[test]
fn a_pass_that_fails_beside_what_travels_ends_all() {
    if library::folder().is_none() {
        return;
    }
    let (cli, aside) = (Cli::with_data(), tempfile::TempDir::new().unwrap());
    let args = format!("sft {RUN} --eval-strategy no --out fails").replace("--max-steps 3", "--max-steps 1");
    let run = |name: &str, switches: Switches| {
        let log = aside.path().join(name);
        let of = |rank: usize| {
            let (log, switches) = if rank == 1 { (&log, switches) } else { (&aside.path().join("others"), &[][..]) };
            let mut command = on_stand_ins(cli.command(&args), log, switches);
            command.env("FUSEDPO_COMM_TIMEOUT", "60");
            command
        };
        let all = Torchrun::end(Torchrun::new(2).start(of));
        (all, std::fs::read_to_string(&log).unwrap_or_default())
    };
    // The launch with which that pass ends.
    let (_, log) = run("traced", &[("TRACE", "1")]);
    let lines: Vec<&str> = log.lines().collect();
    let last = lines.iter().rposition(|line| line.contains("launch of embed_bwd")).expect("a backward pass");
    assert!(lines[..last].iter().any(|line| line.contains("ncclGroupStart")), "nothing travels before {last}: {log}");
    let launches = lines[..=last].iter().filter(|line| line.contains("launch of ")).count();
    std::fs::remove_dir_all(cli.path("fails")).unwrap();
    let begun = Instant::now();
    let (all, log) = run("fails", &[("FAIL", &format!("cuLaunchKernel:{launches}"))]);
    let texts: Vec<String> = all.iter().map(said).collect();
    assert!(texts.iter().all(|text| text.matches("fusedpo: ").count() == 1), "{texts:?}");
    assert!(texts[1].contains("fusedpo: rank 1: ") && texts[1].contains("embed_bwd"), "{texts:?}");
    assert!(texts[0].contains("rank 1 has ended") && all[0].status.code() == Some(1), "{texts:?}");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert!(!log.contains("DEFECT"), "{log}\n{texts:?}");
}
