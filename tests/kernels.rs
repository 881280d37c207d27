//! Every kernel, on the host driver, against reference implementations: odd shapes, several schedules, outputs that start
//! as NaN. bf16 results may be twice as far from f64 as a plain bf16 implementation, f32 results a few ulp.

#[path = "common/check.rs"]
mod check;
#[path = "common/host.rs"]
mod host;

use check::{Plain, Real, assert_bf16_rule, assert_close};
use fusedpo::backend::gpu::driver::Dtype;
use fusedpo::backend::gpu::host::HostDriver;
use fusedpo::backend::gpu::{Buf, Gpu, GpuFloat};
use half::bf16;

/// Schedules a kernel must agree under; 0 runs everything in order.
const SEEDS: [u64; 4] = [0, 1, 2, 3];

/// Pseudo-random numbers, roughly normal.
struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
    fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.uniform()).sum::<f64>() * 1.4 - 4.2
    }
    /// `n` numbers that `A` can hold.
    fn vec<A: GpuFloat>(&mut self, n: usize, scale: f64) -> Vec<A> {
        (0..n).map(|_| A::from_f64(self.normal() * scale)).collect()
    }
}

fn f64s<A: GpuFloat>(x: &[A]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}
fn reals<A: GpuFloat, R: Real>(x: &[A]) -> Vec<R> {
    x.iter().map(|x| R::of(x.to_f64())).collect()
}

/// Runs `f` with a backend of storage type `A` for every schedule.
fn schedules<A: GpuFloat>(f: impl Fn(&Gpu<HostDriver, A>)) {
    for seed in SEEDS {
        let Some(driver) = host::host_driver(seed) else { return };
        f(&Gpu::new(driver).unwrap());
    }
}

fn device<A: GpuFloat, S: GpuFloat>(gpu: &Gpu<HostDriver, A>, data: &[S]) -> Buf<HostDriver, S> {
    let mut buf = gpu.alloc("test", data.len()).unwrap();
    gpu.put(buf.all_mut(), data).unwrap();
    buf
}
/// An output: full of NaN.
fn unset<A: GpuFloat, S: GpuFloat>(gpu: &Gpu<HostDriver, A>, len: usize) -> Buf<HostDriver, S> {
    device(gpu, &vec![S::from_f64(f64::NAN); len])
}
fn fetch<A: GpuFloat, S: GpuFloat>(gpu: &Gpu<HostDriver, A>, buf: &Buf<HostDriver, S>) -> Vec<f64> {
    let all = buf.all();
    let mut out = vec![S::from_f64(0.0); all.len()];
    gpu.get(&mut out, all).unwrap();
    f64s(&out)
}

/// Compares by the rule of the storage type: `reference` computes the op in any arithmetic. `ulps`: allowed f32 error.
#[track_caller]
fn agree<A: GpuFloat>(name: &str, got: &[f64], exact: &[f64], plain: &[f64], ulps: f64) {
    match A::DTYPE {
        Dtype::Bf16 => assert_bf16_rule(name, got, plain, exact),
        Dtype::F32 => assert_close(name, got, exact, ulps * f64::from(f32::EPSILON)),
    }
}

/// Instantiates a generic test for both storage types.
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

fn swiglu_reference<R: Real>(gate: R, up: R) -> R {
    gate / (R::of(1.0) + gate.map(|g| (-g).exp())) * up
}
fn swiglu_bwd_reference<R: Real>(gate: R, up: R, d: R) -> (R, R) {
    let s = R::of(1.0) / (R::of(1.0) + gate.map(|g| (-g).exp()));
    (d * up * s * (R::of(1.0) + gate * (R::of(1.0) - s)), d * gate * s)
}

fn swiglu<A: GpuFloat>() {
    for (rows, ffn) in [(1, 1), (3, 37), (5, 64), (2, 2056), (7, 8)] {
        let mut noise = Noise(rows as u64 * 1000 + ffn as u64);
        let gate_up: Vec<A> = noise.vec(rows * 2 * ffn, 2.0);
        let dact: Vec<A> = noise.vec(rows * ffn, 1.0);
        fn parts<A: GpuFloat, R: Real>(gate_up: &[A], dact: &[A], ffn: usize) -> (Vec<f64>, Vec<f64>) {
            let (g, d) = (reals::<A, R>(gate_up), reals::<A, R>(dact));
            let rows = g.chunks(2 * ffn);
            let act = rows
                .clone()
                .flat_map(|r| (0..ffn).map(|c| swiglu_reference(r[c], r[ffn + c]).f64()).collect::<Vec<_>>());
            let grad = rows.zip(d.chunks(ffn)).flat_map(|(r, d)| {
                let pairs: Vec<_> = (0..ffn).map(|c| swiglu_bwd_reference(r[c], r[ffn + c], d[c])).collect();
                pairs.iter().map(|p| p.0.f64()).chain(pairs.iter().map(|p| p.1.f64())).collect::<Vec<_>>()
            });
            (act.collect(), grad.collect())
        }
        let (exact, exact_grad) = parts::<A, f64>(&gate_up, &dact, ffn);
        let (plain, plain_grad) = parts::<A, Plain>(&gate_up, &dact, ffn);
        schedules::<A>(|gpu| {
            let mut gu = device(gpu, &gate_up);
            let mut act = unset::<A, A>(gpu, rows * ffn);
            gpu.swiglu_fwd(act.all_mut(), gu.all(), ffn).unwrap();
            agree::<A>("act", &fetch(gpu, &act), &exact, &plain, 8.0);
            gpu.swiglu_bwd(gu.all_mut(), device(gpu, &dact).all(), ffn).unwrap();
            agree::<A>("dgate_up", &fetch(gpu, &gu), &exact_grad, &plain_grad, 16.0);
        });
    }
}
both!(swiglu);

#[test]
fn lengths_are_checked_before_a_launch() {
    let Some(driver) = host::host_driver(1) else { return };
    let gpu = Gpu::<_, bf16>::new(driver).unwrap();
    let (mut act, gate_up) = (unset::<bf16, bf16>(&gpu, 8), unset::<bf16, bf16>(&gpu, 15));
    let error = gpu.swiglu_fwd(act.all_mut(), gate_up.all(), 4).unwrap_err().to_string();
    assert_eq!(error, "swiglu_fwd: `gate_up` has 15 elements, expected 16 = 2=2 * rows=2 * ffn=4");
    assert_eq!(gpu.driver().launches(), 0);
}
