//! The attention kernels on the host driver, and on a GPU where there is one (`common/device.rs`): against masked attention
//! written out in f64 and in bf16, and against the CPU backend; random groups, every head width, several schedules. Results
//! do not depend on packing, bit for bit, and planted faults are found.

#[path = "common/check.rs"]
mod check;
#[path = "common/device.rs"]
mod device;
#[path = "common/host.rs"]
mod host;
#[path = "attention_common/mod.rs"]
mod naive;

use check::{assert_bf16_rule, assert_close, disagreement};
use device::SameBits;
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::driver::{Driver, Dtype};
use fusedpo::backend::gpu::host::HostDriver;
use fusedpo::backend::gpu::{Buf, Gpu, GpuBatch, GpuFloat};
use fusedpo::backend::*;
use half::bf16;
use naive::{Group, Noise, Results, batch, capacity, naive};

/// Schedules a kernel must agree under; 0 runs everything in order.
const SEEDS: [u64; 4] = [0, 1, 2, 3];
/// Slots of a batch's capacity beyond those of the case.
const SPARE: usize = 37;

/// Inputs of an attention op, as numbers that the storage type holds.
struct Case {
    groups: Vec<Group>,
    slots: usize,
    shape: AttnShape,
    qkv: Vec<f64>,
    dout: Vec<f64>,
}

impl Case {
    fn new(groups: &[Group], tail: usize, (heads, kv_heads, head_dim): (usize, usize, usize), seed: u64) -> Case {
        let shape = AttnShape { heads, kv_heads, head_dim };
        let used = groups.iter().map(Group::rows).sum::<usize>();
        let slots = (used + tail).min(used.next_multiple_of(512)); // empty slots behind that are not computed
        let mut noise = Noise(seed);
        let mut numbers = |n: usize, scale: f64| -> Vec<f64> {
            (0..n).map(|_| bf16::from_f64(noise.normal() * scale).to_f64()).collect()
        };
        let qkv = numbers(slots * shape.qkv_width(), 1.3);
        let dout = numbers(slots * shape.q_width(), 1.0);
        Case { groups: groups.to_vec(), slots, shape, qkv, dout }
    }

    /// Forward and backward through the GPU backend; outputs start as NaN.
    fn run<D: Driver, A: GpuFloat>(&self, gpu: &Gpu<D, A>) -> fusedpo::Result<Results> {
        self.run_cut(gpu, None)
    }
    /// The same with tiles of keys cut at so many packed queries.
    fn run_cut<D: Driver, A: GpuFloat>(&self, gpu: &Gpu<D, A>, cut: Option<usize>) -> fusedpo::Result<Results> {
        let micro = batch(&self.groups, self.slots);
        // More than is needed: the tables' unused entries and the grid's idle blocks are part of the matter.
        let mut b = GpuBatch::new(gpu, capacity(self.slots + SPARE, micro.responses().len() + 2), self.shape)?;
        cut.into_iter().for_each(|at| b.cut_key_tiles_at(at));
        b.load(&micro)?;
        self.run_on(gpu, &b)
    }

    fn run_on<D: Driver, A: GpuFloat>(&self, gpu: &Gpu<D, A>, b: &GpuBatch<D>) -> fusedpo::Result<Results> {
        let (rows, s) = (self.slots, self.shape);
        let qkv = filled::<D, A, A>(gpu, &self.qkv);
        let mut out = unset::<D, A, A>(gpu, rows * s.q_width());
        let mut lse = unset::<D, A, f32>(gpu, rows * s.heads);
        let mut delta = unset::<D, A, f32>(gpu, rows * s.heads);
        let mut partial = unset::<D, A, f32>(gpu, gpu.attention_partial((rows + SPARE).max(300), &s));
        let mut dqkv = unset::<D, A, A>(gpu, rows * s.qkv_width());
        gpu.attention_fwd(AttentionFwd { out: out.all_mut(), lse: lse.all_mut(), qkv: qkv.all(), batch: b, shape: s })?;
        let dout = filled::<D, A, A>(gpu, &self.dout);
        gpu.attention_bwd(AttentionBwd {
            dqkv: dqkv.all_mut(),
            delta: delta.all_mut(),
            partial: partial.all_mut(),
            dout: dout.all(),
            out: out.all(),
            lse: lse.all(),
            qkv: qkv.all(),
            batch: b,
            shape: s,
        })?;
        Ok(Results { out: fetch(gpu, &out), lse: fetch(gpu, &lse), dqkv: fetch(gpu, &dqkv), shape: s })
    }

