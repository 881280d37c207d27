//! Recorded work: what is enqueued between `begin` and `end` happens when the graph is replayed.

use super::error::error;
use crate::backend::gpu::lock::lock;
use crate::error::{Error, Result};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUstreamCaptureStatus};
use cudarc::driver::{CudaGraph, CudaStream};
use std::ffi::c_void;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

/// Recorded work.
pub struct Recorded(Mutex<CudaGraph>);
// SAFETY: CUDA asks that calls on one graph do not overlap, which the mutex sees to; any thread may make them.
unsafe impl Send for Recorded {}
// SAFETY: the mutex sees to it that calls do not overlap.
unsafe impl Sync for Recorded {}

impl Recorded {
    /// Loads `graph`, so that its first replay is like any other.
    pub(super) fn new(graph: CudaGraph) -> Result<Recorded> {
        graph.upload().map_err(error("load a graph"))?;
        Ok(Recorded(Mutex::new(graph)))
    }

    pub(super) fn replay(&self) -> Result<()> {
        lock(&self.0).launch().map_err(error("launch a graph"))
    }
}

/// Memory that is given back.
pub(super) enum Memory {
    Device(u64),
    Host(u64),
}

impl Memory {
    /// Frees it; a failure leaves nothing to do.
    ///
    /// # Safety
    ///
    /// It was allocated so, nobody frees it again, and the host does not use it from here on.
    pub unsafe fn free(self) {
        let _ = match self {
            // SAFETY: the caller's promise; the driver waits for work that uses it.
            Memory::Device(at) => unsafe { result::free_sync(at) },
            // SAFETY: the caller's promise.
            Memory::Host(at) => unsafe { result::free_host(at as *mut c_void) },
        };
    }
}

/// Who records, if anybody.
#[derive(Default)]
pub(super) struct Recording {
    /// The thread that does, between `begin` and `end`.
    by: Mutex<Option<ThreadId>>,
    /// What was given back in between: freeing it at once would end the recording.
    freed: Mutex<Vec<Memory>>,
}

impl Recording {
    pub fn is_on(&self) -> bool {
        lock(&self.by).is_some()
    }

    /// Refuses what cannot be part of recorded work: it would spoil the recording, or happen once instead of every time.
    pub fn refuse(&self, what: &str) -> Result<()> {
        match self.is_on() {
            true => Err(Error::Device(format!("cannot {what} while work is being recorded"))),
            false => Ok(()),
        }
    }

    /// Before anything that a recording takes in: what another thread enqueued on the stream would become part of it.
    pub fn may_enqueue(&self) -> Result<()> {
        match *lock(&self.by) {
            Some(by) if by != thread::current().id() => {
                Err(Error::Device("another thread is recording work on this GPU".into()))
            }
            _ => Ok(()),
        }
    }

    /// Keeps what is given back until the recording ends.
    pub fn keep(&self, memory: Memory) {
        lock(&self.freed).push(memory);
    }

    /// Records what this thread enqueues on `stream` from here on.
    pub fn begin(&self, stream: &CudaStream) -> Result<()> {
        // Other threads may use the GPU otherwise meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(error("start recording"))?;
        *lock(&self.by) = Some(thread::current().id());
        Ok(())
    }

    /// What was recorded on `stream`, and what was given back meanwhile.
    pub fn end(&self, stream: &Arc<CudaStream>) -> (Result<CudaGraph>, Vec<Memory>) {
        *lock(&self.by) = None;
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        if graph.is_err() {
            leave(stream);
        }
        let graph = graph.map_err(error("end recording"));
        let graph = graph.and_then(|g| g.ok_or_else(|| Error::Device("CUDA: nothing was recorded".into())));
        (graph, std::mem::take(&mut *lock(&self.freed)))
    }
}

/// Where ending a recording did not come to its end, `stream` must not go on recording: nothing could be given back.
fn leave(stream: &CudaStream) {
    let active = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE;
    if stream.capture_status().is_ok_and(|status| status == active) {
        // SAFETY: the stream is alive and records; the graph is nobody else's.
        let _ = unsafe { result::stream::end_capture(stream.cu_stream()) }
            .and_then(|graph| unsafe { result::graph::destroy(graph) });
    }
}
