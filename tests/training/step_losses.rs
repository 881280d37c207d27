//! Losses of a whole step against TRL's numbers, finite differences and plain formulas.

use fusedpo::loss::{
    Divergence, Judged, LossSpec, LossType, Pair, PairLoss, Param, Params, Rule, Running, StepPairs, Term,
};
use serde_json::Value;

fn golden() -> Vec<Value> {
    let text = include_str!("../golden/step_losses.json");
    serde_json::from_str::<Value>(text).unwrap()["cases"].as_array().unwrap().clone()
}

fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[track_caller]
fn close(got: f64, want: f64, tol: f64, what: &str) {
    assert!((got - want).abs() <= tol * want.abs().max(1e-3), "{what}: {got}, not {want}");
}

fn term(loss_type: LossType, params: &[(Param, f64)]) -> Term {
    let term = Term::of(loss_type);
    Term { params: params.iter().fold(term.params, |p, (param, value)| p.with(*param, *value)), ..term }
}

fn step_rule(t: &Term) -> fn(&StepPairs<'_>, &mut Running) -> Vec<PairLoss> {
    match t.def().rule {
        Rule::Step(f) => f,
        _ => panic!("{} is no loss of a step", t.def().name),
    }
}

fn kto_rule() -> fn(&Params, &[Judged], f64) -> Vec<[f64; 2]> {
    match LossType::Kto.def().rule {
        Rule::Judged(f) => f,
        _ => panic!("kto is a loss of judgements"),
    }
}

#[test]
fn as_trl_has_them() {
    let mut seen = std::collections::BTreeMap::new();
    for (i, case) in golden().iter().enumerate() {
        let name = case["loss"].as_str().unwrap();
        *seen.entry(name.to_owned()).or_insert(0) += 1;
        let number = |key: &str| case[key].as_f64().unwrap();
        let (policy, reference, by) = (numbers(&case["policy"]), numbers(&case["reference"]), numbers(&case["by"]));
        if name == "kto" {
            let params = [Param::Beta, Param::DesirableWeight, Param::UndesirableWeight].map(|p| (p, number(p.name())));
            let labels: Vec<bool> = case["labels"].as_array().unwrap().iter().map(|l| l.as_bool().unwrap()).collect();
            let drift: Vec<f64> = numbers(&case["mismatched"])
                .iter()
                .zip(numbers(&case["mismatched_reference"]))
                .map(|(p, r)| p - r)
                .collect();
            let z = (drift.iter().sum::<f64>() / drift.len() as f64).max(0.0);
            close(z, number("kl"), 1e-12, &format!("{i} kl"));
            let judged: Vec<Judged> = labels
                .iter()
                .zip(policy.iter().zip(&reference))
                .map(|(&desirable, (&policy, &reference))| Judged { desirable, policy, reference })
                .collect();
            let got = kto_rule()(&term(LossType::Kto, &params).params, &judged, z);
            let n = got.len() as f64;
            close(got.iter().map(|g| g[0]).sum::<f64>() / n, number("value"), 1e-11, &format!("{i} kto"));
            got.iter().zip(&by).for_each(|(g, want)| close(g[1] / n, *want, 1e-10, &format!("{i} kto")));
            continue;
        }
        let loss_type = if name == "aot" { LossType::Aot } else { LossType::AotUnpaired };
        let t = term(loss_type, &[(Param::Beta, number("beta")), (Param::LabelSmoothing, number("label_smoothing"))]);
        let n = policy.len() / 2;
        let pairs: Vec<Pair> = (0..n)
            .map(|k| Pair {
                chosen: policy[k],
                rejected: policy[n + k],
                ref_chosen: reference[k],
                ref_rejected: reference[n + k],
                ..Pair::ZERO
            })
            .collect();
        let got = evaluated(&t, &pairs, &vec![1.0; n], &mut Running::default());
        close(got.iter().map(|g| g.loss).sum::<f64>() / n as f64, number("value"), 1e-11, &format!("{i} {name}"));
        // Equal values are sorted as torch happens to: there the gradients may be each other's.
        if !policy.iter().zip(&reference).all(|(p, r)| p == r) {
            for (k, g) in got.iter().enumerate() {
                close(g.d_chosen / n as f64, by[k], 1e-10, &format!("{i} {name} chosen {k}"));
                close(g.d_rejected / n as f64, by[n + k], 1e-10, &format!("{i} {name} rejected {k}"));
            }
        }
    }
    assert_eq!(
        seen.into_iter().collect::<Vec<_>>(),
        [("aot".into(), 12), ("aot_unpaired".into(), 12), ("kto".into(), 30)]
    );
}

