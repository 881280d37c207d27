//! AdamW on bf16 weights that are their own master, with small moments. Weights are rounded stochastically ([`Rounding`]): to
//! nearest, an update of less than half of the spacing of bf16, 2^-9 of a weight, would always be lost.

use super::device::{ActMut, Device};
use super::element::Gradient;
use super::optim::Rule;
use crate::backend::rounding::Rounding;
use crate::error::Result;
use half::bf16;

/// One step on a range of the arena, moments in bf16. The gradient is clipped, and a norm that is not finite leaves everything as
/// it was, as in [`super::Update`].
pub struct UpdateBf16<'a, B: Device, G: Gradient = <B as Device>::Acc> {
    /// parameters: afterwards each is a number that bf16 has, in whatever type it is stored.
    pub w: ActMut<'a, B>,
    /// First moment, parameters; rounded stochastically.
    pub m: B::ViewMut<'a, bf16>,
    /// Second moment, parameters; likewise. To nearest it would stand still where it changes by less than 2^-9 of itself in a step:
    /// with beta2 = 0.999 wherever a gradient's square is less than three times the mean of those before.
    pub v: B::ViewMut<'a, bf16>,
    /// parameters.
    pub g: B::View<'a, G>,
    /// Of the whole gradient; 1.
    pub norm: B::View<'a, f64>,
    /// What the norm is clipped to; 0: not at all.
    pub max_grad_norm: f64,
    /// [`Rule::AdamW`] with the numbers of this step.
    pub rule: Rule,
    /// Of this step and range.
    pub rounding: Rounding,
}

/// As [`UpdateBf16`] on one tensor, moments in bitsandbytes' dynamic code of 8 bits ([`crate::backend::code8`]), to nearest.
pub struct Update8bit<'a, B: Device, G: Gradient = <B as Device>::Acc> {
    /// parameters, as in [`UpdateBf16`].
    pub w: ActMut<'a, B>,
    /// First moment, parameters; with a sign.
    pub m: B::ViewMut<'a, u8>,
    /// Its largest size in each block of [`crate::backend::code8::BLOCK`] parameters; blocks.
    pub m_scale: B::ViewMut<'a, f32>,
    /// Second moment, parameters.
    pub v: B::ViewMut<'a, u8>,
    /// Its largest number in each block; blocks.
    pub v_scale: B::ViewMut<'a, f32>,
    /// parameters.
    pub g: B::View<'a, G>,
    /// Of the whole gradient; 1.
    pub norm: B::View<'a, f64>,
    /// What the norm is clipped to; 0: not at all.
    pub max_grad_norm: f64,
    /// [`Rule::AdamW`] with the numbers of this step.
    pub rule: Rule,
    /// Of this step and range.
    pub rounding: Rounding,
}

/// Updates with small states. Errors: [`crate::Error::Shape`]; [`crate::Error::Usage`] for another rule than AdamW, and on a GPU for
/// weights that are not stored in bf16.
pub trait SmallStateOps: Device {
    /// See [`UpdateBf16`].
    fn update_bf16<G: Gradient>(&self, op: UpdateBf16<'_, Self, G>) -> Result<()>;
    /// See [`Update8bit`].
    fn update_8bit<G: Gradient>(&self, op: Update8bit<'_, Self, G>) -> Result<()>;
}
