//! Everything a forward and backward pass writes, allocated once: nothing is allocated inside a step.
//!
//! Kept per layer ([`Keep::Layers`]): the residual stream before attention and before the MLP, both `rstd`s, `qkv` after
//! the rotary embedding, attention's output and log-sum-exp, and the MLP's gates and ups. The outputs of norms and SwiGLU
//! are kept too where there is room ([`Keep::Outputs`]); else the kernels of their gradients leave them behind, where the
//! gradient of the output was, for the products that read them. With [`Keep::Inputs`] only each layer's input is kept: the
//! backward pass computes the layer again from it, by the same ops. All to the same bits. Layers below the lowest of which
//! anything trains are never gone through backward: whatever is kept, they take turns in one layer's memory.
//!
//! Above the last layer's attention only the rows that predict something are computed: they are gathered there, one for
//! every prediction, and what follows (output projection, MLP, final norm) has `predictions` rows and not `rows`.

use super::config::ModelConfig;
use super::graphs::Graphs;
use super::load::Model;
use super::low_rank::LowRank;
use super::nf4::{self, Dense};
use super::params::Stage;
use crate::backend::{Backend, PAIR_STATS, RESPONSE_STATS};
use crate::batch::{Capacity, Chunk, MicroBatch, chunks};
use crate::error::{Error, Result};

/// What the q/k norm of one layer keeps.
pub struct QkNormActs<B: Backend> {
    /// `[rows, q_width + kv_width]`: queries and keys before the norm.
    pub raw: B::Buf<B::Act>,
    /// `[rows, heads + kv_heads]`.
    pub rstd: B::Buf<B::Acc>,
}

/// What the products of a layer's weights read in the backward pass beside `attn`.
pub struct Outputs<B: Backend> {
    /// Output of the norm before attention, `[rows, hidden]`.
    pub norm1: B::Buf<B::Act>,
    /// Output of the norm before the MLP, `[mlp rows, hidden]`.
    pub norm2: B::Buf<B::Act>,
    /// Output of SwiGLU, `[mlp rows, ffn]`.
    pub act: B::Buf<B::Act>,
}

/// What one layer keeps; `rows` is the capacity's slots, `mlp rows` its predictions in the last layer and else its slots.
pub struct LayerActs<B: Backend> {
    /// `[rows]`.
    pub rstd1: B::Buf<B::Acc>,
    /// `[rows, qkv_width]`, after bias, q/k norm and rotary embedding.
    pub qkv: B::Buf<B::Act>,
    /// Qwen3's q/k norm.
    pub qk_norm: Option<QkNormActs<B>>,
    /// `[rows, q_width]`.
    pub attn: B::Buf<B::Act>,
    /// `[rows, heads]`.
    pub lse: B::Buf<B::Acc>,
    /// `[mlp rows]`.
    pub rstd2: B::Buf<B::Acc>,
    /// `[mlp rows, 2 ffn]`; becomes its own gradient in the backward pass.
    pub gate_up: B::Buf<B::Act>,
    /// What is computed again without it.
    pub outputs: Option<Outputs<B>>,
}

impl<B: Backend> LayerActs<B> {
    fn new(be: &B, model: &Model<B>, rows: usize, mlp_rows: usize, keep: Keep) -> Result<Self> {
        let (a, c) = (model.config.attn_shape(), &model.config);
        let qk_norm = match c.qk_norm {
            true => Some(QkNormActs {
                raw: be.zeros("qk before norm", rows * (a.q_width() + a.kv_width()))?,
                rstd: be.zeros("qk rstd", rows * (a.heads + a.kv_heads))?,
            }),
            false => None,
        };
        Ok(Self {
            rstd1: be.zeros("rstd1", rows)?,
            qkv: be.zeros("qkv", rows * a.qkv_width())?,
            qk_norm,
            attn: be.zeros("attention", rows * a.q_width())?,
            lse: be.zeros("lse", rows * a.heads)?,
            rstd2: be.zeros("rstd2", mlp_rows)?,
            gate_up: be.zeros("gate_up", mlp_rows * 2 * c.intermediate_size)?,
            outputs: match keep {
                Keep::Outputs => Some(Outputs {
                    norm1: be.zeros("norm outputs", rows * c.hidden_size)?,
                    norm2: be.zeros("norm outputs", mlp_rows * c.hidden_size)?,
                    act: be.zeros("SwiGLU outputs", mlp_rows * c.intermediate_size)?,
                }),
                _ => None,
            },
        })
    }
}

