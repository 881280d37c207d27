//! The pair ledger, `RUN/ledger.bin`: what every pair was to the run, each time it was trained on. `docs/ledger.md` specifies it, and
//! `scripts/ledger.py` reads the same bytes.
//!
//! The numbers are those of the step's own passes, before its update, and come to the host with the step's metrics: a ledger costs
//! no pass and no wait.

mod format;
mod read;
mod take;

pub use format::{HEADER_LEN, HasReference, Header, PairRecord, RECORD_LEN, VERSION};
pub use read::Ledger;
pub(super) use take::Taken;

use super::group::options;
use crate::choice;
use crate::error::{Error, Result};
use crate::files::{FileMark, RunDir};
use crate::loss::LossSpec;

choice! {
    /// Whether a run keeps a ledger of its pairs.
    pub enum LedgerChoice: default Auto {
        /// Where the loss reads pairs: a record of 64 bytes a pair and epoch.
        Auto = "auto",
        /// Kept; an error where the loss reads no pairs.
        On = "on",
        /// Not kept.
        Off = "off",
    }
}

impl LedgerChoice {
    /// As serde asks.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

options! {
    /// The ledger.
    pub struct LedgerOptions {
        /// Whether there is one.
        #[serde(skip_serializing_if = "LedgerChoice::is_default")]
        ledger: LedgerChoice = LedgerChoice::Auto;
    }
}

impl LedgerOptions {
    /// Errors: somebody says something of a ledger where the loss has no pairs to write down.
    pub(super) fn resolve(&self, loss: &LossSpec) -> Result<()> {
        match self.ledger == LedgerChoice::Auto || reads_pairs(loss) {
            true => Ok(()),
            false => Err(Error::usage(format!(
                "`ledger` has no effect: it is of pairs, and the {} loss reads single responses; leave it out",
                loss.name()
            ))),
        }
    }

    /// Whether a run with `loss` keeps one.
    pub fn keeps(&self, loss: &LossSpec) -> bool {
        self.ledger != LedgerChoice::Off && reads_pairs(loss)
    }
}

fn reads_pairs(loss: &LossSpec) -> bool {
    !loss.is_sft() && !loss.is_judged()
}

/// Begins or goes on with the ledger of the run in `out`: `held` is what it held where the run goes on from, in its own folder, and
/// `header` that of a run that keeps one. A run that keeps none any more leaves what there was.
pub(super) fn begin(out: &RunDir, held: Option<FileMark>, header: Option<Header>) -> Result<()> {
    match held {
        Some(mark) => out.cut_ledger(mark.bytes),
        None => out.begin_ledger(header.as_ref().map(bytemuck::bytes_of)),
    }
}
