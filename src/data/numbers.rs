//! Numbers for reports: digits in groups, lengths by their quantiles.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Number of values at each length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(BTreeMap<usize, u64>);

impl Histogram {
    /// Counts one more value.
    pub fn add(&mut self, value: usize) {
        *self.0.entry(value).or_default() += 1;
    }

    /// Smallest value that at least the share `q` of all values do not exceed.
    pub fn quantile(&self, q: f64) -> u64 {
        let total: u64 = self.0.values().sum();
        let wanted = (q * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = self.0.iter().find(|(_, n)| {
            seen += **n;
            seen >= wanted
        });
        at.map_or(0, |(value, _)| *value as u64)
    }

    /// The usual quantiles.
    pub fn lengths(&self) -> Lengths {
        Lengths { p50: self.quantile(0.5), p90: self.quantile(0.9), p99: self.quantile(0.99), max: self.quantile(1.0) }
    }
}

/// Quantiles of a length in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths {
    /// Median.
    pub p50: u64,
    /// 90 % are at most this long.
    pub p90: u64,
    /// 99 % are at most this long.
    pub p99: u64,
    /// Longest.
    pub max: u64,
}
