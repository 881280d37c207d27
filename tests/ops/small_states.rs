//! AdamW with small states: rounding that is right on average, moments that do not stand still, codes of 8 bits, and updates against
//! the written formula in f64.

use super::support::*;
use fusedpo::backend::code8::{self, BLOCK, Code, SIGNED, UNSIGNED};
use fusedpo::backend::rounding::{Rounding, stochastic};
use fusedpo::backend::*;
use half::bf16;

/// Distance from `x` to the next number that bf16 has.
fn spacing(x: f64) -> f64 {
    let up = bf16::from_bits(bf16::from_f32(x.abs() as f32).to_bits() + 1);
    (up.to_f64() - bf16::from_f32(x.abs() as f32).to_f64()).abs()
}

/// Over all draws the mean of what a number is rounded to is the number, exactly.
#[test]
fn rounding_is_right_on_average() {
    let mut noise = Noise(1);
    let sizes = (0..40).map(|i| 10f64.powi(i - 20));
    let mut all: Vec<f32> = sizes.zip(noise.vec32(40)).map(|(s, x)| (s * x) as f32).collect();
    all.extend([0.0, -0.0, 1.0, -1.5, 1.0 - f32::EPSILON, f32::MIN_POSITIVE, 3.0e-39, -1.0e-40]);
    for x in all {
        let rounded: Vec<f64> = (0..1 << 16).map(|draw| stochastic(x, draw).to_f64()).collect();
        let sum: f64 = rounded.iter().map(|r| r - f64::from(x)).sum();
        assert_eq!(sum, 0.0, "{x}");
        let (least, most) = rounded.iter().fold((f64::MAX, f64::MIN), |(a, b), r| (a.min(*r), b.max(*r)));
        assert!(least <= f64::from(x) && f64::from(x) <= most, "{x}: {least} {most}");
        let near = [least, most].map(|r| bf16::from_f64(r).to_bits() & 0x7fff);
        assert!(near[0].abs_diff(near[1]) <= 1 || x == 0.0, "{x}: two neighbours");
    }
    for draw in [0, 1, 0x7fff, 0xffff] {
        assert!(stochastic(f32::NAN, draw).is_nan() && stochastic(f32::from_bits(0x7f80_0001), draw).is_nan());
        assert_eq!(stochastic(f32::INFINITY, draw), bf16::INFINITY);
        assert_eq!(stochastic(f32::NEG_INFINITY, draw), bf16::NEG_INFINITY);
        assert_eq!((stochastic(f32::MAX, draw), stochastic(f32::MIN, draw)), (bf16::MAX, bf16::MIN), "finite stays so");
    }
}

/// Draws are uniform, and those of neighbours, of steps, of seeds and of the three numbers of a parameter have nothing to do with
/// each other.
#[test]
fn draws_are_independent() {
    let n = 1 << 16;
    let centred = |r: Rounding, which: usize| -> Vec<f64> {
        (0..n).map(|i| (f64::from(r.draws(i)[which]) - 32767.5) / 18918.6).collect()
    };
    let correlation = |a: &[f64], b: &[f64]| inner(a, b) / (n as f64).sqrt();
    let mut streams = Vec::new();
    for (seed, step) in [(0, 1), (0, 2), (1, 1), (42, 1000), (42, 1001)] {
        for index in [0, u64::from(u32::MAX) - 1000, 1 << 32] {
            let r = Rounding::of(seed, step, index);
            streams.extend((0..3).map(|which| centred(r, which)));
            // A range that is updated in pieces draws the same.
            assert_eq!(r.draws(1234), r.after(1000).draws(234));
        }
    }
    for (i, a) in streams.iter().enumerate() {
        let mean = a.iter().sum::<f64>() / (n as f64).sqrt();
        assert!(mean.abs() < 5.0, "stream {i}: mean {mean}");
        assert!((correlation(a, a) / (n as f64).sqrt() - 1.0).abs() < 0.02, "stream {i}: variance");
        let mut counts = [0.0; 256];
        a.iter().for_each(|x| counts[((x * 18918.6 + 32767.5) / 256.0) as usize] += 1.0);
        let chi: f64 = counts.iter().map(|c: &f64| (c - 256.0) * (c - 256.0) / 256.0).sum();
        assert!((255.0 - 6.0 * 22.6..255.0 + 6.0 * 22.6).contains(&chi), "stream {i}: chi squared {chi}");
        for by in [1, 2, 8, 256] {
            let c = correlation(&a[by..], &a[..n - by]);
            assert!(c.abs() < 5.0, "stream {i} and itself {by} further on: {c}");
        }
        for (j, b) in streams.iter().enumerate().skip(i + 1) {
            let c = correlation(a, b);
            // Index 2^32 - 1001 onwards meets 2^32 onwards: the same numbers, 1000 places apart.
            assert!(c.abs() < 5.5, "streams {i} and {j}: {c}");
        }
    }
}

