//! A device by itself: memory, views, batches, recorded ops. What it computes is in the files beside this one.

use super::element::{Float, Gradient, Storage};
use crate::backend::metered::Ceilings;
use crate::batch::{Capacity, MicroBatch};
use crate::error::Result;
use std::ops::Range;
use std::path::Path;

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes in use before anything is asked for: on the CPU by this process, on a GPU by anybody.
    pub used: usize,
    /// Bytes that can still be had.
    pub free: usize,
}

/// Attention geometry. A row of `qkv` is `heads * head_dim` queries, then `kv_heads * head_dim` keys, then as many values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttnShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`. Query head `h` reads key/value head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl AttnShape {
    /// `heads * head_dim`: width of the queries and of attention's output.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// `kv_heads * head_dim`: width of the keys, and of the values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
    /// Width of a row of `qkv`.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }
}

/// A part of a step, by the name that a profiler shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// `forward`, `head`, `loss`, ...
    Stage(&'static str),
    /// A layer of the stage around it.
    Layer(usize),
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Mark::Stage(name) => f.write_str(name),
            Mark::Layer(l) => write!(f, "layer {l}"),
        }
    }
}

/// What an op does with its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write<V> {
    /// Overwrite.
    Set,
    /// Add to what is there.
    Add,
    /// Overwrite with the result plus this operand (a residual stream that must be kept).
    Plus(V),
}

impl Write<()> {
    /// Whether an op without a third operand adds to its output; "plus nothing" can only mean the output itself.
    pub fn adds(self) -> bool {
        !matches!(self, Write::Set)
    }
}

/// Elements in compute precision, to read.
pub type Act<'a, B> = <B as Device>::View<'a, <B as Device>::Act>;
/// Elements in compute precision, to write.
pub type ActMut<'a, B> = <B as Device>::ViewMut<'a, <B as Device>::Act>;
/// Elements in accumulation precision, to read.
pub type Acc<'a, B> = <B as Device>::View<'a, <B as Device>::Acc>;
/// Elements in accumulation precision, to write.
pub type AccMut<'a, B> = <B as Device>::ViewMut<'a, <B as Device>::Acc>;

