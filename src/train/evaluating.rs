//! What the steps of a run come to on what is held out, and what follows from it: which checkpoint is the best, whether the run ends.

use super::best::Best;
use super::checkpoint::Checkpoint;
use super::engine::Engine;
use super::eval;
use super::metrics::Totals;
use super::record::BestEvaluation;
use super::steps::Steps;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::observe::{Event, Flow, Later};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Instant;

impl Steps<'_> {
    /// The held-out numbers where the clock stands. An evaluation is finished even where the run is to stop, unless it is to
    /// pause: then it is left undone, as what goes on from here does it again.
    pub(super) fn evaluate<B: Backend>(&mut self, engine: &mut Engine<'_, B>) -> Result<Flow> {
        if self.eval.is_none() && self.sets.is_empty() && self.sampler.is_none() {
            return Ok(Flow::On);
        }
        let (step, begun) = (engine.state.clock.step, Instant::now());
        let mut later = Later::new(self.observe);
        let all = self.eval.iter().map(|set| (None, set));
        let all = all.chain(self.sets.iter().map(|(name, set)| (Some(*name), set)));
        let mut numbers: Vec<(Option<&str>, Totals)> = Vec::with_capacity(1 + self.sets.len());
        for (name, set) in all {
            match eval::evaluate(engine, set, &self.stepper.spec, &mut later) {
                Err(Error::Stopped(_)) => return Ok(Flow::Pause),
                totals => numbers.push((name, totals?)),
            }
        }
        let sampled = match self.sampler.as_mut().map(|sampler| sampler.take(engine, step, &mut later)).transpose() {
            Err(Error::Stopped(_)) => return Ok(Flow::Pause),
            sampled => sampled?.unwrap_or_default(),
        };
        let flow = later.flow();
        let mut row = Map::new();
        row.insert("step".into(), json!(step));
        for (name, totals) in &numbers {
            row.extend(totals.evaluated(&name.map_or_else(|| "eval_".to_owned(), |name| format!("eval_{name}_"))));
        }
        row.extend(sampled.metrics());
        let seconds = begun.elapsed().as_secs_f64();
        row.insert("eval_seconds".into(), json!(seconds));
        let own = numbers.iter().find(|(name, _)| name.is_none()).map(|(_, totals)| totals.clone());
        let flow = flow.and(self.judge(engine, &row, own.as_ref())?);
        self.summary.eval_seconds += seconds;
        self.saver.record.eval_seconds = self.summary.eval_seconds;
        let flow = flow.and(self.observe.on(&Event::Evaluation { step, row: &row })?);
        for (name, totals) in &numbers {
            let what = name.map_or_else(|| "held-out".to_owned(), |name| format!("held-out {name}:"));
            self.observe.tell(&Event::Note(&format!("step {step}: {what} {}", eval::line(totals))))?;
        }
        for why in &sampled.warnings {
            self.observe.tell(&Event::Warning(&format!("step {step}: {why}")))?;
        }
        self.saver.out.map_or(Ok(()), |out| out.log_samples(&sampled.rows))?;
        if let Some(line) = sampled.line() {
            self.observe.tell(&Event::Note(&format!("step {step}: {line}")))?;
        }
        self.trend.sampled(sampled.habits);
        if let Some(why) = self.ends_early.as_ref().filter(|_| flow == Flow::Stop) {
            self.observe.tell(&Event::Note(&format!("step {step}: {why}; the run ends")))?;
        }
        if let Some(own) = &own {
            self.trend.evaluated(step, own);
        }
        self.summary.sets = numbers.into_iter().filter_map(|(name, t)| Some((name?.to_owned(), t))).collect();
        if engine.state.clock.watched.best.is_some_and(|best| best.step == step) {
            self.best_sets.clone_from(&self.summary.sets);
        }
        if step == 0 {
            self.before.clone_from(&own);
        }
        self.after = own;
        Ok(flow)
    }

    /// Compares the evaluation whose numbers are `row`, `own` being those of the held-out split, with those before; whether the run
    /// ends here. What a checkpoint of this step is to hold is noted before.
    fn judge<B: Backend>(
        &mut self,
        engine: &mut Engine<'_, B>,
        row: &Map<String, Value>,
        own: Option<&Totals>,
    ) -> Result<Flow> {
        let clock = &mut engine.state.clock;
        self.evaluated = Some(clock.step);
        self.saver.evaluates(*clock);
        let Some(judge) = &self.judge else { return Ok(Flow::On) };
        judge.check(row)?;
        if clock.step == 0 {
            return Ok(Flow::On);
        }
        let before = clock.watched.best;
        let judged = judge.take(&mut clock.watched, clock.step, row);
        self.best[1] = self.best[0].clone();
        if judged.is_best {
            self.best[0] = own.cloned();
        }
        if self.options.eval.load_best_model_at_end {
            // That of before too: a checkpoint of this step, which is of before this evaluation, says that it is the best.
            let [before, now] = [before, clock.watched.best].map(|best| best.map(|best| best.step));
            self.saver.protect(before, now);
        }
        // Nor one that is made because somebody ended the run there.
        let step = clock.step;
        let ends = step != self.stepper.schedule.total && self.evaluates_at(step);
        self.ends_early = judged.ends.filter(|_| ends);
        Ok(if self.ends_early.is_some() { Flow::Stop } else { Flow::On })
    }

    /// Saves a checkpoint of the best evaluation, where it is to be the result and is the one just made. The model of the last
    /// step is saved anyway.
    pub(super) fn save_best<B: Backend>(&mut self, engine: &mut Engine<'_, B>) -> Result<()> {
        let (step, total) = (engine.state.clock.step, self.stepper.schedule.total);
        let best = engine.state.clock.watched.best.map(|best| best.step);
        let keeps = self.options.eval.load_best_model_at_end;
        match keeps && best == Some(step) && step < total && self.saver.last != Some(step) {
            true => self.save(engine),
            false => Ok(()),
        }
    }

    /// Where the best evaluation is to be the result, makes the state that of its checkpoint; and records which it was.
    pub(super) fn load_best<B: Backend>(&mut self, engine: &mut Engine<'_, B>) -> Result<()> {
        let metric = self.judge.as_ref().and_then(|judge| judge.metric.clone());
        let (Some(metric), Some(best)) = (metric, engine.state.clock.watched.best) else { return Ok(()) };
        let step = engine.state.clock.step;
        let mut loaded = self.options.eval.load_best_model_at_end;
        if loaded && best.step != step {
            match self.take_best(engine, best.step)? {
                Ok(path) => {
                    let (of, value) = (best.step, best.value);
                    let line =
                        format!("the model is that of step {of}, with the best {metric} ({value}): {}", path.display());
                    self.observe.tell(&Event::Note(&line))?;
                }
                Err(e) => {
                    loaded = false;
                    let kept = self.saver.protected.iter().rev().filter(|step| self.saver.checkpoint(**step).is_some());
                    let kept = kept.map(|step| format!("; checkpoint-{step}, the best before it, is kept")).next();
                    let line = format!(
                        "the best {metric} was at step {}, and the model is that of the last: {e}{}",
                        best.step,
                        kept.unwrap_or_default()
                    );
                    self.observe.tell(&Event::Warning(&line))?;
                }
            }
        }
        if loaded {
            self.summary.best = Some((best.step, metric.clone(), best.value));
            // Where the best was before this call, nothing is known of them but what metrics.jsonl has.
            self.summary.sets = std::mem::take(&mut self.best_sets);
            let after = self.best[0].clone();
            self.summary.eval = self.before.clone().zip(after).filter(|_| step > 0);
        }
        let Best { step, value } = best;
        self.saver.record.best = Some(BestEvaluation { step, metric, value, loaded });
        Ok(())
    }

    /// Fills the state from the checkpoint of `step`, which rank 0 reads through before anybody overwrites anything: each rank has its
    /// share of it. Gives why not, on rank 0 in words. Errors: a checkpoint that is good no more.
    fn take_best<B: Backend>(&self, engine: &mut Engine<'_, B>, step: u64) -> Result<Result<PathBuf>> {
        let gone = || Error::file(self.saver.path, format!("checkpoint-{step} is not there"));
        let opened = || Checkpoint::open(&self.saver.checkpoint(step).ok_or_else(gone)?);
        let checked = || {
            let checkpoint = opened()?;
            checkpoint.verify(&engine.state.model.table, &engine.state.sections(engine.be))?;
            Ok(checkpoint)
        };
        let first = engine.team.is_first().then(checked);
        let good = engine.team.told(matches!(first, Some(Ok(_))))?;
        let checkpoint = match first {
            Some(Err(why)) => return Ok(Err(why)),
            None if !good => return Ok(Err(gone())),
            Some(Ok(checkpoint)) => checkpoint,
            None => opened()?,
        };
        checkpoint.load(engine.be, &mut engine.state)?;
        Ok(Ok(checkpoint.path().to_owned()))
    }

    /// The held-out numbers of the model that the run started from, and of that which it has after `step` steps: where both
    /// were measured.
    pub(super) fn compared(&self, step: u64) -> Option<(Totals, Totals)> {
        let after = self.after.clone().filter(|_| self.evaluated == Some(step))?;
        Some((self.before.clone().filter(|_| step > 0)?, after))
    }
}
