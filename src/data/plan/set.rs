//! A set of a data set's responses.

/// Some of a data set's responses, by their ids: a bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseSet {
    words: Vec<u64>,
    len: u64,
}

impl ResponseSet {
    /// None of `all`.
    pub fn none(all: u64) -> Self {
        Self { words: vec![0; all.div_ceil(64) as usize], len: 0 }
    }

    /// Those of `all` for which `is_in` says so.
    pub fn of(all: u64, is_in: impl Fn(u64) -> bool) -> Self {
        let mut set = Self::none(all);
        (0..all).filter(|id| is_in(*id)).for_each(|id| set.insert(id));
        set
    }

    /// Adds a response. Panics unless there is such a one.
    pub fn insert(&mut self, id: u64) {
        let word = &mut self.words[(id / 64) as usize];
        let bit = 1 << (id % 64);
        self.len += u64::from(*word & bit == 0);
        *word |= bit;
    }

    /// Whether it is in the set.
    pub fn contains(&self, id: u64) -> bool {
        self.words.get((id / 64) as usize).is_some_and(|w| w >> (id % 64) & 1 == 1)
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_in_once() {
        let mut set = ResponseSet::none(130);
        assert!(set.is_empty() && !set.contains(64));
        [64, 129, 64, 0].into_iter().for_each(|id| set.insert(id));
        assert_eq!(set.len(), 3);
        let is_in: Vec<u64> = (0..300).filter(|id| set.contains(*id)).collect();
        assert_eq!(is_in, [0, 64, 129]);
        assert_eq!(ResponseSet::of(130, |id| [0, 64, 129].contains(&id)), set);
    }
}
