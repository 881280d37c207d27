//! Which prompts must fall on the same side of a split.
//!
//! A row's key is the identity of its prompt as it was given. Rows with the same prompt ids make one group whatever their keys,
//! and rows with the same key are of one family whatever their groups: the keys of one group belong together, and so do the
//! groups of one key. A family's side follows from the smallest of its keys, so it does not depend on the rows' order.

use super::record::Print;
use super::repeats::ByHash;
use sha2::{Digest, Sha256};

/// Keys that share a group with others; every other key is a family of its own. Memory: about 60 bytes a key that is here.
#[derive(Default)]
pub(super) struct Families {
    number: ByHash<Print, u32>,
    /// Parent of each key by number; the root of a tree is its own.
    parent: Vec<u32>,
    /// Of a root: the smallest key of its tree.
    least: Vec<Print>,
}

impl Families {
    /// Two keys of one group.
    pub fn join(&mut self, a: Print, b: Print) {
        if a == b {
            return;
        }
        let (a, b) = (self.add(a), self.add(b));
        let (a, b) = (self.root(a), self.root(b));
        if a != b {
            self.parent[a as usize] = b;
            self.least[b as usize] = self.least[a as usize].min(self.least[b as usize]);
        }
    }

    fn add(&mut self, key: Print) -> u32 {
        let next = self.parent.len() as u32;
        let at = *self.number.entry(key).or_insert(next);
        if at == next {
            self.parent.push(at);
            self.least.push(key);
        }
        at
    }

    fn root(&mut self, mut at: u32) -> u32 {
        while self.parent[at as usize] != at {
            let parent = self.parent[at as usize];
            self.parent[at as usize] = self.parent[parent as usize];
            at = parent;
        }
        at
    }

    /// Whether the family of `key` is held out: a function of its smallest key and `seed` alone.
    pub fn is_eval(&mut self, key: Print, fraction: f64, seed: u64) -> bool {
        let least = match self.number.get(&key) {
            Some(&at) => {
                let root = self.root(at);
                self.least[root as usize]
            }
            None => key,
        };
        let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(least).finalize();
        let draw = u64::from_le_bytes(std::array::from_fn(|i| digest[i])) >> 11;
        (draw as f64) / ((1u64 << 53) as f64) < fraction
    }
}
