//! From `--device` and `--dtype` to a backend: the one `match` over devices.

use crate::backend::Backend;
use crate::backend::cpu::{Cpu, GemmPrecision};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::cuda::{self, CudaDriver};
use crate::error::Result;
use crate::train::choices::{DeviceChoice, DtypeChoice};
use half::bf16;

/// Work that any backend can do.
pub trait Task {
    /// What it gives.
    type Out;
    /// Does it on `be`.
    fn run<B: Backend>(self, be: &B) -> Result<Self::Out>;
}

/// Runs `task` where the user asked for it. `auto` takes a GPU where one can be used.
pub fn dispatch<T: Task>(device: DeviceChoice, dtype: DtypeChoice, task: T) -> Result<T::Out> {
    let gpu = match device {
        DeviceChoice::Cpu => false,
        DeviceChoice::Cuda => true,
        DeviceChoice::Auto => cuda::unavailable().is_none(),
    };
    match (gpu, dtype) {
        (true, DtypeChoice::Auto | DtypeChoice::Bf16) => task.run(&Gpu::<_, bf16>::new(CudaDriver::open(0)?)?),
        (true, DtypeChoice::F32) => task.run(&Gpu::<_, f32>::new(CudaDriver::open(0)?)?),
        (false, DtypeChoice::Auto | DtypeChoice::F32) => task.run(&Cpu::<f32>::with(GemmPrecision::Native)?),
        (false, DtypeChoice::Bf16) => task.run(&Cpu::<f32>::with(GemmPrecision::Bf16)?),
    }
}
