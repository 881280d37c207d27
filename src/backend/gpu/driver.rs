//! Where kernels run: the few calls that launch wrappers need, implemented by [`super::cuda::CudaDriver`] and by
//! [`super::host::HostDriver`], and the checks that both make before anything runs.

use crate::backend::ops::device::Mark;
use crate::backend::ops::element::Storage;
use crate::error::{Error, Result};
use std::marker::PhantomData;
use std::path::Path;

/// Storage types that kernels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16.
    Bf16,
    /// IEEE single.
    F32,
}

impl Dtype {
    /// Suffix of kernel names, and name in signatures.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bf16 => "bf16",
            Dtype::F32 => "f32",
        }
    }
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bf16 => 2,
            Dtype::F32 => 4,
        }
    }
}

/// A kernel: `op_dtype` is its exported name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Name in `KERNEL(threads, op)`.
    pub op: &'static str,
    /// The storage type it was compiled for.
    pub dtype: Dtype,
}

impl Kernel {
    /// Name in the compiled image.
    pub fn name(&self) -> String {
        format!("{}_{}", self.op, self.dtype.name())
    }
}

/// One argument of a kernel, with what is needed to compare it with the kernel's declaration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// Device memory.
    Memory {
        /// Address of the first element.
        at: u64,
        /// Bytes that the wrapper vouches for.
        bytes: usize,
        /// Element type.
        element: &'static str,
        /// Whether the kernel may write it.
        write: bool,
    },
    /// `int`.
    I32(i32),
    /// `long long`.
    I64(i64),
    /// `float`.
    F32(f32),
    /// `double`.
    F64(f64),
}

impl Arg {
    /// The argument's type as the kernel's signature spells it: `const bf16*`, `i32`, ...
    pub fn type_name(&self) -> String {
        match *self {
            Arg::Memory { element, write: true, .. } => format!("{element}*"),
            Arg::Memory { element, write: false, .. } => format!("const {element}*"),
            Arg::I32(_) => "i32".into(),
            Arg::I64(_) => "i64".into(),
            Arg::F32(_) => "f32".into(),
            Arg::F64(_) => "f64".into(),
        }
    }

    /// The eight bytes that the kernel's parameter is read from.
    pub(super) fn bits(&self) -> u64 {
        match *self {
            Arg::Memory { at, .. } => at,
            Arg::I32(v) => u64::from(v as u32),
            Arg::I64(v) => v as u64,
            Arg::F32(v) => u64::from(v.to_bits()),
            Arg::F64(v) => v.to_bits(),
        }
    }

    /// `value` as an `int`. Errors: kernels count in 32 bits.
    pub fn int(op: &'static str, name: &str, value: usize) -> Result<Arg> {
        i32::try_from(value)
            .map(Arg::I32)
            .map_err(|_| Error::Launch { kernel: op, why: format!("{name} = {value} is more than 2^31 - 1") })
    }
}

/// Borrowed device memory, read-only.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    pub(super) at: u64,
    pub(super) len: usize,
    pub(super) life: PhantomData<&'a T>,
}

/// Borrowed device memory, to write.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    pub(super) at: u64,
    pub(super) len: usize,
    pub(super) life: PhantomData<&'a mut T>,
}

impl<'a, T: Storage> View<'a, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// No elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// As a kernel's `const T*`.
    pub fn arg(&self) -> Arg {
        Arg::Memory { at: self.at, bytes: self.len * size_of::<T>(), element: T::NAME, write: false }
    }
    /// Elements `range`. Panics when out of range.
    pub fn part(&self, range: std::ops::Range<usize>) -> View<'a, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of a view of {}", self.len);
        View { at: self.at + (range.start * size_of::<T>()) as u64, len: range.len(), life: PhantomData }
    }
}

impl ViewMut<'_, f32> {
    /// The same memory as elements of half the size, as many of them.
    pub(super) fn halves(&mut self) -> ViewMut<'_, half::bf16> {
        ViewMut { at: self.at, len: self.len, life: PhantomData }
    }
}

