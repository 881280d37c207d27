//! A step whose numbers may still be on their way.

use super::engine::{Engine, Late};
use super::ledger::Taken;
use super::metrics::Totals;
use crate::backend::Backend;
use crate::batch::{Batches, MicroBatch};
use crate::error::Result;
use crate::loss::LossSpec;
use std::collections::VecDeque;
use std::time::Instant;

/// A step whose passes were enqueued.
pub struct InFlight<B: Backend> {
    /// From 1.
    pub step: u64,
    /// Its epoch, from 0.
    pub epoch: u64,
    /// Its place in the epoch, from 0.
    pub place: u64,
    /// Its learning rate.
    pub lr: f64,
    /// When its host work began.
    pub begun: Instant,
    /// This rank's micro-batches whose numbers were not read yet, in order.
    pub late: VecDeque<(MicroBatch, Late<B>)>,
    /// Those whose numbers were read, in order, and what is known of other ranks'.
    pub batches: Batches,
    /// Whether the numbers of all ranks were heard of.
    pub heard: bool,
    /// What was read.
    pub totals: Totals,
    /// What was read of single pairs, where a ledger is kept.
    pub taken: Option<Taken>,
}

impl<B: Backend> InFlight<B> {
    /// Waits for the rest of the numbers.
    pub fn collect(&mut self, engine: &mut Engine<'_, B>, spec: &LossSpec) -> Result<()> {
        if engine.team.size() > 1 {
            return self.hear(engine, spec);
        }
        while let Some((mb, late)) = self.late.pop_front() {
            let (totals, taken) = (&mut self.totals, &mut self.taken);
            engine.read(late, |responses, pairs| {
                totals.add(mb.outline(), spec, responses, pairs);
                taken.iter_mut().for_each(|taken| taken.add(mb.outline(), spec, [responses, pairs]));
            })?;
            self.batches.own.push(mb);
        }
        Ok(())
    }

    /// [`InFlight::collect`] of several ranks: each brings its own, and all add up the same numbers in the same order.
    fn hear(&mut self, engine: &mut Engine<'_, B>, spec: &LossSpec) -> Result<()> {
        if std::mem::replace(&mut self.heard, true) {
            return Ok(());
        }
        let mut own = Vec::with_capacity(self.late.len());
        while let Some((mb, late)) = self.late.pop_front() {
            own.push(engine.read(late, |responses, pairs| (responses.to_vec(), pairs.to_vec()))?);
            self.batches.own.push(mb);
        }
        for (of, (responses, pairs)) in self.batches.all().zip(engine.team.numbers(&self.batches, own)?) {
            self.totals.add(of, spec, &responses, &pairs);
            self.taken.iter_mut().for_each(|taken| taken.add(of, spec, [&responses, &pairs]));
        }
        Ok(())
    }
}
