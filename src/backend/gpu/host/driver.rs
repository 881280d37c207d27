//! [`Driver`] on the host.

use super::matmul;
use super::work::{Queue, Work};
use crate::backend::gpu::driver::{Arg, Driver, Grid, Kernel, MatMul};
use crate::backend::gpu::lock::lock;
use crate::error::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A kernel compiled for the host; `kernels/host` has them.
pub trait HostKernel: Send + Sync {
    /// Exported name: `swiglu_fwd_bf16`.
    fn name(&self) -> &str;
    /// Parameter types: `bf16*,const bf16*,i32`.
    fn signature(&self) -> &str;
    /// Runs to the end; `seed` draws the order of blocks, warps and lanes. Errors: what went wrong.
    ///
    /// # Safety
    /// `args` point at values of the types in [`HostKernel::signature`]; pointers among them cover what is accessed.
    unsafe fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        args: &mut [*mut c_void],
        seed: u64,
    ) -> Result<(), String>;
}

/// Alignment of an allocation, and bytes of [`FENCE`] on either side of it.
const FENCE_BYTES: usize = 256;
/// NaN as bf16, f32 and f64: what is read past an end spoils the result, what is written there is found.
const FENCE: u8 = 0xff;

/// Runs kernels on the calling thread; see the [module](super).
pub struct HostDriver {
    kernels: HashMap<String, Box<dyn HostKernel>>,
    seed: u64,
    /// Bytes on either side of an allocation.
    fence: usize,
    launches: AtomicU64,
    /// Bytes that allocations may come to.
    memory: usize,
    /// Bytes of shared memory that a block may have.
    max_shared: usize,
    /// Address handed out -> bytes.
    allocations: Mutex<BTreeMap<u64, usize>>,
    queue: Mutex<Queue>,
}

impl HostDriver {
    /// A driver over `kernels`; every launch draws its schedule from `seed` and the launches before it. Seed 0 runs
    /// blocks in order.
    pub fn new(kernels: impl IntoIterator<Item = Box<dyn HostKernel>>, seed: u64) -> HostDriver {
        HostDriver {
            kernels: kernels.into_iter().map(|k| (k.name().to_owned(), k)).collect(),
            seed,
            fence: FENCE_BYTES,
            launches: AtomicU64::new(0),
            memory: isize::MAX as usize / 2,
            max_shared: 99 * 1024, // compute capability 8.6, the least of the supported
            allocations: Mutex::default(),
            queue: Mutex::default(),
        }
    }

    /// Allocations without fences: for address sanitizer, which sees reads too and whose own fences then lie at the
    /// very end of each.
    pub fn without_fences(self) -> HostDriver {
        HostDriver { fence: 0, ..self }
    }

    /// [`HostDriver::new`], but nothing runs before somebody waits for it.
    pub fn deferred(kernels: impl IntoIterator<Item = Box<dyn HostKernel>>, seed: u64) -> HostDriver {
        HostDriver { queue: Mutex::new(Queue { defers: true, ..Queue::default() }), ..HostDriver::new(kernels, seed) }
    }

    /// As if the device had `bytes` of memory.
    pub fn with_memory(self, bytes: usize) -> HostDriver {
        HostDriver { memory: bytes, ..self }
    }

    /// As if a block might have `bytes` of shared memory.
    pub fn with_max_shared(self, bytes: usize) -> HostDriver {
        HostDriver { max_shared: bytes, ..self }
    }

    /// Allocations that are alive.
    pub fn live_allocations(&self) -> usize {
        self.allocations().len()
    }

