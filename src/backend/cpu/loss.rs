//! Sums over responses, the loss of every pair, and the coefficients.

use super::batch::CpuBatch;
use super::check;
use super::device::Cpu;
use super::real::Real;
use super::scalar::Scalar;
use crate::backend::ops::loss::{Loss, LossOps, PAIR_STATS, RESPONSE_STATS};
use crate::batch::Chunk;
use crate::error::{Error, Result};
use crate::loss::Pair;

impl<S: Real> LossOps for Cpu<S> {
    fn loss(&self, op: Loss<'_, Self>) -> Result<()> {
        const OP: &str = "loss";
        let Loss { coef, responses, pairs, logp, entropy, hit, batch, chunk, spec, scale } = op;
        let stats = [logp, entropy, hit];
        batch.check_chunk(OP, chunk)?;
        let n = chunk.predictions.len();
        check::len(OP, "coef", coef.len(), &[("predictions", n)])?;
        for (stat, name) in stats.iter().zip(["logp", "entropy", "hit"]) {
            check::len(OP, name, stat.len(), &[("predictions", n)])?;
        }
        check::len(
            OP,
            "responses",
            responses.len(),
            &[("responses", chunk.responses.len()), ("stats", RESPONSE_STATS)],
        )?;
        check::len(OP, "pairs", pairs.len(), &[("pairs", chunk.pairs.len()), ("stats", PAIR_STATS)])?;
        response_stats(responses, stats, batch, chunk);
        let Some(pair_loss) = spec.loss_type.def().pair else {
            for r in responses.chunks_exact_mut(RESPONSE_STATS) {
                r[3] = -r[0];
            }
            pairs.fill(0.0);
            coef.fill(S::from_f64(-scale));
            return Ok(());
        };
        self.gemm.scratch.with(chunk.responses.len(), |d: &mut [f64]| {
            d.fill(0.0);
            let first = chunk.responses.start;
            let slots = batch.micro.responses();
            for (pair, out) in batch.micro.pairs()[chunk.pairs.clone()].iter().zip(pairs.chunks_exact_mut(PAIR_STATS)) {
                let (w, l) = (pair.chosen as usize, pair.rejected as usize);
                if !(chunk.responses.contains(&w) && chunk.responses.contains(&l)) {
                    return Err(Error::Training(format!(
                        "loss: pair {} reaches outside its chunk of responses",
                        pair.id
                    )));
                }
                let logp = |r: usize| responses[(r - first) * RESPONSE_STATS];
                let got = pair_loss(
                    spec,
                    &Pair {
                        chosen: logp(w),
                        rejected: logp(l),
                        ref_chosen: slots[w].ref_logp,
                        ref_rejected: slots[l].ref_logp,
                        chosen_len: slots[w].predictions.len() as f64,
                        rejected_len: slots[l].predictions.len() as f64,
                    },
                );
                out[0] = got.loss;
                out[1] = spec.beta * (logp(w) - slots[w].ref_logp);
                out[2] = spec.beta * (logp(l) - slots[l].ref_logp);
                let weight = f64::from(pair.weight);
                d[w - first] += weight * got.d_chosen;
                d[l - first] += weight * got.d_rejected;
            }
            for (c, p) in coef.iter_mut().zip(&batch.micro.predictions()[chunk.predictions.clone()]) {
                *c = S::from_f64(scale * d[p.response as usize - first]);
            }
            Ok(())
        })
    }
}

/// Sums of logp, entropy and hits over each response's predictions; the fourth number, a response's own loss, 0.
fn response_stats<S: Scalar>(out: &mut [f64], stats: [&[S]; 3], batch: &CpuBatch, chunk: &Chunk) {
    for (r, out) in batch.micro.responses()[chunk.responses.clone()].iter().zip(out.chunks_exact_mut(RESPONSE_STATS)) {
        let start = chunk.predictions.start;
        let range = r.predictions.start as usize - start..r.predictions.end as usize - start;
        for (out, stat) in out.iter_mut().zip(stats) {
            *out = stat[range.clone()].iter().map(|x| x.to_f64()).sum();
        }
        out[3] = 0.0;
    }
}