fn rule(lr: f64, weight_decay: f64, step: u64) -> Rule {
    Rule::AdamW { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, step }
}

/// `torch.optim.AdamW`, in f64.
fn formula(w: f64, m: f64, v: f64, g: f64, u: &Rule) -> [f64; 3] {
    let Rule::AdamW { lr, beta1, beta2, eps, weight_decay, step } = *u else { unreachable!() };
    let m = beta1 * m + (1.0 - beta1) * g;
    let v = beta2 * v + (1.0 - beta2) * g * g;
    let (m_hat, v_hat) = (m / (1.0 - beta1.powf(step as f64)), v / (1.0 - beta2.powf(step as f64)));
    [w - lr * weight_decay * w - lr * m_hat / (v_hat.sqrt() + eps), m, v]
}

/// Each step from what the one before left: every number is one of the two around the formula's, and they are right on average.
#[test]
fn steps_in_bf16_are_the_formulas_on_average() {
    let (cpu, n, mut noise) = (cpu32(), 40_000, Noise(3));
    let mut w: Vec<f32> = noise.vec32(n).iter().map(|x| bf16::from_f64(*x).to_f32()).collect();
    let (mut m, mut v) = (vec![bf16::ZERO; n], vec![bf16::ZERO; n]);
    let mut errors = [(); 3].map(|()| Vec::new());
    for step in 1..=6 {
        let g: Vec<f32> = noise.vec32(n).iter().map(|x| (1e-2 * x) as f32).collect();
        let (size, most) = (g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt(), 1.0);
        let (clip, rule) = (f64::min(1.0, most / (size + 1e-6)), rule(1e-3, 0.1, step));
        let before: Vec<[f64; 3]> = (0..n).map(|i| [f64::from(w[i]), m[i].to_f64(), v[i].to_f64()]).collect();
        let (norm, rounding) = (&[size][..], Rounding::of(9, step, 77));
        cpu.update_bf16(UpdateBf16 {
            w: &mut w,
            m: &mut m,
            v: &mut v,
            g: &g[..],
            norm,
            max_grad_norm: most,
            rule,
            rounding,
        })
        .unwrap();
        for i in 0..n {
            let want = formula(before[i][0], before[i][1], before[i][2], f64::from(g[i]) * clip, &rule);
            let got = [f64::from(w[i]), m[i].to_f64(), v[i].to_f64()];
            for (k, (got, want)) in got.into_iter().zip(want).enumerate() {
                let unit = spacing(want);
                assert!((got - want).abs() <= 1.001 * unit, "step {step}, {k}, {i}: {got} {want}");
                assert_eq!(bf16::from_f64(got).to_f64(), got);
                errors[k].push((got - want) / unit);
            }
        }
    }
    for (k, e) in errors.iter().enumerate() {
        let (count, mean) = (e.len() as f64, e.iter().sum::<f64>() / e.len() as f64);
        let deviation = (inner(e, e) / count).sqrt();
        // Uniform draws: a deviation of sqrt(f (1 - f)) of a spacing, 0.41 over all f.
        assert!((0.3..0.5).contains(&deviation), "{k}: deviation {deviation}");
        assert!(mean.abs() < 5.0 * deviation / count.sqrt(), "{k}: mean {mean} of {count}");
    }
}

