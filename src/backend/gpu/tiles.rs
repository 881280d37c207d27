//! The tiles that attention's blocks take: which kernels there are, and a micro-batch cut up for them.
//!
//! The host cuts a micro-batch into tiles, orders them longest first (the grid's last blocks are then the short ones), and
//! uploads the list with the batch; a kernel's block takes one tile and looks nothing up. Tables have a fixed capacity and so has the
//! grid: blocks past the last tile find an empty entry and return, so that a launch depends on shapes alone.

use super::driver::Dtype;
use super::schedule::{self, KEY_WORDS, PART_QUERIES, QUERY_ROWS, QUERY_WORDS, Room, Span, entries, partial_rows};
use crate::backend::ops::device::AttnShape;
use crate::batch::{Capacity, MicroBatch};
use crate::error::{Error, Result};

/// Threads of a block; `kAttnThreads` in `kernels/attention.cuh`.
pub(super) const THREADS: usize = 128;

/// The kernels for one storage type and head width, with what a launch of each needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub fwd: &'static str,
    pub delta: &'static str,
    pub dq: &'static str,
    pub dkv: &'static str,
    /// Bytes of dynamic shared memory of `fwd`, `dq`, `dkv`.
    pub shared: [usize; 3],
    /// Blocks that share one entry of the query table in `dq`.
    pub dq_parts: usize,
    /// Rows of an entry of the key table.
    pub key_rows: usize,
    /// Adds up the partial sums of `dkv`; the plain kernels have none.
    pub sum: Option<&'static str>,
    /// Elements of delta a block.
    pub delta_items: usize,
    /// The kernels take the head's width as an argument, and no alignment is needed.
    pub plain: bool,
}

impl Kernels {
    /// Tensor cores for bf16 and head widths that they take, else the plain kernels.
    pub fn choose(dtype: Dtype, head_dim: usize) -> Kernels {
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
                    sum: Some("attention_bwd_dkv_sum"),
                    delta_items: THREADS / 4,
                    plain: false,
                }
            };
        }
        match (dtype, head_dim) {
            (Dtype::Bf16, 32) => tensor_cores!(32, fwd 128 x 64, dq 128 x 64, dkv 128 x 64),
            (Dtype::Bf16, 64) => tensor_cores!(64, fwd 128 x 64, dq 128 x 64, dkv 128 x 64),
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
                sum: None,
                delta_items: THREADS / 32,
                plain: true,
            },
        }
    }
}

/// Numbers of partial sums for batches of up to `slots` rows: dk and dv of a row of every key head.
pub(super) fn partial_len(dtype: Dtype, slots: usize, shape: &AttnShape) -> usize {
    match Kernels::choose(dtype, shape.head_dim).sum {
        Some(_) => partial_rows(slots) * 2 * shape.kv_width(),
        None => 0,
    }
}

/// What the attention kernels follow in the loaded batch: its places in the batch's memory, and the tables on the host.
pub(super) struct Tables {
    /// Most slots, and most segments, the dummy tail included.
    slots: usize,
    segments: usize,
    geometry: Geometry,
    /// Most packed queries of an entry of the key table, unless there is no room for so many entries.
    part_queries: usize,
    /// Rows that there is scratch for.
    partial_rows: usize,
    /// Who attends to whom; the dummy tail last.
    spans: Vec<Span>,
    /// Scratch.
    entries: Vec<[u32; QUERY_WORDS]>,
}

/// What the tables depend on beside the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    group: usize,
    key_rows: usize,
}

impl Tables {
    /// For any micro-batch within `capacity`, and attention over `shape` in `dtype`.
    pub(super) fn new(dtype: Dtype, capacity: Capacity, shape: &AttnShape) -> Self {
        let segments = capacity.slots.min(2 * capacity.responses) + 1; // a group has a response, so there are no more prompts
        let kernels = Kernels::choose(dtype, shape.head_dim);
        let geometry = Geometry::new(shape, &kernels);
        let mut this = Tables {
            slots: capacity.slots,
            segments,
            geometry,
            part_queries: if kernels.sum.is_some() { PART_QUERIES } else { usize::MAX },
            partial_rows: if kernels.sum.is_some() { partial_rows(capacity.slots) } else { 0 },
            spans: Vec::with_capacity(segments),
            entries: Vec::new(),
        };
        this.entries.reserve(this.sizes().into_iter().max().unwrap_or(0));
        this
    }

    /// Entries of the query table and of the key table.
    fn sizes(&self) -> [usize; 2] {
        let queries = entries(self.slots * self.geometry.group, QUERY_ROWS, self.segments);
        let keys = entries(self.slots, self.geometry.key_rows, self.segments);
        [queries, keys + self.partial_rows / self.geometry.key_rows]
    }

    /// Rows of partial sums that the tables may name.
    pub(super) fn partial_rows(&self) -> usize {
        self.partial_rows
    }

    /// Cuts tiles of keys that more than so many packed queries see; a multiple of 64.
    pub(super) fn cut_at(&mut self, part_queries: usize) {
        if self.partial_rows > 0 {
            self.part_queries = part_queries;
        }
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
        let room = Room { part_queries: self.part_queries, partial_rows: self.partial_rows, entries: self.sizes()[1] };
        let Geometry { group, key_rows } = self.geometry;
        schedule::key_tiles(&mut self.entries, &self.spans, group, key_rows, room);
        stage(&mut words[at[1]..][..sizes[1]], KEY_WORDS, &self.entries);
    }

    /// Refuses another geometry than the tables were made for.
    pub(super) fn check(&self, op: &'static str, geometry: Geometry) -> Result<()> {
        if self.geometry == geometry {
            return Ok(());
        }
        let show = |g: Geometry| format!("{} query heads a key head in tiles of {} keys", g.group, g.key_rows);
        let why = format!("the batch was made for {}, not {}", show(self.geometry), show(geometry));
        Err(Error::Launch { kernel: op, why })
    }
}

impl Geometry {
    pub fn new(shape: &AttnShape, kernels: &Kernels) -> Self {
        Geometry { group: shape.heads / shape.kv_heads, key_rows: kernels.key_rows }
    }
}

/// The first `words` numbers of every entry, one after the other; zeros (nothing to do) behind them.
fn stage(to: &mut [u32], words: usize, entries: &[[u32; QUERY_WORDS]]) {
    let (live, rest) = to.split_at_mut(entries.len() * words);
    live.chunks_exact_mut(words).zip(entries).for_each(|(to, e)| to.copy_from_slice(&e[..words]));
    rest.fill(0);
}
