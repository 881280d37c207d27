//! Parameters that are updated together, in blocks: neighbours in both arenas, or single tensors where moments have blocks of their own.

use crate::backend::code8;
use crate::model::ParamTable;
use crate::model::params::{ParamSpec, Run};
use std::borrow::Borrow;
use std::ops::Range;

/// Elements of a block: whole blocks of 8-bit moments, and little beside a bucket.
pub const BLOCK: usize = 1 << 14;

/// Parameters that are updated together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// In the arena of weights.
    pub at: Range<usize>,
    /// In the trained arena.
    pub grad: Range<usize>,
    /// Whether weight decay applies: matrices, not vectors.
    pub decay: bool,
    /// Their scales, where 8-bit moments have some.
    pub scales: Range<usize>,
}

/// A [`Place`], or what a rank has of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is.
    pub place: Place,
    /// Its blocks among all.
    pub blocks: Range<usize>,
    /// Where it begins in what this rank keeps of moments and masters, and of scales.
    pub held: [usize; 2],
}

/// What is laid out among the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An element a parameter, in the layout of the trained arena.
    Elements,
    /// A scale a block of 8-bit moments.
    Scales,
}

impl Place {
    /// Its numbers of `kind`.
    pub fn of(&self, kind: Kind) -> &Range<usize> {
        match kind {
            Kind::Elements => &self.grad,
            Kind::Scales => &self.scales,
        }
    }

    /// How many blocks it has, the last of which may be shorter.
    pub fn blocks(&self) -> usize {
        self.grad.len().div_ceil(BLOCK)
    }

    /// Some of its blocks, counted from its own first.
    pub fn cut(&self, blocks: Range<usize>) -> Place {
        let (from, upto) = (blocks.start * BLOCK, (blocks.end * BLOCK).min(self.grad.len()));
        let within = |range: &Range<usize>| range.start + from..range.start + upto;
        let scales = match self.scales.is_empty() {
            true => self.scales.clone(),
            false => self.scales.start + from / code8::BLOCK..self.scales.start + code8::blocks(upto),
        };
        Place { at: within(&self.at), grad: within(&self.grad), scales, ..*self }
    }
}

/// Parameters in `pieces`.
pub fn length(pieces: impl IntoIterator<Item: Borrow<Piece>>) -> usize {
    pieces.into_iter().map(|piece| piece.borrow().place.grad.len()).sum()
}

/// Every parameter that trains, in order: neighbours in both arenas together, unless a tensor has blocks of its own (`coded`).
pub fn places(table: &ParamTable, coded: bool) -> Vec<Place> {
    if !coded {
        let of = |run: &Run| Place { at: run.at.clone(), grad: run.grad.clone(), decay: run.decay, scales: 0..0 };
        return table.runs.iter().map(of).collect();
    }
    let mut end = 0;
    let of = |spec: &ParamSpec| {
        let scales = end..end + code8::blocks(spec.grad.len());
        end = scales.end;
        Place { at: spec.at.clone(), grad: spec.grad.clone(), decay: spec.decay, scales }
    };
    table.specs.iter().filter(|spec| spec.trains).map(of).collect()
}