    fn exact(&self) -> Results {
        naive(&self.groups, self.slots, self.shape, &self.qkv, &self.dout, |x| x)
    }
    fn plain_bf16(&self) -> Results {
        naive(&self.groups, self.slots, self.shape, &self.qkv, &self.dout, |x| bf16::from_f64(x).to_f64())
    }
}

fn filled<D: Driver, A: GpuFloat, S: GpuFloat>(gpu: &Gpu<D, A>, data: &[f64]) -> Buf<D, S> {
    let data: Vec<S> = data.iter().map(|x| S::from_f64(*x)).collect();
    let mut buf = gpu.alloc("test", data.len()).unwrap();
    gpu.put(buf.all_mut(), &data).unwrap();
    buf
}
fn unset<D: Driver, A: GpuFloat, S: GpuFloat>(gpu: &Gpu<D, A>, len: usize) -> Buf<D, S> {
    filled(gpu, &vec![f64::NAN; len])
}
fn fetch<D: Driver, A: GpuFloat, S: GpuFloat>(gpu: &Gpu<D, A>, buf: &Buf<D, S>) -> Vec<f64> {
    let mut out = vec![S::from_f64(0.0); buf.all().len()];
    gpu.get(&mut out, buf.all()).unwrap();
    out.iter().map(|x| x.to_f64()).collect()
}
fn gpu<A: GpuFloat>(seed: u64) -> Option<Gpu<HostDriver, A>> {
    Some(Gpu::new(host::host_driver(seed)?).unwrap())
}

/// Runs the case on every device: same bits each time, and right by the rule of the storage type.
#[track_caller]
fn agrees<A: GpuFloat>(case: &Case) {
    let (exact, plain) = (case.exact(), case.plain_bf16());
    let mut bits = SameBits::new();
    on_devices!(A, SEEDS, |gpu, place| {
        let got = case.run(gpu).unwrap();
        assert_close(&format!("{place}: lse"), &got.lse, &exact.lse, 4e-6, 0.0);
        for ((name, g), ((_, w), (_, p))) in got.parts().into_iter().zip(exact.parts().into_iter().zip(plain.parts())) {
            let name = format!("{place}: {name}");
            match A::DTYPE {
                Dtype::Bf16 => assert_bf16_rule(&name, &g, &p, &w, 0.0),
                Dtype::F32 => assert_close(&name, &g, &w, 3e-5, 0.0),
            }
        }
        bits.see("attention", place, got.bits());
    });
}

fn group(prompt: usize, responses: &[usize]) -> Group {
    Group { prompt, responses: responses.to_vec() }
}

#[test]
fn tensor_cores_head_dim_64() {
    // Lengths around the tiles' borders (64 keys, 128 packed queries); an empty prompt; one response; five.
    let groups = [group(63, &[65, 1]), group(0, &[64]), group(128, &[17, 2, 3, 1, 66]), group(1, &[1, 129])];
    agrees::<bf16>(&Case::new(&groups, 5, (3, 1, 64), 1));
    agrees::<bf16>(&Case::new(&[group(64, &[64, 63])], 0, (2, 2, 64), 2));
    agrees::<bf16>(&Case::new(&[group(70, &[20, 31])], 65, (8, 1, 64), 3));
    agrees::<bf16>(&Case::new(&[group(257, &[43, 9])], 1, (4, 2, 64), 4));
}

