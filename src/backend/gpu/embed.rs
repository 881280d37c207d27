//! Embedding. Kernels: `kernels/embed.cu`, forward `kernels/rows.cu`; reference: `backend/cpu/embed.rs`.

use super::batch::GpuBatch;
use super::driver::{Arg, Driver, Grid, View, ViewMut};
use super::{Gpu, GpuFloat, check, columns};
use crate::error::Result;

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// See [`crate::backend::Backend::embed_fwd`].
    pub fn embed_fwd(&self, mut x: ViewMut<A>, table: View<A>, batch: &GpuBatch<D>, dim: usize) -> Result<()> {
        const OP: &str = "embed_fwd";
        let rows = batch.slots();
        check::len(OP, "x", x.len(), &[("rows", rows), ("dim", dim)])?;
        let vocab = check::rows(OP, "table", table.len(), dim)?;
        check::at_least(OP, "table", vocab, &[("largest token + 1", batch.tokens_end)])?;
        let (rows_arg, dim_arg) = (Arg::int(OP, "rows", rows)?, Arg::int(OP, "dim", dim)?);
        let (blocks, threads) = columns::<A>(dim, 256);
        let args = [x.arg(), table.arg(), batch.tokens().arg(), rows_arg, dim_arg];
        // A table's rows by token are gathered like hidden rows by prediction.
        self.launch("gather_rows", Grid::new([blocks, rows.min(65535)], threads), &args)
    }

    /// See [`crate::backend::Backend::embed_bwd`].
    pub fn embed_bwd(&self, mut dtable: ViewMut<f32>, dx: View<A>, batch: &GpuBatch<D>, dim: usize) -> Result<()> {
        const OP: &str = "embed_bwd";
        check::len(OP, "dx", dx.len(), &[("rows", batch.slots()), ("dim", dim)])?;
        let vocab = check::rows(OP, "dtable", dtable.len(), dim)?;
        check::at_least(OP, "dtable", vocab, &[("largest token + 1", batch.tokens_end)])?;
        let used = batch.used;
        let (used_arg, dim_arg) = (Arg::int(OP, "used", used)?, Arg::int(OP, "dim", dim)?);
        let (blocks, threads) = columns::<A>(dim, 256);
        let args = [dtable.arg(), dx.arg(), batch.tokens().arg(), batch.rows_by_token().arg(), used_arg, dim_arg];
        self.launch(OP, Grid::new([blocks, used.min(65535)], threads), &args)
    }
}
