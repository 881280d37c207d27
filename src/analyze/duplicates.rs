//! Contradicting duplicates: the same two responses to the same prompt, once this way round and once that way.

use super::pairs::SeenPair;
use crate::data::shard::Dataset;
use std::collections::HashMap;

/// Two pairs that contradict one another, as indices of the slice that was asked: the first is the one that the policy agrees with
/// more. `pairs` are of `data`. In the order of the data; a pair stands in one at most.
pub fn contradicting(pairs: &[SeenPair], data: &Dataset) -> Vec<[usize; 2]> {
    let mut by_group: HashMap<u64, Vec<usize>> = HashMap::new();
    pairs.iter().enumerate().for_each(|(i, p)| by_group.entry(p.group).or_default().push(i));
    let mut groups: Vec<_> = by_group.into_iter().filter(|(_, of)| of.len() > 1).collect();
    groups.sort_unstable();
    let mut found = Vec::new();
    for (id, of) in groups {
        let group = data.group(id);
        let tokens = |i: usize| pairs[i].responses.map(|r| group.response(r).tokens.to_vec());
        let mut seen: HashMap<[Vec<u32>; 2], Vec<usize>> = HashMap::new();
        for i in of {
            let [chosen, rejected] = tokens(i);
            let opposite = [rejected.clone(), chosen.clone()];
            match seen.get_mut(&opposite).and_then(Vec::pop) {
                Some(other) => {
                    let agrees = pairs[other].gain() >= pairs[i].gain();
                    found.push(if agrees { [other, i] } else { [i, other] });
                }
                None => seen.entry([chosen, rejected]).or_default().push(i),
            }
        }
    }
    found
}
