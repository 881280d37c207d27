//! Whole DPO steps by model shape and lengths, random weights and tokens: seconds, tokens/s, pairs/s, MFU, peak memory, and
//! the time by kernel family. `cargo bench --bench step -- --help` lists the options.
//!
//! On a GPU where one can be used, else on the CPU backend, on small shapes: it says which. A line of JSON for every case
//! goes to `--json FILE`. `--model` prints the arithmetic of the same steps instead, docs/step-model.md.

#[path = "../machine/mod.rs"]
mod machine;
mod moved;
mod predict;
mod shapes;
mod timed;

use clap::Parser;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::gpu::cuda::{CudaDriver, unavailable};
use fusedpo::backend::*;
use fusedpo::batch::MicroBatch;
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::error::Result;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{Model, ParamTable};
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::memory::{Budgets, MemoryPlan};
use fusedpo::train::metrics::Totals;
use fusedpo::train::optim::{OptimOptions, Optimizer};
use fusedpo::train::team::Ranks;
use fusedpo::train::trained::{Learns, Trained};
use moved::Moved;
use predict::{Flops, Work};
use rayon::prelude::*;
use serde_json::{Value, json};
use shapes::{LONGEST, MIXES, Mix, Numbers, SHAPES, Shape};
use std::time::Instant;
use timed::{FAMILIES, Timed};

/// DPO steps by model shape and lengths.
#[derive(Parser)]
struct Args {
    /// Model shapes: 26m, 135m, 0.5b, 1b, 3b, 7b [default: those that suit the device]
    #[arg(long, value_delimiter = ',')]
    shapes: Vec<String>,
    /// Lengths: hh, imdb, tldr, ultrafeedback
    #[arg(long, value_delimiter = ',')]
    mixes: Vec<String>,
    /// Pairs a step [default: 64; 8 on the CPU]
    #[arg(long)]
    pairs: Option<usize>,
    /// Token slots of a micro-batch [default: 16384; 1024 on the CPU]
    #[arg(long)]
    slots: Option<usize>,
    /// Steps that are timed, after one that is not; their median counts. One more is taken apart by kernel family
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// cpu, cuda, or auto: a GPU where one can be used
    #[arg(long, default_value = "auto", value_parser = ["auto", "cpu", "cuda"])]
    device: String,
    /// bf16 or f32 [default: bf16; f32 on the CPU]
    #[arg(long, value_parser = ["bf16", "f32"])]
    dtype: Option<String>,
    /// Keep each layer's input alone and compute the layer again in the backward pass
    #[arg(long)]
    recompute: bool,
    /// File for one JSON object a case
    #[arg(long)]
    json: Option<std::path::PathBuf>,
    /// Print the arithmetic of the steps (docs/step-model.md) and measure nothing
    #[arg(long)]
    model: bool,
    /// Ignored: cargo's own
    #[arg(long, hide = true)]
    bench: bool,
}

const SPEC: LossSpec = LossSpec::of(LossType::Sigmoid).beta(0.1);

/// What a device can do, measured.
struct Ceiling {
    /// FLOP/s, and of what.
    flops: f64,
    of: &'static str,
}

fn main() {
    let args = Args::parse();
    if args.model {
        return predict::print();
    }
    let gpu = match args.device.as_str() {
        "cpu" => false,
        "cuda" => true,
        _ => match unavailable() {
            None => true,
            Some(why) => {
                println!("no GPU is timed here: {why}\ntimed instead: the CPU backend, on small shapes");
                false
            }
        },
    };
    let ran = match (gpu, args.dtype.as_deref()) {
        (true, Some("f32")) => cuda().and_then(|d| run(Gpu::<_, f32>::new(d)?, &args, true)),
        (true, _) => cuda().and_then(|d| run(Gpu::<_, half::bf16>::new(d)?, &args, true)),
        (false, Some("bf16")) => Cpu::<f32>::with(GemmPrecision::Bf16).and_then(|be| run(be, &args, false)),
        (false, _) => Cpu::<f32>::new().and_then(|be| run(be, &args, false)),
    };
    if let Err(e) = ran {
        eprintln!("step: {e}");
        std::process::exit(1);
    }
}

