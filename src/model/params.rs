//! The parameter table: one flat arena, described once. Weights, gradients, master weights and moments share its layout.
//!
//! Decayed tensors (matrices) come first, norms and biases last, so one boundary splits the arena. Within a layer q, k and
//! v are adjacent, and gate and up: a packed weight is one range. Blocks start at multiples of [`ALIGN`] elements; the
//! gaps hold zeros, whose gradients stay zero.

use super::config::ModelConfig;
use crate::error::{Error, Result};
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
}

/// A range of the arena that ops use as one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its elements in the arena.
    pub at: Range<usize>,
    /// Whether any tensor in it gets a gradient.
    pub trains: bool,
}

/// Weights of one layer; shapes are `out x in`.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// Where every parameter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamTable {
    /// Every tensor, in arena order.
    pub specs: Vec<ParamSpec>,
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
}

/// Names of one layer's tensors with their shapes, by the packed weight that holds them.
struct Builder {
    specs: Vec<ParamSpec>,
    end: usize,
}

impl Builder {
    /// Appends a packed weight made of `parts`, aligned at its start.
    fn push(&mut self, decay: bool, parts: &[(String, Vec<usize>)]) -> Option<Param> {
        let start = self.end.checked_next_multiple_of(ALIGN)?;
        self.end = start;
        for (name, shape) in parts {
            let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
            let at = self.end..self.end.checked_add(len)?;
            self.end = at.end;
            self.specs.push(ParamSpec { name: name.clone(), shape: shape.clone(), at, decay, trains: true });
        }
        Some(Param { at: start..self.end, trains: true })
    }
}

impl ParamTable {
    /// The table of a configuration; everything trains. Errors: a size that does not fit in memory.
    pub fn new(config: &ModelConfig) -> Result<Self> {
        Self::build(config).ok_or_else(|| Error::usage("the configuration's weights exceed the address space"))
    }

    fn build(c: &ModelConfig) -> Option<Self> {
        let mut b = Builder { specs: Vec::new(), end: 0 };
        let a = c.attn_shape();
        let (hidden, ffn) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (a.heads.checked_mul(a.head_dim)?, a.kv_heads.checked_mul(a.head_dim)?);
        let embed = b.push(true, &[("model.embed_tokens.weight".into(), vec![c.vocab_size, hidden])])?;
        let mut matrices = Vec::new();
        for l in 0..c.num_hidden_layers {
            let n = |s: &str| format!("model.layers.{l}.{s}.weight");
            let proj = |p: &str, out| (n(&format!("self_attn.{p}_proj")), vec![out, hidden]);
            let qkv = b.push(true, &[proj("q", q), proj("k", kv), proj("v", kv)])?;
            let o = b.push(true, &[(n("self_attn.o_proj"), vec![hidden, q])])?;
            let gate_up =
                b.push(true, &[(n("mlp.gate_proj"), vec![ffn, hidden]), (n("mlp.up_proj"), vec![ffn, hidden])])?;
            let down = b.push(true, &[(n("mlp.down_proj"), vec![hidden, ffn])])?;
            matrices.push([qkv, o, gate_up, down]);
        }
        let head = match c.tie_word_embeddings {
            true => embed.clone(),
            false => b.push(true, &[("lm_head.weight".into(), vec![c.vocab_size, hidden])])?,
        };
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
            layers.push(LayerParams { input_norm, qkv, qkv_bias, qk_norm, o, o_bias, post_norm, gate_up, down });
        }
        let norm = b.push(false, &[("model.norm.weight".into(), vec![hidden])])?;
        let len = b.end.checked_next_multiple_of(ALIGN)?;
        // Byte sizes of f64 buffers must not overflow either.
        len.checked_mul(8).filter(|n| *n <= isize::MAX as usize)?;
        Some(Self { specs: b.specs, layers, embed, head, norm, decay_len, len })
    }

    /// Parameters, without the alignment gaps.
    pub fn num_parameters(&self) -> usize {
        self.specs.iter().map(|s| s.at.len()).sum()
    }

    /// Freezes (or frees) tensors: `trains(name)` decides. A packed weight trains when any part of it does.
    pub fn set_trains(&mut self, trains: impl Fn(&str) -> bool) {
        for spec in &mut self.specs {
            spec.trains = trains(&spec.name);
        }
        let specs = &self.specs;
        let update = |p: &mut Param| {
            p.trains = specs.iter().any(|s| s.trains && p.at.start <= s.at.start && s.at.end <= p.at.end);
        };
        update(&mut self.embed);
        update(&mut self.head);
        update(&mut self.norm);
        for l in &mut self.layers {
            for p in [&mut l.input_norm, &mut l.qkv, &mut l.o, &mut l.post_norm, &mut l.gate_up, &mut l.down] {
                update(p);
            }
            l.qkv_bias.iter_mut().chain(&mut l.o_bias).chain(&mut l.qk_norm).for_each(update);
        }
    }

    /// The tensor of that name.
    pub fn spec(&self, name: &str) -> Option<&ParamSpec> {
        self.specs.iter().find(|s| s.name == name)
    }
}
