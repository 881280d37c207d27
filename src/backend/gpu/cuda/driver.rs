//! [`Driver`] for a real GPU.

use super::cublaslt::products::CublasLt;
use super::error::error;
use super::functions::Functions;
use super::images::{self, BUILT};
use super::machine::{self, ThisMachine};
use super::nvtx::Nvtx;
use super::recording::{Memory, Recorded, Recording};
use super::streams::{Event, Streams};
use crate::backend::gpu::driver::{Arg, Driver, Grid, Kernel, MatMul};
use crate::backend::ops::device::Mark;
use crate::error::{Error, Result};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute};
use cudarc::driver::{CudaContext, CudaStream};
use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One GPU.
pub struct CudaDriver {
    // Dropped in this order: the library before the stream before the context.
    lt: CublasLt,
    functions: Functions,
    streams: Streams,
    context: Arc<CudaContext>,
    max_shared: usize,
    /// The device reads the host's pageable memory itself (GH200, HMM): a copy from there may do so after the call.
    reads_pageable: bool,
    capability: (i32, i32),
    name: String,
    /// Where a profiler may look.
    nvtx: Option<Nvtx>,
    recording: Recording,
    /// Something is enqueued that never ends.
    lost: AtomicBool,
}

impl CudaDriver {
    /// GPU number `ordinal`. Errors: [`Error::Device`] with what is missing and how to get it.
    pub fn open(ordinal: usize) -> Result<CudaDriver> {
        if let Some(why) = machine::refusal(&ThisMachine, ordinal) {
            return Err(Error::Device(format!("`device` cuda: {why}")));
        }
        let context = CudaContext::new(ordinal).map_err(error("open the GPU"))?;
        // SAFETY: this driver orders everything on its streams itself; it makes no `CudaSlice`.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(error("ask for the GPU's name"))?;
        let capability = context.compute_capability().map_err(error("ask for the GPU's architecture"))?;
        let optin = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let max_shared = context.attribute(optin).map_err(error("ask for the GPU's shared memory"))? as usize;
        let pageable = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS;
        let reads_pageable = context.attribute(pageable).map_err(error("ask how the GPU reads memory"))? != 0;
        let streams = Streams::new(&context)?;
        let functions = Functions::load(&context, &name, max_shared)?;
        let lt = CublasLt::new(streams.main())?;
        Ok(CudaDriver {
            lt,
            functions,
            streams,
            context,
            max_shared,
            reads_pageable,
            capability,
            name,
            nvtx: Nvtx::open(),
            recording: Recording::default(),
            lost: AtomicBool::new(false),
        })
    }

    /// The stream that everything is enqueued on, but what goes aside.
    pub fn stream(&self) -> &Arc<CudaStream> {
        self.streams.main()
    }

    /// The stream that is enqueued on now.
    fn now(&self) -> sys::CUstream {
        self.streams.now().cu_stream()
    }

    /// Where this GPU's kernels come from, for people.
    pub fn kernels(&self) -> String {
        let from = if images::has_code_for(self.capability) { "" } else { ", here compiled from PTX by the driver" };
        format!("{BUILT}{from}")
    }

    /// What decides the bits of products, and which of the library's algorithms is fastest.
    fn device(&self) -> String {
        let (major, minor) = self.capability;
        format!("sm_{major}{minor}-{}-cublaslt{}", self.name.replace(' ', "_"), self.lt.version())
    }

