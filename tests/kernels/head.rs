//! The fused head: statistics, the gradient in place of the logits, and the products behind it.

use crate::batches::{ANY_HEADS, capacity, chunk, micro_batch};
use crate::check::{assert_bf16_rule, assert_close};
use crate::{Case, F32, Noise, Outputs, SEEDS, assert_outputs, both, buf, compare, fetch, on_devices, unset, v};
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::driver::Dtype;
use fusedpo::backend::gpu::{Gpu, GpuFloat};
use fusedpo::backend::*;
use fusedpo::batch::MicroBatch;
use half::bf16;
use std::ops::Range;

struct Head {
    micro: MicroBatch,
    groups: Range<usize>,
    dim: usize,
    vocab: usize,
    x: Vec<f64>,
    w: Vec<f64>,
    coef: Vec<f64>,
    mode: HeadMode,
    /// Storage type, for `plain`.
    bf16: bool,
    /// Logits in bf16 but for the target's.
    narrow: bool,
}

impl Head {
    /// Statistics, and the logits buffer as it is left.
    fn forward<B: Backend>(&self, be: &B) -> ([Vec<f64>; 4], B::Buf<B::Acc>) {
        let mut batch = be.new_batch(capacity(&self.micro), ANY_HEADS).unwrap();
        be.load_batch(&mut batch, &self.micro).unwrap();
        let chunk = chunk(&self.micro, self.groups.clone());
        let n = chunk.predictions.len();
        let (x, w) = (buf::<B, B::Act>(be, &self.x), buf::<B, B::Act>(be, &self.w));
        let mut logits = unset::<B, B::Acc>(be, (n + 1) * self.vocab);
        let mut stats = [(); 4].map(|()| unset::<B, B::Acc>(be, n));
        let [logp, entropy, log_sum_p2, hit] = &mut stats;
        be.head_fwd(HeadFwd {
            logp: v!(be, mut *logp),
            entropy: v!(be, mut *entropy),
            log_sum_p2: v!(be, mut *log_sum_p2),
            hit: v!(be, mut *hit),
            logits: v!(be, mut logits),
            x: v!(be, x),
            w: v!(be, w),
            batch: &batch,
            chunk: &chunk,
            mode: self.mode,
        })
        .unwrap();
        (stats.map(|s| fetch::<B, B::Acc>(be, &s)), logits)
    }
    fn rows(&self) -> usize {
        self.coef.len()
    }
    /// G in f64.
    fn gradient(&self) -> Vec<f64> {
        let cpu = Cpu::<f64>::new().unwrap();
        let cpu = if self.narrow { cpu.with_bf16_logits() } else { cpu };
        fetch::<Cpu<f64>, f64>(&cpu, &self.forward(&cpu).1)[..self.rows() * self.vocab].to_vec()
    }
}

