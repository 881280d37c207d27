//! Random numbers, micro-batches, and derivatives by finite differences.

use fusedpo::backend::cpu::{Cpu, CpuBatch, GemmPrecision, Level};
use fusedpo::backend::{AttnShape, Device, Float};
use fusedpo::batch::{Builder, Chunk, MicroBatch};

/// SplitMix64 (Steele et al. 2014).
pub struct Noise(pub u64);

impl Noise {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Uniform in `[-1, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
    pub fn vec(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.unit()).collect()
    }
    /// Values that `f32` holds exactly, so that both element types start from the same numbers.
    pub fn vec32(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| f64::from(self.unit() as f32)).collect()
    }
}

/// Converts test numbers to an element type.
pub fn of<S: Float>(x: &[f64]) -> Vec<S> {
    x.iter().map(|x| S::from_f64(*x)).collect()
}

/// And back.
pub fn f64s<S: Float>(x: &[S]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// An output that nobody has written yet.
pub fn nan<S: Float>(n: usize) -> Vec<S> {
    vec![S::from_f64(f64::NAN); n]
}

/// A prompt's length and its responses' lengths.
pub type Lens<'a> = (usize, &'a [usize]);

/// Groups of every kind: one to four responses, empty prompts, single tokens, more than one tile of queries and of keys.
pub const GROUPS: &[Lens] =
    &[(5, &[3, 1]), (0, &[4]), (1, &[1, 2, 7]), (37, &[33, 2, 101, 5]), (0, &[2, 3]), (3, &[6])];
/// A smaller set of the same kinds, where every element is differentiated.
pub const FEW: &[Lens] = &[(3, &[2, 1, 3]), (0, &[3]), (1, &[2])];

/// A micro-batch of `groups` with a dummy tail; every response is in a pair with the next of its group.
pub fn micro(groups: &[Lens], tail: usize, vocab: usize, noise: &mut Noise) -> MicroBatch {
    let mut b = Builder::default();
    let mut ref_logps = Vec::new();
    let mut pairs = 0..;
    for (id, (prompt, responses)) in (0..).zip(groups) {
        let tokens = |n: usize, noise: &mut Noise| -> Vec<u32> { (0..n).map(|_| noise.below(vocab) as u32).collect() };
        b.group(id, tokens(*prompt, noise)).unwrap();
        for len in *responses {
            b.response(ref_logps.len() as u64, tokens(*len, noise)).unwrap();
            ref_logps.push(-3.0 + noise.unit());
        }
        for r in 1..responses.len() {
            b.pair(r, r - 1, 0.5 + noise.unit() as f32 * 0.25, pairs.next().unwrap()).unwrap();
        }
    }
    let slots = b.used() + tail;
    let mut m = b.finish(slots).unwrap();
    m.set_ref_logps(|r| Ok(ref_logps[r.id as usize])).unwrap();
    m
}

/// Group `group` of `m` with the same tokens, alone.
pub fn only(m: &MicroBatch, group: usize) -> MicroBatch {
    let g = &m.groups()[group];
    let rows = |r: std::ops::Range<u32>| m.tokens()[r.start as usize..r.end as usize].iter().copied();
    let mut b = Builder::default();
    b.group(g.id, rows(g.prompt.clone())).unwrap();
    let segments = &m.segments()[g.segments.start as usize..g.segments.end as usize];
    let own = segments.iter().filter(|s| s.start >= g.prompt.end);
    for (s, r) in own.zip(g.responses.clone()) {
        b.response(m.responses()[r as usize].id, rows(s.start..s.start + s.len)).unwrap();
    }
    let slots = b.used();
    b.finish(slots).unwrap()
}

/// For ops that look at no heads, and a backend that reserves nothing for them.
pub const ANY_HEADS: AttnShape = AttnShape { heads: 1, kv_heads: 1, head_dim: 1 };

/// Loads a micro-batch.
pub fn loaded<S: fusedpo::backend::cpu::Real>(cpu: &Cpu<S>, m: &MicroBatch) -> CpuBatch {
    let mut batch = cpu.new_batch(m.capacity(), ANY_HEADS).unwrap();
    cpu.load_batch(&mut batch, m).unwrap();
    batch
}

/// The whole micro-batch as one chunk.
pub fn whole(m: &MicroBatch) -> Chunk {
    Chunk { responses: 0..m.responses().len(), predictions: 0..m.predictions().len(), pairs: 0..m.pairs().len() }
}

/// Grouped, multi-query and plain attention; head widths below, beside and above the tile sizes.
pub const SHAPES: &[AttnShape] = &[
    AttnShape { heads: 3, kv_heads: 1, head_dim: 4 },
    AttnShape { heads: 2, kv_heads: 2, head_dim: 6 },
    AttnShape { heads: 4, kv_heads: 2, head_dim: 14 },
    AttnShape { heads: 9, kv_heads: 3, head_dim: 64 },
];

pub fn cpu64() -> Cpu<f64> {
    Cpu::new().unwrap()
}
pub fn cpu32() -> Cpu<f32> {
    Cpu::new().unwrap()
}

/// Products on bf16 instructions, of every kind that this CPU has; none, said on stderr, where it has none.
pub fn cpus_bf16() -> Vec<Cpu<f32>> {
    let levels = Level::available().into_iter().filter(|l| l.has_bf16());
    let cpus: Vec<_> = levels.map(|l| Cpu::at(l, GemmPrecision::Bf16).unwrap()).collect();
    if cpus.is_empty() {
        eprintln!("skipped: bf16 products, for which this CPU has no instructions");
    }
    cpus
}

/// Every element within `rel * |want|`, plus a twentieth of that of the largest for elements that cancel; NaN never is.
#[track_caller]
pub fn assert_close(name: &str, got: &[f64], want: &[f64], rel: f64) {
    assert_eq!(got.len(), want.len(), "{name}: lengths");
    let floor = 0.05 * rel * want.iter().fold(0.0f64, |m, w| m.max(w.abs())) + 1e-30;
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= rel * w.abs() + floor, "{name}[{i}]: got {g}, want {w}, relative tolerance {rel:e}");
    }
}

#[test]
#[should_panic(expected = "x[1]")]
fn nan_is_not_close() {
    assert_close("x", &[1.0, f64::NAN], &[1.0, 1.0], 1e9);
}

pub fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Checks `grad` against central differences of `f` at `x`, at every element or at some 60 of many. `f` must be smooth:
/// the truncation error is about `h^2`, the rounding error `1e-16 / h`.
#[track_caller]
pub fn check_gradient(name: &str, x: &[f64], grad: &[f64], f: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), grad.len(), "{name}");
    let (h, mut at) = (1e-5, x.to_vec());
    let scale = grad.iter().fold(0.0f64, |m, g| m.max(g.abs()));
    assert!(scale > 0.0, "{name}: the gradient is zero everywhere, so nothing is checked");
    for i in (0..x.len()).step_by((x.len() / 60).max(1)) {
        at[i] = x[i] + h;
        let up = f(&at);
        at[i] = x[i] - h;
        let slope = (up - f(&at)) / (2.0 * h);
        at[i] = x[i];
        assert!((grad[i] - slope).abs() <= 1e-7 * (1.0 + scale), "{name}[{i}]: got {}, slope {slope}", grad[i]);
    }
}
