//! Shards: round trips, damage of every kind, and the Python twin.

use fusedpo::data::dataset::{Dataset, Split};
use fusedpo::data::format::Meta;
use fusedpo::data::shard_write::{NewGroup, NewPair, NewResponse, ShardSummary, ShardWriter};
use proptest::prelude::*;
use std::path::Path;

/// A group that owns its tokens.
#[derive(Clone, Debug)]
struct Own {
    prompt: Vec<u32>,
    responses: Vec<(Vec<u32>, Option<f32>, Option<bool>, u64, u32)>,
    pairs: Vec<(u32, u32, f32)>,
}

impl Own {
    fn new(&self) -> NewGroup<'_> {
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

fn meta(vocab_size: u32) -> Meta {
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

fn write(path: &Path, meta: &Meta, groups: &[Own]) -> ShardSummary {
    let mut w = ShardWriter::create(path, meta).unwrap();
    groups.iter().for_each(|g| w.push(&g.new()).unwrap());
    w.finish().unwrap()
}

fn own_group(vocab: u32) -> impl Strategy<Value = Own> {
    let tokens = move |min| prop::collection::vec(0..vocab, min..9);
    let response = (tokens(1), prop::option::of(-9f32..9.0), prop::option::of(any::<bool>()), 0u64..1 << 40, 0u32..9);
    (tokens(0), prop::collection::vec(response, 1..5), prop::collection::vec((0u32..99, 0u32..99, 0.1f32..3.0), 0..5))
        .prop_map(|(prompt, responses, pairs)| {
            let n = responses.len() as u32;
            let pairs = pairs.into_iter().map(|(c, r, w)| (c % n, r % n, w)).filter(|(c, r, _)| c != r).collect();
            Own { prompt, responses, pairs }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_was_written_is_read(wide in any::<bool>(), groups in prop::collection::vec(own_group(3000), 0..9), cut in 0usize..9) {
        let dir = tempfile::tempdir().unwrap();
        let meta = meta(if wide { 70_000 } else { 3000 });
        let cut = cut.min(groups.len());
        write(&dir.path().join("train-00000.pref"), &meta, &groups[..cut]);
        write(&dir.path().join("train-00001.pref"), &meta, &groups[cut..]);
        let data = Dataset::open(dir.path(), Split::Train).unwrap();
        data.verify().unwrap();
        prop_assert_eq!(data.meta(), &meta);
        prop_assert_eq!(data.num_groups(), groups.len() as u64);
        let (mut responses, mut pairs, mut tokens) = (0, 0, 0);
        for (id, own) in groups.iter().enumerate() {
            let g = data.try_group(id as u64).unwrap();
            prop_assert_eq!(g.prompt().to_vec(), own.prompt.clone());
            tokens += own.prompt.len();
            for (r, (t, score, label, row, index)) in g.responses().zip(&own.responses) {
                prop_assert_eq!(r.id, responses);
                prop_assert_eq!(&r.tokens.to_vec(), t);
                prop_assert_eq!(r.tokens.iter().collect::<Vec<_>>(), t.clone());
                prop_assert_eq!((r.score, r.label, r.row, r.index), (*score, *label, *row, *index));
                prop_assert_eq!(data.response_row(r.id), Some(*row));
                responses += 1;
                tokens += t.len();
            }
            prop_assert_eq!(g.num_pairs(), own.pairs.len());
            for (p, &(c, r, w)) in g.pairs().zip(&own.pairs) {
                prop_assert_eq!((p.id, p.chosen as u32, p.rejected as u32, p.weight), (pairs, c, r, w));
                pairs += 1;
            }
        }
        prop_assert_eq!((data.num_responses(), data.num_pairs(), data.num_tokens()), (responses, pairs, tokens as u64));
    }
}
