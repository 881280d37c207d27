//! Dropout of the input of an adapter. Kernels: `kernels/dropout.cu`; reference: `backend/cpu/dropout.rs`.

use super::batch::GpuBatch;
use super::check;
use super::context::{Gpu, GpuFloat, columns};
use super::driver::{Arg, Driver, Grid, View, ViewMut};
use crate::backend::dropout::{no_draws, share};
use crate::backend::ops::dropout::{Dropout, DropoutBwd, DropoutFwd, DropoutOps};
use crate::batch::Capacity;
use crate::error::Result;

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    fn dropout(
        &self,
        op: &'static str,
        (mut to, name): (ViewMut<'_, A>, &'static str),
        (from, other): (View<'_, A>, &'static str),
        dim: usize,
        dropout: Dropout<'_, Self>,
    ) -> Result<()> {
        let Dropout { batch, predicting, site, p } = dropout;
        check::at_least(op, "dim", dim, &[("one", 1)])?;
        let rows = if predicting { batch.num_predictions() } else { batch.slots() };
        check::len(op, name, to.len(), &[("rows", rows), ("dim", dim)])?;
        check::len(op, other, from.len(), &[("rows", rows), ("dim", dim)])?;
        let draws = batch.draws(predicting).ok_or_else(|| no_draws(op))?;
        let (below, scale) = share(p)?;
        let sizes = [Arg::int(op, "rows", rows)?, Arg::int(op, "dim", dim)?];
        let (blocks, threads) = columns::<A>(dim, 256);
        let words = [site, below].map(|word| Arg::I32(word.cast_signed()));
        let scale = Arg::F32(scale as f32);
        let args = [to.arg(), from.arg(), draws.arg(), sizes[0], sizes[1], words[0], words[1], scale];
        // SAFETY: both are rows x dim, as checked above; there are two words of draws a row.
        unsafe { self.launch(op, Grid::new([blocks, rows.min(65535)], threads), &args) }
    }
}

impl<D: Driver, A: GpuFloat> DropoutOps for Gpu<D, A> {
    fn make_room(&self, batch: &mut GpuBatch<D>, _: Capacity) -> Result<()> {
        batch.make_room(self)
    }

    fn dropout_fwd(&self, op: DropoutFwd<'_, Self>) -> Result<()> {
        let DropoutFwd { y, x, dim, dropout } = op;
        self.dropout("dropout_fwd", (y, "y"), (x, "x"), dim, dropout)
    }

    fn dropout_bwd(&self, op: DropoutBwd<'_, Self>) -> Result<()> {
        let DropoutBwd { dx, dy, dim, dropout } = op;
        self.dropout("dropout_bwd", (dx, "dx"), (dy, "dy"), dim, dropout)
    }
}