impl<T: Storage> ViewMut<'_, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// No elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// As a kernel's `T*`.
    pub fn arg(&mut self) -> Arg {
        Arg::Memory { at: self.at, bytes: self.len * size_of::<T>(), element: T::NAME, write: true }
    }
    /// The same memory, to read.
    pub fn as_view(&self) -> View<'_, T> {
        View { at: self.at, len: self.len, life: PhantomData }
    }
    /// The same memory, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { at: self.at, len: self.len, life: PhantomData }
    }
    /// Elements `range`. Panics when out of range.
    pub fn part(&mut self, range: std::ops::Range<usize>) -> ViewMut<'_, T> {
        let View { at, len, .. } = self.as_view().part(range);
        ViewMut { at, len, life: PhantomData }
    }
}

/// Launch geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks by dimension.
    pub blocks: [usize; 3],
    /// Threads of a block by dimension.
    pub threads: [usize; 3],
    /// Bytes of dynamic shared memory a block.
    pub shared: usize,
}

impl Grid {
    /// `x` blocks by `y`, of `threads` threads.
    pub fn new(blocks: [usize; 2], threads: usize) -> Grid {
        Grid { blocks: [blocks[0], blocks[1], 1], threads: [threads, 1, 1], shared: 0 }
    }

    /// Refuses what some supported GPU refuses; `max_shared` is the device's limit of shared memory a block.
    pub fn check(&self, kernel: &Kernel, max_shared: usize) -> Result<()> {
        let bad = |why: String| Err(Error::Launch { kernel: kernel.op, why });
        let threads: usize = self.threads.iter().product();
        if threads == 0 || threads > 1024 || self.threads[2] > 64 {
            return bad(format!("{:?} threads a block; 1 to 1024 are possible", self.threads));
        }
        if self.blocks[0] > i32::MAX as usize || self.blocks[1] > 65535 || self.blocks[2] > 65535 {
            return bad(format!("a grid of {:?} blocks; at most [2^31 - 1, 65535, 65535] are possible", self.blocks));
        }
        if self.shared > max_shared {
            return bad(format!("{} bytes of shared memory a block; the device has {max_shared}", self.shared));
        }
        Ok(())
    }
}

/// An operand of [`MatMul`]: row-major, `ld` elements from row to row.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Address of the first element.
    pub at: u64,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Elements from one row to the next.
    pub ld: usize,
}

/// `d = scale op(a) op(b) + c`, row-major, accumulated in f32: `op(a)` is m x k, `op(b)` k x n, `c` and `d` m x n.
#[derive(Clone, Copy, Debug)]
pub struct MatMul {
    /// Rows of `d`.
    pub m: usize,
    /// Columns of `d`.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// First operand: m x k, or k x m where `a_transposed`.
    pub a: Matrix,
    /// `a` is stored k x m.
    pub a_transposed: bool,
    /// Second operand: k x n, or n x k where `b_transposed`.
    pub b: Matrix,
    /// `b` is stored n x k.
    pub b_transposed: bool,
    /// What is added: type and `ld` of `d`; may be `d` itself.
    pub c: Option<u64>,
    /// The result.
    pub d: Matrix,
    /// What the product is multiplied with.
    pub scale: f32,
    /// An element's bits must not depend on `m` nor on anything but its row of `op(a)` and column of `op(b)`.
    pub row_invariant: bool,
}

