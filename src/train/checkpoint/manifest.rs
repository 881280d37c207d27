//! `trainer_state.json`: where the run stood, what it was, and what the other files must be.

use super::identity::Identity;
use crate::error::{Error, Result};
use crate::files::{self, FileMark};
use crate::train::clock::Clock;
use crate::train::metrics::Totals;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// The version that this program writes, and the only one that it reads.
pub const VERSION: u64 = 1;

pub(super) const NAME: &str = "trainer_state.json";
const FORMAT: &str = "fusedpo checkpoint";
/// Longest that is read.
const MOST_BYTES: u64 = 16 << 20;

/// `trainer_state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What this is.
    pub format: String,
    /// See [`VERSION`].
    pub version: u64,
    /// CRC-32 of [`Manifest::saved`], written without a space: nobody edited it, and the disk kept it.
    pub crc32: u32,
    /// What was saved.
    pub saved: Saved,
}

/// What was saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Version of the program that wrote it.
    pub program: String,
    /// Steps taken. Under the name that Hugging Face's trainer gives it.
    pub global_step: u64,
    /// Steps that were asked for.
    pub max_steps: u64,
    /// Where the run stood.
    pub clock: Clock,
    /// Bytes of `metrics.jsonl` at that time.
    pub metrics_bytes: u64,
    /// Their CRC-32.
    pub metrics_crc32: u32,
    /// What `ledger.bin` held, where the run keeps one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<SavedLedger>,
    /// What is in the tensors' files.
    pub sections: Vec<SavedSection>,
    /// What the run was.
    pub identity: Identity,
    /// What its summary needs from before.
    pub carried: Carried,
}

/// What `ledger.bin` held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedLedger {
    /// Bytes.
    pub bytes: u64,
    /// Their CRC-32.
    pub crc32: u32,
}

impl From<FileMark> for SavedLedger {
    fn from(mark: FileMark) -> Self {
        Self { bytes: mark.bytes, crc32: mark.crc32 }
    }
}

impl From<SavedLedger> for FileMark {
    fn from(saved: SavedLedger) -> Self {
        Self { bytes: saved.bytes, crc32: saved.crc32 }
    }
}

/// A section of the state, in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSection {
    /// As in [`Section`](crate::train::state::Section).
    pub name: String,
    /// The file that it is in.
    pub file: String,
    /// Type of its elements.
    pub dtype: String,
    /// Elements, without the gaps of the arena.
    pub elements: u64,
    /// CRC-32 of their bytes.
    pub crc32: u32,
}

/// What no bit of the run depends on, and its summary and record need.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Carried {
    /// The first evaluation, where every number of it is finite.
    pub first_eval: Option<Totals>,
    /// Seconds of the steps.
    pub train_seconds: f64,
    /// Seconds of the reference pass.
    pub reference_seconds: f64,
    /// The best evaluation, where they are compared and every number of it is finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_eval: Option<Totals>,
    /// Seconds of the evaluations.
    #[serde(skip_serializing_if = "is_0")]
    pub eval_seconds: f64,
}

/// Checkpoints of before had no such number: their sum is of what they had.
fn is_0(x: &f64) -> bool {
    *x == 0.0
}

impl Manifest {
    /// Of what is saved now.
    pub fn new(saved: Saved) -> Self {
        let crc32 = saved.crc();
        Self { format: FORMAT.into(), version: VERSION, crc32, saved }
    }

    /// The file's content.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain values") + "\n"
    }

    /// Reads that of the checkpoint `dir`. Errors: no checkpoint of this program's, one of a newer version, a damaged one.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(NAME);
        if !dir.is_dir() {
            return Err(Error::file(dir, "is not there; give a checkpoint's folder, or `auto`"));
        }
        if !path.is_file() {
            return Err(Error::file(
                dir,
                format!("is no checkpoint: it has no {NAME}; give RUN/checkpoint-STEP, or `auto`"),
            ));
        }
        let bytes = files::read(&path, MOST_BYTES)?;
        let damaged = |why: String| Error::file(&path, format!("is damaged ({why}): {}", instead(dir)));
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if value.get("format").and_then(Value::as_str) != Some(FORMAT) {
            return Err(Error::file(&path, "is not of a checkpoint of fusedpo; give RUN/checkpoint-STEP, or `auto`"));
        }
        match value.get("version").and_then(Value::as_u64) {
            Some(VERSION) => {}
            Some(v) if v > VERSION => {
                let by = value.pointer("/saved/program").and_then(Value::as_str).unwrap_or("?");
                let why = format!(
                    "is of a checkpoint of version {v}, this program reads {VERSION}: go on with the program that wrote it ({by}), or a newer one"
                );
                return Err(Error::file(&path, why));
            }
            _ => return Err(damaged("it has no version that ever was".into())),
        }
        let this: Self = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        if this.saved.crc() != this.crc32 {
            return Err(damaged("its sum is not that of its content".into()));
        }
        match this.saved.clock.step == this.saved.global_step {
            true => Ok(this),
            false => Err(damaged("its clock stands at another step".into())),
        }
    }
}

impl Saved {
    fn crc(&self) -> u32 {
        crc32fast::hash(serde_json::to_string(self).expect("plain values").as_bytes())
    }
}

/// What to do about a damaged checkpoint.
pub(super) fn instead(dir: &Path) -> String {
    format!("remove {}, and `options.resume` auto goes on from the checkpoint before it, or begins", dir.display())
}
