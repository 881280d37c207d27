//! Numbers too small for a normal `f32`: a step on them takes no longer than on others, and their products are 0.

use super::support::*;
use fusedpo::backend::cpu::gemm::{Base, HasGemm, Mat};
use fusedpo::backend::cpu::{Cpu, GemmPrecision, Level};
use fusedpo::backend::*;
use std::time::Instant;

const DENORMAL: f32 = 1e-40;

/// Where products are vectors of the CPU's own, denormals count as 0: operands and results, in whole tiles and at borders.
#[test]
fn products_of_denormals_are_zero() {
    for level in Level::available().into_iter().filter(|l| ["avx2", "avx512"].contains(&l.name())) {
        for precision in [GemmPrecision::Native, GemmPrecision::Bf16] {
            let Ok(cpu) = Cpu::<f32>::at(level, precision) else { continue };
            for (m, n, k) in [(1, 1, 1), (13, 33, 40), (24, 64, 600)] {
                for (a, b) in [(DENORMAL, 1.0), (1.0, DENORMAL), (DENORMAL, DENORMAL), (1e-20, 1e-22 / k as f32)] {
                    let (a, b, plus) = (vec![a; m * k], vec![b; n * k], vec![1.5f32; m * n]);
                    let mut c = nan(m * n);
                    let (a, b) = (Mat::by_line(&a, k), Mat::by_line(&b, k));
                    f32::gemm(cpu.gemm(), &mut c, Base::Zero, a, b, [m, n, k]);
                    assert!(c.iter().all(|c: &f32| *c == 0.0), "{level:?} {m} x {n} x {k}");
                    f32::gemm(cpu.gemm(), &mut c, Base::Other(&plus), a, b, [m, n, k]);
                    assert_eq!(c, plus, "{level:?}");
                }
            }
        }
    }
}

/// The control register of the calling thread is what it was.
#[test]
fn the_rest_of_the_program_keeps_its_denormals() {
    let cpu = cpu32();
    let (x, mut y) = (vec![1f32; 64 * 64], nan(64 * 64));
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(|| {
        f32::gemm(cpu.gemm(), &mut y, Base::Zero, Mat::by_line(&x, 64), Mat::by_line(&x, 64), [64, 64, 64]);
        for kept in rayon::broadcast(|_| std::hint::black_box(DENORMAL) * std::hint::black_box(0.5)) {
            assert_eq!(kept, DENORMAL * 0.5);
        }
    });
}

/// Moments that only decay end at 0 rather than in denormals, which they would never leave.
#[test]
fn moments_vanish() {
    let (cpu, n) = (cpu32(), 1000);
    let (mut w, g) = (vec![1f32; n], vec![0f32; n]);
    let (mut m, mut v) = (vec![1e-29f32; n], vec![1e-37f32; n]);
    for step in 1..40 {
        let rule = Rule::AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.5, eps: 1e-8, weight_decay: 0.0, step };
        let (norm, max_grad_norm) = (&[1.0][..], 0.0);
        cpu.update(Update { w: &mut w, master: None, m: &mut m, v: &mut v, g: &g, norm, max_grad_norm, rule }).unwrap();
    }
    assert!(m.iter().chain(&v).all(|x| *x == 0.0), "{} {}", m[0], v[0]);
}

/// Gradients that are taken for 0 in one moment are in the other: however small epsilon, no quotient of the two runs away.
#[test]
fn tiny_gradients_do_not_outrun_a_tiny_epsilon() {
    let cpu = cpu32();
    let g: Vec<f32> = (0..400).map(|i| 10f32.powf(-f32::from(i as u16) / 9.0)).collect();
    let n = g.len();
    let (lr, eps, weight_decay) = (1e-3, 1e-30, 0.0);
    for rule in [
        Rule::AdamW { lr, beta1: 0.9, beta2: 0.999, eps, weight_decay, step: 1 },
        Rule::RmsProp { lr, alpha: 0.99, eps, weight_decay },
    ] {
        let (mut w, mut m, mut v) = (vec![0f32; n], vec![0f32; n], vec![0f32; n]);
        let (norm, max_grad_norm) = (&[1.0][..], 0.0);
        cpu.update(Update { w: &mut w, master: None, m: &mut m, v: &mut v, g: &g, norm, max_grad_norm, rule }).unwrap();
        // The first step is of lr, or of lr / sqrt(1 - alpha).
        let most = if matches!(rule, Rule::AdamW { .. }) { 1.01e-3 } else { 1.01e-2 };
        let (at, far) = w.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
        assert!(far.abs() <= most, "{rule:?}: {far:e} of a gradient of {:e}", g[at]);
        assert!(w[0] <= -0.99 * most / 1.01, "{rule:?}: {:e}", w[0]);
    }
}

