//! Attention over segments with a shared prefix. Kernels: `kernels/attention*.cu`; reference: `backend/cpu/attention/`; what a
//! block works on: `tiles.rs`.

use super::batch::GpuBatch;
use super::check;
use super::context::{Gpu, GpuFloat};
use super::driver::{Arg, Driver, Dtype, Grid};
use super::schedule::{KEY_WORDS, QUERY_WORDS};
use super::tiles::{Geometry, Kernels, THREADS};
use crate::backend::ops::attention::{AttentionBwd, AttentionFwd, AttentionOps};
use crate::backend::ops::device::AttnShape;
use crate::error::{Error, Result};

/// What both directions check and pass on.
struct Launch {
    op: &'static str,
    kernels: Kernels,
    geometry: Geometry,
    /// heads, kv_heads, (head_dim,) scale: the last arguments.
    tail: Vec<Arg>,
    kv_heads: usize,
}

impl Launch {
    fn new(op: &'static str, dtype: Dtype, rows: usize, shape: &AttnShape) -> Result<Launch> {
        check::attn(op, shape)?;
        let group = shape.heads / shape.kv_heads;
        // Quotients by the group are a product with a 31-bit inverse in the kernels, exact below this.
        check::at_most(op, "rows * group^2", rows.saturating_mul(group).saturating_mul(group), i32::MAX as usize)?;
        let kernels = Kernels::choose(dtype, shape.head_dim);
        let mut tail = vec![Arg::int(op, "heads", shape.heads)?, Arg::int(op, "kv_heads", shape.kv_heads)?];
        if kernels.plain {
            tail.push(Arg::int(op, "head_dim", shape.head_dim)?);
        }
        tail.push(Arg::F32((1.0 / (shape.head_dim as f64).sqrt()) as f32));
        let geometry = Geometry::new(shape, &kernels);
        Ok(Launch { op, kernels, geometry, tail, kv_heads: shape.kv_heads })
    }

    /// The tensor-core kernels move 16 bytes at a time: rows are multiples of that, the first element must be.
    fn aligned(&self, args: &[(&str, Arg)]) -> Result<()> {
        for (name, arg) in args {
            if let Arg::Memory { at, .. } = arg
                && !self.kernels.plain
                && !at.is_multiple_of(16)
            {
                let why = format!("`{name}` does not start at a multiple of 16 bytes");
                return Err(Error::Launch { kernel: self.op, why });
            }
        }
        Ok(())
    }

    /// Key/value heads side by side, so that the blocks that read the same rows run together; then tiles, longest first.
    fn grid(&self, tiles: usize, parts: usize, shared: usize) -> Grid {
        Grid { blocks: [self.kv_heads, tiles, parts], threads: [THREADS, 1, 1], shared }
    }

    fn args(&self, first: &[Arg]) -> Vec<Arg> {
        [first, &self.tail].concat()
    }
}

impl<D: Driver> GpuBatch<D> {
    /// The query table as an argument, and its entries.
    fn query_table(&self) -> (Arg, usize) {
        let table = self.attention_table(0, self.attention.words());
        (table.arg(), table.len() / QUERY_WORDS)
    }
    /// The key table as an argument, and its entries.
    fn key_table(&self) -> (Arg, usize) {
        let table = self.attention_table(1, self.attention.words());
        (table.arg(), table.len() / KEY_WORDS)
    }
}

impl<D: Driver, A: GpuFloat> AttentionOps for Gpu<D, A> {
    fn attention_fwd(&self, op: AttentionFwd<'_, Self>) -> Result<()> {
        const OP: &str = "attention_fwd";
        let AttentionFwd { mut out, mut lse, qkv, batch, shape } = op;
        let rows = batch.slots();
        let launch = Launch::new(OP, A::DTYPE, rows, &shape)?;
        check::len(OP, "out", out.len(), &[("rows", rows), ("q_width", shape.q_width())])?;
        check::len(OP, "lse", lse.len(), &[("rows", rows), ("heads", shape.heads)])?;
        check::len(OP, "qkv", qkv.len(), &[("rows", rows), ("qkv_width", shape.qkv_width())])?;
        launch.aligned(&[("out", out.arg()), ("qkv", qkv.arg())])?;
        batch.attention.check(OP, launch.geometry)?;
        let (table, tiles) = batch.query_table();
        let grid = launch.grid(tiles, 1, launch.kernels.shared[0]);
        let args = launch.args(&[out.arg(), lse.arg(), qkv.arg(), table]);
        // SAFETY: the arguments have the batch's rows, as checked above; the table was made from its segments, for this geometry.
        unsafe { self.launch(launch.kernels.fwd, grid, &args) }
    }

