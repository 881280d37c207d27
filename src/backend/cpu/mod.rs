//! The CPU backend: plain Rust, the definition of every op, on every core and with the SIMD that the CPU has.
//!
//! A file a family of ops, under the name of its contract in `ops/`. Underneath them: [`gemm`] (matrix products: blocks and
//! micro-kernels, bf16 ones by what the CPU does best; the same inside attention), [`simd`] (run-time dispatch), `scalar`
//! (arithmetic and fixed-order sums), `par` (dealing rows out to cores), `scratch` (memory that outlives an op). `Cpu<f32>`
//! trains; `Cpu<f64>` is the same code as the tests' oracle.
//!
//! The number of threads never decides a bit: every output element is computed by one task, in an order that depends on
//! sizes alone. Scratch memory is kept between ops, so that from its second use on a size allocates nothing.

mod adapter;
mod attention;
mod batch;
mod check;
mod decode;
mod device;
mod dropout;
mod embed;
#[allow(unsafe_code)] // micro-kernels: pointers and instructions
pub mod gemm;
mod head;
mod linear;
mod loss;
mod narrow;
mod norm;
mod optim;
#[allow(unsafe_code)] // advises the system about memory
mod pages;
mod par;
mod quant;
mod ranks;
mod real;
mod rope;
mod rows;
mod scalar;
mod scratch;
#[allow(unsafe_code)] // calls code for instructions that were detected
pub mod simd;
mod small_state;
mod swiglu;
pub(crate) mod system;

pub use batch::CpuBatch;
pub use device::Cpu;
pub use gemm::GemmPrecision;
pub use real::Real;
pub use scalar::Scalar;
pub use simd::Level;
