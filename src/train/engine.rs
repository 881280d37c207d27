//! One model on one device: micro-batches in, sums and gradients out.

use super::lane_sums::{LaneSums, full};
use super::metrics::Totals;
use super::optim::OptimOptions;
use super::state::State;
use super::team::Team;
use crate::backend::dropout;
use crate::backend::{Backend, Float, HeadMode, Mark, PAIR_STATS, RESPONSE_STATS};
use crate::batch::{Capacity, Chunk, MicroBatch};
use crate::error::Result;
use crate::loss::{LossSpec, Scales};
use crate::model::graphs::GraphCounts;
use crate::model::{self, Gradients, Keep, Model, Workspace};
use std::ops::Range;

/// What an [`Engine`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Forward passes.
    Score,
    /// Forward and backward passes.
    Train,
    /// [`Purpose::Train`] in more memory: what its backward pass would compute again is kept.
    TrainInFull,
    /// [`Purpose::Train`] in less memory: only each layer's input is kept, and its backward pass computes the layer again.
    Recompute,
}

impl Purpose {
    fn keep(self) -> Keep {
        match self {
            Purpose::Score => Keep::Nothing,
            Purpose::Train => Keep::Layers,
            Purpose::TrainInFull => Keep::Outputs,
            Purpose::Recompute => Keep::Inputs,
        }
    }
}

/// Numbers of a micro-batch on their way to the host: what [`Engine::collect`] is to be called with, in order.
#[must_use]
pub struct Late<B: Backend> {
    page: B::Readback,
    /// How many are of responses, and in all.
    responses: usize,
    len: usize,
}

