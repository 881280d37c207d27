//! The parameter table: two flat arenas, described once. One has every weight. The other, the trained arena, is the layout
//! of gradients, master weights and moments: it has the parameters that train, in the same order, and no others. Where
//! everything trains the two are the same.
//!
//! Decayed tensors (matrices) come first, norms and biases last, so one boundary splits the arena. Within a layer q, k and
//! v are adjacent, and gate and up: a packed weight is one range. Blocks start at multiples of [`ALIGN`] elements; the
//! gaps hold zeros, whose gradients stay zero.

use super::adapter::{AdapterShape, MODULES};
use super::config::ModelConfig;
use super::quantized::{Quantized, Skipped};
use crate::error::{Error, Result};
use crate::quant::{dynamic, nf4};
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

/// Names of one layer's tensors with their shapes, by the packed weight that holds them.
struct Builder {
    specs: Vec<ParamSpec>,
    end: usize,
    nf4: Vec<Nf4Param>,
    /// Where weights are held in four bits: those that are not.
    quantized: Option<Skipped>,
}

/// Bytes to which a tensor's codes are aligned: what a vector load takes.
const CODES: usize = 16;

impl Builder {
    /// Appends a packed weight made of `parts`, aligned at its start.
    fn push(&mut self, decay: bool, parts: &[(String, Vec<usize>)]) -> Option<Param> {
        let start = self.end.checked_next_multiple_of(ALIGN)?;
        self.end = start;
        for (name, shape) in parts {
            let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
            let at = self.end..self.end.checked_add(len)?;
            self.end = at.end;
            self.specs.push(ParamSpec {
                name: name.clone(),
                shape: shape.clone(),
                at,
                decay,
                trains: true,
                grad: 0..0,
            });
        }
        Some(Param { at: start..self.end, nf4: 0..0, dense: Vec::new(), parts: Vec::new(), whole: None })
    }

    /// [`Builder::push`] of a linear layer of a block, which may be held in four bits.
    fn linear(&mut self, parts: &[(String, Vec<usize>)]) -> Option<Param> {
        let Some(skipped) = &self.quantized else { return self.push(true, parts) };
        let stays: Vec<bool> = parts.iter().map(|(name, _)| skipped.has(name)).collect();
        if !stays.contains(&false) {
            return self.push(true, parts);
        }
        let (first, mut elements, mut dense) = (self.nf4.len(), 0usize, Vec::new());
        for ((name, shape), stays) in parts.iter().zip(stays) {
            let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
            let start = elements;
            elements = elements.checked_add(len)?;
            if stays {
                dense.push((start, self.push(true, &[(name.clone(), shape.clone())])?.at));
                continue;
            }
            let ends = self.nf4.last().map_or([0; 3], |p| [p.codes.end, p.blocks.end, p.nested.end]);
            let bytes = len.div_ceil(2).checked_next_multiple_of(CODES)?;
            let counts = [bytes, nf4::blocks(len), nf4::blocks(len).div_ceil(dynamic::BLOCK)];
            let to = |i: usize| Some(ends[i]..ends[i].checked_add(counts[i])?);
            let (codes, blocks, nested) = (to(0)?, to(1)?, to(2)?);
            self.nf4.push(Nf4Param { name: name.clone(), shape: shape.clone(), len, start, codes, blocks, nested });
        }
        Some(Param { at: 0..elements, nf4: first..self.nf4.len(), dense, parts: Vec::new(), whole: None })
    }

    /// Appends the adapters of layer `l`, in the order of [`LayerParams::low_rank`].
    fn adapters(
        &mut self,
        shape: &AdapterShape,
        l: usize,
        [hidden, q, kv, ffn]: [usize; 4],
    ) -> Option<[Option<AdapterParams>; 4]> {
        let (outs, products) =
            ([q, kv, kv, hidden, ffn, ffn, hidden], [(0..3, hidden), (3..4, q), (4..6, hidden), (6..7, ffn)]);
        let (rank, scale) = (shape.r, shape.scale());
        let mut all = [None, None, None, None];
        for (to, (modules, inp)) in all.iter_mut().zip(products) {
            let (mut columns, mut a, mut b, mut out) = (Vec::new(), Vec::new(), Vec::new(), 0usize);
            let mut sites = Vec::new();
            for m in modules {
                if shape.targets[m] {
                    let name = |part| format!("model.layers.{l}.{}.{part}.weight", MODULES[m].1);
                    a.push((name("lora_A"), vec![rank, inp]));
                    b.push((name("lora_B"), vec![outs[m], rank]));
                    columns.push(out..out.checked_add(outs[m])?);
                    sites.push((l * MODULES.len() + m) as u32);
                }
                out = out.checked_add(outs[m])?;
            }
            if !columns.is_empty() {
                let (a, b) = (self.push(true, &a)?, self.push(true, &b)?);
                let dropout = shape.dropout;
                *to = Some(AdapterParams { a, b, columns, rank, out, inp, scale, sites, dropout });
            }
        }
        Some(all)
    }
}

