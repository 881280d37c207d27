//! The fused head. Kernel: `kernels/head.cu`; reference: `backend/cpu/head.rs`.

use super::batch::GpuBatch;
use super::driver::{Arg, Driver, Grid, View, ViewMut};
use super::{Gpu, GpuFloat, check};
use crate::backend::HeadMode;
use crate::batch::Chunk;
use crate::error::Result;

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// See [`crate::backend::Backend::head_fwd`]; `stats`: logp, entropy, log_sum_p2, hit.
    #[allow(clippy::too_many_arguments)]
    pub fn head_fwd(
        &self,
        mut stats: [ViewMut<f32>; 4],
        mut logits: ViewMut<f32>,
        x: View<A>,
        w: View<A>,
        batch: &GpuBatch<D>,
        chunk: &Chunk,
        mode: HeadMode,
    ) -> Result<()> {
        const OP: &str = "head_fwd";
        batch.check_predictions(OP, chunk)?;
        let n = chunk.predictions.len();
        for (stat, name) in stats.iter().zip(["logp", "entropy", "log_sum_p2", "hit"]) {
            check::len(OP, name, stat.len(), &[("predictions", n)])?;
        }
        if n == 0 {
            return check::len(OP, "x", x.len(), &[("predictions", 0)]);
        }
        let dim = check::rows(OP, "x", x.len(), n)?;
        let vocab = check::rows(OP, "w", w.len(), dim)?;
        check::at_least(OP, "w", vocab, &[("largest target + 1", batch.targets_end)])?;
        check::at_least(OP, "logits", logits.len(), &[("predictions", n), ("vocab", vocab)])?;
        let mut logits = logits.part(0..n * vocab);
        self.logits(logits.reborrow(), x, w, dim)?;
        let targets = batch.targets(chunk.predictions.clone());
        let train = Arg::I32(i32::from(mode == HeadMode::Train));
        let [logp, entropy, p2, hit] = &mut stats;
        let args = [
            logp.arg(),
            entropy.arg(),
            p2.arg(),
            hit.arg(),
            logits.arg(),
            targets.arg(),
            Arg::int(OP, "vocab", vocab)?,
            train,
        ];
        self.launch("head", Grid::new([n, 1], 1024), &args)
    }

    /// See [`crate::backend::Backend::head_bwd`].
    #[allow(clippy::too_many_arguments)]
    pub fn head_bwd(
        &self,
        mut dx: ViewMut<A>,
        dw: Option<ViewMut<f32>>,
        mut scaled: ViewMut<A>,
        logits: View<f32>,
        x: View<A>,
        w: View<A>,
        coef: View<f32>,
    ) -> Result<()> {
        const OP: &str = "head_bwd";
        let n = coef.len();
        if n == 0 {
            check::len(OP, "dx", dx.len(), &[("predictions", 0)])?;
            return check::len(OP, "x", x.len(), &[("predictions", 0)]);
        }
        let dim = check::rows(OP, "x", x.len(), n)?;
        check::len(OP, "dx", dx.len(), &[("predictions", n), ("dim", dim)])?;
        let vocab = check::rows(OP, "w", w.len(), dim)?;
        check::at_least(OP, "logits", logits.len(), &[("predictions", n), ("vocab", vocab)])?;
        // G starts where its row of logits does: a row is `vocab` floats, so 2 vocab elements of bf16.
        let gradient = (logits.at, vocab * 4 / A::DTYPE.size());
        if let Some(dw) = dw {
            check::len(OP, "dw", dw.len(), &[("vocab", vocab), ("dim", dim)])?;
            check::at_least(OP, "scaled", scaled.len(), &[("predictions", n), ("dim", dim)])?;
            let mut scaled = scaled.part(0..n * dim);
            self.scale_rows(scaled.reborrow(), Some(x), coef)?;
            self.accumulate(dw, gradient, scaled.as_view(), vocab, dim, n)?;
        }
        self.input_gradient(dx.reborrow(), gradient, w, n, vocab)?;
        self.scale_rows(dx, None, coef)
    }
}
