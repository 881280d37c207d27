//! Sums over responses, the losses of every pair, and the coefficients.

use super::batch::CpuBatch;
use super::check;
use super::device::Cpu;
use super::real::Real;
use super::scalar::Scalar;
use crate::backend::ops::loss::{Loss, LossOps, PAIR_STATS, RESPONSE_STATS, pair, pair_weight};
use crate::batch::{Chunk, PairSlot};
use crate::error::{Error, Result};
use crate::loss::{LossSpec, Pair, Params, Rule, Scope, Term};

impl<S: Real> LossOps for Cpu<S> {
    fn loss(&self, op: Loss<'_, Self>) -> Result<()> {
        const OP: &str = "loss";
        let Loss { coef, responses, pairs, logp, entropy, hit, log_sum_p2, batch, chunk, spec, scales, given } = op;
        batch.check_chunk(OP, chunk)?;
        let n = chunk.predictions.len();
        check::len(OP, "coef", coef.len(), &[("predictions", n)])?;
        for (stat, name) in [logp, entropy, hit, log_sum_p2].iter().zip(["logp", "entropy", "hit", "log_sum_p2"]) {
            check::len(OP, name, stat.len(), &[("predictions", n)])?;
        }
        check::len(
            OP,
            "responses",
            responses.len(),
            &[("responses", chunk.responses.len()), ("stats", RESPONSE_STATS)],
        )?;
        check::len(OP, "pairs", pairs.len(), &[("pairs", chunk.pairs.len()), ("stats", PAIR_STATS)])?;
        let part = Part { batch, chunk, spec };
        part.check_pairs()?;
        part.response_stats(responses, [logp, entropy, hit], spec.use_weighting.then_some(log_sum_p2));
        part.pair_stats(pairs, responses, logp);
        let of_responses = chunk.responses.len();
        // One number a response, unless tokens of one may count differently.
        let tokens = if spec.ld_alpha.is_some() { n } else { 0 };
        self.gemm.scratch.with(2 * of_responses + tokens, |scratch: &mut [f64]| {
            let (d, sums) = scratch.split_at_mut(of_responses);
            sums.fill(0.0);
            for term in spec.terms().iter().filter(|t| t.def().rule.scope() == Scope::Group) {
                d.fill(0.0);
                part.term(term, responses, pairs, d);
                part.spread(term.scale(&scales), d, pairs, !matches!(term.def().rule, Rule::Tokens), sums);
            }
            if given {
                let slots = &batch.micro.responses()[chunk.responses.clone()];
                d.iter_mut().zip(slots).for_each(|(d, slot)| *d = slot.given);
                for (pair, out) in part.pairs().iter().zip(pairs.chunks_exact_mut(PAIR_STATS)) {
                    out[6..8].copy_from_slice(&pair.given);
                }
                part.spread(1.0, d, pairs, true, sums);
            }
            let (sums, tokens) = sums.split_at(of_responses);
            for (r, sum) in sums.iter().enumerate() {
                coef[part.predictions(r)].fill(S::from_f64(*sum));
                let of_tokens = tokens.get(part.predictions(r)).unwrap_or_default();
                coef[part.predictions(r)].iter_mut().zip(of_tokens).for_each(|(c, d)| *c = S::from_f64(sum + d));
            }
        });
        Ok(())
    }
}

/// A chunk under a loss.
struct Part<'a> {
    batch: &'a CpuBatch,
    chunk: &'a Chunk,
    spec: &'a LossSpec,
}

