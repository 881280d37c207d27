//! [`Driver`] for a real GPU.

use super::carve_out::{Block, PLENTY};
use super::cublaslt::products::CublasLt;
use super::error::error;
use super::images::{self, BUILT};
use super::machine::{self, ThisMachine};
use super::nvtx::Nvtx;
use crate::backend::gpu::driver::{Arg, Driver, Grid, Kernel, MatMul};
use crate::backend::gpu::lock::lock;
use crate::backend::ops::device::Mark;
use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute};
use cudarc::driver::{CudaContext, CudaGraph, CudaStream};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, ThreadId};

/// A kernel as the driver knows it.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that it may ask for, in bytes.
    shared: usize,
}
// SAFETY: the handle is a name for something that lives as long as its module; the driver API is thread-safe.
unsafe impl Send for Function {}

/// Loaded images of the kernels, unloaded when dropped: nothing may run any more.
struct Modules {
    all: Vec<sys::CUmodule>,
    context: Arc<CudaContext>,
}
// SAFETY: the handles are names for something that lives as long as the driver here; the driver API is thread-safe.
unsafe impl Send for Modules {}
// SAFETY: the handles are names, never changed after loading; the driver API is thread-safe.
unsafe impl Sync for Modules {}

impl Modules {
    fn load(context: &Arc<CudaContext>, name: &str) -> Result<Modules> {
        let mut this = Modules { all: Vec::with_capacity(images::FATBINS.len()), context: context.clone() };
        for image in images::FATBINS {
            // Embedded bytes may start anywhere; the loader wants them aligned, as an allocation is.
            let image = image.to_vec();
            // SAFETY: a fatbin that nvcc wrote, embedded whole; the driver reads its own header for the length.
            let loaded = unsafe { result::module::load_data(image.as_ptr().cast()) };
            this.all.push(loaded.map_err(error(&format!("load the kernels ({BUILT}) on {name}")))?);
        }
        Ok(this)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            for module in &self.all {
                // SAFETY: loaded above, unloaded once, and nothing runs any more. A failure leaves nothing to do.
                let _ = unsafe { result::module::unload(*module) };
            }
        }
    }
}

/// Memory that was given back while work was recorded.
enum Freed {
    Device(u64),
    Host(u64),
}

/// A point of the stream.
pub struct Event {
    handle: sys::CUevent,
    context: Arc<CudaContext>,
}
// SAFETY: the handle is a name; the driver API is thread-safe.
unsafe impl Send for Event {}
// SAFETY: calls on an event may overlap: the driver API is thread-safe.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made by `CudaDriver::event`, destroyed once. A failure leaves nothing to do.
            let _ = unsafe { result::event::destroy(self.handle) };
        }
    }
}

/// A second stream, and how the two wait for each other.
struct Side {
    stream: Arc<CudaStream>,
    /// How far each was when the other began to wait for it.
    forked: Event,
    joined: Event,
}

/// Recorded work.
pub struct Recorded(Mutex<CudaGraph>);
// SAFETY: CUDA asks that calls on one graph do not overlap, which the mutex sees to; any thread may make them.
unsafe impl Send for Recorded {}
// SAFETY: the mutex sees to it that calls do not overlap.
unsafe impl Sync for Recorded {}

