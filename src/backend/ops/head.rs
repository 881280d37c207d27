//! The head, fused with its statistics and its gradient, one chunk of predictions at a time.

use super::device::{Acc, AccMut, Act, ActMut, Device, Write};
use super::element::Gradient;
use crate::batch::Chunk;
use crate::error::Result;

/// Whether the head leaves the unscaled gradient in the logits buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadMode {
    /// Statistics only; what is left in the logits buffer is unspecified.
    Score,
    /// Statistics, and `G = onehot(target) - softmax(z)` in the logits buffer, for [`HeadBwd`].
    Train,
}

/// On the n predictions of `chunk`: `z = x w^T` into `logits`, then the statistics (views of the chunk's part) and, in
/// [`HeadMode::Train`], the unscaled gradient in place of `z`.
pub struct HeadFwd<'a, B: Device> {
    /// `log softmax(z)[target]`, nats; n.
    pub logp: AccMut<'a, B>,
    /// `-sum p log p`, nats; n.
    pub entropy: AccMut<'a, B>,
    /// `log sum p^2` (WPO's weight needs it); n.
    pub log_sum_p2: AccMut<'a, B>,
    /// 1 where the target is the argmax (the lowest index among equals), else 0; n.
    pub hit: AccMut<'a, B>,
    /// At least n x vocab.
    pub logits: AccMut<'a, B>,
    /// n x dim.
    pub x: Act<'a, B>,
    /// vocab x dim.
    pub w: Act<'a, B>,
    /// Whose predictions.
    pub batch: &'a B::Batch,
    /// Which of them.
    pub chunk: &'a Chunk,
    /// What is left in `logits`.
    pub mode: HeadMode,
}

/// `logits = x w^T` alone, for sampling.
pub struct Logits<'a, B: Device> {
    /// At least n x vocab.
    pub logits: AccMut<'a, B>,
    /// n x dim.
    pub x: Act<'a, B>,
    /// vocab x dim.
    pub w: Act<'a, B>,
    /// Hidden size.
    pub dim: usize,
}

/// `dx = c . (G w)` and `dw {=,+=} G^T (c . x)`: `c` is one number per row, so it commutes with both products and never meets
/// the vocabulary. `dw` is rounded as in [`super::LinearBwdWeight`].
pub struct HeadBwd<'a, B: Device, G: Gradient = <B as Device>::Acc> {
    /// n x dim.
    pub dx: ActMut<'a, B>,
    /// vocab x dim, and what becomes of it ([`Write::Set`] or [`Write::Add`]); `None`: the head is frozen.
    pub dw: Option<(B::ViewMut<'a, G>, Write<()>)>,
    /// Scratch, n x dim.
    pub scaled: ActMut<'a, B>,
    /// `G`, as [`HeadFwd`] left it: at least n x vocab.
    pub logits: Acc<'a, B>,
    /// n x dim.
    pub x: Act<'a, B>,
    /// vocab x dim.
    pub w: Act<'a, B>,
    /// `c`, n.
    pub coef: Acc<'a, B>,
}

/// Ops of the head. Errors: [`crate::Error::Shape`], a target beyond the vocabulary among them.
pub trait HeadOps: Device {
    /// See [`HeadFwd`].
    fn head_fwd(&self, op: HeadFwd<'_, Self>) -> Result<()>;
    /// See [`Logits`].
    fn logits(&self, op: Logits<'_, Self>) -> Result<()>;
    /// See [`HeadBwd`].
    fn head_bwd<G: Gradient>(&self, op: HeadBwd<'_, Self, G>) -> Result<()>;
}
