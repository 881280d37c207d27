//! Derivatives against differences of the value, on ordinary and on extreme inputs, and no input without a finite answer.

use crate::{on_pair, pair_losses, some_params, with};
use fusedpo::choice::Choice;
use fusedpo::loss::{Divergence, LossSpec, LossType, Pair, Param, Rule};

struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
    fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }
}

/// Pairs as they come in training.
fn ordinary(noise: &mut Noise) -> Pair {
    let [chosen_len, rejected_len] = [0; 2].map(|_| noise.within(1.0, 60.0).floor());
    let [chosen, rejected] = [chosen_len, rejected_len].map(|n| n * noise.within(-3.0, -0.01));
    Pair {
        chosen,
        rejected,
        ref_chosen: chosen + noise.within(-20.0, 20.0),
        ref_rejected: rejected + noise.within(-20.0, 20.0),
        chosen_len,
        rejected_len,
        chosen_score: noise.within(0.0, 5.0),
        rejected_score: noise.within(-1.0, 4.0),
    }
}

/// Pairs as they should not come.
fn extreme() -> Vec<Pair> {
    let ends = [-1e4, -700.0, -90.0, -1.0, -1e-3, -1e-9];
    let scores = [[5.0, 1.0], [1.0, 1.0], [0.0, 3.0], [1e30, -1e30], [1.0, 1.0 - 1e-7]];
    let mut all = Vec::new();
    for (i, chosen) in ends.into_iter().enumerate() {
        for (j, rejected) in ends.into_iter().enumerate() {
            for (k, [ref_chosen, ref_rejected]) in [[-1.0, -1.5], [-1e4, -2.0], [-3.0, -1e4]].into_iter().enumerate() {
                let [chosen_score, rejected_score] = scores[(i + j + k) % scores.len()];
                let [chosen_len, rejected_len] = [[1.0, 1.0], [1.0, 4000.0], [4000.0, 1.0]][(i + 2 * j + k) % 3];
                all.push(Pair {
                    chosen,
                    rejected,
                    ref_chosen,
                    ref_rejected,
                    chosen_len,
                    rejected_len,
                    chosen_score,
                    rejected_score,
                });
            }
        }
    }
    all
}

/// The derivative of `f` at `x` by a difference of the fourth order with step `h`, and how far off it may be.
fn difference(f: impl Fn(f64) -> f64, x: f64, h: f64) -> (f64, f64) {
    let at = |k: f64| f(x + k * h);
    let d = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
    let size = at(1.0).abs() + at(-1.0).abs();
    // Rounding of the value, and of `x + h`.
    (d, 1e-7 + 4.0 * f64::EPSILON * (size / h + d.abs() * x.abs() / h))
}

/// Whether the value has a corner within a difference's reach: the two one-sided slopes are apart.
fn corner(f: impl Fn(f64) -> f64, x: f64, h: f64) -> bool {
    let (left, mid, right) = (f(x - h), f(x), f(x + h));
    let (a, b) = ((mid - left) / h, (right - mid) / h);
    (a - b).abs() > 0.05 * (a.abs() + b.abs()) + 1e-5 + 1e-9 * mid.abs() / h
}

fn check(what: &str, f: impl Fn(f64) -> f64, x: f64, h: f64, d: f64) -> bool {
    if corner(&f, x, 4.0 * h) {
        return false;
    }
    let (want, off) = difference(&f, x, h);
    assert!((d - want).abs() <= off + 1e-6 * want.abs(), "{what} at {x}: {d}, a difference says {want}");
    true
}

/// How often a pair's derivatives could be compared.
fn check_pair(spec: &LossSpec, p: &Pair) -> usize {
    let got = on_pair(spec, p);
    let what = format!("{} under {} of {p:?}", spec.name(), spec.divergence);
    assert!([got.loss, got.d_chosen, got.d_rejected].iter().all(|x| x.is_finite()), "{what}: {got:?}");
    // A log-ratio may pass 0, a log-prob may not.
    let step = |x: f64| if spec.reference() { 1e-4 } else { 1e-4 * x.abs().min(1.0) };
    let of_chosen = |chosen| on_pair(spec, &Pair { chosen, ..*p }).loss;
    let of_rejected = |rejected| on_pair(spec, &Pair { rejected, ..*p }).loss;
    let chosen = check(&what, of_chosen, p.chosen, step(p.chosen), got.d_chosen);
    let rejected = check(&what, of_rejected, p.rejected, step(p.rejected), got.d_rejected);
    usize::from(chosen) + usize::from(rejected)
}

