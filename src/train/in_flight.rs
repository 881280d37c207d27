//! A step whose numbers may still be on their way.

use super::engine::{Engine, Late};
use super::ledger::Taken;
use super::metrics::Totals;
use crate::backend::Backend;
use crate::batch::MicroBatch;
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
    /// Micro-batches whose numbers were not read yet, in order.
    pub late: VecDeque<(MicroBatch, Late<B>)>,
    /// Micro-batches whose numbers were read, in order.
    pub read: Vec<MicroBatch>,
    /// What was read.
    pub totals: Totals,
    /// What was read of single pairs, where a ledger is kept.
    pub taken: Option<Taken>,
}

impl<B: Backend> InFlight<B> {
    /// Waits for the rest of the numbers.
    pub fn collect(&mut self, engine: &mut Engine<'_, B>, spec: &LossSpec) -> Result<()> {
        while let Some((mb, late)) = self.late.pop_front() {
            let (totals, taken) = (&mut self.totals, &mut self.taken);
            engine.read(late, |responses, pairs| {
                totals.add(&mb, spec, responses, pairs);
                taken.iter_mut().for_each(|taken| taken.add(&mb, spec, [responses, pairs]));
            })?;
            self.read.push(mb);
        }
        Ok(())
    }
}