    /// Launches that have run.
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    fn allocations(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.allocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `bytes` bytes from `at` are inside one allocation.
    fn covers(&self, at: u64, bytes: usize) -> bool {
        let all = self.allocations();
        let Some((start, len)) = all.range(..=at).next_back() else { return false };
        (at - start) as usize + bytes <= *len
    }

    /// Records, keeps for later, or runs.
    fn enqueue(&self, work: Work) -> Result<()> {
        let mut queue = lock(&self.queue);
        if let Some(recorded) = &mut queue.recording {
            return match work {
                Work::Launch { .. } | Work::MatMul(_) | Work::Copy { .. } | Work::Clear { .. } => {
                    recorded.push(work);
                    Ok(())
                }
                _ => Err(recording("move data between host and device")),
            };
        }
        if queue.defers {
            queue.waiting.push_back(work);
            return Ok(());
        }
        drop(queue);
        self.run(&work)
    }

    /// Runs what waits: all of it, or until event number `until` is reached. Once anything has failed everything fails.
    fn run_waiting(&self, until: Option<u64>) -> Result<()> {
        let mut queue = lock(&self.queue);
        if queue.recording.is_some() {
            return Err(recording("wait"));
        }
        while queue.failed.is_none() && until.is_none_or(|n| queue.reached < n) {
            let Some(work) = queue.waiting.pop_front() else { break };
            match work {
                Work::Mark(n) => queue.reached = n,
                work => queue.failed = self.run(&work).err().map(|e| e.to_string()),
            }
        }
        queue.failed.as_ref().map_or(Ok(()), |why| Err(Error::Device(why.clone())))
    }

    fn run(&self, work: &Work) -> Result<()> {
        match work {
            // SAFETY: whoever enqueued it promised that the addresses cover what is accessed, and memory is only freed
            // once nothing waits; host and "device" allocations are distinct.
            Work::Upload { to, from } => unsafe {
                std::ptr::copy_nonoverlapping(from.as_ptr(), *to as *mut u8, from.len());
            },
            // SAFETY: the promise of whoever enqueued it; `copy` allows overlap.
            Work::Copy { to, from, bytes } | Work::Pinned { to, from, bytes } => unsafe {
                std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes);
            },
            // SAFETY: the promise of whoever enqueued it.
            Work::Clear { at, bytes } => unsafe { (*at as *mut u8).write_bytes(0, *bytes) },
            // SAFETY: the promise of whoever enqueued it: operands cover their shapes.
            Work::MatMul(p) => unsafe { matmul::matmul(p) },
            Work::Launch { kernel, grid, args } => return self.run_kernel(*kernel, *grid, args),
            Work::Graph(all) => return all.iter().try_for_each(|w| self.run(w)),
            Work::Mark(_) => {}
        }
        Ok(())
    }

    fn found(&self, kernel: &Kernel) -> Result<&dyn HostKernel> {
        let name = kernel.name();
        let why = || Error::Launch { kernel: kernel.op, why: format!("no kernel `{name}` was compiled") };
        self.kernels.get(&name).map(|k| &**k).ok_or_else(why)
    }

    fn run_kernel(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        let fail = |why: String| Error::Launch { kernel: kernel.op, why };
        let found = self.found(&kernel)?;
        // Once more: recorded work runs long after it was checked.
        self.check_args(&kernel, found, args)?;
        let mut values: Vec<u64> = args.iter().map(Arg::bits).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let nth = self.launches.fetch_add(1, Ordering::Relaxed);
        let seed = if self.seed == 0 { 0 } else { self.seed.wrapping_mul(1 << 32) ^ (nth + 1) };
        let (blocks, threads) = (grid.blocks.map(|n| n as u32), grid.threads.map(|n| n as u32));
        // SAFETY: the types were compared with the declaration just now, the ranges with the allocations; that the
        // kernel stays inside them is the caller's promise.
        unsafe { found.launch(blocks, threads, grid.shared, &mut pointers, seed) }.map_err(fail)?;
        match self.broken_fence() {
            None => Ok(()),
            Some(at) => Err(fail(format!("wrote outside the allocation at {at:#x}"))),
        }
    }

    fn check_args(&self, kernel: &Kernel, found: &dyn HostKernel, args: &[Arg]) -> Result<()> {
        let given: Vec<String> = args.iter().map(Arg::type_name).collect();
        let given = given.join(",");
        if given != found.signature() {
            let why = format!("arguments are `{given}`, the kernel takes `{}`", found.signature());
            return Err(Error::Launch { kernel: kernel.op, why });
        }
        for (i, arg) in args.iter().enumerate() {
            if let Arg::Memory { at, bytes, .. } = *arg
                && bytes > 0
                && !self.covers(at, bytes)
            {
                let why = format!("argument {i} points at {bytes} bytes that are not in one allocation");
                return Err(Error::Launch { kernel: kernel.op, why });
            }
        }
        Ok(())
    }

    /// The address of an allocation into which a write went astray.
    fn broken_fence(&self) -> Option<u64> {
        self.allocations().iter().map(|(at, bytes)| (*at, *bytes)).find_map(|(at, bytes)| {
            let intact = |from: u64| {
                // SAFETY: both fences belong to a live allocation of this driver (made in `alloc`).
                let fence = unsafe { std::slice::from_raw_parts(from as *const u8, self.fence) };
                fence.iter().all(|b| *b == FENCE)
            };
            (!intact(at - self.fence as u64) || !intact(at + bytes as u64)).then_some(at)
        })
    }

    fn layout(&self, bytes: usize) -> Layout {
        let size = (bytes + 2 * self.fence).max(1);
        Layout::from_size_align(size, FENCE_BYTES).expect("a length that was allocated before")
    }
}

