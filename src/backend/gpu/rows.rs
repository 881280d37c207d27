//! Rows that predict something: gathered, scattered, scaled. Kernels: `kernels/rows.cu`; reference: `backend/cpu/rows.rs`.

use super::batch::GpuBatch;
use super::driver::{Arg, Driver, Grid, View, ViewMut};
use super::{Gpu, GpuFloat, check, columns};
use crate::error::Result;

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// See [`crate::backend::Backend::gather_rows`].
    pub fn gather_rows(&self, mut out: ViewMut<A>, x: View<A>, batch: &GpuBatch<D>, dim: usize) -> Result<()> {
        const OP: &str = "gather_rows";
        let n = batch.num_predictions();
        check::len(OP, "out", out.len(), &[("predictions", n), ("dim", dim)])?;
        check::len(OP, "x", x.len(), &[("rows", batch.slots()), ("dim", dim)])?;
        let sizes = [Arg::int(OP, "predictions", n)?, Arg::int(OP, "dim", dim)?];
        let (blocks, threads) = columns::<A>(dim, 256);
        let args = [out.arg(), x.arg(), batch.prediction_rows().arg(), sizes[0], sizes[1]];
        self.launch(OP, Grid::new([blocks, n.min(65535)], threads), &args)
    }

    /// See [`crate::backend::Backend::scatter_rows`].
    pub fn scatter_rows(&self, mut dx: ViewMut<A>, dout: View<A>, batch: &GpuBatch<D>, dim: usize) -> Result<()> {
        const OP: &str = "scatter_rows";
        let rows = batch.slots();
        check::len(OP, "dx", dx.len(), &[("rows", rows), ("dim", dim)])?;
        check::len(OP, "dout", dout.len(), &[("predictions", batch.num_predictions()), ("dim", dim)])?;
        let sizes = [Arg::int(OP, "rows", rows)?, Arg::int(OP, "dim", dim)?];
        let (blocks, threads) = columns::<A>(dim, 256);
        let (starts, by_row) = batch.predictions_by_row();
        let args = [dx.arg(), dout.arg(), starts.arg(), by_row.arg(), sizes[0], sizes[1]];
        self.launch(OP, Grid::new([blocks, rows.min(65535)], threads), &args)
    }

    /// `y[n] = factor[n] x[n]`; `x` `None`: in place. Shapes: `y`, `x` n x dim, `factor` n.
    pub fn scale_rows(&self, mut y: ViewMut<A>, x: Option<View<A>>, factor: View<f32>) -> Result<()> {
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
        self.launch(
            OP,
            Grid::new([blocks, n.min(65535)], threads),
            &[out, from.arg(), factor.arg(), sizes[0], sizes[1]],
        )
    }
}
