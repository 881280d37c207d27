//! The steps of a run. On a device that works by itself the host is always one step ahead: it starts the passes of the
//! next step, then reads and reports the numbers of the last.

use super::checkpoint::Carried;
use super::clock::Clock;
use super::engine::Engine;
use super::eval::{self, EvalSet};
use super::in_flight::InFlight;
use super::means;
use super::metrics::Totals;
use super::optim::Optimizer;
use super::options::TrainOptions;
use super::proof::{prove_evaluated, prove_step_0, spot_check};
use super::report::Numbers;
use super::saver::Saver;
use super::schedule::Schedule;
use super::summary::{Ended, Summary};
use super::synced::{self, Sync};
use super::trend::Trend;
use super::whole_step::{self, Taking};
use crate::backend::Backend;
use crate::batch::MicroBatch;
use crate::choice::Choice;
use crate::data::plan::Planner;
use crate::data::sidecar::Sidecars;
use crate::error::{Error, Result};
use crate::loss::{LossSpec, Scope};
use crate::observe::{Event, Flow, Later, Observe};
use serde_json::{Map, json};
use std::collections::VecDeque;
use std::time::Instant;

/// Steps in a row that may be skipped for non-finite values.
const MAX_SKIPPED: u64 = 3;

/// What the steps read, and whom they tell. Where they stand is the clock of the engine's state.
pub struct Steps<'a> {
    /// Options of the run.
    pub options: &'a TrainOptions,
    /// The loss.
    pub spec: LossSpec,
    /// The data.
    pub plan: &'a Planner<'a>,
    /// The reference, where the loss has one.
    pub sidecars: Option<Sidecars>,
    /// How the state's reference follows the policy, where it does.
    pub sync: Option<Sync>,
    /// Whether policy and reference are the same weights.
    pub starts_at_reference: bool,
    /// Learning rates.
    pub schedule: Schedule,
    /// What is held out.
    pub eval: Option<EvalSet<'a>>,
    /// What the run can go on from.
    pub saver: Saver<'a>,
    /// The step after which it was evaluated last.
    pub evaluated: Option<u64>,
    /// Held-out numbers of the model that the run started from.
    pub before: Option<Totals>,
    /// Those of the last evaluation of this call.
    pub after: Option<Totals>,
    /// How it goes.
    pub trend: Trend,
    /// Who follows.
    pub observe: &'a mut dyn Observe,
    /// What it comes to.
    pub summary: &'a mut Summary,
}

