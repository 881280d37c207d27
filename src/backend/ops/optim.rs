//! Gradient norm and optimiser updates.

use super::device::{Acc, AccMut, Act, ActMut, Device};
use super::element::Gradient;
use crate::error::Result;

/// How parameters are updated: everything that a kernel needs by value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Loshchilov & Hutter 2019, as `torch.optim.AdamW`: decoupled decay, bias correction by `step` (from 1).
    AdamW {
        /// Learning rate of this step.
        lr: f64,
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the corrected second moment.
        eps: f64,
        /// Decoupled weight decay.
        weight_decay: f64,
        /// Number of this step, from 1.
        step: u64,
    },
    /// `torch.optim.RMSprop` (not centred, no momentum): the optimiser of the DPO paper's code.
    RmsProp {
        /// Learning rate of this step.
        lr: f64,
        /// Smoothing constant.
        alpha: f64,
        /// Added to the root.
        eps: f64,
        /// L2 penalty added to the gradient.
        weight_decay: f64,
    },
}

/// `norm[0] = sqrt(sum g^2)`, non-finite where any element is; summed in f64 in a fixed order.
pub struct GradNorm<'a, B: Device> {
    /// 1.
    pub norm: B::ViewMut<'a, f64>,
    /// parameters.
    pub g: Acc<'a, B>,
}

/// `to += from`.
pub struct Add<'a, B: Device> {
    /// n.
    pub to: AccMut<'a, B>,
    /// n.
    pub from: Acc<'a, B>,
}

/// `sums[i] = sum g^2` over the `block` elements of `g` from `i block` on, the last block being what is left; in f64, in a fixed order
/// that the block's length alone decides.
pub struct Squares<'a, B: Device> {
    /// One a block.
    pub sums: B::ViewMut<'a, f64>,
    /// parameters.
    pub g: Acc<'a, B>,
    /// A multiple of 1,024.
    pub block: usize,
}

/// `norm[0] = sqrt(sum of sums)`, in a fixed order: with [`Squares`] what [`GradNorm`] is, by blocks.
pub struct Root<'a, B: Device> {
    /// 1.
    pub norm: B::ViewMut<'a, f64>,
    /// One a block.
    pub sums: B::View<'a, f64>,
}

/// As [`GradNorm`], of gradients in two pieces: those of matrices in bf16, and those of vectors.
pub struct GradNormNarrow<'a, B: Device> {
    /// 1.
    pub norm: B::ViewMut<'a, f64>,
    /// Of matrices.
    pub matrices: B::View<'a, half::bf16>,
    /// Of norms and biases.
    pub vectors: Acc<'a, B>,
}

/// One optimiser step on a range of the arena. The gradient is first scaled by `min(1, max_grad_norm / (norm + 1e-6))`. A
/// non-finite `norm` leaves everything as it was.
pub struct Update<'a, B: Device, G: Gradient = <B as Device>::Acc> {
    /// parameters.
    pub w: ActMut<'a, B>,
    /// parameters: `Some` exactly where [`Device::MASTER_WEIGHTS`]; `w` is then rounded from it.
    pub master: Option<AccMut<'a, B>>,
    /// First moment, parameters. RMSprop leaves it alone: it may be empty.
    pub m: AccMut<'a, B>,
    /// Second moment, parameters.
    pub v: AccMut<'a, B>,
    /// parameters.
    pub g: B::View<'a, G>,
    /// Of the whole gradient; 1.
    pub norm: B::View<'a, f64>,
    /// What the norm is clipped to; 0: not at all.
    pub max_grad_norm: f64,
    /// The optimiser, with the numbers of this step.
    pub rule: Rule,
}

/// A reference on its way to the policy, over a range of the arena: `reference = (1 - alpha) reference + alpha policy`, in the
/// precision of master weights where there are any; the weights are then rounded from them.
pub struct Mix<'a, B: Device> {
    /// The reference's weights; parameters.
    pub w: ActMut<'a, B>,
    /// The reference's master weights, parameters: `Some` exactly where [`Device::MASTER_WEIGHTS`].
    pub master: Option<AccMut<'a, B>>,
    /// The policy's weights, parameters; not read where there are masters.
    pub from: Act<'a, B>,
    /// The policy's master weights, parameters: `Some` exactly where [`Device::MASTER_WEIGHTS`].
    pub from_master: Option<Acc<'a, B>>,
    /// The policy's share, in (0, 1].
    pub alpha: f64,
}

/// Ops of the optimiser. Errors: [`crate::Error::Shape`].
pub trait OptimOps: Device {
    /// See [`GradNorm`].
    fn grad_norm(&self, op: GradNorm<'_, Self>) -> Result<()>;
    /// See [`GradNormNarrow`].
    fn grad_norm_narrow(&self, op: GradNormNarrow<'_, Self>) -> Result<()>;
    /// See [`Add`].
    fn add(&self, op: Add<'_, Self>) -> Result<()>;
    /// See [`Squares`].
    fn squares(&self, op: Squares<'_, Self>) -> Result<()>;
    /// See [`Root`].
    fn root(&self, op: Root<'_, Self>) -> Result<()>;
    /// See [`Update`].
    fn update<G: Gradient>(&self, op: Update<'_, Self, G>) -> Result<()>;
    /// See [`Mix`].
    fn mix(&self, op: Mix<'_, Self>) -> Result<()>;
}
