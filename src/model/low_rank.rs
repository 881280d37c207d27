//! What an adapter does to the linear layer that it belongs to, forward and backward.
//!
//! Forward, the layer's product is there already, and the adapter's is added to it: with B zero, to the same bits. Backward,
//! the gradient of what lies between A and B is computed first, with the gradient of the layer's output; it gives the input's
//! gradient and A's. The forward pass keeps nothing for it: the product with A, of rank r, is made again.
//!
//! Where the adapter drops some of its input, every part has an input of its own, and goes through by itself: what it drops is
//! drawn again wherever the input is read.

use super::gradients::{ActBuf, Gradients};
use super::load::Model;
use super::params::AdapterParams;
use crate::backend::{
    AdapterBwdLow, AdapterBwdWeight, AdapterFwd, AdapterParts, Backend, Dropout, DropoutBwd, DropoutFwd,
    LinearBwdInput, LinearBwdWeight, Write,
};
use crate::batch::MicroBatch;
use crate::error::{Error, Result};
use std::ops::Range;

/// Scratch of adapters: of a model that has one.
pub struct LowRank<B: Backend> {
    /// `[rows, parts rank]`: scale x A^T.
    pub low: B::Buf<B::Act>,
    /// `[rows, parts rank]`: its gradient, where there is a backward pass. With dropout a part's rows come after another's.
    pub dlow: Option<B::Buf<B::Act>>,
    /// `[rows, inputs]`: a part's input as it is dropped, or its gradient; of an adapter with dropout, where there is a backward
    /// pass.
    pub dropped: Option<B::Buf<B::Act>>,
    /// Whether the micro-batch that was loaded last is one to drop from.
    drops: bool,
    /// Whether the adapter has dropout.
    dropout: bool,
}

impl<B: Backend> LowRank<B> {
    /// For `rows` rows; none where the model has no adapter.
    pub fn new(be: &B, model: &Model<B>, rows: usize, backward: bool) -> Result<Option<Self>> {
        let all = || model.table.layers.iter().flat_map(|l| l.adapters()).flatten();
        let Some(width) = all().map(|a| a.columns.len() * a.rank).max() else { return Ok(None) };
        let dropout = all().any(|a| a.dropout > 0.0);
        let buffer = || be.zeros("adapter scratch", rows * width);
        let inputs = all().map(|a| a.inp).max().unwrap_or(0);
        Ok(Some(Self {
            low: buffer()?,
            dlow: if backward { Some(buffer()?) } else { None },
            dropped: if backward && dropout { Some(be.zeros("adapter dropout", rows * inputs)?) } else { None },
            drops: false,
            dropout,
        }))
    }

    /// Takes note of what passes over `from` drop. Errors: it is one to drop from, and there is no room for that.
    pub(super) fn load(&mut self, from: &MicroBatch) -> Result<()> {
        self.drops = from.draws().is_some() && self.dropout;
        match self.drops && self.dropped.is_none() {
            true => Err(Error::usage("the workspace was made without `train`: adapters drop nothing in it")),
            false => Ok(()),
        }
    }

    /// Whether the micro-batch that was loaded last is one to drop from.
    pub(super) fn drops(&self) -> bool {
        self.drops
    }
}

/// The rows that a product is of.
pub(super) struct Rows<'a, B: Backend> {
    /// How many.
    pub n: usize,
    /// Of which micro-batch.
    pub batch: &'a B::Batch,
    /// Whether they are of its predictions, and not its slots.
    pub predicting: bool,
}

impl<'a, B: Backend> Rows<'a, B> {
    /// Those of the slots.
    pub fn all(batch: &'a B::Batch, n: usize) -> Self {
        Self { n, batch, predicting: false }
    }

    /// Those of the predictions.
    pub fn predicting(batch: &'a B::Batch, n: usize) -> Self {
        Self { n, batch, predicting: true }
    }
}

impl<B: Backend> Clone for Rows<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for Rows<'_, B> {}

/// An adapter as ops see it, or a part of it by itself.
struct Piece<'a> {
    parts: AdapterParts<'a>,
    /// Elements of A and of B, from their starts on.
    a: Range<usize>,
    b: Range<usize>,
    /// Which of the model's dropouts is before it.
    site: u32,
    dropout: f64,
}