/// A device: everything but its ops.
pub trait Device: Send + Sync + Sized + 'static {
    /// Weights in compute precision, activations and their gradients.
    type Act: Float;
    /// Statistics, logits, parameter gradients, master weights, optimiser moments.
    type Acc: Gradient;
    /// Memory owned on the device.
    type Buf<T: Storage>: Send + Sync;
    /// Borrowed part of a buffer.
    type View<'a, T: Storage>: Copy;
    /// Mutably borrowed part of a buffer.
    type ViewMut<'a, T: Storage>;
    /// A [`MicroBatch`] on the device, with whatever tables its attention needs.
    type Batch: Send;
    /// Numbers on their way from the device to the host.
    type Readback: Send;
    /// Ops recorded once, to be enqueued again and again.
    type Graph: Send;

    /// True where `Act` is narrower than `Acc`, so that the optimiser needs master weights of its own.
    const MASTER_WEIGHTS: bool;
    /// True where the capacity's slots decide which numbers of rows a library is asked for (a micro-batch computes its live
    /// rows up to the next eighth of them): they are then part of what a reference log-prob is kept under.
    const SHAPES_BY_CAPACITY: bool = false;
    /// True where ops return before they are done, so that it pays to read their results late.
    const ASYNC: bool = false;
    /// True where [`Device::record`] can record.
    const GRAPHS: bool = false;
    /// True where what the device has free is for this process to fill, so that what fits is kept rather than computed again.
    const OWN_MEMORY: bool = false;
    /// Bytes of logits alive at a time: the head works in chunks of as many rows as fit.
    const LOGITS_BYTES: usize = 128 << 20;

    /// What decides the last bit of a result: backend, dtype, SIMD level or architecture. Part of a sidecar's key.
    fn fingerprint(&self) -> String;
    /// What products are computed in: `f32`, `bf16`.
    fn products(&self) -> &'static str {
        Self::Act::NAME
    }
    /// For people: `CPU, 2 threads, AVX-512`.
    fn description(&self) -> String;
    /// What devices of its kind reach, to compare one way of doing the same work with another: by tables, never measured, so that
    /// what is chosen by it is the same each time.
    fn ceilings(&self) -> Ceilings;

    /// `len` zeros, entered in the memory table under `name`.
    fn zeros<T: Storage>(&self, name: &str, len: usize) -> Result<Self::Buf<T>>;
    /// Bytes handed out so far, by name, in order of allocation.
    fn memory_table(&self) -> Vec<(String, usize)>;
    /// A backend of the same kind with an empty memory table that only counts: what `zeros` and `new_batch` give owns
    /// nothing and must not be read or written. What is built on it tells what building it here would take.
    fn counting(&self) -> Self;
    /// Memory of the device, where the system tells.
    fn memory(&self) -> Result<Option<DeviceMemory>>;
    /// Most bytes that were taken so far, where that is known: on the CPU resident memory of this process, on a GPU buffers of this
    /// backend.
    fn peak_memory(&self) -> Option<usize> {
        None
    }
    /// Most bytes beyond the memory table that ops keep for themselves, for batches of `rows` slots and a hidden size of
    /// `dim`.
    fn scratch(&self, rows: usize, dim: usize) -> usize;
    /// Numbers of scratch that attention's backward pass needs for batches of up to `slots` rows: sums that are put together later.
    fn attention_partial(&self, slots: usize, shape: &AttnShape) -> usize;
    /// Takes the memory of everything in `table` from the device at once, for the next [`Device::zeros`] to hand out. Where
    /// memory is plentiful only once it is written to, this does nothing.
    fn reserve(&self, table: &[(String, usize)]) -> Result<()>;
    /// Elements of a buffer.
    fn len<T: Storage>(&self, buf: &Self::Buf<T>) -> usize;
    /// Elements `range` of `buf`. Panics when out of range: ranges come from checked tables.
    fn view<'a, T: Storage>(&self, buf: &'a Self::Buf<T>, range: Range<usize>) -> Self::View<'a, T>;
    /// Elements `range` of `buf`, to write.
    fn view_mut<'a, T: Storage>(&self, buf: &'a mut Self::Buf<T>, range: Range<usize>) -> Self::ViewMut<'a, T>;
    /// `view` for a shorter time, after which it is there again.
    fn lend<'s, T: Storage>(&self, view: &'s mut Self::ViewMut<'_, T>) -> Self::ViewMut<'s, T>;
    /// What can be written to, to read.
    fn read_only<'s, T: Storage>(&self, view: &'s Self::ViewMut<'_, T>) -> Self::View<'s, T>;
    /// Elements `range` of `view`, to stand beside views that live shorter. Panics when out of range.
    fn part<'s, 'l: 's, T: Storage>(&self, view: Self::View<'l, T>, range: Range<usize>) -> Self::View<'s, T>;
    /// Elements of a view.
    fn view_len<T: Storage>(&self, view: Self::View<'_, T>) -> usize;
    /// Host to device.
    fn upload<T: Storage>(&self, dst: Self::ViewMut<'_, T>, src: &[T]) -> Result<()>;
    /// Device to host; waits.
    fn download<T: Storage>(&self, dst: &mut [T], src: Self::View<'_, T>) -> Result<()>;
    /// Device to device, equal lengths.
    fn copy<T: Storage>(&self, dst: Self::ViewMut<'_, T>, src: Self::View<'_, T>) -> Result<()>;
    /// Fills with zero bytes.
    fn clear<T: Storage>(&self, dst: Self::ViewMut<'_, T>) -> Result<()>;
    /// Waits for everything enqueued.
    fn synchronize(&self) -> Result<()>;
    /// Does `work`, and names it where a profiler looks.
    fn marked<T>(&self, mark: Mark, work: impl FnOnce() -> T) -> T {
        let _ = mark;
        work()
    }

    /// Room on the host for up to `len` numbers that are read back.
    fn readback(&self, len: usize) -> Result<Self::Readback>;
    /// Enqueues copies of `parts`, one after the other, to `to`.
    fn read_back(&self, to: &mut Self::Readback, parts: &[Self::View<'_, f64>]) -> Result<()>;
    /// Waits for the last [`Device::read_back`], and for nothing enqueued after it.
    fn arrived<'a>(&self, from: &'a mut Self::Readback) -> Result<&'a [f64]>;

    /// Records what `ops` enqueues, without running it. Errors: a device that cannot; `ops` allocated, waited, or moved
    /// data between host and device.
    fn record(&self, ops: impl FnOnce() -> Result<()>) -> Result<Self::Graph>;
    /// Whether the graph can still be enqueued: no memory of the device was given back since it was recorded.
    fn is_current(&self, graph: &Self::Graph) -> bool;
    /// Enqueues recorded ops. Errors: the graph is not current.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
    /// From now on chooses the algorithms of gradients' products by timing them, once a shape, and keeps the choices in
    /// `file`: with the same file the same bits. Errors: a device with nothing to choose from, a file of another device.
    fn tune_products(&self, file: &Path) -> Result<()>;
    /// Where a buffer is: recorded ops keep to it.
    fn address<T: Storage>(&self, buf: &Self::Buf<T>) -> usize;

    /// An empty batch that can take any micro-batch within `capacity`, for attention over `shape`.
    fn new_batch(&self, capacity: Capacity, shape: AttnShape) -> Result<Self::Batch>;
    /// Replaces the content of `batch`.
    fn load_batch(&self, batch: &mut Self::Batch, from: &MicroBatch) -> Result<()>;
    /// Rows that ops on `batch` compute: live rows on the CPU, some more where there must be few shapes.
    fn rows(&self, batch: &Self::Batch) -> usize;
    /// [`Device::rows`] of a micro-batch of `slots` token slots with `used` live ones, in a batch made for `capacity` slots.
    fn computed_rows(used: usize, slots: usize, capacity: usize) -> usize {
        let _ = (slots, capacity);
        used
    }
}
