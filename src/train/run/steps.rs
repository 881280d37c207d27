//! The steps of a run. On a device that works by itself the host is always one step ahead: it starts the passes of the
//! next step, then reads and reports the numbers of the last.

use super::Run;
use crate::backend::Backend;
use crate::batch::MicroBatch;
use crate::data::plan::Planner;
use crate::error::{Error, Result};
use crate::loss::LossSpec;
use crate::observe::{Event, Flow, Observe};
use crate::train::engine::{Engine, Late};
use crate::train::eval;
use crate::train::metrics::Totals;
use crate::train::optim::Optimizer;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

/// Steps in a row that may be skipped for non-finite values.
const MAX_SKIPPED: u32 = 3;

impl<B: Backend> Run<'_, B> {
    pub(super) fn steps(
        &mut self,
        engine: &mut Engine<'_, B>,
        opt: &mut Optimizer<B>,
        plan: &Planner<'_>,
        total: u64,
    ) -> Result<()> {
        let stage = if self.sidecars.is_some() { "dpo" } else { "sft" };
        let options = self.c.to_toml()?;
        let mut flow = self.on(&Event::RunBegins { stage, steps: total, options: &options })?;
        flow = flow.and(self.evaluate(engine, 0)?);
        flow = flow.and(self.on(&Event::Begin { task: stage, total, keeps: true })?);
        let mut log = Log { skipped: 0, tokens: 0, at: Instant::now() };
        let (mut epoch, mut at, mut before) = (0, 0, None);
        for step in 1..=total {
            if at == plan.steps_in_epoch(epoch) {
                (epoch, at) = (epoch + 1, 0);
            }
            let this = self.start(engine, plan, [epoch, at], step);
            at += 1;
            // Its numbers have long been there: the device is at work on the passes that were started just now. They are
            // written even where that failed.
            if let Some(before) = before.take() {
                let finished = self.finish(engine, opt, before, plan, &mut log);
                flow = flow.and(this.as_ref().map_or(Ok(Flow::On), |_| finished)?);
            }
            let mut this = this?;
            if step == 1 && self.starts_at_reference {
                this.collect(engine)?;
                prove_step_0(&this.totals, &self.spec)?;
            }
            let grads = engine.grads.as_ref().expect("an engine made to train has gradients");
            opt.step(engine.be, &mut engine.model, grads, this.lr)?;
            flow = flow.and(self.on(&Event::Tick)?);
            let due = self.c.eval.eval_steps > 0 && step % self.c.eval.eval_steps == 0;
            let evaluates = step == total || due || flow == Flow::Stop;
            if evaluates || !B::ASYNC {
                flow = flow.and(self.finish(engine, opt, this, plan, &mut log)?);
            } else {
                before = Some(this);
            }
            let stops = flow == Flow::Stop;
            if evaluates || stops {
                flow = flow.and(self.evaluate(engine, step)?);
            }
            if stops {
                let line = format!("stopped after step {step} of {total}; saving what was learned so far");
                self.tell(&Event::Note(&line))?;
                break;
            }
        }
        self.tell(&Event::End)?;
        Ok(())
    }

    /// Enqueues the passes of a step.
    fn start(
        &mut self,
        engine: &mut Engine<'_, B>,
        plan: &Planner<'_>,
        [epoch, at]: [u64; 2],
        step: u64,
    ) -> Result<InFlight<B>> {
        let begun = Instant::now();
        self.data.check_unchanged()?;
        let mut batches = plan.step(epoch, at)?;
        if let Some(sidecars) = &self.sidecars {
            eval::fill_reference(&mut batches, sidecars)?;
        }
        let scale = eval::mean_scale(&batches);
        engine.clear_grads()?;
        let mut late = VecDeque::with_capacity(batches.len());
        for mb in batches {
            let numbers = engine.start(&mb, &self.spec, scale)?;
            late.push_back((mb, numbers));
        }
        let lr = self.schedule.at(step - 1);
        Ok(InFlight { step, epoch, at, lr, begun, late, totals: Totals::default() })
    }

    /// Reads and reports a step's numbers: on a device that works by itself, while it is at the next.
    fn finish(
        &mut self,
        engine: &mut Engine<'_, B>,
        opt: &mut Optimizer<B>,
        mut done: InFlight<B>,
        plan: &Planner<'_>,
        log: &mut Log,
    ) -> Result<Flow> {
        done.collect(engine)?;
        let norm = opt.settle(engine.be)?;
        let InFlight { step, epoch, at, lr, begun, totals, .. } = done;
        // Where steps overlap, one begins to take time when the one before is done.
        let seconds = begun.max(log.at).elapsed().as_secs_f64();
        log.at = Instant::now();
        log.skipped = self.check_finite(&totals, norm, step, log.skipped, || pair_ids(plan, epoch, at))?;
        self.summary.train_seconds += seconds;
        self.summary.steps = step;
        log.tokens += totals.tokens_with_prompts;
        let epochs = epoch as f64 + (at + 1) as f64 / plan.steps_in_epoch(epoch) as f64;
        let row = row(step, epochs, &totals, norm, lr, log.tokens, seconds);
        let flow = self.on(&Event::Step { step, row: &row })?;
        let beside = Beside { totals: &totals, seconds };
        let flow = flow.and(self.on(&Event::Progress { done: step, beside: format_args!("{beside}") })?);
        self.summary.last = row;
        Ok(flow)
    }

    /// Reports a step that was skipped; ends the run after [`MAX_SKIPPED`] in a row, or where it skipped all it had.
    fn check_finite(
        &mut self,
        totals: &Totals,
        norm: f64,
        step: u64,
        skipped: u32,
        pairs: impl Fn() -> Result<Vec<u64>>,
    ) -> Result<u32> {
        if norm.is_finite() && totals.non_finite.is_empty() {
            return Ok(0);
        }
        // Where every loss is finite and the gradient is not, any of the step's pairs may be the cause.
        let mut ids = if totals.non_finite.is_empty() { pairs()? } else { totals.non_finite.clone() };
        ids.sort_unstable();
        ids.dedup();
        ids.truncate(8);
        let loss = totals.mean_loss();
        let line = format!("step {step} skipped: gradient norm {norm}, loss {loss}, pairs {ids:?}");
        self.tell(&Event::Note(&line))?;
        let skipped = skipped + 1;
        if skipped < MAX_SKIPPED && !(step == self.schedule.total && u64::from(skipped) == step) {
            return Ok(skipped);
        }
        Err(Error::Training(format!(
            "no finite gradient in {skipped} steps in a row, the last was step {step}: lower `learning_rate`, or look at pairs {ids:?}; no model was saved"
        )))
    }
}

