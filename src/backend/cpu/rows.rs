//! Gathering the rows that predict, and scattering their gradients back.

use super::batch::CpuBatch;
use super::device::Cpu;
use super::real::Real;
use super::{check, par};
use crate::backend::ops::rows::{GatherRows, RowOps, ScatterRows};
use crate::error::Result;

fn check_lens(
    op: &'static str,
    n: (&'static str, usize),
    x: (&'static str, usize),
    batch: &CpuBatch,
    dim: usize,
) -> Result<()> {
    check::nonzero(op, "dim", dim)?;
    check::len(op, n.0, n.1, &[("predictions", batch.micro.predictions().len()), ("dim", dim)])?;
    check::len(op, x.0, x.1, &[("rows", batch.rows()), ("dim", dim)])
}

impl<S: Real> RowOps for Cpu<S> {
    fn gather_rows(&self, op: GatherRows<'_, Self>) -> Result<()> {
        let GatherRows { out, x, batch, dim } = op;
        check_lens("gather_rows", ("out", out.len()), ("x", x.len()), batch, dim)?;
        let predictions = batch.micro.predictions();
        par::rows(out, dim, |n, out| out.copy_from_slice(&x[predictions[n].row as usize * dim..][..dim]));
        Ok(())
    }

    fn scatter_rows(&self, op: ScatterRows<'_, Self>) -> Result<()> {
        let ScatterRows { dx, dout, batch, dim } = op;
        check_lens("scatter_rows", ("dout", dout.len()), ("dx", dx.len()), batch, dim)?;
        par::rows(dx, dim, |t, dx| {
            dx.fill(S::ZERO);
            for n in batch.predictions_of(t) {
                dx.iter_mut().zip(&dout[*n as usize * dim..][..dim]).for_each(|(d, o)| *d += *o);
            }
        });
        Ok(())
    }
}