#[test]
fn tensor_cores_other_head_dims() {
    for (i, hd) in [32, 96, 128].into_iter().enumerate() {
        let seed = 10 + i as u64;
        agrees::<bf16>(&Case::new(&[group(33, &[64, 1, 31]), group(0, &[32, 97])], 3, (3, 1, hd), seed));
        agrees::<bf16>(&Case::new(&[group(127, &[2, 30]), group(65, &[63])], 0, (2, 2, hd), seed + 10));
        agrees::<bf16>(&Case::new(&[group(40, &[25])], 0, (7, 1, hd), seed + 20));
        agrees::<bf16>(&Case::new(&[group(20, &[45])], 130, (10, 2, hd), seed + 30));
    }
}

#[test]
fn tensor_cores_random_groups() {
    let mut noise = Noise(77);
    for case in 0..8 {
        let groups: Vec<Group> = (0..1 + noise.below(3))
            .map(|_| {
                let prompt = if noise.below(5) == 0 { 0 } else { noise.length(150) };
                Group { prompt, responses: (0..1 + noise.below(5)).map(|_| noise.length(70)).collect() }
            })
            .collect();
        let kv_heads = 1 + noise.below(2);
        let heads = kv_heads * (1 + noise.below(if kv_heads == 1 { 8 } else { 3 }));
        let hd = [32, 64, 96, 128][case % 4];
        agrees::<bf16>(&Case::new(&groups, noise.below(70), (heads, kv_heads, hd), 1000 + case as u64));
    }
}

#[test]
fn large_scores() {
    // Scores of hundreds: the running maximum moves, old sums vanish.
    let mut case = Case::new(&[group(100, &[90, 30])], 0, (2, 1, 64), 5);
    let mut noise = Noise(6);
    case.qkv.iter_mut().for_each(|x| *x = bf16::from_f64(*x * (1.0 + 9.0 * noise.uniform())).to_f64());
    agrees::<bf16>(&case);
}

#[test]
fn plain_kernels() {
    for (hd, heads) in [(64, (3, 1)), (8, (4, 2)), (37, (2, 2)), (80, (5, 1)), (1, (1, 1))] {
        let case =
            Case::new(&[group(33, &[20, 1]), group(0, &[40]), group(1, &[7])], 4, (heads.0, heads.1, hd), hd as u64);
        agrees::<f32>(&case);
        if hd % 32 != 0 {
            agrees::<bf16>(&case);
        }
    }
}

#[test]
fn agrees_with_the_cpu_backend() {
    let case = Case::new(&[group(50, &[33, 70, 2]), group(0, &[65])], 6, (6, 2, 64), 9);
    let f32s = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<_>>();
    let (cpu, s) = (Cpu::<f32>::new().unwrap(), case.shape);
    let micro = batch(&case.groups, case.slots);
    let mut b = cpu.new_batch(capacity(case.slots, micro.responses().len()), s).unwrap();
    cpu.load_batch(&mut b, &micro).unwrap();
    let rows = cpu.rows(&b);
    let (qkv, dout) = (f32s(&case.qkv[..rows * s.qkv_width()]), f32s(&case.dout[..rows * s.q_width()]));
    let (mut out, mut lse) = (vec![f32::NAN; rows * s.q_width()], vec![f32::NAN; rows * s.heads]);
    cpu.attention_fwd(AttentionFwd { out: &mut out, lse: &mut lse, qkv: &qkv, batch: &b, shape: s }).unwrap();
    let (mut dqkv, mut delta) = (vec![f32::NAN; rows * s.qkv_width()], vec![f32::NAN; rows * s.heads]);
    cpu.attention_bwd(AttentionBwd {
        dqkv: &mut dqkv,
        delta: &mut delta,
        partial: &mut [],
        dout: &dout,
        out: &out,
        lse: &lse,
        qkv: &qkv,
        batch: &b,
        shape: s,
    })
    .unwrap();
    on_devices!(f32, [1], |gpu, place| {
        let got = case.run(gpu).unwrap();
        for (name, got, want) in [("out", &got.out, &out), ("lse", &got.lse, &lse), ("dqkv", &got.dqkv, &dqkv)] {
            let want: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
            assert_close(name, &got[..want.len()], &want, 2e-5, 0.0);
            assert!(got[want.len()..].iter().all(|x| *x == 0.0), "{place}: {name}: rows of no segment are zero");
        }
    });
}

