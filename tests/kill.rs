//! Runs that are killed (SIGKILL) at random moments and gone on with are equal to undisturbed ones, to the byte:
//! `scripts/kill_test.py`, six of them. Fifty and more are run by hand.

use std::process::Command;

#[test]
#[cfg(unix)]
fn killed_at_any_moment_a_run_comes_to_the_same_bytes() {
    let Some(python) = std::env::var_os("FUSEDPO_PYTHON") else {
        return println!("skipped: runs that are killed (FUSEDPO_PYTHON is not set)");
    };
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    // In memory where that can be: a disk takes its time to keep what it was given, and that is not what is tested.
    let shm = std::path::Path::new("/dev/shm");
    let folder = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let ran = Command::new(python)
        .arg(root.join("scripts/kill_test.py"))
        .args(["6", "--steps", "60", "--program", env!("CARGO_BIN_EXE_fusedpo"), "--folder"])
        .arg(folder)
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    let [out, err] = [ran.stdout, ran.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    println!("{out}");
    assert!(ran.status.success(), "{out}\n{err}");
    let last = out.lines().last().unwrap();
    let kills: u64 = last.split(" after ").nth(1).and_then(|l| l.split(' ').next()?.parse().ok()).unwrap();
    assert!(last.starts_with("6 of 6 runs equal to the byte after ") && kills >= 12, "{last}");
}
