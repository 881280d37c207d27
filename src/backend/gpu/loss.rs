//! Per-response sums, losses and coefficients. Kernel: `kernels/loss.cu`; reference: `backend/cpu/loss.rs`.

use super::batch::GpuBatch;
use super::driver::{Arg, Driver, Dtype, Grid, View, ViewMut};
use super::{Gpu, GpuFloat, check};
use crate::backend::{PAIR_STATS, RESPONSE_STATS};
use crate::batch::Chunk;
use crate::error::Result;
use crate::loss::{LossSpec, LossType};

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// See [`crate::backend::Backend::loss`]; `out`: coef, responses, pairs; `stats`: logp, entropy, hit.
    pub fn loss(
        &self,
        out: (ViewMut<f32>, ViewMut<f64>, ViewMut<f64>),
        stats: [View<f32>; 3],
        batch: &GpuBatch<D>,
        chunk: &Chunk,
        spec: &LossSpec,
        scale: f64,
    ) -> Result<()> {
        const OP: &str = "loss";
        let (mut coef, mut responses, mut pairs) = out;
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
        self.launch_as(Dtype::F32, OP, Grid::new([groups.len(), 1], 128), &args)
    }
}
