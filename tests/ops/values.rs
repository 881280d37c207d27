//! Values: against plain f64 loops, and `f32` against `f64` on the same numbers, at every SIMD level of this CPU.

use super::naive;
use super::run::{self, Head};
use super::support::*;
use fusedpo::backend::cpu::gemm::{Base, HasGemm, Mat};
use fusedpo::backend::cpu::{Cpu, GemmPrecision, Level, Real};
use fusedpo::backend::*;
use fusedpo::batch::{Builder, MicroBatch};

/// Within `units` of 2^-24 of the largest wanted value: for results that are sums of terms of about that size, whose
/// rounding errors add up like a random walk.
#[track_caller]
fn assert_f32(name: &str, got: &[f32], want: &[f64], units: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    let tol = units * 2f64.powi(-24) * want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() <= tol, "{name}[{i}]: got {g}, want {w}, tolerance {tol:e}");
    }
}

#[test]
#[should_panic(expected = "x[1]")]
fn nan_is_not_close() {
    assert_f32("x", &[1.0, f32::NAN], &[1.0, 1.0], 1e9);
}

fn levels() -> Vec<(Cpu<f32>, Cpu<f64>)> {
    let at = |l| (Cpu::at(l, GemmPrecision::Native).unwrap(), Cpu::at(l, GemmPrecision::Native).unwrap());
    Level::available().into_iter().map(at).collect()
}

/// `a b^T` in all four layouts and three bases, sizes around tiles and blocks.
#[test]
fn products() {
    let mut noise = Noise(20);
    let sizes =
        [(1, 1, 1), (2, 3, 1), (13, 33, 7), (12, 32, 384), (25, 64, 385), (61, 7, 769), (5, 131, 1000), (131, 5, 3)];
    for (c32, c64) in levels() {
        for (m, n, k) in sizes {
            let (a, b, plus) = (noise.vec32(m * k), noise.vec32(n * k), noise.vec32(m * n));
            let want: Vec<f64> =
                (0..m * n).map(|i| (0..k).map(|p| a[i / n * k + p] * b[i % n * k + p]).sum()).collect();
            let flip =
                |x: &[f64], lines: usize| (0..x.len()).map(|i| x[i % lines * k + i / lines]).collect::<Vec<f64>>();
            let (at, bt) = (flip(&a, m), flip(&b, n));
            for (a_by_k, b_by_k) in [(false, false), (false, true), (true, false), (true, true)] {
                let (a, b) = (if a_by_k { &at } else { &a }, if b_by_k { &bt } else { &b });
                fn mat<S>(x: &[S], by_k: bool, lines: usize, k: usize) -> Mat<'_, S> {
                    if by_k { Mat::by_k(x, lines) } else { Mat::by_line(x, k) }
                }
                let mut c = nan(m * n);
                f64::gemm(c64.gemm(), &mut c, Base::Zero, mat(a, a_by_k, m, k), mat(b, b_by_k, n, k), [m, n, k]);
                assert_close("f64", &c, &want, 1e-12);
                let (a, b, mut c) = (of::<f32>(a), of::<f32>(b), nan(m * n));
                let (a, b) = (mat(&a, a_by_k, m, k), mat(&b, b_by_k, n, k));
                f32::gemm(c32.gemm(), &mut c, Base::Zero, a, b, [m, n, k]);
                let units = 4.0 + 2.0 * (k as f64).sqrt();
                assert_f32("f32", &c, &want, units);
                let sum: Vec<f64> = want.iter().zip(&plus).map(|(w, p)| w + p).collect();
                let (plus, mut d) = (of::<f32>(&plus), nan(m * n));
                f32::gemm(c32.gemm(), &mut d, Base::Other(&plus), a, b, [m, n, k]);
                assert_f32("f32 plus", &d, &sum, units + 2.0);
                d.clone_from(&plus);
                f32::gemm(c32.gemm(), &mut d, Base::Output, a, b, [m, n, k]);
                assert_f32("f32 add", &d, &sum, units + 2.0);
            }
        }
    }
}

