//! Ops recorded once and enqueued again in one call: a CUDA graph.
//!
//! A graph keeps the addresses of the buffers that its ops were given, not the buffers. It is good for as long as its
//! device gives no memory back.

use super::context::{Gpu, GpuFloat};
use super::driver::Driver;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Recorded ops.
pub struct Graph<D: Driver> {
    // Dropped before the driver.
    graph: D::Graph,
    driver: Arc<D>,
    /// Buffers that the device has given back, now and when it was recorded.
    freed: Arc<AtomicU64>,
    freed_then: u64,
}

impl<D: Driver> Graph<D> {
    pub(super) fn record<A: GpuFloat>(gpu: &Gpu<D, A>, ops: impl FnOnce() -> Result<()>) -> Result<Self> {
        let freed_then = gpu.heap.freed.load(Ordering::Acquire);
        gpu.driver.begin()?;
        let done = ops();
        // In any case, so that the driver works on.
        let graph = gpu.driver.end();
        done?;
        Ok(Graph { graph: graph?, driver: gpu.driver.clone(), freed: gpu.heap.freed.clone(), freed_then })
    }

    pub(super) fn is_current(&self) -> bool {
        self.freed.load(Ordering::Acquire) == self.freed_then
    }

    pub(super) fn replay(&self) -> Result<()> {
        if !self.is_current() {
            return Err(Error::Device("a graph was to be replayed after memory it may use was given back".into()));
        }
        // SAFETY: every address in it was that of a live buffer of this driver, and none was given back since.
        unsafe { self.driver.replay(&self.graph) }
    }
}
