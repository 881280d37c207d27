//! How sure the means of an evaluation are: sums of squares beside the sums, and 95 % intervals from them. Pairs (responses) are
//! taken as independent of one another.

use serde::{Deserialize, Serialize};

/// Standard errors to either side of a mean in which 95 % lie.
pub const Z: f64 = 1.959963984540054;

/// The mean of `x`, numbers that are independent of one another, and half the width of its 95 % interval (normal approximation).
pub fn mean_95(x: &[f64]) -> [f64; 2] {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    [mean, 1.96 * (variance / n).sqrt()]
}

/// Means over pairs that have an interval, by their keys.
pub const OF_PAIRS: [&str; 5] =
    ["rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"];

/// Sums of squares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Squares {
    /// Of losses, of losses times weights, and of weights.
    pub loss: [f64; 3],
    /// Of what [`OF_PAIRS`] are means of.
    pub pairs: [f64; 5],
}

impl Squares {
    /// Whether there are none: what totals of before had.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Takes a loss that counts `weight`, times which it is `weighted`.
    pub fn add_loss(&mut self, weighted: f64, weight: f64) {
        let [losses, both, weights] = &mut self.loss;
        *losses += weighted * weighted;
        *both += weighted * weight;
        *weights += weight * weight;
    }

    /// Takes a pair's rewards and log-probs, chosen first.
    pub fn add_pair(&mut self, rewards: [f64; 2], logps: [f64; 2]) {
        let of = [rewards[0], rewards[1], rewards[0] - rewards[1], logps[0], logps[1]];
        self.pairs.iter_mut().zip(of).for_each(|(sum, x)| *sum += x * x);
    }

    /// Adds those of others.
    pub fn merge(&mut self, o: Self) {
        self.loss.iter_mut().zip(o.loss).for_each(|(to, x)| *to += x);
        self.pairs.iter_mut().zip(o.pairs).for_each(|(to, x)| *to += x);
    }

    /// The interval of a weighted mean of `n` losses, `sums` being of losses and of weights: that of a ratio (Cochran 1977, 6.3).
    pub fn loss_interval(&self, [losses, weights]: [f64; 2], n: u64) -> Option<[f64; 2]> {
        let mean = losses / weights;
        let [squares, both, of_weights] = self.loss;
        interval(mean, (squares - 2.0 * mean * both + mean * mean * of_weights) / (weights * weights), n)
    }

    /// The interval of the `i`th of [`OF_PAIRS`], whose mean over `n` pairs is `mean`.
    pub fn pair_interval(&self, i: usize, mean: f64, n: u64) -> Option<[f64; 2]> {
        let n_f = n as f64;
        interval(mean, (self.pairs[i] - n_f * mean * mean) / (n_f * n_f), n)
    }
}

/// The interval of a mean of `n`, `variance` being its own, not corrected for how few there are; `None` for fewer than two.
fn interval(mean: f64, variance: f64, n: u64) -> Option<[f64; 2]> {
    if n < 2 || !mean.is_finite() || !variance.is_finite() {
        return None;
    }
    let n = n as f64;
    // Rounding takes a variance of nothing below 0.
    let half = Z * (variance.max(0.0) * n / (n - 1.0)).sqrt();
    Some([mean - half, mean + half])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_of_equal_weights_has_the_textbook_interval() {
        let x = [0.3, 0.9, 0.4, 1.6, 0.2];
        let mut squares = Squares::default();
        x.iter().for_each(|x| squares.add_loss(*x, 1.0));
        x.iter().for_each(|x| squares.add_pair([*x, 0.0], [0.0, -x]));
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let error = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
        let want = [mean - Z * error, mean + Z * error];
        let near = |got: Option<[f64; 2]>, want: [f64; 2]| {
            let got = got.unwrap();
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?} {want:?}");
        };
        near(squares.loss_interval([n * mean, n], 5), want);
        near(squares.pair_interval(0, mean, 5), want);
        near(squares.pair_interval(2, mean, 5), want);
        near(squares.pair_interval(4, -mean, 5), [-want[1], -want[0]]);
        assert_eq!(squares.pair_interval(1, 0.0, 5), Some([0.0, 0.0]));
        assert_eq!((squares.pair_interval(0, mean, 1), squares.pair_interval(0, f64::NAN, 5)), (None, None));
    }

    #[test]
    fn weights_are_units_as_often() {
        // A response of n tokens says less than n responses of one: the ratio's interval is by responses.
        let (l, n) = ([2.0, 9.0, 4.0], [1.0, 4.0, 3.0]);
        let mut squares = Squares::default();
        l.iter().zip(n).for_each(|(l, n)| squares.add_loss(*l, n));
        let mean = 15.0 / 8.0;
        let sum: f64 = l.iter().zip(n).map(|(l, n): (&f64, f64)| (l - mean * n).powi(2)).sum();
        let half = Z * (sum / 64.0 * 1.5).sqrt();
        let [lo, hi] = squares.loss_interval([15.0, 8.0], 3).unwrap();
        assert!((lo - (mean - half)).abs() < 1e-12 && (hi - (mean + half)).abs() < 1e-12, "{lo} {hi}");
    }
}
