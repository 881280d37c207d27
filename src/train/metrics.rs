//! What a step or an evaluation reports, under TRL's names.
//!
//! Means are over the pairs of the whole global batch, whatever the micro-batches: `rewards/*` of `beta * (logp - ref_logp)`,
//! `logps/*` of sums over completion tokens. `entropy` and `mean_token_accuracy` are means over the completion tokens of
//! all responses, and of the chosen ones. Of judgements `rewards/*` and `logps/*` are means over what was judged desirable
//! (`chosen`) and undesirable (`rejected`), where something was, and `kl` is a mean over steps. A tie counts one half in `rewards/accuracies` (TRL: nothing).

use super::means::at_reference;
use super::spread::{OF_PAIRS, Squares, Z};
use crate::backend::{PAIR_STATS, RESPONSE_STATS};
use crate::batch::{Outline, ResponseSlot, Role};
use crate::loss::LossSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Sums over pairs and responses; the order of additions is the order of the micro-batches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Pairs.
    pub pairs: u64,
    /// Sum of pair weights.
    pub weight: f64,
    /// Weighted sum of the losses that are means over pairs.
    pub loss: f64,
    /// Weighted sum of the losses that are means over tokens of chosen responses.
    pub token_loss: f64,
    /// Weighted sum of tokens of chosen responses.
    pub token_weight: f64,
    /// Sum of the losses that responses have alone: SFT's, a list's, a judgement's.
    pub response_loss: f64,
    /// What it is divided by: scored tokens, prompts or judgements.
    pub response_weight: f64,
    /// Sum of rewards of chosen responses.
    pub reward_chosen: f64,
    /// Sum of rewards of rejected responses.
    pub reward_rejected: f64,
    /// Pairs in which the chosen reward is higher, plus half the ties.
    pub correct: f64,
    /// Sum of log-probs of chosen responses.
    pub logp_chosen: f64,
    /// Sum of log-probs of rejected responses.
    pub logp_rejected: f64,
    /// Responses.
    pub responses: u64,
    /// Scored tokens of all responses.
    pub scored_tokens: u64,
    /// Sum of their entropies, nats.
    pub entropy: f64,
    /// Scored tokens of chosen responses (of all responses where there are no pairs).
    pub chosen_tokens: u64,
    /// How many of them were the argmax.
    pub hits: f64,
    /// Tokens computed, each prompt once.
    pub tokens: u64,
    /// Tokens as TRL counts them: each response with its prompt.
    pub tokens_with_prompts: u64,
    /// Judgements of responses as desirable, by weight: what [`Totals::reward_chosen`] and [`Totals::logp_chosen`] are over.
    pub desirable: f64,
    /// As undesirable: what [`Totals::reward_rejected`] and [`Totals::logp_rejected`] are over.
    pub undesirable: f64,
    /// Sum over steps of how far the policy is from the reference by their mismatched rows, 0 or more.
    pub divergence: f64,
    /// Those steps.
    pub divergences: u64,
    /// Sums of squares, for intervals.
    #[serde(skip_serializing_if = "Squares::is_none")]
    pub squares: Squares,
    /// Ids of pairs whose loss is not finite.
    pub non_finite: Vec<u64>,
    /// Ids of responses whose log-prob is not finite.
    pub non_finite_responses: Vec<u64>,
    /// Pairs on which policy and reference do not agree to the bit.
    pub off_reference: u64,
    /// [`Totals::loss`], [`Totals::token_loss`] and [`Totals::response_loss`] as they would be if they all agreed; `None` where nobody asked, which is everywhere but at the first step of a run
    /// that proves it.
    pub at_reference: Option<[f64; 3]>,
}

impl Totals {
    /// Sums of nothing yet, which will also say what the losses would be at the reference.
    pub fn proving() -> Self {
        Self { at_reference: Some([0.0; 3]), ..Self::default() }
    }

    /// Adds losses as they would be at the reference, where that is asked for.
    pub fn add_at_reference(&mut self, agreed: [f64; 3]) {
        self.at_reference.iter_mut().flatten().zip(agreed).for_each(|(to, from)| *to += from);
    }

