//! Low-rank adapters of linear layers: products over columns (`product.rs`), no kernel. Reference: `backend/cpu/adapter.rs`.

use super::check;
use super::context::{Gpu, GpuFloat};
use super::driver::{Driver, View, ViewMut};
use super::product::{Add, Operand, Product};
use crate::backend::ops::adapter::{AdapterBwdLow, AdapterBwdWeight, AdapterFwd, AdapterOps, AdapterParts};
use crate::error::Result;

/// Refuses parts that are none.
fn check_parts(op: &'static str, parts: &AdapterParts<'_>) -> Result<()> {
    check::at_least(op, "rank", parts.rank, &[("one", 1)])?;
    parts.columns.iter().try_for_each(|columns| check::columns(op, columns, parts.out))
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// `low = scale x a^T`.
    fn low(
        &self,
        op: &'static str,
        low: &mut ViewMut<'_, A>,
        (x, a): (View<'_, A>, View<'_, A>),
        parts: &AdapterParts<'_>,
    ) -> Result<usize> {
        let (inp, width) = (parts.inp, parts.low());
        let rows = check::rows(op, "x", x.len(), inp)?;
        check::len(op, "low", low.len(), &[("rows", rows), ("width", width)])?;
        check::len(op, "a", a.len(), &[("width", width), ("inp", inp)])?;
        let product = Product {
            op,
            sizes: [rows, width, inp],
            a: (Operand::new(x, inp), false),
            b: (Operand::new(a, inp), true),
            c: Add::Nothing,
            d: Operand::output(low, width),
            row_invariant: true,
        };
        self.scaled_product(product, parts.scale as f32)?;
        Ok(rows)
    }
}

impl<D: Driver, A: GpuFloat> AdapterOps for Gpu<D, A> {
    fn adapter_fwd(&self, op: AdapterFwd<'_, Self>) -> Result<()> {
        const OP: &str = "adapter_fwd";
        let AdapterFwd { y, mut low, x, a, b, parts } = op;
        check_parts(OP, &parts)?;
        let (out, rank, width) = (parts.out, parts.rank, parts.low());
        check::len(OP, "b", b.len(), &[("columns", parts.covered()), ("rank", rank)])?;
        let rows = self.low(OP, &mut low, (x, a), &parts)?;
        check::len(OP, "y", y.len(), &[("rows", rows), ("out", out)])?;
        let mut at = 0;
        for (i, columns) in parts.columns.iter().enumerate() {
            self.product(Product {
                op: OP,
                sizes: [rows, columns.len(), rank],
                a: (Operand::columns(low.as_view(), width, i * rank), false),
                b: (Operand::columns(b, rank, at * rank), true),
                c: Add::Output,
                d: Operand::columns(y.as_view(), out, columns.start),
                row_invariant: true,
            })?;
            at += columns.len();
        }
        Ok(())
    }

    fn adapter_bwd_low(&self, op: AdapterBwdLow<'_, Self>) -> Result<()> {
        const OP: &str = "adapter_bwd_low";
        let AdapterBwdLow { dlow, dy, b, parts } = op;
        check_parts(OP, &parts)?;
        let (out, rank, width) = (parts.out, parts.rank, parts.low());
        let rows = check::rows(OP, "dy", dy.len(), out)?;
        check::len(OP, "dlow", dlow.len(), &[("rows", rows), ("width", width)])?;
        check::len(OP, "b", b.len(), &[("columns", parts.covered()), ("rank", rank)])?;
        let mut at = 0;
        for (i, columns) in parts.columns.iter().enumerate() {
            let product = Product {
                op: OP,
                sizes: [rows, rank, columns.len()],
                a: (Operand::columns(dy, out, columns.start), false),
                b: (Operand::columns(b, rank, at * rank), false),
                c: Add::Nothing,
                d: Operand::columns(dlow.as_view(), width, i * rank),
                row_invariant: false,
            };
            self.scaled_product(product, parts.scale as f32)?;
            at += columns.len();
        }
        Ok(())
    }

    fn adapter_bwd_weight(&self, op: AdapterBwdWeight<'_, Self>) -> Result<()> {
        const OP: &str = "adapter_bwd_weight";
        let AdapterBwdWeight { db, mut low, dy, x, a, parts } = op;
        check_parts(OP, &parts)?;
        let (out, rank, width) = (parts.out, parts.rank, parts.low());
        check::len(OP, "db", db.len(), &[("columns", parts.covered()), ("rank", rank)])?;
        let rows = self.low(OP, &mut low, (x, a), &parts)?;
        check::len(OP, "dy", dy.len(), &[("rows", rows), ("out", out)])?;
        if rows == 0 {
            return Ok(());
        }
        let mut at = 0;
        for (i, columns) in parts.columns.iter().enumerate() {
            self.product(Product {
                op: OP,
                sizes: [columns.len(), rank, rows],
                a: (Operand::columns(dy, out, columns.start), true),
                b: (Operand::columns(low.as_view(), width, i * rank), false),
                c: Add::Output,
                d: Operand::columns(db.as_view(), rank, at * rank),
                row_invariant: false,
            })?;
            at += columns.len();
        }
        Ok(())
    }
}
