//! A device that is lost, calls that fail, memory that runs out: the right line and exit code, and nothing left behind but what a
//! run keeps on purpose. Positions are sampled; `FUSEDPO_STANDIN_SWEEP=all` tries every one (scripts/standin.sh), a number at
//! least so many of each kind.

use crate::cli_common::*;
use crate::commands::STEPS;
use crate::stand::{Stand, Switches};
use std::collections::BTreeSet;
use std::path::Path;

/// Everything that a run may meet: graphs, tuned plans, two evaluations, a checkpoint.
const RUN: &str = "--device cuda --cuda-graphs on --matmul-plans plans --save-steps 1 --out o --cache c";

fn step() -> String {
    STEPS.replace("--max-steps 2", "--max-steps 1")
}

fn all() -> bool {
    std::env::var("FUSEDPO_STANDIN_SWEEP").is_ok_and(|v| v == "all")
}

/// Of 1 to `n`: all, or `few` of them, the ends among them.
fn positions(n: u64, few: u64) -> BTreeSet<u64> {
    let asked = std::env::var("FUSEDPO_STANDIN_SWEEP").ok().and_then(|v| v.parse().ok());
    let few = few.max(asked.unwrap_or(0));
    if all() || n <= few { (1..=n).collect() } else { (0..few).map(|i| 1 + i * (n - 1) / (few - 1).max(1)).collect() }
}

/// What a run that ended early may have left: checkpoints, records and what others compute again from.
fn kept(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let part = |p: &str| text.split('/').any(|name| name.starts_with(p));
    part("checkpoint-")
        || ["metrics.jsonl", "run.json", "run.log", "config.toml", "ledger.bin", "tfevents.fusedpo", "plans", "lock"]
            .iter()
            .any(|f| text.ends_with(f))
        || text.contains(".ref-")
        || text.ends_with("/o")
        || text.ends_with("/c")
}

/// Runs a command that must end with code 1 and one line, in a folder that is as it was but for what [`kept`] lets stay.
#[track_caller]
fn fails(s: &Stand, args: &str, switches: Switches, may_succeed: bool) -> String {
    let before = s.cli.tree();
    let (ran, log) = s.run(args, switches);
    let after = s.cli.tree();
    let last = ran.err.lines().last().unwrap_or_default().to_owned();
    if ran.code == 0 {
        // What only cleans up may fail and nobody is the worse for it.
        assert!(may_succeed, "{args} {switches:?}: succeeds\n{log}");
    } else {
        assert_eq!(ran.code, 1, "{args} {switches:?}: {}", ran.err);
        assert!(
            last.starts_with("fusedpo: ") && ran.err.matches("fusedpo: ").count() == 1,
            "{switches:?}: {}",
            ran.err
        );
        let left: Vec<_> = after.difference(&before).filter(|p| !kept(p)).collect();
        assert!(left.is_empty(), "{args} {switches:?}: left {left:?}\n{}", ran.err);
        let weights = s.cli.path("o/model.safetensors");
        assert!(!weights.exists(), "{switches:?}: a model of a run that failed");
    }
    for path in after.difference(&before).filter(|p| p.parent() == Some(s.cli.dir.path())) {
        let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    }
    last
}

#[test]
fn a_device_lost_at_any_launch() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    let args = format!("dpo {} {RUN}", step());
    let counts = s.count(&args);
    let _ = ["o", "c"].map(|dir| std::fs::remove_dir_all(s.cli.path(dir)));
    std::fs::remove_file(s.cli.path("plans")).unwrap();
    for (i, n) in positions(counts["ran"], 6).into_iter().enumerate() {
        let ways = [("719", ""), ("700", "1")];
        for (code, eager) in if all() { &ways[..] } else { &ways[i % 2..][..1] } {
            let lose = format!("{n}:{code}");
            let last = fails(&s, &args, &[("LOSE", &lose), ("EAGER", *eager)], false);
            assert!(last.contains("the GPU is lost to this run"), "{lose}: {last}");
        }
    }
    let score = "score --model m --data d --out o.jsonl --device cuda";
    // The third is a product, and where nothing is deferred the library is the first to see it.
    for (lose, eager) in [("20", ""), ("3", "1")] {
        let last = fails(&s, score, &[("LOSE", lose), ("EAGER", eager)], false);
        assert!(last.contains("the GPU is lost to this run"), "{lose}: {last}");
    }
}