impl ParamTable {
    /// The table of a configuration: of one without an adapter everything trains, else the adapter alone. Errors: a size that does not fit in memory.
    pub fn new(config: &ModelConfig) -> Result<Self> {
        Self::build(config).ok_or_else(|| Error::usage("the configuration's weights exceed the address space"))
    }

    fn build(c: &ModelConfig) -> Option<Self> {
        let quantized = c.quantized.map(|_| c.skipped.clone());
        let mut b = Builder { specs: Vec::new(), end: 0, nf4: Vec::new(), quantized };
        let a = c.attn_shape();
        let (hidden, ffn) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (a.heads.checked_mul(a.head_dim)?, a.kv_heads.checked_mul(a.head_dim)?);
        let embed = b.push(true, &[("model.embed_tokens.weight".into(), vec![c.vocab_size, hidden])])?;
        let mut matrices = Vec::new();
        for l in 0..c.num_hidden_layers {
            let n = |s: &str| format!("model.layers.{l}.{s}.weight");
            let proj = |p: &str, out| (n(&format!("self_attn.{p}_proj")), vec![out, hidden]);
            let qkv = b.linear(&[proj("q", q), proj("k", kv), proj("v", kv)])?;
            let o = b.linear(&[(n("self_attn.o_proj"), vec![hidden, q])])?;
            let gate_up =
                b.linear(&[(n("mlp.gate_proj"), vec![ffn, hidden]), (n("mlp.up_proj"), vec![ffn, hidden])])?;
            let down = b.linear(&[(n("mlp.down_proj"), vec![hidden, ffn])])?;
            matrices.push([qkv, o, gate_up, down]);
        }
        let head = match c.tie_word_embeddings {
            true => embed.clone(),
            false => b.push(true, &[("lm_head.weight".into(), vec![c.vocab_size, hidden])])?,
        };
        let mut low_rank = Vec::new();
        for l in 0..c.num_hidden_layers {
            low_rank.push(match &c.adapter {
                Some(adapter) => b.adapters(adapter, l, [hidden, q, kv, ffn])?,
                None => [None, None, None, None],
            });
        }
        b.end = b.end.checked_next_multiple_of(ALIGN)?;
        let decay_len = b.end;
        let mut layers = Vec::new();
        for (l, [qkv, o, gate_up, down]) in matrices.into_iter().enumerate() {
            let vector = |s: &str, len| vec![(format!("model.layers.{l}.{s}"), vec![len])];
            let bias = |p: &str, len| (format!("model.layers.{l}.self_attn.{p}_proj.bias"), vec![len]);
            let input_norm = b.push(false, &vector("input_layernorm.weight", hidden))?;
            let post_norm = b.push(false, &vector("post_attention_layernorm.weight", hidden))?;
            let qkv_bias = match c.qkv_bias {
                true => Some(b.push(false, &[bias("q", q), bias("k", kv), bias("v", kv)])?),
                false => None,
            };
            let o_bias = match c.o_bias {
                true => Some(b.push(false, &[bias("o", hidden)])?),
                false => None,
            };
            let qk_norm = match c.qk_norm {
                true => {
                    let one = |s: &str| (format!("model.layers.{l}.self_attn.{s}_norm.weight"), vec![a.head_dim]);
                    Some(b.push(false, &[one("q"), one("k")])?)
                }
                false => None,
            };
            let low_rank = std::mem::take(&mut low_rank[l]);
            layers.push(LayerParams {
                input_norm,
                qkv,
                qkv_bias,
                qk_norm,
                o,
                o_bias,
                post_norm,
                gate_up,
                down,
                low_rank,
            });
        }
        let norm = b.push(false, &[("model.norm.weight".into(), vec![hidden])])?;
        let len = b.end.checked_next_multiple_of(ALIGN)?;
        // Nor must the bytes of all that a run keeps of them.
        len.checked_mul(64).filter(|n| *n <= isize::MAX as usize)?;
        // Nor those of a weight that is made dense.
        b.nf4.iter().all(|p| p.len <= isize::MAX as usize / 24).then_some(())?;
        let (specs, runs, unused, floor) = (b.specs, Vec::new(), Vec::new(), Stage::Head);
        let (nf4, quantized) = (b.nf4, c.quantized);
        let mut all = Self {
            specs,
            nf4,
            quantized,
            layers,
            embed,
            head,
            norm,
            decay_len,
            len,
            trained_len: 0,
            trained_matrices: 0,
            runs,
            unused,
            floor,
        };
        match c.adapter {
            Some(_) => all.set_trains(is_adapter),
            None => all.lay_out(),
        }
        Some(all)
    }

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