impl Steps<'_> {
    /// Steps from where the clock stands to the last, or to where somebody ends it; what is due there comes first.
    ///
    /// At a step a checkpoint comes before an evaluation: whoever goes on from it evaluates again, with the same numbers.
    pub fn run<B: Backend>(mut self, engine: &mut Engine<'_, B>, opt: &mut Optimizer<B>) -> Result<()> {
        let (stage, total) = (self.options.stage.name(), self.schedule.total);
        let options = self.options.to_toml()?;
        let mut flow = self.observe.on(&Event::RunBegins { stage, steps: total, options: &options })?;
        self.saver.begin();
        if flow != Flow::Pause && self.evaluates_at(engine.state.clock.step) {
            flow = flow.and(self.evaluate(engine)?);
        }
        flow = flow.and(self.observe.on(&Event::Begin { task: stage, total, keeps: true })?);
        if let (Some(sidecars), true) = (&self.sidecars, self.starts_at_reference && engine.state.clock.step == 0) {
            spot_check(engine, (self.plan, &self.spec), sidecars)?;
            if self.drops_away(engine) {
                let mut batches = self.plan.first(0, 0)?;
                eval::fill_reference(&mut batches, sidecars, &self.spec)?;
                prove_evaluated(engine, batches, &self.spec, self.options.data.seed)?;
            }
        }
        // When the last step was known to be done.
        let mut done = Instant::now();
        let mut before = None;
        while engine.state.clock.step < total && flow == Flow::On {
            let this = self.start(engine);
            // Its numbers have long been there: the device is at work on the passes that were started just now. They are
            // written even where that failed.
            if let Some(before) = before.take() {
                let finished = self.finish(engine, opt, before, &mut done);
                flow = flow.and(this.as_ref().map_or(Ok(Flow::On), |_| finished)?);
            }
            let mut this = this?;
            let step = this.step;
            if step == 1 && self.starts_at_reference && !self.drops_away(engine) {
                this.collect(engine, &self.spec)?;
                prove_step_0(&this.totals)?;
            }
            opt.step(engine.be, &mut engine.state, this.lr)?;
            if let Some(sync) = self.sync.filter(|sync| sync.is_due(step)) {
                sync.take(engine.be, &mut engine.state)?;
            }
            flow = flow.and(self.observe.on(&Event::Tick)?);
            let (saves, evaluates) = (self.saver.is_due(step), self.evaluates_at(step));
            if saves || evaluates || flow != Flow::On || !B::ASYNC {
                flow = flow.and(self.finish(engine, opt, this, &mut done)?);
            } else {
                before = Some(this);
            }
            if saves {
                self.save(engine)?;
            }
            // Whoever asked to stop before the evaluation at this step wants it after the loop.
            if evaluates && flow == Flow::On {
                flow = flow.and(self.evaluate(engine)?);
            }
        }
        if let Some(before) = before {
            flow = flow.and(self.finish(engine, opt, before, &mut done)?);
        }
        self.end(engine, flow)?;
        self.observe.tell(&Event::End)
    }

    /// What is left to do where the steps end.
    fn end<B: Backend>(&mut self, engine: &mut Engine<'_, B>, mut flow: Flow) -> Result<()> {
        let (step, total) = (engine.state.clock.step, self.schedule.total);
        if flow == Flow::Stop && self.evaluated != Some(step) {
            flow = flow.and(self.evaluate(engine)?);
        }
        self.summary.ended = match flow {
            Flow::On => Ended::Finished,
            Flow::Stop => Ended::Stopped,
            Flow::Pause => Ended::Paused,
        };
        if flow != Flow::On {
            let line = format!("stopped after step {step} of {total}; saving what was learned so far");
            self.observe.tell(&Event::Note(&line))?;
        }
        // Before the first step there is nothing to go on from that the same command would not have again.
        if flow == Flow::Pause && step > 0 && self.saver.last != Some(step) {
            self.save(engine)?;
        }
        if let Some(why) = self.saver.failure() {
            self.observe.tell(&Event::Warning(&why))?;
        }
        // What goes on later has its end to come.
        if flow != Flow::Pause {
            self.summary.eval = self.compared(step);
            let warnings = self.trend.warnings(self.schedule.peak, self.summary.eval.as_ref());
            warnings.iter().try_for_each(|why| self.observe.tell(&Event::Warning(why)))?;
        }
        self.summary.steps = step;
        self.summary.checkpoint = self.saver.last;
        Ok(())
    }

    /// Saves a checkpoint where the clock stands.
    fn save<B: Backend>(&mut self, engine: &mut Engine<'_, B>) -> Result<()> {
        let first_eval = self.before.clone().filter(Totals::is_finite);
        let (train_seconds, reference_seconds) = (self.summary.train_seconds, self.summary.reference_seconds);
        let carried = Carried { first_eval, train_seconds, reference_seconds };
        self.saver.save((engine.be, &engine.state), carried, self.observe)
    }

    /// Before the first step, after the last, and every so often.
    fn evaluates_at(&self, step: u64) -> bool {
        let every = self.options.eval.eval_steps;
        step == 0 || step == self.schedule.total || every > 0 && step.is_multiple_of(every)
    }

    /// Whether training takes the policy away from what it computes otherwise. With a new adapter's B of zeros nothing does.
    fn drops_away<B: Backend>(&self, engine: &Engine<'_, B>) -> bool {
        engine.drops() && self.options.train.adapter.is_some()
    }

    /// Enqueues the passes of the next step.
    fn start<B: Backend>(&self, engine: &mut Engine<'_, B>) -> Result<InFlight<B>> {
        let begun = Instant::now();
        let (epoch, place) = engine.state.clock.advance(|epoch| self.plan.steps_in_epoch(epoch));
        let step = engine.state.clock.step;
        let mut batches = self.plan.first(epoch, place)?;
        if let Some(sidecars) = &self.sidecars {
            eval::fill_reference(&mut batches, sidecars, &self.spec)?;
        }
        let seed = self.options.data.seed;
        engine.drop_from(&mut batches, seed, step);
        let scales = means::scales(&batches, &self.spec);
        let proves = step == 1 && self.starts_at_reference && !self.drops_away(engine);
        let mut totals = if proves { Totals::proving() } else { Totals::default() };
        let mut late = VecDeque::with_capacity(batches.len());
        if self.spec.scope() == Scope::Step {
            if self.sync.is_some() {
                synced::fill(engine, &mut batches, &self.spec)?;
            }
            let how = Taking { spec: &self.spec, scales, seed: [seed, step], trains: true, proves };
            let mut running = engine.state.clock.running;
            totals = whole_step::first(engine, &mut batches, how, &mut running)?;
            engine.state.clock.running = running;
            batches = whole_step::second(batches, || self.plan.step(epoch, place))?;
            engine.drop_from(&mut batches, seed, step);
            engine.clear_grads()?;
            batches.iter().try_for_each(|mb| engine.start_given(mb, &self.spec, scales))?;
        } else {
            engine.clear_grads()?;
            let pass = |engine: &mut Engine<'_, B>, mb: MicroBatch| {
                let numbers = engine.start(&mb, &self.spec, scales)?;
                late.push_back((mb, numbers));
                Ok(())
            };
            match self.sync {
                Some(_) => synced::each(engine, batches, &self.spec, pass)?,
                None => {
                    let mut pass = pass;
                    batches.into_iter().try_for_each(|mb| pass(engine, mb))?;
                }
            }
        }
        let lr = self.schedule.at(step - 1);
        Ok(InFlight { step, epoch, place, lr, begun, late, totals })
    }

    /// Reads and reports a step's numbers: on a device that works by itself, while it is at the next.
    fn finish<B: Backend>(
        &mut self,
        engine: &mut Engine<'_, B>,
        opt: &mut Optimizer<B>,
        mut this: InFlight<B>,
        done: &mut Instant,
    ) -> Result<Flow> {
        this.collect(engine, &self.spec)?;
        let clock = &mut engine.state.clock;
        let norm = opt.settle(engine.be, clock)?;
        // Where steps overlap, one begins to take time when the one before is done.
        let seconds = this.begun.max(*done).elapsed().as_secs_f64();
        *done = Instant::now();
        self.check_finite(clock, &this, norm)?;
        self.summary.train_seconds += seconds;
        self.summary.steps = this.step;
        clock.tokens += this.totals.tokens_with_prompts;
        let InFlight { step, epoch, place, lr, totals, .. } = this;
        let epochs = epoch as f64 + (place + 1) as f64 / self.plan.steps_in_epoch(epoch) as f64;
        let numbers = Numbers { step, epochs, totals: &totals, norm, lr, tokens: clock.tokens, seconds };
        let row = numbers.row();
        self.trend.add(&numbers);
        self.saver.stepped(step, self.observe)?;
        let flow = self.observe.on(&Event::Step { step, row: &row })?;
        let flow = flow.and(self.observe.on(&Event::Progress { done: step, beside: format_args!("{}", self.trend) })?);
        self.summary.last = row;
        Ok(flow)
    }

    /// Reports a step that was skipped; ends the run after [`MAX_SKIPPED`] in a row, or where it skipped all it had.
    fn check_finite<B: Backend>(&mut self, clock: &mut Clock, this: &InFlight<B>, norm: f64) -> Result<()> {
        let (step, totals) = (this.step, &this.totals);
        if norm.is_finite() && totals.non_finite.is_empty() {
            clock.skipped = 0;
            return Ok(());
        }
        // Where every loss is finite and the gradient is not, any of the step's pairs may be the cause, or of its responses.
        let (what, known) = match totals.pairs {
            0 => ("responses", &totals.non_finite_responses),
            _ => ("pairs", &totals.non_finite),
        };
        let mut ids = if known.is_empty() { self.ids(this.epoch, this.place)? } else { known.clone() };
        ids.sort_unstable();
        ids.dedup();
        ids.truncate(8);
        let loss = totals.mean_loss();
        let line = format!("step {step} skipped: gradient norm {norm}, loss {loss}, {what} {ids:?}");
        self.observe.tell(&Event::Note(&line))?;
        clock.skipped += 1;
        let skipped = clock.skipped;
        if skipped < MAX_SKIPPED && !(step == self.schedule.total && skipped == step) {
            return Ok(());
        }
        Err(Error::Training(format!(
            "no finite gradient in {skipped} steps in a row, the last was step {step}: lower `learning_rate`, or look at {what} {ids:?}; no model was saved"
        )))
    }

    /// Ids of the pairs of a step, or where it has none of its responses.
    fn ids(&self, epoch: u64, place: u64) -> Result<Vec<u64>> {
        let batches = self.plan.step(epoch, place)?;
        let pairs: Vec<u64> = batches.iter().flat_map(|mb| mb.pairs()).map(|p| p.id).collect();
        let responses = || batches.iter().flat_map(|mb| mb.responses()).map(|r| r.id).collect();
        Ok(if pairs.is_empty() { responses() } else { pairs })
    }

    /// The held-out numbers where the clock stands. An evaluation is finished even where the run is to stop, unless it is to
    /// pause: then it is left undone, as what goes on from here does it again.
    fn evaluate<B: Backend>(&mut self, engine: &mut Engine<'_, B>) -> Result<Flow> {
        let Some(set) = &self.eval else { return Ok(Flow::On) };
        let step = engine.state.clock.step;
        let mut later = Later::new(self.observe);
        let totals = match eval::evaluate(engine, set, &self.spec, &mut later) {
            Err(Error::Stopped(_)) => return Ok(Flow::Pause),
            totals => totals?,
        };
        let flow = later.flow();
        self.evaluated = Some(step);
        self.saver.evaluates(step);
        let mut row = Map::new();
        row.insert("step".into(), json!(step));
        row.extend(totals.to_json("eval_"));
        let flow = flow.and(self.observe.on(&Event::Evaluation { step, row: &row })?);
        let line = format!("step {step}: held-out {}", eval::line(&totals));
        let flow = flow.and(self.observe.on(&Event::Note(&line))?);
        if step == 0 {
            self.before = Some(totals.clone());
        }
        self.after = Some(totals);
        Ok(flow)
    }

    /// The held-out numbers of the model that the run started from, and of that which it has after `step` steps: where both
    /// were measured.
    fn compared(&self, step: u64) -> Option<(Totals, Totals)> {
        let after = self.after.clone().filter(|_| self.evaluated == Some(step))?;
        Some((self.before.clone().filter(|_| step > 0)?, after))
    }
}
