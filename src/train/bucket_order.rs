//! When the backward pass has the gradients of each bucket whole: in this order they travel, on every rank.

use super::shares::Shares;
use crate::model::ParamTable;
use crate::model::params::Param;
use std::cmp::Reverse;
use std::ops::Range;

/// A bucket, and when it can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// Once this layer and all above it are behind the pass; where there is none, once all is.
    pub after: Option<usize>,
    /// Which.
    pub bucket: usize,
}

/// Every bucket once, those that are whole first coming first.
pub(super) fn order(table: &ParamTable, shares: &Shares) -> Vec<Due> {
    let mut params: Vec<(Range<usize>, Option<usize>)> = Vec::new();
    let mut add = |p: &Param, after| params.extend(p.grads().map(|at| (at.clone(), after)));
    // The head and the norm are behind the pass before it comes to a layer.
    let above = Some(table.layers.len());
    add(&table.embed, None);
    [&table.head, &table.norm].into_iter().for_each(|p| add(p, above));
    for (l, layer) in table.layers.iter().enumerate() {
        layer.params().for_each(|p| add(p, Some(l)));
    }
    let lowest = |bucket: usize| {
        let pieces: Vec<_> = shares.pieces(shares.bucket(bucket)).collect();
        let met = |at: &Range<usize>| pieces.iter().any(|p| p.place.grad.start < at.end && at.start < p.place.grad.end);
        params.iter().filter(|(at, _)| met(at)).map(|(_, after)| *after).min().unwrap_or(above)
    };
    let mut all: Vec<Due> = shares.buckets().map(|bucket| Due { after: lowest(bucket), bucket }).collect();
    all.sort_by_key(|due| (Reverse(due.after), due.bucket));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::World;
    use crate::model::ModelConfig;

    #[test]
    fn no_bucket_goes_before_all_of_it_is_there() {
        for tied in [true, false] {
            let text = format!(
                r#"{{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 640,
                "intermediate_size": 1100, "num_hidden_layers": 7, "num_attention_heads": 5, "num_key_value_heads": 1,
                "vocab_size": 9021, "rms_norm_eps": 1e-5, "tie_word_embeddings": {tied}, "max_position_embeddings": 64}}"#
            );
            let map = serde_json::from_str(&text).unwrap();
            let table = ParamTable::new(&ModelConfig::parse("config.json".as_ref(), &map).unwrap()).unwrap();
            let shares = Shares::new(&table, false, World::of(0, 2));
            let order = order(&table, &shares);
            assert!(order.windows(2).all(|two| two[0].after >= two[1].after));
            let mut buckets: Vec<usize> = order.iter().map(|due| due.bucket).collect();
            buckets.sort_unstable();
            assert!(buckets.into_iter().eq(shares.buckets()));
            for due in &order {
                let pieces: Vec<_> = shares.pieces(shares.bucket(due.bucket)).collect();
                let inside = |at: &Range<usize>| {
                    pieces.iter().any(|p| p.place.grad.contains(&at.start) || at.contains(&p.place.grad.start))
                };
                let of = table.specs.iter().filter(|spec| inside(&spec.grad));
                let layer = |name: &str| name.split_once("layers.")?.1.split('.').next()?.parse::<usize>().ok();
                let want = of.map(|spec| match spec.name.as_str() {
                    name if name.contains("embed_tokens") => None,
                    name => layer(name).or(Some(7)),
                });
                assert_eq!(due.after, want.min().unwrap(), "{due:?}");
            }
            // Most of it travels while the pass goes on.
            let early = order.iter().filter(|due| due.after > Some(0)).count();
            assert!(2 * early > order.len(), "{order:?}");
        }
    }
}
