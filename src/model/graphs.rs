//! Passes through the layers as recorded graphs.
//!
//! Between the embedding and the last layer nothing depends on the micro-batch but the content of its tables and the number
//! of rows, of which there are few: attention's tables and grids have a fixed size. So the layers' forward and backward passes, hundreds of
//! launches, are recorded once each and enqueued in one call from then on. The head's shapes follow the number of
//! predictions, and the embedding's backward pass the number of live rows; they stay outside rather than compute padding.
//!
//! A pass runs eagerly when it is met for the first time, so that libraries load and choose what they will, is recorded the
//! second time, and replayed from then on. Whoever calls with another model, other gradients or another number of rows gets
//! a recording of their own, and one that may use memory given back since is never replayed.

use crate::backend::Backend;
use crate::error::{Error, Result};

/// Recordings kept: forward and backward for the eight numbers of rows that a GPU computes, and forward of a reference.
const MOST: usize = 24;

/// What decides the ops of a pass of one workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Backward, not forward.
    pub backward: bool,
    /// Rows that ops compute.
    pub rows: usize,
    /// Whether adapters drop some of their input.
    pub drops: bool,
    /// Where the weights, the rotary table and the gradients are.
    pub buffers: [usize; 3],
}

/// How often passes went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphCounts {
    /// Op by op.
    pub eager: u64,
    /// Recorded.
    pub recorded: u64,
    /// Replayed, the first time after a recording included.
    pub replayed: u64,
}

/// The error of asking for graphs where there are none.
pub fn no_graphs() -> Error {
    Error::usage("`cuda_graphs` on: this device records no graphs; leave it out, or use `device` cuda")
}

/// Recorded passes of one workspace; none while they are not asked for.
pub struct Graphs<B: Backend> {
    on: bool,
    passes: Vec<(Key, Option<B::Graph>)>,
    counts: GraphCounts,
}

impl<B: Backend> Default for Graphs<B> {
    fn default() -> Self {
        Graphs { on: false, passes: Vec::new(), counts: GraphCounts::default() }
    }
}

impl<B: Backend> Graphs<B> {
    /// Records and replays from now on. Errors: a device that cannot.
    pub fn enable(&mut self) -> Result<()> {
        if !B::GRAPHS {
            return Err(no_graphs());
        }
        self.on = true;
        Ok(())
    }

    /// How often passes went which way.
    pub fn counts(&self) -> GraphCounts {
        self.counts
    }

    /// Runs `ops`, whose launches `key` decides, or what was recorded of them; without a key they are not recorded.
    pub(super) fn run(&mut self, be: &B, key: Option<Key>, ops: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(key) = key else {
            self.counts.eager += 1;
            return ops();
        };
        // What can no longer be replayed is as if it had not been met.
        self.passes.retain(|(_, graph)| graph.as_ref().is_none_or(|g| be.is_current(g)));
        let met = self.passes.iter_mut().find(|(k, _)| *k == key);
        let Some((_, graph)) = met.filter(|_| self.on) else {
            self.counts.eager += 1;
            ops()?;
            if self.on {
                self.passes.truncate(MOST - 1);
                self.passes.insert(0, (key, None));
            }
            return Ok(());
        };
        if graph.is_none() {
            *graph = Some(be.record(ops)?);
            self.counts.recorded += 1;
        }
        self.counts.replayed += 1;
        be.replay(graph.as_ref().expect("recorded above"))
    }
}
