//! Rows that predict something: gathered, scattered, scaled. Kernels: `kernels/rows.cu`; reference: `backend/cpu/rows.rs`.

use super::check;
use super::context::{Gpu, GpuFloat, columns};
use super::driver::{Arg, Driver, Grid, View, ViewMut};
use crate::backend::ops::rows::{GatherRows, RowOps, ScatterRows};
use crate::error::Result;

impl<D: Driver, A: GpuFloat> RowOps for Gpu<D, A> {
    fn gather_rows(&self, op: GatherRows<'_, Self>) -> Result<()> {
        const OP: &str = "gather_rows";
        let GatherRows { mut out, x, batch, dim } = op;
        let n = batch.num_predictions();
        check::len(OP, "out", out.len(), &[("predictions", n), ("dim", dim)])?;
        check::len(OP, "x", x.len(), &[("rows", batch.slots()), ("dim", dim)])?;
        let sizes = [Arg::int(OP, "predictions", n)?, Arg::int(OP, "dim", dim)?];
        let (blocks, threads) = columns::<A>(dim, 256);
        let args = [out.arg(), x.arg(), batch.prediction_rows().arg(), sizes[0], sizes[1]];
        // SAFETY: `out` is predictions x dim and `x` rows x dim, as checked above; predictions read rows of the batch, as checked
        // when it was loaded.
        unsafe { self.launch(OP, Grid::new([blocks, n.min(65535)], threads), &args) }
    }

    fn scatter_rows(&self, op: ScatterRows<'_, Self>) -> Result<()> {
        const OP: &str = "scatter_rows";
        let ScatterRows { mut dx, dout, batch, dim } = op;
        let rows = batch.slots();
        check::len(OP, "dx", dx.len(), &[("rows", rows), ("dim", dim)])?;
        check::len(OP, "dout", dout.len(), &[("predictions", batch.num_predictions()), ("dim", dim)])?;
        let sizes = [Arg::int(OP, "rows", rows)?, Arg::int(OP, "dim", dim)?];
        let (blocks, threads) = columns::<A>(dim, 256);
        let (starts, by_row) = batch.predictions_by_row();
        let args = [dx.arg(), dout.arg(), starts.arg(), by_row.arg(), sizes[0], sizes[1]];
        // SAFETY: `dx` is rows x dim and `dout` predictions x dim, as checked above; the batch's tables name predictions that
        // exist, as checked when it was loaded.
        unsafe { self.launch(OP, Grid::new([blocks, rows.min(65535)], threads), &args) }
    }
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// `y[n] = factor[n] x[n]`; `x` `None`: in place. Shapes: `y`, `x` n x dim, `factor` n.
    pub(super) fn scale_rows(&self, mut y: ViewMut<A>, x: Option<View<A>>, factor: View<f32>) -> Result<()> {
        const OP: &str = "scale_rows";
        let n = factor.len();
        if n == 0 {
            return check::len(OP, "y", y.len(), &[("rows", 0)]);
        }
        let dim = check::rows(OP, "y", y.len(), n)?;
        let out = y.arg();
        let from = x.unwrap_or(y.as_view());
        check::len(OP, "x", from.len(), &[("rows", n), ("dim", dim)])?;
        let sizes = [Arg::int(OP, "rows", n)?, Arg::int(OP, "dim", dim)?];
        let (blocks, threads) = columns::<A>(dim, 256);
        let args = [out, from.arg(), factor.arg(), sizes[0], sizes[1]];
        // SAFETY: `y` and `x` are n x dim and `factor` has n numbers, as checked above; each element is read, then written, by
        // one thread.
        unsafe { self.launch(OP, Grid::new([blocks, n.min(65535)], threads), &args) }
    }
}
