//! What ranks hand each other in a step, by way of each transport: a bucket of gradients that goes to its owners and is added up
//! there, a bucket of weights that is handed out, the blocks of a gradient's norm, and calls of next to nothing.
//!
//! `cargo bench --bench comm [-- FILTER]` starts itself as two ranks (`FUSEDPO_BENCH_RANKS` says otherwise) on this machine: over
//! TCP, and by each MPI whose launcher it finds. Under a launcher it is a rank of that one's job:
//! `mpirun -n 4 --host one:2,two:2 target/release/deps/comm-* --bench`.
//!
//! Rank 0 leads: it tells the others which case is next and how often, and times it from a barrier on. GB/s are those of the bucket:
//! its bytes over the time until all of it is where it belongs. Of that (W - 1)/W leave each of W ranks, and as much comes in.

mod start;

use criterion::{Criterion, Throughput};
use fusedpo::comm::launch::Place;
use fusedpo::comm::tree::{finish, lanes_of, nodes};
use fusedpo::comm::{Comm, Parts, Staging, World, join};
use fusedpo::{Error, Result};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Bytes of a bucket: small ones, and that of a run (`BUCKET` of src/train/shares.rs).
const SIZES: [usize; 3] = [64 << 10, 1 << 20, 16 << 20];

/// Blocks of SmolLM2-135M's gradient, a number in double precision each.
const BLOCKS: usize = 8_211;

/// In the place of a case: the others end.
const END: u64 = u64::MAX;

#[derive(Clone, Copy)]
enum Op {
    /// Every rank has a bucket of f32, as of one lane each; owners add up.
    Gradients,
    /// The same without the sum.
    Exchange,
    /// Every rank has its part of a bucket, and all become it.
    Weights,
    /// Every rank has its part of the norm's blocks.
    Norm,
    /// Every rank has eight bytes to say.
    Gather,
    Barrier,
}

struct Case {
    op: Op,
    name: String,
    /// Of the bucket; 0 where only the time counts.
    bytes: usize,
}

fn cases() -> Vec<Case> {
    let sized = [(Op::Gradients, "gradients, summed"), (Op::Exchange, "gradients, sent"), (Op::Weights, "weights")];
    let size =
        |bytes: usize| if bytes < 1 << 20 { format!("{} KiB", bytes >> 10) } else { format!("{} MiB", bytes >> 20) };
    let of_size =
        |bytes: usize| sized.map(move |(op, what)| Case { op, name: format!("{what}, {}", size(bytes)), bytes });
    let mut all: Vec<Case> = SIZES.into_iter().flat_map(of_size).collect();
    let norm = format!("blocks of the norm, {BLOCKS}");
    let small = [(Op::Norm, norm.as_str()), (Op::Gather, "gather, 8 bytes"), (Op::Barrier, "barrier")];
    all.extend(small.map(|(op, name)| Case { op, name: name.to_owned(), bytes: 0 }));
    all
}

/// What a case sends and receives, made once.
struct Ready<'a> {
    comm: &'a dyn Comm,
    case: &'a Case,
    lengths: Vec<usize>,
    send: Staging,
    receive: Staging,
    sum: Vec<f32>,
}

impl<'a> Ready<'a> {
    fn new(comm: &'a dyn Comm, case: &'a Case) -> Self {
        let World { rank, size, .. } = comm.world();
        let (elements, width) = if matches!(case.op, Op::Norm) { (BLOCKS, 8) } else { (case.bytes / 4, 4) };
        let lengths: Vec<usize> = (0..size).map(|rank| lanes_of(rank, size, elements).len() * width).collect();
        let whole = matches!(case.op, Op::Gradients | Op::Exchange);
        let mut send = Staging::default();
        send.resize(if whole { case.bytes } else { lengths[rank] });
        let numbers = send.bytes().len() / width;
        if width == 4 {
            send.numbers_mut::<f32>().iter_mut().enumerate().for_each(|(i, x)| *x = (i % numbers.max(1)) as f32);
        }
        let mut receive = Staging::default();
        receive.resize(if whole { lengths[rank] * size } else { lengths.iter().sum() });
        Self { comm, case, sum: vec![0.0; lengths[rank] / 4], lengths, send, receive }
    }