/// What stochastic rounding is for. A second moment above the squares of what comes falls by at most 0.001 of itself a step: in
/// bf16 to nearest, whose spacing is 2^-8, it never falls at all. Weights that move by less than 2^-9 of themselves do not move.
#[test]
fn to_nearest_moments_and_weights_stand_still() {
    let (cpu, n, steps) = (cpu32(), 4096, 3000);
    let g = vec![1e-3f32; n];
    let (mut w, mut m, mut v) = (vec![1f32; n], vec![bf16::ZERO; n], vec![bf16::from_f32(4e-6); n]);
    let start = v[0].to_f64();
    let (mut exact, mut nearest) = ([1.0, 0.0, start], [1.0, 0.0, start]);
    for step in 1..=steps {
        // As after many steps: corrections are 1.
        let rule = rule(1e-6, 0.0, step + 1_000_000);
        let (norm, rounding) = (&[1.0][..], Rounding::of(0, step, 0));
        cpu.update_bf16(UpdateBf16 {
            w: &mut w,
            m: &mut m,
            v: &mut v,
            g: &g[..],
            norm,
            max_grad_norm: 0.0,
            rule,
            rounding,
        })
        .unwrap();
        exact = formula(exact[0], exact[1], exact[2], 1e-3, &rule);
        nearest = formula(nearest[0], nearest[1], nearest[2], 1e-3, &rule).map(|x| bf16::from_f64(x).to_f64());
    }
    assert_eq!((nearest[0], nearest[2]), (1.0, start), "to nearest");
    let mean_v = v.iter().map(|v| v.to_f64()).sum::<f64>() / n as f64;
    let mean_w = w.iter().map(|w| f64::from(*w)).sum::<f64>() / n as f64;
    println!(
        "second moment after {steps} steps: exact {:e}, stochastic {mean_v:e}, to nearest {:e}",
        exact[2], nearest[2]
    );
    assert!((mean_v / exact[2] - 1.0).abs() < 0.01, "{mean_v} {}", exact[2]);
    assert!(((mean_w - 1.0) / (exact[0] - 1.0) - 1.0).abs() < 0.05, "{mean_w} {}", exact[0]);
}

/// The code: 256 numbers, 0 and 1 among them; in each of seven decades equal parts of 0.1 to 1, by their middles.
#[test]
fn the_dynamic_code() {
    for (code, signed) in [(SIGNED, true), (UNSIGNED, false)] {
        let values = &code.values;
        assert!(values.windows(2).all(|v| v[0] < v[1]), "rising");
        let mut want = vec![0.0, 1.0];
        for i in 0..7 {
            let parts = 1 << (i + i32::from(!signed));
            let bounds: Vec<f64> = (0..=parts).map(|j| 0.1 + 0.9 * f64::from(j) / f64::from(parts)).collect();
            let middles = bounds.windows(2).map(|b| (b[0] + b[1]) / 2.0 * 10f64.powi(i - 6));
            want.extend(middles.flat_map(|x| if signed { vec![x, -x] } else { vec![x] }));
        }
        want.sort_by(f64::total_cmp);
        assert_eq!(want.len(), 256);
        for (got, want) in values.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() <= 6e-8 * want.abs(), "{got} {want}");
        }
    }
    // As bitsandbytes computes them, in several roundings.
    for (ours, theirs) in SIGNED.values.iter().zip(fusedpo::quant::Dynamic::new().map) {
        assert!((ours - theirs).abs() <= 2.4e-7 * theirs.abs(), "{ours} {theirs}");
    }
    assert_eq!((SIGNED.values[127], SIGNED.values[255], SIGNED.values[0]), (0.0, 1.0, -0.992_968_74));
}

