//! The steps of a run. On a device that works by itself the host is always one step ahead: it starts the passes of the
//! next step, then reads and reports the numbers of the last.

use super::best::Judge;
use super::checkpoint::Carried;
use super::clock::Clock;
use super::engine::Engine;
use super::eval::{self, EvalSet};
use super::in_flight::InFlight;
use super::kept_batch::StepBatch;
use super::metrics::Totals;
use super::optim::Optimizer;
use super::options::TrainOptions;
use super::proof::{prove_evaluated, prove_step_0, spot_check};
use super::report::Numbers;
use super::samples::Sampler;
use super::saver::Saver;
use super::stepper::Stepper;
use super::summary::{Ended, Summary};
use super::trend::Trend;
use crate::backend::Backend;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::observe::{Event, Flow, Observe};
use std::time::Instant;

/// Steps in a row that may be skipped for non-finite values.
const MAX_SKIPPED: u64 = 3;

/// What the steps read, and whom they tell. Where they stand is the clock of the engine's state.
pub struct Steps<'a> {
    /// Options of the run.
    pub options: &'a TrainOptions,
    /// How each is taken.
    pub stepper: Stepper<'a>,
    /// What is held out.
    pub eval: Option<EvalSet<'a>>,
    /// Other sets that are evaluated, by name.
    pub sets: Vec<(&'a str, EvalSet<'a>)>,
    /// What is sampled at evaluations, where something is.
    pub sampler: Option<Sampler<'a>>,
    /// How evaluations are compared, where they are.
    pub judge: Option<Judge>,
    /// What the run can go on from.
    pub saver: Saver<'a>,
    /// The step after which it was evaluated last.
    pub evaluated: Option<u64>,
    /// Held-out numbers of the model that the run started from.
    pub before: Option<Totals>,
    /// Those of the last evaluation of this call.
    pub after: Option<Totals>,
    /// Those of the best evaluation, and of the best before the last.
    pub best: [Option<Totals>; 2],
    /// Those of other sets at the best evaluation of this call, by name.
    pub best_sets: Vec<(String, Totals)>,
    /// Why evaluations end the run, where they do.
    pub ends_early: Option<String>,
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
        let (stage, total) = (self.options.stage.name(), self.stepper.schedule.total);
        let options = self.options.to_toml()?;
        let mut flow = self.observe.on(&Event::RunBegins { stage, steps: total, options: &options })?;
        self.saver.begin();
        (flow, _) = engine.team.agree(flow, false)?;
        if flow != Flow::Pause && self.evaluates_at(engine.state.clock.step) {
            flow = flow.and(self.evaluate(engine)?);
        }
        flow = flow.and(self.observe.on(&Event::Begin { task: stage, total, keeps: true })?);
        (flow, _) = engine.team.agree(flow, false)?;
        if let (Some(sidecars), true) =
            (&self.stepper.sidecars, self.stepper.starts_at_reference && engine.state.clock.step == 0)
        {
            let (plan, spec) = (self.stepper.plan, &self.stepper.spec);
            spot_check(engine, (plan, spec), sidecars)?;
            if self.stepper.drops_away(engine) {
                let outlines = plan.first_outlines(0, 0)?;
                let mine = engine.team.share(outlines.len());
                let mut batches = plan.batches(outlines, mine)?;
                eval::fill_reference(&mut batches, sidecars, spec, false)?;
                prove_evaluated(engine, batches, spec, self.options.data.seed)?;
            }
        }
        // When the last step was known to be done.
        let mut done = Instant::now();
        let mut before = None;
        while engine.state.clock.step < total && flow == Flow::On {
            let this = self.stepper.start(engine);
            // Its numbers have long been there: the device is at work on the passes that were started just now. They are
            // written even where that failed.
            // Not where there are other ranks: they would be at something else.
            if let Some(before) = before.take_if(|_| this.is_ok() || engine.team.size() == 1) {
                let finished = self.finish(engine, opt, before, &mut done);
                flow = flow.and(this.as_ref().map_or(Ok(Flow::On), |_| finished)?);
            }
            let mut this = this?;
            let step = this.step;
            if self.stepper.proves(engine, step) {
                this.collect(engine, &self.stepper.spec)?;
                prove_step_0(&this.totals)?;
            }
            self.stepper.update(engine, opt, &this)?;
            flow = flow.and(self.observe.on(&Event::Tick)?);
            let saves;
            (flow, saves) = engine.team.agree(flow, self.saver.is_due(step))?;
            let evaluates = self.evaluates_at(step);
            if saves || evaluates || flow != Flow::On || !B::ASYNC {
                flow = flow.and(self.finish(engine, opt, this, &mut done)?);
                (flow, _) = engine.team.agree(flow, false)?;
            } else {
                before = Some(this);
            }
            if saves {
                self.save(engine)?;
            }
            // Whoever asked to stop before the evaluation at this step wants it after the loop.
            if evaluates && flow == Flow::On {
                flow = flow.and(self.evaluate(engine)?);
                (flow, _) = engine.team.agree(flow, false)?;
                self.save_best(engine)?;
            }
        }
        if let Some(before) = before {
            flow = flow.and(self.finish(engine, opt, before, &mut done)?);
            (flow, _) = engine.team.agree(flow, false)?;
        }
        self.end(engine, flow)?;
        self.observe.tell(&Event::End)
    }

    /// What is left to do where the steps end.
    fn end<B: Backend>(&mut self, engine: &mut Engine<'_, B>, mut flow: Flow) -> Result<()> {
        let (step, total) = (engine.state.clock.step, self.stepper.schedule.total);
        if flow == Flow::Stop && self.evaluated != Some(step) {
            flow = flow.and(self.evaluate(engine)?);
            (flow, _) = engine.team.agree(flow, false)?;
        }
        self.saver.record.stopped_early = self.ends_early.clone().filter(|_| flow == Flow::Stop);
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
            let warnings = self.trend.warnings(self.stepper.schedule.peak, self.summary.eval.as_ref());
            warnings.iter().try_for_each(|why| self.observe.tell(&Event::Warning(why)))?;
            self.load_best(engine)?;
        }
        self.summary.steps = step;
        self.summary.checkpoint = self.saver.last;
        Ok(())
    }

    /// Saves a checkpoint where the clock stands.
    pub(super) fn save<B: Backend>(&mut self, engine: &mut Engine<'_, B>) -> Result<()> {
        let first_eval = self.before.clone().filter(Totals::is_finite);
        let s = &self.summary;
        // A checkpoint is of before the evaluation at its step.
        let at = usize::from(self.evaluated == Some(engine.state.clock.step));
        let best_eval = self.best[at].clone().filter(Totals::is_finite);
        let (train_seconds, reference_seconds, eval_seconds) = (s.train_seconds, s.reference_seconds, s.eval_seconds);
        let carried = Carried { first_eval, train_seconds, reference_seconds, best_eval, eval_seconds };
        self.saver.save((engine.be, &engine.state, &engine.team), carried, self.observe)
    }

    /// Before the first step, after the last, and every so often.
    pub(super) fn evaluates_at(&self, step: u64) -> bool {
        let every = self.options.eval.eval_steps;
        step == 0 || step == self.stepper.schedule.total || every > 0 && step.is_multiple_of(every)
    }

    /// Reads and reports a step's numbers: on a device that works by itself, while it is at the next.
    fn finish<B: Backend>(
        &mut self,
        engine: &mut Engine<'_, B>,
        opt: &mut Optimizer<B>,
        mut this: InFlight<B>,
        done: &mut Instant,
    ) -> Result<Flow> {
        this.collect(engine, &self.stepper.spec)?;
        let clock = &mut engine.state.clock;
        let norm = opt.settle(engine.be, clock)?;
        // Where steps overlap, one begins to take time when the one before is done.
        let seconds = this.begun.max(*done).elapsed().as_secs_f64();
        *done = Instant::now();
        self.check_finite(clock, &this, norm)?;
        self.summary.train_seconds += seconds;
        self.summary.steps = this.step;
        clock.tokens += this.totals.tokens_with_prompts;
        let InFlight { step, epoch, place, lr, totals, taken, .. } = this;
        let epochs = epoch as f64 + (place + 1) as f64 / self.stepper.plan.steps_in_epoch(epoch) as f64;
        let (tokens, memory) = (clock.tokens, engine.be.peak_memory());
        let numbers = Numbers { step, epochs, totals: &totals, norm, lr, tokens, seconds, memory };
        let row = numbers.row();
        self.trend.add(&numbers);
        self.saver.stepped(step, self.observe)?;
        if let (Some(mut taken), Some(out)) = (taken, self.saver.out) {
            out.log_pairs(taken.bytes())?;
        }
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
        let kept = self.keep_batch(this, (loss, norm))?;
        let line = format!("step {step} skipped: gradient norm {norm}, loss {loss}, {what} {ids:?}{kept}");
        self.observe.tell(&Event::Note(&line))?;
        clock.skipped += 1;
        let skipped = clock.skipped;
        if skipped < MAX_SKIPPED && !(step == self.stepper.schedule.total && skipped == step) {
            return Ok(());
        }
        Err(Error::Training(format!(
            "no finite gradient in {skipped} steps in a row, the last was step {step}: lower `learning_rate`, or look at {what} {ids:?}; {} names the op; no model was saved",
            self.saver.replays(step)
        )))
    }

    /// Keeps the batch of a step without finite numbers; what to say of it.
    fn keep_batch<B: Backend>(&mut self, this: &InFlight<B>, (loss, norm): (f64, f64)) -> Result<String> {
        let o = self.options;
        let of = StepBatch {
            stage: o.stage.name().into(),
            step: this.step,
            epoch: this.epoch,
            place: this.place,
            seed: o.data.seed,
            learning_rate: this.lr,
            loss: loss.to_string(),
            grad_norm: norm.to_string(),
            ..StepBatch::default()
        };
        let whole = || self.stepper.whole(&this.batches);
        self.saver.keep_batch(of, (&this.batches, &whole), self.observe)
    }

    /// Ids of the pairs of a step, or where it has none of its responses.
    fn ids(&self, epoch: u64, place: u64) -> Result<Vec<u64>> {
        let step = self.stepper.plan.outlines(epoch, place)?;
        let pairs: Vec<u64> = step.iter().flat_map(|of| of.pairs()).map(|p| p.id).collect();
        let responses = || step.iter().flat_map(|of| of.responses()).map(|r| r.id).collect();
        Ok(if pairs.is_empty() { responses() } else { pairs })
    }
}