/// A device as launch wrappers see it. Everything is enqueued on one stream, but what goes [aside](Driver::aside); only
/// [`Driver::download`], [`Driver::wait`], [`Driver::synchronize`] and giving memory back wait.
///
/// Between [`Driver::begin`] and [`Driver::end`] launches, products, copies on the device and clearings are recorded and
/// not run; whatever allocates, waits or touches the host's memory is then an error.
///
/// # Safety
/// The `unsafe` methods trust their caller that addresses come from [`Driver::alloc`] ([`Driver::alloc_host`] for host
/// memory) of the same driver, are not freed, and cover what is accessed; [`Driver::launch`] also trusts that the kernel
/// stays within its arguments' lengths, and [`Driver::replay`] that every address is still valid.
/// [`super::Gpu`] is the only caller: it makes addresses from live buffers and checks every length first.
#[allow(clippy::missing_safety_doc)] // one text for all, above
pub trait Driver: Send + Sync + Sized + 'static {
    /// A point of the stream.
    type Event: Send + Sync;
    /// Recorded work.
    type Graph: Send + Sync;

    /// What decides the last bit of a result.
    fn fingerprint(&self) -> String;
    /// For people.
    fn description(&self) -> String;
    /// Begins a range of work with a name, where a profiler looks.
    fn push(&self, _: Mark) {}
    /// Ends the last one begun.
    fn pop(&self) {}
    /// Most shared memory that a block can have, in bytes.
    fn max_shared(&self) -> usize;
    /// Bytes of device memory: free, and in all.
    fn memory(&self) -> Result<(usize, usize)>;
    /// `bytes` zero bytes, aligned to 256.
    fn alloc(&self, bytes: usize) -> Result<u64>;
    /// Gives memory back.
    unsafe fn free(&self, at: u64);
    /// Zeros in host memory that [`Driver::upload_from`] and [`Driver::download_to`] can use, aligned to 256.
    fn alloc_host(&self, bytes: usize) -> Result<u64>;
    /// Gives host memory back.
    unsafe fn free_host(&self, at: u64);
    /// Host to device. The source can be reused at once.
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()>;
    /// Host to device from [`Driver::alloc_host`]; the source must not change before an event recorded after it.
    unsafe fn upload_from(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Device to host; waits.
    unsafe fn download(&self, to: &mut [u8], from: u64) -> Result<()>;
    /// Device to host into [`Driver::alloc_host`]; there after an event recorded after it.
    unsafe fn download_to(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Device to device.
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Fills with zero bytes.
    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()>;
    /// An event that was never recorded.
    fn event(&self) -> Result<Self::Event>;
    /// Moves an event to the end of what is enqueued.
    fn record(&self, event: &Self::Event) -> Result<()>;
    /// Waits for what was enqueued before an event; at once if it was never recorded.
    fn wait(&self, event: &Self::Event) -> Result<()>;
    /// Whether what was enqueued before an event is done, without a wait; of a device that has no such question, after one.
    fn reached(&self, event: &Self::Event) -> Result<bool> {
        self.wait(event).map(|()| true)
    }
    /// The stream by its handle, where a library of the device's can enqueue on it.
    fn queue(&self) -> Option<u64> {
        None
    }
    /// What is enqueued until [`Driver::back`] goes to a second stream, after all that was enqueued before; no products. A device that
    /// works at once has none.
    fn aside(&self) -> Result<()> {
        Ok(())
    }
    /// What is enqueued goes to the first stream again.
    fn back(&self) {}
    /// What is enqueued from here on comes after all that went aside.
    fn rejoin(&self) -> Result<()> {
        Ok(())
    }
    /// Something is enqueued that never ends: from here on nothing is waited for, nor given back.
    fn lose(&self) {}
    /// Waits for everything enqueued.
    fn synchronize(&self) -> Result<()>;
    /// Enqueues a kernel; a grid without blocks does nothing. Errors: [`Error::Launch`].
    unsafe fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()>;
    /// Enqueues a matrix product.
    unsafe fn matmul(&self, product: &MatMul) -> Result<()>;
    /// From now on chooses algorithms for products that need not be row-invariant by timing them, and keeps the choices in
    /// `file`. Errors: a device with nothing to choose from.
    fn tune(&self, file: &Path) -> Result<()>;
    /// Starts recording.
    fn begin(&self) -> Result<()>;
    /// Ends recording. After an error in between the caller drops the result.
    fn end(&self) -> Result<Self::Graph>;
    /// Enqueues what was recorded.
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;
}