/// bf16 products are the f32 products of operands rounded to bf16, to f32 rounding, in every layout.
#[test]
fn bf16_products() {
    for cpu in cpus_bf16() {
        assert!(cpu.fingerprint().contains("bf16") && cpu.description().contains("bf16"));
        bf16_products_of(&cpu, &mut Noise(27));
    }
}

fn bf16_products_of(cpu: &Cpu<f32>, noise: &mut Noise) {
    let sizes =
        [(1, 1, 1), (2, 3, 1), (5, 33, 7), (12, 32, 768), (13, 65, 769), (61, 7, 33), (5, 131, 1600), (40, 70, 31)];
    for (m, n, k) in sizes {
        let (a, b, plus) = (noise.vec32(m * k), noise.vec32(n * k), noise.vec32(m * n));
        let round = |x: &[f64]| x.iter().map(|x| half::bf16::from_f32(*x as f32).to_f64()).collect::<Vec<f64>>();
        let (ra, rb) = (round(&a), round(&b));
        let product = |i: usize| (0..k).map(|p| ra[i / n * k + p] * rb[i % n * k + p]).sum::<f64>();
        let want: Vec<f64> = (0..m * n).map(|i| product(i) + plus[i]).collect();
        let flip = |x: &[f64], lines: usize| (0..x.len()).map(|i| x[i % lines * k + i / lines]).collect::<Vec<f64>>();
        let (a32, at, b32, bt) = (of::<f32>(&a), of::<f32>(&flip(&a, m)), of::<f32>(&b), of::<f32>(&flip(&b, n)));
        let plus = of::<f32>(&plus);
        for a in [Mat::by_line(&a32, k), Mat::by_k(&at, m)] {
            for b in [Mat::by_line(&b32, k), Mat::by_k(&bt, n)] {
                let mut c = nan(m * n);
                f32::gemm(cpu.gemm(), &mut c, Base::Other(&plus), a, b, [m, n, k]);
                assert_f32("bf16", &c, &want, 6.0 + 2.0 * (k as f64).sqrt());
            }
        }
    }
}

#[test]
fn attention_is_the_masked_formula() {
    let mut noise = Noise(21);
    for (c32, c64) in levels() {
        for shape in SHAPES {
            let m = micro(GROUPS, 5, 11, &mut noise);
            let qkv: Vec<f64> = noise.vec32(m.used() * shape.qkv_width()).iter().map(|x| 3.0 * x).collect();
            let (out, lse) = naive::attention(&qkv, &m, *shape);
            let (got, got_lse) = run::attention(&c64, &qkv, &loaded(&c64, &m), *shape);
            assert_close("out", &got, &out, 1e-11);
            assert_close("lse", &got_lse, &lse, 1e-11);
            let qkv32 = of::<f32>(&qkv);
            let (got, got_lse) = run::attention(&c32, &qkv32, &loaded(&c32, &m), *shape);
            // Scores of up to 9 sqrt(d) carry errors of some 2^-24 of that into the exponent.
            let units = 16.0 + 36.0 * (shape.head_dim as f64).sqrt();
            assert_f32("out f32", &got, &out, units);
            assert_f32("lse f32", &got_lse, &lse, 64.0);
            let dout = noise.vec32(m.used() * shape.q_width());
            let want = run::attention_bwd(&c64, &dout, &qkv, &loaded(&c64, &m), *shape);
            let got = run::attention_bwd(&c32, &of::<f32>(&dout), &qkv32, &loaded(&c32, &m), *shape);
            assert_f32("dqkv f32", &got, &want, 4.0 * units);
        }
    }
}

/// Root mean square.
fn rms(x: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = x.into_iter().fold((0.0, 0.0), |(s, n), x| (s + x * x, n + 1.0));
    (sum / f64::max(n, 1.0)).sqrt()
}

