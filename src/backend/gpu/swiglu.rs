//! SwiGLU. Kernels: `kernels/swiglu.cu`; reference: `backend/cpu/swiglu.rs`.

use super::context::{Gpu, GpuFloat, columns};
use super::driver::{Arg, Driver, Grid};
use crate::backend::ops::swiglu::{SwigluBwd, SwigluFwd, SwigluOps};
use crate::error::{Result, expect_len};

impl<D: Driver, A: GpuFloat> SwigluOps for Gpu<D, A> {
    fn swiglu_fwd(&self, op: SwigluFwd<'_, Self>) -> Result<()> {
        const OP: &str = "swiglu_fwd";
        let SwigluFwd { mut act, gate_up, ffn } = op;
        let rows = act.len() / ffn.max(1);
        expect_len(OP, "act", act.len(), &[("rows", rows), ("ffn", ffn)])?;
        expect_len(OP, "gate_up", gate_up.len(), &[("2", 2), ("rows", rows), ("ffn", ffn)])?;
        let args = [act.arg(), gate_up.arg(), Arg::int(OP, "rows", rows)?, Arg::int(OP, "ffn", ffn)?];
        let (blocks, threads) = columns::<A>(ffn, 256);
        // SAFETY: one argument is rows x ffn and the other rows x 2 ffn, as checked above.
        unsafe { self.launch(OP, Grid::new([blocks, rows.min(65535)], threads), &args) }
    }

    fn swiglu_bwd(&self, op: SwigluBwd<'_, Self>) -> Result<()> {
        const OP: &str = "swiglu_bwd";
        let SwigluBwd { mut gate_up, mut dact, ffn, again } = op;
        let rows = dact.len() / ffn.max(1);
        expect_len(OP, "dact", dact.len(), &[("rows", rows), ("ffn", ffn)])?;
        expect_len(OP, "gate_up", gate_up.len(), &[("2", 2), ("rows", rows), ("ffn", ffn)])?;
        let sizes = [Arg::int(OP, "rows", rows)?, Arg::int(OP, "ffn", ffn)?];
        let args = [gate_up.arg(), dact.arg(), sizes[0], sizes[1], Arg::I32(again.into())];
        let (blocks, threads) = columns::<A>(ffn, 256);
        // SAFETY: one argument is rows x ffn and the other rows x 2 ffn, as checked above.
        unsafe { self.launch(OP, Grid::new([blocks, rows.min(65535)], threads), &args) }
    }
}
