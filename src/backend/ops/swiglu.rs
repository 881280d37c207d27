//! SwiGLU (Shazeer 2020), the gate of the MLP.

use super::device::{Act, ActMut, Device};
use crate::error::Result;

/// `act = silu(gate) * up`.
pub struct SwigluFwd<'a, B: Device> {
    /// rows x ffn.
    pub act: ActMut<'a, B>,
    /// rows x 2 ffn: `ffn` gates, then `ffn` ups.
    pub gate_up: Act<'a, B>,
    /// Width of the MLP.
    pub ffn: usize,
}

/// Replaces `gate_up` by its gradient, given `dact`. With `again`, `dact` becomes `act`, to the bits of [`SwigluFwd`]: the
/// next product reads it, and nobody reads `dact` any more.
pub struct SwigluBwd<'a, B: Device> {
    /// rows x 2 ffn.
    pub gate_up: ActMut<'a, B>,
    /// rows x ffn.
    pub dact: ActMut<'a, B>,
    /// Width of the MLP.
    pub ffn: usize,
    /// Whether `dact` is overwritten with `act`.
    pub again: bool,
}

/// Ops of the MLP's gate. Errors: [`crate::Error::Shape`].
pub trait SwigluOps: Device {
    /// See [`SwigluFwd`].
    fn swiglu_fwd(&self, op: SwigluFwd<'_, Self>) -> Result<()>;
    /// See [`SwigluBwd`].
    fn swiglu_bwd(&self, op: SwigluBwd<'_, Self>) -> Result<()>;
}