    fn once(&mut self) -> Result<()> {
        let World { rank, size, .. } = self.comm.world();
        let Self { comm, send, receive, lengths, sum, .. } = self;
        match self.case.op {
            Op::Gradients | Op::Exchange => {
                let from = vec![lengths[rank]; size];
                comm.exchange(Parts { send, to: lengths, receive: &mut *receive, from: &from }, "exchange")?;
                if matches!(self.case.op, Op::Gradients) {
                    let nodes: Vec<_> = (0..size).flat_map(|rank| nodes(&lanes_of(rank, size, size), size)).collect();
                    finish(&(0..size), (&nodes, receive.numbers::<f32>()), 0, sum);
                }
                Ok(())
            }
            Op::Weights | Op::Norm => comm.share((send, receive), lengths, "share"),
            Op::Gather => comm.gather(&[rank as u8; 8], "gather").map(|all| assert_eq!(all.len(), size)),
            Op::Barrier => comm.barrier("meet"),
        }
    }

    /// `times`, from when all are there.
    fn timed(&mut self, times: u64) -> Result<Duration> {
        self.comm.barrier("begin")?;
        let begun = Instant::now();
        (0..times).try_for_each(|_| self.once())?;
        Ok(begun.elapsed())
    }
}

/// Rank 0's word to the others: a case, how often.
fn told(comm: &dyn Comm, word: [u64; 2]) -> Result<[u64; 2]> {
    let mut bytes = bytemuck::bytes_of(&word).to_vec();
    comm.broadcast(&mut bytes, "hear what is next")?;
    bytemuck::try_pod_read_unaligned(&bytes).map_err(|e| Error::Device(e.to_string()))
}

fn lead(comm: &dyn Comm, name: &str) -> Result<()> {
    let short = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300));
    let mut criterion = short.measurement_time(Duration::from_secs(1)).configure_from_args();
    let size = comm.world().size;
    println!("{size} ranks by {}, {} threads each", comm.describe(), rayon::current_num_threads());
    let mut failed = None;
    for (i, case) in cases().iter().enumerate() {
        let mut ready = Ready::new(comm, case);
        let mut all: Vec<f64> = Vec::new();
        let mut group = criterion.benchmark_group(format!("comm {name} x{size}"));
        if case.bytes > 0 {
            group.throughput(Throughput::BytesDecimal(case.bytes as u64));
        }
        group.bench_function(&case.name, |b| {
            b.iter_custom(|times| {
                let done = match failed {
                    None => told(comm, [i as u64, times]).and_then(|_| ready.timed(times)),
                    Some(_) => Ok(Duration::from_secs(1)),
                };
                let spent = done.unwrap_or_else(|e| {
                    failed = Some(e);
                    Duration::from_secs(1)
                });
                all.push(spent.as_secs_f64() / times as f64);
                spent
            });
        });
        group.finish();
        if let Some(e) = failed {
            return Err(e);
        }
        if !all.is_empty() {
            say(name, case, all, size);
        }
    }
    told(comm, [END, 0])?;
    criterion.final_summary();
    Ok(())
}

/// The median of what was timed, warming up included.
fn say(name: &str, case: &Case, mut seconds: Vec<f64>, size: usize) {
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let rate = match case.bytes {
        0 => String::new(),
        bytes => {
            let gb = bytes as f64 / median / 1e9;
            format!(", {gb:.2} GB/s, {:.2} out of each rank", gb * (size - 1) as f64 / size as f64)
        }
    };
    println!("{name}: {}: {:.1} us{rate}", case.name, median * 1e6);
}

fn follow(comm: &dyn Comm) -> Result<()> {
    let cases = cases();
    let mut ready: Option<(u64, Ready<'_>)> = None;
    loop {
        let [i, times] = told(comm, [0; 2])?;
        if i == END {
            return Ok(());
        }
        if ready.as_ref().is_none_or(|(at, _)| *at != i) {
            let case = cases.get(i as usize).ok_or_else(|| Error::Device(format!("rank 0 named case {i}")))?;
            ready = Some((i, Ready::new(comm, case)));
        }
        if let Some((_, ready)) = &mut ready {
            ready.timed(times)?;
        }
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// As one of a launcher's processes.
fn as_rank(place: &Place) -> Result<()> {
    let comm = join(Some(place), &environment)?;
    let name = environment(start::NAME).unwrap_or_else(|| place.launcher.spoken().to_owned());
    let done = if comm.world().is_first() { lead(&*comm, &name) } else { follow(&*comm) };
    if done.is_err() {
        comm.abort(1);
        return done;
    }
    comm.end()
}

fn main() -> ExitCode {
    let done = Place::of(&environment).and_then(|place| match place {
        Some(place) if place.size > 1 => as_rank(&place),
        Some(_) => Err(Error::usage("one process by itself hands nothing to anybody: start at least two")),
        None => start::all(),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("comm: {e}");
            ExitCode::FAILURE
        }
    }
}
