//! Gradients of what trains, in the layout of the trained arena ([`ParamTable`]).
//!
//! A step's first micro-batch sets the gradients of layers' matrices and of the head, nearly all there is, and the others add
//! to them: zeros need not be written first, nor read. Where passes are recorded, one recording serves every micro-batch of
//! a step, and all add.

use super::params::{Param, ParamTable};
use crate::backend::{AccMut, Backend, Device, EmbedBwd, Gradient, HeadBwd, LinearBwdPart, LinearBwdWeight, Write};
use crate::error::{Error, Result};
use half::bf16;
use std::ops::Range;

/// Activations, or their gradients.
pub(super) type ActBuf<B> = <B as Device>::Buf<<B as Device>::Act>;

/// Gradients, and which of them are yet to be set.
pub struct Gradients<B: Backend> {
    /// The numbers; of what is yet to be set, those of the step before.
    pub sums: Sums<B>,
    /// What is cleared for a step, the rest being set whole; `None`: all of it.
    cleared: Option<Vec<Range<usize>>>,
    /// Of layers' matrices.
    unset: bool,
    /// Of the head's.
    head_unset: bool,
}

/// Where gradients are summed up: all in accumulation precision, or those of matrices in bf16.
pub enum Sums<B: Backend> {
    /// All in accumulation precision.
    Full(B::Buf<B::Acc>),
    /// Matrices, which come first in the trained arena, in bf16: a product is rounded to it once a micro-batch, with what was there.
    /// Norms and biases, a thousandth of the weights, stay in accumulation precision.
    Narrow {
        /// Elements `0..split` of the trained arena.
        matrices: B::Buf<bf16>,
        /// The others.
        vectors: B::Buf<B::Acc>,
        /// Where vectors begin.
        split: usize,
    },
}

impl<B: Backend> From<Sums<B>> for Gradients<B> {
    /// All of them set; each step clears them all.
    fn from(sums: Sums<B>) -> Self {
        Self { sums, cleared: None, unset: false, head_unset: false }
    }
}

/// What becomes of a gradient.
fn write(unset: bool) -> Write<()> {
    if unset { Write::Set } else { Write::Add }
}

/// What of the trained arena a micro-batch sets whole: layers' matrices, and the head's.
fn set_whole(table: &ParamTable) -> impl Iterator<Item = &Range<usize>> {
    let layers = table.layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
    layers.chain([&table.head]).filter_map(|p| p.whole.as_ref())
}

/// The rest of it.
fn not_set_whole(table: &ParamTable) -> Vec<Range<usize>> {
    let mut whole: Vec<_> = set_whole(table).collect();
    whole.sort_unstable_by_key(|r| r.start);
    let starts = std::iter::once(0).chain(whole.iter().map(|r| r.end));
    let ends = whole.iter().map(|r| r.start).chain([table.trained_len]);
    starts.zip(ends).filter(|(start, end)| start < end).map(|(start, end)| start..end).collect()
}

impl<B: Backend> Gradients<B> {
    /// Zeros for what trains in `table`.
    pub fn new(be: &B, table: &ParamTable, narrow: bool) -> Result<Self> {
        let (n, split) = (table.trained_len, table.trained_matrices);
        let sums = match narrow {
            false => Sums::Full(be.zeros("gradients", n)?),
            true => Sums::Narrow {
                matrices: be.zeros("gradients", split)?,
                vectors: be.zeros("gradients of norms and biases", n - split)?,
                split,
            },
        };
        Ok(Self { cleared: (!B::GRAPHS).then(|| not_set_whole(table)), ..Self::from(sums) })
    }

    /// Makes all count as zero.
    pub fn clear(&mut self, be: &B, table: &ParamTable) -> Result<()> {
        let Some(cleared) = self.cleared.take() else { return self.zero(be, 0..table.trained_len) };
        let done = cleared.iter().try_for_each(|at| self.zero(be, at.clone()));
        (self.cleared, self.unset, self.head_unset) = (Some(cleared), true, true);
        done
    }

    /// Sets to zero what no micro-batch has set.
    pub fn settle(&mut self, be: &B, table: &ParamTable) -> Result<()> {
        self.settle_head(be, table)?;
        if std::mem::take(&mut self.unset) {
            set_whole(table)
                .filter(|r| Some(*r) != table.head.whole.as_ref())
                .try_for_each(|r| self.zero(be, r.clone()))?;
        }
        Ok(())
    }

    /// [`Gradients::settle`] of the head's: a micro-batch without predictions has left it.
    pub(super) fn settle_head(&mut self, be: &B, table: &ParamTable) -> Result<()> {
        match (std::mem::take(&mut self.head_unset), &table.head.whole) {
            (true, Some(at)) => self.zero(be, at.clone()),
            _ => Ok(()),
        }
    }

    /// A micro-batch has gone through the layers.
    pub(super) fn layers_are_set(&mut self) {
        self.unset = false;
    }

