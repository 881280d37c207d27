//! Token embedding.

use super::batch::CpuBatch;
use super::device::Cpu;
use super::narrow::{fold, same_mut};
use super::real::Real;
use super::scalar::Scalar;
use super::scratch::Scratch;
use super::{check, par};
use crate::backend::ops::element::Gradient;
use crate::backend::ops::embed::{EmbedBwd, EmbedFwd, EmbedOps};
use crate::error::Result;

fn check_lens(
    op: &'static str,
    table: (&'static str, usize),
    x: (&'static str, usize),
    batch: &CpuBatch,
    dim: usize,
) -> Result<()> {
    check::nonzero(op, "dim", dim)?;
    check::rows(op, table.0, table.1, "dim", dim)?;
    check::at_least(op, table.0, table.1, &[("largest token + 1", batch.tokens_end), ("dim", dim)])?;
    check::len(op, x.0, x.1, &[("rows", batch.rows()), ("dim", dim)])
}

impl<S: Real> EmbedOps for Cpu<S> {
    fn embed_fwd(&self, op: EmbedFwd<'_, Self>) -> Result<()> {
        let EmbedFwd { x, table, batch, dim } = op;
        check_lens("embed_fwd", ("table", table.len()), ("x", x.len()), batch, dim)?;
        par::rows(x, dim, |t, x| x.copy_from_slice(&table[batch.micro.tokens()[t] as usize * dim..][..dim]));
        Ok(())
    }

    fn embed_bwd<G: Gradient>(&self, op: EmbedBwd<'_, Self, G>) -> Result<()> {
        let EmbedBwd { dtable, dx, batch, dim } = op;
        check_lens("embed_bwd", ("dtable", dtable.len()), ("dx", dx.len()), batch, dim)?;
        let (tokens, rows) = (batch.micro.tokens(), batch.micro.rows_by_token());
        split(dtable, 0, rows, &Rows { dx, tokens, dim, scratch: &self.gemm.scratch });
        Ok(())
    }
}

/// What is added to a table.
struct Rows<'a, S> {
    dx: &'a [S],
    tokens: &'a [u32],
    dim: usize,
    scratch: &'a Scratch,
}

/// Adds `rows` (sorted by token, then row) into `table`, whose first line is token `first`; halves run in parallel.
fn split<S: Scalar, G: Gradient>(table: &mut [G], first: usize, rows: &[u32], of: &Rows<'_, S>) {
    let Rows { dx, dim, .. } = *of;
    let token = |r: u32| of.tokens[r as usize] as usize;
    if rows.len() > 64 {
        // Rows of one token stay together.
        let pivot = token(rows[rows.len() / 2]);
        let at = rows.partition_point(|r| token(*r) < pivot);
        if at > 0 {
            let (low, high) = table.split_at_mut((pivot - first) * dim);
            let (left, right) = rows.split_at(at);
            rayon::join(|| split(low, first, left, of), || split(high, pivot, right, of));
            return;
        }
    }
    let add = |to: &mut [S], r: u32| to.iter_mut().zip(&dx[r as usize * dim..][..dim]).for_each(|(t, d)| *t += *d);
    for same in rows.chunk_by(|a, b| token(*a) == token(*b)) {
        let line = &mut table[(token(same[0]) - first) * dim..][..dim];
        match same_mut::<G, S>(line) {
            Some(line) => same.iter().for_each(|r| add(line, *r)),
            None => of.scratch.with(dim, |sum: &mut [S]| {
                sum.fill(S::ZERO);
                same.iter().for_each(|r| add(sum, *r));
                fold(line, sum);
            }),
        }
    }
}
