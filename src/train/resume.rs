//! Where a run begins: anew, or from a checkpoint.

use super::check::open_splits;
use super::checkpoint::{Checkpoint, Identity, data_sha256, deciding};
use super::choices::Resume;
use super::forecast::fitted;
use super::options::TrainOptions;
use super::record::{Outcome, Record, Resumption};
use super::report_options::ReportTo;
use super::schedule::Schedule;
use super::state::State;
use super::team::Team;
use crate::backend::Backend;
use crate::comm::{Comm, World};
use crate::data::shard::format::hex;
use crate::error::{Error, Result};
use crate::files::{FileMark, RunDir};
use crate::model::ModelDir;
use crate::observe::{Event, Observe};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where a run begins.
#[derive(Debug)]
pub(super) enum Start {
    /// In a new folder.
    New,
    /// In the folder of a run that has no checkpoint, from its first step.
    Again,
    /// From a checkpoint, in its own folder.
    From(Checkpoint),
    /// From a checkpoint, in a new folder.
    Elsewhere(Checkpoint),
}

impl Start {
    /// What `c` asks for. Reads only.
    ///
    /// Errors: a checkpoint that is none or damaged; a finished run without one that is asked for more steps.
    pub fn of(c: &TrainOptions) -> Result<Self> {
        let out = &c.files.out;
        match &c.resume.resume {
            None => Ok(Self::New),
            Some(Resume::Path(path)) => {
                let checkpoint = Checkpoint::open(path)?;
                let folder = path.canonicalize().ok().and_then(|p| p.parent().map(PathBuf::from));
                match folder.is_some_and(|folder| out.canonicalize().is_ok_and(|out| out == folder)) {
                    true => Ok(Self::From(checkpoint)),
                    false => Ok(Self::Elsewhere(checkpoint)),
                }
            }
            Some(Resume::Auto) if !RunDir::is_there(out) => Ok(Self::New),
            // Whoever is at it may be about to remove the checkpoint that would be read here.
            Some(Resume::Auto) if RunDir::is_taken(out) => Ok(Self::Again),
            Some(Resume::Auto) => match Record::refuse_newer(out).map(|()| RunDir::checkpoints(out).pop())? {
                Some(last) => Ok(Self::From(Checkpoint::open(&last.path)?)),
                None if Record::read(out).is_some_and(|r| r.outcome == Outcome::Finished) => {
                    let why = "its run is finished and has no checkpoint to go on from; name a new `options.out`";
                    Err(Error::file(out, why))
                }
                None => Ok(Self::Again),
            },
        }
    }