/// A loss under every divergence that it may have.
fn divergences(spec: LossSpec) -> impl Iterator<Item = LossSpec> {
    let all = Divergence::ALL.iter().flat_map(|d| [0.3, 0.5, 1.0, 1.8].map(|f_alpha| (*d, f_alpha)));
    all.map(move |(d, alpha)| with(spec, |s| (s.divergence, s.f_alpha) = (d, alpha))).filter(|s| s.check().is_ok())
}

#[test]
fn derivatives_of_pairs() {
    for loss in pair_losses() {
        let (mut noise, mut compared, mut all) = (Noise(5), 0, 0);
        for n in 0..9 {
            for spec in divergences(some_params(loss, n)) {
                for _ in 0..12 {
                    compared += check_pair(&spec, &ordinary(&mut noise));
                    all += 2;
                }
            }
        }
        assert!(all >= 8 * 24, "{loss}: {all} inputs");
        assert!(compared * 10 >= all * 9, "{loss}: only {compared} of {all} were compared");
    }
}

#[test]
fn derivatives_far_out() {
    for loss in pair_losses() {
        let (mut compared, mut all) = (0, 0);
        for n in 0..5 {
            for spec in divergences(some_params(loss, n)) {
                for p in extreme() {
                    compared += check_pair(&spec, &p);
                    all += 2;
                }
            }
        }
        assert!(compared * 10 >= all * 8, "{loss}: only {compared} of {all} were compared");
    }
}

/// A score that is missing is not a score of 0.
#[test]
fn losses_of_scores_do_not_make_them_up() {
    let mut n = 0;
    for loss in pair_losses().filter(|l| l.def().scores) {
        let p = Pair { chosen_score: 1.0, ..Pair::ZERO };
        assert!(on_pair(&LossSpec::of(loss), &p).loss.is_nan(), "{loss}");
        assert!(on_pair(&LossSpec::of(loss), &p).d_chosen.is_nan(), "{loss}");
        n += 1;
    }
    assert!(n >= 2);
}

/// Nothing turns a log-prob that is not a number into a loss that is one.
#[test]
fn nan_stays_nan() {
    for loss in pair_losses() {
        for spec in divergences(LossSpec::of(loss)) {
            let p = Pair { chosen: f64::NAN, chosen_score: 2.0, rejected_score: 1.0, ..Pair::ZERO };
            let got = on_pair(&spec, &p);
            assert!(got.loss.is_nan(), "{loss} under {}: {got:?}", spec.divergence);
        }
    }
}

#[test]
fn derivatives_of_lists() {
    let mut noise = Noise(9);
    for loss in LossType::EVERY {
        let Rule::List(f) = loss.def().rule else { continue };
        for (k, spread, beta) in (1..=8).flat_map(|k| [(k, 8.0, 0.1), (k, 3.0, 2.0), (k, 1e4, 0.1), (k, 0.0, 0.5)]) {
            let spec = LossSpec::of(*loss).with(Param::Beta, beta);
            let params = &spec.terms()[0].params;
            let ratios: Vec<f64> = (0..k).map(|_| noise.within(-spread, spread)).collect();
            let mut d = vec![f64::NAN; k];
            let value = f(params, &ratios, &mut d);
            assert!(value.is_finite() && value >= 0.0 && d.iter().all(|x| x.is_finite()), "{ratios:?}: {value}, {d:?}");
            // Only differences count.
            assert!(d.iter().sum::<f64>().abs() < 1e-12 * beta, "{d:?}");
            for i in 0..k {
                let value_at = |x: f64| {
                    let mut moved = ratios.clone();
                    moved[i] = x;
                    f(params, &moved, &mut vec![0.0; k])
                };
                let what = format!("{loss}, response {i} of {ratios:?}");
                check(&what, value_at, ratios[i], 1e-4, d[i]);
            }
        }
    }
}
