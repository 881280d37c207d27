//! A step's gradient, lane by lane, and its numbers, by all ranks.

use super::engine::Engine;
use super::team::{LaneSums, Numbers};
use crate::backend::Backend;
use crate::batch::MicroBatch;
use crate::comm::tree::Nodes;
use crate::error::{Error, Result};
use crate::loss::LossSpec;
use crate::model::Sums;
use std::ops::Range;

impl<B: Backend> Engine<'_, B> {
    /// Goes through `own`, this rank's micro-batches of a step, by `pass`, and leaves the gradient of the whole step.
    pub(super) fn by_lanes(
        &mut self,
        own: Vec<MicroBatch>,
        mut pass: impl FnMut(&mut Self, Vec<MicroBatch>) -> Result<()>,
    ) -> Result<()> {
        if self.team.lanes == 1 {
            self.clear_grads()?;
            return pass(self, own);
        }
        let mut rest = own;
        for lane in self.team.own_lanes() {
            let later = rest.split_off(rest.partition_point(|mb| mb.lane() <= lane));
            self.clear_grads()?;
            pass(self, rest)?;
            self.keep_lane(lane)?;
            rest = later;
        }
        self.sum_lanes()
    }

    /// Takes the gradients as those of `lane`.
    fn keep_lane(&mut self, lane: usize) -> Result<()> {
        let lanes = self.team.lanes;
        let (table, n) = (&self.state.model.table, self.state.model.table.trained_len);
        let grads = self.state.grads.as_mut().expect("an engine made to train has gradients");
        grads.settle(self.be, table)?;
        let Sums::Full(all) = &grads.sums else { return Err(narrow()) };
        let sums = self.sums.get_or_insert_with(|| LaneSums { nodes: Nodes::new(lanes), whole: Vec::new() });
        sums.nodes.push(lane, n, |to| self.be.download(to, self.be.view(all, 0..n)))
    }

    /// Makes the gradients the sum over all lanes, those of the other ranks too.
    fn sum_lanes(&mut self) -> Result<()> {
        let n = self.state.model.table.trained_len;
        let grads = self.state.grads.as_mut().expect("an engine made to train has gradients");
        let Sums::Full(all) = &mut grads.sums else { return Err(narrow()) };
        let Some(sums) = &mut self.sums else { return Ok(()) };
        sums.whole.resize(n, bytemuck::Zeroable::zeroed());
        sums.nodes.sum(self.team.comm, &mut sums.whole, "add up gradients")?;
        self.be.upload(self.be.view_mut(all, 0..n), &sums.whole)
    }

    /// The numbers of all `batches`, none of which trains, computed by all ranks.
    pub(super) fn evaluated(
        &mut self,
        batches: &[MicroBatch],
        spec: &LossSpec,
        mine: Range<usize>,
    ) -> Result<Vec<Numbers>> {
        let mut own = Vec::with_capacity(mine.len());
        // One micro-batch is always under way while the host prepares the next.
        let mut before = None;
        for mb in &batches[mine] {
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

fn narrow() -> Error {
    Error::usage("`gradient_dtype` bf16: gradients of several lanes are added up in f32; leave it out")
}