/// What a workspace keeps of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there is no backward pass.
    Nothing,
    /// What the backward pass of every layer cannot do without.
    Layers,
    /// [`Keep::Layers`], and the outputs of norms and SwiGLU.
    Outputs,
    /// The input of every layer: its backward pass computes the rest again (`gradient_checkpointing`).
    Inputs,
}

/// Activations of the transformer below the head.
pub struct Acts<B: Backend> {
    /// What is kept.
    pub keep: Keep,
    /// The lowest layer that the backward pass goes through; their number where it goes through none.
    pub bottom: usize,
    /// The residual stream, `[rows, hidden]` each, at the places that [`Acts::slot`] says. The last two points have a row for
    /// every prediction.
    pub resid: Vec<B::Buf<B::Act>>,
    /// One, or with [`Keep::Layers`] and [`Keep::Outputs`] one a layer from `bottom` on, behind one for those below.
    pub layers: Vec<LayerActs<B>>,
    /// Attention's output in the last layer, `[predictions, q_width]`; becomes its own gradient in the backward pass.
    pub predicting: B::Buf<B::Act>,
    /// Scratch `[rows, max(hidden, q_width)]`: norm outputs; gradients of norm outputs and of attention's output.
    pub narrow: B::Buf<B::Act>,
    /// Scratch `[rows, max(ffn, qkv_width)]`: SwiGLU products; gradients of them and of qkv.
    pub wide: B::Buf<B::Act>,
    /// Scratch of adapters, where the model has one.
    pub low_rank: Option<LowRank<B>>,
    /// Scratch for one weight at a time, where the model has some in four bits.
    pub(super) dense: Dense<B>,
}

impl<B: Backend> Acts<B> {
    /// Which residual buffer holds point `i` of the stream: 0 before layer 0, 1 after its attention, 2 after its MLP, ...
    pub fn slot(&self, i: usize) -> usize {
        self.keep.slot(self.bottom, self.resid.len(), i)
    }

    /// Which of `layers` holds what layer `l` computed.
    pub fn kept(&self, l: usize) -> usize {
        self.keep.kept(self.bottom, l)
    }
}

impl Keep {
    /// See [`Acts::slot`]; of `buffers`.
    fn slot(self, bottom: usize, buffers: usize, i: usize) -> usize {
        let shared = bottom.min(1);
        match self {
            // They take turns.
            Keep::Nothing => i % 2,
            Keep::Layers | Keep::Outputs if i < 2 * bottom => i % 2,
            Keep::Layers | Keep::Outputs => i - 2 * bottom + 2 * shared,
            // The points within layers share the last buffer.
            Keep::Inputs if i % 2 == 1 => buffers - 1,
            Keep::Inputs if i < 2 * bottom => 0,
            Keep::Inputs => i / 2 - bottom + shared,
        }
    }

    /// See [`Acts::kept`].
    fn kept(self, bottom: usize, l: usize) -> usize {
        match self {
            Keep::Layers | Keep::Outputs if l >= bottom => l - bottom + bottom.min(1),
            _ => 0,
        }
    }

