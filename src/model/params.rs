//! The parameter table: two flat arenas, described once. One has every weight. The other, the trained arena, is the layout
//! of gradients, master weights and moments: it has the parameters that train, in the same order, and no others. Where
//! everything trains the two are the same.
//!
//! Decayed tensors (matrices) come first, norms and biases last, so one boundary splits the arena. Within a layer q, k and
//! v are adjacent, and gate and up: a packed weight is one range. Blocks start at multiples of [`ALIGN`] elements; the
//! gaps hold zeros, whose gradients stay zero.

use super::quantized::Quantized;
use std::ops::Range;

/// Elements to which blocks of the arena are aligned: 16-byte vector loads and 128-byte lines at every storage type.
pub const ALIGN: usize = 64;

/// One tensor of a Hugging Face checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Hugging Face's name.
    pub name: String,
    /// Hugging Face's shape.
    pub shape: Vec<usize>,
    /// Its elements in the arena.
    pub at: Range<usize>,
    /// Whether weight decay applies: matrices yes, norms and biases no (transformers' rule).
    pub decay: bool,
    /// Whether it gets a gradient.
    pub trains: bool,
    /// Its elements in the trained arena; none where it is frozen.
    pub grad: Range<usize>,
}

/// A tensor of a checkpoint that is held in four bits, beside the arena: a linear weight of a block. It never trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nf4Param {
    /// Hugging Face's name.
    pub name: String,
    /// Hugging Face's shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub len: usize,
    /// Where they begin in the weight that it is a part of.
    pub start: usize,
    /// Its bytes among all codes; what is beyond half of `len` aligns the next.
    pub codes: Range<usize>,
    /// Its blocks of 64 among all.
    pub blocks: Range<usize>,
    /// Its blocks of 256 blocks among all.
    pub nested: Range<usize>,
}

/// A range of the arena that ops use as one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its elements in the arena; from 0 on where it is in four bits.
    pub at: Range<usize>,
    /// Which of [`ParamTable::nf4`] it is made of, where it is in four bits.
    pub nf4: Range<usize>,
    /// What of it is not, beside that: where each part begins in it, and its elements in the arena.
    pub dense: Vec<(usize, Range<usize>)>,
    /// The parts of it that train; none: it is frozen.
    pub parts: Vec<Part>,
    /// Where the trained arena has room for a gradient of all of it: where all of it trains, and of a vector of which a
    /// part does. What is frozen of that is in [`ParamTable::unused`].
    pub whole: Option<Range<usize>>,
}

/// A part of a [`Param`] that trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which of its elements, from its start on.
    pub of: Range<usize>,
    /// The same in the trained arena.
    pub grad: Range<usize>,
}

impl Param {
    /// Whether any of it gets a gradient.
    pub fn trains(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Where its gradients are in the trained arena.
    pub fn grads(&self) -> impl Iterator<Item = &Range<usize>> {
        self.whole.iter().chain(self.parts.iter().map(|part| &part.grad))
    }
}

/// Parameters that are neighbours in both arenas, and updated together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Their elements in the arena of weights.
    pub at: Range<usize>,
    /// As many in the trained arena.
    pub grad: Range<usize>,
    /// Whether weight decay applies.
    pub decay: bool,
}

/// Weights of one layer; shapes are `out x in`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerParams {
    /// hidden.
    pub input_norm: Param,
    /// (q_width + 2 kv_width) x hidden.
    pub qkv: Param,
    /// q_width + 2 kv_width.
    pub qkv_bias: Option<Param>,
    /// 2 x head_dim: of queries, of keys.
    pub qk_norm: Option<Param>,
    /// hidden x q_width.
    pub o: Param,
    /// hidden.
    pub o_bias: Option<Param>,
    /// hidden.
    pub post_norm: Param,
    /// 2 ffn x hidden: gates, then ups.
    pub gate_up: Param,
    /// hidden x ffn.
    pub down: Param,
    /// The adapters of `qkv`, `o`, `gate_up` and `down`.
    pub low_rank: [Option<AdapterParams>; 4],
}

