//! The device behind: everything but its ops goes to it as it is.

use super::log::{Arena, Log, Numbers, Rows, Seen};
use crate::backend::Backend;
use crate::backend::metered::Ceilings;
use crate::backend::ops::device::{AttnShape, Device, DeviceMemory, Mark};
use crate::backend::ops::element::{Float, Storage};
use crate::batch::{Capacity, MicroBatch};
use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Numbers that are looked at at a time.
const PIECE: usize = 1 << 20;

/// See the [module](super). Records no graphs: what is replayed from one is not seen.
pub struct Watched<B> {
    pub(super) be: B,
    log: Mutex<Log>,
}

impl<B: Backend> Watched<B> {
    /// `be`, which is not looked at yet.
    pub fn new(be: B) -> Self {
        Self { be, log: Mutex::default() }
    }

    /// The backend that does the work.
    pub fn inner(&self) -> &B {
        &self.be
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it looks at what ops leave from now on.
    pub fn look(&self, on: bool) {
        self.log().on = on;
    }

    /// Makes the buffer at `address` ([`Device::address`]) known.
    pub fn know(&self, address: usize, arena: Arena) {
        self.log().known.push((address, arena));
    }

    /// All that was seen since it was last asked, and the micro-batches that were loaded meanwhile, in order.
    pub fn take(&self) -> (Vec<Seen>, Vec<MicroBatch>) {
        let mut log = self.log();
        log.gathered = false;
        (std::mem::take(&mut log.seen), std::mem::take(&mut log.batches))
    }

    /// Whether it takes the time of ops from now on; of what was timed so far it forgets everything. Only where an op is done when it
    /// returns is that its time.
    pub fn time(&self, on: bool) {
        self.log().times = on.then(Vec::new);
    }

    /// The ops that were done since it was last asked, in order, and the seconds of each.
    pub fn times(&self) -> Vec<(&'static str, f64)> {
        self.log().times.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn timed(&self, op: &'static str, begun: Instant) {
        let seconds = begun.elapsed().as_secs_f64();
        self.log().times.iter_mut().for_each(|times| times.push((op, seconds)));
    }

    /// Looks at an output.
    pub(super) fn see<T: Float>(
        &self,
        op: &'static str,
        output: &'static str,
        view: B::View<'_, T>,
        what: (Rows, usize),
    ) -> Result<()> {
        let numbers = self.numbers(view)?;
        self.log().add(op, output, what, numbers);
        Ok(())
    }

    /// The numbers of `view`.
    pub fn numbers<T: Float>(&self, view: B::View<'_, T>) -> Result<Numbers> {
        let (mut numbers, len) = (Numbers::default(), self.be.view_len(view));
        let mut piece = vec![T::zeroed(); PIECE.min(len)];
        for start in (0..len).step_by(PIECE) {
            let end = len.min(start + PIECE);
            let piece = &mut piece[..end - start];
            self.be.download(piece, self.be.part(view, start..end))?;
            piece.iter().for_each(|x| numbers.add(x.to_f64()));
        }
        Ok(numbers)
    }
}

macro_rules! passed_on {
    ($($name:ident $([$($generic:tt)*])? ($($arg:ident: $type:ty),*) -> $out:ty;)*) => { $(
        fn $name $(<$($generic)*>)? (&self, $($arg: $type),*) -> $out {
            self.be.$name($($arg),*)
        }
    )* };
}

impl<B: Backend> Device for Watched<B> {
    type Act = B::Act;
    type Acc = B::Acc;
    type Buf<T: Storage> = B::Buf<T>;
    type View<'a, T: Storage> = B::View<'a, T>;
    type ViewMut<'a, T: Storage> = B::ViewMut<'a, T>;
    type Batch = B::Batch;
    type Readback = B::Readback;
    type Graph = B::Graph;

    const MASTER_WEIGHTS: bool = B::MASTER_WEIGHTS;
    const SHAPES_BY_CAPACITY: bool = B::SHAPES_BY_CAPACITY;
    const ASYNC: bool = B::ASYNC;
    const GRAPHS: bool = B::GRAPHS;
    const OWN_MEMORY: bool = B::OWN_MEMORY;
    const LOGITS_BYTES: usize = B::LOGITS_BYTES;

    fn counting(&self) -> Self {
        Self::new(self.be.counting())
    }
    fn marked<T>(&self, mark: Mark, work: impl FnOnce() -> T) -> T {
        self.log().marks.push(mark);
        let done = self.be.marked(mark, work);
        self.log().marks.pop();
        done
    }
    fn view<'a, T: Storage>(&self, buf: &'a B::Buf<T>, range: Range<usize>) -> B::View<'a, T> {
        self.log().view(self.be.address(buf), &range);
        self.be.view(buf, range)
    }
    fn view_mut<'a, T: Storage>(&self, buf: &'a mut B::Buf<T>, range: Range<usize>) -> B::ViewMut<'a, T> {
        self.log().view(self.be.address(buf), &range);
        self.be.view_mut(buf, range)
    }
    fn clear<T: Storage>(&self, dst: B::ViewMut<'_, T>) -> Result<()> {
        self.log().viewed.clear();
        let begun = Instant::now();
        self.be.clear(dst)?;
        self.timed("clear", begun);
        Ok(())
    }
    fn load_batch(&self, batch: &mut B::Batch, from: &MicroBatch) -> Result<()> {
        let mut log = self.log();
        log.gathered = false;
        if log.on {
            log.batches.push(from.clone());
        }
        drop(log);
        self.be.load_batch(batch, from)
    }
    fn computed_rows(used: usize, slots: usize, capacity: usize) -> usize {
        B::computed_rows(used, slots, capacity)
    }
    fn record(&self, _: impl FnOnce() -> Result<()>) -> Result<B::Graph> {
        Err(Error::usage("ops that are looked at are not recorded"))
    }
    passed_on! {
        fingerprint() -> String;
        products() -> &'static str;
        description() -> String;
        ceilings() -> Ceilings;
        zeros[T: Storage](name: &str, len: usize) -> Result<B::Buf<T>>;
        memory_table() -> Vec<(String, usize)>;
        memory() -> Result<Option<DeviceMemory>>;
        peak_memory() -> Option<usize>;
        scratch(rows: usize, dim: usize) -> usize;
        attention_partial(slots: usize, shape: &AttnShape) -> usize;
        reserve(table: &[(String, usize)]) -> Result<()>;
        len[T: Storage](buf: &B::Buf<T>) -> usize;
        lend['s, T: Storage](view: &'s mut B::ViewMut<'_, T>) -> B::ViewMut<'s, T>;
        read_only['s, T: Storage](view: &'s B::ViewMut<'_, T>) -> B::View<'s, T>;
        part['s, 'l: 's, T: Storage](view: B::View<'l, T>, range: Range<usize>) -> B::View<'s, T>;
        view_len[T: Storage](view: B::View<'_, T>) -> usize;
        upload[T: Storage](dst: B::ViewMut<'_, T>, src: &[T]) -> Result<()>;
        download[T: Storage](dst: &mut [T], src: B::View<'_, T>) -> Result<()>;
        copy[T: Storage](dst: B::ViewMut<'_, T>, src: B::View<'_, T>) -> Result<()>;
        synchronize() -> Result<()>;
        readback(len: usize) -> Result<B::Readback>;
        read_back(to: &mut B::Readback, parts: &[B::View<'_, f64>]) -> Result<()>;
        arrived['a](from: &'a mut B::Readback) -> Result<&'a [f64]>;
        is_current(graph: &B::Graph) -> bool;
        replay(graph: &B::Graph) -> Result<()>;
        tune_products(file: &Path) -> Result<()>;
        address[T: Storage](buf: &B::Buf<T>) -> usize;
        new_batch(capacity: Capacity, shape: AttnShape) -> Result<B::Batch>;
        rows(batch: &B::Batch) -> usize;
    }
}