    /// `c` with the recommended token budget, or with that of the checkpoint that it goes on from.
    pub fn fit<B: Backend>(
        &self,
        be: &B,
        (c, team): (&TrainOptions, Team<'_>),
        observe: &mut dyn Observe,
    ) -> Result<TrainOptions> {
        let Some(checkpoint) = self.checkpoint() else { return fitted(be, c, team, observe) };
        let mut c = c.clone();
        let slots = checkpoint.saved().identity.token_budget as usize;
        (c.data.fit, c.data.token_budget) = (false, Some(slots));
        let note = format!("token budget {slots}, the checkpoint's: `options.fit` chooses one for a run that begins");
        observe.tell(&Event::Note(&note))?;
        Ok(c)
    }

    /// [`Start::of`] for the ranks of a job: what rank 0 found, which alone has the run's folder.
    pub fn shared(comm: &dyn Comm, c: &TrainOptions) -> Result<Self> {
        let World { rank, size, .. } = comm.world();
        if size == 1 {
            return Self::of(c);
        }
        let own = if rank == 0 { Some(Self::of(c)?) } else { None };
        let path = |start: &Self| start.checkpoint().map(|from| from.path().as_os_str().as_encoded_bytes().to_vec());
        let mut from = own.as_ref().and_then(path).unwrap_or_default();
        comm.broadcast(&mut from, "hear from where the run goes on")?;
        match own {
            Some(start) => Ok(start),
            None if from.is_empty() => Ok(Self::New),
            None => Checkpoint::open(Path::new(&OsString::from_vec(from))).map(Self::Elsewhere),
        }
    }

    /// Refuses a run that is another than the checkpoint's; whether it goes on with other numerics, as is allowed.
    pub fn check(&self, now: &mut Identity, c: &TrainOptions, schedule: &Schedule) -> Result<bool> {
        let Some(checkpoint) = self.checkpoint() else { return Ok(false) };
        let saved = checkpoint.saved();
        let refuse = |why: String| Err(Error::file(checkpoint.path(), why));
        if let Some(why) = saved.identity.difference(now, c, schedule, saved.max_steps) {
            return refuse(why);
        }
        if saved.global_step > schedule.total {
            let (done, asked) = (saved.global_step, schedule.total);
            return refuse(format!("has taken {done} steps, {asked} are asked for: give a larger `options.max_steps`"));
        }
        if let Some(why) = without_its_best(checkpoint, c) {
            return refuse(why);
        }
        let (was, is) = (&saved.identity.numerics, &now.numerics);
        now.numerics_before = saved.identity.numerics_before.clone();
        if was == is {
            return Ok(false);
        }
        if !c.resume.allow_other_numerics {
            return refuse(format!(
                "was computed another way (`{was}`, now `{is}`), so the numbers would not be those of one run: use the device and `options.dtype` of that time, or go on all the same with `options.allow_other_numerics`"
            ));
        }
        now.numerics_before.push(was.clone());
        Ok(true)
    }

    /// The folder of the run that goes on, taken, with nothing in it changed.
    pub fn take(&self, c: &TrainOptions) -> Result<Option<RunDir>> {
        match self {
            Self::New | Self::Elsewhere(_) => Ok(None),
            Self::Again | Self::From(_) => {
                let (out, last) = (RunDir::reopen(&c.files.out)?, RunDir::checkpoints(&c.files.out).pop());
                let ended = || {
                    let begins = matches!(self, Self::Again);
                    begins && Record::read(&c.files.out).is_some_and(|r| r.outcome == Outcome::Finished)
                };
                // By its name: that it is not another's is for `check` to say.
                let name = |path: &Path| path.file_name().map(OsStr::to_owned);
                let own = self.checkpoint().and_then(|from| name(from.path()));
                let saved = last.and_then(|last| name(&last.path)) != own;
                if c.resume.resume == Some(Resume::Auto) && (saved || ended()) {
                    // To begin as was decided before would take away what it saved.
                    let why = "another run was writing to it until now; give the command again";
                    return Err(Error::file(&c.files.out, why));
                }
                Ok(Some(out))
            }
        }
    }

    /// The run's folder: a new one, or the one that was `taken`, with nothing in it changed but its record and configuration.
    pub fn open(
        &self,
        taken: Option<RunDir>,
        c: &TrainOptions,
        record: &mut Record,
        other_numerics: bool,
    ) -> Result<RunDir> {
        let (path, config) = (&c.files.out, c.to_toml()?);
        let Some(out) = taken else {
            if let Self::Elsewhere(checkpoint) = self {
                record.begin_from(checkpoint, other_numerics);
            }
            return RunDir::begin(path, Some(record.to_text().as_bytes()), &config);
        };
        if let Some(checkpoint) = self.checkpoint() {
            let saved = checkpoint.saved();
            if !out.has_metrics(FileMark { bytes: saved.metrics_bytes, crc32: saved.metrics_crc32 })? {
                let why = format!(
                    "does not begin as it did when {} was saved: put back what was there, or name a new `options.out`",
                    checkpoint.path().display()
                );
                return Err(Error::file(path.join("metrics.jsonl"), why));
            }
            if let Some(mark) = self.held_ledger(path)
                && !out.has_ledger(mark)?
            {
                let why = format!(
                    "does not begin as it did when {} was saved: put back what was there, or take it away, and a new one begins here",
                    checkpoint.path().display()
                );
                return Err(Error::file(RunDir::ledger_of(path), why));
            }
        }
        if c.report.report_to == ReportTo::Tensorboard {
            out.check_events()?;
        }
        record.go_on(path, self.checkpoint(), other_numerics);
        out.write_record(record.to_text().as_bytes())?;
        out.write_config(&config)?;
        out.sweep();
        Ok(out)
    }

    /// Fills `state` from the checkpoint, and cuts from the run's folder what came after it.
    pub fn go_on<B: Backend>(
        &self,
        be: &B,
        state: &mut State<B>,
        (c, out): (&TrainOptions, Option<&RunDir>),
        observe: &mut dyn Observe,
    ) -> Result<()> {
        let mut note = |text: String| observe.tell(&Event::Note(&text));
        match self {
            Self::New => return Ok(()),
            Self::Again => {
                note(format!("{}: no checkpoint to go on from; the run begins again", c.files.out.display()))?;
                let Some(out) = out else { return Ok(()) };
                out.forget_batches(0)?;
                out.cut_samples(0)?;
                return out.cut_metrics(0);
            }
            Self::From(checkpoint) | Self::Elsewhere(checkpoint) => {
                checkpoint.load(be, state)?;
                if !c.eval.compares() {
                    state.clock.watched = Default::default();
                }
                let step = checkpoint.saved().global_step;
                note(format!("going on after step {step}, from {}", checkpoint.path().display()))?;
            }
        }
        let (Self::From(checkpoint), Some(out)) = (self, out) else { return Ok(()) };
        // The newest first: whatever ends this in the middle, what is left belongs together.
        for newer in RunDir::checkpoints(out.path()).iter().rev() {
            if newer.step > checkpoint.saved().global_step {
                out.remove_checkpoint(newer)?;
                note(format!("{} removed: the run goes on from before it", newer.path.display()))?;
            }
        }
        out.forget_batches(checkpoint.saved().global_step)?;
        out.cut_samples(checkpoint.saved().global_step)?;
        out.cut_metrics(checkpoint.saved().metrics_bytes)
    }

    /// The step of the checkpoint that lies in the run's own folder.
    pub fn own_step(&self) -> Option<u64> {
        match self {
            Self::From(checkpoint) => Some(checkpoint.saved().global_step),
            _ => None,
        }
    }

    /// The folders of the runs that this one began in, the last first: that of a checkpoint elsewhere, the one that that run began
    /// in, and so on; each with the step up to which it was this run.
    pub fn other_runs(&self) -> Vec<(PathBuf, u64)> {
        self.checkpoint().map(others).unwrap_or_default()
    }

    /// What the ledger in `out`, the run's own folder, held at the checkpoint that the run goes on from. One that was taken away since
    /// decides nothing: another begins.
    pub fn held_ledger(&self, out: &Path) -> Option<FileMark> {
        match self {
            Self::From(checkpoint) if RunDir::ledger_of(out).symlink_metadata().is_ok() => {
                checkpoint.saved().ledger.map(Into::into)
            }
            _ => None,
        }
    }

    /// The checkpoint, where there is one.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Self::From(checkpoint) | Self::Elsewhere(checkpoint) => Some(checkpoint),
            Self::New | Self::Again => None,
        }
    }
}

