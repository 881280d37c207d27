//! Losses of a whole step: through the model once for the log-probs of every pair, on the host for what each comes to, and
//! through the model again for the gradients. Losses of one group do not come here, and pay nothing for it.

use super::engine::Engine;
use super::means::{agreed, seen};
use super::metrics::Totals;
use crate::backend::{Backend, PAIR_STATS};
use crate::batch::MicroBatch;
use crate::error::Result;
use crate::loss::{LossSpec, Pair, PairLoss, Rule, Running, Scales, StepPairs};
use std::collections::VecDeque;

/// Numbers of a micro-batch: of its responses, and of its pairs.
type Numbers = (Vec<f64>, Vec<f64>);

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
}

/// The first time through the model: the step's numbers. Leaves in `batches` the coefficients that each response and pair has
/// from the losses that see all of them, for [`Engine::start_given`].
pub fn first<B: Backend>(
    engine: &mut Engine<'_, B>,
    batches: &mut [MicroBatch],
    how: Taking<'_>,
    running: &mut Running,
) -> Result<Totals> {
    let mut numbers = Vec::with_capacity(batches.len());
    // One micro-batch is always under way while the host prepares the next.
    let mut late = VecDeque::with_capacity(2);
    for mb in batches.iter() {
        late.push_back(engine.start_evaluation(mb, how.spec)?);
        if late.len() > 1 {
            numbers.extend(read(engine, &mut late)?);
        }
    }
    numbers.extend(read(engine, &mut late)?);
    let at_reference = pairs_of_the_step(batches, &mut numbers, how, running);
    let mut totals = Totals::default();
    for (mb, (responses, pairs)) in batches.iter().zip(&numbers) {
        totals.add(mb, how.spec, responses, pairs);
    }
    totals.at_reference[0] += at_reference;
    Ok(totals)
}

fn read<B: Backend>(
    engine: &mut Engine<'_, B>,
    late: &mut VecDeque<super::engine::Late<B>>,
) -> Result<Option<Numbers>> {
    let first = late.pop_front().map(|late| engine.read(late, |responses, pairs| (responses.to_vec(), pairs.to_vec())));
    first.transpose()
}

/// What the losses of all pairs come to: their values added to each pair's numbers, their coefficients to the batches. Gives
/// the sum of their values if policy and reference agreed.
fn pairs_of_the_step(
    batches: &mut [MicroBatch],
    numbers: &mut [Numbers],
    how: Taking<'_>,
    running: &mut Running,
) -> f64 {
    let (mut pairs, mut weights) = (Vec::new(), Vec::new());
    for (mb, (responses, stats)) in batches.iter().zip(&*numbers) {
        for (of, stats) in mb.pairs().iter().zip(stats.chunks_exact(PAIR_STATS)) {
            pairs.push(seen(mb, how.spec, of, [responses, stats], true));
            weights.push(f64::from(of.weight));
        }
    }
    batches.iter_mut().flat_map(MicroBatch::pairs_mut).for_each(|slot| slot.given = [0.0; 2]);
    let mut at_reference = 0.0;
    for term in how.spec.terms() {
        let Rule::Step(f) = term.def().rule else { continue };
        let step = |pairs, trains| StepPairs { params: &term.params, pairs, weights: &weights, seed: how.seed, trains };
        let agree: Vec<Pair> = pairs.iter().map(agreed).collect();
        let expected = f(&step(&agree, false), &mut { *running });
        at_reference += term.weight * expected.iter().zip(&weights).map(|(got, w)| w * got.loss).sum::<f64>();
        let got = f(&step(&pairs, how.trains), running);
        add(batches, numbers, &got, term.weight, term.scale(&how.scales));
    }
    at_reference
}

fn add(batches: &mut [MicroBatch], numbers: &mut [Numbers], got: &[PairLoss], weight: f64, scale: f64) {
    let slots = batches.iter_mut().flat_map(MicroBatch::pairs_mut);
    let stats = numbers.iter_mut().flat_map(|(_, pairs)| pairs.chunks_exact_mut(PAIR_STATS));
    for ((slot, stats), got) in slots.zip(stats).zip(got) {
        stats[0] += weight * got.loss;
        let by = scale * f64::from(slot.weight);
        slot.given[0] += by * got.d_chosen;
        slot.given[1] += by * got.d_rejected;
    }
}
