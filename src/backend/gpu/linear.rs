//! Linear layers and biases. Products: `product.rs`; kernels: `kernels/bias.cu`; reference: `backend/cpu/linear.rs`.

use super::check;
use super::context::{Gpu, GpuFloat, SCRATCH, SLABS, columns};
use super::driver::{Arg, Driver, Grid};
use super::lock::lock;
use super::product::{Add, Operand, Product};
use crate::backend::ops::device::{Device, Write};
use crate::backend::ops::element::Gradient;
use crate::backend::ops::linear::{
    BiasBwd, BiasFwd, LinearBwdInput, LinearBwdPart, LinearBwdWeight, LinearFwd, LinearOps,
};
use crate::error::Result;

impl<D: Driver, A: GpuFloat> LinearOps for Gpu<D, A> {
    fn linear_fwd(&self, op: LinearFwd<'_, Self>) -> Result<()> {
        const OP: &str = "linear_fwd";
        let LinearFwd { mut y, x, w, out, inp, write } = op;
        let rows = check::rows(OP, "x", x.len(), inp)?;
        check::len(OP, "y", y.len(), &[("rows", rows), ("out", out)])?;
        check::len(OP, "w", w.len(), &[("out", out), ("inp", inp)])?;
        let c = match write {
            Write::Set => Add::Nothing,
            Write::Add => Add::Output,
            Write::Plus(v) => {
                check::len(OP, "plus", v.len(), &[("rows", rows), ("out", out)])?;
                Add::Other(Operand::new(v, out))
            }
        };
        self.product(Product {
            op: OP,
            sizes: [rows, out, inp],
            a: (Operand::new(x, inp), false),
            b: (Operand::new(w, inp), true),
            c,
            d: Operand::output(&mut y, out),
            row_invariant: true,
        })
    }

    fn linear_bwd_input(&self, op: LinearBwdInput<'_, Self>) -> Result<()> {
        const OP: &str = "linear_bwd_input";
        let LinearBwdInput { mut dx, dy, w, out, inp, write } = op;
        let rows = check::rows(OP, "dy", dy.len(), out)?;
        check::len(OP, "dx", dx.len(), &[("rows", rows), ("inp", inp)])?;
        check::len(OP, "w", w.len(), &[("out", out), ("inp", inp)])?;
        self.product(Product {
            op: OP,
            sizes: [rows, inp, out],
            a: (Operand::new(dy, out), false),
            b: (Operand::new(w, inp), false),
            c: if write.adds() { Add::Output } else { Add::Nothing },
            d: Operand::output(&mut dx, inp),
            row_invariant: false,
        })
    }

    fn linear_bwd_weight<G: Gradient>(&self, op: LinearBwdWeight<'_, Self, G>) -> Result<()> {
        const OP: &str = "linear_bwd_weight";
        let LinearBwdWeight { mut dw, dy, x, out, inp, write } = op;
        let rows = check::rows(OP, "dy", dy.len(), out)?;
        check::len(OP, "x", x.len(), &[("rows", rows), ("inp", inp)])?;
        check::len(OP, "dw", dw.len(), &[("out", out), ("inp", inp)])?;
        if rows == 0 {
            return if write.adds() { Ok(()) } else { self.clear(dw) };
        }
        self.product(Product {
            op: OP,
            sizes: [out, inp, rows],
            a: (Operand::new(dy, out), true),
            b: (Operand::new(x, inp), false),
            c: if write.adds() { Add::Output } else { Add::Nothing },
            d: Operand::gradient(&mut dw, inp)?,
            row_invariant: false,
        })
    }

    fn linear_bwd_part<G: Gradient>(&self, op: LinearBwdPart<'_, Self, G>) -> Result<()> {
        const OP: &str = "linear_bwd_part";
        let LinearBwdPart { mut dw, dy, x, columns, out, inp } = op;
        check::columns(OP, &columns, out)?;
        let rows = check::rows(OP, "dy", dy.len(), out)?;
        check::len(OP, "x", x.len(), &[("rows", rows), ("inp", inp)])?;
        check::len(OP, "dw", dw.len(), &[("columns", columns.len()), ("inp", inp)])?;
        if rows == 0 {
            return Ok(());
        }
        self.product(Product {
            op: OP,
            sizes: [columns.len(), inp, rows],
            a: (Operand::columns(dy, out, columns.start), true),
            b: (Operand::new(x, inp), false),
            c: Add::Output,
            d: Operand::gradient(&mut dw, inp)?,
            row_invariant: false,
        })
    }

    fn bias_fwd(&self, op: BiasFwd<'_, Self>) -> Result<()> {
        const OP: &str = "bias_fwd";
        let BiasFwd { mut y, bias } = op;
        let dim = bias.len();
        let rows = check::rows(OP, "y", y.len(), dim)?;
        let (blocks, threads) = columns::<A>(dim, 256);
        let args = [y.arg(), bias.arg(), Arg::int(OP, "rows", rows)?, Arg::int(OP, "dim", dim)?];
        // SAFETY: `y` is rows x dim, as checked above.
        unsafe { self.launch(OP, Grid::new([blocks, rows.min(65535)], threads), &args) }
    }

    fn bias_bwd(&self, op: BiasBwd<'_, Self>) -> Result<()> {
        const OP: &str = "bias_bwd";
        let BiasBwd { dbias, dy } = op;
        let dim = dbias.len();
        let rows = check::rows(OP, "dy", dy.len(), dim)?;
        check::at_most(OP, "dim", dim, SCRATCH)?;
        let slab = rows.div_ceil(SLABS.min(SCRATCH / dim)).max(1);
        let slabs = rows.div_ceil(slab);
        let mut scratch = lock(&self.scratch);
        let mut part = scratch.floats.view_mut(0..slabs * dim);
        let sizes = [Arg::int(OP, "rows", rows)?, Arg::int(OP, "dim", dim)?, Arg::int(OP, "slab", slab)?];
        let (blocks, threads) = columns::<A>(dim, 256);
        let args = [part.arg(), dy.arg(), sizes[0], sizes[1], sizes[2]];
        // SAFETY: `dy` is rows x dim, as checked above; `part` is slabs x dim.
        unsafe { self.launch(OP, Grid::new([blocks, slabs], threads), &args) }?;
        self.reduce_slabs(dbias, part.as_view(), slabs, dim)
    }
}
