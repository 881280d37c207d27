//! Small shards for tests.

use fusedpo::data::shard::format::Meta;
use fusedpo::data::shard::{NewGroup, NewPair, NewResponse, ShardSummary, ShardWriter};
use proptest::prelude::*;
use std::path::Path;

/// Tokens, score, label, row, index.
pub type OwnResponse = (Vec<u32>, Option<f32>, Option<bool>, u64, u32);

/// A group that owns its tokens.
#[derive(Clone, Debug)]
pub struct Own {
    pub prompt: Vec<u32>,
    pub responses: Vec<OwnResponse>,
    pub pairs: Vec<(u32, u32, f32)>,
}

impl Own {
    pub fn view(&self) -> NewGroup<'_> {
        NewGroup {
            prompt: &self.prompt,
            responses: self
                .responses
                .iter()
                .map(|(t, score, label, row, index)| NewResponse {
                    tokens: t,
                    score: *score,
                    label: *label,
                    row: *row,
                    index: *index,
                })
                .collect(),
            pairs: self.pairs.iter().map(|&(chosen, rejected, weight)| NewPair { chosen, rejected, weight }).collect(),
        }
    }
}

pub fn meta(vocab_size: u32) -> Meta {
    Meta {
        vocab_size,
        eos_id: Some(2),
        bos_rule: 1,
        tokenizer_sha256: [7; 32],
        template_sha256: [0; 32],
        max_length: 1024,
        truncation: 1,
        boundary: 1,
    }
}

pub fn write(path: &Path, meta: &Meta, groups: &[Own]) -> ShardSummary {
    let mut w = ShardWriter::create(path, meta).unwrap();
    groups.iter().for_each(|g| w.push(&g.view()).unwrap());
    w.finish().unwrap()
}

#[allow(dead_code)] // shared by several test programs
pub fn own_group(vocab: u32) -> impl Strategy<Value = Own> {
    let tokens = move |min| prop::collection::vec(0..vocab, min..9);
    let response = (tokens(1), prop::option::of(-9f32..9.0), prop::option::of(any::<bool>()), 0u64..1 << 40, 0u32..9);
    (tokens(0), prop::collection::vec(response, 1..5), prop::collection::vec((0u32..99, 0u32..99, 0.1f32..3.0), 0..5))
        .prop_map(|(prompt, responses, pairs)| {
            let n = responses.len() as u32;
            let pairs = pairs.into_iter().map(|(c, r, w)| (c % n, r % n, w)).filter(|(c, r, _)| c != r).collect();
            Own { prompt, responses, pairs }
        })
}