impl Case for Head {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let ([logp, entropy, p2, hit], logits) = self.forward(be);
        let mut outputs =
            vec![("logp", logp, false), ("entropy", entropy, false), ("log_sum_p2", p2, false), ("hit", hit, false)];
        if self.mode == HeadMode::Train {
            let (x, w) = (buf::<B, B::Act>(be, &self.x), buf::<B, B::Act>(be, &self.w));
            let coef = buf::<B, B::Acc>(be, &self.coef);
            let mut dx = unset::<B, B::Act>(be, self.x.len());
            let mut dw = buf::<B, B::Acc>(be, &vec![0.125; self.w.len()]);
            let mut scaled = unset::<B, B::Act>(be, self.x.len() + 5);
            be.head_bwd(HeadBwd {
                dx: v!(be, mut dx),
                dw: Some((v!(be, mut dw), Write::Add)),
                scaled: v!(be, mut scaled),
                logits: v!(be, logits),
                x: v!(be, x),
                w: v!(be, w),
                coef: v!(be, coef),
            })
            .unwrap();
            let mut dw_set = unset::<B, B::Acc>(be, self.w.len());
            be.head_bwd(HeadBwd {
                dx: v!(be, mut dx),
                dw: Some((v!(be, mut dw_set), Write::Set)),
                scaled: v!(be, mut scaled),
                logits: v!(be, logits),
                x: v!(be, x),
                w: v!(be, w),
                coef: v!(be, coef),
            })
            .unwrap();
            let mut frozen = unset::<B, B::Act>(be, self.x.len());
            be.head_bwd(HeadBwd::<B, B::Acc> {
                dx: v!(be, mut frozen),
                dw: None,
                scaled: v!(be, mut scaled),
                logits: v!(be, logits),
                x: v!(be, x),
                w: v!(be, w),
                coef: v!(be, coef),
            })
            .unwrap();
            assert_eq!(fetch(be, &frozen), fetch(be, &dx), "a frozen head changes nothing else");
            // dw sums bf16 products: an activation's rounding, in f32.
            outputs.extend([
                ("dx", fetch(be, &dx), true),
                ("dw", fetch(be, &dw), true),
                ("dw set", fetch(be, &dw_set), true),
            ]);
        }
        outputs
    }
    /// Logarithms of sums that start at 1.
    fn terms(&self, output: &str) -> f64 {
        if ["logp", "entropy", "log_sum_p2"].contains(&output) { 1.0 } else { 0.0 }
    }
    /// Logits are sums over a row of `x`; of dx, the terms of a row of G add up to 2 at most, and summed in any order K of them err
    /// by 4 sqrt(K) rounding units, but for one time in a thousand (Higham and Mary, 2019).
    fn product_terms(&self, output: &str) -> f64 {
        match output {
            "logp" | "entropy" | "log_sum_p2" => self.x.iter().map(|x| x.abs()).sum::<f64>() / self.rows() as f64,
            "dx" => (self.vocab as f64).sqrt().max(2.0) / 2.0 * 2.0 * self.coef.iter().fold(0.0, |m, c| c.abs().max(m)),
            _ => 0.0,
        }
    }
    /// G, `c x` and the product before `c` are kept in bf16.
    fn plain(&self) -> Option<Outputs> {
        if !self.bf16 || self.mode == HeadMode::Score {
            return None;
        }
        let r = |x: f64| bf16::from_f64(x).to_f64();
        let g: Vec<f64> = self.gradient().into_iter().map(r).collect();
        let (dim, vocab) = (self.dim, self.vocab);
        let mut dx = vec![0.0; self.x.len()];
        let mut dw = vec![0.0; self.w.len()];
        for n in 0..self.rows() {
            let (g, c) = (&g[n * vocab..][..vocab], self.coef[n]);
            for j in 0..dim {
                let sum: f64 = g.iter().enumerate().map(|(t, g)| g * self.w[t * dim + j]).sum();
                dx[n * dim + j] = r(c * r(sum));
                let scaled = r(c * self.x[n * dim + j]);
                g.iter().enumerate().for_each(|(t, g)| dw[t * dim + j] += g * scaled);
            }
        }
        let empty = ("", Vec::new(), false);
        let added = dw.iter().map(|d| d + 0.125).collect();
        let products = [("dx", dx, true), ("dw", added, true), ("dw set", dw, true)];
        Some([empty.clone(), empty.clone(), empty.clone(), empty].into_iter().chain(products).collect())
    }
}

fn case<A: GpuFloat>(vocab: usize, dim: usize, scale: f64, mode: HeadMode) -> Head {
    let mut noise = Noise(vocab as u64);
    let groups: [(u32, &[u32]); 3] = [(2, &[1, 2]), (3, &[2, 1]), (1, &[1])];
    let micro = micro_batch(24, &groups, vocab as u32, || noise.uniform());
    let groups = 1..3;
    let n = chunk(&micro, groups.clone()).predictions.len();
    Head {
        micro,
        groups,
        dim,
        vocab,
        x: noise.vec::<A>(n * dim, scale),
        w: noise.vec::<A>(vocab * dim, 1.0),
        coef: noise.vec::<f32>(n, 0.1),
        mode,
        bf16: A::DTYPE == Dtype::Bf16,
        narrow: false,
    }
}