/// Nearest by looking at all; of two that are equally near the smaller in size.
fn by_looking(code: &Code, x: f32, signed: bool) -> u8 {
    let distance = |c: &usize| (f64::from(code.values[*c]) - f64::from(x)).abs();
    let all = (0..256).filter(|c| signed || x == 0.0 || *c > 0);
    let best = all.min_by(|a, b| {
        let by_size = code.values[*a].abs().total_cmp(&code.values[*b].abs());
        distance(a).total_cmp(&distance(b)).then(by_size)
    });
    best.unwrap() as u8
}

#[test]
fn nearest_codes() {
    let mut noise = Noise(5);
    let mut all: Vec<f32> = vec![0.0, 1.0, 1e-38, 1e-45, 1.6e-7, 1.7e-7, 2.7e-7, 2.8e-7, 0.1, 0.01];
    for _ in 0..20_000 {
        let x = noise.vec32(2);
        all.push((x[0].abs().fract() * 10f64.powf(-8.0 * x[1].abs().fract())) as f32);
    }
    for (code, signed) in [(SIGNED, true), (UNSIGNED, false)] {
        let middles: Vec<f32> = code.sizes().windows(2).map(|s| (s[0] + s[1]) * 0.5).collect();
        for x in all.iter().copied().chain(middles) {
            for x in if signed { vec![x, -x] } else { vec![x] } {
                let (got, want) = (code.nearest(x), by_looking(code, x, signed));
                let distance = |c: u8| (f64::from(code.values[usize::from(c)]) - f64::from(x)).abs();
                // Where a middle is rounded to f32 both are as near as f32 can tell.
                assert!(distance(got) <= distance(want) + 1.3e-7 * f64::from(x.abs()), "{x}: {got} {want}");
                assert!(signed || x == 0.0 || got > 0, "{x}");
            }
        }
    }
}

/// Each step from what the one before left: moments within half a gap of their code of the formula's, scales their largest sizes,
/// weights right on average.
#[test]
fn steps_in_8_bits_are_the_formulas_to_the_code() {
    let (cpu, n, mut noise) = (cpu32(), 40_000 + 77, Noise(6));
    let blocks = code8::blocks(n);
    let mut w: Vec<f32> = noise.vec32(n).iter().map(|x| bf16::from_f64(*x).to_f32()).collect();
    let (mut m, mut v, mut scales) = (vec![0u8; n], vec![0u8; n], [vec![0f32; blocks], vec![0f32; blocks]]);
    let (mut sum, mut count) = (0.0, 0.0);
    for step in 1..=5 {
        let g: Vec<f32> =
            noise.vec32(n).iter().enumerate().map(|(i, x)| *x as f32 * 10f32.powi(-(i as i32 % 4))).collect();
        let of = |codes: &[u8], scales: &[f32], code: &Code, i: usize| {
            f64::from(code.values[usize::from(codes[i])]) * f64::from(scales[i / BLOCK])
        };
        let before: Vec<[f64; 3]> =
            (0..n).map(|i| [f64::from(w[i]), of(&m, &scales[0], SIGNED, i), of(&v, &scales[1], UNSIGNED, i)]).collect();
        let rule = rule(1e-3, 0.1, step);
        let [m_scale, v_scale] = &mut scales;
        cpu.update_8bit(Update8bit {
            w: &mut w,
            m: &mut m,
            m_scale,
            v: &mut v,
            v_scale,
            g: &g[..],
            norm: &[1.0],
            max_grad_norm: 0.0,
            rule,
            rounding: Rounding::of(9, step, 0),
        })
        .unwrap();
        let want: Vec<[f64; 3]> =
            (0..n).map(|i| formula(before[i][0], before[i][1], before[i][2], f64::from(g[i]), &rule)).collect();
        for (b, (m_scale, v_scale)) in scales[0].iter().zip(&scales[1]).enumerate() {
            let of = b * BLOCK..n.min(b * BLOCK + BLOCK);
            let largest = |k: usize| want[of.clone()].iter().map(|w| w[k].abs()).fold(0.0, f64::max);
            for (k, scale) in [(1, *m_scale), (2, *v_scale)] {
                assert!((f64::from(scale) / largest(k) - 1.0).abs() < 1e-5, "scale {k} of block {b}");
            }
        }
        for i in 0..n {
            let unit = spacing(want[i][0]);
            assert!((f64::from(w[i]) - want[i][0]).abs() <= 1.01 * unit, "w[{i}]: {} {}", w[i], want[i][0]);
            (sum, count) = (sum + (f64::from(w[i]) - want[i][0]) / unit, count + 1.0);
            for (k, codes, scales, code) in [(1, &m, &scales[0], SIGNED), (2, &v, &scales[1], UNSIGNED)] {
                let (got, scale) = (of(codes, scales, code, i), f64::from(scales[i / BLOCK]));
                let x = want[i][k] / scale;
                // Half of the widest gap of a decade, 0.9 of a part; or what lies below the lowest.
                let decade = x.abs().max(1e-7).log10().floor().max(-7.0) + 7.0;
                let parts = if k == 1 { 2f64.powf(decade - 1.0) } else { 2f64.powf(decade) };
                let gap = 0.5 * 10f64.powf(decade - 6.0) * 0.9 / parts.max(1.0);
                let low = if k == 1 { 2.8e-7 } else { 3.3e-7 };
                assert!(
                    (got / scale - x).abs() <= 1.1 * gap.max(low),
                    "step {step}, moment {k} of {i}: {} {x}",
                    got / scale
                );
            }
        }
    }
    assert!((sum / count).abs() < 5.0 * 0.5 / count.sqrt(), "weights are right on average: {}", sum / count);
}

