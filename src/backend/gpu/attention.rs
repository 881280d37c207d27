//! Attention over segments with a shared prefix. Kernels: `kernels/attention*.cu`; reference: `backend/cpu/attention.rs`.
//!
//! The host cuts a micro-batch into tiles, orders them longest first (the grid's last blocks are then the short ones), and
//! uploads the list with the batch; a kernel's block takes one tile and looks nothing up. Tables have a fixed capacity and so has the
//! grid: blocks past the last tile find an empty entry and return, so that a launch depends on shapes alone.

mod schedule;

use super::batch::GpuBatch;
use super::driver::{Arg, Driver, Dtype, Grid, View, ViewMut};
use super::{Gpu, GpuFloat, check};
use crate::backend::AttnShape;
use crate::batch::{Capacity, MicroBatch};
use crate::error::{Error, Result};
use schedule::{KEY_WORDS, QUERY_ROWS, QUERY_WORDS, Span};

/// Threads of a block; `kAttnThreads` in `kernels/attention.cuh`.
const THREADS: usize = 128;

/// The kernels for one storage type and head width, with what a launch of each needs.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    fwd: &'static str,
    delta: &'static str,
    dq: &'static str,
    dkv: &'static str,
    /// Bytes of dynamic shared memory of `fwd`, `dq`, `dkv`.
    shared: [usize; 3],
    /// Blocks that share one entry of the query table in `dq`.
    dq_parts: usize,
    /// Rows of an entry of the key table.
    key_rows: usize,
    /// Elements of delta a block.
    delta_items: usize,
    /// The kernels take the head's width as an argument, and no alignment is needed.
    plain: bool,
}

impl Kernels {
    /// Tensor cores for bf16 and head widths that they take, else the plain kernels.
    fn choose(dtype: Dtype, head_dim: usize) -> Kernels {
        // Rows and columns of tiles as in the last lines of attention.cu and attention_bwd_*.cu: a block holds its own rows
        // once (forward) or twice, and two stages of two tiles of the other side.
        macro_rules! tensor_cores {
            ($hd:literal, fwd $fm:literal x $fn:literal, dq $qm:literal x $qn:literal, dkv $km:literal x $kn:literal) => {
                Kernels {
                    fwd: concat!("attention_fwd_hd", $hd),
                    delta: concat!("attention_bwd_delta_hd", $hd),
                    dq: concat!("attention_bwd_dq_hd", $hd),
                    dkv: concat!("attention_bwd_dkv_hd", $hd),
                    shared: [
                        2 * $hd * ($fm + 4 * $fn),
                        2 * $hd * (2 * $qm + 4 * $qn),
                        2 * $hd * (2 * $km + 4 * $kn) + 4 * 4 * $kn,
                    ],
                    dq_parts: QUERY_ROWS / $qm,
                    key_rows: $km,
                    delta_items: THREADS / 4,
                    plain: false,
                }
            };
        }
        match (dtype, head_dim) {
            (Dtype::Bf16, 32) => tensor_cores!(32, fwd 128 x 64, dq 128 x 64, dkv 128 x 64),
            (Dtype::Bf16, 64) => tensor_cores!(64, fwd 128 x 64, dq 128 x 64, dkv 64 x 64),
            (Dtype::Bf16, 96) => tensor_cores!(96, fwd 128 x 64, dq 128 x 64, dkv 64 x 64),
            (Dtype::Bf16, 128) => tensor_cores!(128, fwd 128 x 32, dq 64 x 32, dkv 64 x 32),
            _ => Kernels {
                fwd: "attention_fwd_plain",
                delta: "attention_bwd_delta_plain",
                dq: "attention_bwd_dq_plain",
                dkv: "attention_bwd_dkv_plain",
                shared: [4 * (THREADS / 32) * (4 * head_dim + 64); 3],
                dq_parts: 1,
                key_rows: 64,
                delta_items: THREADS / 32,
                plain: true,
            },
        }
    }
}

/// What the attention kernels follow in the loaded batch: its places in the batch's memory, and the tables on the host.
pub struct Tables {
    /// Most slots, and most segments, the dummy tail included.
    slots: usize,
    segments: usize,
    geometry: Geometry,
    /// Who attends to whom; the dummy tail last.
    spans: Vec<Span>,
    /// Scratch.
    entries: Vec<[u32; QUERY_WORDS]>,
}

/// What the tables depend on beside the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    group: usize,
    key_rows: usize,
}

/// Entries of a table: what a sum of rounded-up parts can come to.
fn entries(rows: usize, rows_per_entry: usize, spans: usize) -> usize {
    rows / rows_per_entry + spans
}

impl Tables {
    /// For any micro-batch within `capacity`, and attention over `shape` in `dtype`.
    pub(super) fn new(dtype: Dtype, capacity: Capacity, shape: &AttnShape) -> Self {
        let segments = capacity.slots.min(2 * capacity.responses) + 1; // a group has a response, so there are no more prompts
        let geometry = Geometry::new(shape, &Kernels::choose(dtype, shape.head_dim));
        let mut this = Tables {
            slots: capacity.slots,
            segments,
            geometry,
            spans: Vec::with_capacity(segments),
            entries: Vec::new(),
        };
        this.entries.reserve(this.sizes().into_iter().max().unwrap_or(0));
        this
    }

    /// Entries of the query table and of the key table.
    fn sizes(&self) -> [usize; 2] {
        let queries = entries(self.slots * self.geometry.group, QUERY_ROWS, self.segments);
        [queries, entries(self.slots, self.geometry.key_rows, self.segments)]
    }

