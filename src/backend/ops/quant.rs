//! Weights in four bits: [`crate::quant`]. Source: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, section 3.

use super::device::{ActMut, Device};
use crate::error::Result;
use crate::quant::Precision;

/// The largest magnitudes of blocks of 64 numbers: views of f32 and of bytes.
#[derive(Clone, Copy)]
pub enum Nf4Absmax<F, C> {
    /// One a block.
    Plain(F),
    /// `map[codes[i]] absmax[i / 256] + offset`: product and sum are rounded one by one.
    Nested {
        /// One a block.
        codes: C,
        /// One for every 256 blocks.
        absmax: F,
        /// 256 numbers.
        map: F,
        /// One number.
        offset: F,
    },
}

/// `w[i] = round(CODE[code of i] absmax[i / 64])`, with [`crate::quant::nf4::CODE`].
pub struct DequantizeNf4<'a, B: Device> {
    /// Any number of elements.
    pub w: ActMut<'a, B>,
    /// Half as many bytes, rounded up: two codes each, the first in the upper half.
    pub codes: B::View<'a, u8>,
    /// Magnitudes of every 64 elements.
    pub absmax: Nf4Absmax<B::View<'a, f32>, B::View<'a, u8>>,
    /// What the product is rounded to first.
    pub round: Precision,
}

/// Ops of weights in four bits. Errors: [`crate::Error::Shape`].
pub trait QuantOps: Device {
    /// See [`DequantizeNf4`].
    fn dequantize_nf4(&self, op: DequantizeNf4<'_, Self>) -> Result<()>;
}
