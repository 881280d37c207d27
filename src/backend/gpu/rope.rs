//! Rotary embedding. Kernel: `kernels/rope.cu`; reference: `backend/cpu/rope.rs`.

use super::batch::GpuBatch;
use super::check;
use super::context::{Gpu, GpuFloat, SCRATCH, SLABS, pack};
use super::driver::{Arg, Driver, Grid};
use super::lock::lock;
use crate::backend::ops::device::AttnShape;
use crate::backend::ops::rope::{RopeBwd, RopeFwd, RopeOps};
use crate::error::Result;

/// A block of packs of half heads by rows: small models fill one too.
struct Tile {
    /// Blocks of a row.
    blocks: usize,
    /// Packs a block.
    x: usize,
    /// Rows a block.
    y: usize,
}

fn tile<A: GpuFloat>(heads: usize, head_dim: usize) -> Tile {
    let packs = heads * (head_dim / 2).div_ceil(pack::<A>());
    let blocks = packs.div_ceil(256);
    let x = packs.div_ceil(blocks);
    Tile { blocks, x, y: 256 / x }
}

/// Compares every argument's length with the shape; rows, width, rotated heads and head_dim.
pub(super) fn sizes<D: Driver>(
    op: &'static str,
    qkv: usize,
    bias: Option<usize>,
    table: usize,
    batch: &GpuBatch<D>,
    shape: &AttnShape,
) -> Result<[Arg; 4]> {
    check::attn(op, shape)?;
    let (rows, dim, width) = (batch.slots(), shape.head_dim, shape.qkv_width());
    check::len(op, "head_dim", dim, &[("2", 2), ("halves", dim / 2)])?;
    check::len(op, "qkv", qkv, &[("rows", rows), ("qkv_width", width)])?;
    check::len(op, "bias", bias.unwrap_or(width), &[("qkv_width", width)])?;
    let positions = check::rows(op, "table", table, dim)?;
    check::at_least(op, "table", positions, &[("largest position + 1", batch.positions_end)])?;
    let int = |name, v| Arg::int(op, name, v);
    Ok([int("rows", rows)?, int("width", width)?, int("heads", shape.heads + shape.kv_heads)?, int("dim", dim)?])
}

impl<D: Driver, A: GpuFloat> RopeOps for Gpu<D, A> {
    fn rope_fwd(&self, op: RopeFwd<'_, Self>) -> Result<()> {
        const OP: &str = "rope_fwd";
        let RopeFwd { mut qkv, bias, table, batch, shape } = op;
        let sizes = sizes(OP, qkv.len(), bias.map(|b| b.len()), table.len(), batch, &shape)?;
        let rotated = shape.heads + shape.kv_heads;
        // With a bias the values are written too.
        let tile = tile::<A>(rotated + bias.map_or(0, |_| shape.kv_heads), shape.head_dim);
        let blocks = [tile.blocks, batch.slots().div_ceil(tile.y).min(65535), 1];
        let grid = Grid { blocks, threads: [tile.x, tile.y, 1], shared: 0 };
        let (kernel, args) = match bias {
            None => ("rope", vec![qkv.arg(), table.arg(), batch.positions().arg()]),
            Some(bias) => ("rope_bias", vec![qkv.arg(), bias.arg(), table.arg(), batch.positions().arg()]),
        };
        let last = bias.map_or(Arg::F32(1.0), |_| Arg::I32(shape.kv_heads as i32));
        let args: Vec<Arg> = args.into_iter().chain(sizes).chain([last]).collect();
        // SAFETY: `sizes` has compared every argument's length with the shape; every position of the batch is a row of `table`.
        unsafe { self.launch(kernel, grid, &args) }
    }

    fn rope_bwd(&self, op: RopeBwd<'_, Self>) -> Result<()> {
        const OP: &str = "rope_bwd";
        let RopeBwd { mut dqkv, dbias, table, batch, shape } = op;
        let sizes = sizes(OP, dqkv.len(), dbias.as_ref().map(|d| d.len()), table.len(), batch, &shape)?;
        let rows = batch.slots();
        let Some(dbias) = dbias else {
            let tile = tile::<A>(shape.heads + shape.kv_heads, shape.head_dim);
            let blocks = [tile.blocks, rows.div_ceil(tile.y).min(65535), 1];
            let args: Vec<Arg> = [dqkv.arg(), table.arg(), batch.positions().arg()]
                .into_iter()
                .chain(sizes)
                .chain([Arg::F32(-1.0)])
                .collect();
            // SAFETY: as in `rope_fwd`.
            return unsafe { self.launch("rope", Grid { blocks, threads: [tile.x, tile.y, 1], shared: 0 }, &args) };
        };
        let width = shape.qkv_width();
        check::at_most(OP, "qkv_width", width, SCRATCH)?;
        let tile = tile::<A>(shape.heads + 2 * shape.kv_heads, shape.head_dim);
        // Three blocks fit a multiprocessor: of an H100, this many are on their way at once.
        let slab = rows.div_ceil((SLABS * 3 / 4).min(SCRATCH / width)).max(1).next_multiple_of(tile.y);
        let slabs = rows.div_ceil(slab);
        let mut scratch = lock(&self.scratch);
        let mut part = scratch.floats.view_mut(0..slabs * width);
        let more = [Arg::int(OP, "kv_heads", shape.kv_heads)?, Arg::int(OP, "slab", slab)?];
        let args = [dqkv.arg(), part.arg(), table.arg(), batch.positions().arg()];
        let args: Vec<Arg> = args.into_iter().chain(sizes).chain(more).collect();
        let shared = tile.x * 2 * pack::<A>() * size_of::<f32>();
        let grid = Grid { blocks: [tile.blocks, slabs, 1], threads: [tile.x, tile.y, 1], shared };
        // SAFETY: as in `rope_fwd`; `part` is slabs x qkv_width.
        unsafe { self.launch("rope_bias_bwd", grid, &args) }?;
        self.reduce_slabs(dbias, part.as_view(), slabs, width)
    }
}
