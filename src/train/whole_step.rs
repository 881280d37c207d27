//! Losses of a whole step: through the model once for the log-probs of every pair, on the host for what each comes to, and
//! through the model again for the gradients. Losses of one group do not come here, and pay nothing for it.

use super::engine::Engine;
use super::means::{agreed, seen};
use super::metrics::Totals;
use super::team::Numbers;
use crate::backend::{Backend, PAIR_STATS, RESPONSE_STATS};
use crate::batch::{Batches, MicroBatch, Outline, Role};
use crate::error::Result;
use crate::loss::{Judged, LossSpec, Pair, PairLoss, Params, Rule, Running, Scales, StepPairs, Term};
use std::collections::HashMap;

/// How a step is taken.
#[derive(Clone, Copy)]
pub struct Taking<'a> {
    /// The loss.
    pub spec: &'a LossSpec,
    /// One over what it is a mean over.
    pub scales: Scales,
    /// What its draws are made from.
    pub seed: [u64; 2],
    /// Whether gradients follow.
    pub trains: bool,
    /// Whether the step's loss is also asked for as it would be at the reference.
    pub proves: bool,
}

/// The first time through the model: the step's numbers. Leaves in `batches` the coefficients that each response and pair has
/// from the losses that see all of them, for [`Engine::start_given`].
pub fn first<B: Backend>(
    engine: &mut Engine<'_, B>,
    batches: &mut Batches,
    how: Taking<'_>,
    running: &mut Running,
) -> Result<Totals> {
    first_seen(engine, batches, how, running, &mut |_, _| {})
}

/// [`first`], which hands every micro-batch on with the numbers of its responses and pairs, once all of it is known.
pub fn first_seen<B: Backend>(
    engine: &mut Engine<'_, B>,
    batches: &mut Batches,
    how: Taking<'_>,
    running: &mut Running,
    keep: &mut dyn FnMut(&Outline, [&[f64]; 2]),
) -> Result<Totals> {
    let mut numbers = engine.evaluated(batches, how.spec)?;
    let mut totals = if how.proves { Totals::proving() } else { Totals::default() };
    if let &[Term { weight, params, .. }] = how.spec.terms()
        && let Rule::Judged(f) = how.spec.terms()[0].def().rule
    {
        let of = Judging { params, weight, scale: how.spec.terms()[0].scale(&how.scales), f };
        judgements_of_the_step(batches, &mut numbers, &of, &mut totals);
    } else {
        let agreed = pairs_of_the_step(batches, &mut numbers, how, running);
        totals.add_at_reference([agreed, 0.0, 0.0]);
    }
    for (of, (responses, pairs)) in batches.all().zip(&numbers) {
        totals.add(of, how.spec, responses, pairs);
        keep(of, [responses, pairs]);
    }
    Ok(totals)
}

/// What this rank goes through the second time: its own of `batches`, or where any have mismatched rows of `second`, which have none,
/// with the coefficients that the first time left in them.
pub fn second(batches: &Batches, second: impl FnOnce() -> Result<Batches>) -> Result<Vec<MicroBatch>> {
    let slots = || batches.all().flat_map(Outline::responses);
    if slots().all(|r| !r.role.is_mismatched()) {
        return Ok(batches.own.clone());
    }
    let given: HashMap<u64, f64> = slots().filter(|r| !r.role.is_mismatched()).map(|r| (r.id, r.given)).collect();
    let mut own = second()?.own;
    let slots = own.iter_mut().map(MicroBatch::outline_mut).flat_map(Outline::responses_mut);
    slots.for_each(|r| r.given = given[&r.id]);
    Ok(own)
}

/// A loss of judgements.
struct Judging {
    params: Params,
    weight: f64,
    scale: f64,
    f: fn(&Params, &[Judged], f64) -> Vec<[f64; 2]>,
}

