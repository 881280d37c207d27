//! One stage, made by its command.

use super::chain::Link;
use crate::commands::child::{self, Ended};
use crate::commands::signal;
use crate::commands::sweep::TAKEN;
use crate::error::Result;
use crate::files::{self, RunDir};
use crate::note;
use crate::recipe::Kind;
use crate::train::record::{Outcome, Record};
use crate::warn;
use std::ffi::OsString;
use std::time::Duration;

/// How it ended.
pub(super) enum Made {
    Well,
    Stopped,
    Badly(String),
}

/// Whether its result is there, whole.
pub(super) fn is_there(link: &Link) -> bool {
    match link.stage.kind {
        Kind::Sft | Kind::Dpo => {
            Record::read(&link.result).is_some_and(|r| r.outcome == Outcome::Finished)
                && !RunDir::is_taken(&link.result)
        }
        // These appear whole or not at all.
        _ => link.result.symlink_metadata().is_ok(),
    }
}

/// Makes it. Errors: the folder of the recipe cannot be written to.
pub(super) fn make(link: &Link) -> Result<Made> {
    if is_there(link) {
        return Ok(Made::Well);
    }
    // A run that a killed recipe left saves and ends; what it saved is gone on with.
    while RunDir::is_taken(&link.result) {
        if signal::stop_requested() {
            return Ok(Made::Stopped);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    if signal::stop_requested() {
        return Ok(Made::Stopped);
    }
    let mut words: Vec<OsString> = link.words.iter().map(OsString::from).collect();
    words.extend(["--threads".into(), rayon::current_num_threads().to_string().into()]);
    let hear = |line: &str| match line.strip_prefix("warning: ") {
        Some(text) => warn!("{}: {text}", link.stage.kind),
        None => note!("  {line}"),
    };
    match child::run_self(&words, &[], &hear)? {
        Ended::Well(said) => {
            if matches!(link.stage.kind, Kind::Reference | Kind::Eval) {
                files::write(&link.result, &said)?;
            }
            Ok(Made::Well)
        }
        Ended::Stopped => Ok(Made::Stopped),
        // One of a killed recipe had hardly begun, and took the folder just now; or it was quicker.
        Ended::Badly(why) if why.contains(TAKEN) && !signal::stop_requested() => make(link),
        Ended::Badly(_) if is_there(link) => Ok(Made::Well),
        Ended::Badly(why) => Ok(Made::Badly(why)),
    }
}
