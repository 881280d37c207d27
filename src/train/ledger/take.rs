//! The records of a step, from the numbers that its passes brought to the host.

use super::format::PairRecord;
use crate::backend::{PAIR_STATS, RESPONSE_STATS, pair_weight};
use crate::batch::Outline;
use crate::loss::{LossSpec, Pair, Rule, Scales};
use crate::train::means::seen;

/// The records of a step while its numbers come in.
#[derive(Clone, Debug, Default)]
pub(in crate::train) struct Taken {
    step: u32,
    epoch: u32,
    /// What the coefficients that a micro-batch was given were scaled by.
    scale: f64,
    records: Vec<PairRecord>,
}

impl Taken {
    /// Of step `step`, from 1, in `epoch`, from 0, whose losses are means by `scales`.
    pub fn new(step: u64, epoch: u64, scales: &Scales) -> Self {
        // A run of so many steps does not end.
        let [step, epoch] = [step, epoch].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        Self { step, epoch, scale: scales.pairs, records: Vec::new() }
    }

    /// Adds the pairs of a micro-batch, from the numbers of its responses and pairs; of losses of the whole step once it has its
    /// coefficients.
    pub fn add(&mut self, of: &Outline, spec: &LossSpec, [responses, pairs]: [&[f64]; 2]) {
        for (slot, stats) in of.pairs().iter().zip(pairs.chunks_exact(PAIR_STATS)) {
            let whole = seen(of, spec, slot, [responses, stats], false);
            let less = seen(of, spec, slot, [responses, stats], true);
            let aligned = [slot.chosen, slot.rejected].map(|r| responses[r as usize * RESPONSE_STATS + 4]);
            let [loss, chosen, rejected] = alone(spec, [&whole, &less], pair_weight(spec, aligned, &less));
            let given = slot.given.map(|by| by / (self.scale * f64::from(slot.weight)));
            self.records.push(PairRecord {
                pair: slot.id,
                step: self.step,
                epoch: self.epoch,
                chosen: whole.chosen,
                rejected: whole.rejected,
                ref_chosen: of.responses()[slot.chosen as usize].ref_logp,
                ref_rejected: of.responses()[slot.rejected as usize].ref_logp,
                margin: (stats[1] - stats[2]) as f32,
                loss: (stats[0] + loss) as f32,
                coef_chosen: (chosen + given[0]) as f32,
                coef_rejected: (rejected + given[1]) as f32,
            });
        }
    }

    /// Their bytes, by pair: however the step was cut into micro-batches.
    pub fn bytes(&mut self) -> &[u8] {
        self.records.sort_by_key(|r| r.pair);
        bytemuck::cast_slice(&self.records)
    }
}

/// What the losses of a group's scope come to for a pair alone, of weight 1: beside the loss that is a mean over pairs, which the
/// device has summed up, and the derivatives by both log-probs. `by` is the weight that the loss gives the pair itself.
fn alone(spec: &LossSpec, [whole, less]: [&Pair; 2], by: f64) -> [f64; 3] {
    let (mut loss, mut chosen, mut rejected) = (0.0, 0.0, 0.0);
    for term in spec.terms() {
        match term.def().rule {
            Rule::Pair(_) => {
                let got = spec.of_pair(term, less);
                chosen += term.weight * by * got.d_chosen;
                rejected += term.weight * by * got.d_rejected;
            }
            Rule::Tokens => {
                let got = spec.of_pair(term, whole);
                let by = term.weight * by / whole.chosen_len;
                loss += by * got.loss;
                chosen += by * got.d_chosen;
            }
            // A ranking of the two.
            Rule::List(f) => {
                let mut slopes = [0.0; 2];
                loss += term.weight * f(&term.params, &[whole.ratio_chosen(), whole.ratio_rejected()], &mut slopes);
                chosen += term.weight * slopes[0];
                rejected += term.weight * slopes[1];
            }
            Rule::Step(_) | Rule::Judged(_) => {}
        }
    }
    [loss, chosen, rejected]
}
