//! What a row of the table says.

use super::pair::{Pair, PairLoss};
use super::params::{Param, Params};
use super::step::{Judged, Running, StepPairs};

/// A loss.
pub struct LossDef {
    /// TRL's name, where TRL has it.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// The formula, for people. `w`, `l`: policy log-probs of chosen and rejected; `rw`, `rl`: the reference's;
    /// `dw = w - rw`, `dl = l - rl`, `h = dw - dl`; `|w|`, `|l|`: lengths; `ls = log sigmoid`, `s = sigmoid`.
    pub formula: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// For which data, and what it is sensitive to.
    pub guidance: &'static str,
    /// Its hyper-parameters with their defaults, in the order in which its kernel takes them; at most [`MOST_PARAMS`].
    pub options: &'static [(Param, f64)],
    /// Whether it reads reference log-probs at all.
    pub reference: bool,
    /// Whether it reads the data's scores of both responses.
    pub scores: bool,
    /// Which responses' lengths it reads.
    pub lengths: Lengths,
    /// Whether an f-divergence may take the place of its reverse KL: TRL's list, and what is like it.
    pub divergence: bool,
    /// Whether what it rewards is a mean over tokens, not a sum.
    pub mean_reward: bool,
    /// The formula, for machines.
    pub rule: Rule,
}

/// Responses whose lengths a formula reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// Of none: sums are enough.
    Unread,
    /// The chosen response's.
    Chosen,
    /// Both.
    Both,
}

/// Most hyper-parameters of a loss.
pub const MOST_PARAMS: usize = 4;

/// A formula, by what it must have seen before it can give a coefficient.
#[derive(Clone, Copy)]
pub enum Rule {
    /// A pair. The loss is a mean over pair weights.
    Pair(fn(&Params, &Pair) -> PairLoss),
    /// A response alone: `-logp`, as a mean over the tokens of chosen responses.
    Tokens,
    /// A chosen response's log-ratio, the first, and those of all that it is preferred to; writes the derivatives by each.
    /// The loss is a mean over prompts.
    List(fn(&Params, &[f64], &mut [f64]) -> f64),
    /// Every pair of the step, through the model before any of them has a gradient. The loss is a mean over pair weights.
    Step(fn(&StepPairs<'_>, &mut Running) -> Vec<PairLoss>),
    /// Judged responses, given the policy's divergence from the reference as the step's mismatched rows show it (0 or more):
    /// loss and derivative of each. The loss is a mean over judgements.
    Judged(fn(&Params, &[Judged], f64) -> Vec<[f64; 2]>),
}

/// When a loss can give its coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// When the log-probs of one group are known: in the fused launch, once through the model.
    Group,
    /// When those of every group of the step are: twice through the model.
    Step,
}

impl Rule {
    /// When it can give its coefficients.
    pub fn scope(&self) -> Scope {
        match self {
            Self::Pair(_) | Self::Tokens | Self::List(_) => Scope::Group,
            Self::Step(_) | Self::Judged(_) => Scope::Step,
        }
    }
}
