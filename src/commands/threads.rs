//! The threads that all work is shared among: one a core, shared with the other processes of a launcher, or what `--threads` or else `RAYON_NUM_THREADS` asks for. No result depends
//! on how many there are.

use crate::comm::launch::Place;
use crate::error::{Error, Result};

const ASKED: &str = "RAYON_NUM_THREADS";

/// Starts them. More than a few a core are a mistake: each takes memory, and what a machine cannot start was a panic.
///
/// Errors: [`Error::Usage`] for a number that is none or too large; [`Error::Device`] where the system starts no more.
pub fn start(typed: Option<usize>, place: Option<&Place>) -> Result<()> {
    let most = 16 * std::thread::available_parallelism().map_or(1, usize::from).max(4);
    let environment = || std::env::var(ASKED).ok().and_then(|asked| asked.parse::<usize>().ok());
    let asked = typed.or_else(environment);
    if let Some(asked) = asked.filter(|n| *n > most) {
        let what = typed.map_or_else(|| format!("{ASKED}={asked}"), |_| format!("`threads` {asked}"));
        return Err(Error::usage(format!("{what}: at most {most} on this machine; leave it out for one a core")));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // This thread is one of them: what it calls begins at once, with nobody to wake first, thousands of times a second when
    // generating. Not where there is but one: another thread's call would wait for this one's next.
    let threads = asked.filter(|n| *n > 0).unwrap_or_else(|| share(cores, place));
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
    let builder = if threads > 1 { builder.use_current_thread() } else { builder };
    let started = builder.build_global();
    started.map_err(|e| Error::Device(format!("cannot start {threads} threads: {e}; ask for fewer with `threads`")))
}

/// This process's part of the `cores` that it may use. Where the launcher has bound it to some of the machine's, that may be too few.
fn share(cores: usize, place: Option<&Place>) -> usize {
    let beside = place.and_then(|place| place.local_size).unwrap_or(1).max(1);
    (cores / beside).max(1)
}
