//! The device: extents for memory, and a log.

use super::ceilings::Ceilings;
use super::work::{Extent, Work};
use crate::backend::Backend;
use crate::backend::ops::device::{AttnShape, Device, DeviceMemory};
use crate::backend::ops::element::Storage;
use crate::batch::{Capacity, MicroBatch};
use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// See the [module](super).
pub struct Metered<B> {
    pub(super) be: B,
    log: Mutex<Vec<Work>>,
}

/// What is known of a micro-batch.
pub struct Loaded {
    capacity: Capacity,
    rows: usize,
    /// Query-key pairs under the mask, of one head.
    pub(super) scores: f64,
}

impl<B: Backend> Metered<B> {
    /// For work that `be` would do. It need not be able to.
    pub fn new(be: &B) -> Self {
        Self { be: be.counting(), log: Mutex::default() }
    }

    pub(super) fn note(&self, work: Work) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(work);
    }

    /// All that was asked for since it was last called, in order.
    pub fn take(&self) -> Vec<Work> {
        std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn moved(&self, op: &'static str, stream: f64) -> Result<()> {
        self.note(Work { op, stream, ..Work::default() });
        Ok(())
    }
}

impl<B: Backend> Device for Metered<B> {
    type Act = B::Act;
    type Acc = B::Acc;
    type Buf<T: Storage> = Extent<T>;
    type View<'a, T: Storage> = Extent<T>;
    type ViewMut<'a, T: Storage> = Extent<T>;
    type Batch = Loaded;
    type Readback = Vec<f64>;
    type Graph = std::convert::Infallible;

    const MASTER_WEIGHTS: bool = B::MASTER_WEIGHTS;
    const SHAPES_BY_CAPACITY: bool = B::SHAPES_BY_CAPACITY;
    const GRAPHS: bool = B::GRAPHS;
    const OWN_MEMORY: bool = B::OWN_MEMORY;
    const LOGITS_BYTES: usize = B::LOGITS_BYTES;

    fn fingerprint(&self) -> String {
        self.be.fingerprint()
    }
    fn products(&self) -> &'static str {
        self.be.products()
    }
    fn description(&self) -> String {
        self.be.description()
    }
    fn ceilings(&self) -> Ceilings {
        self.be.ceilings()
    }
    fn zeros<T: Storage>(&self, _: &str, len: usize) -> Result<Extent<T>> {
        Ok(Extent::new(len))
    }
    fn memory_table(&self) -> Vec<(String, usize)> {
        Vec::new()
    }
    fn counting(&self) -> Self {
        Self::new(&self.be)
    }
    fn memory(&self) -> Result<Option<DeviceMemory>> {
        self.be.memory()
    }
    fn scratch(&self, rows: usize, dim: usize) -> usize {
        self.be.scratch(rows, dim)
    }
    fn attention_partial(&self, slots: usize, shape: &AttnShape) -> usize {
        self.be.attention_partial(slots, shape)
    }
    fn reserve(&self, _: &[(String, usize)]) -> Result<()> {
        Ok(())
    }
    fn len<T: Storage>(&self, buf: &Extent<T>) -> usize {
        buf.len
    }
    fn view<T: Storage>(&self, _: &Extent<T>, range: Range<usize>) -> Extent<T> {
        Extent::new(range.len())
    }
    fn view_mut<T: Storage>(&self, _: &mut Extent<T>, range: Range<usize>) -> Extent<T> {
        Extent::new(range.len())
    }
    fn lend<T: Storage>(&self, view: &mut Extent<T>) -> Extent<T> {
        *view
    }
    fn read_only<T: Storage>(&self, view: &Extent<T>) -> Extent<T> {
        *view
    }
    fn part<'s, 'l: 's, T: Storage>(&self, _: Extent<T>, range: Range<usize>) -> Extent<T> {
        Extent::new(range.len())
    }
    fn view_len<T: Storage>(&self, view: Extent<T>) -> usize {
        view.len
    }
    fn upload<T: Storage>(&self, _: Extent<T>, _: &[T]) -> Result<()> {
        Ok(())
    }
    fn download<T: Storage>(&self, dst: &mut [T], _: Extent<T>) -> Result<()> {
        dst.fill(T::zeroed());
        Ok(())
    }
    fn copy<T: Storage>(&self, dst: Extent<T>, _: Extent<T>) -> Result<()> {
        self.moved("copy", 2.0 * dst.bytes())
    }
    fn clear<T: Storage>(&self, dst: Extent<T>) -> Result<()> {
        self.moved("clear", dst.bytes())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn readback(&self, _: usize) -> Result<Vec<f64>> {
        Ok(Vec::new())
    }
    fn read_back(&self, to: &mut Vec<f64>, parts: &[Extent<f64>]) -> Result<()> {
        to.clear();
        to.resize(parts.iter().map(|part| part.len).sum(), 0.0);
        Ok(())
    }
    fn arrived<'a>(&self, from: &'a mut Vec<f64>) -> Result<&'a [f64]> {
        Ok(from)
    }
    fn record(&self, _: impl FnOnce() -> Result<()>) -> Result<Self::Graph> {
        Err(Error::usage("work that is only counted is not recorded"))
    }
    fn is_current(&self, graph: &Self::Graph) -> bool {
        match *graph {}
    }
    fn replay(&self, graph: &Self::Graph) -> Result<()> {
        match *graph {}
    }
    fn tune_products(&self, _: &Path) -> Result<()> {
        Ok(())
    }
    fn address<T: Storage>(&self, _: &Extent<T>) -> usize {
        0
    }
    fn new_batch(&self, capacity: Capacity, _: AttnShape) -> Result<Loaded> {
        Ok(Loaded { capacity, rows: 0, scores: 0.0 })
    }
    fn load_batch(&self, batch: &mut Loaded, from: &MicroBatch) -> Result<()> {
        from.within(&batch.capacity)?;
        batch.rows = B::computed_rows(from.used(), from.slots(), batch.capacity.slots);
        let scores = from.segments().iter().map(|s| {
            let (n, prefix) = (f64::from(s.len), f64::from(s.prefix_len));
            n * (n + 1.0) / 2.0 + n * prefix
        });
        batch.scores = scores.sum();
        Ok(())
    }
    fn rows(&self, batch: &Loaded) -> usize {
        batch.rows
    }
}
