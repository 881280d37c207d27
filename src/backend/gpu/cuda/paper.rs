//! A GPU that is not there: what can be planned for it. It has memory by its number of bytes, and nothing can be done on it.

use super::cublaslt::WORKSPACE;
use crate::backend::gpu::driver::{Arg, Driver, Grid, Kernel, MatMul};
use crate::error::{Error, Result};
use std::path::Path;

/// What the driver takes for a context with these kernels loaded: on an H100 (driver 580) a run had 581 MiB in use before it
/// allocated anything, of which the library's workspace is 32 and the sums of ops are 16 (docs/results/2026-11-26-h100.md).
const CONTEXT: usize = 533 << 20;

/// A GPU by its memory alone.
pub struct PaperDriver {
    memory: usize,
}

impl PaperDriver {
    /// One of `memory` bytes.
    pub fn new(memory: usize) -> Self {
        Self { memory }
    }

    /// Name and bytes of what is taken before a backend allocates anything.
    pub fn beside() -> [(&'static str, usize); 2] {
        [("CUDA context and kernels, as on an H100", CONTEXT), ("cuBLASLt workspace", WORKSPACE)]
    }
}

fn nothing<T>(doing: &str) -> Result<T> {
    Err(Error::Device(format!("{doing}: this GPU is planned for, and not there")))
}

#[allow(clippy::missing_safety_doc)] // as the trait's
impl Driver for PaperDriver {
    type Event = ();
    type Graph = ();

    fn fingerprint(&self) -> String {
        "paper".into()
    }
    fn description(&self) -> String {
        "CUDA".into()
    }
    fn max_shared(&self) -> usize {
        0
    }
    fn memory(&self) -> Result<(usize, usize)> {
        let beside: usize = Self::beside().iter().map(|(_, bytes)| bytes).sum();
        Ok((self.memory.saturating_sub(beside), self.memory))
    }
    fn alloc(&self, _: usize) -> Result<u64> {
        Ok(0) // never looked at: nothing below does anything
    }
    unsafe fn free(&self, _: u64) {}
    fn alloc_host(&self, _: usize) -> Result<u64> {
        Ok(0)
    }
    unsafe fn free_host(&self, _: u64) {}
    unsafe fn upload(&self, _: u64, _: &[u8]) -> Result<()> {
        nothing("upload")
    }
    unsafe fn upload_from(&self, _: u64, _: u64, _: usize) -> Result<()> {
        nothing("upload")
    }
    unsafe fn download(&self, _: &mut [u8], _: u64) -> Result<()> {
        nothing("download")
    }
    unsafe fn download_to(&self, _: u64, _: u64, _: usize) -> Result<()> {
        nothing("download")
    }
    unsafe fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        nothing("copy")
    }
    unsafe fn clear(&self, _: u64, _: usize) -> Result<()> {
        nothing("clear")
    }
    fn event(&self) -> Result<()> {
        Ok(())
    }
    fn record(&self, (): &()) -> Result<()> {
        nothing("record an event")
    }
    fn wait(&self, (): &()) -> Result<()> {
        Ok(()) // for nothing: no event was ever recorded
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    unsafe fn launch(&self, kernel: Kernel, _: Grid, _: &[Arg]) -> Result<()> {
        nothing(kernel.op)
    }
    unsafe fn matmul(&self, _: &MatMul) -> Result<()> {
        nothing("multiply")
    }
    fn tune(&self, _: &Path) -> Result<()> {
        Ok(()) // plans of products take no memory of their own
    }
    fn begin(&self) -> Result<()> {
        nothing("record")
    }
    fn end(&self) -> Result<()> {
        nothing("record")
    }
    unsafe fn replay(&self, (): &()) -> Result<()> {
        nothing("replay")
    }
}
