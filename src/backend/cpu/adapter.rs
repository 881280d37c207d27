//! Low-rank adapters of linear layers.
//!
//! All parts of a product share one reading of its input: their `a` are one operand. All products are thin.

use super::device::Cpu;
use super::gemm::matrix::Mat;
use super::real::Real;
use super::{check, par};
use crate::backend::ops::adapter::{AdapterBwdLow, AdapterBwdWeight, AdapterFwd, AdapterOps, AdapterParts};
use crate::error::Result;

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
        S::gemm_thin(&self.gemm, (low, width, false), Mat::by_line(x, inp), Mat::by_line(a, inp), [n, width, inp]);
        scale(low, width, parts.scale);
    }
}

/// `to[j, i] = from[i, j]` for `rows x columns` of `from`.
fn turn<S: Real>(to: &mut [S], from: &[S], rows: usize, columns: usize) {
    for (i, from) in from.chunks_exact(columns).enumerate() {
        from.iter().enumerate().for_each(|(j, x)| to[j * rows + i] = *x);
    }
}

fn scale<S: Real>(x: &mut [S], width: usize, scale: f64) {
    let scale = S::from_f64(scale);
    par::rows(x, width, |_, x| x.iter_mut().for_each(|x| *x *= scale));
}

impl<S: Real> AdapterOps for Cpu<S> {
    fn adapter_fwd(&self, op: AdapterFwd<'_, Self>) -> Result<()> {
        const OP: &str = "adapter_fwd";
        let g = &self.gemm;
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
            let (y, low) = (&mut y[columns.start..], Mat::by_line(&low[i * rank..], width));
            S::gemm_thin(g, (y, out, true), low, of, [n, columns.len(), rank]);
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
            let dy = Mat::by_line(&dy[columns.start..], out);
            S::gemm_thin(g, (&mut dlow[i * rank..], width, false), dy, Mat::by_k(of, rank), [n, rank, columns.len()]);
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
            // Turned round, so that lines of `dy` are read as they lie.
            g.scratch.with(of.len(), |turned: &mut [S]| {
                turn(turned, of, columns.len(), rank);
                S::gemm_thin(g, (turned, columns.len(), true), low, dy, [rank, columns.len(), n]);
                turn(of, turned, rank, columns.len());
            });
        }
        Ok(())
    }
}
