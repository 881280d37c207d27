//! `RUN/run.json`: what a run is, on what it ran, how far it came and how it ended.

use super::checkpoint::{Checkpoint, Identity};
use super::options::TrainOptions;
use crate::backend::Backend;
use crate::data::shard::Dataset;
use crate::data::shard::format::hex;
use crate::error::{Error, Result};
use crate::files::{self, MOST_TEXT, RunDir};
use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not yet; where nobody has the folder any more, it was killed.
    Running,
    /// All its steps were taken, or an observer had seen enough.
    Finished,
    /// Somebody stopped it, to be gone on with.
    Stopped,
    /// An error ended it.
    Failed,
    /// Of a run that was gone on with: it was killed, or its machine was.
    Killed,
}

/// The content of `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where an error ended it.
    #[serde(default)]
    pub error: Option<String>,
    /// Steps taken.
    pub steps_done: u64,
    /// Steps asked for.
    pub steps_asked: u64,
    /// When it began, UTC.
    pub start: String,
    /// When it ended, UTC.
    #[serde(default)]
    pub end: Option<String>,
    /// Who runs it, how and on what: of the call that went on last.
    #[serde(flatten)]
    pub call: Call,
    /// Every resolved option.
    pub options: serde_json::Map<String, serde_json::Value>,
    /// SHA-256 of what went in.
    pub sha256: Hashes,
    /// Which reference it has, and how, in words.
    #[serde(default)]
    pub reference: Option<String>,
    /// Why it ended before its last step, where its evaluations ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_early: Option<String>,
    /// The best evaluation, where they are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<BestEvaluation>,
    /// Seconds of the evaluations, of all calls.
    #[serde(default)]
    pub eval_seconds: f64,
    /// The calls before, and how each ended.
    #[serde(default)]
    pub resumptions: Vec<Resumption>,
}

/// The best evaluation of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestEvaluation {
    /// Steps taken before it.
    pub step: u64,
    /// The key that evaluations are compared by.
    pub metric: String,
    /// What it was there.
    pub value: f64,
    /// Whether the model of the run is that of this evaluation.
    pub loaded: bool,
}

/// A call of the program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Call {
    /// Version of the program.
    pub version: String,
    /// What was typed, where the program was started by hand.
    pub command: Vec<String>,
    /// The machine.
    pub machine: Machine,
    /// The device, in words.
    pub device: String,
    /// What the products are computed in: `f32` or `bf16`.
    pub dtype: String,
    /// What decides the last bit there.
    pub numerics: String,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Its name, where the system tells.
    pub host: Option<String>,
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub arch: String,
    /// Threads that can run at a time.
    pub cpus: usize,
}

/// SHA-256 of what went into a run, hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hashes {
    /// The training split.
    pub data: String,
    /// The held-out split.
    pub eval_data: Option<String>,
    /// Other sets that are evaluated, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub eval_sets: BTreeMap<String, String>,
    /// The model that it started from.
    pub model: String,
    /// The reference.
    pub reference: Option<String>,
    /// `tokenizer.json` that the rows were packed with.
    pub tokenizer: Option<String>,
    /// The chat template that they were packed with.
    pub template: Option<String>,
}

/// That a run went on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resumption {
    /// When, UTC.
    pub at: String,
    /// From which step; 0: from the beginning.
    pub from_step: u64,
    /// From which checkpoint: its name in the run's folder, or the whole path of one elsewhere.
    pub checkpoint: Option<String>,
    /// How the call before ended.
    pub before: Outcome,
    /// How many steps it had taken, as far as it was written down.
    pub steps_before: u64,
    /// Whether it went on with other numerics than before, as was allowed.
    pub other_numerics: bool,
    /// The call before.
    pub call: Call,
}

