//! Every kernel, on the host driver and on a GPU where there is one (`common/device.rs`), against the CPU backend in f64: odd
//! shapes, several schedules, outputs that start as NaN. Each op is written once, generic over the backend. bf16 results may
//! be twice as far from f64 as a plain bf16 implementation, f32 results a few ulp.

#[path = "common/batches.rs"]
mod batches;
#[path = "common/check.rs"]
mod check;
#[path = "common/device.rs"]
mod device;
#[path = "common/host.rs"]
mod host;

#[path = "kernels/decode.rs"]
mod decode;
#[path = "kernels/faults.rs"]
mod faults;
#[path = "kernels/head.rs"]
mod head;
#[path = "kernels/layout.rs"]
mod layout;
#[path = "kernels/loss.rs"]
mod loss;
#[path = "kernels/optim.rs"]
mod optim;
#[path = "kernels/products.rs"]
mod products;
#[path = "kernels/quant.rs"]
mod quant;
#[path = "kernels/rows.rs"]
mod rows;
#[path = "kernels/simple.rs"]
mod simple;
#[path = "kernels/small_state.rs"]
mod small_state;

use check::{assert_bf16_rule, assert_close};
use device::{Place, SameBits};
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::driver::{Driver, Dtype};
use fusedpo::backend::gpu::{Gpu, GpuFloat};
use fusedpo::backend::*;
use half::bf16;

/// Schedules a kernel must agree under; 0 runs everything in order.
const SEEDS: [u64; 4] = [0, 1, 2, 3];

/// Pseudo-random numbers, roughly normal.
pub struct Noise(pub u64);

impl Noise {
    /// In `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Mean 0, deviation 1.
    pub fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.uniform()).sum::<f64>() * 1.4 - 4.2
    }
    /// `n` numbers that `A` holds exactly.
    pub fn vec<A: Float>(&mut self, n: usize, scale: f64) -> Vec<f64> {
        (0..n).map(|_| A::from_f64(self.normal() * scale).to_f64()).collect()
    }
}

/// A buffer with `data`, rounded to its type.
pub fn buf<B: Backend, T: Float>(be: &B, data: &[f64]) -> B::Buf<T> {
    let mut buf = be.zeros::<T>("test", data.len()).unwrap();
    let data: Vec<T> = data.iter().map(|x| T::from_f64(*x)).collect();
    be.upload(be.view_mut(&mut buf, 0..data.len()), &data).unwrap();
    buf
}
/// An output: full of NaN.
pub fn unset<B: Backend, T: Float>(be: &B, len: usize) -> B::Buf<T> {
    buf::<B, T>(be, &vec![f64::NAN; len])
}
/// What a buffer holds.
pub fn fetch<B: Backend, T: Float>(be: &B, buf: &B::Buf<T>) -> Vec<f64> {
    let mut out = vec![T::from_f64(0.0); be.len(buf)];
    be.download(&mut out, be.view(buf, 0..be.len(buf))).unwrap();
    out.iter().map(|x| x.to_f64()).collect()
}
/// All of a buffer.
#[macro_export]
macro_rules! v {
    ($be:expr, $buf:expr) => {
        $be.view(&$buf, 0..$be.len(&$buf))
    };
    ($be:expr, mut $buf:expr) => {{
        let n = $be.len(&$buf);
        $be.view_mut(&mut $buf, 0..n)
    }};
}