fn recording(what: &str) -> Error {
    Error::Device(format!("cannot {what} while work is being recorded"))
}

impl Driver for HostDriver {
    /// Number of the last record.
    type Event = AtomicU64;
    type Graph = Arc<[Work]>;

    fn fingerprint(&self) -> String {
        "kernels on the host".into()
    }

    fn description(&self) -> String {
        format!("CUDA kernels on the host, {} of them, schedule {}", self.kernels.len(), self.seed)
    }

    fn max_shared(&self) -> usize {
        self.max_shared
    }

    fn memory(&self) -> Result<(usize, usize)> {
        let used: usize = self.allocations().values().sum();
        Ok((self.memory.saturating_sub(used), self.memory))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        if lock(&self.queue).recording.is_some() {
            return Err(recording("allocate memory"));
        }
        // Whole fences: rounding the length up would hide writes behind the end.
        let (free, all) = self.memory()?;
        if bytes > free {
            return Err(Error::Device(format!("out of memory for {bytes} bytes: {free} of {all} are free")));
        }
        // SAFETY: the layout's size is not 0; the fences are within it.
        let start = unsafe { alloc_zeroed(self.layout(bytes)) };
        if start.is_null() {
            return Err(Error::Device(format!("out of memory for {bytes} bytes")));
        }
        // SAFETY: both fences lie in what was allocated just now.
        unsafe {
            start.write_bytes(FENCE, self.fence);
            start.add(self.fence + bytes).write_bytes(FENCE, self.fence);
        }
        let at = start as u64 + self.fence as u64;
        self.allocations().insert(at, bytes);
        Ok(at)
    }

    unsafe fn free(&self, at: u64) {
        // A failure has been, or will be, reported to whoever waits.
        let _ = self.run_waiting(None);
        if let Some(bytes) = self.allocations().remove(&at) {
            // SAFETY: `alloc` made it with this layout; it is no longer listed, so it is freed once.
            unsafe { dealloc((at - self.fence as u64) as *mut u8, self.layout(bytes)) };
        }
    }

    fn alloc_host(&self, bytes: usize) -> Result<u64> {
        self.alloc(bytes)
    }

    unsafe fn free_host(&self, at: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.free(at) };
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.enqueue(Work::Upload { to, from: from.to_vec() })
    }

    unsafe fn upload_from(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.enqueue(Work::Pinned { to, from, bytes })
    }

    unsafe fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        self.run_waiting(None)?;
        // SAFETY: the caller's promise that `from` covers the length; host and "device" buffers are distinct.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn download_to(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.enqueue(Work::Pinned { to, from, bytes })
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.enqueue(Work::Copy { to, from, bytes })
    }

    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        self.enqueue(Work::Clear { at, bytes })
    }

    fn event(&self) -> Result<AtomicU64> {
        Ok(AtomicU64::new(0))
    }

    fn record(&self, event: &AtomicU64) -> Result<()> {
        let mut queue = lock(&self.queue);
        if queue.recording.is_some() {
            return Err(recording("record an event"));
        }
        queue.marks += 1;
        let n = queue.marks;
        event.store(n, Ordering::Relaxed);
        match queue.defers {
            true => queue.waiting.push_back(Work::Mark(n)),
            false => queue.reached = n,
        }
        Ok(())
    }

    fn wait(&self, event: &AtomicU64) -> Result<()> {
        self.run_waiting(Some(event.load(Ordering::Relaxed)))
    }

    fn synchronize(&self) -> Result<()> {
        self.run_waiting(None)
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        grid.check(&kernel, self.max_shared())?;
        self.check_args(&kernel, self.found(&kernel)?, args)?;
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.enqueue(Work::Launch { kernel, grid, args: args.into() })
    }

    unsafe fn matmul(&self, p: &MatMul) -> Result<()> {
        self.enqueue(Work::MatMul(*p))
    }

    fn tune(&self, _: &Path) -> Result<()> {
        Err(Error::usage("`matmul_plans`: products on the host have one algorithm; leave it out"))
    }

    fn begin(&self) -> Result<()> {
        match &mut lock(&self.queue).recording {
            Some(_) => Err(recording("start recording")),
            none => {
                *none = Some(Vec::new());
                Ok(())
            }
        }
    }

    fn end(&self) -> Result<Arc<[Work]>> {
        let recorded = lock(&self.queue).recording.take();
        recorded.map(Arc::from).ok_or_else(|| Error::Device("nothing is being recorded".into()))
    }

    unsafe fn replay(&self, graph: &Arc<[Work]>) -> Result<()> {
        self.enqueue(Work::Graph(graph.clone()))
    }
}
