//! What a host driver has been asked for and has not done yet.

use crate::backend::gpu::driver::{Arg, Grid, Kernel, MatMul};
use std::collections::VecDeque;
use std::sync::Arc;

/// One call of a driver.
#[derive(Debug)]
pub enum Work {
    /// Bytes that were copied when the call was made, to the device.
    Upload {
        /// Target.
        to: u64,
        /// The bytes.
        from: Vec<u8>,
    },
    /// A copy between the device and memory of the host that both can reach: it is read when the copy runs.
    Pinned {
        /// Target.
        to: u64,
        /// Source.
        from: u64,
        /// Length.
        bytes: usize,
    },
    /// A copy on the device.
    Copy {
        /// Target.
        to: u64,
        /// Source.
        from: u64,
        /// Length.
        bytes: usize,
    },
    /// Zero bytes.
    Clear {
        /// Target.
        at: u64,
        /// Length.
        bytes: usize,
    },
    /// A kernel.
    Launch {
        /// Which.
        kernel: Kernel,
        /// Geometry.
        grid: Grid,
        /// Arguments.
        args: Box<[Arg]>,
    },
    /// A product.
    MatMul(MatMul),
    /// An event is reached.
    Mark(u64),
    /// Recorded work.
    Graph(Arc<[Work]>),
}

/// Work in the order of the calls.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Whether calls wait here until somebody waits for them.
    pub defers: bool,
    pub waiting: VecDeque<Work>,
    /// Filled between `begin` and `end`.
    pub recording: Option<Vec<Work>>,
    /// Events recorded so far, and the last one reached.
    pub marks: u64,
    pub reached: u64,
    /// Why a call failed after it had been accepted.
    pub failed: Option<String>,
}
