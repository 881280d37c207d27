//! RMSNorm (Zhang & Sennrich 2019), and Qwen3's norm of query and key heads with the rotation behind it.

use super::device::{Acc, AccMut, Act, ActMut, AttnShape, Device, Write};
use crate::error::Result;

/// `y = x * rstd * w`, `rstd = 1 / sqrt(mean(x^2) + eps)`. Source: Zhang & Sennrich 2019, eq. 4; eps inside the root as in
/// Hugging Face Llama.
pub struct RmsNormFwd<'a, B: Device> {
    /// rows x dim.
    pub y: ActMut<'a, B>,
    /// rows.
    pub rstd: AccMut<'a, B>,
    /// rows x dim.
    pub x: Act<'a, B>,
    /// dim.
    pub w: Act<'a, B>,
    /// Added to the mean of squares.
    pub eps: f64,
}

/// `dx {=,+=} rstd * (w dy - x * rstd^2 * mean(w dy x))`, `dw += sum over rows of dy * x * rstd`, rows in order. With `again`,
/// `dy` becomes `y = x * rstd * w`, to the bits of [`RmsNormFwd`]: the next product reads it, and nobody reads `dy` any more.
pub struct RmsNormBwd<'a, B: Device> {
    /// rows x dim.
    pub dx: ActMut<'a, B>,
    /// dim; `None`: the weight is frozen.
    pub dw: Option<AccMut<'a, B>>,
    /// rows x dim.
    pub dy: ActMut<'a, B>,
    /// rows x dim.
    pub x: Act<'a, B>,
    /// dim.
    pub w: Act<'a, B>,
    /// rows.
    pub rstd: Acc<'a, B>,
    /// What becomes of `dx`: [`Write::Set`] or [`Write::Add`].
    pub write: Write<()>,
    /// Whether `dy` is overwritten with `y`.
    pub again: bool,
}

/// RMSNorm of every query head by the first head_dim numbers of `w`, of every key head by the others, then the rotation of
/// [`super::rope::RopeFwd`], in place in `qkv`: one pass where the rotation alone would take another. Source: Hugging Face's Qwen3.
pub struct QkNormFwd<'a, B: Device> {
    /// rows x qkv_width.
    pub qkv: ActMut<'a, B>,
    /// Keeps the queries and keys from before, rows x (q_width + kv_width).
    pub raw: ActMut<'a, B>,
    /// rows x (heads + kv_heads).
    pub rstd: AccMut<'a, B>,
    /// 2 x head_dim.
    pub w: Act<'a, B>,
    /// positions x head_dim, as [`super::rope::RopeFwd::table`].
    pub table: Acc<'a, B>,
    /// Whose positions.
    pub batch: &'a B::Batch,
    /// Heads and their width.
    pub shape: AttnShape,
    /// Added to the mean of squares.
    pub eps: f64,
}

/// Turns `dqkv` (gradient of the rotated) into the gradient of the raw, in place; `dw` +=.
pub struct QkNormBwd<'a, B: Device> {
    /// rows x qkv_width.
    pub dqkv: ActMut<'a, B>,
    /// 2 x head_dim; `None`: the weight is frozen.
    pub dw: Option<AccMut<'a, B>>,
    /// rows x (q_width + kv_width).
    pub raw: Act<'a, B>,
    /// rows x (heads + kv_heads).
    pub rstd: Acc<'a, B>,
    /// 2 x head_dim.
    pub w: Act<'a, B>,
    /// positions x head_dim, as [`super::rope::RopeFwd::table`].
    pub table: Acc<'a, B>,
    /// Whose positions.
    pub batch: &'a B::Batch,
    /// Heads and their width.
    pub shape: AttnShape,
}

/// Ops of the norms. Errors: [`crate::Error::Shape`], a position beyond the table among them.
pub trait NormOps: Device {
    /// See [`RmsNormFwd`].
    fn rmsnorm_fwd(&self, op: RmsNormFwd<'_, Self>) -> Result<()>;
    /// See [`RmsNormBwd`].
    fn rmsnorm_bwd(&self, op: RmsNormBwd<'_, Self>) -> Result<()>;
    /// See [`QkNormFwd`].
    fn qk_norm_fwd(&self, op: QkNormFwd<'_, Self>) -> Result<()>;
    /// See [`QkNormBwd`].
    fn qk_norm_bwd(&self, op: QkNormBwd<'_, Self>) -> Result<()>;
}
