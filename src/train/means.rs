//! What a step's losses are means over, and what they would be at the reference.

use crate::backend::{PAIR_STATS, RESPONSE_STATS, loss_pair, pair_weight};
use crate::batch::{Outline, PairSlot};
use crate::data::plan::Objective;
use crate::loss::{LossSpec, Pair, Rule, Scales};

/// What a step's data are planned for.
pub fn objective(spec: &LossSpec) -> Objective {
    match spec.is_sft() {
        true => Objective::Sft,
        false if spec.is_judged() => Objective::Judgement,
        false if spec.is_listwise() => Objective::Ranking,
        false => Objective::Preference,
    }
}

/// One over what each kind of loss is a mean over in the step that `batches` are, all of it: pair weights, tokens of the pairs' chosen
/// responses, and for what responses have alone prompts (lists), scored tokens (SFT) or judgements, by weight (KTO).
pub fn scales<'b>(batches: impl Iterator<Item = &'b Outline> + Clone, spec: &LossSpec) -> Scales {
    let (mut pairs, mut tokens) = (0.0, 0.0);
    for of in batches.clone() {
        for p in of.pairs() {
            pairs += f64::from(p.weight);
            tokens += f64::from(p.weight) * of.responses()[p.chosen as usize].predictions.len() as f64;
        }
    }
    let scored: usize = batches.clone().map(Outline::num_predictions).sum();
    let prompts: usize = batches.clone().map(|of| of.groups().len()).sum();
    let over = |n: f64| if n > 0.0 { 1.0 / n } else { 1.0 };
    if spec.is_judged() {
        let judged = batches.flat_map(Outline::responses).map(|r| r.role.judged()).sum();
        return over(judged).into();
    }
    if spec.is_sft() {
        return over(scored as f64).into();
    }
    Scales { pairs: over(pairs), tokens: over(tokens), units: over(prompts as f64) }
}

/// The pair as it would be under a reference that agrees with the policy.
pub fn agreed(p: &Pair) -> Pair {
    Pair { ref_chosen: p.chosen, ref_rejected: p.rejected, ..*p }
}

/// What formulas see of pair `of` of `mb`, given its responses' numbers and its own, as the loss op wrote them.
pub fn seen(mb: &Outline, spec: &LossSpec, of: &PairSlot, [responses, stats]: [&[f64]; 2], less: bool) -> Pair {
    let sums = [of.chosen, of.rejected].map(|r| responses[r as usize * RESPONSE_STATS]);
    loss_pair(mb, spec, of, [sums, [stats[4], stats[5]]], less)
}

/// The losses of a group's scope as they would be at a reference that agrees with the policy: those that are means over pairs,
/// over tokens of chosen responses, and those that responses have alone.
pub fn at_reference(mb: &Outline, spec: &LossSpec, responses: &[f64], pairs: &[f64]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for term in spec.terms() {
        match term.def().rule {
            Rule::Pair(_) | Rule::Tokens if !spec.is_sft() => {
                let tokens = matches!(term.def().rule, Rule::Tokens);
                for (of, stats) in mb.pairs().iter().zip(pairs.chunks_exact(PAIR_STATS)) {
                    let p = agreed(&seen(mb, spec, of, [responses, stats], !tokens));
                    let aligned = [of.chosen, of.rejected].map(|r| responses[r as usize * RESPONSE_STATS + 4]);
                    let by = f64::from(of.weight) * term.weight * pair_weight(spec, aligned, &p);
                    sums[usize::from(tokens)] += by * spec.of_pair(term, &p).loss;
                }
            }
            Rule::List(f) => {
                let beaten = |r: u32| mb.pairs().iter().filter(|p| p.chosen == r).count();
                for n in (0..mb.responses().len() as u32).map(beaten).filter(|n| *n > 0) {
                    sums[2] += term.weight * f(&term.params, &vec![0.0; n + 1], &mut vec![0.0; n + 1]);
                }
            }
            _ => {}
        }
    }
    sums
}