/// However many threads, and in however many calls a range is updated: the same bits.
#[test]
fn neither_threads_nor_calls_decide_a_bit() {
    let n = 100 * BLOCK;
    let g: Vec<f32> = Noise(8).vec32(n).iter().map(|x| *x as f32).collect();
    let run = |threads: usize, parts: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let cpu = cpu32();
        let (mut w, mut m, mut v) = (vec![1f32; n], vec![bf16::ZERO; n], vec![bf16::ZERO; n]);
        let (mut w8, mut m8, mut v8) = (w.clone(), vec![0u8; n], vec![0u8; n]);
        let [mut m_scale, mut v_scale] = [vec![0f32; n / BLOCK], vec![0f32; n / BLOCK]];
        for step in 1..=3 {
            let (rule, norm, len) = (rule(1e-2, 0.1, step), &[2.0][..], n / parts);
            for at in (0..n).step_by(len).map(|start| start..start + len) {
                let rounding = Rounding::of(3, step, 1000 + at.start as u64);
                let blocks = at.start / BLOCK..at.end / BLOCK;
                pool.install(|| {
                    cpu.update_bf16(UpdateBf16 {
                        w: &mut w[at.clone()],
                        m: &mut m[at.clone()],
                        v: &mut v[at.clone()],
                        g: &g[at.clone()],
                        norm,
                        max_grad_norm: 1.0,
                        rule,
                        rounding,
                    })
                    .unwrap();
                    cpu.update_8bit(Update8bit {
                        w: &mut w8[at.clone()],
                        m: &mut m8[at.clone()],
                        m_scale: &mut m_scale[blocks.clone()],
                        v: &mut v8[at.clone()],
                        v_scale: &mut v_scale[blocks],
                        g: &g[at],
                        norm,
                        max_grad_norm: 1.0,
                        rule,
                        rounding,
                    })
                    .unwrap();
                });
            }
        }
        (w, m, v, w8, m8, v8, m_scale, v_scale)
    };
    let want = run(1, 1);
    assert!(run(3, 1) == want && run(2, 4) == want);
}

