//! The kernels on a machine without a GPU: the same `.cu`, compiled by the C++ compiler and run on fibers
//! (`kernels/host`). For tests: it finds what a GPU would not tell, and is slow.
//!
//! [`HostDriver::new`] runs everything at once. [`HostDriver::deferred`] runs nothing before somebody waits: host memory
//! that is read or changed too early then gives wrong numbers, as it may on a GPU. Both record and replay.

mod driver;
mod matmul;
mod work;

pub use driver::{HostDriver, HostKernel};