    /// Adds a micro-batch, from the numbers that [`crate::backend::Loss`] wrote.
    pub fn add(&mut self, mb: &Outline, spec: &LossSpec, responses: &[f64], pairs: &[f64]) {
        let response = |i: u32| &responses[i as usize * RESPONSE_STATS..][..RESPONSE_STATS];
        let alone = spec.is_sft() || spec.is_listwise() || spec.is_judged();
        let scored = |i: u32| mb.responses()[i as usize].predictions.len() as u64;
        for (i, p) in mb.pairs().iter().enumerate() {
            let &[loss, chosen, rejected, token_loss, ..] = &pairs[i * PAIR_STATS..][..PAIR_STATS] else {
                unreachable!("PAIR_STATS is more than 3")
            };
            if !(loss.is_finite() && token_loss.is_finite()) {
                self.non_finite.push(p.id);
            }
            // Written so that NaN counts.
            self.off_reference += u64::from(!(chosen == 0.0 && rejected == 0.0));
            self.loss += f64::from(p.weight) * loss;
            self.weight += f64::from(p.weight);
            self.token_loss += f64::from(p.weight) * token_loss;
            self.token_weight += f64::from(p.weight) * scored(p.chosen) as f64;
            self.reward_chosen += chosen;
            self.reward_rejected += rejected;
            self.correct += if chosen > rejected {
                1.0
            } else if chosen == rejected {
                0.5
            } else {
                0.0
            };
            self.logp_chosen += response(p.chosen)[0];
            self.logp_rejected += response(p.rejected)[0];
            self.hits += response(p.chosen)[2];
            self.chosen_tokens += scored(p.chosen);
            self.squares.add_loss(f64::from(p.weight) * loss, f64::from(p.weight));
            self.squares.add_pair([chosen, rejected], [response(p.chosen)[0], response(p.rejected)[0]]);
        }
        self.pairs += mb.pairs().len() as u64;
        for i in 0..mb.responses().len() as u32 {
            if !response(i)[0].is_finite() {
                self.non_finite_responses.push(mb.responses()[i as usize].id);
            }
            if spec.is_judged() && !self.judged(&mb.responses()[i as usize], response(i)[0], spec) {
                continue;
            }
            self.entropy += response(i)[1];
            self.scored_tokens += scored(i);
            if alone {
                self.response_loss += response(i)[3];
            }
            if spec.is_sft() {
                self.squares.add_loss(response(i)[3], scored(i) as f64);
            } else if spec.is_judged() {
                self.squares.add_loss(response(i)[3], mb.responses()[i as usize].role.judged());
            }
            if mb.pairs().is_empty() {
                self.hits += response(i)[2];
                self.chosen_tokens += scored(i);
            }
        }
        self.responses += mb.responses().iter().filter(|r| !r.role.is_mismatched()).count() as u64;
        self.response_weight += match alone {
            true if spec.is_sft() => mb.num_predictions() as f64,
            true if spec.is_judged() => mb.responses().iter().map(|r| r.role.judged()).sum(),
            true => mb.groups().len() as f64,
            false => 0.0,
        };
        if self.at_reference.is_some() {
            self.add_at_reference(at_reference(mb, spec, responses, pairs));
        }
        self.count_tokens(mb);
    }

    /// A response's part in what is said of judgements; whether it is one to its own prompt.
    fn judged(&mut self, slot: &ResponseSlot, logp: f64, spec: &LossSpec) -> bool {
        let ratio = logp - slot.ref_logp;
        // Written so that NaN counts.
        self.off_reference += u64::from(!(ratio == 0.0));
        let Role::Own { desirable, undesirable } = slot.role else { return false };
        let [desirable, undesirable] = [desirable, undesirable].map(f64::from);
        let reward = spec.reward().0 * ratio;
        self.desirable += desirable;
        self.undesirable += undesirable;
        // What is judged one way says nothing of the other, not even where it is no number.
        if desirable > 0.0 {
            self.reward_chosen += desirable * reward;
            self.logp_chosen += desirable * logp;
        }
        if undesirable > 0.0 {
            self.reward_rejected += undesirable * reward;
            self.logp_rejected += undesirable * logp;
        }
        true
    }

    /// The rows of other prompts' responses are not of the data: they are not counted as they would be by TRL.
    fn count_tokens(&mut self, mb: &Outline) {
        self.tokens += mb.used() as u64;
        for g in mb.groups() {
            let prompt = g.prompt.len() as u64;
            let of = g.responses.start as usize..g.responses.end as usize;
            let own = mb.responses()[of].iter().filter(|r| !r.role.is_mismatched());
            // A response has a prediction a token, but for the first after an empty prompt.
            let unpredicted = u64::from(prompt == 0);
            self.tokens_with_prompts += own.map(|r| prompt + r.predictions.len() as u64 + unpredicted).sum::<u64>();
        }
    }

