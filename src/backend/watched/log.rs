//! What was seen of ops.

use crate::backend::ops::device::Mark;
use crate::batch::MicroBatch;
use std::ops::Range;

/// A buffer that ops read or write a part of, and that was made known ([`super::Watched::know`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arena {
    /// Weights of the policy.
    Weights,
    /// Weights of the reference.
    Reference,
    /// Gradients, from the first of the trained arena on.
    Gradients,
    /// Those of norms and biases, where they are apart.
    Vectors,
    /// Weights in four bits.
    Codes,
}

/// A part of an [`Arena`] that an op was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Viewed {
    /// Which.
    pub arena: Arena,
    /// Its elements.
    pub at: Range<usize>,
}

/// What a row of an output stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Rows of the micro-batch.
    Slots,
    /// Predictions, from that one on.
    Predictions(usize),
    /// Responses, from that one on.
    Responses(usize),
    /// Pairs, from that one on.
    Pairs(usize),
    /// Numbers of parameters, in the order of what was [`Viewed`].
    Parameters,
    /// Nothing.
    Whole,
}

/// The numbers of an output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Numbers {
    /// How many.
    pub len: usize,
    /// Smallest of the finite ones; infinite where there is none.
    pub min: f64,
    /// Largest of the finite ones; likewise.
    pub max: f64,
    /// How many are not finite.
    pub non_finite: usize,
    /// The first of these: its place, and what it is.
    pub first: Option<(usize, f64)>,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { len: 0, min: f64::INFINITY, max: f64::NEG_INFINITY, non_finite: 0, first: None }
    }
}

impl Numbers {
    /// Takes note of the next one.
    #[inline]
    pub fn add(&mut self, x: f64) {
        if x.is_finite() {
            self.min = self.min.min(x);
            self.max = self.max.max(x);
        } else {
            self.non_finite += 1;
            self.first = self.first.or(Some((self.len, x)));
        }
        self.len += 1;
    }

    /// Takes note of those of another piece, which come next.
    pub fn join(&mut self, next: &Numbers) {
        self.min = self.min.min(next.min);
        self.max = self.max.max(next.max);
        self.non_finite += next.non_finite;
        self.first = self.first.or(next.first.map(|(i, x)| (self.len + i, x)));
        self.len += next.len;
    }

    /// Largest size of the finite ones; 0 where there is none.
    pub fn max_abs(&self) -> f64 {
        if self.min > self.max { 0.0 } else { self.min.abs().max(self.max.abs()) }
    }
}

/// An output of an op that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Part of the step, as `forward`.
    pub stage: &'static str,
    /// Layer that was named.
    pub layer: Option<usize>,
    /// Whether rows that predict something were gathered, and the others left behind.
    pub gathered: bool,
    /// Micro-batch: how many were loaded before.
    pub batch: Option<usize>,
    /// The op, as the backend has it.
    pub op: &'static str,
    /// Its argument that was written.
    pub output: &'static str,
    /// Known buffers among its arguments.
    pub viewed: Vec<Viewed>,
    /// What its rows are.
    pub rows: Rows,
    /// Numbers of a row.
    pub width: usize,
    /// Its numbers.
    pub numbers: Numbers,
}

/// All of it, and what is needed to say where an op stands.
#[derive(Default)]
pub(super) struct Log {
    pub on: bool,
    pub known: Vec<(usize, Arena)>,
    pub marks: Vec<Mark>,
    pub viewed: Vec<Viewed>,
    pub gathered: bool,
    /// First prediction of the chunk that the head is at.
    pub chunk: usize,
    pub batches: Vec<MicroBatch>,
    pub seen: Vec<Seen>,
    /// Ops and their seconds, where they are asked for.
    pub times: Option<Vec<(&'static str, f64)>>,
}

impl Log {
    pub fn view(&mut self, address: usize, at: &Range<usize>) {
        let known = self.known.iter().find(|(of, _)| *of == address).filter(|_| self.on && !at.is_empty());
        if let Some((_, arena)) = known {
            self.viewed.push(Viewed { arena: *arena, at: at.clone() });
        }
    }

    /// An op was done whose outputs are about to be looked at.
    pub fn before(&mut self, op: &str) {
        match op {
            "gather_rows" => self.gathered = true,
            "scatter_rows" => self.gathered = false,
            _ => {}
        }
    }

    pub fn add(&mut self, op: &'static str, output: &'static str, (rows, width): (Rows, usize), numbers: Numbers) {
        let stage = self.marks.iter().rev().find_map(|m| match m {
            Mark::Stage(name) => Some(*name),
            Mark::Layer(_) => None,
        });
        let layer = match self.marks.last() {
            Some(Mark::Layer(l)) => Some(*l),
            _ => None,
        };
        let rows = if rows == Rows::Slots && self.gathered { Rows::Predictions(0) } else { rows };
        self.seen.push(Seen {
            stage: stage.unwrap_or("step"),
            layer,
            gathered: self.gathered,
            batch: self.batches.len().checked_sub(1),
            op,
            output,
            viewed: self.viewed.clone(),
            rows,
            width,
            numbers,
        });
    }
}
