//! From `--device` and `--dtype` to a backend: the one `match` over devices.

use crate::backend::Backend;
use crate::backend::cpu::{Cpu, GemmPrecision};
use crate::backend::gpu::cuda::{self, CudaDriver, PaperDriver};
use crate::backend::gpu::driver::Driver;
use crate::backend::gpu::specs::{GpuName, Sheet};
use crate::backend::gpu::{Gpu, GpuFloat};
use crate::backend::{Device, Storage};
use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::train::choices::{DeviceChoice, DtypeChoice, LogitsChoice};
use crate::train::forecast::On;
use half::bf16;
use std::path::Path;

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

/// Whether `device` means a GPU: `auto` takes one where one can be used.
pub fn is_gpu(device: DeviceChoice) -> bool {
    match device {
        DeviceChoice::Cpu => false,
        DeviceChoice::Cuda | DeviceChoice::CudaAt(_) => true,
        DeviceChoice::Auto => cuda::unavailable().is_none(),
    }
}

/// What a run on `device` refuses of its options once it has a backend, where that is the CPU: known before. Errors: `logits` in bf16,
/// and `plans` of products.
pub fn check_options(device: DeviceChoice, logits: LogitsChoice, plans: Option<&Path>) -> Result<()> {
    // A GPU is not looked for where nothing depends on it.
    if (logits != LogitsChoice::Bf16 && plans.is_none()) || is_gpu(device) {
        return Ok(());
    }
    match plans {
        Some(file) => Cpu::<f32>::with(GemmPrecision::Native)?.tune_products(file),
        None => Err(bf16_logits_on_a_cpu()),
    }
}

/// Runs `task` where the user asked for it. `auto` takes a GPU where one can be used.
///
/// Errors: logits in bf16 where nothing is gained by them.
pub fn dispatch<T: Task>(device: DeviceChoice, precision: (DtypeChoice, LogitsChoice), task: T) -> Result<T::Out> {
    dispatch_owning(device, precision, Lent(task))
}

/// [`dispatch`] for one of the processes of `comm`: of several on a machine each takes a GPU of its own, as long as there are some.
///
/// Errors: as of [`dispatch`]; several processes, and one GPU for all by its number.
pub fn dispatch_one_of<T: Task>(
    comm: &dyn Comm,
    device: DeviceChoice,
    precision: (DtypeChoice, LogitsChoice),
    task: T,
) -> Result<T::Out> {
    match (device, comm.world().size) {
        (DeviceChoice::CudaAt(_), 2..) => Err(Error::usage(format!(
            "`device` {device}: of several processes each takes the GPU of its number on its machine: use `device` cuda, and \
             CUDA_VISIBLE_DEVICES says which GPUs there are"
        ))),
        _ => on(comm.local_rank(), device, precision, Lent(task)),
    }
}

/// [`dispatch`] of work that takes its backend for its own.
pub fn dispatch_owning<T: OwningTask>(
    device: DeviceChoice,
    precision: (DtypeChoice, LogitsChoice),
    task: T,
) -> Result<T::Out> {
    on(0, device, precision, task)
}

fn on<T: OwningTask>(
    local: usize,
    device: DeviceChoice,
    (dtype, logits): (DtypeChoice, LogitsChoice),
    task: T,
) -> Result<T::Out> {
    let on_gpu = is_gpu(device);
    let open = || open(device, local);
    match (on_gpu, dtype) {
        (false, _) if logits == LogitsChoice::Bf16 => Err(bf16_logits_on_a_cpu()),
        (true, DtypeChoice::Auto | DtypeChoice::Bf16) => task.run(gpu::<bf16>(open()?, logits)?),
        (true, DtypeChoice::F32) => task.run(gpu::<f32>(open()?, logits)?),
        (false, DtypeChoice::Auto | DtypeChoice::F32) => task.run(Cpu::<f32>::with(GemmPrecision::Native)?),
        (false, DtypeChoice::Bf16) => task.run(Cpu::<f32>::with(GemmPrecision::Bf16)?),
    }
}

/// Work on a device that need not be there.
pub trait PaperTask {
    /// What it gives.
    type Out;
    /// Does it on `be`, which can only count; `on` is what the device has taken before `be` allocates anything, and what is known of
    /// its speed.
    fn run<B: Backend>(self, be: &B, on: On<B>) -> Result<Self::Out>;
}

/// The device of a plan.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paper {
    /// Bytes of its memory, where they are given.
    pub memory: Option<usize>,
    /// The GPU, by its name.
    pub gpu: Option<GpuName>,
}