/// A model with the memory that its passes need; nothing is allocated on the device after [`Engine::new`].
///
/// `accumulate`, `evaluate` and `score` wait for their numbers. Their halves `start*` and `collect*` let the host go on
/// while the device works; what was started first is collected first.
pub struct Engine<'a, B: Backend> {
    /// The device.
    pub be: &'a B,
    /// The policy, or the reference; with gradients where it trains.
    pub state: State<B>,
    ws: Workspace<B>,
    /// Pages that nothing is on its way to.
    pages: Vec<B::Readback>,
    acc: Vec<B::Acc>,
    /// With whom it takes steps.
    pub team: Team<'a>,
    pub(super) sums: Option<LaneSums<B>>,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// Reserves memory for any micro-batch within `capacity`.
    pub fn new(be: &'a B, model: Model<B>, capacity: Capacity, purpose: Purpose) -> Result<Self> {
        let row = model.config.vocab_size * size_of::<B::Acc>();
        Self::with_head_rows(be, model, capacity, purpose, (B::LOGITS_BYTES / row).max(1))
    }

    /// [`Engine::new`] with gradients as `optim` has them.
    pub fn for_optimizer(
        be: &'a B,
        model: Model<B>,
        capacity: Capacity,
        purpose: Purpose,
        optim: &OptimOptions,
    ) -> Result<Self> {
        let row = model.config.vocab_size * size_of::<B::Acc>();
        Self::over_rows(be, model, capacity, (purpose, optim), (B::LOGITS_BYTES / row).max(1))
    }

    /// [`Engine::new`] with a logits buffer of `head_rows` rows.
    pub fn with_head_rows(
        be: &'a B,
        model: Model<B>,
        capacity: Capacity,
        purpose: Purpose,
        head_rows: usize,
    ) -> Result<Self> {
        Self::over(be, State::new(be, model, purpose != Purpose::Score)?, capacity, purpose, head_rows)
    }

    /// [`Engine::for_optimizer`] with a logits buffer of `head_rows` rows.
    pub(super) fn over_rows(
        be: &'a B,
        model: Model<B>,
        capacity: Capacity,
        (purpose, optim): (Purpose, &OptimOptions),
        head_rows: usize,
    ) -> Result<Self> {
        Self::over(be, State::training(be, model, optim.narrow_gradients())?, capacity, purpose, head_rows)
    }

    fn over(be: &'a B, state: State<B>, capacity: Capacity, purpose: Purpose, head_rows: usize) -> Result<Self> {
        Ok(Self {
            be,
            ws: Workspace::keeping(be, &state.model, capacity, head_rows, purpose.keep())?,
            pages: Vec::new(),
            acc: Vec::with_capacity(capacity.predictions),
            team: Team::ALONE,
            sums: None,
            state,
        })
    }

    /// The model; what the engine worked with is free again.
    pub fn into_model(self) -> Model<B> {
        self.state.model
    }

    /// Sets the gradients to zero.
    pub fn clear_grads(&mut self) -> Result<()> {
        match &mut self.state.grads {
            Some(grads) => grads.clear(self.be, &self.state.model.table),
            None => Ok(()),
        }
    }

    /// Records the layers' passes as graphs and replays them from now on. Errors: a device that cannot.
    pub fn use_graphs(&mut self) -> Result<()> {
        self.ws.graphs.enable()
    }

    /// How often passes were recorded and replayed.
    pub fn graph_counts(&self) -> GraphCounts {
        self.ws.graphs.counts()
    }

    /// Makes passes over `batches` those of training, of step `step` of a run of `seed`: adapters with dropout drop some of their
    /// input. The same step drops the same, however it is cut into micro-batches.
    pub fn drop_from(&self, batches: &mut [MicroBatch], seed: u64, step: u64) {
        if self.drops() {
            batches.iter_mut().for_each(|mb| mb.draw_from(dropout::of_step(seed, step)));
        }
    }

    /// Whether training drops anything.
    pub fn drops(&self) -> bool {
        self.state.model.config.adapter.is_some_and(|a| a.dropout > 0.0)
    }

    /// Adds `d(scale * sum of losses)/d(parameters)` of one micro-batch to the gradients, and its numbers to `totals`.
    pub fn accumulate(
        &mut self,
        mb: &MicroBatch,
        spec: &LossSpec,
        scales: impl Into<Scales>,
        totals: &mut Totals,
    ) -> Result<()> {
        let late = self.start(mb, spec, scales)?;
        self.collect(late, mb, spec, totals)
    }

    /// [`Engine::accumulate`] without waiting for the numbers.
    pub fn start(&mut self, mb: &MicroBatch, spec: &LossSpec, scales: impl Into<Scales>) -> Result<Late<B>> {
        self.train(mb, (spec, scales.into(), false))?;
        self.read_stats(mb)
    }

    /// The second time through the model of a loss of the whole step: gradients from the coefficients that `mb` was given, and
    /// from those of the losses in `spec` that see a group. Its numbers are known from the first time.
    pub fn start_given(&mut self, mb: &MicroBatch, spec: &LossSpec, scales: Scales) -> Result<()> {
        self.train(mb, (spec, scales, true))
    }

    fn train(&mut self, mb: &MicroBatch, loss: (&LossSpec, Scales, bool)) -> Result<()> {
        self.pass(mb, loss, Purpose::Train)?;
        let Self { be, state: State { model, grads, shares, .. }, ws, team, sums, .. } = self;
        let grads = grads.as_mut().expect("an engine made to train has gradients");
        let last = sums.as_mut().is_some_and(LaneSums::is_last);
        let Some(sums) = sums.as_mut().filter(|_| last) else {
            return model::backward(*be, model, ws, grads, None);
        };
        let mut tell = |grads: &mut Gradients<B>, layer| sums.send(*be, team, shares, full(grads)?, Some(layer));
        model::backward(*be, model, ws, grads, Some(&mut tell))
    }

    /// The numbers of one micro-batch, without gradients.
    pub fn evaluate(&mut self, mb: &MicroBatch, spec: &LossSpec, totals: &mut Totals) -> Result<()> {
        let late = self.start_evaluation(mb, spec)?;
        self.collect(late, mb, spec, totals)
    }

    /// [`Engine::evaluate`] without waiting for the numbers.
    pub fn start_evaluation(&mut self, mb: &MicroBatch, spec: &LossSpec) -> Result<Late<B>> {
        self.pass(mb, (spec, 1.0.into(), false), Purpose::Score)?;
        self.read_stats(mb)
    }

    /// Waits for the numbers of `mb`, and for nothing enqueued after them, and adds them to `totals`.
    pub fn collect(&mut self, late: Late<B>, mb: &MicroBatch, spec: &LossSpec, totals: &mut Totals) -> Result<()> {
        self.read(late, |responses, pairs| totals.add(mb.outline(), spec, responses, pairs))
    }

    /// Waits for the numbers of a micro-batch: those of its responses ([`RESPONSE_STATS`] each) and of its pairs
    /// ([`PAIR_STATS`] each).
    pub fn read<T>(&mut self, mut late: Late<B>, with: impl FnOnce(&[f64], &[f64]) -> T) -> Result<T> {
        let (responses, pairs) = self.be.arrived(&mut late.page)?[..late.len].split_at(late.responses);
        let read = with(responses, pairs);
        self.pages.push(late.page);
        Ok(read)
    }

    /// Sum of log-probs of every response of `mb`.
    pub fn score(&mut self, mb: &MicroBatch) -> Result<Vec<f64>> {
        let late = self.start_score(mb)?;
        self.collect_score(late)
    }

    /// [`Engine::score`] without waiting for the numbers.
    pub fn start_score(&mut self, mb: &MicroBatch) -> Result<Late<B>> {
        self.start_evaluation(mb, &LossSpec::STATISTICS)
    }

    /// Waits for what [`Engine::start_score`] began.
    pub fn collect_score(&mut self, late: Late<B>) -> Result<Vec<f64>> {
        self.read(late, |responses, _| responses.chunks_exact(RESPONSE_STATS).map(|r| r[0]).collect())
    }

    /// [`Engine::start_score`] under the state's synced reference: with `spec`'s sums over the tokens that a pair's responses
    /// both have, where it reads them. On the device it comes after every update and sync that was enqueued before.
    pub fn start_reference(&mut self, mb: &MicroBatch, spec: &LossSpec) -> Result<Late<B>> {
        let mut sums = LossSpec::STATISTICS;
        sums.ld_alpha = spec.ld_alpha;
        // Its weights take the policy's place for the pass: all else that a pass reads is the same of both.
        self.exchange();
        let late = self.start_evaluation(mb, &sums);
        self.exchange();
        late
    }

    /// The largest micro-batch that it has room for.
    pub fn capacity(&self) -> Capacity {
        self.ws.capacity
    }

    /// Puts the synced reference's weights in the place of the policy's, or those back.
    pub(super) fn exchange(&mut self) {
        let reference = self.state.reference.as_mut().expect("a state with a synced reference");
        std::mem::swap(&mut self.state.model.weights, &mut reference.weights);
    }

    /// Waits for what [`Engine::start_reference`] began over `mb`, and gives it to its responses and pairs.
    pub fn collect_reference(&mut self, late: Late<B>, mb: &mut MicroBatch) -> Result<()> {
        self.read(late, |responses, pairs| {
            let sums = responses.chunks_exact(RESPONSE_STATS);
            mb.outline_mut().responses_mut().zip(sums).for_each(|(slot, stats)| slot.ref_logp = stats[0]);
            let heads = pairs.chunks_exact(PAIR_STATS);
            mb.outline_mut().pairs_mut().zip(heads).for_each(|(slot, stats)| slot.ref_heads = [stats[4], stats[5]]);
        })
    }

    /// Log-probs per prediction of the last pass over `mb`.
    pub fn token_logps(&mut self, mb: &MicroBatch) -> Result<Vec<f64>> {
        let n = mb.predictions().len();
        self.acc.resize(n, B::Acc::from_f64(0.0));
        self.be.download(&mut self.acc, self.be.view(&self.ws.logp, 0..n))?;
        Ok(self.acc.iter().map(|x| x.to_f64()).collect())
    }

    /// Forward, head and loss; with `Train` also the head's backward, so that [`model::backward`] can follow.
    fn pass(&mut self, mb: &MicroBatch, loss: (&LossSpec, Scales, bool), purpose: Purpose) -> Result<()> {
        self.be.marked(Mark::Stage("load"), || self.ws.load_batch(self.be, mb))?;
        model::forward(self.be, &self.state.model, &mut self.ws)?;
        for chunk in self.ws.chunks.clone() {
            if chunk.predictions.len() > self.ws.head_rows {
                self.oversized(&chunk, loss, purpose)?;
                continue;
            }
            self.head(&chunk, purpose)?;
            model::loss(self.be, &mut self.ws, &chunk, loss)?;
            if purpose == Purpose::Train {
                self.head_backward(&chunk)?;
            }
        }
        Ok(())
    }

    /// A group larger than the logits buffer: statistics of all its parts first, for the coefficients; then each
    /// part's logits once more, for the gradient.
    fn oversized(&mut self, group: &Chunk, loss: (&LossSpec, Scales, bool), purpose: Purpose) -> Result<()> {
        let (rows, end) = (self.ws.head_rows, group.predictions.end);
        let part = |at: usize| Chunk { predictions: at..(at + rows).min(end), responses: 0..0, pairs: 0..0 };
        let parts: Range<usize> = group.predictions.clone();
        for at in parts.clone().step_by(rows) {
            self.head(&part(at), Purpose::Score)?;
        }
        model::loss(self.be, &mut self.ws, group, loss)?;
        if purpose == Purpose::Train {
            for at in parts.step_by(rows) {
                self.head(&part(at), Purpose::Train)?;
                self.head_backward(&part(at))?;
            }
        }
        Ok(())
    }

    fn head(&mut self, chunk: &Chunk, purpose: Purpose) -> Result<()> {
        let mode = if purpose == Purpose::Train { HeadMode::Train } else { HeadMode::Score };
        model::head(self.be, &self.state.model, &mut self.ws, chunk, mode)
    }

    fn head_backward(&mut self, chunk: &Chunk) -> Result<()> {
        let grads = self.state.grads.as_mut().expect("an engine made to train has gradients");
        model::head_backward(self.be, &self.state.model, &mut self.ws, chunk, grads)
    }

    /// Sends the statistics of the micro-batch on their way. They are there before anything enqueued later is done.
    fn read_stats(&mut self, mb: &MicroBatch) -> Result<Late<B>> {
        let (r, p) = (mb.responses().len() * RESPONSE_STATS, mb.pairs().len() * PAIR_STATS);
        let mut page = match self.pages.pop() {
            Some(page) => page,
            None => {
                let c = &self.ws.capacity;
                self.be.readback(c.responses * RESPONSE_STATS + c.pairs * PAIR_STATS)?
            }
        };
        let parts = [self.be.view(&self.ws.response_stats, 0..r), self.be.view(&self.ws.pair_stats, 0..p)];
        self.be.read_back(&mut page, &parts)?;
        Ok(Late { page, responses: r, len: r + p })
    }
}
