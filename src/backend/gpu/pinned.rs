//! Host memory that the device copies from or to while both work on: page-locked, with an event that says when the last
//! copy is done. Its content can only be reached through a wait for that event.

use super::check;
use super::context::{Gpu, GpuFloat};
use super::driver::{Driver, View, ViewMut};
use crate::backend::ops::element::Storage;
use crate::error::{Error, Result, expect_len};
use std::marker::PhantomData;
use std::sync::Arc;

/// `len` elements of page-locked host memory.
pub struct Pinned<D: Driver, T: Storage> {
    driver: Arc<D>,
    at: u64,
    len: usize,
    /// Recorded after the last copy.
    copied: D::Event,
    /// A copy may be under way that no event speaks of.
    lost: bool,
    element: PhantomData<T>,
}

impl<D: Driver, T: Storage> Drop for Pinned<D, T> {
    fn drop(&mut self) {
        // A copy that no event speaks of is waited for with all else. One that cannot be waited for may still run: then the memory
        // is lost with its device.
        let told = !self.lost && self.driver.wait(&self.copied).is_ok();
        if told || self.driver.synchronize().is_ok() {
            // SAFETY: `at` came from this driver's `alloc_host`, and no copy uses it any more.
            unsafe { self.driver.free_host(self.at) };
        }
    }
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// `len` zeros. Errors: [`Error::Device`], naming what was asked for.
    pub fn pinned<T: Storage>(&self, len: usize) -> Result<Pinned<D, T>> {
        // What is only counted is device memory.
        let len = if self.heap.counting { len.min(1) } else { len };
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| Error::Device(format!("{len} elements of page-locked host memory")))?;
        let copied = self.driver.event()?;
        Ok(Pinned {
            at: self.driver.alloc_host(bytes)?,
            driver: self.driver.clone(),
            len,
            copied,
            lost: false,
            element: PhantomData,
        })
    }
}

impl<D: Driver, T: Storage> Pinned<D, T> {
    /// The content, once the last copy is done.
    pub fn open(&mut self) -> Result<&mut [T]> {
        if self.lost {
            return Err(Error::Device("a copy between host and device failed before".into()));
        }
        self.driver.wait(&self.copied)?;
        // SAFETY: `at` covers `len` elements, of zeros at first and of `T`s since (any bytes are a `T`: it is `Pod`);
        // aligned to 256; no copy is under way, and the next needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at as *mut T, self.len) })
    }

    /// Enqueues a copy of everything to `to`. Errors: [`Error::Shape`] where lengths differ.
    pub fn upload(&mut self, to: ViewMut<T>) -> Result<()> {
        expect_len("upload", "from", self.len, &[("to", to.len)])?;
        // SAFETY: both cover the length; the event below keeps the source from being changed before it was read.
        let done = unsafe { self.driver.upload_from(to.at, self.at, self.len * size_of::<T>()) };
        self.mark(done)
    }

    /// Records the event after copies that were enqueued, or that failed half-way.
    fn mark(&mut self, copies: Result<()>) -> Result<()> {
        let marked = copies.and(self.driver.record(&self.copied));
        self.lost = marked.is_err();
        marked
    }

    /// Enqueues copies of `parts`, one after the other, into the first elements. Errors: [`Error::Shape`] where they do
    /// not fit.
    pub fn download(&mut self, parts: &[View<T>]) -> Result<()> {
        let total: usize = parts.iter().map(View::len).sum();
        check::at_most("download", "parts", total, self.len)?;
        let mut to = self.at;
        let done = parts.iter().try_for_each(|part| {
            let at = to;
            to += (part.len * size_of::<T>()) as u64;
            // SAFETY: a view covers its length of a live buffer; together the parts fit, as checked above; the event
            // below keeps the target from being read too early.
            unsafe { self.driver.download_to(at, part.at, part.len * size_of::<T>()) }
        });
        self.mark(done)
    }
}
