//! How ops are timed and against what: device time, buffers in rotation, ceilings of the same run.

use criterion::{BenchmarkId, Criterion, Throughput};
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::gpu::cuda::CudaDriver;
use fusedpo::backend::*;
use half::bf16;
use std::time::{Duration, Instant};

/// A backend whose calls can be timed.
pub trait Clock: Backend {
    /// Times `n` calls.
    fn time(&self, n: u64, f: impl FnMut(u64)) -> Duration;
    /// Bytes that all buffers of a bench together must pass.
    const CACHE: usize;
    /// Rows of the ops.
    const ROWS: usize;
    /// Parameters of the updates.
    const PARAMETERS: usize;
    /// Edge of the product that is the ceiling.
    const EDGE: usize;
}

impl Clock for Cpu<f32> {
    const CACHE: usize = 96 << 20;
    const ROWS: usize = 1024;
    const PARAMETERS: usize = 4 << 20;
    const EDGE: usize = 1024;
    fn time(&self, n: u64, f: impl FnMut(u64)) -> Duration {
        let start = Instant::now();
        (0..n).for_each(f);
        start.elapsed()
    }
}

impl Clock for Gpu<CudaDriver, bf16> {
    const CACHE: usize = 512 << 20; // the largest L2 so far has 126 MB
    const ROWS: usize = 16384;
    const PARAMETERS: usize = 64 << 20;
    const EDGE: usize = 8192;
    fn time(&self, n: u64, f: impl FnMut(u64)) -> Duration {
        let stream = self.driver().stream();
        let flags = cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
        let start = stream.record_event(Some(flags)).expect("an event");
        (0..n).for_each(f);
        let end = stream.record_event(Some(flags)).expect("an event");
        end.synchronize().expect("the device finishes");
        Duration::from_secs_f64(f64::from(start.elapsed_ms(&end).expect("both events are past")) / 1e3)
    }
}

/// `len` pseudo-random numbers around 0.
pub fn random<B: Backend, T: Float>(be: &B, len: usize) -> B::Buf<T> {
    let mut buf = be.zeros::<T>("bench", len).expect("device memory");
    let mut state = len as u64 | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        T::from_f64((state >> 40) as f64 / f64::from(1 << 23) - 1.0)
    };
    let block: Vec<T> = (0..len.min(1 << 20)).map(|_| next()).collect();
    for start in (0..len).step_by(block.len().max(1)) {
        let n = block.len().min(len - start);
        be.upload(be.view_mut(&mut buf, start..start + n), &block[..n]).expect("upload");
    }
    buf
}

/// What an op must do at least, and which ceiling it is held against.
#[derive(Clone, Copy)]
pub struct Work {
    /// Each input read once, each output written once.
    pub bytes: usize,
    /// Floating-point operations, where arithmetic is the ceiling.
    pub flop: Option<usize>,
    /// Bytes of a set of buffers: decides how many sets rotate.
    set: usize,
}

impl Work {
    /// Held against the copy.
    pub fn bytes(bytes: usize) -> Work {
        Work { bytes, flop: None, set: bytes }
    }
    /// Held against the product.
    pub fn flop(flop: usize, bytes: usize) -> Work {
        Work { bytes, flop: Some(flop), set: bytes }
    }
    /// The op touches a part of its buffers only: these are larger.
    pub fn within(self, set: usize) -> Work {
        Work { set, ..self }
    }
}

/// Ceilings of this device: bytes/s of a copy (read plus written), FLOP/s of a large product.
#[derive(Clone, Copy)]
pub struct Ceilings {
    copy: f64,
    product: f64,
}

/// A backend, where its times go, and what they are a share of.
pub struct Bench<'a, B: Clock> {
    /// What is timed.
    pub be: &'a B,
    criterion: &'a mut Criterion,
    ceilings: Ceilings,
}

impl<'a, B: Clock> Bench<'a, B> {
    /// The same for another backend of this device.
    pub fn over<'b>(&'b mut self, be: &'b B) -> Bench<'b, B> {
        Bench { be, criterion: self.criterion, ceilings: self.ceilings }
    }

