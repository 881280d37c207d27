//! What a run leaves in its folder while it goes on: checkpoints when they are due, and a record that is kept true.

use super::checkpoint::{self, Carried, Due, Identity, Plans, SavedSection, Source};
use super::clock::Clock;
use super::kept_batch::{self, MOST_FILES, StepBatch};
use super::record::Record;
use super::state::State;
use super::team::Team;
use super::trained_with::TrainedWith;
use crate::backend::Backend;
use crate::batch::{Batches, MicroBatch};
use crate::data::shard::format::hex;
use crate::error::{Error, Result};
use crate::files::{FileMark, RunDir};
use crate::observe::{Event, Observe};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How old the steps in `run.json` may be.
const RECORD_EVERY: Duration = Duration::from_secs(30);

/// Saves what a run can go on from.
pub(super) struct Saver<'a> {
    /// The run's folder, where this rank has it: rank 0 alone writes there.
    pub out: Option<&'a RunDir>,
    /// Where it is.
    pub path: &'a Path,
    /// When a checkpoint is due.
    pub due: Due,
    /// Checkpoints that are kept; 0: all.
    pub limit: usize,
    /// What the run is.
    pub identity: Identity,
    /// The content of `config.toml`.
    pub config: String,
    /// The file of tuned products.
    pub plans: Option<PathBuf>,
    /// What the data know and a checkpoint's model is to know too.
    pub trained_with: &'a TrainedWith,
    /// `run.json`.
    pub record: &'a mut Record,
    /// The step of the checkpoint that is the last.
    pub last: Option<u64>,
    since: Instant,
    took: Duration,
    recorded: Instant,
    /// The clock of before the last evaluation, and the metrics before its row.
    evaluation: Option<(Clock, FileMark)>,
    /// Steps of checkpoints that stay, whatever the limit: of the best evaluations.
    pub protected: Vec<u64>,
    /// The folders of other runs that this one began in, where it did, and up to which step.
    from: Vec<(PathBuf, u64)>,
    /// The first save that failed, and why.
    failed: Option<(u64, String)>,
    record_failed: bool,
}

