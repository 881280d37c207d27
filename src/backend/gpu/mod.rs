//! The GPU backend: launch wrappers over a [`Driver`], written once for a real GPU ([`cuda::CudaDriver`]) and for the
//! same kernels on the host ([`host::HostDriver`]).
//!
//! One file an op, named as in `kernels/` and `backend/cpu/`. A wrapper checks every length ([`crate::Error::Shape`]) and
//! the geometry before it launches; a kernel checks none. Activations are bf16 (or f32, for checks), statistics and
//! gradients of parameters f32.
//!
//! Within a training step the host waits for nothing that the step itself computes. A micro-batch goes to the device in one
//! copy out of one of two pieces of page-locked memory; statistics come back through such memory and are read while
//! the device works on the next step; passes through the layers can be recorded and replayed as CUDA graphs.

mod attention;
mod backend;
mod batch;
mod check;
mod cublaslt;
pub mod cuda;
mod decode;
pub mod driver;
mod embed;
mod graph;
mod head;
pub mod host;
mod linear;
mod loss;
mod norm;
mod optim;
mod pinned;
mod rope;
mod rows;
mod swiglu;

pub use batch::GpuBatch;
pub use graph::Graph;
pub use pinned::Pinned;

use crate::backend::{Float, Storage};
use crate::error::{Error, Result};
use driver::{Arg, Driver, Dtype, Grid, Kernel, View, ViewMut};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Storage that kernels compute in.
pub trait GpuFloat: Float {
    /// Its kernels.
    const DTYPE: Dtype;
}
impl GpuFloat for half::bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}
impl GpuFloat for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

/// Memory of a device; freed when dropped.
pub struct Buf<D: Driver, T> {
    driver: Arc<D>,
    /// Counts buffers given back.
    freed: Arc<AtomicU64>,
    at: u64,
    len: usize,
    element: PhantomData<T>,
}

impl<D: Driver, T> Drop for Buf<D, T> {
    fn drop(&mut self) {
        self.freed.fetch_add(1, Ordering::Release);
        // SAFETY: `at` came from this driver's `alloc` in `Gpu::zeros`, and views cannot outlive the buffer.
        unsafe { self.driver.free(self.at) };
    }
}

impl<D: Driver, T: Storage> Buf<D, T> {
    /// Elements `range`. Panics when out of range.
    pub fn view(&self, range: Range<usize>) -> View<'_, T> {
        View { at: self.at, len: self.len, life: PhantomData }.part(range)
    }
    /// Elements `range`, to write. Panics when out of range.
    pub fn view_mut(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        let View { at, len, .. } = self.view(range);
        ViewMut { at, len, life: PhantomData }
    }
    /// Every element.
    pub fn all(&self) -> View<'_, T> {
        self.view(0..self.len)
    }
    /// Every element, to write.
    pub fn all_mut(&mut self) -> ViewMut<'_, T> {
        self.view_mut(0..self.len)
    }
}

/// Most parts that a sum over rows is cut into; more blocks than any GPU runs at once.
const SLABS: usize = 512;
/// Numbers in the scratch of sums over rows: a row of the widest norm for every part.
const SCRATCH: usize = SLABS * 8192;

/// Memory that ops use between two launches; held while they are enqueued, as another op on it must come after both.
struct Scratch<D: Driver> {
    floats: Buf<D, f32>,
    doubles: Buf<D, f64>,
    words: Option<Buf<D, u32>>,
}

/// A device with storage type `A` for weights and activations.
pub struct Gpu<D: Driver, A: GpuFloat> {
    driver: Arc<D>,
    /// Name and bytes of every buffer handed out.
    memory: Mutex<Vec<(String, usize)>>,
    scratch: Mutex<Scratch<D>>,
    /// Buffers given back so far: recorded addresses are good while it stands still.
    freed: Arc<AtomicU64>,
    storage: PhantomData<A>,
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// A backend over `driver`.
    pub fn new(driver: D) -> Result<Self> {
        let (driver, memory, freed) = (Arc::new(driver), Mutex::default(), Arc::default());
        let floats = alloc(&driver, &freed, &memory, "sums over rows", SCRATCH)?;
        let doubles = alloc(&driver, &freed, &memory, "sums over rows", 2 * SLABS)?;
        let scratch = Mutex::new(Scratch { floats, doubles, words: None });
        Ok(Gpu { driver, memory, scratch, freed, storage: PhantomData })
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// `len` zeros, entered in the memory table under `name`. Errors: [`Error::Device`], naming what was asked for.
    pub fn alloc<T: Storage>(&self, name: &str, len: usize) -> Result<Buf<D, T>> {
        alloc(&self.driver, &self.freed, &self.memory, name, len)
    }

    /// Host to device. Errors: [`Error::Shape`] where lengths differ.
    pub fn put<T: Storage>(&self, to: ViewMut<'_, T>, from: &[T]) -> Result<()> {
        crate::error::expect_len("upload", "from", from.len(), &[("to", to.len)])?;
        // SAFETY: a view covers its length of a live buffer of this driver.
        unsafe { self.driver.upload(to.at, bytemuck::cast_slice(from)) }
    }

    /// Device to host; waits. Errors: [`Error::Shape`] where lengths differ.
    pub fn get<T: Storage>(&self, to: &mut [T], from: View<'_, T>) -> Result<()> {
        crate::error::expect_len("download", "to", to.len(), &[("from", from.len)])?;
        // SAFETY: a view covers its length of a live buffer of this driver.
        unsafe { self.driver.download(bytemuck::cast_slice_mut(to), from.at) }
    }

    /// Launches `op` of this storage type. Callers have checked that the kernel stays inside its arguments.
    fn launch(&self, op: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        self.launch_as(A::DTYPE, op, grid, args)
    }

    /// Launches `op` as compiled for `dtype`: kernels that do not depend on the storage type exist for f32 only.
    fn launch_as(&self, dtype: Dtype, op: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        // SAFETY: every argument is made of a view, which covers its length of a live buffer of this driver. That the
        // kernel stays inside is what the calling wrapper's length checks are for, and tests/kernels.rs runs each
        // wrapper on a driver that finds writes outside.
        unsafe { self.driver.launch(Kernel { op, dtype }, grid, args) }
    }
}

fn alloc<D: Driver, T: Storage>(
    driver: &Arc<D>,
    freed: &Arc<AtomicU64>,
    memory: &Mutex<Vec<(String, usize)>>,
    name: &str,
    len: usize,
) -> Result<Buf<D, T>> {
    let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| Error::Device(format!("`{name}`: {len} elements")))?;
    let at = driver.alloc(bytes).map_err(|e| Error::Device(format!("`{name}` ({bytes} bytes): {e}")))?;
    lock(memory).push((name.to_owned(), bytes));
    Ok(Buf { driver: driver.clone(), freed: freed.clone(), at, len, element: PhantomData })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Elements of a 16-byte access.
const fn pack<A>() -> usize {
    16 / size_of::<A>()
}

/// Blocks and threads so that one thread takes one pack of a row of `width` elements: as few idle threads as whole warps
/// allow, at most `most` a block.
fn columns<A>(width: usize, most: usize) -> (usize, usize) {
    let packs = width.div_ceil(pack::<A>()).max(1);
    let blocks = packs.div_ceil(most);
    (blocks, packs.div_ceil(blocks).next_multiple_of(32))
}