/// The name of a checkpoint in the run's own folder, whatever it was called when it was asked for.
fn name_of(checkpoint: &Checkpoint) -> Option<String> {
    let path = checkpoint.path().canonicalize().ok()?;
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// Now, UTC.
fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

impl Record {
    /// Of a run that begins now.
    pub fn new<B: Backend>(
        be: &B,
        c: &TrainOptions,
        identity: &Identity,
        splits: &[Dataset],
        steps_asked: u64,
    ) -> Result<Self> {
        let options = match serde_json::to_value(c.placed()) {
            Ok(serde_json::Value::Object(options)) => options,
            _ => Default::default(),
        };
        let meta = splits[0].meta();
        let known = |sha: [u8; 32]| (sha != [0; 32]).then(|| hex(&sha));
        let tokenizer = known(meta.tokenizer_sha256);
        Ok(Self {
            outcome: Outcome::Running,
            error: None,
            steps_done: 0,
            steps_asked,
            start: now(),
            end: None,
            call: Call {
                version: env!("CARGO_PKG_VERSION").into(),
                command: c.command.clone(),
                machine: Machine::this(),
                device: be.description(),
                dtype: be.products().into(),
                numerics: be.fingerprint(),
            },
            options,
            sha256: Hashes {
                data: identity.train_sha256.clone(),
                eval_data: identity.eval_sha256.clone(),
                eval_sets: BTreeMap::new(),
                model: identity.model_sha256.clone(),
                reference: identity.reference_sha256.clone(),
                tokenizer,
                template: known(meta.template_sha256),
            },
            reference: None,
            stopped_early: None,
            best: None,
            eval_seconds: 0.0,
            resumptions: Vec::new(),
        })
    }

    /// Refuses the run in `out`, in words, where a newer version wrote it: what it left may mean something else by then.
    pub fn refuse_newer(out: &Path) -> Result<()> {
        let why = RunDir::read_record(out).as_deref().and_then(Self::newer);
        why.map_or(Ok(()), |why| Err(Error::file(out.join("run.json"), why)))
    }

    /// What is wrong with a record that a newer version wrote: `text` is that of a `run.json`. One that says nothing is no newer one.
    pub fn newer(text: &str) -> Option<String> {
        let theirs = serde_json::from_str::<serde_json::Value>(text).ok()?.get("version")?.as_str()?.to_owned();
        let ours = env!("CARGO_PKG_VERSION");
        (version(&theirs) > version(ours))
            .then(|| format!("was written by fusedpo {theirs}, and this is {ours}: a newer version reads it"))
    }

    /// That of the run in `out`; `None` where there is none that can be read.
    pub fn read(out: &Path) -> Option<Self> {
        serde_json::from_str(&RunDir::read_record(out)?).ok()
    }

    /// Goes on where the run in `out` was, from `checkpoint` or from the beginning: its start and its calls are kept.
    pub fn go_on(&mut self, out: &Path, checkpoint: Option<&Checkpoint>, other_numerics: bool) {
        let from_step = checkpoint.map_or(0, |c| c.saved().global_step);
        self.steps_done = from_step;
        let mut this = Resumption {
            at: now(),
            from_step,
            checkpoint: checkpoint.and_then(name_of),
            // Nobody has the folder, as we have it now.
            before: Outcome::Killed,
            steps_before: from_step,
            other_numerics,
            call: Call::default(),
        };
        // Where somebody took its record away, nothing more is known.
        if let Some(before) = Self::read(out) {
            if before.outcome != Outcome::Running {
                this.before = before.outcome;
            }
            (this.steps_before, this.call) = (before.steps_done, before.call);
            (self.resumptions, self.start) = (before.resumptions, before.start);
        }
        self.resumptions.push(this);
    }

    /// Begins where another run was: the record says where.
    pub fn begin_from(&mut self, checkpoint: &Checkpoint, other_numerics: bool) {
        let run = checkpoint.path().parent().and_then(Self::read);
        self.steps_done = checkpoint.saved().global_step;
        self.resumptions.push(Resumption {
            at: now(),
            from_step: self.steps_done,
            checkpoint: std::path::absolute(checkpoint.path()).ok().map(|path| path.display().to_string()),
            before: run.as_ref().map_or(Outcome::Stopped, |r| r.outcome),
            steps_before: self.steps_done,
            other_numerics,
            call: run.map_or_else(Call::default, |r| r.call),
        });
    }

    /// Ends it.
    pub fn end(&mut self, outcome: Outcome, error: Option<String>) {
        (self.outcome, self.error, self.end) = (outcome, error, Some(now()));
    }

    /// The file's content.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain values") + "\n"
    }
}

impl Machine {
    fn this() -> Self {
        let host = files::read_text(Path::new("/proc/sys/kernel/hostname"), MOST_TEXT).ok();
        let host = host.map(|h| h.trim().to_owned()).or_else(|| std::env::var("HOSTNAME").ok());
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { host, os: std::env::consts::OS.into(), arch: std::env::consts::ARCH.into(), cpus }
    }
}

/// The numbers of a version; those of one that is to come are that one's.
fn version(text: &str) -> Vec<u64> {
    let numbers = text.split('-').next().unwrap_or(text).split('.');
    numbers.map(|n| n.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert!(version("0.10.0") > version("0.9.9") && version("1.0.0-rc.1") > version("0.1.0"));
        assert!(
            Record::newer("{\"version\": \"99.0.0\"}").is_some_and(|why| why.contains("written by fusedpo 99.0.0"))
        );
        let ours = format!("{{\"version\": \"{}\"}}", env!("CARGO_PKG_VERSION"));
        for old in ["", "{}", "{\"version\": 9}", ours.as_str()] {
            assert_eq!(Record::newer(old), None, "{old}");
        }
    }
}
