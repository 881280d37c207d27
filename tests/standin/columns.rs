//! The cuda column of the kernels' own tests (`tests/common/device.rs`). Their programs are those that cargo built beside this one.

use crate::library;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The newest program of a test, beside this one. A bench may have the same name: cargo's list of sources tells them apart.
fn program(name: &str) -> Option<PathBuf> {
    let here = std::env::current_exe().unwrap();
    let is = |path: &Path| {
        let file = path.file_name().and_then(|f| f.to_str()).unwrap_or_default();
        let hash = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
        let ours = |sources: String| sources.contains(&format!("tests/{name}.rs"));
        hash.len() == 16
            && hash.bytes().all(|b| b.is_ascii_hexdigit())
            && std::fs::read_to_string(path.with_extension("d")).is_ok_and(ours)
    };
    let all = std::fs::read_dir(here.parent().unwrap()).unwrap().map(|e| e.unwrap().path()).filter(|p| is(p));
    all.max_by_key(|p| p.metadata().and_then(|m| m.modified()).unwrap())
}

/// `left_out`: products that are too large for naive ones, and tests of the host's own schedules.
fn column(name: &str, left_out: &[&str]) {
    let Some(libraries) = library::folder() else { return };
    let Some(program) = program(name) else {
        assert!(std::env::var_os("FUSEDPO_REQUIRE_STANDIN").is_none(), "tests/{name} was not built");
        eprintln!("skipped: the cuda column of tests/{name}, which was not built");
        return;
    };
    let aside = tempfile::TempDir::new().unwrap();
    let log = aside.path().join("log");
    let mut command = Command::new(&program);
    command.args(left_out.iter().flat_map(|test| ["--skip", test]));
    command.env("LD_LIBRARY_PATH", libraries).env("FUSEDPO_REQUIRE_GPU", "only").env("STANDIN_LOG", &log);
    // The devices that all tests of a program share are never closed.
    let ran = command.env("STANDIN_LEAKS", "1").env("STANDIN_EAGER", "1").output().unwrap();
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{program:?}: {said}\n{}\n{log}", String::from_utf8_lossy(&ran.stderr));
    assert!(!log.contains("DEFECT") && log.contains("defects: 0"), "{program:?}: {log}");
}

#[test]
fn kernels() {
    column("kernels", &["rows_alone", "faults", "many_rows"]);
}

#[test]
fn kernels_attention() {
    column("kernels_attention", &["planted", "faults"]);
}

#[test]
fn kernels_step() {
    column("kernels_step", &[]);
}

#[test]
fn kernels_runtime() {
    column("kernels_runtime", &["on_the_cpu"]);
}

#[test]
fn kernels_run() {
    column("kernels_run", &["device_lost", "too_small", "refused_on_the_cpu"]);
}

#[test]
fn kernels_generate() {
    column("kernels_generate", &[]);
}