    /// Sets the elements `at` of the trained arena to zero.
    fn zero(&mut self, be: &B, at: Range<usize>) -> Result<()> {
        if at.is_empty() {
            return Ok(());
        }
        match &mut self.sums {
            Sums::Full(all) => be.clear(be.view_mut(all, at)),
            Sums::Narrow { matrices, vectors, split } => {
                let split = *split;
                if at.start < split {
                    be.clear(be.view_mut(matrices, at.start..at.end.min(split)))?;
                }
                if at.end > split {
                    be.clear(be.view_mut(vectors, at.start.max(split) - split..at.end - split))?;
                }
                Ok(())
            }
        }
    }

    /// The elements `at` of the trained arena, which are of vectors.
    pub fn vectors(&mut self, be: &B, at: Range<usize>) -> AccMut<'_, B> {
        match &mut self.sums {
            Sums::Full(all) => be.view_mut(all, at),
            Sums::Narrow { vectors, split, .. } => be.view_mut(vectors, at.start - *split..at.end - *split),
        }
    }

    /// Where they are: recorded ops keep to it.
    pub fn address(&self, be: &B) -> usize {
        match &self.sums {
            Sums::Full(all) => be.address(all),
            Sums::Narrow { matrices, .. } => be.address(matrices),
        }
    }

    /// All of them, where all are in accumulation precision.
    pub fn all(&self) -> Option<&B::Buf<B::Acc>> {
        match &self.sums {
            Sums::Full(all) => Some(all),
            Sums::Narrow { .. } => None,
        }
    }

    /// [`Gradients::all`], to write. Errors: matrices are in bf16.
    pub(super) fn full(&mut self) -> Result<&mut B::Buf<B::Acc>> {
        match &mut self.sums {
            Sums::Full(all) => Ok(all),
            Sums::Narrow { .. } => Err(Error::usage("an adapter's gradients are not kept in bf16")),
        }
    }

    /// Where the gradient of a vector goes; nowhere when frozen.
    pub(super) fn vector(&mut self, be: &B, p: &Param) -> Option<AccMut<'_, B>> {
        p.whole.clone().map(|whole| self.vectors(be, whole))
    }

    /// `dw {=,+=} dy^T x` for the parts of `p` that train; `dy` is rows x `out`, `x` rows x `inp`.
    pub(super) fn matrix(
        &mut self,
        be: &B,
        p: &Param,
        of: (&ActBuf<B>, &ActBuf<B>, usize),
        sizes: (usize, usize),
    ) -> Result<()> {
        let write = write(self.unset);
        match &mut self.sums {
            Sums::Full(all) => matrix(be, p, (all, write), of, sizes),
            Sums::Narrow { matrices, .. } => matrix(be, p, (matrices, write), of, sizes),
        }
    }

    /// The embedding's, where it trains.
    pub(super) fn embedding<'a>(
        &'a mut self,
        be: &B,
        p: &Param,
        (dx, batch, dim): (B::View<'a, B::Act>, &'a B::Batch, usize),
    ) -> Result<()> {
        let Some(at) = p.whole.clone() else { return Ok(()) };
        match &mut self.sums {
            Sums::Full(all) => be.embed_bwd(EmbedBwd { dtable: be.view_mut(all, at), dx, batch, dim }),
            Sums::Narrow { matrices, .. } => {
                be.embed_bwd(EmbedBwd { dtable: be.view_mut(matrices, at), dx, batch, dim })
            }
        }
    }

    /// The head's backward pass, its own gradient among what it gives where it trains.
    pub(super) fn head<'a>(&'a mut self, be: &B, p: &Param, op: HeadBwd<'a, B>) -> Result<()> {
        let HeadBwd { dx, dw: _, scaled, logits, x, w, coef } = op;
        let write = write(std::mem::take(&mut self.head_unset));
        match &mut self.sums {
            Sums::Full(all) => {
                let dw = p.whole.clone().map(|at| (be.view_mut(all, at), write));
                be.head_bwd(HeadBwd { dx, dw, scaled, logits, x, w, coef })
            }
            Sums::Narrow { matrices, .. } => {
                let dw = p.whole.clone().map(|at| (be.view_mut(matrices, at), write));
                be.head_bwd(HeadBwd { dx, dw, scaled, logits, x, w, coef })
            }
        }
    }
}

fn matrix<B: Backend, G: Gradient>(
    be: &B,
    p: &Param,
    (grads, write): (&mut B::Buf<G>, Write<()>),
    (dy, x, rows): (&ActBuf<B>, &ActBuf<B>, usize),
    (out, inp): (usize, usize),
) -> Result<()> {
    if let Some(whole) = p.whole.clone() {
        let (dy, x) = (be.view(dy, 0..rows * out), be.view(x, 0..rows * inp));
        return be.linear_bwd_weight(LinearBwdWeight { dw: be.view_mut(grads, whole), dy, x, out, inp, write });
    }
    for part in &p.parts {
        let (dy, x) = (be.view(dy, 0..rows * out), be.view(x, 0..rows * inp));
        let columns = part.of.start / inp..part.of.end / inp;
        be.linear_bwd_part(LinearBwdPart { dw: be.view_mut(grads, part.grad.clone()), dy, x, columns, out, inp })?;
    }
    Ok(())
}