// Odd, one tile, several, more than a group of four; enough groups, odd and whole, that G passes some without a barrier; flat
// and peaked rows.
const SIZES: [(usize, usize, f64); 8] = [
    (2, 3, 1.0),
    (33, 4, 1.0),
    (1000, 8, 6.0),
    (4099, 3, 2.0),
    (8200, 2, 1.0),
    (16404, 2, 9.0),
    (66001, 1, 3.0),
    (65544, 1, 3.0),
];

fn head<A: GpuFloat>() {
    for (vocab, dim, scale) in SIZES {
        for mode in [HeadMode::Train, HeadMode::Score] {
            compare::<A>(&format!("head of {vocab}, {mode:?}"), &case::<A>(vocab, dim, scale, mode));
        }
    }
}
both!(head);

/// Logits in bf16 but for the target's: of products that are exact in f32, so that they round to the same bf16 everywhere.
#[test]
fn logits_in_bf16() {
    let oracle = || Cpu::<f64>::new().unwrap().with_bf16_logits();
    for (vocab, dim, scale) in SIZES {
        for mode in [HeadMode::Train, HeadMode::Score] {
            let on_grid = |v: &mut Vec<f64>| v.iter_mut().for_each(|x| *x = (x.clamp(-9.0, 9.0) * 8.0).round() / 8.0);
            let mut case = Head { narrow: true, ..case::<bf16>(vocab, dim, scale, mode) };
            on_grid(&mut case.x);
            on_grid(&mut case.w);
            let what = format!("head of {vocab}, logits in bf16, {mode:?}");
            let (exact, n) = (case.run(&oracle()), case.rows());
            assert!(exact[0].1.iter().all(|logp| *logp <= 0.0), "{what}");
            let other = case.run(&Cpu::<f64>::new().unwrap());
            assert!(dim < 8 || exact[0].1 != other[0].1, "{what}: rounding shows");
            on_devices!(bf16, SEEDS, |gpu, place| {
                let gpu = &gpu.with_bf16_logits().unwrap();
                assert_outputs::<bf16>(&what, &case, place, &case.run(gpu), &exact);
                let logits = case.forward(gpu).1;
                let mut raw = vec![0.0f32; (n + 1) * vocab];
                gpu.get(&mut raw, logits.all()).unwrap();
                let behind = (n * vocab).div_ceil(2);
                assert!(raw[behind..].iter().all(|z| z.is_nan()), "{what}: half of the memory is enough");
            });
        }
    }
    let Some(driver) = crate::host::host_driver(0) else { return };
    let refused = Gpu::<_, f32>::new(driver).unwrap().with_bf16_logits().err().unwrap();
    assert!(refused.to_string().contains("`logits_dtype` bf16 needs `dtype` bf16"), "{refused}");
}

