//! AdamW with small states: the kernels give the CPU's bits, whatever the gradients, the lengths and where the data lie.

use crate::{Case, Noise, Outputs, buf, compare, device::cuda, fetch, host::host_driver, on_devices, unset, v};
use fusedpo::backend::code8;
use fusedpo::backend::cpu::{Cpu, Level};
use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::rounding::Rounding;
use fusedpo::backend::*;
use half::bf16;
use std::ops::Range;

/// Steps of one range within a larger arena, whose other elements must stay.
struct Steps {
    w: Vec<f32>,
    g: Vec<Vec<f32>>,
    at: Range<usize>,
    index: u64,
    rule: fn(u64) -> Rule,
    max_grad_norm: f64,
}

/// All bits that a step leaves.
#[derive(PartialEq, Debug)]
struct Left {
    w: Vec<u32>,
    m: Vec<u16>,
    v: Vec<u16>,
    codes: [Vec<u8>; 2],
    scales: [Vec<u32>; 2],
    w8: Vec<u32>,
}

fn put<B: Backend, T: Storage>(be: &B, data: &[T]) -> B::Buf<T> {
    let mut buf = be.zeros("test", data.len()).unwrap();
    be.upload(be.view_mut(&mut buf, 0..data.len()), data).unwrap();
    buf
}
fn get<B: Backend, T: Storage>(be: &B, buf: &B::Buf<T>) -> Vec<T> {
    let mut out = vec![T::zeroed(); be.len(buf)];
    be.download(&mut out, be.view(buf, 0..be.len(buf))).unwrap();
    out
}

impl Steps {
    fn run<B: Backend>(&self, be: &B) -> Vec<Left> {
        self.with::<B, B::Acc>(be)
    }

    /// With gradients in `G`; their norm is that of single precision.
    fn with<B: Backend, G: Gradient>(&self, be: &B) -> Vec<Left> {
        let n = self.w.len();
        let act: Vec<B::Act> = self.w.iter().map(|w| B::Act::from_f64(f64::from(*w))).collect();
        let (mut w, mut w8) = (put(be, &act), put(be, &act));
        let (mut m, mut v) = (put(be, &vec![bf16::ZERO; n]), put(be, &vec![bf16::ZERO; n]));
        let blocks = code8::blocks(self.at.len());
        let mut codes = [put(be, &vec![0u8; n]), put(be, &vec![0u8; n])];
        let mut scales = [put(be, &vec![0f32; blocks + 1]), put(be, &vec![0f32; blocks + 1])];
        let bits = |w: &B::Buf<B::Act>| get(be, w).iter().map(|w| (w.to_f64() as f32).to_bits()).collect();
        let mut left = Vec::new();
        for (t, g) in self.g.iter().enumerate() {
            let acc: Vec<B::Acc> = g.iter().map(|g| B::Acc::from_f64(f64::from(*g))).collect();
            let given: Vec<G> = g.iter().map(|g| G::from_f64(f64::from(*g))).collect();
            let (acc, g, mut norm) = (put(be, &acc), put(be, &given), put(be, &[0f64]));
            be.grad_norm(GradNorm { norm: be.view_mut(&mut norm, 0..1), g: be.view(&acc, self.at.clone()) }).unwrap();
            let (max_grad_norm, rule) = (self.max_grad_norm, (self.rule)(t as u64 + 1));
            let rounding = Rounding::of(7, t as u64, self.index);
            let at = || self.at.clone();
            be.update_bf16(UpdateBf16 {
                w: be.view_mut(&mut w, at()),
                m: be.view_mut(&mut m, at()),
                v: be.view_mut(&mut v, at()),
                g: be.view(&g, at()),
                norm: be.view(&norm, 0..1),
                max_grad_norm,
                rule,
                rounding,
            })
            .unwrap();
            let ([m8, v8], [m_scale, v_scale]) = (&mut codes, &mut scales);
            be.update_8bit(Update8bit {
                w: be.view_mut(&mut w8, at()),
                m: be.view_mut(m8, at()),
                m_scale: be.view_mut(m_scale, 0..blocks),
                v: be.view_mut(v8, at()),
                v_scale: be.view_mut(v_scale, 0..blocks),
                g: be.view(&g, at()),
                norm: be.view(&norm, 0..1),
                max_grad_norm,
                rule,
                rounding,
            })
            .unwrap();
            left.push(Left {
                w: bits(&w),
                m: get(be, &m).iter().map(|x| x.to_bits()).collect(),
                v: get(be, &v).iter().map(|x| x.to_bits()).collect(),
                codes: codes.each_ref().map(|c| get(be, c)),
                scales: scales.each_ref().map(|s| get(be, s).iter().map(|x| x.to_bits()).collect()),
                w8: bits(&w8),
            });
        }
        left
    }
}