/// [`dispatch`] to a backend that can only count, of the device that `paper` says; where that says nothing, of this machine's.
///
/// `auto` is the GPU where one can be used, and where one or its memory is given: that of this machine needs not be.
///
/// Errors: as of [`dispatch`]; a GPU of unknown memory; a GPU by name where a CPU is asked for.
pub fn on_paper<T: PaperTask>(
    device: DeviceChoice,
    (dtype, logits): (DtypeChoice, LogitsChoice),
    paper: Paper,
    task: T,
) -> Result<T::Out> {
    let on_gpu = match device {
        DeviceChoice::Cpu if paper.gpu.is_some() => {
            return Err(Error::usage("`gpu` names one, and `device` cpu asks for none: leave one of them out"));
        }
        DeviceChoice::CudaAt(_) if paper.gpu.is_some() || paper.memory.is_some() => {
            return Err(Error::usage(format!(
                "`device` {device} is a GPU of this machine, and `gpu` and `device_memory` say what another is: use `device` cuda"
            )));
        }
        DeviceChoice::Cpu => false,
        DeviceChoice::Cuda | DeviceChoice::CudaAt(_) => true,
        DeviceChoice::Auto => paper.memory.is_some() || paper.gpu.is_some() || cuda::unavailable().is_none(),
    };
    if on_gpu {
        let gpu = PaperGpu::of(paper, device)?;
        return match dtype {
            DtypeChoice::Auto | DtypeChoice::Bf16 => paper_gpu::<bf16, T>(gpu, logits, task),
            DtypeChoice::F32 => paper_gpu::<f32, T>(gpu, logits, task),
        };
    }
    if logits == LogitsChoice::Bf16 {
        return Err(bf16_logits_on_a_cpu());
    }
    let precision = if dtype == DtypeChoice::Bf16 { GemmPrecision::Bf16 } else { GemmPrecision::Native };
    let be = Cpu::<f32>::with(precision)?;
    let own = be.memory()?.map_or(0, |m| m.used);
    let be = match paper.memory {
        Some(memory) => be.with_free(memory.saturating_sub(own)),
        None => be,
    };
    let here = Some(Cpu::<f32>::with(precision)?);
    task.run(&be, On { beside: vec![("the program, now".into(), own)], here, assumed: None })
}

/// What is known of a GPU that is planned for.
struct PaperGpu {
    memory: usize,
    sheet: Option<Sheet>,
}

impl PaperGpu {
    fn of(paper: Paper, device: DeviceChoice) -> Result<Self> {
        let sheet = paper.gpu.map(GpuName::sheet);
        let here = match (paper.memory, sheet, cuda::unavailable()) {
            (Some(memory), _, _) => return Ok(Self { memory, sheet }),
            (None, Some(sheet), _) => return Ok(Self { memory: sheet.memory, sheet: Some(sheet) }),
            (None, None, None) => open(device, 0)?,
            (None, None, Some(why)) => {
                return Err(Error::usage(format!(
                    "`gpu`, or `device_memory`: which GPU is to be planned for? Here is none: {why}"
                )));
            }
        };
        let sheet = GpuName::of_driver(&here.description()).map(GpuName::sheet);
        Ok(Self { memory: here.memory()?.1, sheet })
    }
}

fn paper_gpu<A: GpuFloat, T: PaperTask>(gpu: PaperGpu, logits: LogitsChoice, task: T) -> Result<T::Out> {
    let PaperGpu { memory, sheet } = gpu;
    let mut beside: Vec<_> = PaperDriver::beside().map(|(name, bytes)| (name.to_owned(), bytes)).into();
    // What a backend takes when it is made.
    let scratch = Gpu::<_, A>::new(PaperDriver::new(0))?.memory_table();
    beside.push(("sums of ops".into(), scratch.iter().map(|(_, bytes)| bytes).sum()));
    let be = Gpu::<_, A>::new(PaperDriver::new(memory.saturating_sub(beside[2].1)))?;
    let assumed = sheet.map(|sheet| sheet.assumed(A::NAME == <bf16 as Storage>::NAME));
    let on = On { beside, here: None, assumed };
    match logits {
        LogitsChoice::F32 => task.run(&be, on),
        LogitsChoice::Bf16 => task.run(&be.with_bf16_logits()?, on),
    }
}

fn bf16_logits_on_a_cpu() -> Error {
    Error::usage("`logits_dtype` bf16: the CPU's logits are f32; leave it out, or use `device` cuda")
}

/// The GPU that `device` names, else that of process `local` of this machine.
///
/// Errors: there are some, and none of that number.
fn open(device: DeviceChoice, local: usize) -> Result<CudaDriver> {
    // The first is there or is said not to be; how many there are only others ask.
    let at = match device {
        DeviceChoice::CudaAt(n) => usize::from(n),
        _ if local == 0 => 0,
        _ => local % cuda::gpus()?.max(1),
    };
    if matches!(device, DeviceChoice::CudaAt(1..)) && cuda::unavailable().is_none() {
        let (gpus, hidden) = (cuda::gpus()?, "CUDA_VISIBLE_DEVICES may hide some");
        if at >= gpus {
            let last = if gpus > 1 { format!("cuda:0 to cuda:{}", gpus - 1) } else { "cuda:0 alone".into() };
            return Err(Error::usage(format!("`device` {device}: there is {last} ({hidden})")));
        }
    }
    CudaDriver::open(at)
}

/// A GPU with logits as asked for; what it held before that was known is given back.
fn gpu<A: GpuFloat>(driver: CudaDriver, logits: LogitsChoice) -> Result<Gpu<CudaDriver, A>> {
    let gpu = Gpu::new(driver)?;
    match logits {
        LogitsChoice::F32 => Ok(gpu),
        LogitsChoice::Bf16 => gpu.with_bf16_logits(),
    }
}