impl<'a> Saver<'a> {
    /// Before the first step of this call.
    pub fn new(
        (out, path): (Option<&'a RunDir>, &'a Path),
        (due, limit): (Due, usize),
        identity: Identity,
        (config, plans, trained_with): (String, Option<PathBuf>, &'a TrainedWith),
        record: &'a mut Record,
        (last, from): (Option<u64>, Vec<(PathBuf, u64)>),
    ) -> Self {
        let (since, recorded, took) = (Instant::now(), Instant::now(), Duration::ZERO);
        let (evaluation, failed, record_failed) = (None, None, false);
        Self {
            out,
            path,
            due,
            limit,
            identity,
            config,
            plans,
            trained_with,
            record,
            last,
            since,
            took,
            recorded,
            evaluation,
            protected: Vec::new(),
            from,
            failed,
            record_failed,
        }
    }

    /// Time begins to count: what came before the steps is no part of the time between two checkpoints.
    pub fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// Whether a checkpoint is due after `step` steps.
    pub fn is_due(&self, step: u64) -> bool {
        self.due.at(step, self.since.elapsed(), self.took)
    }

    /// The row of an evaluation is about to be written. A checkpoint of that step that comes after it, as where somebody stops
    /// the run just then, is one of before it all the same: whoever goes on from there evaluates again.
    pub fn evaluates(&mut self, clock: Clock) {
        self.evaluation = self.out.map(|out| (clock, out.metrics_mark()));
    }

    /// The checkpoint of `step`, in this run's folder or in that of a run that it began in.
    pub fn checkpoint(&self, step: u64) -> Option<PathBuf> {
        let name = format!("checkpoint-{step}");
        let others = self.from.iter().filter(|(_, upto)| step <= *upto).map(|(folder, _)| folder.as_path());
        let folders = [self.path].into_iter().chain(others);
        folders.map(|folder| folder.join(&name)).find(|path| path.is_dir())
    }

    /// `step` steps are done: `run.json` says so now and then.
    pub fn stepped(&mut self, step: u64, observe: &mut dyn Observe) -> Result<()> {
        self.record.steps_done = step;
        if self.recorded.elapsed() < RECORD_EVERY { Ok(()) } else { self.write_record(observe) }
    }

    /// Brings `run.json` up to date. A disk that is full is told once, and ends nothing.
    pub fn write_record(&mut self, observe: &mut dyn Observe) -> Result<()> {
        self.recorded = Instant::now();
        let Some(out) = self.out else { return Ok(()) };
        match out.write_record(self.record.to_text().as_bytes()) {
            Err(e) if !std::mem::replace(&mut self.record_failed, true) => {
                observe.tell(&Event::Warning(&format!("{e}; it is not up to date")))
            }
            _ => Ok(()),
        }
    }

    /// Saves the state as it is. Where the disk will not have it, that is told at once, and the run goes on with the
    /// checkpoint before. Every rank of `team` calls this.
    pub fn save<B: Backend>(
        &mut self,
        (be, state, team): (&B, &State<B>, &Team<'_>),
        carried: Carried,
        observe: &mut dyn Observe,
    ) -> Result<()> {
        let step = state.clock.step;
        let begun = Instant::now();
        let mut source = Source::new(be, state, team);
        let written = self.out.map(|out| self.write(out, (step, state.clock), &mut source, carried));
        let written = match written {
            // The run ends, and with it all ranks.
            Some(Err(e)) if !matches!(e, Error::Io { .. }) => return Err(e),
            written => written,
        };
        source.end()?;
        let saved = team.told(matches!(written, Some(Ok(_))))?;
        let (Some(out), Some(written)) = (self.out, written) else {
            self.last = if saved { Some(step) } else { self.last };
            return Ok(());
        };
        match written {
            Ok((path, bytes)) => {
                self.took = begun.elapsed();
                self.last = Some(step);
                let seconds = self.took.as_secs_f64();
                observe.tell(&Event::Checkpoint { step, path: &path, bytes, seconds })?;
                self.forget_old(out, observe)?;
            }
            Err(e) => {
                let line = format!("no checkpoint at step {step}: {e}; the run goes on, {}", self.last_one());
                observe.tell(&Event::Warning(&line))?;
                self.failed.get_or_insert((step, e.to_string()));
            }
        }
        self.since = Instant::now();
        self.record.steps_done = step;
        self.write_record(observe)
    }

    fn write<B: Backend>(
        &mut self,
        out: &RunDir,
        (step, clock): (u64, Clock),
        source: &mut Source<'_, B>,
        carried: Carried,
    ) -> Result<(PathBuf, u64)> {
        self.identity.plans = self.plans.as_deref().map(Plans::of).transpose()?;
        out.keep_metrics()?;
        let before = self.evaluation.filter(|(clock, _)| clock.step == step);
        let (clock, mark) = before.unwrap_or_else(|| (clock, out.metrics_mark()));
        let saved = checkpoint::Saved {
            program: env!("CARGO_PKG_VERSION").into(),
            global_step: step,
            max_steps: self.record.steps_asked,
            clock,
            metrics_bytes: mark.bytes,
            metrics_crc32: mark.crc32,
            ledger: out.ledger_mark().map(Into::into),
            sections: Vec::<SavedSection>::new(),
            identity: self.identity.clone(),
            carried,
        };
        let path = out.path().join(format!("checkpoint-{step}"));
        let bytes = checkpoint::save(source, out.new_checkpoint(step)?, (saved, &self.config, self.trained_with))?;
        Ok((path, bytes))
    }

    /// From now on the checkpoint of the evaluation at `now`, the best, stays, and that of the best `before`, which may be all that
    /// there is of it. What stayed until now does so too as long as neither is there: a save may have failed.
    pub fn protect(&mut self, before: Option<u64>, now: Option<u64>) {
        let mut stays: Vec<u64> = [before, now].into_iter().flatten().collect();
        if !stays.iter().any(|step| self.checkpoint(*step).is_some()) {
            stays.extend(self.protected.iter().filter(|step| self.checkpoint(**step).is_some()));
        }
        stays.sort_unstable();
        stays.dedup();
        self.protected = stays;
    }

    /// Keeps the batch of a step without finite numbers, one of the first of the run: `batches`, which `whole` gives the tokens of other
    /// ranks; what to say of it. Where it cannot be written,
    /// that is told, and the run goes on.
    pub fn keep_batch(
        &mut self,
        of: StepBatch,
        (batches, whole): (&Batches, &dyn Fn() -> Result<Vec<MicroBatch>>),
        observe: &mut dyn Observe,
    ) -> Result<String> {
        let Some(out) = self.out else { return Ok(String::new()) };
        let (step, identity) = (of.step, &self.identity);
        let said = format!("{} names the op", self.replays(step));
        let kept = RunDir::kept_batches(out.path());
        if kept.len() >= MOST_FILES && kept.iter().all(|(of, _)| *of != step) {
            return Ok(format!("; {} batches of such steps are kept already, and this one is not: {said}", kept.len()));
        }
        if kept_batch::len(batches.all()) > kept_batch::MOST_BYTES {
            return Ok(format!("; its batch is too large to be kept: {said}"));
        }
        let options = serde_json::to_vec(&identity.options).expect("plain values");
        let of = StepBatch {
            numerics: identity.numerics.clone(),
            sha256_data: identity.train_sha256.clone(),
            sha256_model: identity.model_sha256.clone(),
            sha256_options: hex(&Sha256::digest(&options)),
            ..of
        };
        let kept = whole().and_then(|all| out.keep_batch(step, &of.named(&all).to_bytes(&all)?));
        match kept {
            Ok(path) => Ok(format!("; its batch is in {}: {said}", path.display())),
            Err(e) => {
                observe
                    .tell(&Event::Warning(&format!("the batch of step {step} is not kept: {e}; the run goes on")))?;
                Ok(format!("; {said}"))
            }
        }
    }

    /// The command that computes `step` again.
    pub fn replays(&self, step: u64) -> String {
        format!("`fusedpo replay {} {step}`", self.path.display())
    }

    /// Takes away the oldest checkpoints beyond the limit, but for the last and for what is protected.
    fn forget_old(&mut self, out: &RunDir, observe: &mut dyn Observe) -> Result<()> {
        let mut all = RunDir::checkpoints(out.path());
        let many = if self.limit == 0 { 0 } else { all.len().saturating_sub(self.limit) };
        all.pop();
        all.retain(|c| !self.protected.contains(&c.step));
        for old in all.iter().take(many) {
            if let Err(e) = out.remove_checkpoint(old) {
                observe.tell(&Event::Warning(&e.to_string()))?;
            }
        }
        Ok(())
    }

    fn last_one(&self) -> String {
        self.last.map_or("and has none yet".to_owned(), |step| format!("and checkpoint-{step} is its last"))
    }

    /// What is to be said in the end, where a save failed.
    pub fn failure(&self) -> Option<String> {
        let (step, why) = self.failed.as_ref()?;
        let last = if self.last.is_none() { "and there is none".to_owned() } else { self.last_one() };
        Some(format!("checkpoints could not be saved, the first at step {step} ({why}), {last}"))
    }
}
