//! Rotary embedding. Kernel: `kernels/rope.cu`; reference: `backend/cpu/rope.rs`.

use super::check;
use super::context::{Gpu, GpuFloat, pack};
use super::driver::{Arg, Driver, Grid};
use crate::backend::ops::rope::{Rope, RopeOps, Rotation};
use crate::error::Result;

impl<D: Driver, A: GpuFloat> RopeOps for Gpu<D, A> {
    fn rope(&self, op: Rope<'_, Self>) -> Result<()> {
        const OP: &str = "rope";
        let Rope { mut qkv, table, batch, shape, direction } = op;
        check::attn(OP, &shape)?;
        let (rows, dim, heads) = (batch.slots(), shape.head_dim, shape.heads + shape.kv_heads);
        check::len(OP, "head_dim", dim, &[("2", 2), ("halves", dim / 2)])?;
        check::len(OP, "qkv", qkv.len(), &[("rows", rows), ("qkv_width", shape.qkv_width())])?;
        let positions = check::rows(OP, "table", table.len(), dim)?;
        check::at_least(OP, "table", positions, &[("largest position + 1", batch.positions_end)])?;
        let sign = Arg::F32(if direction == Rotation::Forward { 1.0 } else { -1.0 });
        let int = |name, v| Arg::int(OP, name, v);
        let sizes = [int("rows", rows)?, int("width", shape.qkv_width())?, int("heads", heads)?, int("dim", dim)?];
        let args = [qkv.arg(), table.arg(), batch.positions().arg(), sizes[0], sizes[1], sizes[2], sizes[3], sign];
        let packs = heads * (dim / 2).div_ceil(pack::<A>());
        let blocks = packs.div_ceil(256);
        let x = packs.div_ceil(blocks);
        let y = 256 / x;
        let blocks = [blocks, rows.div_ceil(y).min(65535), 1];
        // SAFETY: `qkv` is rows x qkv_width; every position of the batch is a row of `table`, as checked above.
        unsafe { self.launch(OP, Grid { blocks, threads: [x, y, 1], shared: 0 }, &args) }
    }
}