/// One GPU.
pub struct CudaDriver {
    // Dropped in this order: the library before the stream before the context.
    lt: CublasLt,
    functions: Mutex<HashMap<Kernel, Function>>,
    modules: Modules,
    stream: Arc<CudaStream>,
    /// What goes aside, once something has.
    side: OnceLock<Side>,
    is_aside: AtomicBool,
    context: Arc<CudaContext>,
    max_shared: usize,
    /// The device reads the host's pageable memory itself (GH200, HMM): a copy from there may do so after the call.
    reads_pageable: bool,
    capability: (i32, i32),
    name: String,
    /// Where a profiler may look.
    nvtx: Option<Nvtx>,
    /// The thread that records, between `begin` and `end`.
    recording: Mutex<Option<ThreadId>>,
    /// What was given back in between: freeing it at once would end the recording.
    freed: Mutex<Vec<Freed>>,
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
        let stream = context.new_stream().map_err(error("make a stream"))?;
        let modules = Modules::load(&context, &name)?;
        let lt = CublasLt::new(&stream)?;
        Ok(CudaDriver {
            lt,
            functions: Mutex::default(),
            modules,
            stream,
            side: OnceLock::new(),
            is_aside: AtomicBool::new(false),
            context,
            max_shared,
            reads_pageable,
            capability,
            name,
            nvtx: Nvtx::open(),
            recording: Mutex::default(),
            freed: Mutex::default(),
            lost: AtomicBool::new(false),
        })
    }

    /// The stream that everything is enqueued on, but what goes aside.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The stream that is enqueued on now.
    fn now(&self) -> sys::CUstream {
        let side = self.side.get().filter(|_| self.is_aside.load(Ordering::Relaxed));
        side.map_or(&self.stream, |side| &side.stream).cu_stream()
    }

    /// Makes what is enqueued on `later` wait for all that is on `first`.
    fn after(&self, later: &CudaStream, first: &CudaStream, event: &Event) -> Result<()> {
        // SAFETY: all are alive.
        let recorded = unsafe { result::event::record(event.handle, first.cu_stream()) };
        recorded.map_err(error("record an event"))?;
        let none = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as above.
        unsafe { result::stream::wait_event(later.cu_stream(), event.handle, none) }.map_err(error("order two streams"))
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

    /// Refuses what cannot be part of recorded work: it would spoil the recording, or happen once instead of every time.
    fn not_while_recording(&self, what: &str) -> Result<()> {
        match (self.is_lost(), self.is_recording()) {
            (true, _) => Err(Error::Device(format!("cannot {what}: what other ranks were to send never came"))),
            (_, true) => Err(Error::Device(format!("cannot {what} while work is being recorded"))),
            _ => self.bind(),
        }
    }

    /// Refuses what has no place on the second stream.
    fn not_aside(&self, what: &str) -> Result<()> {
        match self.is_aside.load(Ordering::Relaxed) {
            true => Err(Error::Device(format!("cannot {what} on the second stream"))),
            false => Ok(()),
        }
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    fn is_recording(&self) -> bool {
        lock(&self.recording).is_some()
    }

    /// Before anything that a recording takes in: what another thread enqueued on the stream would become part of it.
    fn may_enqueue(&self) -> Result<()> {
        match *lock(&self.recording) {
            Some(by) if by != thread::current().id() => {
                Err(Error::Device("another thread is recording work on this GPU".into()))
            }
            _ => self.bind(),
        }
    }

    /// Where ending a recording did not come to its end, the stream must not go on recording: nothing could be given back.
    fn leave_recording(&self) {
        let recording = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE;
        if self.stream.capture_status().is_ok_and(|status| status == recording) {
            // SAFETY: the stream is alive and records; the graph is nobody else's.
            let _ = unsafe { result::stream::end_capture(self.stream.cu_stream()) }
                .and_then(|graph| unsafe { result::graph::destroy(graph) });
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

    /// The function of that name, where a module has one. Errors: anything else that the driver says.
    fn find(&self, name: &CString) -> Result<Option<sys::CUfunction>, DriverError> {
        for module in &self.modules.all {
            // SAFETY: the modules stay loaded as long as this driver lives.
            match unsafe { result::module::get_function(*module, name.clone()) } {
                Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_FOUND => {}
                found => return found.map(Some),
            }
        }
        Ok(None)
    }

    /// The function of a kernel, allowed the dynamic shared memory of `grid`.
    fn function(&self, kernel: Kernel, grid: &Grid) -> Result<sys::CUfunction> {
        let shared = grid.shared;
        let mut all = lock(&self.functions);
        let mut f = match all.get(&kernel) {
            Some(f) => *f,
            None => {
                let name = CString::new(kernel.name()).expect("names have no NUL");
                let handle = self.find(&name).map_err(|e| Error::Launch {
                    kernel: kernel.op,
                    why: error(&format!("find `{}`", kernel.name()))(e).to_string(),
                })?;
                let handle = handle.ok_or_else(|| Error::Launch {
                    kernel: kernel.op,
                    why: format!("no kernel `{}` in this binary ({BUILT})", kernel.name()),
                })?;
                // How much a kernel may have unasked depends on what else it has: it is asked for.
                Function { handle, shared: 0 }
            }
        };
        if shared > f.shared {
            let threads = grid.threads.iter().product();
            // SAFETY: a live function; the bytes were checked against the device's limit.
            unsafe { self.give_shared(f.handle, threads, shared) }.map_err(|e| Error::Launch {
                kernel: kernel.op,
                why: error(&format!("give a block {shared} bytes of shared memory"))(e).to_string(),
            })?;
            f.shared = shared;
        }
        all.insert(kernel, f);
        Ok(f.handle)
    }

    /// Allows a kernel that much dynamic shared memory. Where it is plenty, also asks for as much on a multiprocessor as the blocks
    /// need that its registers allow; the rest is L1.
    ///
    /// # Safety
    ///
    /// The function is alive; a block may have that much.
    unsafe fn give_shared(&self, f: sys::CUfunction, threads: usize, shared: usize) -> Result<(), DriverError> {
        use CUfunction_attribute::*;
        // SAFETY: the caller's promise.
        let set = |attribute, value| unsafe { result::function::set_function_attribute(f, attribute, value) };
        // SAFETY: the caller's promise.
        let get = |attribute| unsafe { result::function::get_function_attribute(f, attribute) };
        set(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared as i32)?;
        if shared >= PLENTY {
            let fixed = get(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)? as usize;
            let block = Block { registers: get(CU_FUNC_ATTRIBUTE_NUM_REGS)? as usize, threads, shared: shared + fixed };
            set(CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, block.carve_out(self.max_shared))?;
        }
        Ok(())
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        // What was being recorded is dropped; what was enqueued is waited for, before anything that it uses goes.
        if self.is_recording() {
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
        if self.is_recording() {
            lock(&self.freed).push(Freed::Device(at));
        } else if !self.is_lost() && self.bind().is_ok() {
            // SAFETY: the caller's promise; the driver waits for work that uses it. A failure leaves nothing to do.
            let _ = unsafe { result::free_sync(at) };
        }
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
        if self.is_recording() {
            lock(&self.freed).push(Freed::Host(at));
        } else if !self.is_lost() && self.bind().is_ok() {
            // SAFETY: the caller's promise. A failure leaves nothing to do.
            let _ = unsafe { result::free_host(at as *mut c_void) };
        }
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
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let handle = result::event::create(flags).map_err(error("make an event"))?;
        Ok(Event { handle, context: self.context.clone() })
    }

    fn record(&self, event: &Event) -> Result<()> {
        self.not_while_recording("record an event")?;
        // SAFETY: both are alive.
        unsafe { result::event::record(event.handle, self.now()) }.map_err(error("record an event"))
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.not_while_recording("wait")?;
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(event.handle) }.map_err(error("finish what was enqueued"))
    }

    fn reached(&self, event: &Event) -> Result<bool> {
        self.not_while_recording("wait")?;
        // SAFETY: the event is alive.
        match unsafe { result::event::query(event.handle) } {
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            asked => asked.map(|()| true).map_err(error("finish what was enqueued")),
        }
    }

    fn queue(&self) -> Option<u64> {
        Some(self.now() as u64)
    }

    fn aside(&self) -> Result<()> {
        self.not_while_recording("enqueue beside")?;
        self.not_aside("go aside")?;
        let side = match self.side.get() {
            Some(side) => side,
            None => {
                let stream = self.context.new_stream().map_err(error("make a stream"))?;
                let side = Side { stream, forked: self.event()?, joined: self.event()? };
                self.side.get_or_init(|| side)
            }
        };
        self.after(&side.stream, &self.stream, &side.forked)?;
        self.is_aside.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn back(&self) {
        self.is_aside.store(false, Ordering::Relaxed);
    }

    fn rejoin(&self) -> Result<()> {
        self.not_while_recording("wait")?;
        self.side.get().map_or(Ok(()), |side| self.after(&self.stream, &side.stream, &side.joined))
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    fn synchronize(&self) -> Result<()> {
        self.not_while_recording("wait")?;
        let side = self.side.get().map(|side| &side.stream);
        side.into_iter()
            .chain([&self.stream])
            .try_for_each(|s| s.synchronize())
            .map_err(error("finish what was enqueued"))
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        grid.check(&kernel, self.max_shared)?;
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.may_enqueue()?;
        let function = self.function(kernel, &grid)?;
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
        self.not_aside("multiply")?;
        // SAFETY: the caller's promise that the operands cover their shapes.
        unsafe { self.lt.matmul(&self.stream, product, self.is_recording()) }
    }

    fn tune(&self, file: &Path) -> Result<()> {
        self.lt.tune(file, &self.device())
    }

    fn begin(&self) -> Result<()> {
        self.not_while_recording("start recording")?;
        self.not_aside("start recording")?;
        // Other threads may use the GPU otherwise meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(error("start recording"))?;
        *lock(&self.recording) = Some(thread::current().id());
        Ok(())
    }

    fn end(&self) -> Result<Recorded> {
        *lock(&self.recording) = None;
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        if graph.is_err() {
            self.leave_recording();
        }
        for freed in std::mem::take(&mut *lock(&self.freed)) {
            match freed {
                // SAFETY: the promise of whoever gave it back.
                Freed::Device(at) => unsafe { self.free(at) },
                // SAFETY: as above.
                Freed::Host(at) => unsafe { self.free_host(at) },
            }
        }
        let graph = graph.map_err(error("end recording"))?;
        let graph = graph.ok_or_else(|| Error::Device("CUDA: nothing was recorded".into()))?;
        graph.upload().map_err(error("load a graph"))?;
        Ok(Recorded(Mutex::new(graph)))
    }

    unsafe fn replay(&self, graph: &Recorded) -> Result<()> {
        self.not_while_recording("replay a graph")?;
        lock(&graph.0).launch().map_err(error("launch a graph"))
    }
}
