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
use crate::batch::{Batches, MicroBatch, Outline};
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
    /// Whether this process keeps what the passes bring of single pairs.
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
        let outlines = self.plan.first_outlines(epoch, place)?;
        let own = engine.team.own(&outlines);
        let mut batches = self.plan.batches(outlines, own)?;
        if let Some(sidecars) = &self.sidecars {
            eval::fill_reference(&mut batches, sidecars, &self.spec, self.ledger)?;
        }
        engine.drop_from(&mut batches.own, self.seed, step);
        let scales = means::scales(batches.all(), &self.spec);
        let proves = self.proves(engine, step);
        let mut totals = if proves { Totals::proving() } else { Totals::default() };
        let mut taken = self.ledger.then(|| Taken::new(step, epoch, &scales));
        let mut late = VecDeque::with_capacity(batches.own.len());
        let mut heard = false;
        if self.spec.scope() == Scope::Step {
            if self.sync.is_some() {
                synced::fill(engine, &mut batches, &self.spec)?;
            }
            let how = Taking { spec: &self.spec, scales, seed: [self.seed, step], trains: true, proves };
            let mut running = engine.state.clock.running;
            let mut keep = |of: &Outline, numbers: [&[f64]; 2]| {
                taken.iter_mut().for_each(|taken| taken.add(of, &self.spec, numbers));
            };
            totals = whole_step::first_seen(engine, &mut batches, how, &mut running, &mut keep)?;
            engine.state.clock.running = running;
            heard = true;
            let mut own = whole_step::second(&batches, || {
                let outlines = self.plan.outlines(epoch, place)?;
                let own = engine.team.own(&outlines);
                self.plan.batches(outlines, own)
            })?;
            engine.drop_from(&mut own, self.seed, step);
            engine.by_lanes(own, |engine, own| {
                own.iter().try_for_each(|mb| engine.start_given(mb, &self.spec, scales))
            })?;
        } else {
            // All ranks know the numbers of all, and what those are compared with.
            let at_once = self.sync.is_some() && engine.team.size() > 1;
            if at_once {
                synced::fill(engine, &mut batches, &self.spec)?;
            }
            let own = std::mem::take(&mut batches.own);
            let mut pass = |engine: &mut Engine<'_, B>, mb: MicroBatch| {
                let numbers = engine.start(&mb, &self.spec, scales)?;
                late.push_back((mb, numbers));
                Ok(())
            };
            engine.by_lanes(own, |engine, own| match self.sync.filter(|_| !at_once) {
                Some(_) => synced::each(engine, own, &self.spec, &mut pass),
                None => own.into_iter().try_for_each(|mb| pass(engine, mb)),
            })?;
        }
        let lr = self.schedule.at(step - 1);
        Ok(InFlight { step, epoch, place, lr, begun, late, batches, heard, totals, taken })
    }

    /// The micro-batches of a step, other ranks' too, as those have them.
    pub fn whole(&self, batches: &Batches) -> Result<Vec<MicroBatch>> {
        let mut whole = Batches::from(self.plan.whole(batches)?);
        if let Some(sidecars) = &self.sidecars {
            eval::fill_reference(&mut whole, sidecars, &self.spec, true)?;
        }
        Ok(whole.own)
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