impl Piece<'_> {
    /// All parts at once.
    fn whole(p: &AdapterParams) -> Piece<'_> {
        let parts = AdapterParts { columns: &p.columns, rank: p.rank, out: p.out, inp: p.inp, scale: p.scale };
        Piece { a: 0..parts.low() * p.inp, b: 0..parts.covered() * p.rank, parts, site: 0, dropout: 0.0 }
    }

    /// One after the other.
    fn each(p: &AdapterParams) -> impl Iterator<Item = (usize, Piece<'_>)> {
        let (mut a, mut b) = (0, 0);
        p.sites.iter().enumerate().map(move |(i, &site)| {
            let columns = &p.columns[i..=i];
            let parts = AdapterParts { columns, rank: p.rank, out: p.out, inp: p.inp, scale: p.scale };
            let (of_a, of_b) = (a..a + p.rank * p.inp, b..b + columns[0].len() * p.rank);
            (a, b) = (of_a.end, of_b.end);
            (i, Piece { parts, a: of_a, b: of_b, site, dropout: p.dropout })
        })
    }

    fn dropout<'a, B: Backend>(&self, rows: Rows<'a, B>) -> Dropout<'a, B> {
        Dropout { batch: rows.batch, predicting: rows.predicting, site: self.site, p: self.dropout }
    }
}

fn part_of(all: &Range<usize>, part: &Range<usize>) -> Range<usize> {
    all.start + part.start..all.start + part.end
}

/// Adds what the adapter makes of `x` to `y`. Nothing without an adapter.
pub(super) fn forward<B: Backend>(
    be: &B,
    model: &Model<B>,
    p: Option<&AdapterParams>,
    scratch: &mut Option<LowRank<B>>,
    (y, x, rows): (&mut ActBuf<B>, &ActBuf<B>, Rows<'_, B>),
) -> Result<()> {
    let (Some(p), Some(LowRank { low, dropped, drops, .. })) = (p, scratch) else { return Ok(()) };
    let one = |y: &mut ActBuf<B>, low: &mut ActBuf<B>, x: &ActBuf<B>, piece: &Piece<'_>| {
        be.adapter_fwd(AdapterFwd {
            y: be.view_mut(y, 0..rows.n * p.out),
            low: be.view_mut(low, 0..rows.n * piece.parts.low()),
            x: be.view(x, 0..rows.n * p.inp),
            a: be.view(&model.weights, part_of(&p.a.at, &piece.a)),
            b: be.view(&model.weights, part_of(&p.b.at, &piece.b)),
            parts: piece.parts,
        })
    };
    match (*drops, dropped) {
        (true, Some(dropped)) => Piece::each(p).try_for_each(|(_, piece)| {
            drop_input(be, &piece, (dropped, x, rows))?;
            one(y, low, dropped, &piece)
        }),
        _ => one(y, low, x, &Piece::whole(p)),
    }
}

