//! The loss table: one entry a loss, each a formula with its derivative and source, evaluated in f64.
//!
//! A loss sees sums of token log-probs and gives `dL/dlogp` per response, which the head applies to every token of the
//! response. What a loss needs beyond that is its contract ([`LossDef::scope`], [`LossDef::per_token`]).
//!
//! ```
//! use fusedpo::loss::{LossSpec, LossType, Pair};
//!
//! let spec = LossSpec { loss_type: LossType::Sigmoid, beta: 0.1, label_smoothing: 0.0 };
//! spec.check()?;
//! // The policy likes the chosen response 2 nats more than the reference does, and the rejected one 1 nat less.
//! let p = Pair {
//!     chosen: -40.0, rejected: -52.0, ref_chosen: -42.0, ref_rejected: -51.0, chosen_len: 20.0, rejected_len: 25.0,
//! };
//! let loss = spec.loss_type.def().pair.expect("a loss of pairs")(&spec, &p);
//! assert!((loss.loss - (1.0 + (-0.3_f64).exp()).ln()).abs() < 1e-12); // -log sigmoid(0.1 * 3)
//! assert!(loss.d_chosen < 0.0 && loss.d_rejected == -loss.d_chosen);
//! # Ok::<(), fusedpo::Error>(())
//! ```

use crate::choice;
use crate::choice::Choice;
use crate::error::{Error, Result};

/// What a loss must have seen before it can give a coefficient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The log-probs of one group.
    Group,
    /// The log-probs of every group of the global batch (AOT's sort, KTO's and BCO's batch statistics).
    GlobalBatch,
}

choice! {
    /// Losses by TRL's `loss_type`.
    pub enum LossType: default Sigmoid {
        /// DPO, with label smoothing cDPO.
        Sigmoid = "sigmoid",
        /// RSO / SLiC hinge.
        Hinge = "hinge",
        /// IPO on per-token means.
        Ipo = "ipo",
        /// Mean token negative log-likelihood of the chosen responses.
        Sft = "sft",
    }
}

/// A loss and its hyper-parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSpec {
    /// Which loss.
    pub loss_type: LossType,
    /// Strength of the pull towards the reference (DPO eq. 7); greater than 0.
    pub beta: f64,
    /// Probability that a label is flipped, in `[0, 0.5)`; `sigmoid` only.
    pub label_smoothing: f64,
}

/// One pair: sums over completion tokens (nats) and lengths in scored tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Policy log-probability of the chosen response.
    pub chosen: f64,
    /// Policy log-probability of the rejected response.
    pub rejected: f64,
    /// Reference log-probability of the chosen response.
    pub ref_chosen: f64,
    /// Reference log-probability of the rejected response.
    pub ref_rejected: f64,
    /// Scored tokens of the chosen response.
    pub chosen_len: f64,
    /// Scored tokens of the rejected response.
    pub rejected_len: f64,
}

/// A loss and its derivatives by the policy's two log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// The loss of the pair.
    pub loss: f64,
    /// `dL / d chosen`.
    pub d_chosen: f64,
    /// `dL / d rejected`.
    pub d_rejected: f64,
}

/// A row of the table.
pub struct LossDef {
    /// TRL's name.
    pub loss_type: LossType,
    /// What it must have seen.
    pub scope: Scope,
    /// Whether it needs reference log-probs per token.
    pub per_token: bool,
    /// Whether it reads reference log-probs at all.
    pub reference: bool,
    /// The formula, for people. `h = (chosen - ref_chosen) - (rejected - ref_rejected)`, `ls = log sigmoid`.
    pub formula: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// The formula, for machines; SFT has none: its coefficient does not depend on the pair.
    pub pair: Option<fn(&LossSpec, &Pair) -> PairLoss>,
}

/// Every loss.
pub const LOSSES: &[LossDef] = &[
    LossDef {
        loss_type: LossType::Sigmoid,
        scope: Scope::Group,
        per_token: false,
        reference: true,
        formula: "-(1-e) ls(beta h) - e ls(-beta h)",
        source: "Rafailov et al. 2023 (arXiv 2305.18290) eq. 7; e: label smoothing, Mitchell 2023 (cDPO)",
        pair: Some(sigmoid),
    },
    LossDef {
        loss_type: LossType::Hinge,
        scope: Scope::Group,
        per_token: false,
        reference: true,
        formula: "max(0, 1 - beta h)",
        source: "Liu et al. 2023 (RSO, arXiv 2309.06657) section 3.3",
        pair: Some(hinge),
    },
    LossDef {
        loss_type: LossType::Ipo,
        scope: Scope::Group,
        per_token: false,
        reference: true,
        formula: "((chosen - ref_chosen)/|chosen| - (rejected - ref_rejected)/|rejected| - 1/(2 beta))^2",
        source: "Azar et al. 2023 (arXiv 2310.12036) eq. 17, on per-token means as in TRL",
        pair: Some(ipo),
    },
    LossDef {
        loss_type: LossType::Sft,
        scope: Scope::Group,
        per_token: false,
        reference: false,
        formula: "-(sum of chosen log-probs) / (scored tokens of the batch)",
        source: "maximum likelihood",
        pair: None,
    },
];

impl LossType {
    /// Its row of [`LOSSES`].
    pub fn def(self) -> &'static LossDef {
        LOSSES.iter().find(|d| d.loss_type == self).expect("every LossType has a row")
    }
}

