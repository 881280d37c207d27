//! SwiGLU. Kernels: `kernels/swiglu.cu`; reference: `backend/cpu/swiglu.rs`.

use super::driver::{Arg, Driver, Grid, View, ViewMut};
use super::{Gpu, GpuFloat, columns};
use crate::error::{Result, expect_len};

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// See [`crate::backend::Backend::swiglu_fwd`].
    pub fn swiglu_fwd(&self, mut act: ViewMut<A>, gate_up: View<A>, ffn: usize) -> Result<()> {
        const OP: &str = "swiglu_fwd";
        let rows = act.len() / ffn.max(1);
        expect_len(OP, "act", act.len(), &[("rows", rows), ("ffn", ffn)])?;
        expect_len(OP, "gate_up", gate_up.len(), &[("2", 2), ("rows", rows), ("ffn", ffn)])?;
        let args = [act.arg(), gate_up.arg(), Arg::int(OP, "rows", rows)?, Arg::int(OP, "ffn", ffn)?];
        let (blocks, threads) = columns::<A>(ffn, 256);
        self.launch(OP, Grid::new([blocks, rows.min(65535)], threads), &args)
    }

    /// See [`crate::backend::Backend::swiglu_bwd`].
    pub fn swiglu_bwd(&self, mut gate_up: ViewMut<A>, dact: View<A>, ffn: usize) -> Result<()> {
        const OP: &str = "swiglu_bwd";
        let rows = dact.len() / ffn.max(1);
        expect_len(OP, "dact", dact.len(), &[("rows", rows), ("ffn", ffn)])?;
        expect_len(OP, "gate_up", gate_up.len(), &[("2", 2), ("rows", rows), ("ffn", ffn)])?;
        let args = [gate_up.arg(), dact.arg(), Arg::int(OP, "rows", rows)?, Arg::int(OP, "ffn", ffn)?];
        let (blocks, threads) = columns::<A>(ffn, 256);
        self.launch(OP, Grid::new([blocks, rows.min(65535)], threads), &args)
    }
}