    /// Refuses what cannot be part of recorded work, and all once something is lost.
    fn not_while_recording(&self, what: &str) -> Result<()> {
        if self.is_lost() {
            return Err(Error::Device(format!("cannot {what}: what other ranks were to send never came")));
        }
        self.recording.refuse(what)?;
        self.bind()
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Before anything that a recording takes in.
    fn may_enqueue(&self) -> Result<()> {
        self.recording.may_enqueue()?;
        self.bind()
    }

    /// Frees memory, at the end of a recording where there is one.
    ///
    /// # Safety
    ///
    /// As of [`Memory::free`].
    unsafe fn give_back(&self, memory: Memory) {
        if self.recording.is_on() {
            self.recording.keep(memory);
        } else if !self.is_lost() && self.bind().is_ok() {
            // SAFETY: the caller's promise.
            unsafe { memory.free() }
        }
    }

    /// Waits for a copy to or from memory that is the host's again afterwards, whatever comes of it: nothing that could fail is
    /// between the copy and the wait, and a wait that failed is tried again. A device that refuses both copies nothing any more.
    fn copied(&self) -> Result<()> {
        // SAFETY: the stream is alive, and its context is this thread's, as the copy just now needed.
        let wait = || unsafe { result::stream::synchronize(self.now()) };
        let done = wait();
        if done.is_err() {
            let _ = wait();
        }
        done.map_err(error("finish what was enqueued"))
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(error("use the GPU from this thread"))
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        // What was being recorded is dropped; what was enqueued is waited for, before anything that it uses goes.
        if self.recording.is_on() {
            drop(self.end());
        }
        if self.bind().is_ok() {
            let _ = self.synchronize();
        }
    }
}

impl Driver for CudaDriver {
    type Event = Event;
    type Graph = Recorded;

    fn fingerprint(&self) -> String {
        let kernels = images::sum();
        // What the driver compiles, another one may compile otherwise.
        let compiled = match images::has_code_for(self.capability) {
            true => String::new(),
            false => format!("-driver{}", machine::driver_version().unwrap_or(0)),
        };
        format!("{}-kernels{kernels:08x}{compiled}", self.device())
    }

    fn push(&self, mark: Mark) {
        if let Some(nvtx) = &self.nvtx {
            nvtx.push(mark);
        }
    }

    fn pop(&self) {
        if let Some(nvtx) = &self.nvtx {
            nvtx.pop();
        }
    }

    fn description(&self) -> String {
        let gib = self.memory().map_or(0.0, |(_, all)| all as f64 / f64::from(1 << 30));
        format!("{}, {gib:.0} GiB, compute capability {}.{}", self.name, self.capability.0, self.capability.1)
    }

    fn max_shared(&self) -> usize {
        self.max_shared
    }

    fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        self.context.mem_get_info().map_err(error("ask for the GPU's memory"))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.not_while_recording("allocate memory")?;
        let size = bytes.max(1);
        // SAFETY: the memory is written in full before anyone can read it.
        let at = unsafe { result::malloc_sync(size) }.map_err(|e| {
            if e.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return error(&format!("allocate {size} bytes"))(e); // of earlier work, most likely
            }
            let (free, all) = self.memory().unwrap_or((0, 0));
            let gib = |b: usize| b as f64 / f64::from(1 << 30);
            let why = "out of device memory: use a smaller `token_budget`, or a smaller model";
            Error::Device(format!("{why} ({:.2} of {:.2} GiB free; {e:?})", gib(free), gib(all)))
        })?;
        // SAFETY: `size` bytes were allocated just now.
        if let Err(e) = unsafe { result::memset_d8_async(at, 0, size, self.now()) } {
            // SAFETY: allocated just now, and nobody has it.
            let _ = unsafe { result::free_sync(at) };
            return Err(error("clear memory")(e));
        }
        Ok(at)
    }

    unsafe fn free(&self, at: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.give_back(Memory::Device(at)) }
    }

    fn alloc_host(&self, bytes: usize) -> Result<u64> {
        self.not_while_recording("allocate memory")?;
        // Flags 0: not write-combined, as the host reads it too.
        // SAFETY: the memory is written in full before anyone can read it.
        let at = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(error(&format!("lock {bytes} bytes of host memory")))?;
        // SAFETY: `bytes` bytes were allocated just now.
        unsafe { at.cast::<u8>().write_bytes(0, bytes) };
        Ok(at as u64)
    }

    unsafe fn free_host(&self, at: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.give_back(Memory::Host(at)) }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.not_while_recording("copy to the GPU")?;
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise. From pageable memory the call returns once the source has been staged, or the wait
        // below sees to it that it was read.
        unsafe { result::memcpy_htod_async(to, from, self.now()) }.map_err(error("copy to the GPU"))?;
        if self.reads_pageable { self.copied() } else { Ok(()) }
    }

    unsafe fn upload_from(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.not_while_recording("copy to the GPU")?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise that the source covers the length.
        let from = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
        // SAFETY: the caller's promise, for as long as the copy runs.
        unsafe { result::memcpy_htod_async(to, from, self.now()) }.map_err(error("copy to the GPU"))
    }

    unsafe fn download_to(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.not_while_recording("copy from the GPU")?;
        if bytes == 0 {
            return Ok(());
        }
        let stream = self.now();
        // SAFETY: the caller's promise. Not through a Rust slice, which nobody else may write.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to as *mut c_void, from, bytes, stream) }
            .result()
            .map_err(error("copy from the GPU"))
    }

    unsafe fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        self.not_while_recording("copy from the GPU")?;
        if !to.is_empty() {
            // SAFETY: the caller's promise; `to` is not touched before the synchronisation below.
            unsafe { result::memcpy_dtoh_async(to, from, self.now()) }.map_err(error("copy from the GPU"))?;
        }
        self.copied()
    }

    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.may_enqueue()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.now()) }.map_err(error("copy on the GPU"))
    }

    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        self.may_enqueue()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(at, 0, bytes, self.now()) }.map_err(error("clear memory"))
    }

    fn event(&self) -> Result<Event> {
        self.not_while_recording("make an event")?;
        Event::new(&self.context)
    }

    fn record(&self, event: &Event) -> Result<()> {
        self.not_while_recording("record an event")?;
        event.record(self.streams.now())
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.not_while_recording("wait")?;
        event.wait()
    }

    fn reached(&self, event: &Event) -> Result<bool> {
        self.not_while_recording("wait")?;
        event.reached()
    }

    fn queue(&self) -> Option<u64> {
        Some(self.now() as u64)
    }

    fn aside(&self) -> Result<()> {
        self.not_while_recording("enqueue beside")?;
        self.streams.aside()
    }

    fn back(&self) {
        self.streams.back();
    }

    fn rejoin(&self) -> Result<()> {
        self.not_while_recording("wait")?;
        self.streams.rejoin()
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    fn synchronize(&self) -> Result<()> {
        self.not_while_recording("wait")?;
        self.streams.synchronize()
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        grid.check(&kernel, self.max_shared)?;
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.may_enqueue()?;
        let function = self.functions.get(kernel, &grid)?;
        let mut values: Vec<u64> = args.iter().map(Arg::bits).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let ([bx, by, bz], [tx, ty, tz]) = (grid.blocks.map(|n| n as u32), grid.threads.map(|n| n as u32));
        let stream = self.now();
        // SAFETY: each value lies in eight bytes, the widest that a parameter reads; that the list fits the kernel's
        // declaration is checked for every wrapper by the host driver, which sees the C++ types (tests/kernels.rs).
        unsafe {
            result::launch_kernel(function, (bx, by, bz), (tx, ty, tz), grid.shared as u32, stream, &mut pointers)
        }
        .map_err(|e| Error::Launch { kernel: kernel.op, why: error("launch")(e).to_string() })
    }

    unsafe fn matmul(&self, product: &MatMul) -> Result<()> {
        self.may_enqueue()?;
        self.streams.not_aside("multiply")?;
        // SAFETY: the caller's promise that the operands cover their shapes.
        unsafe { self.lt.matmul(self.streams.main(), product, self.recording.is_on()) }
    }

    fn tune(&self, file: &Path) -> Result<()> {
        self.lt.tune(file, &self.device())
    }

    fn begin(&self) -> Result<()> {
        self.not_while_recording("start recording")?;
        self.streams.not_aside("start recording")?;
        self.recording.begin(self.streams.main())
    }

    fn end(&self) -> Result<Recorded> {
        let (graph, freed) = self.recording.end(self.streams.main());
        // SAFETY: the promise of whoever gave it back.
        freed.into_iter().for_each(|memory| unsafe { self.give_back(memory) });
        Recorded::new(graph?)
    }

    unsafe fn replay(&self, graph: &Recorded) -> Result<()> {
        self.not_while_recording("replay a graph")?;
        graph.replay()
    }
}