impl LayerParams {
    /// The adapters of `qkv`, `o`, `gate_up` and `down`.
    pub fn adapters(&self) -> [Option<&AdapterParams>; 4] {
        self.low_rank.each_ref().map(Option::as_ref)
    }

    /// All that it has.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let matrices = [&self.qkv, &self.o, &self.gate_up, &self.down];
        let biases = [&self.qkv_bias, &self.qk_norm, &self.o_bias].into_iter().flatten();
        let adapters = self.adapters().into_iter().flatten().flat_map(|adapter| [&adapter.a, &adapter.b]);
        matrices.into_iter().chain([&self.input_norm, &self.post_norm]).chain(biases).chain(adapters)
    }
}

/// The adapter of a product: a part for every layer in it that has one.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterParams {
    /// (parts rank) x inp: PEFT's `lora_A` of every part.
    pub a: Param,
    /// columns x rank: PEFT's `lora_B` of every part.
    pub b: Param,
    /// Which columns of the product each part is for.
    pub columns: Vec<Range<usize>>,
    /// Rank.
    pub rank: usize,
    /// Outputs of the product.
    pub out: usize,
    /// Its inputs.
    pub inp: usize,
    /// What the low-rank product is multiplied with.
    pub scale: f64,
    /// Of each part, which of the model's dropouts is before it: a number of the layer and the module.
    pub sites: Vec<u32>,
    /// Share that each drops while it trains.
    pub dropout: f64,
}

impl AdapterParams {
    /// Whether any of it gets a gradient.
    pub fn trains(&self) -> bool {
        self.a.trains() || self.b.trains()
    }
}

/// Where every parameter is.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamTable {
    /// Every tensor of the arena, in its order.
    pub specs: Vec<ParamSpec>,
    /// Tensors in four bits.
    pub nf4: Vec<Nf4Param>,
    /// How these are held, where there are any.
    pub quantized: Option<Quantized>,
    /// The layers.
    pub layers: Vec<LayerParams>,
    /// vocab x hidden.
    pub embed: Param,
    /// vocab x hidden; the embedding itself when tied.
    pub head: Param,
    /// hidden.
    pub norm: Param,
    /// Elements that decay: `0..decay_len`.
    pub decay_len: usize,
    /// Elements of the arena.
    pub len: usize,
    /// Elements of the trained arena.
    pub trained_len: usize,
    /// Those of matrices, which come first.
    pub trained_matrices: usize,
    /// What an update goes over, in order: every parameter that trains.
    pub runs: Vec<Run>,
    /// Elements of the trained arena that take the gradient of a frozen part of a vector: not to be looked at.
    pub unused: Vec<Range<usize>>,
    /// How far down the backward pass goes: the lowest [`Stage`] of which anything trains.
    pub floor: Stage,
}

/// Where in the model a parameter is, from below: what the backward pass meets last comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The embedding.
    Embed,
    /// A layer, and where in it.
    Layer(usize, Place),
    /// The final norm.
    Norm,
    /// The head, where it is not the embedding; or nothing at all.
    Head,
}

/// Where in a layer, from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The norm before attention.
    InputNorm,
    /// Queries, keys and values, their bias and norm.
    Qkv,
    /// Attention's output projection and its bias.
    Output,
    /// The norm before the MLP.
    PostNorm,
    /// Gates and ups.
    GateUp,
    /// The MLP's output projection.
    Down,
}

impl ParamTable {
    /// Parameters, without the alignment gaps.
    pub fn num_parameters(&self) -> usize {
        self.specs.iter().map(|s| s.at.len()).chain(self.nf4.iter().map(|p| p.len)).sum()
    }

    /// Whether there is an adapter beside the weights.
    pub fn has_adapter(&self) -> bool {
        self.layers.iter().any(|l| l.low_rank.iter().any(Option::is_some))
    }

    /// The tensor of that name.
    pub fn spec(&self, name: &str) -> Option<&ParamSpec> {
        self.specs.iter().find(|s| s.name == name)
    }
}

/// Whether a tensor of that name is an adapter's.
pub fn is_adapter(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}