fn usual(step: u64) -> Rule {
    Rule::AdamW { lr: 3e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step }
}
fn short(step: u64) -> Rule {
    Rule::AdamW { lr: 1e-3, beta1: 0.5, beta2: 0.9, eps: 1e-12, weight_decay: 0.0, step }
}

/// Numbers of every size that a gradient may have: mostly normal, some 0, tiny, denormal or huge.
fn wild(noise: &mut Noise, n: usize) -> Vec<f32> {
    let one = |noise: &mut Noise| {
        let x = noise.normal();
        let size = match (noise.uniform() * 12.0) as u32 {
            0 => 0.0,
            1 => 10f64.powf(-45.0 * noise.uniform()),
            2 => 10f64.powf(37.0 * noise.uniform()),
            3 => 10f64.powf(-8.0 * noise.uniform()),
            _ => 1.0,
        };
        (x * size) as f32
    };
    (0..n).map(|_| one(noise)).collect()
}

fn cases() -> Vec<(String, Steps)> {
    let mut noise = Noise(260);
    let mut all = Vec::new();
    for (n, from, index) in [
        (1, 0, 0),
        (255, 0, 5),
        (256, 64, u64::from(u32::MAX) - 100),
        (257, 0, 1 << 33),
        (4096, 128, 64),
        (2056, 8, (1 << 32) - 1024),
        (1003, 3, 17),
        (2048, 1, 0),
    ] {
        for (name, rule, max_grad_norm) in
            [("usual", usual as fn(u64) -> Rule, 1.0), ("short", short, 0.0), ("clipped", short, 0.3)]
        {
            let len = n + from + 5;
            let w = noise.vec::<bf16>(len, 1.0).iter().map(|w| *w as f32).collect();
            let gradient = |noise: &mut Noise, t: usize| match (name, t) {
                ("usual", _) => noise.vec::<f32>(len, 1e-3).iter().map(|g| *g as f32).collect(),
                // Clipping huge numbers away leaves denormal ones.
                _ if t == 3 => vec![0.0; len],
                _ => wild(noise, len),
            };
            let mut g: Vec<Vec<f32>> = (0..6).map(|t| gradient(&mut noise, t)).collect();
            g[4][from + n / 2] = f32::NAN;
            let at = from..from + n;
            all.push((format!("{name}, {n} from {from}"), Steps { w, g, at, index, rule, max_grad_norm }));
        }
    }
    all
}

#[test]
fn bits_of_the_cpu() {
    for (what, case) in cases() {
        let want = case.run(&Cpu::<f32>::new().unwrap());
        assert!(want[3] == want[4], "{what}: a norm that is not finite changes nothing");
        assert!(want[4] != want[5], "{what}: and the next step does");
        for level in Level::available() {
            assert!(case.run(&Cpu::<f32>::at(level, cpu::GemmPrecision::Native).unwrap()) == want, "{what}: {level:?}");
        }
        let narrow = case.with::<_, bf16>(&Cpu::<f32>::new().unwrap());
        on_devices!(bf16, [0, 1, 2], |gpu, place| {
            assert!(case.with::<_, bf16>(gpu) == narrow, "{what}, {place}: gradients in bf16");
            for (t, (got, want)) in case.run(gpu).iter().zip(&want).enumerate() {
                for (name, got, want) in [("w", &got.w, &want.w), ("w8", &got.w8, &want.w8)] {
                    let bad = got.iter().zip(want).position(|(g, w)| g != w);
                    let shown = bad.map(|i| (i, f32::from_bits(got[i]), f32::from_bits(want[i])));
                    assert!(bad.is_none(), "{what}, {place}, step {t}: {name} {shown:?}");
                }
                for (got, want) in got.codes.iter().zip(&want.codes) {
                    let bad = got.iter().zip(want).position(|(g, w)| g != w);
                    assert!(bad.is_none(), "{what}, {place}, step {t}: code {:?}", bad.map(|i| (i, got[i], want[i])));
                }
                assert!(got == want, "{what}, {place}, step {t}");
            }
        });
    }
}