impl Part<'_> {
    fn pairs(&self) -> &[PairSlot] {
        &self.batch.micro.pairs()[self.chunk.pairs.clone()]
    }

    /// Places of the pair's responses in the chunk.
    fn ends(&self, pair: &PairSlot) -> [usize; 2] {
        [pair.chosen, pair.rejected].map(|r| r as usize - self.chunk.responses.start)
    }

    fn check_pairs(&self) -> Result<()> {
        let inside = |r: u32| self.chunk.responses.contains(&(r as usize));
        match self.pairs().iter().find(|p| !(inside(p.chosen) && inside(p.rejected))) {
            Some(p) => Err(Error::Training(format!("loss: pair {} reaches outside its chunk of responses", p.id))),
            None => Ok(()),
        }
    }

    /// Predictions of the chunk's response `r`, counted in the chunk.
    fn predictions(&self, r: usize) -> std::ops::Range<usize> {
        let slot = &self.batch.micro.responses()[self.chunk.responses.start + r];
        let start = self.chunk.predictions.start;
        slot.predictions.start as usize - start..slot.predictions.end as usize - start
    }

    /// Sums of logp, entropy and hits over each response's predictions, and with `log_sum_p2` what the pair's weight is made
    /// of; the other numbers 0.
    fn response_stats<S: Scalar>(&self, out: &mut [f64], stats: [&[S]; 3], log_sum_p2: Option<&[S]>) {
        for (r, out) in out.chunks_exact_mut(RESPONSE_STATS).enumerate() {
            let range = self.predictions(r);
            out.fill(0.0);
            for (out, stat) in out.iter_mut().zip(stats) {
                *out = stat[range.clone()].iter().map(|x| x.to_f64()).sum();
            }
            if let Some(p2) = log_sum_p2 {
                let both = stats[0][range.clone()].iter().zip(&p2[range]);
                out[4] = both.map(|(logp, p2)| logp.to_f64() - p2.to_f64()).sum();
            }
        }
    }

    /// Rewards, and for LD-DPO sums over the tokens that both responses have; the other numbers 0.
    fn pair_stats<S: Scalar>(&self, pairs: &mut [f64], responses: &[f64], logp: &[S]) {
        let (beta, mean) = self.spec.reward();
        for (slot, out) in self.pairs().iter().zip(pairs.chunks_exact_mut(PAIR_STATS)) {
            out.fill(0.0);
            if self.spec.ld_alpha.is_some() {
                let shared = self.batch.micro.shared_len(slot);
                for (r, head) in self.ends(slot).into_iter().zip(&mut out[4..6]) {
                    *head = logp[self.predictions(r)][..shared].iter().map(|x| x.to_f64()).sum();
                }
            }
            let p = self.pair(slot, out, responses, true);
            let by = |len: f64| if mean { len } else { 1.0 };
            out[1] = beta * p.ratio_chosen() / by(p.chosen_len);
            out[2] = beta * p.ratio_rejected() / by(p.rejected_len);
        }
    }

    fn pair(&self, of: &PairSlot, stats: &[f64], responses: &[f64], less: bool) -> Pair {
        let sums = self.ends(of).map(|r| responses[r * RESPONSE_STATS]);
        pair(self.batch.micro.outline(), self.spec, of, [sums, [stats[4], stats[5]]], less)
    }

    /// One loss: its values into `responses` and `pairs`, its derivatives by each pair's sums into the last two numbers of
    /// `pairs`, those by single responses into `d`.
    fn term(&self, term: &Term, responses: &mut [f64], pairs: &mut [f64], d: &mut [f64]) {
        if self.spec.is_sft() {
            responses.chunks_exact_mut(RESPONSE_STATS).for_each(|r| r[3] = -r[0]);
            d.fill(-1.0);
            return pairs.chunks_exact_mut(PAIR_STATS).for_each(|p| p[6..8].fill(0.0));
        }
        if let Rule::List(f) = term.def().rule {
            pairs.chunks_exact_mut(PAIR_STATS).for_each(|p| p[6..8].fill(0.0));
            return self.list(term, f, responses, d);
        }
        let tokens = matches!(term.def().rule, Rule::Tokens);
        for (slot, out) in self.pairs().iter().zip(pairs.chunks_exact_mut(PAIR_STATS)) {
            let p = self.pair(slot, out, responses, !tokens);
            let got = self.spec.of_pair(term, &p);
            let by = pair_weight(self.spec, self.ends(slot).map(|r| responses[r * RESPONSE_STATS + 4]), &p);
            out[if tokens { 3 } else { 0 }] += term.weight * by * got.loss;
            let weight = f64::from(slot.weight) * by;
            (out[6], out[7]) = (weight * got.d_chosen, weight * got.d_rejected);
        }
    }

    fn list(&self, term: &Term, f: fn(&Params, &[f64], &mut [f64]) -> f64, responses: &mut [f64], d: &mut [f64]) {
        let slots = &self.batch.micro.responses()[self.chunk.responses.clone()];
        let ratio = |r: usize, responses: &[f64]| responses[r * RESPONSE_STATS] - slots[r].ref_logp;
        let (mut members, mut ratios, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for r in 0..slots.len() {
            members.clear();
            members.push(r);
            let mine = self.pairs().iter().map(|p| self.ends(p)).filter(|[w, _]| *w == r);
            members.extend(mine.map(|[_, l]| l));
            if members.len() == 1 {
                continue;
            }
            ratios.clear();
            ratios.extend(members.iter().map(|m| ratio(*m, responses)));
            slopes.clear();
            slopes.resize(members.len(), 0.0);
            responses[r * RESPONSE_STATS + 3] += term.weight * f(&term.params, &ratios, &mut slopes);
            members.iter().zip(&slopes).for_each(|(m, slope)| d[*m] += slope);
        }
    }

    /// Adds a loss's derivatives, `scale` times a response's own (`d`) and times those of its pairs, to `sums`: a number a
    /// response. With `less`, where LD-DPO takes less of the tokens beyond a pair's shorter response, those of pairs go to the
    /// numbers behind them, one a prediction.
    fn spread(&self, scale: f64, d: &mut [f64], pairs: &[f64], less: bool, sums: &mut [f64]) {
        let stats = || self.pairs().iter().zip(pairs.chunks_exact(PAIR_STATS));
        let alpha = self.spec.ld_alpha.filter(|_| less);
        if alpha.is_none() {
            for (pair, out) in stats() {
                self.ends(pair).into_iter().zip(&out[6..8]).for_each(|(r, by)| d[r] += by);
            }
        }
        let (sums, tokens) = sums.split_at_mut(d.len());
        sums.iter_mut().zip(d).for_each(|(sum, d)| *sum += scale * *d);
        let Some(alpha) = alpha else { return };
        for (pair, out) in stats() {
            let shared = self.batch.micro.shared_len(pair);
            for (r, by) in self.ends(pair).into_iter().zip(&out[6..8]) {
                let (head, tail) = tokens[self.predictions(r)].split_at_mut(shared);
                head.iter_mut().for_each(|to| *to += scale * by);
                tail.iter_mut().for_each(|to| *to += scale * alpha * by);
            }
        }
    }
}