/// Most runs, one begun in the other, whose folders are looked at.
const MOST_RUNS: usize = 64;

/// The folder of `checkpoint`'s run and those of the runs that it began in, as the records say, each with the last step that it has
/// in common with a run that goes on from there: what it did after that is its own.
fn others(checkpoint: &Checkpoint) -> Vec<(PathBuf, u64)> {
    let Some(own) = checkpoint.path().parent() else { return Vec::new() };
    let mut all = vec![(own.to_owned(), checkpoint.saved().global_step)];
    while let (Some((last, step)), true) = (all.last(), all.len() < MOST_RUNS) {
        let resumptions = Record::read(last).map(|record| record.resumptions).unwrap_or_default();
        // Of a checkpoint elsewhere the whole path is known, of one's own its name.
        let of = |r: &Resumption| Some((PathBuf::from(r.checkpoint.as_ref()?), r.from_step.min(*step)));
        let elsewhere = resumptions.iter().filter_map(of).find(|(path, _)| path.is_absolute());
        let next = elsewhere.and_then(|(path, step)| Some((path.parent()?.to_owned(), step)));
        match next.filter(|(next, _)| all.iter().all(|(folder, _)| folder != next)) {
            Some(next) => all.push(next),
            None => break,
        }
    }
    all
}

/// Where the best evaluation is to be the result, and its checkpoint is gone: what to do.
fn without_its_best(from: &Checkpoint, c: &TrainOptions) -> Option<String> {
    let best = from.saved().clock.watched.best.filter(|_| c.eval.load_best_model_at_end)?;
    let name = format!("checkpoint-{}", best.step);
    let beside = others(from).into_iter().filter(|(_, upto)| best.step <= *upto).map(|(run, _)| run);
    (!beside.chain([c.files.out.clone()]).any(|run| run.join(&name).is_dir())).then(|| {
        format!(
            "its best evaluation was at step {}, and {name} is not beside it: put it back, go on from another checkpoint, or leave \
             `options.load_best_model_at_end` out",
            best.step
        )
    })
}

