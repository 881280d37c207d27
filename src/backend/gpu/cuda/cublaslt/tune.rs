//! Times the algorithms that the library proposes for a product, on the device, on output of its own.

use super::call::{Call, failed, lost};
use super::library::Library;
use crate::backend::gpu::cuda::error::error;
use crate::backend::gpu::driver::{MatMul, Matrix};
use crate::error::{Error, Result};
use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;
use cudarc::driver::{CudaStream, result, sys};

/// Runs of an algorithm that are timed, after one that is not.
const RUNS: usize = 3;
/// Of the time of the library's first choice, what another may take at most to be taken instead. In a run a product's input lies in
/// no cache and the GPU is at its power limit: what is hardly faster here was slower there (docs/results/2026-11-26-h100.md).
const WORTH: f32 = 0.95;

/// Device memory for output that nobody reads.
struct Output(u64);

impl Output {
    fn new(bytes: usize) -> Result<Output> {
        // SAFETY: the content is written by products, and read by nobody but them.
        let at = unsafe { result::malloc_sync(bytes) };
        at.map(Output).map_err(|e| {
            if e.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return error("allocate memory to time a product")(e);
            }
            let why = "leave out `matmul_plans`, or use a smaller `token_budget` until the plans are made";
            Error::Device(format!("out of device memory: timing a product needs {bytes} bytes ({:?}): {why}", e.0))
        })
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; the driver waits for products that write it.
        let _ = unsafe { result::free_sync(self.0) };
    }
}

/// An event that knows the time.
struct Clock(sys::CUevent);

impl Clock {
    fn new() -> Result<Clock> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map(Clock).map_err(error("make an event"))
    }
    fn read(&self, stream: &CudaStream) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { result::event::record(self.0, stream.cu_stream()) }.map_err(error("record an event"))
    }
    /// Milliseconds from `start` to here; waits.
    fn since(&self, start: &Clock) -> Result<f32> {
        // SAFETY: both events were recorded.
        unsafe {
            result::event::synchronize(self.0).map_err(error("time a product"))?;
            result::event::elapsed(start.0, self.0).map_err(error("time a product"))
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// The fastest of `candidates` for `p`, or the first where none is clearly faster. Neither `p`'s output nor what it adds to is touched: a
/// product that accumulates would count twice.
///
/// # Safety
/// The operands of `p` cover their shapes.
pub(super) unsafe fn fastest(
    library: &Library,
    p: &MatMul,
    call: &Call,
    candidates: &[cublasLtMatmulAlgo_t],
) -> Result<cublasLtMatmulAlgo_t> {
    let output = Output::new(p.m * p.d.ld * p.d.dtype.size())?;
    let aside = MatMul { d: Matrix { at: output.0, ..p.d }, c: p.c.map(|_| output.0), ..*p };
    let (start, end) = (Clock::new()?, Clock::new()?);
    let (mut best, mut first): (Option<(f32, &cublasLtMatmulAlgo_t)>, f32) = (None, f32::INFINITY);
    let mut refused = None;
    'candidates: for algorithm in candidates {
        let mut least = f32::INFINITY;
        for run in 0..=RUNS {
            start.read(&library.stream)?;
            // SAFETY: the inputs are the caller's promise; the output was allocated for the shape just now.
            if let Err(e) = unsafe { library.enqueue(&library.stream, &aside, call, algorithm) } {
                // One that does not run after all is not the fastest, unless it took the device with it.
                if lost().is_some() {
                    return Err(failed("time a product")(e));
                }
                refused = Some(e);
                continue 'candidates;
            }
            end.read(&library.stream)?;
            let ms = end.since(&start)?;
            if run > 0 {
                least = least.min(ms);
            }
        }
        if best.is_none() {
            first = least;
        }
        if best.is_none_or(|(ms, _)| least < ms && least < WORTH * first) {
            best = Some((least, algorithm));
        }
    }
    match (best, refused) {
        (Some((_, best)), _) => Ok(*best),
        (None, Some(e)) => Err(failed("time a product")(e)),
        (None, None) => Err(Error::Device("cuBLASLt: no algorithm to choose from".into())),
    }
}
