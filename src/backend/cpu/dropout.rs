//! Dropout of the input of an adapter.

use super::batch::CpuBatch;
use super::device::Cpu;
use super::real::Real;
use super::simd::simd_fn;
use super::{check, par};
use crate::backend::dropout::{kept, no_draws, share, stream};
use crate::backend::ops::dropout::{Dropout, DropoutBwd, DropoutFwd, DropoutOps};
use crate::batch::Capacity;
use crate::error::Result;

simd_fn! {
    fn row_fwd<S>(y: &mut [S], x: &[S], stream: u64, below: u32, scale: S) {
        for (i, (y, x)) in (0..).zip(y.iter_mut().zip(x)) {
            *y = if kept(stream, i, below) { x.flushed() * scale } else { S::ZERO };
        }
    }
}
simd_fn! {
    fn row_bwd<S>(dx: &mut [S], dy: &[S], stream: u64, below: u32, scale: S) {
        for (i, (dx, dy)) in (0..).zip(dx.iter_mut().zip(dy)) {
            let add = if kept(stream, i, below) { dy.flushed() * scale } else { S::ZERO };
            *dx = dx.flushed() + add;
        }
    }
}

/// What the rows are drawn from, once the sizes are known to be right.
fn draws<'a, S: Real>(
    op: &'static str,
    lens: [(&'static str, usize); 2],
    dim: usize,
    dropout: Dropout<'a, Cpu<S>>,
) -> Result<&'a [u64]> {
    let Dropout { batch, predicting, .. } = dropout;
    check::nonzero(op, "dim", dim)?;
    let rows = if predicting { batch.micro.predictions().len() } else { batch.rows() };
    for (name, len) in lens {
        check::len(op, name, len, &[("rows", rows), ("dim", dim)])?;
    }
    batch.draws(predicting).filter(|draws| draws.len() == rows).ok_or_else(|| no_draws(op))
}

impl<S: Real> DropoutOps for Cpu<S> {
    fn make_room(&self, batch: &mut CpuBatch, Capacity { slots, predictions, .. }: Capacity) -> Result<()> {
        self.record("dropout draws", (slots + predictions) * size_of::<u64>());
        if !self.counting {
            batch.make_room([slots, predictions]);
        }
        Ok(())
    }

    fn dropout_fwd(&self, op: DropoutFwd<'_, Self>) -> Result<()> {
        let DropoutFwd { y, x, dim, dropout } = op;
        let draws = draws("dropout_fwd", [("y", y.len()), ("x", x.len())], dim, dropout)?;
        let (level, (below, scale)) = (self.level(), share(dropout.p)?);
        par::rows(y, dim, |t, y| {
            row_fwd(level, y, &x[t * dim..][..dim], stream(draws[t], dropout.site), below, S::from_f64(scale));
        });
        Ok(())
    }

    fn dropout_bwd(&self, op: DropoutBwd<'_, Self>) -> Result<()> {
        let DropoutBwd { dx, dy, dim, dropout } = op;
        let draws = draws("dropout_bwd", [("dx", dx.len()), ("dy", dy.len())], dim, dropout)?;
        let (level, (below, scale)) = (self.level(), share(dropout.p)?);
        par::rows(dx, dim, |t, dx| {
            row_bwd(level, dx, &dy[t * dim..][..dim], stream(draws[t], dropout.site), below, S::from_f64(scale));
        });
        Ok(())
    }
}