/// Every number of both codes, every middle between two and what lies beside it, through one block at a time: the place that a
/// kernel finds is the one that the CPU finds.
#[test]
fn every_code() {
    let mut sizes: Vec<f32> = vec![1.0];
    for code in [code8::SIGNED, code8::UNSIGNED] {
        let s = code.sizes();
        let middles = s.windows(2).map(|s| (s[0] + s[1]) * 0.5);
        for x in s.iter().copied().chain(middles) {
            let near = |by: i32| f32::from_bits(x.to_bits().saturating_add_signed(by));
            sizes.extend([-2, -1, 0, 1, 2].map(near));
        }
        sizes.extend((-6..=0).flat_map(|d| [10f32.powi(d) * 0.999_999_9, 10f32.powi(d), 10f32.powi(d) * 1.000_000_1]));
    }
    sizes.retain(|x| x.is_finite() && *x <= 1.0);
    // The first of a block is 1, its scale. With beta1 = 0 the first moment is the gradient, and the second its square: here roots.
    let rule: fn(u64) -> Rule =
        |step| Rule::AdamW { lr: 1e-3, beta1: 0.0, beta2: 0.0, eps: 1e-8, weight_decay: 0.0, step };
    let of = |as_root: bool| -> Vec<f32> {
        let x = |x: f32| if as_root { x.sqrt() } else { x };
        let blocks = sizes.chunks(255).flat_map(|c| std::iter::once(1.0).chain(c.iter().map(|s| x(*s))));
        blocks.enumerate().map(|(i, x)| if i % 2 == 1 { -x } else { x }).collect()
    };
    let g = vec![of(false), of(true)];
    let n = g[0].len();
    let case = Steps { w: vec![0.5; n], g, at: 0..n, index: 0, rule, max_grad_norm: 0.0 };
    let want = case.run(&Cpu::<f32>::new().unwrap());
    let distinct = |codes: &[u8]| (0..=255u8).filter(|c| codes.contains(c)).count();
    assert!(distinct(&want[0].codes[0]) >= 254 && distinct(&want[1].codes[1]) >= 254, "all codes were met");
    on_devices!(bf16, [0], |gpu, place| {
        assert!(case.run(gpu) == want, "{place}");
    });
}

/// Sums in bf16 and what reads them: a product, the embedding's rows, the norm, AdamW and RMSprop with states in single precision.
struct Narrow {
    rows: usize,
    sizes: (usize, usize),
    dy: Vec<f64>,
    x: Vec<f64>,
    dw: Vec<f64>,
}
impl Case for Narrow {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let ((out, inp), n) = (self.sizes, self.dw.len());
        let (dy, x) = (buf::<B, B::Act>(be, &self.dy), buf::<B, B::Act>(be, &self.x));
        let (mut dw, mut part) = (buf::<B, bf16>(be, &self.dw), buf::<B, bf16>(be, &self.dw[inp..]));
        let op = LinearBwdWeight { dw: v!(be, mut dw), dy: v!(be, dy), x: v!(be, x), out, inp, write: Write::Add };
        be.linear_bwd_weight(op).unwrap();
        let (dy, x) = (v!(be, dy), v!(be, x));
        be.linear_bwd_part(LinearBwdPart { dw: v!(be, mut part), dy, x, columns: 1..out, out, inp }).unwrap();
        let (g, vectors) = (buf::<B, bf16>(be, &self.dw), buf::<B, B::Acc>(be, &self.dy));
        let mut norm = unset::<B, f64>(be, 1);
        let (norm_out, matrices, vectors) = (v!(be, mut norm), v!(be, g), v!(be, vectors));
        be.grad_norm_narrow(GradNormNarrow { norm: norm_out, matrices, vectors }).unwrap();
        let mut outputs: Outputs = vec![("dw", fetch(be, &dw), true), ("part", fetch(be, &part), true)];
        outputs.push(("norm", fetch::<B, f64>(be, &norm), false));
        for (rmsprop, name) in [(false, "adamw"), (true, "rmsprop")] {
            let mut w = buf::<B, B::Act>(be, &self.dw);
            let mut master = B::MASTER_WEIGHTS.then(|| buf::<B, B::Acc>(be, &self.dw));
            let (mut m, mut v) = (buf::<B, B::Acc>(be, &vec![0.1; n]), buf::<B, B::Acc>(be, &vec![0.2; n]));
            let rule = match rmsprop {
                true => Rule::RmsProp { lr: 1e-2, alpha: 0.9, eps: 1e-8, weight_decay: 0.0 },
                false => Rule::AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: 3 },
            };
            let shadow = master.as_mut().map(|m| v!(be, mut *m));
            let (m, v) = (v!(be, mut m), v!(be, mut v));
            let (w_out, norm) = (v!(be, mut w), v!(be, norm));
            be.update(Update { w: w_out, master: shadow, m, v, g: v!(be, g), norm, max_grad_norm: 1.0, rule }).unwrap();
            let master = master.map_or_else(|| fetch::<B, B::Act>(be, &w), |m| fetch::<B, B::Acc>(be, &m));
            outputs.extend([(name, master, false), (name, fetch(be, &w), true)]);
        }
        outputs
    }
    fn terms(&self, output: &str) -> f64 {
        if ["dw", "part"].contains(&output) { self.rows as f64 } else { 0.0 }
    }
}

