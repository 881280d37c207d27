//! The stream that all is enqueued on, the one beside it, and points of both.

use super::error::error;
use crate::error::{Error, Result};
use cudarc::driver::result;
use cudarc::driver::sys::{CUevent, CUevent_flags, CUevent_wait_flags, CUresult};
use cudarc::driver::{CudaContext, CudaStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A point of a stream.
pub struct Event {
    handle: CUevent,
    context: Arc<CudaContext>,
}
// SAFETY: the handle is a name; the driver API is thread-safe.
unsafe impl Send for Event {}
// SAFETY: calls on an event may overlap: the driver API is thread-safe.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Event> {
        let handle = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(error("make an event"))?;
        Ok(Event { handle, context: context.clone() })
    }

    /// Makes it where `stream` is now.
    pub(super) fn record(&self, stream: &CudaStream) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { result::event::record(self.handle, stream.cu_stream()) }.map_err(error("record an event"))
    }

    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: it is alive.
        unsafe { result::event::synchronize(self.handle) }.map_err(error("finish what was enqueued"))
    }

    pub(super) fn reached(&self) -> Result<bool> {
        // SAFETY: it is alive.
        match unsafe { result::event::query(self.handle) } {
            Err(e) if e.0 == CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            asked => asked.map(|()| true).map_err(error("finish what was enqueued")),
        }
    }

    /// Makes what is enqueued on `later` wait for all that is on `first`.
    fn order(&self, later: &CudaStream, first: &CudaStream) -> Result<()> {
        self.record(first)?;
        let none = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: all are alive.
        unsafe { result::stream::wait_event(later.cu_stream(), self.handle, none) }.map_err(error("order two streams"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made by `new`, destroyed once. A failure leaves nothing to do.
            let _ = unsafe { result::event::destroy(self.handle) };
        }
    }
}

/// The second stream, and how the two wait for each other.
struct Side {
    stream: Arc<CudaStream>,
    /// How far each was when the other began to wait for it.
    forked: Event,
    joined: Event,
}

/// A stream, and a second one, once something went there.
pub(super) struct Streams {
    main: Arc<CudaStream>,
    side: OnceLock<Side>,
    is_aside: AtomicBool,
}

impl Streams {
    pub fn new(context: &Arc<CudaContext>) -> Result<Streams> {
        let main = context.new_stream().map_err(error("make a stream"))?;
        Ok(Streams { main, side: OnceLock::new(), is_aside: AtomicBool::new(false) })
    }

    /// The stream that everything is enqueued on, but what goes aside.
    pub fn main(&self) -> &Arc<CudaStream> {
        &self.main
    }

    /// The stream that is enqueued on now.
    pub fn now(&self) -> &Arc<CudaStream> {
        let side = self.side.get().filter(|_| self.is_aside.load(Ordering::Relaxed));
        side.map_or(&self.main, |side| &side.stream)
    }

    /// Refuses what has no place on the second stream.
    pub fn not_aside(&self, what: &str) -> Result<()> {
        match self.is_aside.load(Ordering::Relaxed) {
            true => Err(Error::Device(format!("cannot {what} on the second stream"))),
            false => Ok(()),
        }
    }

    /// Enqueues on the second stream from here on, after all that is on the first.
    pub fn aside(&self) -> Result<()> {
        self.not_aside("go aside")?;
        let side = match self.side.get() {
            Some(side) => side,
            None => {
                let context = self.main.context();
                let stream = context.new_stream().map_err(error("make a stream"))?;
                let side = Side { stream, forked: Event::new(context)?, joined: Event::new(context)? };
                self.side.get_or_init(|| side)
            }
        };
        side.forked.order(&side.stream, &self.main)?;
        self.is_aside.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Enqueues on the first stream again.
    pub fn back(&self) {
        self.is_aside.store(false, Ordering::Relaxed);
    }

    /// Makes what is enqueued on the first stream wait for all that is on the second.
    pub fn rejoin(&self) -> Result<()> {
        self.side.get().map_or(Ok(()), |side| side.joined.order(&self.main, &side.stream))
    }

    /// Waits for all that is on either.
    pub fn synchronize(&self) -> Result<()> {
        let side = self.side.get().map(|side| &side.stream);
        side.into_iter()
            .chain([&self.main])
            .try_for_each(|s| s.synchronize())
            .map_err(error("finish what was enqueued"))
    }
}
