//! Gradients of what trains, in the layout of the trained arena ([`ParamTable`]).

use super::params::{Param, ParamTable};
use crate::backend::{AccMut, Backend, Device, EmbedBwd, Gradient, HeadBwd, LinearBwdPart, LinearBwdWeight};
use crate::error::{Error, Result};
use half::bf16;
use std::ops::Range;

/// Activations, or their gradients.
pub(super) type ActBuf<B> = <B as Device>::Buf<<B as Device>::Act>;

/// Gradients: all in accumulation precision, or those of matrices in bf16.
pub enum Gradients<B: Backend> {
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

impl<B: Backend> Gradients<B> {
    /// Zeros for what trains in `table`.
    pub fn new(be: &B, table: &ParamTable, narrow: bool) -> Result<Self> {
        let (n, split) = (table.trained_len, table.trained_matrices);
        Ok(match narrow {
            false => Self::Full(be.zeros("gradients", n)?),
            true => Self::Narrow {
                matrices: be.zeros("gradients", split)?,
                vectors: be.zeros("gradients of norms and biases", n - split)?,
                split,
            },
        })
    }

    /// Sets all to zero.
    pub fn clear(&mut self, be: &B, table: &ParamTable) -> Result<()> {
        let n = table.trained_len;
        match self {
            Self::Full(all) => be.clear(be.view_mut(all, 0..n)),
            Self::Narrow { matrices, vectors, split } => {
                be.clear(be.view_mut(matrices, 0..*split))?;
                be.clear(be.view_mut(vectors, 0..n - *split))
            }
        }
    }

    /// The elements `at` of the trained arena, which are of vectors.
    pub fn vectors(&mut self, be: &B, at: Range<usize>) -> AccMut<'_, B> {
        match self {
            Self::Full(all) => be.view_mut(all, at),
            Self::Narrow { vectors, split, .. } => be.view_mut(vectors, at.start - *split..at.end - *split),
        }
    }

    /// Where they are: recorded ops keep to it.
    pub fn address(&self, be: &B) -> usize {
        match self {
            Self::Full(all) => be.address(all),
            Self::Narrow { matrices, .. } => be.address(matrices),
        }
    }

    /// All of them, where all are in accumulation precision.
    pub fn all(&self) -> Option<&B::Buf<B::Acc>> {
        match self {
            Self::Full(all) => Some(all),
            Self::Narrow { .. } => None,
        }
    }

    /// [`Gradients::all`], to write. Errors: matrices are in bf16.
    pub(super) fn full(&mut self) -> Result<&mut B::Buf<B::Acc>> {
        match self {
            Self::Full(all) => Ok(all),
            Self::Narrow { .. } => Err(Error::usage("an adapter's gradients are not kept in bf16")),
        }
    }

    /// Where the gradient of a vector goes; nowhere when frozen.
    pub(super) fn vector(&mut self, be: &B, p: &Param) -> Option<AccMut<'_, B>> {
        p.whole.clone().map(|whole| self.vectors(be, whole))
    }

    /// `dw += dy^T x` for the parts of `p` that train; `dy` is rows x `out`, `x` rows x `inp`.
    pub(super) fn matrix(
        &mut self,
        be: &B,
        p: &Param,
        of: (&ActBuf<B>, &ActBuf<B>, usize),
        sizes: (usize, usize),
    ) -> Result<()> {
        match self {
            Self::Full(all) => matrix(be, p, all, of, sizes),
            Self::Narrow { matrices, .. } => matrix(be, p, matrices, of, sizes),
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
        match self {
            Self::Full(all) => be.embed_bwd(EmbedBwd { dtable: be.view_mut(all, at), dx, batch, dim }),
            Self::Narrow { matrices, .. } => {
                be.embed_bwd(EmbedBwd { dtable: be.view_mut(matrices, at), dx, batch, dim })
            }
        }
    }

    /// The head's backward pass, its own gradient among what it gives where it trains.
    pub(super) fn head<'a>(&'a mut self, be: &B, p: &Param, op: HeadBwd<'a, B>) -> Result<()> {
        let HeadBwd { dx, dw: _, scaled, logits, x, w, coef } = op;
        match self {
            Self::Full(all) => {
                let dw = p.whole.clone().map(|at| be.view_mut(all, at));
                be.head_bwd(HeadBwd { dx, dw, scaled, logits, x, w, coef })
            }
            Self::Narrow { matrices, .. } => {
                let dw = p.whole.clone().map(|at| be.view_mut(matrices, at));
                be.head_bwd(HeadBwd { dx, dw, scaled, logits, x, w, coef })
            }
        }
    }
}

fn matrix<B: Backend, G: Gradient>(
    be: &B,
    p: &Param,
    grads: &mut B::Buf<G>,
    (dy, x, rows): (&ActBuf<B>, &ActBuf<B>, usize),
    (out, inp): (usize, usize),
) -> Result<()> {
    if let Some(whole) = p.whole.clone() {
        let (dy, x) = (be.view(dy, 0..rows * out), be.view(x, 0..rows * inp));
        return be.linear_bwd_weight(LinearBwdWeight { dw: be.view_mut(grads, whole), dy, x, out, inp });
    }
    for part in &p.parts {
        let (dy, x) = (be.view(dy, 0..rows * out), be.view(x, 0..rows * inp));
        let columns = part.of.start / inp..part.of.end / inp;
        be.linear_bwd_part(LinearBwdPart { dw: be.view_mut(grads, part.grad.clone()), dy, x, columns, out, inp })?;
    }
    Ok(())
}
