//! What an adapter does to the linear layer that it belongs to, forward and backward.
//!
//! Forward, the layer's product is there already, and the adapter's is added to it: with B zero, to the same bits. Backward,
//! the gradient of what lies between A and B is computed first, with the gradient of the layer's output; it gives the input's
//! gradient and A's. The forward pass keeps nothing for it: the product with A, of rank r, is made again.

use super::gradients::{ActBuf, Gradients};
use super::load::Model;
use super::params::AdapterParams;
use crate::backend::{
    Act, ActMut, AdapterBwdLow, AdapterBwdWeight, AdapterFwd, AdapterParts, Backend, LinearBwdInput, LinearBwdWeight,
    Write,
};
use crate::error::Result;

/// Scratch of adapters: of a model that has one.
pub struct LowRank<B: Backend> {
    /// `[rows, parts rank]`: scale x A^T.
    pub low: B::Buf<B::Act>,
    /// `[rows, parts rank]`: its gradient, where there is a backward pass.
    pub dlow: Option<B::Buf<B::Act>>,
}

impl<B: Backend> LowRank<B> {
    /// For `rows` rows; none where the model has no adapter.
    pub fn new(be: &B, model: &Model<B>, rows: usize, backward: bool) -> Result<Option<Self>> {
        let all = model.table.layers.iter().flat_map(|l| l.adapters()).flatten();
        let Some(width) = all.map(|a| a.columns.len() * a.rank).max() else { return Ok(None) };
        let buffer = || be.zeros("adapter scratch", rows * width);
        Ok(Some(Self { low: buffer()?, dlow: if backward { Some(buffer()?) } else { None } }))
    }
}

fn parts(p: &AdapterParams) -> AdapterParts<'_> {
    AdapterParts { columns: &p.columns, rank: p.rank, out: p.out, inp: p.inp, scale: p.scale }
}

/// Adds what the adapter makes of `x` to `y`, both of `rows` rows. Nothing without an adapter.
pub(super) fn forward<'a, B: Backend>(
    be: &B,
    model: &'a Model<B>,
    p: Option<&'a AdapterParams>,
    scratch: &'a mut Option<LowRank<B>>,
    (y, x, rows): (ActMut<'a, B>, Act<'a, B>, usize),
) -> Result<()> {
    let (Some(p), Some(scratch)) = (p, scratch) else { return Ok(()) };
    let parts = parts(p);
    be.adapter_fwd(AdapterFwd {
        y,
        low: be.view_mut(&mut scratch.low, 0..rows * parts.low()),
        x,
        a: be.view(&model.weights, p.a.at.clone()),
        b: be.view(&model.weights, p.b.at.clone()),
        parts,
    })
}

/// From `dy`, the gradient of the layer's output: the gradient of what lies between A and B, which stays for [`weights`];
/// and with `dx`, what the adapter adds to the gradient of the layer's input.
pub(super) fn backward<B: Backend>(
    be: &B,
    model: &Model<B>,
    p: Option<&AdapterParams>,
    scratch: &mut Option<LowRank<B>>,
    (dy, dx, rows): (&ActBuf<B>, Option<&mut ActBuf<B>>, usize),
) -> Result<()> {
    let (Some(p), Some(dlow)) = (p, scratch.as_mut().and_then(|s| s.dlow.as_mut())) else { return Ok(()) };
    let parts = parts(p);
    be.adapter_bwd_low(AdapterBwdLow {
        dlow: be.view_mut(dlow, 0..rows * parts.low()),
        dy: be.view(dy, 0..rows * p.out),
        b: be.view(&model.weights, p.b.at.clone()),
        parts,
    })?;
    dx.map_or(Ok(()), |dx| input(be, model, Some(p), scratch, (dx, rows)))
}

/// What the adapter adds to `dx`, the gradient of the layer's input, from what [`backward`] has left.
pub(super) fn input<B: Backend>(
    be: &B,
    model: &Model<B>,
    p: Option<&AdapterParams>,
    scratch: &Option<LowRank<B>>,
    (dx, rows): (&mut B::Buf<B::Act>, usize),
) -> Result<()> {
    let (Some(p), Some(dlow)) = (p, scratch.as_ref().and_then(|s| s.dlow.as_ref())) else { return Ok(()) };
    let parts = parts(p);
    be.linear_bwd_input(LinearBwdInput {
        dx: be.view_mut(dx, 0..rows * p.inp),
        dy: be.view(dlow, 0..rows * parts.low()),
        w: be.view(&model.weights, p.a.at.clone()),
        out: parts.low(),
        inp: p.inp,
        write: Write::Add,
    })
}

/// Adds the gradients of A and B, from `dy`, the layer's input `x` and what [`backward`] has left.
pub(super) fn weights<B: Backend>(
    be: &B,
    model: &Model<B>,
    p: Option<&AdapterParams>,
    scratch: &mut Option<LowRank<B>>,
    (dy, x, rows): (&ActBuf<B>, &ActBuf<B>, usize),
    grads: &mut Gradients<B>,
) -> Result<()> {
    let (Some(p), Some(LowRank { low, dlow: Some(dlow) })) = (p, scratch) else { return Ok(()) };
    let (parts, grads) = (parts(p), grads.full()?);
    if let Some(da) = &p.a.whole {
        be.linear_bwd_weight(LinearBwdWeight {
            dw: be.view_mut(grads, da.clone()),
            dy: be.view(dlow, 0..rows * parts.low()),
            x: be.view(x, 0..rows * p.inp),
            out: parts.low(),
            inp: p.inp,
            write: Write::Add,
        })?;
    }
    let Some(db) = &p.b.whole else { return Ok(()) };
    be.adapter_bwd_weight(AdapterBwdWeight {
        db: be.view_mut(grads, db.clone()),
        low: be.view_mut(low, 0..rows * parts.low()),
        dy: be.view(dy, 0..rows * p.out),
        x: be.view(x, 0..rows * p.inp),
        a: be.view(&model.weights, p.a.at.clone()),
        parts,
    })
}