/// A step whose numbers may still be on their way.
struct InFlight<B: Backend> {
    /// From 1.
    step: u64,
    epoch: u64,
    /// Its place in the epoch, from 0.
    at: u64,
    lr: f64,
    begun: Instant,
    /// Micro-batches whose numbers were not read yet, in order.
    late: VecDeque<(MicroBatch, Late<B>)>,
    /// What was read.
    totals: Totals,
}

impl<B: Backend> InFlight<B> {
    /// Waits for the rest of the numbers.
    fn collect(&mut self, engine: &mut Engine<'_, B>) -> Result<()> {
        while let Some((mb, late)) = self.late.pop_front() {
            engine.collect(late, &mb, &mut self.totals)?;
        }
        Ok(())
    }
}

/// What rows of metrics need of the rows before.
struct Log {
    /// Steps skipped in a row.
    skipped: u32,
    /// Tokens so far, as TRL counts them.
    tokens: u64,
    /// When the last step was known to be done.
    at: Instant,
}

/// Ids of the pairs of a step.
fn pair_ids(plan: &Planner<'_>, epoch: u64, at: u64) -> Result<Vec<u64>> {
    Ok(plan.step(epoch, at)?.iter().flat_map(|mb| mb.pairs()).map(|p| p.id).collect())
}

/// DESIGN's step-0 proof: policy and reference are the same model, so that every margin is exactly 0 and the loss is
/// exactly its value there. Anything else means that the numbers cannot be trusted, and the run ends.
fn prove_step_0(totals: &Totals, spec: &LossSpec) -> Result<()> {
    let want = spec.at_reference().expect("a loss with a reference is a loss of pairs");
    let loss = totals.mean_loss();
    if totals.off_reference == 0 && loss as f32 == want as f32 {
        return Ok(());
    }
    Err(Error::Training(format!(
        "step-0 proof failed: policy and reference are the same weights, yet {} of {} pairs differ and the loss is {loss} instead of {want}; \
         delete the reference sidecars and try again, and report this if it stays",
        totals.off_reference, totals.pairs
    )))
}

fn row(step: u64, epoch: f64, t: &Totals, norm: f64, lr: f64, tokens: u64, seconds: f64) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("step".into(), json!(step));
    row.insert("epoch".into(), json!(epoch));
    row.extend(t.to_json(""));
    row.insert("grad_norm".into(), json!(norm));
    row.insert("learning_rate".into(), json!(lr));
    row.insert("num_tokens".into(), json!(tokens));
    row.insert("step_seconds".into(), json!(seconds));
    row.insert("tokens_per_second".into(), json!(t.tokens as f64 / seconds));
    let units = if t.pairs > 0 { ("pairs_per_second", t.pairs) } else { ("samples_per_second", t.responses) };
    row.insert(units.0.into(), json!(units.1 as f64 / seconds));
    row
}

/// What stands beside the progress of the steps.
struct Beside<'a> {
    totals: &'a Totals,
    seconds: f64,
}

impl fmt::Display for Beside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = self.totals;
        let share = match t.pairs {
            0 => format!("token accuracy {:.3}", t.hits / t.chosen_tokens as f64),
            _ => format!("accuracy {:.2}", t.accuracy()),
        };
        write!(f, "loss {:.4} {share} {:.0} tokens/s", t.mean_loss(), t.tokens as f64 / self.seconds)
    }
}