/// How far the policy is from the reference, by the step's mismatched rows, and with it what its judgements come to: the values
/// added to each response's numbers, the coefficients to the batches.
fn judgements_of_the_step(batches: &mut Batches, numbers: &mut [Numbers], of: &Judging, totals: &mut Totals) {
    let (mut sum, mut over, mut expected) = (0.0, 0.0, 0.0);
    for (of, (responses, _)) in batches.all().zip(&*numbers) {
        for (slot, numbers) in of.responses().iter().zip(responses.chunks_exact(RESPONSE_STATS)) {
            if let Role::Mismatched { weight, .. } = slot.role {
                sum += f64::from(weight) * (numbers[0] - slot.ref_logp);
                over += f64::from(weight);
            }
        }
    }
    // NaN stays NaN, so that the step is seen to have no numbers.
    let z = if sum < 0.0 || over == 0.0 { 0.0 } else { sum / over };
    totals.divergence += z;
    totals.divergences += 1;
    for (outline, (responses, _)) in batches.all_mut().zip(numbers) {
        for (slot, numbers) in outline.responses_mut().zip(responses.chunks_exact_mut(RESPONSE_STATS)) {
            let Role::Own { desirable, undesirable } = slot.role else { continue };
            slot.given = 0.0;
            for (desirable, times) in [(true, f64::from(desirable)), (false, f64::from(undesirable))] {
                if times == 0.0 {
                    continue;
                }
                let judged = Judged { desirable, policy: numbers[0], reference: slot.ref_logp };
                let [value, slope] = (of.f)(&of.params, &[judged], z)[0];
                let agreed = Judged { reference: judged.policy, ..judged };
                expected += times * of.weight * (of.f)(&of.params, &[agreed], 0.0)[0][0];
                numbers[3] += times * of.weight * value;
                slot.given += times * of.scale * slope;
            }
        }
    }
    totals.add_at_reference([0.0, 0.0, expected]);
}

/// What the losses of all pairs come to: their values added to each pair's numbers, their coefficients to the batches. Gives
/// the sum of their values if policy and reference agreed, where that is asked for.
fn pairs_of_the_step(batches: &mut Batches, numbers: &mut [Numbers], how: Taking<'_>, running: &mut Running) -> f64 {
    let (mut pairs, mut weights, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    for (outline, (responses, stats)) in batches.all().zip(&*numbers) {
        for (of, stats) in outline.pairs().iter().zip(stats.chunks_exact(PAIR_STATS)) {
            pairs.push(seen(outline, how.spec, of, [responses, stats], true));
            weights.push(f64::from(of.weight));
            ids.push(of.id);
        }
    }
    batches.all_mut().flat_map(Outline::pairs_mut).for_each(|slot| slot.given = [0.0; 2]);
    let agree: Vec<Pair> = pairs.iter().filter(|_| how.proves).map(agreed).collect();
    let mut at_reference = 0.0;
    for term in how.spec.terms() {
        let Rule::Step(f) = term.def().rule else { continue };
        let (weights, ids, seed) = (&weights[..], &ids[..], how.seed);
        let step = |pairs, trains| StepPairs { params: &term.params, pairs, weights, ids, seed, trains };
        if how.proves {
            let expected = f(&step(&agree, false), &mut { *running });
            at_reference += term.weight * expected.iter().zip(weights).map(|(got, w)| w * got.loss).sum::<f64>();
        }
        let got = f(&step(&pairs, how.trains), running);
        add(batches, numbers, &got, term.weight, term.scale(&how.scales));
    }
    at_reference
}

fn add(batches: &mut Batches, numbers: &mut [Numbers], got: &[PairLoss], weight: f64, scale: f64) {
    let slots = batches.all_mut().flat_map(Outline::pairs_mut);
    let stats = numbers.iter_mut().flat_map(|(_, pairs)| pairs.chunks_exact_mut(PAIR_STATS));
    for ((slot, stats), got) in slots.zip(stats).zip(got) {
        stats[0] += weight * got.loss;
        let by = scale * f64::from(slot.weight);
        slot.given[0] += by * got.d_chosen;
        slot.given[1] += by * got.d_rejected;
    }
}
