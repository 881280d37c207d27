//! One model on one device: micro-batches in, sums and gradients out.

use super::metrics::Totals;
use crate::backend::{Backend, Capacity, Chunk, Float, HeadMode, PAIR_STATS, RESPONSE_STATS};
use crate::data::batch::MicroBatch;
use crate::error::Result;
use crate::loss::{LossSpec, LossType};
use crate::model::{self, Model, Workspace};
use std::ops::Range;

/// Bytes of logits alive at a time: the head works in chunks of as many rows as fit.
const LOGITS_BYTES: usize = 128 << 20;

/// What an [`Engine`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Forward passes.
    Score,
    /// Forward and backward passes.
    Train,
}

/// A model with the memory that its passes need; nothing is allocated on the device after [`Engine::new`].
pub struct Engine<'a, B: Backend> {
    /// The device.
    pub be: &'a B,
    /// The policy, or the reference.
    pub model: Model<B>,
    /// Parameter gradients, in the arena's layout.
    pub grads: Option<B::Buf<B::Acc>>,
    ws: Workspace<B>,
    host: Vec<f64>,
    acc: Vec<B::Acc>,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// Reserves memory for any micro-batch within `capacity`.
    pub fn new(be: &'a B, model: Model<B>, capacity: Capacity, purpose: Purpose) -> Result<Self> {
        let row = model.config.vocab_size * size_of::<B::Acc>();
        Self::with_head_rows(be, model, capacity, purpose, (LOGITS_BYTES / row).max(1))
    }

    /// [`Engine::new`] with a logits buffer of `head_rows` rows.
    pub fn with_head_rows(
        be: &'a B,
        model: Model<B>,
        capacity: Capacity,
        purpose: Purpose,
        head_rows: usize,
    ) -> Result<Self> {
        let train = purpose == Purpose::Train;
        Ok(Self {
            be,
            grads: if train { Some(be.zeros("gradients", model.table.len)?) } else { None },
            ws: Workspace::new(be, &model, capacity, head_rows, train)?,
            host: Vec::with_capacity(capacity.responses * RESPONSE_STATS + capacity.pairs * PAIR_STATS),
            acc: Vec::with_capacity(capacity.predictions),
            model,
        })
    }

    /// Sets the gradients to zero.
    pub fn clear_grads(&mut self) -> Result<()> {
        let n = self.model.table.len;
        match &mut self.grads {
            Some(g) => self.be.clear(self.be.view_mut(g, 0..n)),
            None => Ok(()),
        }
    }

    /// Adds `d(scale * sum of losses)/d(parameters)` of one micro-batch to the gradients, and its numbers to `totals`.
    pub fn accumulate(&mut self, mb: &MicroBatch, spec: &LossSpec, scale: f64, totals: &mut Totals) -> Result<()> {
        self.pass(mb, spec, scale, Purpose::Train)?;
        let grads = self.grads.as_mut().expect("an engine made to train has gradients");
        model::backward(self.be, &self.model, &mut self.ws, grads)?;
        self.collect(mb, totals)
    }

    /// The numbers of one micro-batch, without gradients.
    pub fn evaluate(&mut self, mb: &MicroBatch, spec: &LossSpec, totals: &mut Totals) -> Result<()> {
        self.pass(mb, spec, 1.0, Purpose::Score)?;
        self.collect(mb, totals)
    }

    /// Sum of log-probs of every response of `mb`.
    pub fn score(&mut self, mb: &MicroBatch) -> Result<Vec<f64>> {
        let spec = LossSpec { loss_type: LossType::Sft, beta: 1.0, label_smoothing: 0.0 };
        self.pass(mb, &spec, 1.0, Purpose::Score)?;
        self.read_stats(mb)?;
        let sums = self.host[..mb.responses.len() * RESPONSE_STATS].chunks_exact(RESPONSE_STATS);
        Ok(sums.map(|r| r[0]).collect())
    }

    /// Log-probs per prediction of the last pass over `mb`.
    pub fn token_logps(&mut self, mb: &MicroBatch) -> Result<Vec<f64>> {
        let n = mb.predictions.len();
        self.acc.resize(n, B::Acc::from_f64(0.0));
        self.be.download(&mut self.acc, self.be.view(&self.ws.logp, 0..n))?;
        Ok(self.acc.iter().map(|x| x.to_f64()).collect())
    }

    /// Forward, head and loss; with `Train` also the head's backward, so that [`model::backward`] can follow.
    fn pass(&mut self, mb: &MicroBatch, spec: &LossSpec, scale: f64, purpose: Purpose) -> Result<()> {
        self.ws.load_batch(self.be, mb)?;
        model::forward(self.be, &self.model, &mut self.ws)?;
        for chunk in self.ws.chunks.clone() {
            if chunk.predictions.len() > self.ws.head_rows {
                self.oversized(&chunk, spec, scale, purpose)?;
                continue;
            }
            self.head(&chunk, purpose)?;
            model::loss(self.be, &mut self.ws, &chunk, spec, scale)?;
            if purpose == Purpose::Train {
                self.head_backward(&chunk)?;
            }
        }
        Ok(())
    }

    /// A group larger than the logits buffer: statistics of all its parts first, for the coefficients; then each
    /// part's logits once more, for the gradient.
    fn oversized(&mut self, group: &Chunk, spec: &LossSpec, scale: f64, purpose: Purpose) -> Result<()> {
        let (rows, end) = (self.ws.head_rows, group.predictions.end);
        let part = |at: usize| Chunk { predictions: at..(at + rows).min(end), responses: 0..0, pairs: 0..0 };
        let parts: Range<usize> = group.predictions.clone();
        for at in parts.clone().step_by(rows) {
            self.head(&part(at), Purpose::Score)?;
        }
        model::loss(self.be, &mut self.ws, group, spec, scale)?;
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
        model::head(self.be, &self.model, &mut self.ws, chunk, mode)
    }

    fn head_backward(&mut self, chunk: &Chunk) -> Result<()> {
        let grads = self.grads.as_mut().expect("an engine made to train has gradients");
        model::head_backward(self.be, &self.model, &mut self.ws, chunk, grads)
    }

    fn read_stats(&mut self, mb: &MicroBatch) -> Result<usize> {
        let (r, p) = (mb.responses.len() * RESPONSE_STATS, mb.pairs.len() * PAIR_STATS);
        self.host.resize(r + p, 0.0);
        let (responses, pairs) = self.host.split_at_mut(r);
        self.be.download(responses, self.be.view(&self.ws.response_stats, 0..r))?;
        self.be.download(pairs, self.be.view(&self.ws.pair_stats, 0..p))?;
        Ok(r)
    }

    fn collect(&mut self, mb: &MicroBatch, totals: &mut Totals) -> Result<()> {
        let r = self.read_stats(mb)?;
        let (responses, pairs) = self.host.split_at(r);
        totals.add(mb, responses, pairs);
        Ok(())
    }
}
