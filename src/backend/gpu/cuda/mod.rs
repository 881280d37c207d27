//! A real GPU through the CUDA driver API, loaded at run time: one binary serves machines with and without one.
//!
//! One context, no event tracking; one stream, on which everything is ordered by being enqueued, and a second beside it where ranks
//! exchange something. Nothing waits but what [`Driver`](super::driver::Driver) says. Errors of earlier work surface there, or at any
//! later call.

mod carve_out;
mod cublaslt;
mod driver;
mod error;
mod functions;
mod images;
mod machine;
mod nvtx;
mod paper;
mod recording;
mod streams;

pub use driver::CudaDriver;
pub use images::BUILT;
pub use machine::{gpus, unavailable, unavailable_at};
pub use paper::PaperDriver;
