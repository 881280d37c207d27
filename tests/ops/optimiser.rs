//! Updates against the written formulas in f64, over several steps; clipping; steps that must not happen.

use super::support::*;
use fusedpo::backend::*;

/// `torch.optim.AdamW` and `torch.optim.RMSprop` as their documentation writes them.
fn formula(w: &mut f64, m: &mut f64, v: &mut f64, g: f64, u: &Rule) {
    match *u {
        Rule::AdamW { lr, beta1, beta2, eps, weight_decay, step } => {
            *w -= lr * weight_decay * *w;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            let (m_hat, v_hat) = (*m / (1.0 - beta1.powf(step as f64)), *v / (1.0 - beta2.powf(step as f64)));
            *w -= lr * m_hat / (v_hat.sqrt() + eps);
        }
        Rule::RmsProp { lr, alpha, eps, weight_decay } => {
            let g = g + weight_decay * *w;
            *v = alpha * *v + (1.0 - alpha) * g * g;
            *w -= lr * g / (v.sqrt() + eps);
        }
    }
}

/// Element `i` of the gradient of step `t`: of very different sizes, some zero.
fn gradient(n: usize, noise: &mut Noise) -> Vec<f64> {
    let one = |i: usize, x: f64| if i % 11 == 5 { 0.0 } else { x * 10f64.powi(-((i % 7) as i32)) };
    noise.vec32(n).into_iter().enumerate().map(|(i, x)| f64::from(one(i, x) as f32)).collect()
}

#[test]
fn several_steps() {
    // More than one block, and not a multiple of one.
    let n = (1 << 16) + 37;
    let (c64, c32, mut noise) = (cpu64(), cpu32(), Noise(60));
    // In f32 a gradient that cancels its own L2 penalty has few digits left, so RMSprop is compared there without one.
    for (adam, l2, in_f32) in [(true, 0.0, true), (false, 0.01, false), (false, 0.0, true)] {
        let mut w = noise.vec32(n);
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        let (mut w64, mut m64, mut v64) = (w.clone(), m.clone(), v.clone());
        let (mut w32, mut m32, mut v32) = (of::<f32>(&w), vec![0f32; n], vec![0f32; n]);
        for step in 1..=4 {
            let lr = 1e-3 / step as f64;
            let update = match adam {
                true => Rule::AdamW { lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step },
                false => Rule::RmsProp { lr, alpha: 0.99, eps: 1e-8, weight_decay: l2 },
            };
            let g = gradient(n, &mut noise);
            let norm = inner(&g, &g).sqrt();
            let mut got = [f64::NAN];
            c64.grad_norm(GradNorm { norm: &mut got, g: &g }).unwrap();
            assert!((got[0] - norm).abs() <= 1e-12 * norm);
            c32.grad_norm(GradNorm { norm: &mut got, g: &of::<f32>(&g) }).unwrap();
            assert!((got[0] - norm).abs() <= 1e-12 * norm);
            // Clips at the odd steps only.
            let max = if step % 2 == 1 { 0.5 * norm } else { 2.0 * norm };
            let clip = (max / (norm + 1e-6)).min(1.0);
            for i in 0..n {
                formula(&mut w[i], &mut m[i], &mut v[i], g[i] * clip, &update);
            }
            c64.update(Update {
                w: &mut w64,
                master: None,
                m: &mut m64,
                v: &mut v64,
                g: &g,
                norm: &[norm],
                max_grad_norm: max,
                rule: update,
            })
            .unwrap();
            c32.update(Update {
                w: &mut w32,
                master: None,
                m: &mut m32,
                v: &mut v32,
                g: &of::<f32>(&g),
                norm: &[norm],
                max_grad_norm: max,
                rule: update,
            })
            .unwrap();
        }
        for i in 0..n {
            assert!((w64[i] - w[i]).abs() <= 1e-14, "w[{i}]");
            assert!((m64[i] - m[i]).abs() <= 1e-15 && (v64[i] - v[i]).abs() <= 1e-15, "moments {i}");
            if !in_f32 {
                continue;
            }
            // Two roundings a step by at most half an ulp of a weight just above 1, 2^-24.
            assert!((f64::from(w32[i]) - w[i]).abs() <= 8.0 * 2f64.powi(-24) + 2e-8, "w32[{i}]: {} {}", w32[i], w[i]);
            assert!((f64::from(v32[i]) - v[i]).abs() <= 1e-6 * v[i], "v32[{i}]");
        }
        if !adam {
            assert!(m64.iter().all(|m| *m == 0.0), "RMSprop leaves m alone");
        }
    }
}

#[test]
fn no_clipping_and_no_step() {
    let cpu = cpu64();
    let update = Rule::AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1 };
    let run = |norm: f64, max: f64| {
        let (mut w, mut m, mut v) = (vec![1.0, 2.0], vec![0.5, 0.5], vec![0.25, 0.25]);
        cpu.update(Update {
            w: &mut w,
            master: None,
            m: &mut m,
            v: &mut v,
            g: &[30.0, -40.0],
            norm: &[norm],
            max_grad_norm: max,
            rule: update,
        })
        .unwrap();
        (w, m, v)
    };
    assert_eq!(run(50.0, 0.0).1, [0.5 + (30.0 - 0.5) * (1.0 - 0.9), 0.5 + (-40.0 - 0.5) * (1.0 - 0.9)]);
    for norm in [f64::NAN, f64::INFINITY] {
        assert_eq!(run(norm, 1.0), (vec![1.0, 2.0], vec![0.5, 0.5], vec![0.25, 0.25]));
        assert_eq!(run(norm, 0.0).0, [1.0, 2.0]);
    }
}