fn cuda() -> Result<CudaDriver> {
    CudaDriver::open(0)
}

fn run<B: Backend>(be: B, args: &Args, gpu: bool) -> Result<()> {
    let native = args.dtype.as_deref() != Some("bf16");
    let ceiling = match machine::fma_peak().filter(|_| !gpu && native) {
        Some(gflops) => Ceiling { flops: gflops * 1e9, of: "multiply-adds in registers" },
        None => Ceiling { flops: largest_product(&be, if gpu { 8192 } else { 2048 })?, of: "its largest product" },
    };
    println!("{}; ceiling {:.3} TFLOP/s ({})", be.description(), ceiling.flops / 1e12, ceiling.of);
    println!(
        "MFU: FLOPs that the step cannot do without, a second, as a share of the ceiling; families: of a step that waits after every op"
    );
    let be = Timed::new(be);
    let chosen = |given: &[String], default: &[&str]| -> Vec<String> {
        if given.is_empty() { default.iter().map(|s| s.to_string()).collect() } else { given.to_vec() }
    };
    let shapes = chosen(&args.shapes, if gpu { &["135m", "0.5b", "1b", "3b", "7b"] } else { &["26m", "135m"] });
    let mut file = args.json.as_ref().map(|p| std::fs::File::create(p).expect("the JSON file can be written"));
    for name in shapes {
        let shape = SHAPES.iter().find(|s| s.name == name);
        let shape = shape.ok_or_else(|| fusedpo::Error::usage(format!("--shapes {name}: no such shape")))?;
        // Every mix on one shape, the longest on the others.
        let all = name == if gpu { "0.5b" } else { "26m" };
        let mixes =
            chosen(&args.mixes, if all { &["hh", "imdb", "tldr", "ultrafeedback"] } else { &["ultrafeedback"] });
        for name in mixes {
            let mix = MIXES.iter().find(|m| m.name == name);
            let mix = mix.ok_or_else(|| fusedpo::Error::usage(format!("--mixes {name}: no such lengths")))?;
            let Some(row) = case(&be, args, gpu, shape, mix, &ceiling)? else { continue };
            if let Some(file) = &mut file {
                use std::io::Write;
                writeln!(file, "{row}").expect("the JSON file can be written");
            }
        }
    }
    Ok(())
}

/// FLOP/s of an `n` x `n` x `n` product.
fn largest_product<B: Backend>(be: &B, n: usize) -> Result<f64> {
    let random = || -> Result<B::Buf<B::Act>> {
        let values: Vec<B::Act> =
            noise(n * n, 1.0).into_iter().map(|v| fusedpo::backend::Float::from_f64(v.into())).collect();
        let mut buf = be.zeros("bench", n * n)?;
        be.upload(be.view_mut(&mut buf, 0..n * n), &values)?;
        Ok(buf)
    };
    let (x, w, mut y) = (random()?, random()?, be.zeros("bench", n * n)?);
    let mut product = || -> Result<()> {
        be.linear_fwd(LinearFwd {
            y: be.view_mut(&mut y, 0..n * n),
            x: be.view(&x, 0..n * n),
            w: be.view(&w, 0..n * n),
            out: n,
            inp: n,
            write: Write::Set,
        })?;
        be.synchronize()
    };
    product()?;
    let seconds = machine::best(5, || product().expect("it ran before"));
    Ok(2.0 * (n * n * n) as f64 / seconds)
}

/// Numbers in `-scale..scale`.
fn noise(n: usize, scale: f32) -> Vec<f32> {
    const PART: usize = 1 << 16;
    let mut values = vec![0f32; n];
    values.par_chunks_mut(PART).enumerate().for_each(|(i, part)| {
        let mut numbers = Numbers(i as u64 * 7919 + 1);
        part.iter_mut().for_each(|v| *v = (numbers.next() as f32 * 2.0 - 1.0) * scale);
    });
    values
}