    /// Residual buffers, and sets of a layer's activations, of a model of so many layers.
    fn buffers(self, bottom: usize, layers: usize) -> [usize; 2] {
        let (above, shared) = (layers - bottom, bottom.min(1));
        match self {
            Keep::Nothing => [2, 1],
            Keep::Layers | Keep::Outputs => [2 * above + 1 + 2 * shared, above + shared],
            Keep::Inputs => [above + 2 + shared, 1],
        }
    }
}

/// Gradients of activations, in training only.
pub struct Grads<B: Backend> {
    /// Gradient of the residual stream, `[rows, hidden]`.
    pub resid: B::Buf<B::Act>,
    /// Scratch of the attention's backward pass, `[rows, heads]`.
    pub delta: B::Buf<B::Acc>,
    /// Scratch of the attention's backward pass: [`crate::backend::Device::attention_partial`] numbers.
    pub partial: B::Buf<B::Acc>,
    /// Gradient of [`Workspace::hidden`], `[predictions, hidden]`.
    pub hidden: B::Buf<B::Act>,
    /// Scratch of the head's backward pass, `[head_rows, hidden]`.
    pub scaled: B::Buf<B::Act>,
}

/// Buffers for micro-batches within a capacity. Public buffers hold the content named, for the micro-batch loaded last.
pub struct Workspace<B: Backend> {
    /// The micro-batch on the device.
    pub batch: B::Batch,
    /// Parts of it that share the logits buffer; together they cover it.
    pub chunks: Vec<Chunk>,
    /// Predictions of the micro-batch.
    pub predictions: usize,
    /// Rows that ops compute.
    pub rows: usize,
    /// Largest micro-batch.
    pub capacity: Capacity,
    /// Rows of the logits buffer.
    pub head_rows: usize,
    /// Activations.
    pub acts: Acts<B>,
    /// Whether activations are kept for [`super::backward()`], and their gradients.
    pub grads: Option<Grads<B>>,
    /// Final norm's `rstd`, `[predictions]`.
    pub rstd: B::Buf<B::Acc>,
    /// Final norm's output, `[predictions, hidden]`: the head's input.
    pub hidden: B::Buf<B::Act>,
    /// `[head_rows, vocab]`.
    pub logits: B::Buf<B::Acc>,
    /// `log p(target)`, nats, `[predictions]`.
    pub logp: B::Buf<B::Acc>,
    /// Entropy, nats, `[predictions]`.
    pub entropy: B::Buf<B::Acc>,
    /// `log sum p^2`, `[predictions]`.
    pub log_sum_p2: B::Buf<B::Acc>,
    /// 1 where the target is the argmax, `[predictions]`.
    pub hit: B::Buf<B::Acc>,
    /// `dL/dlogp`, `[predictions]`.
    pub coef: B::Buf<B::Acc>,
    /// `[responses, RESPONSE_STATS]`.
    pub response_stats: B::Buf<f64>,
    /// `[pairs, PAIR_STATS]`.
    pub pair_stats: B::Buf<f64>,
    /// Recorded passes, where they are asked for.
    pub graphs: Graphs<B>,
    vocab: usize,
    max_positions: usize,
    /// Where the model has two rotary tables: its configuration, which says which rows take the second.
    two_tables: Option<ModelConfig>,
}

impl<B: Backend> Workspace<B> {
    /// Allocates for `capacity`, with logits for `head_rows` predictions at a time (at least those of the largest group).
    /// With `train`, activations of all layers are kept.
    pub fn new(be: &B, model: &Model<B>, capacity: Capacity, head_rows: usize, train: bool) -> Result<Self> {
        Self::keeping(be, model, capacity, head_rows, if train { Keep::Layers } else { Keep::Nothing })
    }

