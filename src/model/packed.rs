//! The weights of every product, laid out for products of few rows: generation reads them once a token, or drafts of them for
//! guesses, and the weights themselves once for several.

use super::config::ModelConfig;
use super::linear::{Laid, Linear};
use super::load::Model;
use super::nf4::Dense;
use super::params::{LayerParams, Param};
use crate::backend::{Backend, Layout};
use crate::error::Result;

/// The weights of one layer.
pub(super) struct PackedLayer<B: Backend> {
    pub qkv: Laid<B>,
    pub o: Laid<B>,
    pub gate_up: Laid<B>,
    pub down: Laid<B>,
}

/// How products are computed, and which of the weights laid out they are to use.
pub(super) struct Packs<'a, B: Backend> {
    /// As products of few rows: every one of generation, so that a row has the same bits in all of them.
    pub few: bool,
    pub weights: Option<&'a PackedWeights<B>>,
}

impl<B: Backend> Clone for Packs<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for Packs<'_, B> {}

impl<'a, B: Backend> Packs<'a, B> {
    /// None: the weights as they lie, by products of many rows.
    pub const NONE: Self = Packs { few: false, weights: None };

    /// Generation's.
    pub fn few(weights: Option<&'a PackedWeights<B>>) -> Self {
        Packs { few: true, weights }
    }

    /// The weight that `of` names, where it was laid out.
    pub fn find(&self, of: impl Fn(&'a PackedWeights<B>) -> &'a Laid<B>) -> Option<&'a B::Packed> {
        self.weights.and_then(|w| of(w).as_ref())
    }
}

/// The weights of a model.
pub(super) struct PackedWeights<B: Backend> {
    pub layers: Vec<PackedLayer<B>>,
    pub head: Laid<B>,
}

impl<B: Backend> PackedWeights<B> {
    /// Room for the weights of `model`.
    pub fn room(be: &B, model: &Model<B>, layout: Layout) -> Result<Self> {
        let name = if layout == Layout::Draft { "drafts of weights" } else { "packed weights" };
        let room = |p: &Param, inp: usize| be.packed_room(name, p.at.len() / inp, inp, layout);
        let layer = |l: &LayerParams| {
            let [qkv, o, gate_up, down] = inputs(&model.config);
            Ok(PackedLayer {
                qkv: room(&l.qkv, qkv)?,
                o: room(&l.o, o)?,
                gate_up: room(&l.gate_up, gate_up)?,
                down: room(&l.down, down)?,
            })
        };
        let layers = model.table.layers.iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, head: room(&model.table.head, model.config.hidden_size)? })
    }

    /// Packs them, those that have the layout; `dense` is the workspace's.
    pub fn fill(&mut self, be: &B, model: &Model<B>, dense: &mut Dense<B>) -> Result<()> {
        let mut fill = |to: &mut Laid<B>, param: &Param| Linear { model, param, dense: &mut *dense }.pack(be, to);
        for (to, l) in self.layers.iter_mut().zip(&model.table.layers) {
            fill(&mut to.qkv, &l.qkv)?;
            fill(&mut to.o, &l.o)?;
            fill(&mut to.gate_up, &l.gate_up)?;
            fill(&mut to.down, &l.down)?;
        }
        fill(&mut self.head, &model.table.head)
    }
}

impl<B: Backend> PackedWeights<B> {
    /// Whether the device lays weights out at all.
    pub fn any(&self) -> bool {
        self.all().next().is_some()
    }

    fn all(&self) -> impl Iterator<Item = &B::Packed> {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
        layers.chain([&self.head]).flatten()
    }
}

/// What the weights of a layer are multiplied with: widths, in the order of [`PackedLayer`].
fn inputs(c: &ModelConfig) -> [usize; 4] {
    [c.hidden_size, c.attn_shape().q_width(), c.hidden_size, c.intermediate_size]
}
