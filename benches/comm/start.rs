//! The bench as ranks of its own: over TCP, and by each MPI whose launcher is in `PATH`.

use fusedpo::comm::tcp::ADDRESS;
use fusedpo::{Error, Result};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Names the transport to a rank, for what it prints.
pub const NAME: &str = "FUSEDPO_BENCH_NAME";

/// How many ranks, where nobody started them.
const RANKS: &str = "FUSEDPO_BENCH_RANKS";

/// Launchers by Debian's names, and by everybody's.
const LAUNCHERS: [&str; 3] = ["mpirun.openmpi", "mpirun.mpich", "mpirun"];

fn failed(what: impl std::fmt::Display) -> Error {
    Error::Device(what.to_string())
}

/// Every transport that there is here, one after the other.
pub fn all() -> Result<()> {
    let ranks = match std::env::var(RANKS) {
        Err(_) => 2,
        Ok(text) => {
            let wrong = || Error::usage(format!("{RANKS}={text} in the environment: give a number from 2 on"));
            text.parse::<usize>().ok().filter(|n| *n > 1).ok_or_else(wrong)?
        }
    };
    over_tcp(ranks)?;
    let found = launchers();
    if found.is_empty() {
        println!("not timed: MPI (no mpirun in PATH)");
    }
    for (path, version) in found {
        under(&path, &version, ranks)?;
    }
    Ok(())
}

/// This program with its own arguments. Ranks share the cores.
fn again(program: &Path, ranks: usize) -> Result<Command> {
    let mut command = Command::new(program);
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        command.env("RAYON_NUM_THREADS", (cores / ranks).max(1).to_string());
    }
    Ok(command)
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(failed)
}

fn over_tcp(ranks: usize) -> Result<()> {
    let program = this_program()?;
    // Free just now, and given back for rank 0.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|door| door.local_addr()).map_err(failed)?.port();
    let size = ranks.to_string();
    let mut all = Vec::new();
    for rank in 0..ranks {
        let mut command = again(&program, ranks)?;
        command.args(std::env::args_os().skip(1)).env(NAME, "TCP").env(ADDRESS, format!("127.0.0.1:{port}"));
        command.envs([("RANK", rank.to_string()), ("LOCAL_RANK", rank.to_string())]);
        command.envs([("WORLD_SIZE", &size), ("LOCAL_WORLD_SIZE", &size)]);
        all.push(command.spawn().map_err(failed)?);
    }
    let ended: Vec<bool> = all.iter_mut().map(|child: &mut Child| child.wait().is_ok_and(|s| s.success())).collect();
    if ended.iter().all(|well| *well) { Ok(()) } else { Err(failed("a rank over TCP failed")) }
}

/// Launchers that are installed, and what they say of themselves; links to one that is there already are left out.
fn launchers() -> Vec<(PathBuf, String)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut known = Vec::new();
    let mut found = Vec::new();
    for name in LAUNCHERS {
        let Some(file) = folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file()) else { continue };
        let real = file.canonicalize().unwrap_or_else(|_| file.clone());
        if known.contains(&real) {
            continue;
        }
        known.push(real);
        match Command::new(&file).arg("--version").output() {
            Ok(said) => found.push((file, String::from_utf8_lossy(&said.stdout).into_owned())),
            Err(e) => println!("not timed: {}: {e}", file.display()),
        }
    }
    found
}

fn under(launcher: &Path, version: &str, ranks: usize) -> Result<()> {
    let mut command = again(launcher, ranks)?;
    let open_mpi = version.contains("Open MPI") || version.contains("open-mpi");
    if open_mpi {
        command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
    }
    let name = if open_mpi { "Open MPI" } else { "MPICH" };
    command.args(["-n", &ranks.to_string()]).arg(this_program()?).args(std::env::args_os().skip(1));
    let status = command.env(NAME, name).env_remove(ADDRESS).status().map_err(failed)?;
    if status.success() { Ok(()) } else { Err(failed(format!("{} ended with {status}", launcher.display()))) }
}
