//! Per-response sums, losses and coefficients. Kernel: `kernels/loss.cu`; reference: `backend/cpu/loss.rs`.

use super::check;
use super::context::{Gpu, GpuFloat};
use super::driver::{Arg, Driver, Dtype, Grid};
use crate::backend::ops::loss::{Loss, LossOps, PAIR_STATS, RESPONSE_STATS};
use crate::error::Result;
use crate::loss::LossType;

impl<D: Driver, A: GpuFloat> LossOps for Gpu<D, A> {
    fn loss(&self, op: Loss<'_, Self>) -> Result<()> {
        const OP: &str = "loss";
        let Loss { mut coef, mut responses, mut pairs, logp, entropy, hit, batch, chunk, spec, scale } = op;
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
        let groups = batch.groups_of(OP, chunk)?;
        let kind = match spec.loss_type {
            LossType::Sigmoid => 0,
            LossType::Hinge => 1,
            LossType::Ipo => 2,
            LossType::Sft => 3,
        };
        let args = [
            coef.arg(),
            responses.arg(),
            pairs.arg(),
            stats[0].arg(),
            stats[1].arg(),
            stats[2].arg(),
            batch.groups(groups.clone()).arg(),
            batch.spans().arg(),
            batch.pairs().arg(),
            batch.ref_logp().arg(),
            batch.weights().arg(),
            Arg::int(OP, "first response", chunk.responses.start)?,
            Arg::int(OP, "first prediction", chunk.predictions.start)?,
            Arg::int(OP, "first pair", chunk.pairs.start)?,
            Arg::I32(kind),
            Arg::F64(spec.beta),
            Arg::F64(spec.label_smoothing),
            Arg::F64(scale),
        ];
        // SAFETY: the statistics and outputs are of the chunk's sizes; the chunk is made of whole groups of the batch, whose
        // tables were checked when it was loaded.
        unsafe { self.launch_as(Dtype::F32, OP, Grid::new([groups.len(), 1], 128), &args) }
    }
}
