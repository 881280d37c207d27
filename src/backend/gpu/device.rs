//! The GPU as a device: memory, batches, graphs.

use super::batch::{self, GpuBatch};
use super::context::{Gpu, GpuFloat};
use super::driver::{Driver, Dtype, View, ViewMut};
use super::graph::Graph;
use super::memory::Buf;
use super::pinned::Pinned;
use super::specs::GpuName;
use super::tiles;
use crate::backend::metered::Ceilings;
use crate::backend::ops::device::{AttnShape, Device, DeviceMemory, Mark};
use crate::backend::ops::element::Storage;
use crate::batch::{Capacity, MicroBatch};
use crate::error::{Result, expect_len};
use std::ops::Range;
use std::path::Path;

/// Raised whenever the geometry that kernels are launched in changes a last bit, so that log-probs of an earlier version are
/// computed again. What the kernels compute is in a GPU's own fingerprint; tests/bits.rs holds both by their host build.
const NUMERICS: u32 = 4;

impl<D: Driver, A: GpuFloat> Device for Gpu<D, A> {
    type Act = A;
    type Acc = f32;
    type Buf<T: Storage> = Buf<D, T>;
    type View<'a, T: Storage> = View<'a, T>;
    type ViewMut<'a, T: Storage> = ViewMut<'a, T>;
    type Batch = GpuBatch<D>;
    type Readback = Pinned<D, f64>;
    type Graph = Graph<D>;

    const MASTER_WEIGHTS: bool = matches!(A::DTYPE, Dtype::Bf16);
    // A product's rows must not depend on their number, but what the library does inside its algorithm is its own.
    const SHAPES_BY_CAPACITY: bool = true;
    const ASYNC: bool = true;
    const GRAPHS: bool = true;
    const OWN_MEMORY: bool = true;
    // Every chunk reads and writes the head's f32 gradient once, so chunks must be of thousands of rows: 3533 of a vocabulary
    // of 151936. No more than this: as bf16 gradients in place of the logits they span 2^30 elements, and libraries count
    // some in 32 bits.
    const LOGITS_BYTES: usize = 2 << 30;

    fn fingerprint(&self) -> String {
        let logits = if self.narrow_logits { "-logits-bf16" } else { "" };
        format!("gpu-{}-{}{logits}-v{NUMERICS}", self.driver.fingerprint(), A::NAME)
    }
    fn description(&self) -> String {
        let logits = if self.narrow_logits { ", logits in bf16" } else { "" };
        format!("{}, {}{logits}", self.driver.description(), A::NAME)
    }
    fn ceilings(&self) -> Ceilings {
        let known = GpuName::of_driver(&self.driver.description()).unwrap_or_default();
        known.sheet().assumed(A::DTYPE == Dtype::Bf16).ceilings
    }
    fn zeros<T: Storage>(&self, name: &str, len: usize) -> Result<Buf<D, T>> {
        self.alloc(name, len)
    }
    fn memory_table(&self) -> Vec<(String, usize)> {
        self.heap.table()
    }
    fn counting(&self) -> Self {
        self.counting()
    }
    fn memory(&self) -> Result<Option<DeviceMemory>> {
        let (free, all) = self.driver.memory()?;
        Ok(Some(DeviceMemory { used: all.saturating_sub(free), free }))
    }
    fn peak_memory(&self) -> Option<usize> {
        Some(self.heap.peak())
    }
    fn marked<T>(&self, mark: Mark, work: impl FnOnce() -> T) -> T {
        self.driver.push(mark);
        let done = work();
        self.driver.pop();
        done
    }
    fn scratch(&self, _rows: usize, _dim: usize) -> usize {
        0 // taken when the backend is made, and the library's workspace with the driver
    }
    fn attention_partial(&self, slots: usize, shape: &AttnShape) -> usize {
        tiles::partial_len(A::DTYPE, slots, shape)
    }
    fn reserve(&self, table: &[(String, usize)]) -> Result<()> {
        self.heap.reserve(table)
    }
    fn len<T: Storage>(&self, buf: &Buf<D, T>) -> usize {
        buf.len
    }
    fn view<'a, T: Storage>(&self, buf: &'a Buf<D, T>, range: Range<usize>) -> View<'a, T> {
        buf.view(range)
    }
    fn view_mut<'a, T: Storage>(&self, buf: &'a mut Buf<D, T>, range: Range<usize>) -> ViewMut<'a, T> {
        buf.view_mut(range)
    }
    fn lend<'s, T: Storage>(&self, view: &'s mut ViewMut<'_, T>) -> ViewMut<'s, T> {
        view.reborrow()
    }
    fn read_only<'s, T: Storage>(&self, view: &'s ViewMut<'_, T>) -> View<'s, T> {
        view.as_view()
    }
    fn part<'s, 'l: 's, T: Storage>(&self, view: View<'l, T>, range: Range<usize>) -> View<'s, T> {
        view.part(range)
    }
    fn view_len<T: Storage>(&self, view: View<'_, T>) -> usize {
        view.len
    }
    fn upload<T: Storage>(&self, dst: ViewMut<T>, src: &[T]) -> Result<()> {
        self.put(dst, src)
    }
    fn download<T: Storage>(&self, dst: &mut [T], src: View<T>) -> Result<()> {
        self.get(dst, src)
    }
    fn copy<T: Storage>(&self, dst: ViewMut<T>, src: View<T>) -> Result<()> {
        expect_len("copy", "src", src.len, &[("dst", dst.len)])?;
        self.usable("copy")?;
        // SAFETY: views cover their lengths of live buffers of this driver; the lengths agree.
        unsafe { self.driver.copy(dst.at, src.at, dst.len * size_of::<T>()) }
    }
    fn clear<T: Storage>(&self, dst: ViewMut<T>) -> Result<()> {
        self.usable("clear")?;
        // SAFETY: a view covers its length of a live buffer of this driver.
        unsafe { self.driver.clear(dst.at, dst.len * size_of::<T>()) }
    }
    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }
    fn readback(&self, len: usize) -> Result<Pinned<D, f64>> {
        self.pinned(len)
    }
    fn read_back(&self, to: &mut Pinned<D, f64>, parts: &[View<f64>]) -> Result<()> {
        to.download(parts)
    }
    fn arrived<'a>(&self, from: &'a mut Pinned<D, f64>) -> Result<&'a [f64]> {
        Ok(from.open()?)
    }
    fn record(&self, ops: impl FnOnce() -> Result<()>) -> Result<Graph<D>> {
        Graph::record(self, ops)
    }
    fn is_current(&self, graph: &Graph<D>) -> bool {
        graph.is_current()
    }
    fn replay(&self, graph: &Graph<D>) -> Result<()> {
        graph.replay()
    }
    fn tune_products(&self, file: &Path) -> Result<()> {
        self.driver.tune(file)
    }
    fn address<T: Storage>(&self, buf: &Buf<D, T>) -> usize {
        buf.at as usize
    }
    fn new_batch(&self, capacity: Capacity, shape: AttnShape) -> Result<GpuBatch<D>> {
        GpuBatch::new(self, capacity, shape)
    }
    fn load_batch(&self, batch: &mut GpuBatch<D>, from: &MicroBatch) -> Result<()> {
        batch.load(from)
    }
    fn rows(&self, batch: &GpuBatch<D>) -> usize {
        batch.slots()
    }
    fn computed_rows(used: usize, slots: usize, capacity: usize) -> usize {
        batch::computed_rows(used, slots, capacity)
    }
}
