//! What the CPU's ops need of an element type, and reductions with a fixed order.

use crate::backend::ops::element::Gradient;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// `f32` or `f64`.
pub trait Scalar:
    Gradient
    + Copy
    + PartialOrd
    + Default
    + Sum
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Minus infinity.
    const NEG_INFINITY: Self;
    /// `e^self`, within 2 ulp. For `f32` a polynomial that vectorises: results below 2^-126 become 0, arguments above
    /// 88.37 saturate there, NaN stays NaN.
    fn exp(self) -> Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// 0 where a multiplication of the number could be slow: a denormal, which costs a CPU a hundred multiplications. `f64`
    /// has none here.
    fn flushed(self) -> Self;
    /// 0 where a small share of the number could be a denormal: below `2^-100`. Likewise.
    fn vanished(self) -> Self;
    /// 0 where the square, or a small share of it, would be a denormal: below `2^-58`. Likewise.
    fn squarable(self) -> Self;
}

impl Scalar for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    #[inline(always)]
    fn exp(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn flushed(self) -> Self {
        self
    }
    #[inline(always)]
    fn vanished(self) -> Self {
        self
    }
    #[inline(always)]
    fn squarable(self) -> Self {
        self
    }
}

impl Scalar for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    #[inline(always)]
    fn exp(self) -> Self {
        exp_f32(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    // Comparisons that are false for NaN, which therefore passes through.
    #[inline(always)]
    fn flushed(self) -> Self {
        if self.abs() < f32::MIN_POSITIVE { 0.0 } else { self }
    }
    #[inline(always)]
    fn vanished(self) -> Self {
        if self.abs() < 7.888_609e-31 { 0.0 } else { self }
    }
    #[inline(always)]
    fn squarable(self) -> Self {
        if self.abs() < 3.469_447e-18 { 0.0 } else { self }
    }
}

/// `e^x = 2^n e^r` with `n = round(x / ln 2)`, `|r| <= ln 2 / 2`; `ln 2` in two parts so that `r` is exact to rounding
/// (Cody & Waite), `e^r` by its Taylor polynomial of degree 7 (truncation below 2^-27). No branch, no table, no FMA.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer and leaves that in the low bits
    const LN2_HI: f32 = 0.693_359_4; // 355/512: n * LN2_HI is exact for |n| < 2^15
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Comparisons that are false for NaN, which therefore passes through.
    let c = if x > 88.37 { 88.37 } else { x };
    let c = if c < -87.33 { -87.33 } else { c };
    let shifted = c * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = c - n * LN2_HI - n * LN2_LO;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = (p * r * r + r) + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23);
    if x < -87.33 { 0.0 } else { p * scale }
}

/// Independent partial sums of a reduction. A constant, not the SIMD width: every level adds in the same order.
pub(super) const LANES: usize = 16;

/// Adds up lanes in a fixed order.
#[inline(always)]
pub(super) fn sum_lanes<S: Scalar>(mut acc: [S; LANES]) -> S {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            acc[l] += acc[l + half];
        }
        half /= 2;
    }
    acc[0]
}

/// `sum of a[i] * b[i]`, in the fixed order of [`LANES`] partial sums.
#[inline(always)]
pub(super) fn dot<S: Scalar>(a: &[S], b: &[S]) -> S {
    let mut acc = [S::ZERO; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (l, (x, y)) in a_chunks.remainder().iter().zip(b_chunks.remainder()).enumerate() {
        acc[l] = *x * *y;
    }
    for (x, y) in a_chunks.zip(b_chunks) {
        for l in 0..LANES {
            acc[l] += x[l] * y[l];
        }
    }
    sum_lanes(acc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_f32_is_within_2_ulp() {
        let mut worst = 0.0f64;
        let mut x = -87.33f32;
        while x <= 88.37 {
            let (got, want) = (f64::from(exp_f32(x)), f64::from(x).exp());
            let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            let err = (got - want).abs() / ulp;
            assert!(err <= 2.0, "exp({x}): {got} {want}, {err} ulp");
            worst = worst.max(err);
            x += 0.000_317;
        }
        assert!(worst > 0.3, "the loop measured something");
    }

    #[test]
    fn exp_f32_at_the_ends() {
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-200.0), 0.0);
        assert!(exp_f32(f32::INFINITY) > 2e38);
        assert!(exp_f32(f32::NAN).is_nan());
    }
}
