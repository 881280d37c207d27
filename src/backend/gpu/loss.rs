//! Per-response sums, losses and coefficients, a launch a loss. Kernel: `kernels/loss.cu`; reference: `backend/cpu/loss.rs`.

use super::check;
use super::context::{Gpu, GpuFloat};
use super::driver::{Arg, Driver, Dtype, Grid};
use crate::backend::ops::loss::{Loss, LossOps, PAIR_STATS, RESPONSE_STATS};
use crate::error::Result;
use crate::loss::{Divergence, LossSpec, MOST_PARAMS, Scales, Scope, Term};

/// Kinds beside the table's.
const GIVEN: i32 = -1;
const NOTHING: i32 = -2;

/// The kernel's flags.
const FIRST: i32 = 1;
const WEIGHTED: i32 = 2;
const SHARED_TOKENS: i32 = 4;
const ALONE: i32 = 8;
const MEAN_REWARD: i32 = 16;

/// What one launch computes.
struct Launch {
    kind: i32,
    params: [f64; MOST_PARAMS],
    weight: f64,
    scale: f64,
    divergence: Divergence,
}

impl Launch {
    fn without_loss(kind: i32) -> Self {
        Self { kind, params: [0.0; MOST_PARAMS], weight: 0.0, scale: 1.0, divergence: Divergence::ReverseKl }
    }

    fn of(term: &Term, spec: &LossSpec, scales: &Scales) -> Self {
        let divergence = if term.def().reference { spec.divergence } else { Divergence::ReverseKl };
        Self {
            kind: term.loss_type as i32,
            params: term.args(),
            weight: term.weight,
            scale: term.scale(scales),
            divergence,
        }
    }

    /// All that a chunk needs: at least one, as the first also sums.
    fn all(spec: &LossSpec, scales: &Scales, given: bool) -> Vec<Self> {
        let fused = spec.terms().iter().filter(|t| t.def().rule.scope() == Scope::Group);
        let mut all: Vec<Self> = fused.map(|t| Self::of(t, spec, scales)).collect();
        all.extend(given.then(|| Self::without_loss(GIVEN)));
        if all.is_empty() {
            all.push(Self::without_loss(NOTHING));
        }
        all
    }
}

fn flags(spec: &LossSpec) -> i32 {
    let flag = |on: bool, flag: i32| if on { flag } else { 0 };
    flag(spec.use_weighting, WEIGHTED)
        | flag(spec.ld_alpha.is_some(), SHARED_TOKENS)
        | flag(spec.is_sft(), ALONE)
        | flag(spec.reward().1, MEAN_REWARD)
}

impl<D: Driver, A: GpuFloat> LossOps for Gpu<D, A> {
    fn loss(&self, op: Loss<'_, Self>) -> Result<()> {
        const OP: &str = "loss";
        let Loss {
            mut coef,
            mut responses,
            mut pairs,
            logp,
            entropy,
            hit,
            log_sum_p2,
            batch,
            chunk,
            spec,
            scales,
            given,
        } = op;
        let stats = [logp, entropy, hit, log_sum_p2];
        batch.check_chunk(OP, chunk)?;
        let n = chunk.predictions.len();
        check::len(OP, "coef", coef.len(), &[("predictions", n)])?;
        for (stat, name) in stats.iter().zip(["logp", "entropy", "hit", "log_sum_p2"]) {
            check::len(OP, name, stat.len(), &[("predictions", n)])?;
        }
        check::len(
            OP,
            "responses",
            responses.len(),
            &[("responses", chunk.responses.len()), ("stats", RESPONSE_STATS)],
        )?;
        check::len(OP, "pairs", pairs.len(), &[("pairs", chunk.pairs.len()), ("stats", PAIR_STATS)])?;
        let groups = batch.groups_of(OP, chunk)?;
        let mut flags = flags(spec) | FIRST;
        for launch in Launch::all(spec, &scales, given) {
            let [p0, p1, p2, p3] = launch.params.map(Arg::F64);
            let args = [
                coef.arg(),
                responses.arg(),
                pairs.arg(),
                stats[0].arg(),
                stats[1].arg(),
                stats[2].arg(),
                stats[3].arg(),
                batch.groups(groups.clone()).arg(),
                batch.spans().arg(),
                batch.pairs().arg(),
                batch.of_responses().arg(),
                batch.of_pairs().arg(),
                Arg::int(OP, "first response", chunk.responses.start)?,
                Arg::int(OP, "first prediction", chunk.predictions.start)?,
                Arg::int(OP, "first pair", chunk.pairs.start)?,
                Arg::I32(launch.kind),
                Arg::I32(flags),
                p0,
                p1,
                p2,
                p3,
                Arg::F64(launch.weight),
                Arg::F64(launch.scale),
                Arg::I32(launch.divergence as i32),
                Arg::F64(spec.f_alpha),
                Arg::F64(spec.ld_alpha.unwrap_or(1.0)),
                Arg::F64(spec.reward().0),
            ];
            // SAFETY: the statistics and outputs are of the chunk's sizes; the chunk is made of whole groups of the batch,
            // whose tables were checked when it was loaded.
            unsafe { self.launch_as(Dtype::F32, OP, Grid::new([groups.len(), 1], 128), &args)? };
            flags &= !FIRST;
        }
        Ok(())
    }
}
