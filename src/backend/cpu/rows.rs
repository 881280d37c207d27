//! Gathering the rows that predict, and scattering their gradients back.

use super::{CpuBatch, Real, check, par};
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

/// See [`crate::backend::Backend::gather_rows`].
pub(super) fn gather<S: Real>(out: &mut [S], x: &[S], batch: &CpuBatch, dim: usize) -> Result<()> {
    check_lens("gather_rows", ("out", out.len()), ("x", x.len()), batch, dim)?;
    let predictions = batch.micro.predictions();
    par::rows(out, dim, |n, out| out.copy_from_slice(&x[predictions[n].row as usize * dim..][..dim]));
    Ok(())
}

/// See [`crate::backend::Backend::scatter_rows`].
pub(super) fn scatter<S: Real>(dx: &mut [S], dout: &[S], batch: &CpuBatch, dim: usize) -> Result<()> {
    check_lens("scatter_rows", ("dout", dout.len()), ("dx", dx.len()), batch, dim)?;
    par::rows(dx, dim, |t, dx| {
        dx.fill(S::ZERO);
        for n in batch.predictions_of(t) {
            dx.iter_mut().zip(&dout[*n as usize * dim..][..dim]).for_each(|(d, o)| *d += *o);
        }
    });
    Ok(())
}
