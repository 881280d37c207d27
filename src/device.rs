//! From `--device` and `--dtype` to a backend: the one `match` over devices.

use crate::backend::Backend;
use crate::backend::Device;
use crate::backend::cpu::{Cpu, GemmPrecision};
use crate::backend::gpu::cuda::{self, CudaDriver, PaperDriver};
use crate::backend::gpu::driver::Driver;
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

/// Work that takes its backend for its own.
pub trait OwningTask {
    /// What it gives.
    type Out;
    /// Does it on `be`.
    fn run<B: Backend>(self, be: B) -> Result<Self::Out>;
}

/// Work that is lent its backend.
struct Lent<T>(T);

impl<T: Task> OwningTask for Lent<T> {
    type Out = T::Out;
    fn run<B: Backend>(self, be: B) -> Result<T::Out> {
        self.0.run(&be)
    }
}

/// Runs `task` where the user asked for it. `auto` takes a GPU where one can be used.
///
/// Errors: logits in bf16 where nothing is gained by them.
pub fn dispatch<T: Task>(device: DeviceChoice, precision: (DtypeChoice, LogitsChoice), task: T) -> Result<T::Out> {
    dispatch_owning(device, precision, Lent(task))
}

/// [`dispatch`] of work that takes its backend for its own.
pub fn dispatch_owning<T: OwningTask>(
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
        (false, _) if logits == LogitsChoice::Bf16 => Err(bf16_logits_on_a_cpu()),
        (true, DtypeChoice::Auto | DtypeChoice::Bf16) => task.run(gpu::<bf16>(logits)?),
        (true, DtypeChoice::F32) => task.run(gpu::<f32>(logits)?),
        (false, DtypeChoice::Auto | DtypeChoice::F32) => task.run(Cpu::<f32>::with(GemmPrecision::Native)?),
        (false, DtypeChoice::Bf16) => task.run(Cpu::<f32>::with(GemmPrecision::Bf16)?),
    }
}

/// Work on a device that need not be there.
pub trait PaperTask {
    /// What it gives.
    type Out;
    /// Does it on `be`, which can only count; `beside` is what the device has taken before `be` allocates anything.
    fn run<B: Backend>(self, be: &B, beside: Vec<(String, usize)>) -> Result<Self::Out>;
}

/// [`dispatch`] to a backend that can only count, of a device with `memory` bytes; without, of this machine's.
///
/// `auto` is the GPU where one can be used, and where the memory is given: that of this machine needs not be.
///
/// Errors: as of [`dispatch`]; a GPU of unknown memory.
pub fn on_paper<T: PaperTask>(
    device: DeviceChoice,
    (dtype, logits): (DtypeChoice, LogitsChoice),
    memory: Option<usize>,
    task: T,
) -> Result<T::Out> {
    let on_gpu = match device {
        DeviceChoice::Cpu => false,
        DeviceChoice::Cuda => true,
        DeviceChoice::Auto => memory.is_some() || cuda::unavailable().is_none(),
    };
    if on_gpu {
        let memory = match (memory, cuda::unavailable()) {
            (Some(given), _) => given,
            (None, None) => CudaDriver::open(0)?.memory()?.1,
            (None, Some(why)) => {
                return Err(Error::usage(format!(
                    "`device_memory`: how much has the GPU to plan for? Here is none: {why}"
                )));
            }
        };
        return match dtype {
            DtypeChoice::Auto | DtypeChoice::Bf16 => paper_gpu::<bf16, T>(memory, logits, task),
            DtypeChoice::F32 => paper_gpu::<f32, T>(memory, logits, task),
        };
    }
    if logits == LogitsChoice::Bf16 {
        return Err(bf16_logits_on_a_cpu());
    }
    let precision = if dtype == DtypeChoice::Bf16 { GemmPrecision::Bf16 } else { GemmPrecision::Native };
    let be = Cpu::<f32>::with(precision)?;
    let own = be.memory()?.map_or(0, |m| m.used);
    let be = match memory {
        Some(memory) => be.with_free(memory.saturating_sub(own)),
        None => be,
    };
    task.run(&be, vec![("the program, now".into(), own)])
}

fn paper_gpu<A: GpuFloat, T: PaperTask>(memory: usize, logits: LogitsChoice, task: T) -> Result<T::Out> {
    let mut beside: Vec<_> = PaperDriver::beside().map(|(name, bytes)| (name.to_owned(), bytes)).into();
    // What a backend takes when it is made.
    let scratch = Gpu::<_, A>::new(PaperDriver::new(0))?.memory_table();
    beside.push(("sums of ops".into(), scratch.iter().map(|(_, bytes)| bytes).sum()));
    let be = Gpu::<_, A>::new(PaperDriver::new(memory.saturating_sub(beside[2].1)))?;
    match logits {
        LogitsChoice::F32 => task.run(&be, beside),
        LogitsChoice::Bf16 => task.run(&be.with_bf16_logits()?, beside),
    }
}

fn bf16_logits_on_a_cpu() -> Error {
    Error::usage("`logits_dtype` bf16: the CPU's logits are f32; leave it out, or use `device` cuda")
}

/// The GPU, with logits as asked for; what it held before that was known is given back.
fn gpu<A: GpuFloat>(logits: LogitsChoice) -> Result<Gpu<CudaDriver, A>> {
    let gpu = Gpu::new(CudaDriver::open(0)?)?;
    match logits {
        LogitsChoice::F32 => Ok(gpu),
        LogitsChoice::Bf16 => gpu.with_bf16_logits(),
    }
}
