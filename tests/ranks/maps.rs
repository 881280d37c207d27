//! One process by itself touches no library of a launcher's.

use crate::cli_common::Cli;
use std::time::{Duration, Instant};

/// Files that the process `pid` has in its memory, as often as they could be read.
fn mapped(pid: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).ok().filter(|maps| !maps.is_empty())
}

#[test]
#[cfg(target_os = "linux")]
fn a_process_by_itself_opens_no_mpi() {
    let cli = Cli::with_data();
    let mut run = cli
        .command("dpo --model m --data d --out r --device cpu --max-steps 40 --batch-size 1 --quiet")
        .spawn()
        .unwrap();
    let (begun, mut looked) = (Instant::now(), 0);
    while run.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(60) {
        if let Some(maps) = mapped(run.id()) {
            looked += 1;
            for library in ["libmpi", "libmpich", "libpmi", "libnccl", "libfabric", "libucp"] {
                assert!(!maps.contains(library), "{library} is mapped:\n{maps}");
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(run.wait().unwrap().success() && looked > 0, "{looked}");
}
