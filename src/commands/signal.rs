//! Signals: the first asks for an orderly stop, the second ends the process. Both end it with 128 and their number.

use crate::error::{Error, Result};
use crate::files::{self, MOST_TEXT};
use crate::say::{self, Level};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

/// The first signal that came; 0: none.
static STOP: AtomicI32 = AtomicI32::new(0);
static SAVES: AtomicBool = AtomicBool::new(false);

/// Whoever sends a signal to a process and to its group (`timeout` does) sends it twice and means one.
const ONE: Duration = Duration::from_millis(2);

/// Ctrl-C; an end that a scheduler or a service asks for; a terminal that was closed; Slurm's warning, as it is mostly set up.
fn heard() -> Vec<i32> {
    // A run under nohup is to outlive its terminal.
    if hangup_is_ignored() { vec![SIGINT, SIGTERM, SIGUSR1] } else { vec![SIGINT, SIGTERM, SIGUSR1, SIGHUP] }
}

/// Listens; harmless when called again. Where the system refuses, signals end the process as they always do.
pub fn install() {
    // A file that grows beyond a limit (`ulimit -f`) is an error like a full disk, not the end of the process.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    let Ok(mut signals) = Signals::new(heard()) else { return };
    let listen = move || loop {
        // Waits for one; then those that came with it.
        let first = signals.wait().next();
        std::thread::sleep(ONE);
        let last = signals.pending().last().or(first);
        if let Some(signal) = first.or(last) {
            hear(signal);
        }
    };
    let _ = std::thread::Builder::new().name("signals".into()).spawn(listen);
}

fn hear(signal: i32) {
    if STOP.swap(signal, Ordering::SeqCst) != 0 {
        std::process::exit(128 + signal);
    }
    let name = match signal {
        SIGINT => "Ctrl-C",
        SIGTERM => "SIGTERM",
        SIGHUP => "SIGHUP",
        _ => "SIGUSR1",
    };
    // Whoever sent it waits for an answer.
    let told = |text: String| say::at(Level::Warning, &text);
    let again = if signal == SIGINT { "Ctrl-C again" } else { "another signal" };
    match SAVES.load(Ordering::SeqCst) {
        true => told(format!(
            "\nstopping: finishing the step and saving ({name}; {again} ends at once, with what was saved)"
        )),
        false => told(format!("\nstopping ({again} ends at once)")),
    }
}

/// From here on there is something to save when the user stops.
pub fn saves() {
    SAVES.store(true, Ordering::SeqCst);
}

/// An error once a signal came, for work that then leaves nothing behind.
pub fn check() -> Result<()> {
    match stop_requested() {
        true => Err(Error::stopped("stopped; nothing was written")),
        false => Ok(()),
    }
}

/// Whether a signal came.
pub fn stop_requested() -> bool {
    STOP.load(Ordering::SeqCst) != 0
}

/// The exit code of work that was stopped: 128 and the signal's number.
pub fn exit_code() -> Option<u8> {
    match STOP.load(Ordering::SeqCst) {
        0 => None,
        signal => u8::try_from(128 + signal).ok(),
    }
}

/// Takes a signal that another process of the job heard for one that this one did, where it heard none.
pub fn adopt(signal: i32) {
    let _ = STOP.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
}

/// Whether whoever started the process had it ignore SIGHUP, as nohup does.
fn hangup_is_ignored() -> bool {
    let status = files::read_text(Path::new("/proc/self/status"), MOST_TEXT).unwrap_or_default();
    let mask = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (SIGHUP - 1) & 1 == 1)
}

/// Ends the process as it is: what a library does when a process ends may wait for ever.
pub fn exit_now(code: u8) -> ! {
    signal_hook::low_level::exit(code.into())
}