/// In bf16 every operand is rounded: with inputs rounded beforehand what is left is the rounding of `p` and `ds`, a 2^-9th
/// of each at most.
#[test]
fn attention_in_bf16() {
    let (mut noise, oracle) = (Noise(28), cpu64());
    let round = |x: f64| half::bf16::from_f32(x as f32).to_f64();
    for cpu in cpus_bf16() {
        for shape in SHAPES {
            let m = micro(GROUPS, 5, 11, &mut noise);
            let (w, scale) = (shape.qkv_width(), 1.0 / (shape.head_dim as f64).sqrt());
            let qkv = of::<f32>(&noise.vec32(m.used() * w).iter().map(|x| 2.0 * x).collect::<Vec<f64>>());
            // Queries are rounded after they have been scaled.
            let rounded = |(i, x): (usize, &f32)| match i % w < shape.q_width() {
                true => round(f64::from(*x * scale as f32)) / scale,
                false => round(f64::from(*x)),
            };
            let inputs: Vec<f64> = qkv.iter().enumerate().map(rounded).collect();
            let dout: Vec<f64> = noise.vec32(m.used() * shape.q_width()).into_iter().map(round).collect();
            let (batch, exact) = (loaded(&cpu, &m), loaded(&oracle, &m));
            let (out, lse) = run::attention(&cpu, &qkv, &batch, *shape);
            let (want, want_lse) = run::attention(&oracle, &inputs, &exact, *shape);
            assert_f32("lse bf16", &lse, &want_lse, 64.0);
            let error = |got: &[f32], want: &[f64]| {
                assert_eq!(got.len(), want.len());
                rms(got.iter().zip(want).map(|(g, w)| f64::from(*g) - w)) / rms(want.iter().copied())
            };
            let forward = error(&out, &want);
            assert!(forward <= 2f64.powi(-9), "{shape:?}: out {forward:e}");
            let dqkv = run::attention_bwd(&cpu, &of::<f32>(&dout), &qkv, &batch, *shape);
            let want = run::attention_bwd(&oracle, &dout, &inputs, &exact, *shape);
            let backward = error(&dqkv, &want);
            println!("{shape:?}: {forward:.1e} forward, {backward:.1e} backward");
            assert!(backward <= 2f64.powi(-8), "{shape:?}: dqkv {backward:e}");
        }
    }
}

/// Rows that no segment holds give zeros, and their gradient is zero.
#[test]
fn rows_in_no_segment() {
    let (cpu, mut noise, shape) = (cpu64(), Noise(22), SHAPES[0]);
    let mut b = Builder::default();
    (0..9).for_each(|i| b.cached(noise.below(11) as u32, i).unwrap()); // sequences that attend to a cache instead
    let m = b.finish(12).unwrap();
    let batch = loaded(&cpu, &m);
    let qkv = noise.vec(m.used() * shape.qkv_width());
    let (out, lse) = run::attention(&cpu, &qkv, &batch, shape);
    let want = naive::attention(&qkv, &m, shape);
    assert_close("out", &out, &want.0, 1e-12);
    assert_close("lse", &lse, &want.1, 1e-12);
    let dqkv = run::attention_bwd(&cpu, &vec![1.0; out.len()], &qkv, &batch, shape);
    assert_eq!(dqkv.len(), 9 * shape.qkv_width());
    assert!(out.iter().chain(&dqkv).all(|d| *d == 0.0));
}