/// What an op left behind: name, content, and whether it is stored as an activation (else f32 or f64).
pub type Outputs = Vec<(&'static str, Vec<f64>, bool)>;

/// An op with its inputs, to be run on any backend.
pub trait Case {
    /// Runs the op and collects its outputs.
    fn run<B: Backend>(&self, be: &B) -> Outputs;
    /// What a plain implementation of this storage type gives, where it rounds more than its outputs.
    fn plain(&self) -> Option<Outputs> {
        None
    }
    /// Size of the f32 terms that cancel in an output: what its rounding errors are measured by where it is small itself.
    fn terms(&self, _output: &str) -> f64 {
        0.0
    }
    /// The same for a matrix product, which the library adds up in an order of its own on a GPU.
    fn product_terms(&self, _output: &str) -> f64 {
        0.0
    }
}

/// Relative error of f32 sums that these tests' sizes lead to.
const F32: f64 = 40.0 * f32::EPSILON as f64;

/// More rows than a grid has blocks in a column: kernels take the others in a second round.
const MANY_ROWS: usize = 65_535 + 70;

/// Runs `case` on the CPU in f64 and on every device, and compares.
#[track_caller]
pub fn compare<A: GpuFloat>(what: &str, case: &impl Case) {
    compare_under::<A>(what, case, &SEEDS);
}

/// [`compare`], on the host under these schedules.
#[track_caller]
pub fn compare_under<A: GpuFloat>(what: &str, case: &impl Case, seeds: &[u64]) {
    let exact = case.run(&Cpu::<f64>::new().unwrap());
    let mut bits = SameBits::new();
    on_devices!(A, seeds.iter().copied(), |gpu, place| {
        let outputs = case.run(gpu);
        assert_outputs::<A>(what, case, place, &outputs, &exact);
        bits.see(what, place, outputs);
    });
}

/// Compares what `case` gave at `place` with what it is exactly.
#[track_caller]
pub fn assert_outputs<A: GpuFloat>(what: &str, case: &impl Case, place: Place, outputs: &Outputs, exact: &Outputs) {
    let plain = case.plain();
    for (i, ((name, got, activation), (_, want, _))) in outputs.iter().zip(exact).enumerate() {
        let product = if let Place::Cuda(_) = place { case.product_terms(name) } else { 0.0 };
        let floor = 4.0 * f64::from(f32::EPSILON) * (case.terms(name) + product);
        let name = format!("{what} ({place}): {name}");
        if *activation && A::DTYPE == Dtype::Bf16 {
            let rounded: Vec<f64> = want.iter().map(|w| bf16::from_f64(*w).to_f64()).collect();
            assert_bf16_rule(&name, got, plain.as_ref().map_or(&rounded, |p| &p[i].1), want, floor);
        } else {
            assert_close(&name, got, want, F32, floor);
        }
    }
}

/// Instantiates a generic test for both storage types.
#[macro_export]
macro_rules! both {
    ($name:ident) => {
        mod $name {
            #[test]
            fn bf16() {
                super::$name::<half::bf16>();
            }
            #[test]
            fn f32() {
                super::$name::<f32>();
            }
        }
    };
}

#[test]
fn lengths_are_checked_before_a_launch() {
    let Some(driver) = host::host_driver(1) else { return };
    let gpu = Gpu::<_, bf16>::new(driver).unwrap();
    let (mut act, gate_up) = (unset::<_, bf16>(&gpu, 8), unset::<_, bf16>(&gpu, 15));
    let error =
        gpu.swiglu_fwd(SwigluFwd { act: act.all_mut(), gate_up: gate_up.all(), ffn: 4 }).unwrap_err().to_string();
    assert_eq!(error, "swiglu_fwd: `gate_up` has 15 elements, expected 16 = 2=2 * rows=2 * ffn=4");
    assert_eq!(gpu.driver().launches(), 0);
}

/// Memory that is given back while work is recorded is freed when the recording has ended: at once, it would end it. A recording
/// that nobody ends goes with its device.
#[test]
fn memory_given_back_while_work_is_recorded() {
    let Some(driver) = device::cuda_driver() else { return };
    let gpu = Gpu::<_, f32>::new(driver).unwrap();
    let (kept, dropped) = (buf::<_, f32>(&gpu, &[1.5; 8]), buf::<_, f32>(&gpu, &[2.5; 8]));
    gpu.driver().begin().unwrap();
    drop(dropped);
    assert!(gpu.driver().alloc(8).is_err(), "nothing is allocated meanwhile");
    gpu.driver().end().unwrap();
    assert_eq!(fetch(&gpu, &kept), [1.5; 8]);
    gpu.driver().begin().unwrap();
}
