//! Rotary frequencies and their table, in f64.

/// How rotary frequencies are stretched. Source: transformers `modeling_rope_utils.py`.
#[derive(Clone, Copy, Debug, PartialEq)]
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
}

/// Rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

impl Rope {
    /// `head_dim / 2` angular frequencies, radians per position.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let base = (0..head_dim / 2).map(|i| self.theta.powf(-((2 * i) as f64) / head_dim as f64));
        base.map(|f| match self.scaling {
            RopeScaling::None => f,
            RopeScaling::Linear { factor } => f / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let wavelength = 2.0 * std::f64::consts::PI / f;
                let turns = original_max_position_embeddings / wavelength;
                if turns > high_freq_factor {
                    f
                } else if turns < low_freq_factor {
                    f / factor
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            }
        })
        .collect()
    }

    /// The table of [`crate::backend::Rope`]: positions x head_dim, head_dim/2 cosines, then as many sines.
    pub fn table(&self, positions: usize, head_dim: usize) -> Vec<f64> {
        let frequencies = self.frequencies(head_dim);
        let mut table = Vec::with_capacity(positions * head_dim);
        for p in 0..positions {
            table.extend(frequencies.iter().map(|f| (p as f64 * f).cos()));
            table.extend(frequencies.iter().map(|f| (p as f64 * f).sin()));
        }
        table
    }
}
