//! Attention over segments with a shared prefix.

use super::device::{Acc, AccMut, Act, ActMut, AttnShape, Device};
use crate::error::Result;

/// Softmax attention over the batch's segments, scale `1 / sqrt(head_dim)`, the prompt's keys shared by its responses. Rows
/// in no segment give zeros.
pub struct AttentionFwd<'a, B: Device> {
    /// rows x q_width.
    pub out: ActMut<'a, B>,
    /// Natural log of the sum of exponentials, rows x heads.
    pub lse: AccMut<'a, B>,
    /// rows x qkv_width.
    pub qkv: Act<'a, B>,
    /// Whose segments.
    pub batch: &'a B::Batch,
    /// Heads and their width.
    pub shape: AttnShape,
}

/// Backward of [`AttentionFwd`]; `dqkv` is set in full.
pub struct AttentionBwd<'a, B: Device> {
    /// rows x qkv_width.
    pub dqkv: ActMut<'a, B>,
    /// Scratch, rows x heads.
    pub delta: AccMut<'a, B>,
    /// Scratch: as many numbers as [`Device::attention_partial`] says for the batch's capacity, or more.
    pub partial: AccMut<'a, B>,
    /// rows x q_width.
    pub dout: Act<'a, B>,
    /// What the forward pass gave, rows x q_width.
    pub out: Act<'a, B>,
    /// What the forward pass gave, rows x heads.
    pub lse: Acc<'a, B>,
    /// rows x qkv_width.
    pub qkv: Act<'a, B>,
    /// Whose segments.
    pub batch: &'a B::Batch,
    /// Heads and their width.
    pub shape: AttnShape,
}

/// Ops of attention. Errors: [`crate::Error::Shape`]; on a GPU [`crate::Error::Launch`] for a batch that was made for other
/// heads, and for views that do not start at a multiple of 16 bytes.
pub trait AttentionOps: Device {
    /// See [`AttentionFwd`].
    fn attention_fwd(&self, op: AttentionFwd<'_, Self>) -> Result<()>;
    /// See [`AttentionBwd`].
    fn attention_bwd(&self, op: AttentionBwd<'_, Self>) -> Result<()>;
}
