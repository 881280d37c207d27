//! `fusedpo doctor`: what this machine offers, and what to do about the rest.

use super::flags::Flags;
use crate::backend::Device;
use crate::backend::cpu::{Cpu, GemmPrecision};
use crate::backend::gpu::cuda::{self, CudaDriver};
use crate::backend::gpu::driver::Driver;
use crate::error::Result;
use crate::say;
use crate::units;

/// Runs the command.
pub fn run(flags: &Flags) -> Result<()> {
    say!("fusedpo {}", env!("CARGO_PKG_VERSION"));
    let cpu = Cpu::<f32>::with(GemmPrecision::Native)?;
    say!("cpu     {}", cpu.description());
    say!("        numerics {}", cpu.fingerprint());
    say!("        products in f32: {}", cpu.f32_path());
    match Cpu::<f32>::with(GemmPrecision::Bf16) {
        Ok(be) => {
            say!("        --dtype bf16: {}", be.fingerprint());
            say!("        products in bf16: {}", be.bf16_path().unwrap_or("none"));
        }
        Err(e) => say!("        --dtype bf16: not here: {}", flags.error(&e)),
    }
    if let Some(bytes) = memory_available() {
        say!("memory  {} available", units::bytes(bytes));
    }
    match cuda::unavailable() {
        Some(why) => say!("gpu     none that can be used: {}", flags.reason(&why)),
        None => match CudaDriver::open(0) {
            Ok(gpu) => {
                let (free, all) = gpu.memory()?;
                say!("gpu     {}, {} of {} free", gpu.description(), units::bytes(free), units::bytes(all));
                say!("        kernels: {}", gpu.kernels());
            }
            Err(e) => say!("gpu     found, but: {}", flags.error(&e)),
        },
    }
    Ok(())
}

/// Linux's own estimate of what can be had without swapping.
fn memory_available() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
}
