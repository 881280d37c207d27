//! A driver that fails on purpose: what a run does when its device is lost, or full, can be tested on any machine.

use fusedpo::backend::gpu::driver::{Arg, Driver, Grid, Kernel, MatMul};
use fusedpo::{Error, Result};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Passes calls on to another driver until the `n`-th; from there on every call fails, as a lost device's do.
pub struct FaultyDriver<D: Driver> {
    inner: D,
    calls: AtomicU64,
    fails_at: u64,
    why: String,
}

impl<D: Driver> FaultyDriver<D> {
    /// The first `healthy` calls succeed; all others give [`Error::Device`] with `why`.
    pub fn new(inner: D, healthy: u64, why: &str) -> Self {
        FaultyDriver { inner, calls: AtomicU64::new(0), fails_at: healthy, why: why.to_owned() }
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn call(&self) -> Result<()> {
        match self.calls.fetch_add(1, Ordering::Relaxed) < self.fails_at {
            true => Ok(()),
            false => Err(Error::Device(self.why.clone())),
        }
    }
}

impl<D: Driver> Driver for FaultyDriver<D> {
    type Event = D::Event;
    type Graph = D::Graph;

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
    fn description(&self) -> String {
        self.inner.description()
    }
    fn max_shared(&self) -> usize {
        self.inner.max_shared()
    }
    fn memory(&self) -> Result<(usize, usize)> {
        self.call()?;
        self.inner.memory()
    }
    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.call()?;
        self.inner.alloc(bytes)
    }
    unsafe fn free(&self, at: u64) {
        // SAFETY: as the caller promised; so everywhere below.
        unsafe { self.inner.free(at) };
    }
    fn alloc_host(&self, bytes: usize) -> Result<u64> {
        self.call()?;
        self.inner.alloc_host(bytes)
    }
    unsafe fn free_host(&self, at: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.inner.free_host(at) };
    }
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.upload(to, from) }
    }
    unsafe fn upload_from(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.upload_from(to, from, bytes) }
    }
    unsafe fn download(&self, to: &mut [u8], from: u64) -> Result<()> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.download(to, from) }
    }
    unsafe fn download_to(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.download_to(to, from, bytes) }
    }
    unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.copy(to, from, bytes) }
    }
    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.clear(at, bytes) }
    }
    fn event(&self) -> Result<D::Event> {
        self.call()?;
        self.inner.event()
    }
    fn record(&self, event: &D::Event) -> Result<()> {
        self.call()?;
        self.inner.record(event)
    }
    fn wait(&self, event: &D::Event) -> Result<()> {
        self.call()?;
        self.inner.wait(event)
    }
    fn synchronize(&self) -> Result<()> {
        self.call()?;
        self.inner.synchronize()
    }
    unsafe fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Result<()> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.launch(kernel, grid, args) }
    }
    unsafe fn matmul(&self, product: &MatMul) -> Result<()> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.matmul(product) }
    }
    fn tune(&self, file: &Path) -> Result<()> {
        self.inner.tune(file)
    }
    fn begin(&self) -> Result<()> {
        self.call()?;
        self.inner.begin()
    }
    fn end(&self) -> Result<D::Graph> {
        // Also when the device is lost: the inner driver must not stay in the middle of a recording.
        let graph = self.inner.end();
        self.call().and(graph)
    }
    unsafe fn replay(&self, graph: &D::Graph) -> Result<()> {
        self.call()?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.replay(graph) }
    }
}
