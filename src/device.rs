//! From `--device` and `--dtype` to a backend: the one `match` over devices.

use crate::backend::Backend;
use crate::backend::cpu::{Cpu, GemmPrecision};
use crate::error::{Error, Result};
use crate::train::config::{DeviceChoice, DtypeChoice};

/// Work that any backend can do.
pub trait Task {
    /// What it gives.
    type Out;
    /// Does it on `be`.
    fn run<B: Backend>(self, be: &B) -> Result<Self::Out>;
}

/// Runs `task` where the user asked for it.
pub fn dispatch<T: Task>(device: DeviceChoice, dtype: DtypeChoice, task: T) -> Result<T::Out> {
    match device {
        DeviceChoice::Cuda => {
            Err(Error::Device("--device cuda: this build has no CUDA engine yet; use --device cpu".into()))
        }
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            let precision = match dtype {
                DtypeChoice::Auto | DtypeChoice::F32 => GemmPrecision::Native,
                DtypeChoice::Bf16 => GemmPrecision::Bf16,
            };
            task.run(&Cpu::<f32>::with(precision)?)
        }
    }
}