    /// [`Workspace::new`], with the choice of what is kept.
    pub fn keeping(be: &B, model: &Model<B>, capacity: Capacity, head_rows: usize, keep: Keep) -> Result<Self> {
        let (c, a) = (&model.config, model.config.attn_shape());
        let (rows, n, layers) = (capacity.slots, capacity.predictions, c.num_hidden_layers);
        let head_rows = head_rows.min(n);
        let bottom = match model.table.floor {
            _ if keep == Keep::Nothing => 0,
            Stage::Embed => 0,
            Stage::Layer(l, _) => l,
            Stage::Norm | Stage::Head => layers,
        };
        let [residuals, kept] = keep.buffers(bottom, layers);
        // Where a point has a buffer of its own, those above the last attention are smaller.
        let all = matches!(keep, Keep::Layers | Keep::Outputs);
        let own = |buffer: usize| all && (bottom == 0 || buffer >= 2);
        let points = (0..residuals).map(|i| if own(i) && i + 2 >= residuals { n } else { rows });
        let of_last = |set: usize| all && bottom < layers && set + 1 == kept;
        let mlps = (0..kept).map(|set| if of_last(set) { n } else { rows });
        // What is not gone through backward needs no more than any forward pass.
        let keeps = |set: usize| if bottom > 0 && set == 0 { Keep::Nothing } else { keep };
        let low_rank = LowRank::new(be, model, rows.max(n), keep != Keep::Nothing)?;
        let mut batch = be.new_batch(capacity, a)?;
        if low_rank.as_ref().is_some_and(|l| l.dropped.is_some()) {
            be.make_room(&mut batch, capacity)?;
        }
        let acts = Acts {
            keep,
            bottom,
            resid: points.map(|rows| be.zeros("residual", rows * c.hidden_size)).collect::<Result<_>>()?,
            layers: mlps
                .enumerate()
                .map(|(set, mlp)| LayerActs::new(be, model, rows, mlp, keeps(set)))
                .collect::<Result<_>>()?,
            predicting: be.zeros("predicting rows", n * a.q_width())?,
            narrow: be.zeros("scratch narrow", rows * c.hidden_size.max(a.q_width()))?,
            wide: be.zeros("scratch wide", rows * c.intermediate_size.max(a.qkv_width()))?,
            low_rank,
            dense: nf4::scratch(be, &model.table)?,
        };
        let grads = match keep != Keep::Nothing {
            true => Some(Grads {
                resid: be.zeros("d residual", rows * c.hidden_size)?,
                delta: be.zeros("attention delta", rows * a.heads)?,
                partial: be.zeros("attention partial sums", be.attention_partial(rows, &a))?,
                hidden: be.zeros("d hidden", n * c.hidden_size)?,
                scaled: be.zeros("head scratch", head_rows * c.hidden_size)?,
            }),
            false => None,
        };
        Ok(Self {
            batch,
            chunks: Vec::new(),
            predictions: 0,
            rows: 0,
            capacity,
            head_rows,
            acts,
            grads,
            rstd: be.zeros("final rstd", n)?,
            hidden: be.zeros("hidden", n * c.hidden_size)?,
            logits: be.zeros("logits", head_rows * c.vocab_size)?,
            logp: be.zeros("logp", n)?,
            entropy: be.zeros("entropy", n)?,
            log_sum_p2: be.zeros("log_sum_p2", n)?,
            hit: be.zeros("hit", n)?,
            coef: be.zeros("coef", n)?,
            response_stats: be.zeros("response stats", capacity.responses * RESPONSE_STATS)?,
            pair_stats: be.zeros("pair stats", capacity.pairs * PAIR_STATS)?,
            graphs: Graphs::default(),
            vocab: c.vocab_size,
            max_positions: model.max_positions,
            two_tables: (c.rope.tables(model.max_positions) > 1).then(|| c.clone()),
        })
    }

