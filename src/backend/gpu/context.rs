//! A GPU as its ops see it: a driver with memory and scratch, on which they launch.

use super::driver::{Arg, Driver, Dtype, Grid, Kernel, View, ViewMut};
use super::joined::Joined;
use super::memory::{Buf, Heap};
use crate::backend::ops::element::{Float, Storage};
use crate::error::{Error, Result, expect_len};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, OnceLock};

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

/// Most parts that a sum over rows is cut into; more blocks than any GPU runs at once.
pub(super) const SLABS: usize = 512;
/// Most parts that the gradient's norm is cut into: many times what a GPU runs at once, so that the last ones leave little of
/// it idle.
pub(super) const NORM_SLABS: usize = 8192;
/// Numbers in the scratch of sums over rows: a row of the widest norm for every part.
pub(super) const SCRATCH: usize = SLABS * 8192;

/// Memory that ops use between two launches; held while they are enqueued, as another op on it must come after both.
pub(super) struct Scratch<D: Driver> {
    pub floats: Buf<D, f32>,
    pub doubles: Buf<D, f64>,
    pub words: Option<Buf<D, u32>>,
}

/// A device with storage type `A` for weights and activations.
pub struct Gpu<D: Driver, A: GpuFloat> {
    /// The way to the GPUs of other ranks. Dropped first: what is under way there uses memory.
    pub(super) ranks: Mutex<Option<Joined<D>>>,
    /// By what, in words: a backend that counts knows it too.
    pub(super) way: OnceLock<String>,
    pub(super) driver: Arc<D>,
    pub(super) heap: Heap<D>,
    pub(super) scratch: Mutex<Scratch<D>>,
    /// Whether the head's logits are bf16, all but the target's.
    pub(super) narrow_logits: bool,
    storage: PhantomData<A>,
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// A backend over `driver`.
    pub fn new(driver: D) -> Result<Self> {
        Self::over(Arc::new(driver), false)
    }

    /// The same driver, with logits of the head in bf16 but for the target's, which stays in f32: 12 bytes a logit are moved in
    /// training instead of 18. What log-probs lose by it: `docs/gpu.md`.
    ///
    /// # Errors
    /// [`Error::Usage`] where weights and activations are not bf16.
    pub fn with_bf16_logits(&self) -> Result<Self> {
        match A::DTYPE {
            Dtype::Bf16 => Self::over(self.driver.clone(), true),
            Dtype::F32 => {
                Err(Error::usage("`logits_dtype` bf16 needs `dtype` bf16: logits are no less precise than weights"))
            }
        }
    }

    fn over(driver: Arc<D>, narrow_logits: bool) -> Result<Self> {
        let heap = Heap::new(&driver, false);
        let floats = heap.alloc("sums over rows", SCRATCH)?;
        let doubles = heap.alloc("sums over rows", NORM_SLABS)?;
        let scratch = Mutex::new(Scratch { floats, doubles, words: None });
        Ok(Gpu {
            ranks: Mutex::default(),
            way: OnceLock::new(),
            driver,
            heap,
            scratch,
            narrow_logits,
            storage: PhantomData,
        })
    }

    /// See [`Device::counting`](crate::backend::ops::device::Device::counting).
    pub fn counting(&self) -> Self {
        let scratch = || {
            let none = Heap::new(&self.driver, true);
            let (floats, doubles) = (none.alloc("none", 0), none.alloc("none", 0));
            Scratch { floats: floats.expect("no memory"), doubles: doubles.expect("no memory"), words: None }
        };
        let heap = Heap::new(&self.driver, true);
        let (driver, scratch, narrow_logits) = (self.driver.clone(), Mutex::new(scratch()), self.narrow_logits);
        let way = self.way.clone();
        Gpu { ranks: Mutex::default(), way, driver, heap, scratch, narrow_logits, storage: PhantomData }
    }

    /// An error where there is no memory behind the buffers.
    pub(super) fn usable(&self, doing: &str) -> Result<()> {
        match self.heap.counting {
            true => Err(Error::Device(format!("{doing}: this backend only counts memory"))),
            false => Ok(()),
        }
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// `len` zeros, entered in the memory table under `name`. Errors: [`Error::Device`], naming what was asked for.
    pub fn alloc<T: Storage>(&self, name: &str, len: usize) -> Result<Buf<D, T>> {
        self.heap.alloc(name, len)
    }

    /// Host to device. Errors: [`Error::Shape`] where lengths differ.
    pub fn put<T: Storage>(&self, to: ViewMut<'_, T>, from: &[T]) -> Result<()> {
        self.usable("upload")?;
        expect_len("upload", "from", from.len(), &[("to", to.len)])?;
        // SAFETY: a view covers its length of a live buffer of this driver.
        unsafe { self.driver.upload(to.at, bytemuck::cast_slice(from)) }
    }

    /// Device to host; waits. Errors: [`Error::Shape`] where lengths differ.
    pub fn get<T: Storage>(&self, to: &mut [T], from: View<'_, T>) -> Result<()> {
        self.usable("download")?;
        expect_len("download", "to", to.len(), &[("from", from.len)])?;
        // SAFETY: a view covers its length of a live buffer of this driver.
        unsafe { self.driver.download(bytemuck::cast_slice_mut(to), from.at) }
    }

    /// Launches `op` of this storage type.
    ///
    /// # Safety
    /// For these sizes the kernel reads and writes no more of each argument than its length, and follows no index that leaves
    /// another.
    pub(super) unsafe fn launch(&self, op: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_as(A::DTYPE, op, grid, args) }
    }

    /// Launches `op` as compiled for `dtype`: kernels that do not depend on the storage type exist for f32 only.
    ///
    /// # Safety
    /// As [`Gpu::launch`].
    pub(super) unsafe fn launch_as(&self, dtype: Dtype, op: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        self.usable(op)?;
        // SAFETY: every argument is made of a view, which covers its length of a live buffer of this driver; that the kernel
        // stays inside is the caller's promise, and tests/kernels.rs runs each op on a driver that finds writes outside.
        unsafe { self.driver.launch(Kernel { op, dtype }, grid, args) }
    }
}

/// Elements of a 16-byte access.
pub(super) const fn pack<A>() -> usize {
    16 / size_of::<A>()
}

/// Blocks and threads so that one thread takes one pack of a row of `width` elements: as few idle threads as whole warps
/// allow, at most `most` a block.
pub(super) fn columns<A>(width: usize, most: usize) -> (usize, usize) {
    let packs = width.div_ceil(pack::<A>()).max(1);
    let blocks = packs.div_ceil(most);
    (blocks, packs.div_ceil(blocks).next_multiple_of(32))
}
