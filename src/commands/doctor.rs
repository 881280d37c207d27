//! `fusedpo doctor`: what this machine offers, and what to do about the rest.

use super::flags::Flags;
use crate::backend::Device;
use crate::backend::cpu::{Cpu, GemmPrecision};
use crate::backend::gpu::cuda::{self, CudaDriver};
use crate::backend::gpu::driver::Driver;
use crate::choice::Choice;
use crate::comm::launch::Place;
use crate::comm::{mpi, nccl};
use crate::error::Result;
use crate::say;
use crate::units;
use serde_json::{Value, json};

/// Options of `fusedpo doctor`.
#[derive(clap::Args)]
pub struct DoctorArgs {
    /// Print one JSON object (docs/json.md has its keys)
    #[arg(long)]
    pub json: bool,
}

/// What was found, in words or as the reason why it is not.
struct Found {
    cpu: [String; 3],
    /// Numerics, and how products are computed.
    bf16: std::result::Result<[String; 2], String>,
    memory: Option<usize>,
    /// By their numbers; one entry where there is none.
    gpus: Vec<std::result::Result<Gpu, NoGpu>>,
    /// Where a launcher says that this process stands.
    place: Option<Place>,
    /// The MPI library by which processes would find each other.
    mpi: std::result::Result<String, String>,
    /// The NCCL library by which their GPUs would.
    nccl: std::result::Result<String, String>,
}

struct Gpu {
    description: String,
    free: usize,
    all: usize,
    kernels: String,
}

/// No GPU can be used, and whether there is one.
struct NoGpu {
    there: bool,
    why: String,
}

/// Runs the command.
pub fn run(args: &DoctorArgs, flags: &Flags, place: Option<&Place>) -> Result<()> {
    let found = look(flags, place)?;
    match args.json {
        true => say::json(&as_json(&found)),
        false => print(&found),
    }
    Ok(())
}

fn look(flags: &Flags, place: Option<&Place>) -> Result<Found> {
    let cpu = Cpu::<f32>::with(GemmPrecision::Native)?;
    let bf16 = match Cpu::<f32>::with(GemmPrecision::Bf16) {
        Ok(be) => Ok([be.fingerprint(), be.bf16_path().unwrap_or("none").to_owned()]),
        Err(e) => Err(flags.error(&e)),
    };
    // A driver that cannot say how many there are says why when the first is asked for.
    let gpus = 0..cuda::gpus().unwrap_or(0).max(1);
    let gpus = gpus.map(|ordinal| look_at_gpu(ordinal, flags)).collect();
    // What a memory plan has to do with.
    let memory = cpu.memory()?.map(|memory| memory.free);
    let cpu = [cpu.description(), cpu.fingerprint(), cpu.f32_path().to_owned()];
    let mpi = mpi::find(place.map(|place| place.launcher), &|name| std::env::var(name).ok()).map(|found| found.line());
    let nccl = nccl::find(&|name| std::env::var(name).ok()).map(|found| found.line().to_owned());
    Ok(Found { cpu, bf16, memory, gpus, place: place.copied(), mpi, nccl })
}

fn look_at_gpu(ordinal: usize, flags: &Flags) -> std::result::Result<Gpu, NoGpu> {
    if let Some(why) = cuda::unavailable_at(ordinal) {
        return Err(NoGpu { there: false, why: flags.reason(&why) });
    }
    let found = CudaDriver::open(ordinal).and_then(|gpu| {
        let (free, all) = gpu.memory()?;
        Ok(Gpu { description: gpu.description(), free, all, kernels: gpu.kernels() })
    });
    found.map_err(|e| NoGpu { there: true, why: flags.error(&e) })
}

fn print(found: &Found) {
    let [description, numerics, products] = &found.cpu;
    say!("fusedpo {}", env!("CARGO_PKG_VERSION"));
    say!("cpu     {description}");
    say!("        numerics {numerics}");
    say!("        products in f32: {products}");
    match &found.bf16 {
        Ok([numerics, products]) => {
            say!("        --dtype bf16: {numerics}");
            say!("        products in bf16: {products}");
        }
        Err(why) => say!("        --dtype bf16: not here: {why}"),
    }
    if let Some(bytes) = found.memory {
        say!("memory  {} available", units::bytes(bytes));
    }
    for (ordinal, gpu) in found.gpus.iter().enumerate() {
        let name = if found.gpus.len() > 1 { format!("cuda:{ordinal}, ") } else { String::new() };
        match gpu {
            Ok(gpu) => {
                say!("gpu     {name}{}, {} of {} free", gpu.description, units::bytes(gpu.free), units::bytes(gpu.all));
                say!("        kernels: {}", gpu.kernels);
            }
            Err(NoGpu { there: false, why }) => say!("gpu     {name}none that can be used: {why}"),
            Err(NoGpu { there: true, why }) => say!("gpu     {name}found, but: {why}"),
        }
    }
    match &found.place {
        Some(place) => say!("ranks   {}", place.line()),
        None => say!("ranks   one process: no launcher in the environment"),
    }
    match &found.mpi {
        Ok(line) => say!("        mpi: {line}"),
        Err(why) => say!("        mpi: none that can be used: {why}"),
    }
    match &found.nccl {
        Ok(line) => say!("        nccl: {line}"),
        Err(why) => say!("        nccl: none that can be used: {why}"),
    }
}

fn as_json(found: &Found) -> Value {
    let [description, numerics, products] = &found.cpu;
    let bf16 = match &found.bf16 {
        Ok([numerics, products]) => json!({ "usable": true, "numerics": numerics, "products": products }),
        Err(why) => json!({ "usable": false, "reason": why }),
    };
    let gpu = |found: &std::result::Result<Gpu, NoGpu>| match found {
        Ok(Gpu { description, free, all, kernels }) => json!({
            "usable": true, "description": description, "memory_free_bytes": free, "memory_bytes": all, "kernels": kernels,
        }),
        Err(NoGpu { there, why }) => json!({ "usable": false, "found": there, "reason": why }),
    };
    let library = |found: &std::result::Result<String, String>| match found {
        Ok(line) => json!({ "usable": true, "description": line }),
        Err(why) => json!({ "usable": false, "reason": why }),
    };
    let (mpi, nccl) = (library(&found.mpi), library(&found.nccl));
    let ranks = match &found.place {
        Some(place) => json!({
            "launcher": place.launcher.name(), "rank": place.rank, "size": place.size,
            "local_rank": place.local_rank, "local_size": place.local_size, "mpi": mpi, "nccl": nccl,
        }),
        None => json!({ "launcher": null, "mpi": mpi, "nccl": nccl }),
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cpu": {
            "description": description, "threads": rayon::current_num_threads(),
            "f32": { "numerics": numerics, "products": products }, "bf16": bf16,
        },
        "memory_available_bytes": found.memory,
        "gpu": gpu(&found.gpus[0]), "gpus": found.gpus.iter().map(gpu).collect::<Vec<_>>(),
        "ranks": ranks,
    })
}