    fn attention_bwd(&self, op: AttentionBwd<'_, Self>) -> Result<()> {
        const OP: &str = "attention_bwd";
        let AttentionBwd { mut dqkv, mut delta, mut partial, dout, out, lse, qkv, batch, shape } = op;
        let rows = batch.slots();
        let launch = Launch::new(OP, A::DTYPE, rows, &shape)?;
        let kernels = launch.kernels;
        check::len(OP, "dqkv", dqkv.len(), &[("rows", rows), ("qkv_width", shape.qkv_width())])?;
        check::len(OP, "delta", delta.len(), &[("rows", rows), ("heads", shape.heads)])?;
        check::len(OP, "dout", dout.len(), &[("rows", rows), ("q_width", shape.q_width())])?;
        check::len(OP, "out", out.len(), &[("rows", rows), ("q_width", shape.q_width())])?;
        check::len(OP, "lse", lse.len(), &[("rows", rows), ("heads", shape.heads)])?;
        check::len(OP, "qkv", qkv.len(), &[("rows", rows), ("qkv_width", shape.qkv_width())])?;
        let room = [("rows of partial sums", batch.attention.partial_rows()), ("2", 2), ("kv_width", shape.kv_width())];
        check::at_least(OP, "partial", partial.len(), &room)?;
        let partials = partial.arg();
        launch.aligned(&[("dqkv", dqkv.arg()), ("dout", dout.arg()), ("out", out.arg()), ("qkv", qkv.arg())])?;
        launch.aligned(&[("partial", partials)])?;
        batch.attention.check(OP, launch.geometry)?;

        let items = rows * shape.heads;
        let mut args = vec![delta.arg(), dout.arg(), out.arg(), Arg::int(OP, "rows * heads", items)?];
        if kernels.plain {
            args.push(Arg::int(OP, "head_dim", shape.head_dim)?);
        }
        let grid = Grid::new([items.div_ceil(kernels.delta_items), 1], THREADS);
        // SAFETY: `delta` has rows x heads numbers, `dout` and `out` head_dim for each, as checked above.
        unsafe { self.launch(kernels.delta, grid, &args) }?;
        let delta = delta.as_view();
        let mut with = |table| launch.args(&[dqkv.arg(), dout.arg(), lse.arg(), delta.arg(), qkv.arg(), table]);
        let (table, tiles) = batch.query_table();
        let grid = launch.grid(tiles, kernels.dq_parts, kernels.shared[1]);
        // SAFETY: the arguments have the batch's rows, as checked above; the table was made from its segments, for this geometry.
        unsafe { self.launch(kernels.dq, grid, &with(table)) }?;
        let (table, tiles) = batch.key_table();
        let grid = launch.grid(tiles, 1, kernels.shared[2]);
        let sums = partial.arg();
        let args = launch.args(&[dqkv.arg(), sums, dout.arg(), lse.arg(), delta.arg(), qkv.arg(), table]);
        // SAFETY: the same arguments, the table of keys of the same batch, and room for the partial sums that any table may name.
        unsafe { self.launch(kernels.dkv, grid, &args) }?;
        let Some(sum) = kernels.sum else { return Ok(()) };
        let (table, tiles) = batch.key_table();
        let [heads, kv_heads, scale] = launch.tail[..] else { unreachable!("tensor cores take three numbers last") };
        let head_dim = Arg::int(OP, "head_dim", shape.head_dim)?;
        let args = [dqkv.arg(), partial.as_view().arg(), table, heads, kv_heads, head_dim, scale];
        let grid = Grid { blocks: [shape.kv_heads, tiles, 4], threads: [256, 1, 1], shared: 0 };
        // SAFETY: as above; every partial sum that the table names was written by the launch before.
        unsafe { self.launch(sum, grid, &args) }
    }
}