    /// Adds the sums of other micro-batches.
    pub fn merge(&mut self, o: Totals) {
        self.pairs += o.pairs;
        self.weight += o.weight;
        self.loss += o.loss;
        self.token_loss += o.token_loss;
        self.token_weight += o.token_weight;
        self.response_loss += o.response_loss;
        self.response_weight += o.response_weight;
        self.reward_chosen += o.reward_chosen;
        self.reward_rejected += o.reward_rejected;
        self.correct += o.correct;
        self.logp_chosen += o.logp_chosen;
        self.logp_rejected += o.logp_rejected;
        self.responses += o.responses;
        self.scored_tokens += o.scored_tokens;
        self.entropy += o.entropy;
        self.chosen_tokens += o.chosen_tokens;
        self.hits += o.hits;
        self.tokens += o.tokens;
        self.tokens_with_prompts += o.tokens_with_prompts;
        self.desirable += o.desirable;
        self.undesirable += o.undesirable;
        self.divergence += o.divergence;
        self.divergences += o.divergences;
        self.squares.merge(o.squares);
        self.non_finite.extend(o.non_finite);
        self.non_finite_responses.extend(o.non_finite_responses);
        self.off_reference += o.off_reference;
        match (&mut self.at_reference, o.at_reference) {
            (Some(_), Some(agreed)) => self.add_at_reference(agreed),
            (None, agreed) => self.at_reference = agreed,
            (Some(_), None) => {}
        }
    }

    /// Whether every sum is a number.
    pub fn is_finite(&self) -> bool {
        let rewards = [self.reward_chosen, self.reward_rejected, self.logp_chosen, self.logp_rejected];
        let losses = [self.loss, self.token_loss, self.response_loss];
        let others = losses.into_iter().chain([self.weight, self.correct, self.entropy, self.hits]);
        let squares = self.squares.loss.into_iter().chain(self.squares.pairs);
        rewards.into_iter().chain(others).chain(squares).all(|x| x.is_finite())
    }

    /// The loss: each of a sum's as the mean that it is.
    pub fn mean_loss(&self) -> f64 {
        self.mean([self.loss, self.token_loss, self.response_loss])
    }

    /// [`Totals::mean_loss`] as it would be where policy and reference agree on everything; NaN where nobody asked.
    pub fn mean_at_reference(&self) -> f64 {
        self.at_reference.map_or(f64::NAN, |sums| self.mean(sums))
    }

    fn mean(&self, sums: [f64; 3]) -> f64 {
        let over = [self.weight, self.token_weight, self.response_weight];
        // What there is nothing of adds nothing; where there is nothing at all, there is no mean.
        let means = sums.iter().zip(over).filter(|(_, over)| *over > 0.0).map(|(sum, over)| sum / over);
        means.reduce(|a, b| a + b).unwrap_or(f64::NAN)
    }

    /// The 95 % interval of the loss, where it is a mean of one kind.
    fn loss_interval(&self) -> Option<[f64; 2]> {
        match self {
            t if t.token_loss == 0.0 && t.response_loss == 0.0 => t.squares.loss_interval([t.loss, t.weight], t.pairs),
            t if t.pairs == 0 => t.squares.loss_interval([t.response_loss, t.response_weight], t.responses),
            _ => None,
        }
    }

    /// What an evaluation reports: [`Totals::to_json`], and beside each mean that has one its 95 % interval, under `_ci95`; the mean
    /// over mismatched rows as `kl_mismatched`, as `kl` is the divergence of sampled responses.
    pub fn evaluated(&self, prefix: &str) -> Map<String, Value> {
        let mut row = self.to_json(prefix);
        if let Some(kl) = row.shift_remove(&format!("{prefix}kl")) {
            row.insert(format!("{prefix}kl_mismatched"), kl);
        }
        let mut put = |key: &str, interval: Option<[f64; 2]>| {
            interval.map(|interval| row.insert(format!("{prefix}{key}_ci95"), json!(interval)))
        };
        put("loss", self.loss_interval());
        if self.pairs > 0 {
            put(
                "rewards/accuracies",
                Some(wilson_95(self.accuracy(), self.pairs)).filter(|_| self.accuracy().is_finite()),
            );
            let sums = [self.reward_chosen, self.reward_rejected, self.reward_chosen - self.reward_rejected];
            let sums = sums.into_iter().chain([self.logp_chosen, self.logp_rejected]);
            for (i, (key, sum)) in OF_PAIRS.iter().zip(sums).enumerate() {
                put(key, self.squares.pair_interval(i, sum / self.pairs as f64, self.pairs));
            }
        }
        row
    }

