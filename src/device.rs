//! From `--device` and `--dtype` to a backend: the one `match` over devices.

use crate::backend::Backend;
use crate::backend::cpu::{Cpu, GemmPrecision};
use crate::backend::gpu::cuda::{self, CudaDriver};
use crate::backend::gpu::{Gpu, GpuFloat};
use crate::error::{Error, Result};
use crate::train::choices::{DeviceChoice, DtypeChoice, LogitsChoice};
use half::bf16;

/// Work that any backend can do.
pub trait Task {
    /// What it gives.
    type Out;
    /// Does it on `be`.
    fn run<B: Backend>(self, be: &B) -> Result<Self::Out>;
}

/// Runs `task` where the user asked for it. `auto` takes a GPU where one can be used.
///
/// Errors: logits in bf16 where nothing is gained by them.
pub fn dispatch<T: Task>(
    device: DeviceChoice,
    (dtype, logits): (DtypeChoice, LogitsChoice),
    task: T,
) -> Result<T::Out> {
    let on_gpu = match device {
        DeviceChoice::Cpu => false,
        DeviceChoice::Cuda => true,
        DeviceChoice::Auto => cuda::unavailable().is_none(),
    };
    match (on_gpu, dtype) {
        (false, _) if logits == LogitsChoice::Bf16 => {
            Err(Error::usage("`logits_dtype` bf16: the CPU's logits are f32; leave it out, or use `device` cuda"))
        }
        (true, DtypeChoice::Auto | DtypeChoice::Bf16) => task.run(&gpu::<bf16>(logits)?),
        (true, DtypeChoice::F32) => task.run(&gpu::<f32>(logits)?),
        (false, DtypeChoice::Auto | DtypeChoice::F32) => task.run(&Cpu::<f32>::with(GemmPrecision::Native)?),
        (false, DtypeChoice::Bf16) => task.run(&Cpu::<f32>::with(GemmPrecision::Bf16)?),
    }
}

/// The GPU, with logits as asked for; what it held before that was known is given back.
fn gpu<A: GpuFloat>(logits: LogitsChoice) -> Result<Gpu<CudaDriver, A>> {
    let gpu = Gpu::new(CudaDriver::open(0)?)?;
    match logits {
        LogitsChoice::F32 => Ok(gpu),
        LogitsChoice::Bf16 => gpu.with_bf16_logits(),
    }
}
