//! Stochastic rounding to bf16 from a counter: what a number is rounded to depends on the seed, the step and the number's place,
//! and on nothing else. The same in `kernels/small_state.cu`, to the bit.

use half::bf16;

/// Where the draws of an update come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounding {
    /// Of the seed and the step ([`Rounding::of`]).
    pub key: u64,
    /// The place of the update's first parameter in the trained arena.
    pub index: u64,
}

impl Rounding {
    /// Of step `step` of a run of `seed`, from parameter `index` on.
    pub fn of(seed: u64, step: u64, index: u64) -> Self {
        Self { key: splitmix(splitmix(seed) ^ step), index }
    }

    /// From the parameter `by` places further on.
    pub fn after(self, by: usize) -> Self {
        Self { index: self.index + by as u64, ..self }
    }

    /// 16 random bits for each of weight, first and second moment of the parameter `at` places on.
    #[inline(always)]
    pub fn draws(self, at: usize) -> [u32; 3] {
        let both = draw(self.key, self.index + at as u64);
        [both >> 16, both & 0xffff, mix(both.wrapping_add(GOLDEN)) & 0xffff]
    }
}

pub(super) const GOLDEN: u32 = 0x9e37_79b9;

/// Draw `i` of the stream `key`: 32 random bits. The same in `kernels/random.cuh`.
#[inline(always)]
pub(super) fn draw(key: u64, i: u64) -> u32 {
    let first = mix((i as u32).wrapping_add(key as u32));
    mix(first ^ ((key >> 32) as u32).wrapping_add(((i >> 32) as u32).wrapping_mul(GOLDEN)))
}

/// Wellons's `lowbias32`: a bijection of 32 bits whose every output bit hangs on every input bit.
#[inline(always)]
pub(super) fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// Steele, Lea & Flood 2014.
pub(super) fn splitmix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `x` as one of the two bf16 around it, the nearer the likelier: of the 16 bits that bf16 has no room for, the carry of adding 16
/// random ones decides, so that the mean is `x` to the bit. What is finite stays finite, what is not stays that.
#[inline(always)]
pub fn stochastic(x: f32, draw: u32) -> bf16 {
    const EXPONENT: u32 = 0x7f80_0000;
    let bits = x.to_bits();
    let up = bits.wrapping_add(draw);
    let finite = if up & EXPONENT == EXPONENT { (bits & 0x8000_0000) | 0x7f7f_0000 } else { up };
    let quiet = if bits & 0x007f_ffff == 0 { bits } else { bits | 0x0040_0000 };
    bf16::from_bits(((if bits & EXPONENT == EXPONENT { quiet } else { finite }) >> 16) as u16)
}

/// `x` in single precision, exactly.
#[inline(always)]
pub fn widened(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}