#[test]
fn elementwise_f32_against_f64() {
    let mut noise = Noise(23);
    for (c32, c64) in levels() {
        let (rows, dim) = (9, 201);
        let (x, w, dy) = (noise.vec32(rows * dim), noise.vec32(dim), noise.vec32(rows * dim));
        let (x32, w32, dy32) = (of::<f32>(&x), of::<f32>(&w), of::<f32>(&dy));
        let ((y, rstd), (y32, rstd32)) = (run::rmsnorm(&c64, &x, &w), run::rmsnorm(&c32, &x32, &w32));
        assert_f32("rmsnorm y", &y32, &y, 4.0);
        assert_f32("rmsnorm rstd", &rstd32, &rstd, 2.0);
        let (mut dx, mut dw) = (nan(rows * dim), vec![0.0; dim]);
        c64.rmsnorm_bwd(RmsNormBwd {
            dx: &mut dx,
            dw: Some(&mut dw),
            dy: &mut dy.clone(),
            x: &x,
            w: &w,
            rstd: &rstd,
            write: Write::Set,
            again: false,
        })
        .unwrap();
        let (mut dx32, mut dw32) = (nan(rows * dim), vec![0.0; dim]);
        c32.rmsnorm_bwd(RmsNormBwd {
            dx: &mut dx32,
            dw: Some(&mut dw32),
            dy: &mut dy32.clone(),
            x: &x32,
            w: &w32,
            rstd: &rstd32,
            write: Write::Set,
            again: false,
        })
        .unwrap();
        assert_f32("rmsnorm dx", &dx32, &dx, 8.0);
        assert_f32("rmsnorm dw", &dw32, &dw, 16.0);

        let gate_up: Vec<f64> = noise.vec32(2 * rows * dim).iter().map(|x| 12.0 * x).collect();
        let act = run::swiglu(&c64, &gate_up, dim);
        assert_f32("swiglu", &run::swiglu(&c32, &of::<f32>(&gate_up), dim), &act, 4.0);
        let (mut d, mut d32) = (gate_up.clone(), of::<f32>(&gate_up));
        c64.swiglu_bwd(SwigluBwd { gate_up: &mut d, dact: &mut dy.clone(), ffn: dim, again: false }).unwrap();
        c32.swiglu_bwd(SwigluBwd { gate_up: &mut d32, dact: &mut dy32.clone(), ffn: dim, again: false }).unwrap();
        // Ten roundings one after the other, and an exp of 2 ulp.
        assert_f32("swiglu backward", &d32, &d, 14.0);

        let shape = SHAPES[3];
        let m = micro(GROUPS, 2, 11, &mut noise);
        let mut qkv = noise.vec32(m.used() * shape.qkv_width());
        let mut qkv32 = of::<f32>(&qkv);
        c64.rope_fwd(RopeFwd {
            qkv: &mut qkv,
            bias: None,
            table: &run::rope_table(150, 64),
            batch: &loaded(&c64, &m),
            shape,
        })
        .unwrap();
        c32.rope_fwd(RopeFwd {
            qkv: &mut qkv32,
            bias: None,
            table: &run::rope_table(150, 64),
            batch: &loaded(&c32, &m),
            shape,
        })
        .unwrap();
        assert_f32("rope", &qkv32, &qkv, 4.0);
    }
}

/// Statistics of logits, from their definitions.
fn statistics(logits: &[f64], vocab: usize, m: &MicroBatch) -> Head<f64> {
    let mut want = Head { logits: vec![], logp: vec![], entropy: vec![], log_sum_p2: vec![], hit: vec![] };
    for (z, p) in logits.chunks(vocab).zip(m.predictions()) {
        let max = z.iter().fold(f64::NEG_INFINITY, |m, z| m.max(*z));
        let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let p_of = |z: &f64| (z - lse).exp();
        want.logp.push(z[p.target as usize] - lse);
        want.entropy.push(-z.iter().map(|z| p_of(z) * (z - lse)).sum::<f64>());
        want.log_sum_p2.push(z.iter().map(|z| p_of(z).powi(2)).sum::<f64>().ln());
        want.hit.push(f64::from(u8::from(z[p.target as usize] == max)));
        want.logits.extend(z.iter().enumerate().map(|(i, z)| f64::from(u8::from(i == p.target as usize)) - p_of(z)));
    }
    want
}