/// Weights as large as those of a model before training, norms 1.
fn weights(table: &ParamTable) -> Vec<f32> {
    let mut values = noise(table.len, 0.03);
    values[table.decay_len..].fill(1.0);
    values
}

/// One shape with one mix; `None`, having said why, where it does not fit.
fn case<B: Backend>(
    be: &Timed<B>,
    args: &Args,
    gpu: bool,
    shape: &Shape,
    mix: &Mix,
    ceiling: &Ceiling,
) -> Result<Option<Value>> {
    let (pairs, slots) =
        (args.pairs.unwrap_or(if gpu { 64 } else { 8 }), args.slots.unwrap_or(if gpu { 16384 } else { 1024 }));
    let config = shape.config();
    let (_dir, data) = shapes::data(mix, pairs * 2, config.vocab_size);
    let options = PlanOptions {
        objective: Objective::Preference,
        batch_size: pairs,
        token_budget: None,
        seed: 0,
        shuffle: false,
    };
    let least = Planner::new(&data, &options)?.least_budget();
    let plan = Planner::new(&data, &PlanOptions { token_budget: Some(slots.max(least)), ..options })?;
    let mut batches = plan.step(0, 0)?;
    let purpose = if args.recompute { Purpose::Recompute } else { Purpose::Train };
    let optim = OptimOptions::default();
    let learns = Learns { optim: &optim, trained: &Trained::All, synced: false, ranks: Ranks::ALONE };
    let (memory, purpose) = match Budgets::of([&plan]).training(be.inner(), &config, LONGEST, (purpose, learns)) {
        // What does not fit is said below.
        Err(_) => (MemoryPlan::training(be.inner(), &config, LONGEST, plan.capacity(), (purpose, &optim))?, purpose),
        fitting => fitting?,
    };
    // Weights made here stay on the host as long as the model, and on the CPU that is the same memory.
    let copy = if gpu { 0 } else { 8 * ParamTable::new(&config)?.len };
    let what = format!("{} {}", shape.name, mix.name);
    if let Some(device) = be.memory()?.filter(|d| memory.bytes() + copy > d.free) {
        let gib = |b: usize| b as f64 / f64::from(1 << 30);
        println!("{what}: left out, it needs {:.1} GiB of {:.1} free", gib(memory.bytes() + copy), gib(device.free));
        return Ok(None);
    }
    be.reserve(&memory.table)?;
    let values = weights(&ParamTable::new(&config)?);
    let model = Model::from_f32(be, config, values, LONGEST)?;
    let mut engine = Engine::new(be, model, plan.capacity(), purpose)?;
    let mut optimizer = Optimizer::new(be, &mut engine.state, &optim)?;
    // The policy is its own reference, as where a run begins: coefficients are those of real pairs, not underflowing ones.
    for mb in &mut batches {
        let mut logps = engine.score(mb)?.into_iter();
        mb.set_ref_logps(|_| Ok(logps.next().expect("a log-prob a response")))?;
    }
    let mut families = [0.0; 5];
    let mut ops = 0;
    let mut seconds = Vec::new();
    let last = args.steps + 1;
    for n in 0..=last {
        be.wait(n == last);
        be.take();
        let begun = Instant::now();
        step(&mut engine, &mut optimizer, &batches)?;
        match n {
            _ if n == last => (families, ops) = be.take(),
            0 => {}
            _ => seconds.push(begun.elapsed().as_secs_f64()),
        }
    }
    seconds.sort_by(f64::total_cmp);
    let measured =
        Measured { seconds: seconds[seconds.len() / 2], families, ops, peak: be.memory()?.map_or(0, |m| m.used) };
    let moved = Moved::of(shape, &Work::of(&batches), size_of::<B::Act>() as f64, purpose == Purpose::TrainInFull, 1.0);
    Ok(Some(report(&what, shape, mix, &batches, &measured, (&memory, &moved), ceiling)))
}

