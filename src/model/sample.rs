//! Counter-based random numbers and sampling from logits: a draw is a function of (seed, stream, counter), so it does not
//! depend on what else is in the batch, on threads, or on what was drawn before.

/// SplitMix64's finaliser (Steele, Lea & Flood 2014): a bijection that mixes every bit into every other.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 64 random bits.
fn bits(seed: u64, stream: u64, counter: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(stream).wrapping_mul(GOLDEN));
    mix(key ^ mix(counter.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// Uniform in `[0, 1)`.
pub fn uniform(seed: u64, stream: u64, counter: u64) -> f64 {
    (bits(seed, stream, counter) >> 11) as f64 / (1u64 << 53) as f64
}

/// Standard normal (Box & Muller 1958).
pub fn normal(seed: u64, stream: u64, counter: u64) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(seed, stream, 2 * counter)).ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * uniform(seed, stream, 2 * counter + 1)).cos()
}