/// Rows `from` of `a`, placed at rows `to` of `b`: inputs are copied so that they agree.
fn place(b: &mut Case, to: usize, a: &Case, from: std::ops::Range<usize>) {
    let (w, q) = (a.shape.qkv_width(), a.shape.q_width());
    b.qkv[to * w..][..from.len() * w].copy_from_slice(&a.qkv[from.start * w..from.end * w]);
    b.dout[to * q..][..from.len() * q].copy_from_slice(&a.dout[from.start * q..from.end * q]);
}

#[test]
fn a_row_does_not_depend_on_packing() {
    for hd in [32, 64, 96, 128, 40] {
        let alone = Case::new(&[group(75, &[40, 66])], 0, (3, 1, hd), 20);
        let rows = alone.slots;
        let others = [group(13, &[1, 90]), group(0, &[31]), group(75, &[40, 66]), group(200, &[5])];
        let mut packed = Case::new(&others, 11, (3, 1, hd), 21);
        let at = 13 + 91 + 31;
        place(&mut packed, at, &alone, 0..rows);
        let mut bits = SameBits::new();
        on_devices!(bf16, [1, 2], |gpu, place| {
            let (a, b) = (alone.run(gpu).unwrap(), packed.run(gpu).unwrap());
            bits.see(&format!("head_dim {hd}, alone"), place, a.rows(0..rows).bits());
            bits.see(&format!("head_dim {hd}, packed"), place, b.rows(at..at + rows).bits());
        });
    }
}

#[test]
fn sharing_a_prompt_gives_the_bits_of_repeating_it() {
    for hd in [32, 64, 96, 128, 40] {
        let shared = Case::new(&[group(75, &[40, 66])], 0, (2, 1, hd), 30);
        // The same rows as: prompt and first response in one segment, then the prompt again with the second.
        let mut repeated = Case::new(&[group(115, &[1]), group(75, &[66])], 0, (2, 1, hd), 31);
        place(&mut repeated, 0, &shared, 0..115);
        place(&mut repeated, 116, &shared, 0..75);
        place(&mut repeated, 191, &shared, 115..181);
        on_devices!(bf16, [1], |gpu, place| {
            let (a, b) = (shared.run(gpu).unwrap(), repeated.run(gpu).unwrap());
            let at = format!("{place}: head_dim {hd}");
            assert!(a.rows(0..115).same_forward(&b.rows(0..115)), "{at}: prompt and first response");
            assert!(a.rows(0..75).same_forward(&b.rows(116..191)), "{at}: the prompt again");
            assert!(a.rows(115..181).same_bits(&b.rows(191..257)), "{at}: second response, gradients included");
        });
    }
}

/// On a backend that nobody else uses: its memory table is counted.
fn refill<D: Driver>(gpu: &Gpu<D, bf16>) {
    let small = Case::new(&[group(20, &[9, 30])], 2, (3, 1, 64), 40);
    let large = Case::new(&[group(90, &[70]), group(0, &[64])], 0, (3, 1, 64), 41);
    let mut b = GpuBatch::new(gpu, capacity(300, 6), small.shape).unwrap();
    for case in [&large, &small, &large, &small] {
        let before = gpu.memory_table().len();
        b.load(&batch(&case.groups, case.slots)).unwrap();
        assert_eq!(gpu.memory_table().len(), before, "loading allocates nothing");
        let got = case.run_on(gpu, &b).unwrap();
        assert!(got.same_bits(&case.run_on(gpu, &b).unwrap()));
        assert!(got.same_bits(&case.run(gpu).unwrap()), "a batch of its own");
    }
}