fn step<B: Backend>(engine: &mut Engine<'_, B>, optimizer: &mut Optimizer<B>, batches: &[MicroBatch]) -> Result<()> {
    engine.clear_grads()?;
    let mut totals = Totals::default();
    let scale = fusedpo::train::means::scales(batches.iter().map(MicroBatch::outline), &SPEC);
    // As in a run: the numbers of one micro-batch are read while the next one is under way.
    let mut late = Vec::new();
    for mb in batches {
        late.push((engine.start(mb, &SPEC, scale)?, mb));
        if late.len() > 1 {
            let (first, of) = late.remove(0);
            engine.collect(first, of, &SPEC, &mut totals)?;
        }
    }
    for (rest, of) in late {
        engine.collect(rest, of, &SPEC, &mut totals)?;
    }
    optimizer.step(engine.be, &mut engine.state, 1e-6)?;
    let norm = optimizer.settle(engine.be, &mut engine.state.clock)?;
    assert!(norm.is_finite() && totals.mean_loss().is_finite(), "the step is not finite");
    Ok(())
}

struct Measured {
    seconds: f64,
    families: [f64; 5],
    ops: u64,
    /// Bytes in use on the device.
    peak: usize,
}

fn report(
    what: &str,
    shape: &Shape,
    mix: &Mix,
    batches: &[MicroBatch],
    m: &Measured,
    (memory, moved): (&MemoryPlan, &Moved),
    ceiling: &Ceiling,
) -> Value {
    let work = Work::of(batches);
    let flops = Flops::of(shape, &work);
    let (rate, all) = (flops.total() / m.seconds, m.families.iter().sum::<f64>());
    let mib = |b: usize| b >> 20;
    let shares: Vec<String> =
        FAMILIES.iter().zip(m.families).map(|(name, s)| format!("{name} {:.0} %", 100.0 * s / all)).collect();
    println!(
        "{what}: {:.3} s a step, {:.1} pairs/s, {:.0} tokens/s ({:.0} with prompts repeated), {:.2} TFLOP/s, MFU {:.1} %, memory {} MiB planned, {} MiB in use",
        m.seconds,
        work.pairs / m.seconds,
        work.rows / m.seconds,
        work.repeated / m.seconds,
        rate / 1e12,
        100.0 * rate / ceiling.flops,
        mib(memory.bytes()),
        mib(m.peak)
    );
    println!("  {}; {} ops in {} micro-batches", shares.join(", "), m.ops, batches.len());
    let gb: Vec<String> = moved.families().iter().map(|(name, b)| format!("{name} {:.2}", b / 1e9)).collect();
    println!("  moves by arithmetic, GB: {}", gb.join(", "));
    let moved: serde_json::Map<String, Value> =
        moved.families().iter().map(|(name, b)| (name.to_string(), Value::from(*b))).collect();
    let by_family: serde_json::Map<String, Value> =
        FAMILIES.iter().map(|f| f.to_string()).zip(m.families.map(Value::from)).collect();
    json!({
        "shape": shape.name, "mix": mix.name, "pairs": work.pairs, "micro_batches": batches.len(), "rows": work.rows,
        "rows_with_prompts_repeated": work.repeated, "predictions": work.predictions, "seconds": m.seconds,
        "pairs_per_second": work.pairs / m.seconds, "tokens_per_second": work.rows / m.seconds,
        "flop": flops.total(), "flop_per_second": rate, "ceiling_flop_per_second": ceiling.flops, "ceiling_of": ceiling.of,
        "mfu": rate / ceiling.flops, "planned_bytes": memory.bytes(), "used_bytes": m.peak, "ops": m.ops,
        "family_seconds": by_family, "moved_bytes": moved,
    })
}
