//! Shards: round trips, damage of every kind, and the Python twin.

mod shards;

use fusedpo::data::dataset::{Dataset, Split};
use proptest::prelude::*;
use shards::{meta, own_group, write};

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
