//! Micro-batches that several processes share.

use super::micro::MicroBatch;
use super::outline::Outline;
use std::ops::Range;

/// Micro-batches in order, of which a process has those that it computes, which follow each other; of the others it knows the
/// outlines. All of one process are its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batches {
    /// Of the micro-batches before its own.
    pub before: Vec<Outline>,
    /// Its own.
    pub own: Vec<MicroBatch>,
    /// Of those after them.
    pub after: Vec<Outline>,
}

impl Batches {
    /// Those of `mine` among all; the tokens of the others are let go.
    pub fn share(all: Vec<MicroBatch>, mine: Range<usize>) -> Self {
        let mut own = all;
        let after = own.split_off(mine.end).into_iter().map(MicroBatch::into_outline).collect();
        let rest = own.split_off(mine.start);
        let before = own.into_iter().map(MicroBatch::into_outline).collect();
        Self { before, own: rest, after }
    }

    /// The outlines of all, in order.
    pub fn all(&self) -> impl Iterator<Item = &Outline> + Clone {
        self.before.iter().chain(self.own.iter().map(MicroBatch::outline)).chain(&self.after)
    }

    /// See [`Batches::all`].
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Outline> {
        self.before.iter_mut().chain(self.own.iter_mut().map(MicroBatch::outline_mut)).chain(&mut self.after)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.before.len() + self.own.len() + self.after.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Vec<MicroBatch>> for Batches {
    /// All of them are its own.
    fn from(own: Vec<MicroBatch>) -> Self {
        Self { own, ..Self::default() }
    }
}
