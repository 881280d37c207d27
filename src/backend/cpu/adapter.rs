//! Low-rank adapters of linear layers.
//!
//! All parts of a product share one packing of its input: their `a` are one operand. A product into some columns goes through
//! scratch, a block of rows at a time. All are thin, so that packing is most of them: by multiply-adds.

use super::device::Cpu;
use super::gemm::matrix::{Base, Mat};
use super::linear::add;
use super::real::Real;
use super::{check, par};
use crate::backend::ops::adapter::{AdapterBwdLow, AdapterBwdWeight, AdapterFwd, AdapterOps, AdapterParts};
use crate::error::Result;
use std::ops::Range;

/// Elements of scratch that a product into some columns takes at a time, or a row.
const BLOCK: usize = 1 << 16;

/// Rows, once the sizes are known to be right.
fn rows(
    op: &'static str,
    parts: &AdapterParts<'_>,
    of: [(&'static str, usize, usize); 2],
    weights: &[(&'static str, usize, usize)],
) -> Result<usize> {
    check::nonzero(op, "rank", parts.rank)?;
    check::nonzero(op, "inp", parts.inp)?;
    parts.columns.iter().try_for_each(|columns| check::columns(op, columns, parts.out))?;
    let [(name, len, width), (other, other_len, other_width)] = of;
    let n = check::rows(op, name, len, "width", width)?;
    check::len(op, other, other_len, &[("rows", n), ("width", other_width)])?;
    for (name, len, want) in weights {
        check::len(op, name, *len, &[("weights", *want)])?;
    }
    Ok(n)
}

impl<S: Real> Cpu<S> {
    /// `low = scale x a^T`.
    fn low(&self, low: &mut [S], (x, a): (&[S], &[S]), n: usize, parts: &AdapterParts<'_>) {
        let (inp, width) = (parts.inp, parts.low());
        S::gemm_few(&self.gemm, low, Base::Zero, Mat::by_line(x, inp), Mat::by_line(a, inp), [n, width, inp]);
        scale(low, width, parts.scale);
    }

    /// Hands `with` every block of rows: which, and scratch of `width` a row.
    fn by_blocks(&self, n: usize, width: usize, mut with: impl FnMut(Range<usize>, &mut [S])) {
        let rows = (BLOCK / width).max(1).min(n);
        self.gemm.scratch.with(rows * width, |scratch: &mut [S]| {
            for start in (0..n).step_by(rows.max(1)) {
                let rows = start..(start + rows).min(n);
                with(rows.clone(), &mut scratch[..rows.len() * width]);
            }
        });
    }
}

fn scale<S: Real>(x: &mut [S], width: usize, scale: f64) {
    let scale = S::from_f64(scale);
    par::rows(x, width, |_, x| x.iter_mut().for_each(|x| *x *= scale));
}

impl<S: Real> AdapterOps for Cpu<S> {
    fn adapter_fwd(&self, op: AdapterFwd<'_, Self>) -> Result<()> {
        const OP: &str = "adapter_fwd";
        let (level, g) = (self.level(), &self.gemm);
        let AdapterFwd { y, low, x, a, b, parts } = op;
        let (out, inp, rank, width) = (parts.out, parts.inp, parts.rank, parts.low());
        let weights = [("a", a.len(), width * inp), ("b", b.len(), parts.covered() * rank)];
        let n = rows(OP, &parts, [("y", y.len(), out), ("x", x.len(), inp)], &weights)?;
        check::len(OP, "low", low.len(), &[("rows", n), ("width", width)])?;
        if n == 0 {
            return Ok(());
        }
        self.low(low, (x, a), n, &parts);
        let mut b = b;
        for (i, columns) in parts.columns.iter().enumerate() {
            let (of, rest) = b.split_at(columns.len() * rank);
            b = rest;
            let of = Mat::by_line(of, rank);
            if columns.len() == out {
                S::gemm_few(g, y, Base::Output, Mat::by_line(&low[i * rank..], width), of, [n, out, rank]);
                continue;
            }
            self.by_blocks(n, columns.len(), |rows, sums| {
                let low = Mat::by_line(&low[rows.start * width + i * rank..], width);
                S::gemm_few(g, sums, Base::Zero, low, of, [rows.len(), columns.len(), rank]);
                let sums = &*sums;
                par::rows(&mut y[rows.start * out..rows.end * out], out, |row, y| {
                    add(level, &mut y[columns.clone()], &sums[row * columns.len()..][..columns.len()]);
                });
            });
        }
        Ok(())
    }

    fn adapter_bwd_low(&self, op: AdapterBwdLow<'_, Self>) -> Result<()> {
        const OP: &str = "adapter_bwd_low";
        let g = &self.gemm;
        let AdapterBwdLow { dlow, dy, b, parts } = op;
        let (out, rank, width) = (parts.out, parts.rank, parts.low());
        let weights = [("b", b.len(), parts.covered() * rank)];
        let n = rows(OP, &parts, [("dy", dy.len(), out), ("dlow", dlow.len(), width)], &weights)?;
        if n == 0 {
            return Ok(());
        }
        let mut b = b;
        for (i, columns) in parts.columns.iter().enumerate() {
            let (of, rest) = b.split_at(columns.len() * rank);
            b = rest;
            self.by_blocks(n, rank, |rows, sums| {
                let dy = Mat::by_line(&dy[rows.start * out + columns.start..], out);
                S::gemm_few(g, sums, Base::Zero, dy, Mat::by_k(of, rank), [rows.len(), rank, columns.len()]);
                let sums = &*sums;
                par::rows(&mut dlow[rows.start * width..rows.end * width], width, |row, to| {
                    to[i * rank..][..rank].copy_from_slice(&sums[row * rank..][..rank]);
                });
            });
        }
        scale(dlow, width, parts.scale);
        Ok(())
    }

    fn adapter_bwd_weight(&self, op: AdapterBwdWeight<'_, Self>) -> Result<()> {
        const OP: &str = "adapter_bwd_weight";
        let g = &self.gemm;
        let AdapterBwdWeight { db, low, dy, x, a, parts } = op;
        let (out, inp, rank, width) = (parts.out, parts.inp, parts.rank, parts.low());
        let weights = [("a", a.len(), width * inp), ("db", db.len(), parts.covered() * rank)];
        let n = rows(OP, &parts, [("dy", dy.len(), out), ("x", x.len(), inp)], &weights)?;
        check::len(OP, "low", low.len(), &[("rows", n), ("width", width)])?;
        if n == 0 {
            return Ok(());
        }
        self.low(low, (x, a), n, &parts);
        let mut db = db;
        for (i, columns) in parts.columns.iter().enumerate() {
            let (of, rest) = db.split_at_mut(columns.len() * rank);
            db = rest;
            let (dy, low) = (Mat::by_k(&dy[columns.start..], out), Mat::by_k(&low[i * rank..], width));
            S::gemm_few(g, of, Base::Output, dy, low, [columns.len(), rank, n]);
        }
        Ok(())
    }
}