    /// Makes `from` the current micro-batch: checks it against the model and the capacity, uploads it, cuts it into
    /// [`Workspace::chunks`].
    ///
    /// Errors: [`Error::Usage`] for a token or a position that the model does not have, and for responses to one prompt
    /// that need different rotary tables; [`Error::Shape`] for more than the capacity.
    pub fn load_batch(&mut self, be: &B, from: &MicroBatch) -> Result<()> {
        self.check(from)?;
        match &self.two_tables {
            None => be.load_batch(&mut self.batch, from)?,
            Some(config) => be.load_batch(&mut self.batch, &placed(from, config, self.max_positions)?)?,
        }
        self.chunks = chunks(from, self.head_rows);
        self.rows = be.rows(&self.batch);
        self.predictions = from.predictions().len();
        if let Some(low_rank) = &mut self.acts.low_rank {
            low_rank.load(from)?;
        }
        Ok(())
    }

    /// Whether adapters drop some of their input in passes over the micro-batch.
    pub(super) fn drops(&self) -> bool {
        self.acts.low_rank.as_ref().is_some_and(LowRank::drops)
    }

    /// What the backend cannot know: ids and positions that the model has.
    fn check(&self, from: &MicroBatch) -> Result<()> {
        // Targets are tokens of the batch.
        if let Some(id) = from.tokens().iter().find(|id| **id as usize >= self.vocab) {
            return Err(Error::usage(format!("token id {id} is outside the model's vocabulary of {}", self.vocab)));
        }
        match from.positions().iter().max() {
            Some(p) if *p as usize >= self.max_positions => Err(Error::usage(format!(
                "position {p} is outside the {} positions that the model was loaded for",
                self.max_positions
            ))),
            _ => Ok(()),
        }
    }
}

/// The micro-batch with the positions of long rows in the second rotary table.
fn placed(from: &MicroBatch, config: &ModelConfig, max_positions: usize) -> Result<MicroBatch> {
    let mut placed = from.clone();
    for group in 0..from.groups().len() {
        let (shortest, longest) = from.row_lengths(group);
        if config.turns_as_long(shortest, longest)? {
            placed.move_positions(group, max_positions as u32);
        }
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use super::Keep;

    /// Points that follow each other are in two buffers; what the backward pass reads is overwritten by nothing; every buffer
    /// is used.
    #[test]
    fn what_is_read_backward_has_a_place_of_its_own() {
        for keep in [Keep::Nothing, Keep::Layers, Keep::Outputs, Keep::Inputs] {
            for (layers, bottom) in (1..7).flat_map(|n| (0..=n).map(move |b| (n, b))) {
                let bottom = if keep == Keep::Nothing { 0 } else { bottom };
                let [buffers, sets] = keep.buffers(bottom, layers);
                let slots: Vec<usize> = (0..=2 * layers).map(|i| keep.slot(bottom, buffers, i)).collect();
                let used = |n: usize, of: &[usize]| (0..n).all(|b| of.contains(&b)) && of.iter().all(|s| *s < n);
                assert!(slots.windows(2).all(|w| w[0] != w[1]), "{keep:?} {layers} {bottom}: {slots:?}");
                assert!(used(buffers, &slots), "{keep:?} {layers} {bottom}: {slots:?} of {buffers}");
                let kept: Vec<usize> = (0..layers).map(|l| keep.kept(bottom, l)).collect();
                assert!(used(sets, &kept), "{keep:?} {layers} {bottom}: {kept:?} of {sets}");
                let read = |i: &usize| match keep {
                    Keep::Nothing => false,
                    Keep::Layers | Keep::Outputs => *i >= 2 * bottom,
                    Keep::Inputs => *i >= 2 * bottom && i.is_multiple_of(2),
                };
                for i in (0..=2 * layers).filter(read) {
                    assert_eq!(slots.iter().filter(|s| **s == slots[i]).count(), 1, "{keep:?} {layers} {bottom} {i}");
                }
                let whole = matches!(keep, Keep::Layers | Keep::Outputs);
                for l in (bottom..layers).filter(|_| whole) {
                    assert_eq!(kept.iter().filter(|s| **s == kept[l]).count(), 1, "{keep:?} {layers} {bottom} {l}");
                }
            }
        }
    }
}
