//! A step's gradient, lane by lane, and its numbers, by all ranks.

use super::carrier::Ends;
use super::engine::Engine;
use super::lane_sums::{LaneSums, full};
use super::state::State;
use super::team::{Numbers, Team};
use crate::backend::Backend;
use crate::batch::{Batches, MicroBatch};
use crate::error::Result;
use crate::loss::LossSpec;
use crate::model::Gradients;

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
        if self.sums.is_none() {
            self.clear_grads()?;
            return pass(self, own);
        }
        let (mut rest, lanes) = (own, self.team.ranks().own_lanes());
        for lane in lanes.clone() {
            let later = rest.split_off(rest.partition_point(|mb| mb.lane() <= lane));
            let last = lane + 1 == lanes.end && self.team.size() > 1;
            let (be, sums, state) = self.lanes();
            sums.set_aside(be, full(grads(state))?)?;
            self.clear_grads()?;
            if last {
                return self.last_lane((lane, rest.len()), |engine| pass(engine, rest));
            }
            pass(self, rest)?;
            self.settle()?;
            let (be, sums, state) = self.lanes();
            sums.add(be, lane, full(grads(state))?)?;
            rest = later;
        }
        self.end_lanes()
    }

    fn end_lanes(&mut self) -> Result<()> {
        let (team, (be, sums, State { shares, grads, .. })) = (self.team, self.lanes());
        sums.end(be, &team, shares, full(grads.as_mut().expect(TRAINS))?)
    }

    /// Goes through the last lane by `pass`, which makes that many passes, while what is whole of the gradients travels to the other ranks.
    fn last_lane(&mut self, of: (usize, usize), pass: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let team = self.team;
        std::thread::scope(|scope| {
            let (_, sums, State { model, shares, .. }) = self.lanes();
            let ends = sums.begin(scope, team, of, (&model.table, shares))?;
            pass(self)?;
            self.settle()?;
            self.end_lanes()?;
            ends.into_iter().for_each(Ends::well);
            Ok(())
        })
    }

    /// Sets to zero what no pass of a lane has set, and what is not to be looked at.
    fn settle(&mut self) -> Result<()> {
        let (be, State { model, grads, .. }) = (self.be, &mut self.state);
        let grads = grads.as_mut().expect(TRAINS);
        grads.settle(be, &model.table)?;
        model.table.unused.iter().try_for_each(|frozen| be.clear(grads.vectors(be, frozen.clone())))
    }

    fn lanes(&mut self) -> (&'a B, &mut LaneSums<B>, &mut State<B>) {
        (self.be, self.sums.as_mut().expect("there are several lanes"), &mut self.state)
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

const TRAINS: &str = "an engine made to train has gradients";

fn grads<B: Backend>(state: &mut State<B>) -> &mut Gradients<B> {
    state.grads.as_mut().expect(TRAINS)
}
