//! Linear layers and biases.

use super::device::{AccMut, Act, ActMut, Device, Write};
use super::element::Gradient;
use crate::error::Result;
use std::ops::Range;

/// `y {=,+=,= plus +} x w^T`, as Hugging Face's `Linear`.
pub struct LinearFwd<'a, B: Device> {
    /// rows x out.
    pub y: ActMut<'a, B>,
    /// rows x inp.
    pub x: Act<'a, B>,
    /// out x inp.
    pub w: Act<'a, B>,
    /// Outputs.
    pub out: usize,
    /// Inputs.
    pub inp: usize,
    /// What becomes of `y`; the operand of [`Write::Plus`] is rows x out.
    pub write: Write<Act<'a, B>>,
}

/// `dx {=,+=} dy w`.
pub struct LinearBwdInput<'a, B: Device> {
    /// rows x inp.
    pub dx: ActMut<'a, B>,
    /// rows x out.
    pub dy: Act<'a, B>,
    /// out x inp.
    pub w: Act<'a, B>,
    /// Outputs.
    pub out: usize,
    /// Inputs.
    pub inp: usize,
    /// What becomes of `dx`: [`Write::Set`] or [`Write::Add`].
    pub write: Write<()>,
}

/// `dw {=,+=} dy^T x`: the product, summed in accumulation precision, and the sum with `dw` are rounded once, to nearest.
pub struct LinearBwdWeight<'a, B: Device, G: Gradient = <B as Device>::Acc> {
    /// out x inp.
    pub dw: B::ViewMut<'a, G>,
    /// rows x out.
    pub dy: Act<'a, B>,
    /// rows x inp.
    pub x: Act<'a, B>,
    /// Outputs.
    pub out: usize,
    /// Inputs.
    pub inp: usize,
    /// What becomes of `dw`: [`Write::Set`] or [`Write::Add`].
    pub write: Write<()>,
}

/// `dw += dy[:, columns]^T x`: the gradient of some outputs of a linear layer, rounded as in [`LinearBwdWeight`].
pub struct LinearBwdPart<'a, B: Device, G: Gradient = <B as Device>::Acc> {
    /// columns x inp.
    pub dw: B::ViewMut<'a, G>,
    /// rows x out.
    pub dy: Act<'a, B>,
    /// rows x inp.
    pub x: Act<'a, B>,
    /// Which of the outputs.
    pub columns: Range<usize>,
    /// Outputs.
    pub out: usize,
    /// Inputs.
    pub inp: usize,
}

/// `y += bias` for every row.
pub struct BiasFwd<'a, B: Device> {
    /// rows x dim.
    pub y: ActMut<'a, B>,
    /// dim.
    pub bias: Act<'a, B>,
}

/// `dbias += sum over rows of dy`, rows in order.
pub struct BiasBwd<'a, B: Device> {
    /// dim.
    pub dbias: AccMut<'a, B>,
    /// rows x dim.
    pub dy: Act<'a, B>,
}

/// Ops of linear layers. Errors: [`crate::Error::Shape`].
pub trait LinearOps: Device {
    /// See [`LinearFwd`].
    fn linear_fwd(&self, op: LinearFwd<'_, Self>) -> Result<()>;
    /// See [`LinearBwdInput`].
    fn linear_bwd_input(&self, op: LinearBwdInput<'_, Self>) -> Result<()>;
    /// See [`LinearBwdWeight`].
    fn linear_bwd_weight<G: Gradient>(&self, op: LinearBwdWeight<'_, Self, G>) -> Result<()>;
    /// See [`LinearBwdPart`].
    fn linear_bwd_part<G: Gradient>(&self, op: LinearBwdPart<'_, Self, G>) -> Result<()>;
    /// See [`BiasFwd`].
    fn bias_fwd(&self, op: BiasFwd<'_, Self>) -> Result<()>;
    /// See [`BiasBwd`].
    fn bias_bwd(&self, op: BiasBwd<'_, Self>) -> Result<()>;
}