impl LossSpec {
    /// Refuses values outside the formula's domain, and options that the loss would ignore.
    pub fn check(&self) -> Result<()> {
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return Err(Error::usage(format!("`beta` {}: must be a finite number greater than 0", self.beta)));
        }
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return Err(Error::usage(format!("`label_smoothing` {}: must be in [0, 0.5)", self.label_smoothing)));
        }
        if self.label_smoothing != 0.0 && self.loss_type != LossType::Sigmoid {
            return Err(Error::usage(format!(
                "`label_smoothing`: not defined for `loss_type` {}; use sigmoid",
                self.loss_type.name()
            )));
        }
        Ok(())
    }

    /// Loss of a pair on which policy and reference agree: the value that step 0 must show.
    pub fn at_reference(&self) -> Option<f64> {
        let p =
            Pair { chosen: 0.0, rejected: 0.0, ref_chosen: 0.0, ref_rejected: 0.0, chosen_len: 1.0, rejected_len: 1.0 };
        self.loss_type.def().pair.map(|f| f(self, &p).loss)
    }
}

/// `(chosen - ref_chosen) - (rejected - ref_rejected)`.
pub fn log_ratio_margin(p: &Pair) -> f64 {
    (p.chosen - p.ref_chosen) - (p.rejected - p.ref_rejected)
}

/// `log(1 / (1 + exp(-x)))` without overflow or cancellation.
pub fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + exp(-x))` without overflow.
pub fn sigmoid_of(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

fn sigmoid(s: &LossSpec, p: &Pair) -> PairLoss {
    let (m, e) = (s.beta * log_ratio_margin(p), s.label_smoothing);
    let loss = -(1.0 - e) * log_sigmoid(m) - e * log_sigmoid(-m);
    let d = s.beta * (e * sigmoid_of(m) - (1.0 - e) * sigmoid_of(-m));
    PairLoss { loss, d_chosen: d, d_rejected: -d }
}

fn hinge(s: &LossSpec, p: &Pair) -> PairLoss {
    let slack = 1.0 - s.beta * log_ratio_margin(p);
    // At the kink the derivative from the right, 0, as torch.relu.
    let d = if slack > 0.0 { -s.beta } else { 0.0 };
    PairLoss { loss: slack.max(0.0), d_chosen: d, d_rejected: -d }
}

fn ipo(s: &LossSpec, p: &Pair) -> PairLoss {
    let w = (p.chosen - p.ref_chosen) / p.chosen_len;
    let l = (p.rejected - p.ref_rejected) / p.rejected_len;
    let gap = w - l - 1.0 / (2.0 * s.beta);
    PairLoss { loss: gap * gap, d_chosen: 2.0 * gap / p.chosen_len, d_rejected: -2.0 * gap / p.rejected_len }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central differences on random pairs, away from the hinge's kink.
    #[test]
    fn derivatives_match_finite_differences() {
        let mut seed = 1u64;
        let mut uniform = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 11) as f64 / (1u64 << 53) as f64
        };
        for def in LOSSES {
            let Some(f) = def.pair else { continue };
            for _ in 0..200 {
                let label_smoothing = if def.loss_type == LossType::Sigmoid { 0.4 * uniform() } else { 0.0 };
                let spec = LossSpec { loss_type: def.loss_type, beta: 0.05 + uniform(), label_smoothing };
                let p = Pair {
                    chosen: -80.0 * uniform(),
                    rejected: -80.0 * uniform(),
                    ref_chosen: -80.0 * uniform(),
                    ref_rejected: -80.0 * uniform(),
                    chosen_len: 1.0 + (30.0 * uniform()).floor(),
                    rejected_len: 1.0 + (30.0 * uniform()).floor(),
                };
                if def.loss_type == LossType::Hinge && (1.0 - spec.beta * log_ratio_margin(&p)).abs() < 1e-3 {
                    continue;
                }
                let (got, e) = (f(&spec, &p), 1e-5);
                let at =
                    |dw: f64, dl: f64| f(&spec, &Pair { chosen: p.chosen + dw, rejected: p.rejected + dl, ..p }).loss;
                let dw = (at(e, 0.0) - at(-e, 0.0)) / (2.0 * e);
                let dl = (at(0.0, e) - at(0.0, -e)) / (2.0 * e);
                let close =
                    |a: f64, b: f64| assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{:?}: {a} {b}", def.loss_type);
                close(got.d_chosen, dw);
                close(got.d_rejected, dl);
            }
        }
    }

    #[test]
    fn value_at_the_reference() {
        let spec = |loss_type| LossSpec { loss_type, beta: 0.1, label_smoothing: 0.0 };
        assert_eq!(spec(LossType::Sigmoid).at_reference(), Some(std::f64::consts::LN_2));
        assert_eq!(spec(LossType::Hinge).at_reference(), Some(1.0));
        assert_eq!(spec(LossType::Ipo).at_reference(), Some(25.0));
        assert_eq!(spec(LossType::Sft).at_reference(), None);
    }

    #[test]
    fn no_overflow_far_out() {
        let spec = LossSpec { loss_type: LossType::Sigmoid, beta: 1.0, label_smoothing: 0.0 };
        let p = |m| Pair {
            chosen: m,
            rejected: 0.0,
            ref_chosen: 0.0,
            ref_rejected: 0.0,
            chosen_len: 1.0,
            rejected_len: 1.0,
        };
        assert_eq!(sigmoid(&spec, &p(-1e4)), PairLoss { loss: 1e4, d_chosen: -1.0, d_rejected: 1.0 });
        assert_eq!(sigmoid(&spec, &p(1e4)).loss, 0.0);
    }
}
