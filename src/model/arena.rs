//! The trained arena: where in it what trains lies, and what follows from that. The table is in `params.rs`.

use super::params::{ALIGN, LayerParams, Param, ParamSpec, ParamTable, Part, Place, Run, Stage};

impl ParamTable {
    /// Parameters that train.
    pub fn num_trained(&self) -> usize {
        self.specs.iter().map(|s| s.grad.len()).sum()
    }

    /// Blocks of all tensors that train, `of` saying how many a tensor of so many elements has.
    pub fn trained_blocks(&self, of: impl Fn(usize) -> usize) -> usize {
        self.specs.iter().map(|s| of(s.grad.len())).sum()
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
            let LayerParams { input_norm, qkv, qkv_bias, qk_norm, o, o_bias, post_norm, gate_up, down, low_rank } =
                layer;
            let places = [Place::Qkv, Place::Output, Place::GateUp, Place::Down];
            for (place, adapter) in places.into_iter().zip(low_rank) {
                let both = adapter.iter_mut().flat_map(|p| [&mut p.a, &mut p.b]);
                all.extend(both.map(|p| (Stage::Layer(l, place), p)));
            }
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
        // What is in four bits is not in it.
        all.retain(|(_, p)| p.nf4.is_empty());
        all.sort_by_key(|(_, p)| p.at.start);
        all.into_iter()
    }

    /// Places what trains, in the order of the arena and aligned as there; finds what follows from that.
    pub(super) fn lay_out(&mut self) {
        let mut specs = std::mem::take(&mut self.specs);
        let (mut end, mut unused, mut floor, mut matrices) = (0usize, Vec::new(), Stage::Head, None);
        // What is part of a weight that is in four bits else does not train.
        let beside = self.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]).flat_map(|p| &p.dense);
        for (_, at) in beside {
            let i = specs.partition_point(|s| s.at.start < at.start);
            (specs[i].trains, specs[i].grad) = (false, 0..0);
        }
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
            if !specs[0].decay {
                matrices.get_or_insert(start);
            }
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
        self.trained_matrices = matrices.unwrap_or(self.trained_len);
        self.runs = runs(&specs);
        (self.specs, self.unused, self.floor) = (specs, unused, floor);
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
    use super::super::config::ModelConfig;
    use super::*;
    use std::ops::Range;

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
            assert_eq!(table.trained_matrices, table.decay_len);
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
        let bias = table.layers[1].qkv_bias.as_ref().unwrap().whole.as_ref().unwrap().start;
        assert!(table.trained_matrices == bias && bias >= 72 + 3 * 240, "{bias}");
        assert!(table.trained_len < table.len / 2 && table.num_trained() == 72 + 6 + 3 * 240 + 12);
        table.set_trains(|_| false);
        assert_eq!((table.trained_len, table.trained_matrices, table.runs.len()), (0, 0, 0));
        assert_eq!(table.floor, Stage::Head);
        table.set_trains(|_| true);
        assert_eq!(table, self::table(false));
    }
}
