//! beta-DPO: a beta for each step, and steps without their outliers.

use super::math::logistic;
use super::step::{Running, StepPairs, uniform};
use super::{Lengths, LossDef, PairLoss, Param, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "beta_dpo",
    about: "DPO with a beta that follows the step's reward margins, and without the pairs far from their running mean",
    formula: "M = beta h; keep a share of the pairs, drawn by exp(-(M - M0)^2 / (2 S^2)); b = max(beta/100, beta (1 + \
              beta_dpo_alpha (mean M of those kept - M0))); -ls(b h), a mean over those kept; M0, S: running mean and deviation of M",
    source: "Wu et al. 2024 (arXiv 2407.08639) algorithm 1; its program takes h for M, so its alpha is beta times this one",
    guidance: "For pairs of mixed quality, where a fixed beta has to be searched. It compares the pairs of a step with one \
               another: use 32 pairs or more. An evaluation keeps every pair and remembers nothing. Twice through the model a \
               step.",
    options: &[
        (Param::Beta, 0.1),
        (Param::BetaDpoAlpha, 0.6),
        (Param::BetaDpoMomentum, 0.9),
        (Param::BetaDpoKeep, 0.8),
    ],
    reference: true,
    scores: false,
    divergence: false,
    lengths: Lengths::Unread,
    mean_reward: false,
    rule: Rule::Step(loss),
};

/// Least share of beta that a step's beta may be.
const FLOOR: f64 = 0.01;

fn loss(step: &StepPairs<'_>, running: &mut Running) -> Vec<PairLoss> {
    let beta = step.params[Param::Beta];
    let margins: Vec<f64> = step.pairs.iter().map(|p| beta * p.margin()).collect();
    let now = moments(&margins, step.weights);
    if step.trains {
        remember(running, now, step.params[Param::BetaDpoMomentum]);
    }
    // Before anything was remembered a step's margins are compared with their own mean.
    let [mean, deviation] = if running.steps == 0 { now } else { [running.margin_mean, running.margin_deviation] };
    let kept = match step.trains {
        true => draw(step, &margins, [mean, deviation]),
        false => vec![true; margins.len()],
    };
    let mass = |of: &dyn Fn(usize) -> f64| -> f64 {
        (0..margins.len()).filter(|i| kept[*i]).map(|i| step.weights[i] * of(i)).sum()
    };
    let (all, held) = (step.weights.iter().sum::<f64>(), mass(&|_| 1.0));
    let of_step = mass(&|i| margins[i]) / held;
    // No gradient goes through it. Written so that NaN stays NaN: the step is skipped then.
    let dynamic = beta * (1.0 + step.params[Param::BetaDpoAlpha] * (of_step - mean));
    let dynamic = if dynamic < FLOOR * beta { FLOOR * beta } else { dynamic };
    let one = |(p, kept): (&super::Pair, &bool)| match kept {
        true => {
            let [loss, d] = logistic(dynamic * p.margin(), 0.0);
            // The mean is over all of the step's pairs, and is to be over those kept.
            PairLoss::of_margin(all / held * loss, all / held * dynamic * d)
        }
        false => PairLoss::default(),
    };
    step.pairs.iter().zip(&kept).map(one).collect()
}

/// Weighted mean and deviation, the latter as of a sample; 0 of a single margin.
fn moments(margins: &[f64], weights: &[f64]) -> [f64; 2] {
    let (n, mass) = (margins.len() as f64, weights.iter().sum::<f64>());
    let mean = margins.iter().zip(weights).map(|(m, w)| w * m).sum::<f64>() / mass;
    if margins.len() < 2 {
        return [mean, 0.0];
    }
    let spread = margins.iter().zip(weights).map(|(m, w)| w * (m - mean).powi(2)).sum::<f64>() / mass;
    [mean, (spread * n / (n - 1.0)).sqrt()]
}

/// The first step is remembered as it is. A step whose margins are no numbers is none.
fn remember(running: &mut Running, now: [f64; 2], momentum: f64) {
    if !now.iter().all(|x| x.is_finite()) {
        return;
    }
    let follow = |was: f64, is: f64| if running.steps == 0 { is } else { momentum * was + (1.0 - momentum) * is };
    let next = [follow(running.margin_mean, now[0]), follow(running.margin_deviation, now[1])];
    [running.margin_mean, running.margin_deviation] = next;
    running.steps += 1;
}

/// Which pairs are kept: a share of them, without replacement, each by the Gaussian weight of its margin. The largest of log
/// weights with Gumbel noise are such a draw (Vieira 2014), and need no sum of weights that may all be too small for a number.
fn draw(step: &StepPairs<'_>, margins: &[f64], [mean, deviation]: [f64; 2]) -> Vec<bool> {
    let n = margins.len();
    // A share that is whole but for rounding is whole.
    let keep = ((step.params[Param::BetaDpoKeep] * n as f64 + 1e-9).floor() as usize).clamp(1, n.max(1));
    let key = |i: usize| {
        let off = (margins[i] - mean).abs();
        let weight = if off == 0.0 { 0.0 } else { -0.5 * (off / deviation).powi(2) };
        weight - (-uniform(step.seed, step.ids[i]).ln()).ln()
    };
    let keys: Vec<f64> = (0..n).map(key).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| keys[*b].total_cmp(&keys[*a]).then(step.ids[*a].cmp(&step.ids[*b])));
    let mut kept = vec![false; n];
    order.into_iter().take(keep).for_each(|i| kept[i] = true);
    kept
}
