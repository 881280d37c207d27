//! The parameter table: two flat arenas, described once. One has every weight. The other, the trained arena, is the layout
//! of gradients, master weights and moments: it has the parameters that train, in the same order, and no others. Where
//! everything trains the two are the same.
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
    /// Its elements in the trained arena; none where it is frozen.
    pub grad: Range<usize>,
}

/// A range of the arena that ops use as one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its elements in the arena.
    pub at: Range<usize>,
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
    /// Elements of the trained arena.
    pub trained_len: usize,
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
            self.specs.push(ParamSpec {
                name: name.clone(),
                shape: shape.clone(),
                at,
                decay,
                trains: true,
                grad: 0..0,
            });
        }
        Some(Param { at: start..self.end, parts: Vec::new(), whole: None })
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
        let (specs, runs, unused, floor) = (b.specs, Vec::new(), Vec::new(), Stage::Head);
        let mut all = Self { specs, layers, embed, head, norm, decay_len, len, trained_len: 0, runs, unused, floor };
        all.lay_out();
        Some(all)
    }

    /// Parameters, without the alignment gaps.
    pub fn num_parameters(&self) -> usize {
        self.specs.iter().map(|s| s.at.len()).sum()
    }

    /// Parameters that train.
    pub fn num_trained(&self) -> usize {
        self.specs.iter().map(|s| s.grad.len()).sum()
    }

    /// Freezes (or frees) tensors: `trains(name)` decides. Lays the trained arena out anew.
    pub fn set_trains(&mut self, trains: impl Fn(&str) -> bool) {
        for spec in &mut self.specs {
            spec.trains = trains(&spec.name);
        }
        self.lay_out();
    }

    /// Every weight that ops use, in the order of the arena, with where it is in the model.
    fn params_mut(&mut self) -> impl Iterator<Item = (Stage, &mut Param)> {
        let Self { embed, head, norm, layers, .. } = self;
        let head = (head.at != embed.at).then_some((Stage::Head, head));
        let mut all: Vec<(Stage, &mut Param)> = vec![(Stage::Embed, embed), (Stage::Norm, norm)];
        all.extend(head);
        for (l, layer) in layers.iter_mut().enumerate() {
            let LayerParams { input_norm, qkv, qkv_bias, qk_norm, o, o_bias, post_norm, gate_up, down } = layer;
            let always = [
                (Place::InputNorm, input_norm),
                (Place::Qkv, qkv),
                (Place::Output, o),
                (Place::PostNorm, post_norm),
                (Place::GateUp, gate_up),
                (Place::Down, down),
            ];
            let some = [(Place::Qkv, qkv_bias), (Place::Qkv, qk_norm), (Place::Output, o_bias)];
            let some = some.into_iter().filter_map(|(place, p)| Some((place, p.as_mut()?)));
            all.extend(always.into_iter().chain(some).map(|(place, p)| (Stage::Layer(l, place), p)));
        }
        all.sort_by_key(|(_, p)| p.at.start);
        all.into_iter()
    }

    /// Places what trains, in the order of the arena and aligned as there; finds what follows from that.
    fn lay_out(&mut self) {
        let mut specs = std::mem::take(&mut self.specs);
        let (mut end, mut unused, mut floor) = (0usize, Vec::new(), Stage::Head);
        for (stage, param) in self.params_mut() {
            let inside = |s: &ParamSpec| param.at.start <= s.at.start && s.at.end <= param.at.end;
            let from = specs.partition_point(|s| s.at.start < param.at.start);
            let many = specs[from..].iter().take_while(|s| inside(s)).count();
            let specs = &mut specs[from..from + many];
            (param.parts, param.whole) = (Vec::new(), None);
            specs.iter_mut().for_each(|s| s.grad = 0..0);
            if !specs.iter().any(|s| s.trains) {
                continue;
            }
            floor = floor.min(stage);
            end = end.next_multiple_of(ALIGN);
            let start = end;
            let whole = specs.iter().all(|s| s.trains) || !specs[0].decay;
            for spec in specs {
                let room = end..end + spec.at.len();
                if spec.trains {
                    spec.grad = room.clone();
                    let of = spec.at.start - param.at.start..spec.at.end - param.at.start;
                    match param.parts.last_mut().filter(|p| (p.of.end, p.grad.end) == (of.start, room.start)) {
                        Some(last) => (last.of.end, last.grad.end) = (of.end, room.end),
                        None => param.parts.push(Part { of, grad: room.clone() }),
                    }
                } else if whole {
                    unused.push(room.clone());
                }
                if spec.trains || whole {
                    end = room.end;
                }
            }
            param.whole = whole.then_some(start..end);
        }
        if self.head.at == self.embed.at {
            self.head = self.embed.clone();
        }
        self.trained_len = end.next_multiple_of(ALIGN);
        self.runs = runs(&specs);
        (self.specs, self.unused, self.floor) = (specs, unused, floor);
    }

    /// The tensor of that name.
    pub fn spec(&self, name: &str) -> Option<&ParamSpec> {
        self.specs.iter().find(|s| s.name == name)
    }
}