    /// Measures the ceilings first.
    pub fn new(be: &'a B, criterion: &'a mut Criterion) -> Self {
        Bench { be, criterion, ceilings: ceilings(be) }
    }

    /// Times `op(set)` over as many sets of buffers as pass the cache; gives the best seconds of a call, or nothing where
    /// the command line filters it out.
    pub fn run<S>(
        &mut self,
        name: &str,
        shape: &str,
        work: Work,
        set: impl Fn(&B) -> S,
        op: impl Fn(&B, &mut S),
    ) -> Option<f64> {
        let be = self.be;
        let (mut best, mut sets) = (f64::INFINITY, Vec::new());
        let mut group = self.criterion.benchmark_group(name);
        group.throughput(match work.flop {
            Some(flop) => Throughput::Elements(flop as u64),
            None => Throughput::Bytes(work.bytes as u64),
        });
        group.bench_function(BenchmarkId::from_parameter(shape), |b| {
            if sets.is_empty() {
                sets = (0..B::CACHE.div_ceil(work.set).clamp(2, 256)).map(|_| set(be)).collect();
                op(be, &mut sets[0]);
                be.synchronize().expect("the op works");
            }
            let n = sets.len();
            b.iter_custom(|iterations| {
                let t = be.time(iterations, |i| op(be, &mut sets[i as usize % n]));
                best = best.min(t.as_secs_f64() / iterations as f64);
                t
            });
        });
        group.finish();
        best.is_finite().then(|| {
            self.say(name, shape, work, best);
            best
        })
    }

    /// One line: rate, share of the ceiling, time.
    pub fn say(&self, name: &str, shape: &str, work: Work, seconds: f64) {
        let (amount, ceiling, unit) = match work.flop {
            Some(flop) => (flop as f64 / 1e12, self.ceilings.product / 1e12, "TFLOP/s"),
            None => (work.bytes as f64 / 1e9, self.ceilings.copy / 1e9, "GB/s"),
        };
        let rate = amount / seconds;
        let share = 100.0 * rate / ceiling;
        println!(
            "{name} {shape}: {rate:.4} {unit}, {share:.1} % of the {ceiling:.4} measured, {:.2} us",
            1e6 * seconds
        );
    }
}

/// The best of several timings of `f`, a few calls at a time after a warm-up, in seconds.
fn best_of<B: Clock>(be: &B, mut f: impl FnMut(u64)) -> f64 {
    f(0);
    (0..5).map(|_| be.time(4, &mut f).as_secs_f64() / 4.0).fold(f64::INFINITY, f64::min)
}

fn ceilings<B: Clock>(be: &B) -> Ceilings {
    let (len, edge) = (B::CACHE / 2, B::EDGE);
    let from = random::<B, f32>(be, len / 4);
    let mut to = be.zeros::<f32>("bench", len / 4).expect("device memory");
    let copy = best_of(be, |_| be.copy(be.view_mut(&mut to, 0..len / 4), be.view(&from, 0..len / 4)).expect("copy"));
    let (x, w) = (random::<B, B::Act>(be, edge * edge), random::<B, B::Act>(be, edge * edge));
    let mut y = be.zeros::<B::Act>("bench", edge * edge).expect("device memory");
    let n = edge * edge;
    let product = best_of(be, |_| {
        let y = be.view_mut(&mut y, 0..n);
        be.linear_fwd(LinearFwd {
            y,
            x: be.view(&x, 0..n),
            w: be.view(&w, 0..n),
            out: edge,
            inp: edge,
            write: Write::Set,
        })
        .expect("product");
    });
    let c = Ceilings { copy: 2.0 * len as f64 / copy, product: 2.0 * (edge as f64).powi(3) / product };
    let (copy, product) = (c.copy / 1e9, c.product / 1e12);
    println!("{}: copy {copy:.1} GB/s, {edge}^3 product {product:.4} TFLOP/s", be.description());
    c
}