/// Seconds of the ops of a layer forward and backward, and of an update, on inputs of one size.
fn step(cpu: &Cpu<f32>, scale: f32) -> f64 {
    let (rows, dim, ffn) = (96, 192, 256);
    let (out, inp, n) = (2 * ffn, dim, 2 * ffn * dim);
    let mut noise = Noise(3);
    let mut some = |n: usize| -> Vec<f32> { noise.vec(n).iter().map(|x| *x as f32 * scale).collect() };
    let (x, w_norm, mut w, mut gate_up, mut dact) =
        (some(rows * dim), some(dim), some(n), some(rows * 2 * ffn), some(rows * ffn));
    let (dy, mut d_normed, mut dw, mut d_norm) = (some(rows * out), some(rows * dim), some(n), some(dim));
    let (mut m, mut v, g): (_, Vec<f32>, _) = (some(n), some(n).iter().map(|v| v.abs()).collect(), some(n));
    let (mut y, mut rstd, mut z, mut act, mut dx) =
        (nan(rows * dim), nan(rows), nan(rows * out), nan(rows * ffn), nan(rows * dim));
    let begun = Instant::now();
    cpu.rmsnorm_fwd(RmsNormFwd { y: &mut y, rstd: &mut rstd, x: &x, w: &w_norm, eps: 1e-5 }).unwrap();
    cpu.linear_fwd(LinearFwd { y: &mut z, x: &x, w: &w, out, inp, write: Write::Set }).unwrap();
    cpu.swiglu_fwd(SwigluFwd { act: &mut act, gate_up: &gate_up, ffn }).unwrap();
    cpu.swiglu_bwd(SwigluBwd { gate_up: &mut gate_up, dact: &mut dact, ffn, again: false }).unwrap();
    cpu.linear_bwd_weight(LinearBwdWeight { dw: &mut dw, dy: &dy, x: &x, out, inp, write: Write::Add }).unwrap();
    cpu.linear_bwd_input(LinearBwdInput { dx: &mut dx, dy: &dy, w: &w, out, inp, write: Write::Set }).unwrap();
    cpu.rmsnorm_bwd(RmsNormBwd {
        dx: &mut dx,
        dw: Some(&mut d_norm),
        dy: &mut d_normed,
        x: &x,
        w: &w_norm,
        rstd: &rstd,
        write: Write::Add,
        again: false,
    })
    .unwrap();
    let rule = Rule::AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 3 };
    let (norm, max_grad_norm) = (&[0.5][..], 1.0);
    cpu.update(Update { w: &mut w, master: None, m: &mut m, v: &mut v, g: &g, norm, max_grad_norm, rule }).unwrap();
    begun.elapsed().as_secs_f64()
}

/// At most half as long again; ten times as long before denormals were counted as 0. The least of some runs in turn, as
/// other programs only ever lengthen one.
#[test]
fn a_step_on_denormals_is_no_slower() {
    if !["avx2", "avx512"].contains(&Level::detect().name()) {
        return eprintln!("skipped: products of this CPU are left to the compiler");
    }
    let cpu = cpu32();
    let (mut normal, mut denormal) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..20 {
        normal = normal.min(step(&cpu, 1.0));
        denormal = denormal.min(step(&cpu, DENORMAL));
        if denormal <= 1.5 * normal {
            return;
        }
    }
    panic!("a step on denormals takes {:.2} times as long as on other numbers", denormal / normal);
}
