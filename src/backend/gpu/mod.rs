//! The GPU backend: launch wrappers over a [`Driver`](driver::Driver), written once for a real GPU ([`cuda::CudaDriver`]) and for the
//! same kernels on the host ([`host::HostDriver`]).
//!
//! A file a family of ops, named as in `kernels/` and `backend/cpu/`. An op checks every length ([`crate::Error::Shape`]) and
//! the geometry before it launches; a kernel checks none. All that names CUDA is in [`cuda`]. Activations are bf16 (or f32, for checks), statistics and
//! gradients of parameters f32.
//!
//! Within a training step the host reads nothing that the step computes. A micro-batch goes to the device in one copy out
//! of one of two pieces of page-locked memory, so that the host is at most two ahead; statistics come back through such memory and are read while
//! the device works on the next step; passes through the layers can be recorded and replayed as CUDA graphs.

mod adapter;
mod attention;
mod batch;
mod check;
mod context;
pub mod cuda;
mod decode;
mod device;
pub mod driver;
mod dropout;
mod embed;
mod graph;
mod head;
pub mod host;
mod joined;
mod linear;
mod lock;
mod loss;
mod memory;
mod norm;
mod optim;
mod pinned;
mod product;
mod quant;
mod ranks;
mod rope;
mod rows;
mod schedule;
mod small_state;
pub mod specs;
mod swiglu;
mod tiles;

pub use batch::GpuBatch;
pub use context::{Gpu, GpuFloat};
pub use graph::Graph;
pub use memory::Buf;
pub use pinned::Pinned;