    /// Numbers of each.
    pub(super) fn words(&self) -> [usize; 2] {
        let [queries, keys] = self.sizes();
        [queries * QUERY_WORDS, keys * KEY_WORDS]
    }

    /// Replaces the content, for the first `slots` slots of a micro-batch within the capacity.
    pub(super) fn load(&mut self, from: &MicroBatch, slots: usize) {
        schedule::spans(&mut self.spans, from, slots);
    }

    /// Writes the tables into `words`, each at its place in `at`.
    pub(super) fn stage(&mut self, at: [usize; 2], words: &mut [u32]) {
        let sizes = self.words();
        schedule::query_tiles(&mut self.entries, &self.spans, self.geometry.group);
        stage(&mut words[at[0]..][..sizes[0]], QUERY_WORDS, &self.entries);
        schedule::key_tiles(&mut self.entries, &self.spans, self.geometry.key_rows);
        stage(&mut words[at[1]..][..sizes[1]], KEY_WORDS, &self.entries);
    }

    /// Refuses another geometry than the tables were made for.
    fn check(&self, op: &'static str, geometry: Geometry) -> Result<()> {
        if self.geometry == geometry {
            return Ok(());
        }
        let show = |g: Geometry| format!("{} query heads a key head in tiles of {} keys", g.group, g.key_rows);
        let why = format!("the batch was made for {}, not {}", show(self.geometry), show(geometry));
        Err(Error::Launch { kernel: op, why })
    }
}

impl Geometry {
    fn new(shape: &AttnShape, kernels: &Kernels) -> Self {
        Geometry { group: shape.heads / shape.kv_heads, key_rows: kernels.key_rows }
    }
}

/// The first `words` numbers of every entry, one after the other; zeros (nothing to do) behind them.
fn stage(to: &mut [u32], words: usize, entries: &[[u32; QUERY_WORDS]]) {
    let (live, rest) = to.split_at_mut(entries.len() * words);
    live.chunks_exact_mut(words).zip(entries).for_each(|(to, e)| to.copy_from_slice(&e[..words]));
    rest.fill(0);
}

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

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// See [`crate::backend::Backend::attention_fwd`].
    pub fn attention_fwd(
        &self,
        mut out: ViewMut<A>,
        mut lse: ViewMut<f32>,
        qkv: View<A>,
        batch: &GpuBatch<D>,
        shape: AttnShape,
    ) -> Result<()> {
        const OP: &str = "attention_fwd";
        let rows = batch.slots();
        let launch = Launch::new(OP, A::DTYPE, rows, &shape)?;
        check::len(OP, "out", out.len(), &[("rows", rows), ("q_width", shape.q_width())])?;
        check::len(OP, "lse", lse.len(), &[("rows", rows), ("heads", shape.heads)])?;
        check::len(OP, "qkv", qkv.len(), &[("rows", rows), ("qkv_width", shape.qkv_width())])?;
        launch.aligned(&[("out", out.arg()), ("qkv", qkv.arg())])?;
        batch.attention.check(OP, launch.geometry)?;
        let (table, tiles) = batch.query_table();
        let grid = launch.grid(tiles, 1, launch.kernels.shared[0]);
        self.launch(launch.kernels.fwd, grid, &launch.args(&[out.arg(), lse.arg(), qkv.arg(), table]))
    }

    /// See [`crate::backend::Backend::attention_bwd`].
    #[allow(clippy::too_many_arguments)]
    pub fn attention_bwd(
        &self,
        mut dqkv: ViewMut<A>,
        mut delta: ViewMut<f32>,
        dout: View<A>,
        out: View<A>,
        lse: View<f32>,
        qkv: View<A>,
        batch: &GpuBatch<D>,
        shape: AttnShape,
    ) -> Result<()> {
        const OP: &str = "attention_bwd";
        let rows = batch.slots();
        let launch = Launch::new(OP, A::DTYPE, rows, &shape)?;
        let kernels = launch.kernels;
        check::len(OP, "dqkv", dqkv.len(), &[("rows", rows), ("qkv_width", shape.qkv_width())])?;
        check::len(OP, "delta", delta.len(), &[("rows", rows), ("heads", shape.heads)])?;
        check::len(OP, "dout", dout.len(), &[("rows", rows), ("q_width", shape.q_width())])?;
        check::len(OP, "out", out.len(), &[("rows", rows), ("q_width", shape.q_width())])?;
        check::len(OP, "lse", lse.len(), &[("rows", rows), ("heads", shape.heads)])?;
        check::len(OP, "qkv", qkv.len(), &[("rows", rows), ("qkv_width", shape.qkv_width())])?;
        launch.aligned(&[("dqkv", dqkv.arg()), ("dout", dout.arg()), ("out", out.arg()), ("qkv", qkv.arg())])?;
        batch.attention.check(OP, launch.geometry)?;

        let items = rows * shape.heads;
        let mut args = vec![delta.arg(), dout.arg(), out.arg(), Arg::int(OP, "rows * heads", items)?];
        if kernels.plain {
            args.push(Arg::int(OP, "head_dim", shape.head_dim)?);
        }
        self.launch(kernels.delta, Grid::new([items.div_ceil(kernels.delta_items), 1], THREADS), &args)?;
        let delta = delta.as_view();
        let mut with = |table| launch.args(&[dqkv.arg(), dout.arg(), lse.arg(), delta.arg(), qkv.arg(), table]);
        let (table, tiles) = batch.query_table();
        self.launch(kernels.dq, launch.grid(tiles, kernels.dq_parts, kernels.shared[1]), &with(table))?;
        let (table, tiles) = batch.key_table();
        self.launch(kernels.dkv, launch.grid(tiles, 1, kernels.shared[2]), &with(table))
    }
}