/// Whether the run that `c` asks to go on with is through: what to say about it then. Asked before any work. Where it is another
/// run that is asked for, the answer is no, and `Start` says what differs.
pub fn finished(c: &TrainOptions) -> Option<String> {
    let out = &c.files.out;
    if c.resume.resume != Some(Resume::Auto) || RunDir::is_taken(out) || Record::refuse_newer(out).is_err() {
        return None;
    }
    let record = Record::read(out).filter(|r| r.outcome == Outcome::Finished)?;
    let written: toml::Table = RunDir::read_config(out)?.parse().ok()?;
    let mut was = TrainOptions::read(c.stage, &written).ok()?;
    was.files.out.clone_from(out);
    let was = was.resolve(c.stage).ok()?;
    // Whoever names no lanes goes on with those that there are.
    let mut c = c.clone();
    c.data.lanes = c.data.lanes.or(was.data.lanes);
    let c = &c;
    // As long as it was, or as many steps as it has: no more is asked of it.
    let enough = match c.data.max_steps {
        _ if record.stopped_early.is_some() => ends_as(c, &was),
        Some(steps) => steps <= record.steps_done,
        None => was.data.max_steps.is_none() && was.data.num_train_epochs == c.data.num_train_epochs,
    };
    (enough && is_the_same(c, &was, &record)).then(|| {
        format!("{}: the run is finished, after {} steps; nothing is left to do", out.display(), record.steps_done)
    })
}

/// Whether `c` asks for as many steps as `was`, and for the same evaluations to end them.
fn ends_as(c: &TrainOptions, was: &TrainOptions) -> bool {
    let of = |c: &TrainOptions| {
        let e = &c.eval;
        let ends = (e.eval_steps, e.early_stopping_patience, e.early_stopping_threshold, e.kl_budget);
        let of = (e.kl_samples, e.kl_max_new_tokens, e.max_eval_samples, e.eval_data.clone());
        (c.data.max_steps, c.data.num_train_epochs, ends, of)
    };
    of(c) == of(was)
}

/// Whether `c` asks for the finished run whose options were `was`. What it was made from may be gone by now.
fn is_the_same(c: &TrainOptions, was: &TrainOptions, record: &Record) -> bool {
    let rates = |c: &TrainOptions| (c.schedule.warmup_steps, c.schedule.warmup_ratio, c.data.token_budget);
    let options = deciding(c).ok() == deciding(was).ok() && rates(c) == rates(was);
    let data = || open_splits(&c.files.data).map_or(true, |all| data_sha256(&all[0]) == record.sha256.data);
    // Under another name only: to read all weights takes its time.
    let placed = c.placed();
    let model = |(is, was): (&Path, &Path), sha256: Option<&str>| {
        let sha = || ModelDir::open(c.folder(is)).and_then(|dir| dir.identity()).map(|sha| hex(&sha));
        // With an adapter it is the hash of both: of the base alone nothing is known.
        is == was || sha256.is_none_or(|want| !c.train.has_adapter() && sha().map_or(true, |sha| sha == want))
    };
    let paths = (placed.files.model.as_path(), was.files.model.as_path());
    let reference = (placed.reference_dir(), was.reference_dir());
    options
        && placed.train.adapter == was.train.adapter
        && data()
        && model(paths, Some(&record.sha256.model))
        && model(reference, record.sha256.reference.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::options::FileOptions;

    /// As where another run had it when it was looked at, and ended before it was taken.
    #[test]
    fn a_folder_that_changed_meanwhile_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().to_owned();
        std::fs::write(out.join("metrics.jsonl"), "{}\n").unwrap();
        let mut c =
            TrainOptions { files: FileOptions { out: out.clone(), ..Default::default() }, ..Default::default() };
        c.resume.resume = Some(Resume::Auto);
        assert!(Start::Again.take(&c).unwrap().is_some());
        std::fs::create_dir(out.join("checkpoint-2")).unwrap();
        let e = Start::Again.take(&c).unwrap_err().to_string();
        assert!(e.ends_with("another run was writing to it until now; give the command again"), "{e}");
        assert_eq!(std::fs::read(out.join("metrics.jsonl")).unwrap(), b"{}\n");
    }
}
