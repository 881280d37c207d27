//! The threads that all work is shared among: one a core, or what `RAYON_NUM_THREADS` asks for.

use crate::error::{Error, Result};

const ASKED: &str = "RAYON_NUM_THREADS";

/// Starts them. More than a few a core are a mistake: each takes memory, and what a machine cannot start was a panic.
///
/// Errors: [`Error::Usage`] for a number that is none or too large; [`Error::Device`] where the system starts no more.
pub fn start() -> Result<()> {
    let most = 16 * std::thread::available_parallelism().map_or(1, usize::from).max(4);
    let asked = std::env::var(ASKED).ok().and_then(|asked| asked.parse::<usize>().ok());
    if let Some(asked) = asked.filter(|n| *n > most) {
        return Err(Error::usage(format!(
            "{ASKED}={asked}: at most {most} on this machine; leave it out for one a core"
        )));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // This thread is one of them: what it calls begins at once, with nobody to wake first, thousands of times a second when
    // generating. Not where there is but one: another thread's call would wait for this one's next.
    let builder = match asked.filter(|n| *n > 0).unwrap_or(cores) {
        0 | 1 => rayon::ThreadPoolBuilder::new(),
        _ => rayon::ThreadPoolBuilder::new().use_current_thread(),
    };
    let started = builder.build_global();
    started.map_err(|e| Error::Device(format!("cannot start a thread a core: {e}; set {ASKED} to fewer")))
}