/// Statistics and gradient of the logits that the backend itself computes, over more than one block of the vocabulary:
/// within `tol` of the formulas, relative. The logits are checked as products.
fn check_head<S: Real>(cpu: &Cpu<S>, m: &MicroBatch, x: &[f64], w: &[f64], dim: usize, tol: f64) {
    let (batch, chunk, vocab, n) = (loaded(cpu, m), whole(m), w.len() / dim, m.predictions().len());
    let (x, w) = (of::<S>(x), of::<S>(w));
    let mut logits = nan(n * vocab);
    cpu.logits(Logits { logits: &mut logits, x: &x, w: &w, dim }).unwrap();
    let want = statistics(&f64s(&logits), vocab, m);
    let got = run::head(cpu, &x, &w, vocab, &batch, &chunk, HeadMode::Train);
    let score = run::head(cpu, &x, &w, vocab, &batch, &chunk, HeadMode::Score);
    assert_eq!((&score.logp, &score.entropy), (&got.logp, &got.entropy), "both modes agree to the bit");
    let close = |name: &str, got: &[S], want: &[f64], tol: f64| {
        for (i, (g, w)) in f64s(got).iter().zip(want).enumerate() {
            assert!((g - w).abs() <= tol * (1.0 + w.abs()), "{name}[{i}]: {g} {w}");
        }
    };
    close("logp", &got.logp, &want.logp, tol);
    close("entropy", &got.entropy, &want.entropy, tol);
    close("log_sum_p2", &got.log_sum_p2, &want.log_sum_p2, tol);
    close("hit", &got.hit, &want.hit, 0.0);
    close("G", &got.logits, &want.logits, tol);
}

#[test]
fn head_statistics() {
    let (mut noise, vocab, dim) = (Noise(24), 2049, 24);
    let m = micro(GROUPS, 2, vocab, &mut noise);
    let x: Vec<f64> = noise.vec32(m.predictions().len() * dim).iter().map(|x| 4.0 * x).collect();
    let w = noise.vec32(vocab * dim);
    for (c32, c64) in levels() {
        check_head(&c64, &m, &x, &w, dim, 1e-13);
        // Sixteen additions to a sum between 1 and 2 round by at most 2^-24 each: half of that.
        check_head(&c32, &m, &x, &w, dim, 5e-7);
    }
}

/// Equal logits: the lowest index counts as the argmax.
#[test]
fn a_tie_goes_to_the_lowest_index() {
    let cpu = cpu64();
    let mut b = Builder::default();
    for (id, target) in [(0, 1), (1, 3)] {
        b.group(id, [4]).unwrap();
        b.response(id, [target]).unwrap();
    }
    let m = b.finish(4).unwrap();
    let w = [0.0, 1.0, 0.5, 1.0, -1.0];
    let h = run::head(&cpu, &[1.0, 1.0], &w, 5, &loaded(&cpu, &m), &whole(&m), HeadMode::Score);
    assert_eq!(h.hit, [1.0, 0.0]);
}

/// A non-finite logit must reach the statistics, or a broken model would train on.
#[test]
fn nan_and_infinity_are_not_swallowed() {
    let (cpu, mut noise) = (cpu32(), Noise(26));
    let m = micro(&[(1, &[1])], 0, 40, &mut noise);
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 20, 39] {
            let mut w = vec![0.5; 40];
            w[at] = bad;
            let h = run::head(&cpu, &[1.0], &w, 40, &loaded(&cpu, &m), &whole(&m), HeadMode::Train);
            assert!(!h.logp[0].is_finite(), "{bad} at {at}: {}", h.logp[0]);
        }
        let act = run::swiglu(&cpu, &[bad, 1.0], 1);
        assert!(!act[0].is_finite());
        assert!(run::swiglu(&cpu, &[1.0, f32::NAN], 1)[0].is_nan());
    }
    let mut norm = [0.0];
    cpu.grad_norm(GradNorm { norm: &mut norm, g: &[1.0, f32::NAN, 2.0] }).unwrap();
    assert!(norm[0].is_nan());
}