/// The input of a part as it is dropped.
fn drop_input<B: Backend>(
    be: &B,
    piece: &Piece<'_>,
    (to, x, rows): (&mut ActBuf<B>, &ActBuf<B>, Rows<'_, B>),
) -> Result<()> {
    let (dim, dropout) = (piece.parts.inp, piece.dropout(rows));
    let n = rows.n * dim;
    be.dropout_fwd(DropoutFwd { y: be.view_mut(to, 0..n), x: be.view(x, 0..n), dim, dropout })
}

/// From `dy`, the gradient of the layer's output: the gradient of what lies between A and B, which stays for [`weights`];
/// and with `dx`, what the adapter adds to the gradient of the layer's input.
pub(super) fn backward<B: Backend>(
    be: &B,
    model: &Model<B>,
    p: Option<&AdapterParams>,
    scratch: &mut Option<LowRank<B>>,
    (dy, dx, rows): (&ActBuf<B>, Option<&mut ActBuf<B>>, Rows<'_, B>),
) -> Result<()> {
    let (Some(p), Some(LowRank { dlow: Some(dlow), drops, .. })) = (p, scratch.as_mut()) else { return Ok(()) };
    let one = |dlow: &mut ActBuf<B>, (i, piece): (usize, Piece<'_>)| {
        let low = rows.n * piece.parts.low();
        be.adapter_bwd_low(AdapterBwdLow {
            dlow: be.view_mut(dlow, i * low..(i + 1) * low),
            dy: be.view(dy, 0..rows.n * p.out),
            b: be.view(&model.weights, part_of(&p.b.at, &piece.b)),
            parts: piece.parts,
        })
    };
    match drops {
        true => Piece::each(p).try_for_each(|part| one(dlow, part))?,
        false => one(dlow, (0, Piece::whole(p)))?,
    }
    dx.map_or(Ok(()), |dx| input(be, model, Some(p), scratch, (dx, rows)))
}

/// What the adapter adds to `dx`, the gradient of the layer's input, from what [`backward`] has left.
pub(super) fn input<B: Backend>(
    be: &B,
    model: &Model<B>,
    p: Option<&AdapterParams>,
    scratch: &mut Option<LowRank<B>>,
    (dx, rows): (&mut ActBuf<B>, Rows<'_, B>),
) -> Result<()> {
    let (Some(p), Some(LowRank { dlow: Some(dlow), dropped, drops, .. })) = (p, scratch.as_mut()) else {
        return Ok(());
    };
    let n = rows.n * p.inp;
    let product = |to: &mut ActBuf<B>, (i, piece): (usize, &Piece<'_>), write| {
        let low = rows.n * piece.parts.low();
        be.linear_bwd_input(LinearBwdInput {
            dx: be.view_mut(to, 0..n),
            dy: be.view(dlow, i * low..(i + 1) * low),
            w: be.view(&model.weights, part_of(&p.a.at, &piece.a)),
            out: piece.parts.low(),
            inp: p.inp,
            write,
        })
    };
    match (*drops, dropped) {
        (true, Some(dropped)) => Piece::each(p).try_for_each(|(i, piece)| {
            product(dropped, (i, &piece), Write::Set)?;
            let (dx, dy) = (be.view_mut(dx, 0..n), be.view(dropped, 0..n));
            be.dropout_bwd(DropoutBwd { dx, dy, dim: p.inp, dropout: piece.dropout(rows) })
        }),
        _ => product(dx, (0, &Piece::whole(p)), Write::Add),
    }
}

/// Adds the gradients of A and B, from `dy`, the layer's input `x` and what [`backward`] has left.
pub(super) fn weights<B: Backend>(
    be: &B,
    model: &Model<B>,
    p: Option<&AdapterParams>,
    scratch: &mut Option<LowRank<B>>,
    (dy, x, rows): (&ActBuf<B>, &ActBuf<B>, Rows<'_, B>),
    grads: &mut Gradients<B>,
) -> Result<()> {
    let (Some(p), Some(LowRank { low, dlow: Some(dlow), dropped, drops, .. })) = (p, scratch) else { return Ok(()) };
    let grads = grads.full()?;
    let mut one = |(i, piece): (usize, &Piece<'_>), x: &ActBuf<B>| {
        let width = rows.n * piece.parts.low();
        if let Some(da) = &p.a.whole {
            be.linear_bwd_weight(LinearBwdWeight {
                dw: be.view_mut(grads, part_of(da, &piece.a)),
                dy: be.view(dlow, i * width..(i + 1) * width),
                x: be.view(x, 0..rows.n * p.inp),
                out: piece.parts.low(),
                inp: p.inp,
                write: Write::Add,
            })?;
        }
        let Some(db) = &p.b.whole else { return Ok(()) };
        be.adapter_bwd_weight(AdapterBwdWeight {
            db: be.view_mut(grads, part_of(db, &piece.b)),
            low: be.view_mut(low, 0..width),
            dy: be.view(dy, 0..rows.n * p.out),
            x: be.view(x, 0..rows.n * p.inp),
            a: be.view(&model.weights, part_of(&p.a.at, &piece.a)),
            parts: piece.parts,
        })
    };
    match (*drops, dropped) {
        (true, Some(dropped)) => Piece::each(p).try_for_each(|(i, piece)| {
            drop_input(be, &piece, (dropped, x, rows))?;
            one((i, &piece), dropped)
        }),
        _ => one((0, &Piece::whole(p)), x),
    }
}
