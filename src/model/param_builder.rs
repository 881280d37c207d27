//! The parameter table of a configuration.

use super::adapter::{AdapterShape, MODULES};
use super::config::ModelConfig;
use super::params::{ALIGN, AdapterParams, LayerParams, Nf4Param, Param, ParamSpec, ParamTable, Stage, is_adapter};
use super::quantized::Skipped;
use crate::error::{Error, Result};
use crate::quant::{dynamic, nf4};

/// What there is of a table, one packed weight after the other.
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
}