/// Everything but dk and dv has the bits of whole tiles; those are sums in another order, rounded to bf16 once in both: in
/// f32 they differ by rounding alone, so that the stored numbers are at most neighbours.
#[test]
fn key_tiles_in_parts() {
    let cases = [
        // Parts at 64 packed queries, several a tile; a tile without readers; one that a single part more than fills.
        (vec![group(70, &[40, 3, 66])], 5, (3, 1, 64), 64),
        (vec![group(0, &[130]), group(1, &[1, 64])], 70, (4, 2, 64), 128),
        (vec![group(129, &[33, 80])], 0, (5, 1, 32), 192),
        (vec![group(65, &[20, 20, 20])], 3, (2, 2, 96), 64),
        (vec![group(33, &[64, 31]), group(64, &[65])], 1, (7, 1, 128), 64),
        // So many parts that there is no scratch for them: fewer are made.
        (vec![group(200, &[100])], 0, (8, 1, 64), 64),
    ];
    for (seed, (groups, tail, heads, cut)) in (60..).zip(cases) {
        let case = Case::new(&groups, tail, heads, seed);
        let (exact, plain) = (case.exact(), case.plain_bf16());
        let mut bits = SameBits::new();
        on_devices!(bf16, SEEDS, |gpu, place| {
            let [parts, whole] = [cut, usize::MAX].map(|cut| case.run_cut(gpu, Some(cut)).unwrap());
            assert!(parts.same_forward(&whole), "{place}: forward");
            for (i, name) in [(1, "dq"), (2, "dk"), (3, "dv")] {
                let [got, whole, plain, exact] = [&parts, &whole, &plain, &exact].map(|r| r.parts()[i].1.clone());
                let name = format!("{place}: {heads:?} cut at {cut}: {name}");
                assert_bf16_rule(&name, &got, &plain, &exact, 0.0);
                let size = whole.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                for (got, whole) in got.iter().zip(&whole) {
                    let ulp = whole.abs().max(got.abs()) / 128.0 + size * 1e-6;
                    assert!((got - whole).abs() <= if i == 1 { 0.0 } else { ulp }, "{name}: {got} and {whole}");
                }
            }
            bits.see("attention in parts", place, parts.bits());
        });
    }
}

#[test]
fn a_nan_reaches_the_statistics() {
    for hd in [64, 40] {
        let mut case = Case::new(&[group(10, &[20, 9])], 0, (2, 1, hd), 70);
        let w = case.shape.qkv_width();
        case.qkv[25 * w..][..hd].fill(f64::NAN); // a query of the first response
        on_devices!(bf16, [1], |gpu, place| {
            let got = case.run(gpu).unwrap();
            for (at, lse) in got.lse.iter().enumerate() {
                assert_eq!(lse.is_nan(), at == 50, "{place}: head_dim {hd}: row {}, head {}: {lse}", at / 2, at % 2);
            }
            assert!(got.out[50 * hd..51 * hd].iter().all(|x| x.is_nan()), "{place}: head_dim {hd}");
        });
    }
}

#[test]
fn a_batch_is_refilled_without_allocating() {
    if let Some(gpu) = gpu::<bf16>(3) {
        refill(&gpu);
    }
    if let Some(driver) = device::cuda_driver() {
        refill(&Gpu::<_, bf16>::new(driver).unwrap());
    }
}

#[test]
fn a_batch_refuses_heads_that_it_was_not_made_for() {
    let Some(gpu) = gpu::<bf16>(3) else { return };
    let case = Case::new(&[group(9, &[7])], 0, (2, 2, 32), 42);
    let mut b = GpuBatch::new(&gpu, capacity(300, 6), AttnShape { heads: 3, kv_heads: 1, head_dim: 64 }).unwrap();
    b.load(&batch(&case.groups, case.slots)).unwrap();
    let why = case.run_on(&gpu, &b).unwrap_err().to_string();
    assert!(
        why.contains(
            "kernel `attention_fwd`: the batch was made for 3 query heads a key head in tiles of 128 keys, not 1 query"
        ),
        "{why}"
    );
}

