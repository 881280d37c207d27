//! Embedding. Kernels: `kernels/embed.cu`, forward `kernels/rows.cu`; reference: `backend/cpu/embed.rs`.

use super::check;
use super::context::{Gpu, GpuFloat, columns};
use super::driver::{Arg, Driver, Grid};
use super::product::narrow;
use crate::backend::ops::element::Gradient;
use crate::backend::ops::embed::{EmbedBwd, EmbedFwd, EmbedOps};
use crate::error::Result;

impl<D: Driver, A: GpuFloat> EmbedOps for Gpu<D, A> {
    fn embed_fwd(&self, op: EmbedFwd<'_, Self>) -> Result<()> {
        const OP: &str = "embed_fwd";
        let EmbedFwd { mut x, table, batch, dim } = op;
        let rows = batch.slots();
        check::len(OP, "x", x.len(), &[("rows", rows), ("dim", dim)])?;
        let vocab = check::rows(OP, "table", table.len(), dim)?;
        check::at_least(OP, "table", vocab, &[("largest token + 1", batch.tokens_end)])?;
        let (rows_arg, dim_arg) = (Arg::int(OP, "rows", rows)?, Arg::int(OP, "dim", dim)?);
        let (blocks, threads) = columns::<A>(dim, 256);
        let args = [x.arg(), table.arg(), batch.tokens().arg(), rows_arg, dim_arg];
        // A table's rows by token are gathered like hidden rows by prediction.
        // SAFETY: `x` is rows x dim; every token of the batch is a row of `table`, as checked above.
        unsafe { self.launch("gather_rows", Grid::new([blocks, rows.min(65535)], threads), &args) }
    }

    fn embed_bwd<G: Gradient>(&self, op: EmbedBwd<'_, Self, G>) -> Result<()> {
        const OP: &str = "embed_bwd";
        let EmbedBwd { mut dtable, dx, batch, dim } = op;
        check::len(OP, "dx", dx.len(), &[("rows", batch.slots()), ("dim", dim)])?;
        let vocab = check::rows(OP, "dtable", dtable.len(), dim)?;
        check::at_least(OP, "dtable", vocab, &[("largest token + 1", batch.tokens_end)])?;
        let used = batch.used;
        let (used_arg, dim_arg) = (Arg::int(OP, "used", used)?, Arg::int(OP, "dim", dim)?);
        let (blocks, threads) = columns::<A>(dim, 256);
        let kernel = narrow::<A, G>(OP, [OP, "embed_bwd_narrow"])?;
        let args = [dtable.arg(), dx.arg(), batch.tokens().arg(), batch.rows_by_token().arg(), used_arg, dim_arg];
        // SAFETY: `dx` is rows x dim; every token of the batch is a row of `dtable`, as checked above; the rows by token are
        // live ones, as checked when the batch was loaded.
        unsafe { self.launch(kernel, Grid::new([blocks, used.min(65535)], threads), &args) }
    }
}