fn evaluated(t: &Term, pairs: &[Pair], weights: &[f64], running: &mut Running) -> Vec<PairLoss> {
    let ids: Vec<u64> = (0..pairs.len() as u64).collect();
    step_rule(t)(&StepPairs { params: &t.params, pairs, weights, ids: &ids, seed: [7, 3], trains: false }, running)
}

/// A number in [0, 1) a call.
fn draws(mut state: u64) -> impl FnMut() -> f64 {
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn random_pairs(n: usize, seed: u64, scale: f64) -> (Vec<Pair>, Vec<f64>) {
    let mut draw = draws(seed);
    let mut at = |to: f64| -(draw() * to);
    let pairs = (0..n)
        .map(|_| Pair {
            chosen: at(scale),
            rejected: at(scale),
            ref_chosen: at(scale),
            ref_rejected: at(scale),
            ..Pair::ZERO
        })
        .collect();
    let weights = (0..n).map(|i| [1.0, 2.0, 0.25, 1.5][(i + seed as usize) % 4]).collect();
    (pairs, weights)
}

/// The weighted sum of values, by central differences, against the derivatives as a step uses them: times the pair's weight.
#[test]
fn derivatives_are_those_of_the_weighted_sum() {
    for (t, scale) in [LossType::Aot, LossType::AotUnpaired].iter().flat_map(|l| {
        [(0.1, 0.0, 50.0), (1.0, 0.3, 6.0), (0.1, 0.1, 2e4)]
            .map(|(b, e, s)| (term(*l, &[(Param::Beta, b), (Param::LabelSmoothing, e)]), s))
    }) {
        for (n, seed) in [(1, 1), (2, 2), (3, 3), (8, 4), (33, 5)] {
            let (pairs, weights) = random_pairs(n, seed, scale);
            let sum = |pairs: &[Pair]| -> f64 {
                let got = evaluated(&t, pairs, &weights, &mut Running::default());
                got.iter().zip(&weights).map(|(g, w)| w * g.loss).sum()
            };
            let got = evaluated(&t, &pairs, &weights, &mut Running::default());
            for k in 0..n {
                for (chosen, d) in [(true, got[k].d_chosen), (false, got[k].d_rejected)] {
                    let h = 1e-6 * scale.max(1.0).sqrt();
                    let moved = |by: f64| {
                        let mut pairs = pairs.clone();
                        *(if chosen { &mut pairs[k].chosen } else { &mut pairs[k].rejected }) += by;
                        sum(&pairs)
                    };
                    let numeric = (moved(h) - moved(-h)) / (2.0 * h);
                    let (want, name) = (weights[k] * d, t.def().name);
                    assert!(
                        (numeric - want).abs() <= 2e-6 * (1.0 + want.abs()) + 1e-9 * sum(&pairs).abs() / h * 1e-6,
                        "{name} {n} {k} {chosen}: {want}, not {numeric}"
                    );
                }
            }
        }
    }
}

#[test]
fn judgements_by_finite_differences() {
    let f = kto_rule();
    let mut draw = draws(11);
    for beta in [0.01, 0.1, 1.0, 5.0] {
        let p =
            term(LossType::Kto, &[(Param::Beta, beta), (Param::DesirableWeight, 1.3), (Param::UndesirableWeight, 0.7)])
                .params;
        for _ in 0..200 {
            let j = Judged { desirable: draw() < 0.5, policy: -30.0 * draw(), reference: -30.0 * draw() };
            let z = 10.0 * draw();
            let [value, d] = f(&p, &[j], z)[0];
            let weight = if j.desirable { 1.3 } else { 0.7 };
            assert!((0.0..=weight).contains(&value));
            let at = |by: f64| f(&p, &[Judged { policy: j.policy + by, ..j }], z)[0][0];
            let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((numeric - d).abs() <= 1e-8, "{j:?}: {d}, not {numeric}");
            assert!(if j.desirable { d <= 0.0 } else { d >= 0.0 });
        }
        for far in [1e4, -1e4, 1e300] {
            for desirable in [true, false] {
                let [value, d] = f(&p, &[Judged { desirable, policy: far, reference: 0.0 }], 0.0)[0];
                assert!(value.is_finite() && d.is_finite() && d.abs() < 1e-20, "{far} {desirable}: {value} {d}");
            }
        }
    }
}

/// Equal values keep the order of the pairs, and infinities and zeros of either sign are no trouble.
#[test]
fn ties_are_the_first_pairs() {
    let pair = |chosen: f64, ref_chosen: f64| Pair { chosen, ref_chosen, ..Pair::ZERO };
    let t = Term::of(LossType::Aot);
    let pairs = [pair(-1.0, -5.0), pair(-1.0, -3.0), pair(-1.0, -4.0)];
    let got = evaluated(&t, &pairs, &[1.0; 3], &mut Running::default());
    // The reference's margins ascending are -5, -4, -3.
    let want = [-5.0, -4.0, -3.0].map(|r: f64| (1.0 + (-0.1 * (-1.0 - r)).exp()).ln());
    got.iter().zip(want).for_each(|(g, want)| close(g.loss, want, 1e-14, "tie"));
    let zeros = [pair(0.0, -1.0), pair(-0.0, -2.0)];
    let got = evaluated(&t, &zeros, &[1.0; 2], &mut Running::default());
    close(got[0].loss, (1.0 + (-0.2f64).exp()).ln(), 1e-14, "the first zero stays first");
}

fn trained(t: &Term, pairs: &[Pair], weights: &[f64], step: u64, running: &mut Running) -> Vec<PairLoss> {
    let ids: Vec<u64> = (0..pairs.len() as u64).collect();
    step_rule(t)(&StepPairs { params: &t.params, pairs, weights, ids: &ids, seed: [42, step], trains: true }, running)
}

/// However a step is cut into micro-batches, and its pairs so put in another order, the same ones are kept.
#[test]
fn what_is_drawn_is_drawn_for_a_pair() {
    let t = term(LossType::BetaDpo, &[(Param::BetaDpoKeep, 0.5)]);
    let (pairs, weights) = random_pairs(16, 5, 3.0);
    let loss = |order: &[usize]| {
        let (pairs, weights): (Vec<_>, Vec<_>) = order.iter().map(|i| (pairs[*i], weights[*i])).unzip();
        let ids: Vec<u64> = order.iter().map(|i| 100 + 7 * *i as u64).collect();
        let step =
            StepPairs { params: &t.params, pairs: &pairs, weights: &weights, ids: &ids, seed: [42, 1], trains: true };
        let mut got: Vec<_> = order.iter().zip(step_rule(&t)(&step, &mut Running::default())).collect();
        got.sort_by_key(|(i, _)| **i);
        got.into_iter().map(|(_, got)| got.loss).collect::<Vec<_>>()
    };
    let forward: Vec<usize> = (0..16).collect();
    let turned: Vec<usize> = (0..16).map(|i| (5 * i + 3) % 16).collect();
    let [one, other] = [&forward, &turned].map(|order| loss(order));
    one.iter().zip(&other).for_each(|(a, b)| close(*a, *b, 1e-12, "another order"));
    assert_eq!(one.iter().filter(|l| **l == 0.0).count(), 8, "half are kept: {one:?}");
}

#[test]
fn a_beta_for_each_step() {
    let (beta, alpha) = (0.2, 0.5);
    let t = term(LossType::BetaDpo, &[(Param::Beta, beta), (Param::BetaDpoAlpha, alpha), (Param::BetaDpoKeep, 1.0)]);
    let (pairs, weights) = random_pairs(9, 3, 20.0);
    let margins: Vec<f64> = pairs.iter().map(|p| beta * p.margin()).collect();
    let mass: f64 = weights.iter().sum();
    let mean: f64 = margins.iter().zip(&weights).map(|(m, w)| m * w).sum::<f64>() / mass;
    // The first step is its own mean.
    let mut running = Running::default();
    let got = trained(&t, &pairs, &weights, 1, &mut running);
    for (g, p) in got.iter().zip(&pairs) {
        close(g.loss, (-beta * p.margin()).exp().ln_1p(), 1e-12, "first");
    }
    assert_eq!(running.steps, 1);
    close(running.margin_mean, mean, 1e-14, "mean");
    // The next follows, and its beta is larger where its margins are.
    let better: Vec<Pair> = pairs.iter().map(|p| Pair { chosen: p.chosen + 15.0, ..*p }).collect();
    let before = running;
    let got = trained(&t, &better, &weights, 2, &mut running);
    let m0 = 0.9 * mean + 0.1 * (mean + beta * 15.0);
    close(running.margin_mean, m0, 1e-12, "running mean");
    let own = beta * (1.0 + alpha * (mean + beta * 15.0 - m0));
    for (g, p) in got.iter().zip(&better) {
        close(g.loss, (-own * p.margin()).exp().ln_1p(), 1e-12, "second");
        let d = -own / (1.0 + (own * p.margin()).exp());
        close(g.d_chosen, d, 1e-12, "second");
        assert_eq!(g.d_rejected, -g.d_chosen);
    }
    // An evaluation changes nothing, and takes the same M0 again.
    let frozen = running;
    let seen = evaluated(&t, &better, &weights, &mut running);
    assert_eq!(running, frozen);
    close(seen[0].loss, got[0].loss, 1e-12, "evaluation");
    // Worse margins never turn beta around.
    let worse: Vec<Pair> = pairs.iter().map(|p| Pair { chosen: p.chosen - 1e4, ..*p }).collect();
    let mut running = before;
    for g in trained(&t, &worse, &weights, 3, &mut running) {
        assert!(g.loss.is_finite() && g.d_chosen < 0.0 && g.d_chosen >= -0.01 * beta, "{g:?}");
    }
    // What is no number is not remembered.
    let mut running = before;
    let broken: Vec<Pair> = pairs.iter().map(|p| Pair { chosen: f64::NAN, ..*p }).collect();
    assert!(trained(&t, &broken, &weights, 4, &mut running).iter().any(|g| g.loss.is_nan()));
    assert_eq!(running, before);
}

#[test]
fn outliers_are_drawn_least() {
    let t = term(LossType::BetaDpo, &[(Param::BetaDpoKeep, 0.75)]);
    // Margins within a deviation of the mean, and one ten of them away.
    let pairs: Vec<Pair> =
        (0..8).map(|i| Pair { chosen: if i == 5 { 1000.0 } else { i as f64 }, ..Pair::ZERO }).collect();
    let weights = vec![1.0; 8];
    let known = Running { steps: 5, margin_mean: 0.35, margin_deviation: 0.5 };
    let mut kept = [0; 8];
    for step in 0..400 {
        let got = trained(&t, &pairs, &weights, step, &mut { known });
        assert_eq!(got, trained(&t, &pairs, &weights, step, &mut { known }), "the same draw again");
        assert_eq!(got.iter().filter(|g| g.loss != 0.0).count(), 6, "six of eight");
        let sum: f64 = got.iter().map(|g| g.loss).sum::<f64>() / 8.0;
        let of_kept: Vec<f64> = got.iter().filter(|g| g.loss != 0.0).map(|g| g.loss * 6.0 / 8.0).collect();
        close(sum, of_kept.iter().sum::<f64>() / 6.0, 1e-12, "a mean over those kept");
        got.iter().zip(&mut kept).for_each(|(g, n)| *n += usize::from(g.loss != 0.0));
    }
    assert!(kept[5] == 0, "{kept:?}");
    assert!(kept.iter().enumerate().all(|(i, n)| i == 5 || *n > 200), "{kept:?}");
    // All margins equal, as where policy and reference agree: every pair is as likely.
    let equal = vec![Pair::ZERO; 8];
    let mut kept = [0; 8];
    for step in 0..800 {
        let got = trained(&t, &equal, &weights, step, &mut Running::default());
        got.iter().zip(&mut kept).for_each(|(g, n)| *n += usize::from(g.loss != 0.0));
        close(got.iter().map(|g| g.loss).sum::<f64>() / 8.0, std::f64::consts::LN_2, 1e-12, "at the reference");
    }
    assert!(kept.iter().all(|n| (540..=660).contains(n)), "{kept:?}");
    // One pair is kept whatever the share.
    let one = term(LossType::BetaDpo, &[(Param::BetaDpoKeep, 0.01)]);
    assert_eq!(trained(&one, &pairs[..1], &weights[..1], 0, &mut Running::default())[0].loss, std::f64::consts::LN_2);
}

#[test]
fn what_has_no_meaning_together_is_refused() {
    let sum = |of: &[LossType]| LossSpec::sum(&of.iter().map(|l| Term::of(*l)).collect::<Vec<_>>());
    let with = |loss: LossType, change: fn(&mut LossSpec)| {
        let mut spec = LossSpec::of(loss);
        change(&mut spec);
        spec
    };
    sum(&[LossType::Aot, LossType::Sft]).check().unwrap();
    for (spec, want) in [
        (sum(&[LossType::Kto, LossType::Sft]), "it stands alone"),
        (with(LossType::Aot, |s| s.use_weighting = true), "`use_weighting`: not with `loss_type` aot"),
        (with(LossType::Kto, |s| s.use_weighting = true), "`use_weighting`: not with `loss_type` kto"),
        (with(LossType::Kto, |s| s.ld_alpha = Some(0.5)), "`ld_alpha`: not with `loss_type` kto"),
        (with(LossType::AotUnpaired, |s| s.divergence = Divergence::JsDivergence), "`f_divergence_type`: not with"),
        (sum(&[LossType::BetaDpo]).with(Param::BetaDpoMomentum, 1.0), "`beta_dpo_momentum` 1: must be in [0, 1)"),
    ] {
        let why = spec.check().unwrap_err().to_string();
        assert!(why.contains(want), "{why}");
    }
}