#[test]
fn gradients_in_bf16() {
    for (rows, out, inp) in [(1, 2, 1), (13, 9, 24), (40, 17, 33), (6, 64, 72)] {
        let mut noise = Noise(rows as u64);
        let mut vec = |n: usize| noise.vec::<bf16>(n, 1.0);
        let case = Narrow { rows, sizes: (out, inp), dy: vec(rows * out), x: vec(rows * inp), dw: vec(out * inp) };
        compare::<bf16>(&format!("gradients in bf16, {rows} x {out} x {inp}"), &case);
    }
}

/// What cannot be is refused before anything is launched.
#[test]
fn refused() {
    let Some(driver) = host_driver(1) else { return };
    let gpu = Gpu::<_, f32>::new(driver).unwrap();
    let refuse = |rule| {
        let (mut w, mut m, mut v) = (put(&gpu, &[0f32; 4]), put(&gpu, &[bf16::ZERO; 4]), put(&gpu, &[bf16::ZERO; 4]));
        let (g, norm, rounding) = (put(&gpu, &[0f32; 4]), put(&gpu, &[1f64]), Rounding::of(0, 0, 0));
        let (w, m, v) = (w.all_mut(), m.all_mut(), v.all_mut());
        gpu.update_bf16(UpdateBf16 { w, m, v, g: g.all(), norm: norm.all(), max_grad_norm: 1.0, rule, rounding })
    };
    let e = refuse(usual(1)).unwrap_err().to_string();
    assert_eq!(e, "update_bf16: weights are stored in f32 here, and small states need bf16");
    let cpu = Cpu::<f32>::new().unwrap();
    let rms = Rule::RmsProp { lr: 1e-3, alpha: 0.9, eps: 1e-8, weight_decay: 0.0 };
    let (m, v) = (&mut [bf16::ZERO][..], &mut [bf16::ZERO][..]);
    let (w, norm, rounding) = (&mut [1f32][..], &[1f64][..], Rounding::of(0, 0, 0));
    let op = UpdateBf16::<Cpu<f32>> { w, m, v, g: &[1f32], norm, max_grad_norm: 1.0, rule: rms, rounding };
    assert_eq!(cpu.update_bf16(op).unwrap_err().to_string(), "update_bf16: small states are AdamW's alone");
    let (m, v, w) = (&mut [0u8; 257][..], &mut [0u8; 257][..], &mut [1f32; 257][..]);
    let (m_scale, v_scale, g) = (&mut [0f32; 2][..], &mut [0f32; 1][..], &[1f32; 257][..]);
    let rule = usual(1);
    let op = Update8bit::<Cpu<f32>> { w, m, m_scale, v, v_scale, g, norm, max_grad_norm: 1.0, rule, rounding };
    let e = cpu.update_8bit(op).unwrap_err().to_string();
    assert_eq!(e, "update_8bit: `v_scale` has 1 elements, expected 2 = blocks=2");
    assert!(cuda::<bf16>().is_none() || gpu.driver().launches() == 0);
}
