//! Rotary frequencies and their table, in f64. Source of every kind: transformers `modeling_rope_utils.py`, 5.23.

use std::f64::consts::PI;

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a linear blend between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths longer than `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Positions of the model before it was stretched.
        original_max_position_embeddings: f64,
    },
    /// Dynamic NTK: as trained in rows of up to `max_position_embeddings` tokens; the base grows with each longer row.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// The longest row that is left as trained.
        max_position_embeddings: f64,
    },
    /// YaRN (Peng et al. 2023): as [`RopeScaling::Llama3`], with its blend between two dimensions, and longer vectors.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Length of the rotated queries and keys: every cosine and sine is multiplied by it.
        attention_factor: f64,
        /// Turns within the original positions above which a frequency is kept.
        beta_fast: f64,
        /// Turns within the original positions below which a frequency is divided.
        beta_slow: f64,
        /// Positions of the model before it was stretched.
        original_max_position_embeddings: f64,
        /// Whether the blend begins and ends at whole dimensions.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024): each frequency has a divisor of its own, another in rows beyond the original positions.
    LongRope {
        /// Divisors in rows of up to `original_max_position_embeddings` tokens, `[head_dim / 2]`.
        short_factor: Vec<f64>,
        /// Divisors in longer rows, `[head_dim / 2]`.
        long_factor: Vec<f64>,
        /// Length of the rotated queries and keys, in rows of any length.
        attention_factor: f64,
        /// The longest row that is turned by the short factors.
        original_max_position_embeddings: f64,
    },
    /// The first part of the frequencies divided by `factor`, the others zero: what they would turn stays as it is.
    Proportional {
        /// The divisor.
        factor: f64,
        /// The part that turns, at most 1.
        part: f64,
    },
}

/// Rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

impl Rope {
    /// `head_dim / 2` angular frequencies, radians per position, of a row of `length` tokens evaluated by itself.
    pub fn frequencies(&self, head_dim: usize, length: usize) -> Vec<f64> {
        let dim = head_dim as f64;
        let base = |theta: f64| (0..head_dim / 2).map(move |i| theta.powf(-((2 * i) as f64) / dim));
        match &self.scaling {
            RopeScaling::None => base(self.theta).collect(),
            RopeScaling::Linear { factor } => base(self.theta).map(|f| f / factor).collect(),
            RopeScaling::Dynamic { factor, max_position_embeddings: trained } => {
                let stretch = factor * (length as f64).max(*trained) / trained - (factor - 1.0);
                base(self.theta * stretch.powf(dim / (dim - 2.0))).collect()
            }
            RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, .. } => {
                let long = length as f64 > *original_max_position_embeddings;
                let factors = if long { long_factor } else { short_factor };
                base(self.theta).zip(factors).map(|(f, factor)| f / factor).collect()
            }
            RopeScaling::Proportional { factor, part } => {
                let turning = (part * dim / 2.0) as usize;
                base(self.theta).enumerate().map(|(i, f)| if i < turning { f / factor } else { 0.0 }).collect()
            }
            RopeScaling::Yarn { factor, .. } => {
                let ramp = self.yarn_ramp(dim);
                base(self.theta).zip(ramp).map(|(f, divided)| f / factor * divided + f * (1.0 - divided)).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                base(self.theta)
                    .map(|f| {
                        let turns = original_max_position_embeddings / (2.0 * PI / f);
                        if turns > *high_freq_factor {
                            f
                        } else if turns < *low_freq_factor {
                            f / factor
                        } else {
                            let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                            (1.0 - smooth) * f / factor + smooth * f
                        }
                    })
                    .collect()
            }
        }
    }

    /// YaRN: how far each frequency is divided, from 0, not at all, to 1.
    fn yarn_ramp(&self, dim: f64) -> Vec<f64> {
        let RopeScaling::Yarn { beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } = &self.scaling
        else {
            return Vec::new();
        };
        // The dimension whose frequency makes that many turns.
        let at =
            |turns: f64| dim * (original_max_position_embeddings / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (at(*beta_fast), at(*beta_slow));
        if *truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        (0..dim as usize / 2).map(|i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect()
    }

    /// Length that the rotation gives to a unit vector.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                *attention_factor
            }
            _ => 1.0,
        }
    }

    /// The longest row that is turned as the shortest is; longer ones are turned by other frequencies. `None`: all rows
    /// are turned alike.
    pub fn turning_point(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::Dynamic { max_position_embeddings: n, .. }
            | RopeScaling::LongRope { original_max_position_embeddings: n, .. } => Some(*n as usize),
            _ => None,
        }
    }

    /// Tables that rows of up to `positions` tokens need: a second one for those beyond [`Rope::turning_point`].
    pub fn tables(&self, positions: usize) -> usize {
        match self.turning_point() {
            Some(n) if positions > n => 2,
            _ => 1,
        }
    }

    /// [`Rope::tables`] tables of [`crate::backend::RopeFwd`], one behind the other: each positions x head_dim, head_dim/2
    /// cosines, then as many sines.
    pub fn table(&self, positions: usize, head_dim: usize) -> Vec<f64> {
        let scale = self.attention_factor();
        let tables = self.tables(positions);
        let mut table = Vec::with_capacity(tables * positions * head_dim);
        for length in [1, positions].into_iter().take(tables) {
            let frequencies = self.frequencies(head_dim, length);
            for p in 0..positions {
                table.extend(frequencies.iter().map(|f| scale * (p as f64 * f).cos()));
                table.extend(frequencies.iter().map(|f| scale * (p as f64 * f).sin()));
            }
        }
        table
    }
}