/// Of equal largest logits the first counts, wherever the other lies: in the same pack, the same thread's next pack, another lane,
/// another warp, and the next group of 16,384 (by the same thread and by another).
fn ties<A: GpuFloat>() {
    const LOW: usize = 5;
    for vocab in [40_000, 40_003] {
        for high in [LOW + 1, LOW + 4096, LOW + 9, LOW + 133, LOW + 16_384, LOW + 20_000, LOW + 32_768] {
            let mut noise = Noise(high as u64);
            // All tokens are one: the first of the two, or the other.
            for aim in [LOW, high] {
                let micro = micro_batch(6, &[(2, &[1, 2])], vocab as u32, || (aim as f64 + 0.5) / vocab as f64);
                let n = chunk(&micro, 0..1).predictions.len();
                let mut w: Vec<f64> = noise.vec::<A>(vocab, 0.25);
                w[LOW] = 4.0;
                w[high] = 4.0;
                let case = Head {
                    micro,
                    groups: 0..1,
                    dim: 1,
                    vocab,
                    x: vec![1.5; n],
                    w,
                    coef: vec![0.0; n],
                    mode: HeadMode::Score,
                    bf16: A::DTYPE == Dtype::Bf16,
                    narrow: false,
                };
                let hits = &case.run(&Cpu::<f64>::new().unwrap())[3].1;
                assert!(hits.iter().all(|h| *h == f64::from(u8::from(aim == LOW))), "the reference itself");
                compare::<A>(&format!("head of {vocab}, largest at {LOW} and {high}, target {aim}"), &case);
            }
        }
    }
}
both!(ties);

/// G itself, where it lies: each row of G at the start of its row of logits.
fn gradient_in_place<A: GpuFloat>() {
    for (vocab, dim, scale) in SIZES {
        let case = case::<A>(vocab, dim, scale, HeadMode::Train);
        let want = case.gradient();
        on_devices!(A, SEEDS, |gpu, place| {
            let logits = case.forward(gpu).1;
            let mut raw = vec![0.0f32; (case.rows() + 1) * vocab];
            gpu.get(&mut raw, logits.all()).unwrap();
            let elements: &[A] = bytemuck::cast_slice(&raw);
            let ld = vocab * 4 / size_of::<A>();
            let got: Vec<f64> =
                (0..case.rows()).flat_map(|n| elements[n * ld..][..vocab].iter().map(|g| g.to_f64())).collect();
            let name = format!("G of {vocab} ({place})");
            match A::DTYPE {
                Dtype::Bf16 => {
                    let plain: Vec<f64> = want.iter().map(|w| bf16::from_f64(*w).to_f64()).collect();
                    assert_bf16_rule(&name, &got, &plain, &want, 0.0);
                }
                Dtype::F32 => assert_close(&name, &got, &want, F32, 0.0),
            }
            assert!(
                raw[case.rows() * vocab..].iter().all(|z| z.is_nan()),
                "{name}: rows behind the chunk are untouched"
            );
        });
    }
}
both!(gradient_in_place);

/// What a block keeps between its passes changes no bit: none, a group, two and three of f32, up to six of bf16; of rows that are
/// kept whole, in part, and of odd width, which are not.
fn kept_logits<A: GpuFloat>() {
    for (vocab, dim, scale) in [(1000, 8, 6.0), (16_404, 2, 9.0), (49_152, 1, 3.0), (50_003, 1, 3.0), (114_696, 1, 2.0)]
    {
        let case = case::<A>(vocab, dim, scale, HeadMode::Train);
        let run = |narrow: bool, shared: usize| {
            let driver = crate::host::host_driver(5)?.with_max_shared(shared << 10);
            let gpu = Gpu::<_, A>::new(driver).unwrap();
            let gpu = if narrow { gpu.with_bf16_logits().unwrap() } else { gpu };
            let (stats, logits) = case.forward(&gpu);
            let mut raw = vec![0.0f32; (case.rows() + 1) * vocab];
            gpu.get(&mut raw, logits.all()).unwrap();
            let bits: Vec<u32> = raw.iter().map(|x| x.to_bits()).collect();
            Some((stats.map(|s| s.iter().map(|x| x.to_bits()).collect::<Vec<_>>()), bits))
        };
        for narrow in [false, true].into_iter().filter(|narrow| !narrow || A::DTYPE == Dtype::Bf16) {
            let Some(none) = run(narrow, 0) else { return };
            for shared in [48, 65, 99, 163, 227] {
                assert!(run(narrow, shared) == Some(none.clone()), "{vocab}, narrow {narrow}, {shared} KiB");
            }
        }
    }
}
both!(kept_logits);