/// Calls whose failure nobody can do anything about, as they give back what is no longer used.
const CLEANS_UP: [&str; 14] = [
    "cuCtxSetCurrent",
    "cuDevicePrimaryCtxRelease_v2",
    "cuEventDestroy_v2",
    "cuEventSynchronize",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuModuleUnload",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cublasLtDestroy",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulPreferenceDestroy",
];

#[test]
fn each_call_fails_once() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    let args = format!("dpo {} {RUN}", step());
    let counts = s.count(&args);
    let _ = ["o", "c"].map(|dir| std::fs::remove_dir_all(s.cli.path(dir)));
    std::fs::remove_file(s.cli.path("plans")).unwrap();
    let mut tried = 0;
    for (call, n) in counts.iter().filter(|(call, _)| call.starts_with("cu")) {
        // Algorithms may be refused: another one is taken.
        let harmless = CLEANS_UP.contains(&call.as_str())
            || call.starts_with("cublasLtMatmulAlgo")
            || call.starts_with("cublasLtMatmulPreference")
            || [
                "cublasLtMatmul",
                "cublasLtMatrixLayoutDestroy",
                "cuDriverGetVersion",
                "cuMemGetInfo_v2",
                "cuCtxGetCurrent",
            ]
            .contains(&call.as_str());
        for at in positions(*n, 1) {
            let fail = format!("{call}:{at}");
            // cudarc does not give a context back whose attributes it could not ask for: the process ends.
            let switches = [("FAIL", fail.as_str()), ("LEAKS", "1")];
            let leaks = usize::from(call == "cuDeviceGetAttribute");
            let last = fails(&s, &args, &switches[..=leaks], harmless);
            assert!(
                last.contains("CUDA") || last.contains("cuBLASLt") || last.contains("memory") || harmless,
                "{fail}: {last}"
            );
            assert!(!last.contains("in this binary"), "{fail}: {last}");
            tried += 1;
        }
    }
    println!("{tried} positions of {} calls", counts.len() - 1);
    assert!(counts.len() > 40, "{counts:?}");
}

#[test]
fn memory_runs_out() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    let args = format!("dpo {} --device cuda --out o --cache c", step());
    let counts = s.count(&args);
    let _ = ["o", "c"].map(|dir| std::fs::remove_dir_all(s.cli.path(dir)));
    for call in ["cuMemAlloc_v2", "cuMemHostAlloc"] {
        for at in positions(counts[call], 2) {
            let fail = format!("{call}:{at}");
            let last = fails(&s, &args, &[("FAIL", &fail)], false);
            assert!(last.contains("memory"), "{fail}: {last}");
            assert!(!last.contains("checkpointing"), "{fail}: {last}");
        }
    }
    for mib in if all() { (8..52).step_by(2).collect() } else { vec![16, 48] } {
        let bytes = (mib << 20).to_string();
        let last = fails(&s, &args, &[("MEMORY", &bytes)], mib > 48);
        assert!(
            last.contains("out of memory") || last.contains("out of device memory") || last.contains("allocate"),
            "{mib} MiB: {last}"
        );
    }
}

#[test]
fn algorithms_that_do_not_do() {
    let Some(s) = Stand::with(Cli::with_data) else { return };
    // One that is proposed and does not run is passed over when plans are made.
    s.ok(&format!("dpo {} --device cuda --matmul-plans plans --out a", step()), &[("FALSE_ALGORITHM", "1")]);
    // None for every number of rows: not one that would fail in the middle of a run.
    let args = format!("dpo {} --device cuda --out o --cache c", step());
    let last = fails(&s, &args, &[("NO_ALGORITHM_FOR_ALL", "1")], false);
    assert!(last.contains("or does not take every number of rows"), "{last}");
}
