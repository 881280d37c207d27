//! f-divergences in the place of the reverse KL: they change what a log-ratio is worth as a reward (Wang et al. 2023, arXiv
//! 2309.16240, table 1: the derivative of f at the ratio; constants as TRL 1.16 has them, since IPO divides by lengths).

use super::math::{capped_exp_m1, log_sigmoid, sigmoid};
use crate::choice;

choice! {
    /// What keeps the policy near the reference, by TRL's `f_divergence_type`.
    pub enum Divergence: default ReverseKl {
        /// `r = d`, d being the log-ratio of policy and reference: DPO's own.
        ReverseKl = "reverse_kl",
        /// `r = 1 - exp(-d)`.
        ForwardKl = "forward_kl",
        /// `r = log 2 + log sigmoid(d)`.
        JsDivergence = "js_divergence",
        /// `r = (exp((a-1) d) - 1) / (a-1)`, a being f_alpha_divergence_coef.
        AlphaDivergence = "alpha_divergence",
    }
}

impl Divergence {
    /// What a log-ratio `d` is worth, and the derivative by it. Exponents end at 80, with derivative 0 beyond.
    pub fn reward(self, alpha: f64, d: f64) -> [f64; 2] {
        match self {
            Self::ReverseKl => [d, 1.0],
            Self::ForwardKl => {
                let [power, slope] = capped_exp_m1(-d);
                [-power, slope]
            }
            Self::JsDivergence => [std::f64::consts::LN_2 + log_sigmoid(d), sigmoid(-d)],
            // The limit.
            Self::AlphaDivergence if (alpha - 1.0).abs() < 1e-6 => [d, 1.0],
            Self::AlphaDivergence => {
                let [power, slope] = capped_exp_m1((alpha - 1.0) * d);
                [power / (alpha - 1.0), slope]
            }
        }
    }
}