    /// Share of pairs ordered rightly, ties one half.
    pub fn accuracy(&self) -> f64 {
        self.correct / self.pairs as f64
    }

    /// How far the policy is from the reference, by mismatched rows: a mean over steps. `None` but for judgements.
    pub fn kl(&self) -> Option<f64> {
        (self.divergences > 0).then(|| self.divergence / self.divergences as f64)
    }

    /// Mean rewards of what was judged desirable and undesirable, where something was.
    pub fn judged_rewards(&self) -> [Option<f64>; 2] {
        let mean = |sum: f64, over: f64| (over > 0.0).then(|| sum / over);
        [mean(self.reward_chosen, self.desirable), mean(self.reward_rejected, self.undesirable)]
    }

    fn put_judged(&self, put: &mut dyn FnMut(&str, f64)) {
        let Some(kl) = self.kl() else { return };
        let [chosen, rejected] = self.judged_rewards();
        if let Some(reward) = chosen {
            put("rewards/chosen", reward);
            put("logps/chosen", self.logp_chosen / self.desirable);
        }
        if let Some(reward) = rejected {
            put("rewards/rejected", reward);
            put("logps/rejected", self.logp_rejected / self.undesirable);
        }
        if let (Some(chosen), Some(rejected)) = (chosen, rejected) {
            put("rewards/margins", chosen - rejected);
        }
        put("kl", kl);
    }

    /// TRL's metrics, each key behind `prefix` (`eval_` or nothing).
    pub fn to_json(&self, prefix: &str) -> Map<String, Value> {
        let mut row = Map::new();
        let mut put = |key: &str, value: f64| drop(row.insert(format!("{prefix}{key}"), json!(value)));
        put("loss", self.mean_loss());
        put("entropy", self.entropy / self.scored_tokens as f64);
        put("mean_token_accuracy", self.hits / self.chosen_tokens as f64);
        if self.pairs > 0 {
            let n = self.pairs as f64;
            put("rewards/chosen", self.reward_chosen / n);
            put("rewards/rejected", self.reward_rejected / n);
            put("rewards/accuracies", self.accuracy());
            put("rewards/margins", (self.reward_chosen - self.reward_rejected) / n);
            put("logps/chosen", self.logp_chosen / n);
            put("logps/rejected", self.logp_rejected / n);
        }
        self.put_judged(&mut put);
        row
    }
}

/// Wilson's 95 % interval for a share `p` of `n` (Wilson 1927).
pub fn wilson_95(p: f64, n: u64) -> [f64; 2] {
    let (n, z) = (n as f64, Z);
    let centre = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 / (1.0 + z * z / n);
    [(scale * (centre - half)).max(0.0), (scale * (centre + half)).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::LossType;

    /// Rewards of (chosen, rejected) and a loss, in turn: what counts as right, as off the reference and as not finite.
    #[test]
    fn pairs_that_are_not_finite_are_counted() {
        let mut b = crate::batch::Builder::default();
        b.group(0, [3]).unwrap();
        (0..2).for_each(|id| b.response(id, [4, 5]).unwrap());
        b.pair(0, 1, 1.0, 7).unwrap();
        let mb = b.finish(8).unwrap();
        for (loss, chosen, rejected, want) in [
            (0.7, 0.0, 0.0, (0.5, 0, false)),
            (0.6, 0.1, 0.0, (1.0, 1, false)),
            (0.8, 0.0, 0.1, (0.0, 1, false)),
            (f64::NAN, f64::NAN, 0.0, (0.0, 1, true)),
            (f64::NAN, 0.0, f64::NAN, (0.0, 1, true)),
            (f64::INFINITY, f64::NEG_INFINITY, 0.0, (0.0, 1, true)),
        ] {
            let mut t = Totals::default();
            let pair = [loss, chosen, rejected, 0.0, 0.0, 0.0, 0.0, 0.0];
            t.add(mb.outline(), &LossSpec::of(LossType::Sigmoid), &[0.0; 2 * RESPONSE_STATS], &pair);
            assert_eq!((t.correct, t.off_reference, !t.non_finite.is_empty()), want, "{loss} {chosen} {rejected}");
        }
    }

    #[test]
    fn wilson_known_values() {
        // 8 of 10: [0.4901625, 0.9433178] (statsmodels proportion_confint, method wilson).
        let [lo, hi] = wilson_95(0.8, 10);
        assert!((lo - 0.4901624715).abs() <= 1e-8 && (hi - 0.9433178485).abs() <= 1e-8, "{lo} {hi}");
    }
}