#[test]
fn lengths_and_geometry_are_checked_before_a_launch() {
    let Some(gpu) = gpu::<bf16>(1) else { return };
    let case = Case::new(&[group(4, &[4])], 0, (2, 1, 64), 50);
    let mut b = GpuBatch::new(&gpu, capacity(8, 2), case.shape).unwrap();
    b.load(&batch(&case.groups, 8)).unwrap();
    let launches = gpu.driver().launches();
    let (mut out, mut lse) = (unset::<_, bf16, bf16>(&gpu, 8 * 128 + 8), unset::<_, bf16, f32>(&gpu, 16));
    let qkv = unset::<_, bf16, bf16>(&gpu, 8 * 256);
    let mut fwd = |at: usize, len: usize, stats: usize, shape: AttnShape| {
        gpu.attention_fwd(AttentionFwd {
            out: out.view_mut(at..at + len),
            lse: lse.view_mut(0..stats),
            qkv: qkv.all(),
            batch: &b,
            shape,
        })
        .unwrap_err()
        .to_string()
    };
    let shape = case.shape;
    assert_eq!(fwd(0, 1020, 16, shape), "attention_fwd: `out` has 1020 elements, expected 1024 = rows=8 * q_width=128");
    assert_eq!(fwd(0, 1024, 15, shape), "attention_fwd: `lse` has 15 elements, expected 16 = rows=8 * heads=2");
    let why = fwd(1, 1024, 16, shape);
    assert_eq!(why, "kernel `attention_fwd`: `out` does not start at a multiple of 16 bytes");
    assert!(fwd(0, 1024, 16, AttnShape { heads: 3, kv_heads: 2, head_dim: 64 }).contains("a multiple of kv_heads=2"));
    assert!(fwd(0, 1024, 16, AttnShape { heads: 65536, kv_heads: 1, head_dim: 1 }).contains("rows * group^2"));
    let short = |name: &str, partial: usize| {
        let [mut dqkv, out, dout] = [2048, 1024, 1024].map(|n| unset::<_, bf16, bf16>(&gpu, n));
        let [lse, mut delta, mut partial] = [16, 16, partial].map(|n| unset::<_, bf16, f32>(&gpu, n));
        let op = AttentionBwd {
            dqkv: dqkv.all_mut(),
            delta: delta.all_mut(),
            partial: partial.all_mut(),
            dout: dout.all(),
            out: out.all(),
            lse: lse.all(),
            qkv: qkv.all(),
            batch: &b,
            shape,
        };
        let why = gpu.attention_bwd(op).unwrap_err().to_string();
        assert!(why.contains(name), "{why}");
    };
    let needed = gpu.attention_partial(8, &shape);
    assert_eq!(needed, 2 * 8 * 2 * 64);
    short("attention_bwd: `partial` has 2047 elements, expected", needed - 1);
    assert_eq!(gpu.driver().launches(), launches);
}

/// The case with a faulty kernel in place of the right one, under one schedule.
fn with_fault(case: &Case, fault: &str, seed: u64) -> Option<fusedpo::Result<Results>> {
    let driver = host::host_driver_with_fault(seed, fault)?;
    Some(case.run(&Gpu::<_, bf16>::new(driver).unwrap()))
}

#[test]
fn planted_faults_are_found() {
    for (hd, seed) in [(64, 60), (128, 61)] {
        let case = Case::new(&[group(90, &[70, 30])], 3, (2, 1, hd), seed);
        let (exact, plain) = (case.exact(), case.plain_bf16());
        for fault in ["no_barrier", "no_wait", "late_wait", "off_by_one", "swapped"] {
            let mut found = 0;
            for seed in SEEDS {
                let Some(got) = with_fault(&case, fault, seed) else { return };
                let Ok(got) = got else {
                    found += 1;
                    continue;
                };
                let mut wrong = disagreement("lse", &got.lse, &exact.lse, 4e-6, 0.0).is_some();
                for ((part, plain), exact) in got.parts().iter().zip(plain.parts()).zip(exact.parts()) {
                    let rule = || assert_bf16_rule(part.0, &part.1, &plain.1, &exact.1, 0.0);
                    wrong |= std::panic::catch_unwind(rule).is_err();
                }
                found += usize::from(wrong);
            }
            assert!(found > 0, "fault `{fault}` at head_dim {hd} passes under every schedule");
        }
    }
}
