//! A step by itself: its micro-batches, its passes, its update. Whoever takes steps takes them in this way: the same clock, state
//! and data give the same bits.

use super::engine::Engine;
use super::eval;
use super::in_flight::InFlight;
use super::ledger::Taken;
use super::means;
use super::metrics::Totals;
use super::optim::Optimizer;
use super::schedule::Schedule;
use super::synced::{self, Sync};
use super::whole_step::{self, Taking};
use crate::backend::Backend;
use crate::batch::MicroBatch;
use crate::data::plan::Planner;
use crate::data::sidecar::Sidecars;
use crate::error::Result;
use crate::loss::{LossSpec, Scope};
use std::collections::VecDeque;
use std::time::Instant;

/// What steps are computed from, beside the state that they go on from.
pub(super) struct Stepper<'a> {
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
    /// Of what a loss and an adapter with dropout draw.
    pub seed: u64,
    /// Whether what the passes bring of single pairs is kept.
    pub ledger: bool,
    /// Whether the policy's adapter was loaded: what it drops takes it away from what it computes otherwise.
    pub adapter_given: bool,
}

impl Stepper<'_> {
    /// Whether training takes the policy away from what it computes otherwise. With a new adapter's B of zeros nothing does.
    pub fn drops_away<B: Backend>(&self, engine: &Engine<'_, B>) -> bool {
        engine.drops() && self.adapter_given
    }

    /// Whether the totals of `step` are to prove that policy and reference are the same.
    pub fn proves<B: Backend>(&self, engine: &Engine<'_, B>, step: u64) -> bool {
        step == 1 && self.starts_at_reference && !self.drops_away(engine)
    }

    /// Enqueues the passes of the next step.
    pub fn start<B: Backend>(&self, engine: &mut Engine<'_, B>) -> Result<InFlight<B>> {
        let begun = Instant::now();
        let (epoch, place) = engine.state.clock.advance(|epoch| self.plan.steps_in_epoch(epoch));
        let step = engine.state.clock.step;
        let mut batches = self.plan.first(epoch, place)?;
        if let Some(sidecars) = &self.sidecars {
            eval::fill_reference(&mut batches, sidecars, &self.spec)?;
        }
        engine.drop_from(&mut batches, self.seed, step);
        let scales = means::scales(&batches, &self.spec);
        let proves = self.proves(engine, step);
        let mut totals = if proves { Totals::proving() } else { Totals::default() };
        let mut taken = self.ledger.then(|| Taken::new(step, epoch, &scales));
        let (mut late, mut read) = (VecDeque::with_capacity(batches.len()), Vec::new());
        let mut others = [Vec::new(), Vec::new()];
        if self.spec.scope() == Scope::Step {
            if self.sync.is_some() {
                let mine = engine.team.share(batches.len());
                synced::fill(engine, &mut batches, &self.spec, mine)?;
            }
            let how = Taking { spec: &self.spec, scales, seed: [self.seed, step], trains: true, proves };
            let mut running = engine.state.clock.running;
            let mut keep = |mb: &MicroBatch, numbers: [&[f64]; 2]| {
                taken.iter_mut().for_each(|taken| taken.add(mb, &self.spec, numbers));
            };
            totals = whole_step::first_seen(engine, &mut batches, how, &mut running, &mut keep)?;
            engine.state.clock.running = running;
            read.clone_from(&batches);
            batches = whole_step::second(batches, || self.plan.step(epoch, place))?;
            engine.drop_from(&mut batches, self.seed, step);
            let own = engine.team.own(&batches);
            engine.by_lanes(batches.drain(own).collect(), |engine, batches| {
                batches.iter().try_for_each(|mb| engine.start_given(mb, &self.spec, scales))
            })?;
        } else {
            let own = engine.team.own(&batches);
            // All ranks know the numbers of all, and what those are compared with.
            let at_once = self.sync.is_some() && engine.team.size() > 1;
            if at_once {
                synced::fill(engine, &mut batches, &self.spec, own.clone())?;
            }
            others[1] = batches.split_off(own.end);
            let own = batches.split_off(own.start);
            others[0] = batches;
            let mut pass = |engine: &mut Engine<'_, B>, mb: MicroBatch| {
                let numbers = engine.start(&mb, &self.spec, scales)?;
                late.push_back((mb, numbers));
                Ok(())
            };
            engine.by_lanes(own, |engine, batches| match self.sync.filter(|_| !at_once) {
                Some(_) => synced::each(engine, batches, &self.spec, &mut pass),
                None => batches.into_iter().try_for_each(|mb| pass(engine, mb)),
            })?;
        }
        let lr = self.schedule.at(step - 1);
        Ok(InFlight { step, epoch, place, lr, begun, others, late, read, totals, taken })
    }

    /// Enqueues the update of the step that was started, and what the reference does after it.
    pub fn update<B: Backend>(
        &self,
        engine: &mut Engine<'_, B>,
        opt: &mut Optimizer<B>,
        this: &InFlight<B>,
    ) -> Result<()> {
        opt.step_of(engine.be, &mut engine.state, this.lr, &engine.team)?;
        match self.sync.filter(|sync| sync.is_due(this.step)) {
            Some(sync) => sync.take(engine.be, &mut engine.state),
            None => Ok(()),
        }
    }
}
