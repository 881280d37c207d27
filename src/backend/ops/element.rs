//! What buffers hold.

use std::fmt::Debug;

/// An element that buffers can hold.
pub trait Storage: bytemuck::Pod + PartialEq + Debug + Send + Sync {
    /// Name for messages: `f32`, `bf16`, ...
    const NAME: &'static str;
}

/// A floating-point [`Storage`].
pub trait Float: Storage + std::ops::AddAssign {
    /// Nearest value.
    fn from_f64(x: f64) -> Self;
    /// Exact value.
    fn to_f64(self) -> f64;
}

/// What gradients of matrices are summed up in: the accumulation precision, or bf16.
pub trait Gradient: Float {}
impl Gradient for f32 {}
impl Gradient for f64 {}
impl Gradient for half::bf16 {}

macro_rules! storage {
    ($($t:ty = $name:literal),*) => { $(impl Storage for $t { const NAME: &'static str = $name; })* };
}
storage!(f32 = "f32", f64 = "f64", u8 = "u8", u32 = "u32", half::bf16 = "bf16");

impl Float for f32 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.into()
    }
}
impl Float for f64 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
}
impl Float for half::bf16 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        // half's own from_f64 looks at the upper 32 bits only, so that some f32 values round as if they were ties.
        half::bf16::from_f32(x as f32)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        half::bf16::to_f64(self)
    }
}
