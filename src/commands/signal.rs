//! Ctrl-C: the first asks for an orderly stop, the second ends the process.

use crate::error::{Error, Result};
use crate::note;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);
static SAVES: AtomicBool = AtomicBool::new(false);

/// Installs the handler; harmless when called again.
pub fn install() {
    // Fails only where a handler is installed already.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        match SAVES.load(Ordering::SeqCst) {
            true => note!("\nstopping: finishing the step and saving (Ctrl-C again ends at once, without saving)"),
            false => note!("\nstopping (Ctrl-C again ends at once)"),
        }
    });
}

/// From here on there is something to save when the user stops.
pub fn saves() {
    SAVES.store(true, Ordering::SeqCst);
}

/// An error once Ctrl-C was pressed, for work that then leaves nothing behind.
pub fn check() -> Result<()> {
    match stop_requested() {
        true => Err(Error::usage("stopped by Ctrl-C; nothing was written")),
        false => Ok(()),
    }
}

/// Whether Ctrl-C was pressed.
pub fn stop_requested() -> bool {
    STOP.load(Ordering::SeqCst)
}
