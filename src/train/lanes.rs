//! A step's gradient, lane by lane, and its numbers, by all ranks.

use super::engine::Engine;
use super::lane_sums::LaneSums;
use super::state::State;
use super::team::{Numbers, Team};
use crate::backend::Backend;
use crate::batch::{Batches, MicroBatch};
use crate::error::{Error, Result};
use crate::loss::LossSpec;
use crate::model::{Gradients, Sums};

impl<'a, B: Backend> Engine<'a, B> {
    /// Takes steps with `team` from here on.
    pub(super) fn join(&mut self, team: Team<'a>) -> Result<()> {
        self.sums = LaneSums::new(self.be, self.state.model.table.trained_len, team.ranks())?;
        self.team = team;
        Ok(())
    }

    /// Goes through `own`, this rank's micro-batches of a step, by `pass`, and leaves the gradient of the whole step: where there
    /// are several lanes, in this rank's share.
    pub(super) fn by_lanes(
        &mut self,
        own: Vec<MicroBatch>,
        mut pass: impl FnMut(&mut Self, Vec<MicroBatch>) -> Result<()>,
    ) -> Result<()> {
        let Some(mut sums) = self.sums.take() else {
            self.clear_grads()?;
            return pass(self, own);
        };
        let mut rest = own;
        for lane in self.team.ranks().own_lanes() {
            let later = rest.split_off(rest.partition_point(|mb| mb.lane() <= lane));
            sums.set_aside(self.be, full(&mut self.state.grads)?)?;
            self.clear_grads()?;
            pass(self, rest)?;
            let (be, table) = (self.be, &self.state.model.table);
            let grads = self.state.grads.as_mut().expect("an engine made to train has gradients");
            grads.settle(be, table)?;
            for frozen in &table.unused {
                be.clear(grads.vectors(be, frozen.clone()))?;
            }
            sums.add(be, lane, full(&mut self.state.grads)?)?;
            rest = later;
        }
        let State { shares, grads, .. } = &mut self.state;
        sums.end(self.be, &self.team, shares, full(grads)?)?;
        self.sums = Some(sums);
        Ok(())
    }

    /// The numbers of all `batches`, none of which trains, each rank computing its own.
    pub(super) fn evaluated(&mut self, batches: &Batches, spec: &LossSpec) -> Result<Vec<Numbers>> {
        let mut own = Vec::with_capacity(batches.own.len());
        // One micro-batch is always under way while the host prepares the next.
        let mut before = None;
        for mb in &batches.own {
            let late = self.start_evaluation(mb, spec)?;
            if let Some(late) = before.replace(late) {
                own.push(self.read(late, |responses, pairs| (responses.to_vec(), pairs.to_vec()))?);
            }
        }
        if let Some(late) = before {
            own.push(self.read(late, |responses, pairs| (responses.to_vec(), pairs.to_vec()))?);
        }
        self.team.numbers(batches, own)
    }
}

/// The gradients, all in accumulation precision.
fn full<B: Backend>(grads: &mut Option<Gradients<B>>) -> Result<&mut B::Buf<B::Acc>> {
    match &mut grads.as_mut().expect("an engine made to train has gradients").sums {
        Sums::Full(all) => Ok(all),
        Sums::Narrow { .. } => {
            Err(Error::usage("`gradient_dtype` bf16: gradients of several lanes are added up in f32; leave it out"))
        }
    }
}
