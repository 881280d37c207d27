//! The threads that all work is shared among: one a core, or what `RAYON_NUM_THREADS` asks for.

use crate::error::{Error, Result};

const ASKED: &str = "RAYON_NUM_THREADS";

/// Starts them. More than a few a core are a mistake: each takes memory, and what a machine cannot start was a panic.
///
/// Errors: [`Error::Usage`] for a number that is none or too large; [`Error::Device`] where the system starts no more.
pub fn start() -> Result<()> {
    let most = 16 * std::thread::available_parallelism().map_or(1, usize::from).max(4);
    if let Ok(asked) = std::env::var(ASKED)
        && asked.parse::<usize>().is_ok_and(|n| n > most)
    {
        return Err(Error::usage(format!(
            "{ASKED}={asked}: at most {most} on this machine; leave it out for one a core"
        )));
    }
    let started = rayon::ThreadPoolBuilder::new().build_global();
    started.map_err(|e| Error::Device(format!("cannot start a thread a core: {e}; set {ASKED} to fewer")))
}
