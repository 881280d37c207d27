//! The fused head. Products: `product.rs`; kernel: `kernels/head.cu`; reference: `backend/cpu/head.rs`.

use super::check;
use super::context::{Gpu, GpuFloat, SCRATCH};
use super::driver::{Arg, Driver, Grid, View};
use super::lock::lock;
use super::product::{Add, Operand, Product};
use crate::backend::ops::device::{Device, Write};
use crate::backend::ops::element::Gradient;
use crate::backend::ops::head::{HeadBwd, HeadFwd, HeadMode, HeadOps, Logits};
use crate::error::Result;

/// Logits of a group of the kernel: what its threads read at once.
const GROUP: usize = 4 * 4 * 1024;
/// Bytes of logits that a block keeps on the multiprocessor between its two passes, at most. The rest of that memory is the L1
/// that loads come through.
const KEPT: usize = 192 << 10;
/// Bytes of shared memory that the kernel has besides: 640.
const STATIC: usize = 1024;

impl<D: Driver, A: GpuFloat> HeadOps for Gpu<D, A> {
    fn head_fwd(&self, op: HeadFwd<'_, Self>) -> Result<()> {
        const OP: &str = "head_fwd";
        let HeadFwd { mut logp, mut entropy, mut log_sum_p2, mut hit, mut logits, x, w, batch, chunk, mode } = op;
        batch.check_predictions(OP, chunk)?;
        let n = chunk.predictions.len();
        for (name, stat) in [("logp", &logp), ("entropy", &entropy), ("log_sum_p2", &log_sum_p2), ("hit", &hit)] {
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
        let targets = batch.targets(chunk.predictions.clone());
        let train = mode == HeadMode::Train;
        let (keep, shared) = match train {
            true => kept(vocab, if self.narrow_logits { 2 } else { 4 }, self.driver.max_shared()),
            false => (0, 0),
        };
        let sizes = [Arg::int(OP, "vocab", vocab)?, Arg::I32(train.into()), Arg::int(OP, "keep", keep)?];
        let stats = [logp.arg(), entropy.arg(), log_sum_p2.arg(), hit.arg()];
        let grid = Grid { shared, ..Grid::new([n, 1], 1024) };
        if !self.narrow_logits {
            self.logits(Logits { logits: logits.reborrow(), x, w, dim })?;
            let args: Vec<Arg> = stats.into_iter().chain([logits.arg(), targets.arg()]).chain(sizes).collect();
            // SAFETY: the statistics have n numbers, `logits` is n x vocab, and every target is below vocab, as checked above.
            return unsafe { self.launch("head", grid, &args) };
        }
        check::at_most(OP, "predictions", n, SCRATCH)?;
        let mut narrow = logits.halves();
        self.project(OP, Operand::output(&mut narrow, vocab), (x, w), [n, vocab, dim])?;
        let mut scratch = lock(&self.scratch);
        let mut exact = scratch.floats.view_mut(0..n);
        let (rows, dim) = (Arg::int(OP, "predictions", n)?, Arg::int(OP, "dim", dim)?);
        let args = [exact.arg(), x.arg(), w.arg(), targets.arg(), rows, dim];
        // SAFETY: `x` is n x dim and `w` vocab x dim, and every target is below vocab, as checked above.
        unsafe { self.launch("target_logits", Grid::new([n.div_ceil(8), 1], 256), &args) }?;
        let logits = [narrow.arg(), exact.as_view().arg(), targets.arg()];
        let args: Vec<Arg> = stats.into_iter().chain(logits).chain(sizes).collect();
        // SAFETY: as above; `narrow` is n x vocab in half of the same memory.
        unsafe { self.launch("head_narrow", grid, &args) }
    }

    fn logits(&self, op: Logits<'_, Self>) -> Result<()> {
        const OP: &str = "logits";
        let Logits { mut logits, x, w, dim } = op;
        let rows = check::rows(OP, "x", x.len(), dim)?;
        let vocab = check::rows(OP, "w", w.len(), dim)?;
        check::at_least(OP, "logits", logits.len(), &[("rows", rows), ("vocab", vocab)])?;
        self.project(OP, Operand::output(&mut logits, vocab), (x, w), [rows, vocab, dim])
    }

    fn head_bwd<G: Gradient>(&self, op: HeadBwd<'_, Self, G>) -> Result<()> {
        const OP: &str = "head_bwd";
        let HeadBwd { mut dx, dw, mut scaled, logits, x, w, coef } = op;
        let n = coef.len();
        if n == 0 {
            check::len(OP, "dx", dx.len(), &[("predictions", 0)])?;
            check::len(OP, "x", x.len(), &[("predictions", 0)])?;
            return match dw {
                Some((dw, Write::Set)) => self.clear(dw),
                _ => Ok(()),
            };
        }
        let dim = check::rows(OP, "x", x.len(), n)?;
        check::len(OP, "dx", dx.len(), &[("predictions", n), ("dim", dim)])?;
        let vocab = check::rows(OP, "w", w.len(), dim)?;
        check::at_least(OP, "logits", logits.len(), &[("predictions", n), ("vocab", vocab)])?;
        // G starts where its row of logits does.
        let gradient = match self.narrow_logits {
            true => Operand::narrow(logits, vocab),
            false => Operand::in_place_of::<A>(logits, vocab),
        };
        if let Some((mut dw, write)) = dw {
            check::len(OP, "dw", dw.len(), &[("vocab", vocab), ("dim", dim)])?;
            check::at_least(OP, "scaled", scaled.len(), &[("predictions", n), ("dim", dim)])?;
            let mut scaled = scaled.part(0..n * dim);
            self.scale_rows(scaled.reborrow(), Some(x), coef)?;
            self.product(Product {
                op: OP,
                sizes: [vocab, dim, n],
                a: (gradient, true),
                b: (Operand::new(scaled.as_view(), dim), false),
                c: if write.adds() { Add::Output } else { Add::Nothing },
                d: Operand::gradient(&mut dw, dim)?,
                row_invariant: false,
            })?;
        }
        self.product(Product {
            op: OP,
            sizes: [n, dim, vocab],
            a: (gradient, false),
            b: (Operand::new(w, dim), false),
            c: Add::Nothing,
            d: Operand::output(&mut dx, dim),
            row_invariant: false,
        })?;
        self.scale_rows(dx, None, coef)
    }
}

/// The groups of a row that a block keeps, and the bytes of their logits.
fn kept(vocab: usize, logit: usize, max_shared: usize) -> (usize, usize) {
    let (bytes, room) = (GROUP * logit, max_shared.saturating_sub(STATIC).min(KEPT));
    // The kernel keeps whole packs of four.
    let groups = if vocab.is_multiple_of(4) { vocab.div_ceil(GROUP).min(room / bytes) } else { 0 };
    (groups, (groups * GROUP).min(vocab) * logit)
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// `logits = x w^T`; sizes: rows, vocab, dim.
    fn project(&self, op: &'static str, logits: Operand, (x, w): (View<A>, View<A>), sizes: [usize; 3]) -> Result<()> {
        let dim = sizes[2];
        self.product(Product {
            op,
            sizes,
            a: (Operand::new(x, dim), false),
            b: (Operand::new(w, dim), true),
            c: Add::Nothing,
            d: logits,
            row_invariant: true,
        })
    }
}