/// Gradients in bf16: a product, what it is added to and nothing else, rounded once; so are rows of an embedding's gradient.
#[test]
fn sums_in_bf16_are_rounded_once() {
    let (cpu, mut noise) = (cpu32(), Noise(9));
    for (rows, out, inp) in [(1, 1, 1), (37, 29, 50), (5, 1030, 1500)] {
        let (dy, x) = (noise.vec32(rows * out), noise.vec32(rows * inp));
        let mut dw: Vec<bf16> = noise.vec32(out * inp).iter().map(|d| bf16::from_f64(*d)).collect();
        let before = dw.clone();
        let (dy32, x32) = (of::<f32>(&dy), of::<f32>(&x));
        cpu.linear_bwd_weight(LinearBwdWeight { dw: &mut dw, dy: &dy32, x: &x32, out, inp, write: Write::Add })
            .unwrap();
        for o in 0..out {
            for i in 0..inp {
                let sum: f64 = (0..rows).map(|r| dy[r * out + o] * x[r * inp + i]).sum();
                let terms: f64 = (0..rows).map(|r| (dy[r * out + o] * x[r * inp + i]).abs()).sum();
                let want = before[o * inp + i].to_f64() + sum;
                let within = 0.5 * spacing(want) + 1e-6 * (terms + want.abs());
                assert!((dw[o * inp + i].to_f64() - want).abs() <= within, "{o} {i}: {} {want}", dw[o * inp + i]);
            }
        }
        let mut set = vec![bf16::NAN; out * inp];
        cpu.linear_bwd_weight(LinearBwdWeight { dw: &mut set, dy: &dy32, x: &x32, out, inp, write: Write::Set })
            .unwrap();
        let mut added = vec![bf16::ZERO; out * inp];
        let dw_added = &mut added[..];
        cpu.linear_bwd_weight(LinearBwdWeight { dw: dw_added, dy: &dy32, x: &x32, out, inp, write: Write::Add })
            .unwrap();
        assert_eq!(set, added, "set is added to nothing");
        let columns = out / 3..out;
        let mut part: Vec<bf16> = before[columns.start * inp..].to_vec();
        let (from, dw_part) = (columns.start, &mut part[..]);
        cpu.linear_bwd_part(LinearBwdPart { dw: dw_part, dy: &dy32, x: &x32, columns, out, inp }).unwrap();
        assert!(part == dw[from * inp..], "a part has the bits of the whole");
    }
}

/// The norm of gradients in two pieces is that of all of them, and updates read gradients in bf16 as they are.
#[test]
fn gradients_in_bf16_are_read_as_they_are() {
    let (cpu, n, mut noise) = (cpu32(), 70_000, Noise(10));
    let narrow: Vec<bf16> = noise.vec32(n).iter().map(|x| bf16::from_f64(*x)).collect();
    let (wide, vectors) = (narrow.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), of::<f32>(&noise.vec32(300)));
    let mut norms = [[0.0], [0.0]];
    let all = [&wide[..], &vectors].concat();
    cpu.grad_norm(GradNorm { norm: &mut norms[0], g: &all }).unwrap();
    cpu.grad_norm_narrow(GradNormNarrow { norm: &mut norms[1], matrices: &narrow, vectors: &vectors }).unwrap();
    assert!((norms[0][0] - norms[1][0]).abs() <= 1e-12 * norms[0][0], "{norms:?}");
    let bad = [narrow.clone(), vec![bf16::NAN]].concat();
    cpu.grad_norm_narrow(GradNormNarrow { norm: &mut norms[1], matrices: &bad, vectors: &vectors }).unwrap();
    assert!(norms[1][0].is_nan());
    fn updated<G: Gradient>(cpu: &cpu::Cpu<f32>, g: &[G], rule: Rule) -> [Vec<f32>; 3] {
        let [mut w, mut m, mut v] = [1.0, 0.1, 0.2].map(|x| vec![x; g.len()]);
        let (norm, max_grad_norm) = (&[1.0][..], 0.5);
        cpu.update(Update { w: &mut w, master: None, m: &mut m, v: &mut v, g, norm, max_grad_norm, rule }).unwrap();
        [w, m, v]
    }
    let rmsprop = Rule::RmsProp { lr: 1e-2, alpha: 0.9, eps: 1e-8, weight_decay: 0.1 };
    for rule in [rule(1e-2, 0.1, 3), rmsprop] {
        assert!(updated(&cpu, &narrow, rule) == updated(&cpu, &wide, rule), "{rule:?}");
    }
}
