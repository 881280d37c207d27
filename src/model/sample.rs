//! Counter-based random numbers and sampling from logits: a draw is a function of (seed, stream, counter), so it does not
//! depend on what else is in the batch, on threads, or on what was drawn before.

use crate::backend::Float;

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

/// One draw from a row of logits: the token, and its log-probability under the model itself (temperature 1, all tokens).
///
/// `temperature` 0 takes the largest logit (the lowest index among equals). Else `u`, uniform in `[0, 1)`, picks from
/// softmax(z / temperature), limited to the fewest most likely tokens whose probabilities reach `top_p` (Holtzman et al.
/// 2020). Ties in probability go to the lower index.
pub fn sample<F: Float>(logits: &[F], temperature: f64, top_p: f64, u: f64) -> (u32, f64) {
    let (token, max) = (pick(logits, temperature, top_p, u), logits[likeliest(logits)].to_f64());
    let log_sum = logits.iter().map(|z| (z.to_f64() - max).exp()).sum::<f64>().ln();
    (token, logits[token as usize].to_f64() - max - log_sum)
}

/// The token of [`sample`] alone.
pub fn pick<F: Float>(logits: &[F], temperature: f64, top_p: f64, u: f64) -> u32 {
    let best = likeliest(logits);
    let token = match temperature == 0.0 {
        true => best,
        false => draw(logits, logits[best].to_f64(), temperature, top_p, u),
    };
    token as u32
}

fn likeliest<F: Float>(logits: &[F]) -> usize {
    let mut best = 0;
    for (i, z) in logits.iter().enumerate() {
        if z.to_f64() > logits[best].to_f64() {
            best = i;
        }
    }
    best
}

fn draw<F: Float>(logits: &[F], max: f64, temperature: f64, top_p: f64, u: f64) -> usize {
    let weight = |z: &F| ((z.to_f64() - max) / temperature).exp();
    let sum: f64 = logits.iter().map(weight).sum();
    // Tokens rarer than this add up to less than 1 - top_p, so none of them is in the nucleus: no need to sort them.
    let rare = if top_p < 1.0 { (1.0 - top_p) * sum / logits.len() as f64 } else { 0.0 };
    let mut nucleus: Vec<(usize, f64)> =
        logits.iter().map(weight).enumerate().filter(|(_, w)| *w >= rare && *w > 0.0).collect();
    let mut kept = nucleus.iter().map(|(_, w)| w).sum::<f64>();
    if top_p < 1.0 {
        nucleus.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut total = 0.0;
        let reached = nucleus.iter().position(|(_, w)| {
            total += w;
            total >= top_p * sum
        });
        nucleus.truncate(reached.map_or(nucleus.len(), |i| i + 1));
        kept = total;
    }
    let mut left = u * kept;
    for (i, w) in &nucleus {
        left -= w;
        if left < 0.0 {
            return *i;
        }
    }
    // Rounding left a crumb: the last token that can be drawn.
    nucleus.last().map_or(0, |(i, _)| *i)
}

#[cfg(test)]
mod tests {
    use super::*;

    const Z: [f32; 5] = [0.5, 2.0, -1.0, 2.0, 0.0];

    fn probabilities(temperature: f64) -> Vec<f64> {
        let w: Vec<f64> = Z.iter().map(|z| (f64::from(*z) / temperature).exp()).collect();
        w.iter().map(|x| x / w.iter().sum::<f64>()).collect()
    }

    /// Within the nucleus each token has its own share of what is in it, over even steps of `u`.
    #[test]
    fn shares_within_the_nucleus() {
        let p = probabilities(1.0);
        // Both largest, 1 and 3; then the next, 0.
        for (top_p, nucleus) in [(p[1] + 0.5 * p[3], &[1, 3][..]), (p[1] + p[3] + 0.5 * p[0], &[1, 3, 0]), (1e-9, &[1])]
        {
            let kept: f64 = nucleus.iter().map(|i| p[*i]).sum();
            let n = 10_000;
            let drawn: Vec<u32> =
                (0..n).map(|i| sample(&Z, 1.0, top_p, (f64::from(i) + 0.5) / f64::from(n)).0).collect();
            for (token, p) in (0..).zip(&p) {
                let want = if nucleus.contains(&(token as usize)) { p / kept } else { 0.0 };
                let share = drawn.iter().filter(|t| **t == token).count() as f64 / f64::from(n);
                assert!((share - want).abs() <= 2.0 / f64::from(n), "{top_p}: {token}: {share}, not {want}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let (token, logp) = sample(&Z, 0.0, 1.0, 0.7);
        assert_eq!(token, 1);
        assert!((logp - probabilities(1.0)[1].ln()).abs() <= 1e-12);
    }

    #[test]
    fn frequencies_follow_the_temperature() {
        let n = 40_000;
        let mut counts = [0usize; 5];
        for i in 0..n {
            counts[sample(&Z, 0.7, 1.0, uniform(1, 2, i)).0 as usize] += 1;
        }
        for (c, p) in counts.iter().zip(probabilities(0.7)) {
            // Five standard deviations of a binomial share.
            let tol = 5.0 * (p * (1.0 - p) / n as f64).sqrt();
            assert!((*c as f64 / n as f64 - p).abs() <= tol, "{counts:?}");
        }
    }

    #[test]
    fn nucleus_is_the_fewest_most_likely() {
        let p = probabilities(1.0);
        let drawn = |top_p: f64| {
            let mut seen: Vec<u32> = (0..1000).map(|i| sample(&Z, 1.0, top_p, i as f64 / 1000.0).0).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(drawn(p[1] * 0.9), [1]);
        assert_eq!(drawn(p[1] * 1.5), [1, 3]);
        assert_eq!(drawn(p[1] * 2.0 + p[0] * 0.5), [0, 1, 3]);
        assert_eq!(drawn(1.0), [0, 1, 2, 3, 4]);
        assert_eq!(drawn(f64::MIN_POSITIVE), [1]);
    }

    #[test]
    fn streams_are_uniform_and_differ() {
        let n = 100_000u64;
        for (seed, stream) in [(0, 0), (1, 0), (0, 1), (u64::MAX, 7)] {
            let mean = (0..n).map(|i| uniform(seed, stream, i)).sum::<f64>() / n as f64;
            assert!((mean - 0.5).abs() <= 5.0 * (1.0 / 12.0 / n as f64).sqrt(), "{mean}");
            let second = (0..n).map(|i| normal(seed, stream, i).powi(2)).sum::<f64>() / n as f64;
            assert!((second - 1.0).abs() <= 5.0 * (2.0 / n as f64).sqrt(), "{second}");
        }
        assert!(uniform(0, 0, 1) != uniform(0, 1, 0) && uniform(0, 1, 0) != uniform(1, 0, 0));
    }
}
