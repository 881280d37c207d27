//! Kernels by themselves: GB/s of the least possible traffic and TFLOP/s, as a share of this device's ceilings.
//!
//! `cargo bench --bench kernels [-- FILTER]`. On a GPU the time is the device's, between two CUDA events; buffers rotate so
//! that together they are larger than its L2; the ceilings (a device copy, an 8192^3 product) are measured first, in the same
//! run. Without a GPU it says so and times the CPU backend's ops on smaller shapes. Data are random in both.

mod batched;
mod clock;
mod head;
mod simple;

use clock::{Bench, Clock};
use criterion::Criterion;
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::gpu::cuda::{CudaDriver, unavailable};
use half::bf16;
use std::time::Duration;

fn benches<B: Clock>(bench: &mut Bench<'_, B>) {
    simple::benches(bench);
    batched::benches(bench);
    head::benches(bench);
}

fn main() {
    let short = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300));
    let mut criterion = short.measurement_time(Duration::from_secs(2)).configure_from_args();
    match unavailable() {
        None => {
            let gpu = Gpu::<_, bf16>::new(CudaDriver::open(0).expect("the GPU opens")).expect("device memory");
            let narrow = gpu.with_bf16_logits().expect("device memory");
            let mut bench = Bench::new(&gpu, &mut criterion);
            benches(&mut bench);
            head::narrow(&mut bench.over(&narrow));
        }
        Some(why) => {
            println!("no GPU is timed here: {why}\ntimed instead: the CPU backend's ops in f32");
            let cpu = Cpu::<f32>::new().expect("the CPU");
            benches(&mut Bench::new(&cpu, &mut criterion));
        }
    }
    criterion.final_summary();
}
