//! RMSNorm, and Qwen3's q/k norm with the rotation behind it. Kernels: `kernels/norm.cu`, `kernels/qk_norm.cu`, `kernels/reduce.cu`;
//! reference: `backend/cpu/norm.rs`.

use super::batch::GpuBatch;
use super::check;
use super::context::{Gpu, GpuFloat, SLABS, pack};
use super::driver::{Arg, Driver, Dtype, Grid, View, ViewMut};
use super::lock::lock;
use super::rope;
use crate::backend::ops::device::AttnShape;
use crate::backend::ops::norm::{NormOps, QkNormBwd, QkNormFwd, RmsNormBwd, RmsNormFwd};
use crate::error::Result;

/// Geometry of the kernels that hold rows in registers.
struct RowTile {
    /// Packs a thread: 1, 2 or 4.
    k: usize,
    /// Threads a row.
    x: usize,
    /// Rows at a time.
    y: usize,
}

fn row_tile<A: GpuFloat>(op: &'static str, dim: usize) -> Result<RowTile> {
    check::at_most(op, "dim", dim, 8192)?;
    let packs = dim.div_ceil(pack::<A>());
    // At most 16 elements a thread: 2 packs of bf16, 4 of f32.
    let k = [1, 2, 4].into_iter().find(|k| packs.div_ceil(*k) <= 512).expect("4 packs of 512 threads hold 8192");
    let x = packs.div_ceil(k).next_multiple_of(32);
    Ok(RowTile { k, x, y: (256 / x).max(1) })
}

