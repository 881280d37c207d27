//! How a backend multiplies.

use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::simd::Level;
use crate::backend::ops::element::Storage;
use crate::error::{Error, Result};

/// Which instructions multiply `f32` matrices in `linear_*`, `head_*`, `logits`, `attention_fwd` and `attention_bwd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemmPrecision {
    /// The element type's own.
    Native,
    /// Operands rounded to bf16 (to nearest even), products summed in f32.
    Bf16,
}

/// What a product needs of the backend.
pub struct Gemm {
    pub(crate) level: Level,
    pub(crate) precision: GemmPrecision,
    pub(crate) scratch: Scratch,
}

impl Gemm {
    /// Products of `S` at `level`. Errors: no instructions for bf16 products, or an `S` that has none.
    pub(crate) fn new<S: Storage>(level: Level, precision: GemmPrecision) -> Result<Self> {
        if precision == GemmPrecision::Bf16 {
            if S::NAME != "f32" {
                return Err(Error::usage(format!("bf16 products: defined for f32 only, not for {}", S::NAME)));
            }
            if !level.has_bf16() {
                let why = "bf16 products need a CPU with AVX-512 (Zen 4, Skylake-X or newer); use f32";
                return Err(Error::Device(why.into()));
            }
        }
        Ok(Gemm { level, precision, scratch: Scratch::default() })
    }

    /// Bytes of a value of `S` in a packed operand, at most.
    pub(crate) fn packed_bytes<S: Storage>(&self) -> usize {
        let parts = S::NAME == "f32" && self.precision == GemmPrecision::Native && self.level.multiplies_parts();
        if parts { 3 * size_of::<half::bf16>() } else { size_of::<S>() }
    }
}
