//! `fusedpo doctor`: what this machine offers, and what to do about the rest.

use super::flags::Flags;
use crate::backend::Device;
use crate::backend::cpu::{Cpu, GemmPrecision};
use crate::backend::gpu::cuda::{self, CudaDriver};
use crate::backend::gpu::driver::Driver;
use crate::error::Result;
use crate::units;

/// Runs the command.
pub fn run(flags: &Flags) -> Result<()> {
    println!("fusedpo {}", env!("CARGO_PKG_VERSION"));
    let cpu = Cpu::<f32>::with(GemmPrecision::Native)?;
    println!("cpu     {}", cpu.description());
    println!("        numerics {}", cpu.fingerprint());
    match Cpu::<f32>::with(GemmPrecision::Bf16) {
        Ok(be) => println!("        --dtype bf16: {}", be.fingerprint()),
        Err(e) => println!("        --dtype bf16: not here: {}", flags.error(&e)),
    }
    if let Some(bytes) = memory_available() {
        println!("memory  {} available", units::bytes(bytes));
    }
    match cuda::unavailable() {
        Some(why) => println!("gpu     none that can be used: {}", flags.reason(&why)),
        None => match CudaDriver::open(0) {
            Ok(gpu) => {
                let (free, all) = gpu.memory()?;
                println!("gpu     {}, {} of {} free", gpu.description(), units::bytes(free), units::bytes(all));
            }
            Err(e) => println!("gpu     found, but: {}", flags.error(&e)),
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