fn named(names: [&'static str; 3], k: usize) -> &'static str {
    names[k.trailing_zeros() as usize]
}

impl<D: Driver, A: GpuFloat> NormOps for Gpu<D, A> {
    fn rmsnorm_fwd(&self, op: RmsNormFwd<'_, Self>) -> Result<()> {
        const OP: &str = "rmsnorm_fwd";
        let RmsNormFwd { mut y, mut rstd, x, w, eps } = op;
        let (rows, dim) = (rstd.len(), w.len());
        check::len(OP, "x", x.len(), &[("rows", rows), ("dim", dim)])?;
        check::len(OP, "y", y.len(), &[("rows", rows), ("dim", dim)])?;
        let tile = row_tile::<A>(OP, dim)?;
        let (rows_arg, dim_arg) = (Arg::int(OP, "rows", rows)?, Arg::int(OP, "dim", dim)?);
        let args = [y.arg(), rstd.arg(), x.arg(), w.arg(), rows_arg, dim_arg, Arg::F32(eps as f32)];
        let grid = Grid { blocks: [rows.div_ceil(tile.y), 1, 1], threads: [tile.x, tile.y, 1], shared: 0 };
        let kernel = named(["rmsnorm_fwd_1", "rmsnorm_fwd_2", "rmsnorm_fwd_4"], tile.k);
        // SAFETY: `x` and `y` are rows x dim, `rstd` rows, `w` dim, as checked above.
        unsafe { self.launch(kernel, grid, &args) }
    }

    fn rmsnorm_bwd(&self, op: RmsNormBwd<'_, Self>) -> Result<()> {
        const OP: &str = "rmsnorm_bwd";
        let RmsNormBwd { mut dx, dw, mut dy, x, w, rstd, write, again } = op;
        let (rows, dim) = (rstd.len(), w.len());
        for (name, len) in [("dx", dx.len()), ("dy", dy.len()), ("x", x.len())] {
            check::len(OP, name, len, &[("rows", rows), ("dim", dim)])?;
        }
        if let Some(dw) = &dw {
            check::len(OP, "dw", dw.len(), &[("dim", dim)])?;
        }
        let tile = row_tile::<A>(OP, dim)?;
        let slab = rows.div_ceil(SLABS).max(1).next_multiple_of(tile.y);
        let slabs = rows.div_ceil(slab);
        let mut scratch = lock(&self.scratch);
        let mut part = scratch.floats.view_mut(0..slabs * dim);
        let sizes = [Arg::int(OP, "rows", rows)?, Arg::int(OP, "dim", dim)?, Arg::int(OP, "slab", slab)?];
        let flags = [write.adds(), again].map(|f| Arg::I32(f.into()));
        let mut args = vec![dx.arg(), part.arg(), dy.arg(), x.arg(), w.arg(), rstd.arg()];
        args.extend(sizes.into_iter().chain(flags));
        let grid = Grid { blocks: [slabs, 1, 1], threads: [tile.x, tile.y, 1], shared: dim * 4 };
        let kernel = named(["rmsnorm_bwd_1", "rmsnorm_bwd_2", "rmsnorm_bwd_4"], tile.k);
        // SAFETY: `dx`, `dy` and `x` are rows x dim, `rstd` rows, `w` dim, as checked above; `part` is slabs x dim.
        unsafe { self.launch(kernel, grid, &args) }?;
        dw.map_or(Ok(()), |dw| self.reduce_slabs(dw, part.as_view(), slabs, dim))
    }

    fn qk_norm_fwd(&self, op: QkNormFwd<'_, Self>) -> Result<()> {
        const OP: &str = "qk_norm_fwd";
        let QkNormFwd { mut qkv, mut raw, mut rstd, w, table, batch, shape, eps } = op;
        let lens = [qkv.len(), raw.len(), rstd.len(), w.len(), table.len()];
        let (rows, width, sizes) = qk_sizes::<D, A>(OP, lens, batch, shape)?;
        check::at_most(OP, "rows * heads", (rows + SLABS) * (shape.heads + shape.kv_heads), i32::MAX as usize)?;
        let mut args = vec![qkv.arg(), raw.arg(), rstd.arg(), w.arg(), table.arg(), batch.positions().arg()];
        args.extend(sizes);
        args.push(Arg::F32(eps as f32));
        let heads_a_block = 256 / width;
        // SAFETY: `qk_sizes` has compared every argument's length with the shape; every position of the batch is a row of `table`.
        unsafe {
            self.launch(OP, Grid::new([(rows * (shape.heads + shape.kv_heads)).div_ceil(heads_a_block), 1], 256), &args)
        }
    }

    fn qk_norm_bwd(&self, op: QkNormBwd<'_, Self>) -> Result<()> {
        const OP: &str = "qk_norm_bwd";
        let QkNormBwd { mut dqkv, dw, raw, rstd, w, table, batch, shape } = op;
        let lens = [dqkv.len(), raw.len(), rstd.len(), w.len(), table.len()];
        let (rows, _, sizes) = qk_sizes::<D, A>(OP, lens, batch, shape)?;
        let dim = shape.head_dim;
        let slab = rows.div_ceil(SLABS).max(1);
        check::at_most(OP, "rows * heads", (rows + slab) * (shape.heads + shape.kv_heads), i32::MAX as usize)?;
        check::len(OP, "dw", dw.as_ref().map_or(2 * dim, ViewMut::len), &[("2", 2), ("head_dim", dim)])?;
        let slabs = rows.div_ceil(slab);
        let mut scratch = lock(&self.scratch);
        let mut part = scratch.floats.view_mut(0..slabs * 2 * dim);
        let mut args =
            vec![dqkv.arg(), part.arg(), raw.arg(), rstd.arg(), w.arg(), table.arg(), batch.positions().arg()];
        args.extend(sizes);
        args.push(Arg::int(OP, "slab", slab)?);
        // SAFETY: as in `qk_norm_fwd`; `part` is slabs x 2 head_dim.
        unsafe { self.launch(OP, Grid::new([slabs, 1], 256), &args) }?;
        match dw {
            Some(dw) if slabs > 0 => self.reduce_slabs(dw, part.as_view(), slabs, 2 * dim),
            _ => Ok(()),
        }
    }
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// `out[c] += sum of part[s * stride + c]` over `slabs`; `part` starts at the first column.
    pub(super) fn reduce_slabs(
        &self,
        mut out: ViewMut<f32>,
        part: View<f32>,
        slabs: usize,
        stride: usize,
    ) -> Result<()> {
        const OP: &str = "reduce_slabs";
        let dim = out.len();
        let last = slabs.saturating_sub(1) * stride + dim;
        check::at_least(OP, "part", part.len(), &[("(slabs - 1) * stride + dim", if slabs == 0 { 0 } else { last })])?;
        let sizes = [Arg::int(OP, "slabs", slabs)?, Arg::int(OP, "dim", dim)?, Arg::int(OP, "stride", stride)?];
        let grid = Grid { blocks: [dim.div_ceil(32), 1, 1], threads: [32, 32, 1], shared: 0 };
        let args = [out.arg(), part.arg(), sizes[0], sizes[1], sizes[2]];
        // SAFETY: `out` has dim numbers, and `part` as many `stride` apart a slab, as checked above.
        unsafe { self.launch_as(Dtype::F32, OP, grid, &args) }
    }
}

/// Rows, lanes a head, and the arguments rows, heads, kv_heads, head_dim, lanes.
fn qk_sizes<D: Driver, A: GpuFloat>(
    op: &'static str,
    [qkv, raw, rstd, w, table]: [usize; 5],
    batch: &GpuBatch<D>,
    shape: AttnShape,
) -> Result<(usize, usize, [Arg; 5])> {
    rope::sizes(op, qkv, None, table, batch, &shape)?;
    check::at_most(op, "head_dim", shape.head_dim, 64 * pack::<A>())?;
    let rows = batch.slots();
    check::len(op, "raw", raw, &[("rows", rows), ("q_width + kv_width", shape.q_width() + shape.kv_width())])?;
    check::len(op, "rstd", rstd, &[("rows", rows), ("heads + kv_heads", shape.heads + shape.kv_heads)])?;
    check::len(op, "w", w, &[("2", 2), ("head_dim", shape.head_dim)])?;
    let width = (shape.head_dim / 2).div_ceil(pack::<A>()).next_power_of_two();
    let int = |name, v| Arg::int(op, name, v);
    let sizes = [
        int("rows", rows)?,
        int("heads", shape.heads)?,
        int("kv_heads", shape.kv_heads)?,
        int("head_dim", shape.head_dim)?,
        int("lanes", width)?,
    ];
    Ok((rows, width, sizes))
}