/// What is next to each other in both arenas; the gaps between blocks count as part of a run.
fn runs(specs: &[ParamSpec]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut before = None;
    for (i, spec) in specs.iter().enumerate().filter(|(_, s)| s.trains) {
        let last = runs.last_mut().filter(|r| {
            let gaps = (spec.at.start - r.at.end, spec.grad.start - r.grad.end);
            before == Some(i - 1) && r.decay == spec.decay && gaps.0 == gaps.1
        });
        match last {
            Some(last) => (last.at.end, last.grad.end) = (spec.at.end, spec.grad.end),
            None => runs.push(Run { at: spec.at.clone(), grad: spec.grad.clone(), decay: spec.decay }),
        }
        before = Some(i);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(bias: bool) -> ParamTable {
        let json = serde_json::json!({
            "model_type": "qwen2", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "vocab_size": 7,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": bias,
        });
        ParamTable::new(&ModelConfig::parse("config.json".as_ref(), json.as_object().unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn where_everything_trains_the_arenas_are_the_same() {
        for table in [table(false), table(true)] {
            assert_eq!((table.trained_len, table.floor, &table.unused[..]), (table.len, Stage::Embed, &[][..]));
            assert!(table.specs.iter().all(|s| s.grad == s.at));
            let [a, b] = &table.runs[..] else { panic!("{:?}", table.runs) };
            assert!(a.at == a.grad && b.at == b.grad && a.decay && !b.decay && b.at.start == table.decay_len);
            assert_eq!(table.layers[1].qkv.whole, Some(table.layers[1].qkv.at.clone()));
        }
    }

    #[test]
    fn what_is_frozen_takes_no_room() {
        let mut table = table(false);
        table.set_trains(|n| {
            n.contains("layers.1.self_attn.k_proj") || n.contains("layers.2.mlp") || n == "model.norm.weight"
        });
        let k = table.spec("model.layers.1.self_attn.k_proj.weight").unwrap().clone();
        let qkv = &table.layers[1].qkv;
        let of = k.at.start - qkv.at.start..k.at.end - qkv.at.start;
        assert_eq!((&qkv.parts[..], &qkv.whole), (&[Part { of, grad: 0..72 }][..], &None));
        // The bias of queries and values has room, so that one op can sum up all three.
        let bias = table.layers[1].qkv_bias.as_ref().unwrap();
        assert_eq!(bias.whole.as_ref().unwrap().len(), 24);
        assert_eq!(table.unused.iter().map(Range::len).collect::<Vec<_>>(), [12, 6]);
        assert_eq!(
            (table.floor, table.embed.trains(), table.head.trains()),
            (Stage::Layer(1, Place::Qkv), false, false)
        );
        let trained: usize = table.runs.iter().map(|r| r.grad.len()).sum();
        assert!(table.runs.iter().all(|r| r.at.len() == r.grad.len()) && trained >= table.num_trained());
        assert!(table.trained_len < table.len / 2 && table.num_trained() == 72 + 6 + 3 * 240 + 12);
        table.set_trains(|_| false);
        assert_eq!((table.trained_len, table.floor, table.runs.len()), (0, Stage::Head, 0));
        table.set_trains(|_| true);
        assert_eq!(table, self::table(false));
    }
}
