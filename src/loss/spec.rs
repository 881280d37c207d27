//! A loss as a run has it: one row of the table or a weighted sum of several, with hyper-parameters.

use super::divergence::Divergence;
use super::losses::{LOSSES, LossType};
use super::pair::{Pair, PairLoss};
use super::params::{Param, Params};
use super::table::{LossDef, MOST_PARAMS, Rule, Scope};
use crate::error::{Error, Result};

/// Most losses in a sum.
pub const MOST_TERMS: usize = 8;

/// One loss of a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Which loss.
    pub loss_type: LossType,
    /// Its weight in the sum.
    pub weight: f64,
    /// Its hyper-parameters.
    pub params: Params,
}

/// A loss with all that decides its value.
#[derive(Clone, Copy, Debug)]
pub struct LossSpec {
    terms: [Term; MOST_TERMS],
    len: usize,
    /// What keeps the policy near the reference.
    pub divergence: Divergence,
    /// The exponent of [`Divergence::AlphaDivergence`].
    pub f_alpha: f64,
    /// LD-DPO (Liu et al. 2024, arXiv 2409.06411): how much tokens beyond the length of the pair's shorter response count.
    pub ld_alpha: Option<f64>,
    /// WPO (Zhou et al. 2024, arXiv 2406.11827 eq. 2): each pair counts by how likely the policy is to write both responses.
    pub use_weighting: bool,
}

/// One over what each kind of loss is a mean over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// Pair weights.
    pub pairs: f64,
    /// Tokens of chosen responses.
    pub tokens: f64,
    /// Prompts, or judgements.
    pub units: f64,
}

impl From<f64> for Scales {
    fn from(scale: f64) -> Self {
        Self { pairs: scale, tokens: scale, units: scale }
    }
}

impl PartialEq for LossSpec {
    fn eq(&self, o: &Self) -> bool {
        let rest = |s: &Self| (s.divergence, s.f_alpha, s.ld_alpha, s.use_weighting);
        self.terms() == o.terms() && rest(self) == rest(o)
    }
}

impl Term {
    /// With the loss's defaults, at weight 1.
    pub const fn of(loss_type: LossType) -> Self {
        let options = LOSSES[loss_type as usize].options;
        let (mut params, mut i) = (Params::NONE, 0);
        while i < options.len() {
            params = params.with(options[i].0, options[i].1);
            i += 1;
        }
        Self { loss_type, weight: 1.0, params }
    }

    /// Its row of the table.
    pub fn def(&self) -> &'static LossDef {
        self.loss_type.def()
    }

    /// Whether the loss has `param`.
    pub const fn has(&self, param: Param) -> bool {
        let options = LOSSES[self.loss_type as usize].options;
        let mut i = 0;
        while i < options.len() {
            if options[i].0 as usize == param as usize {
                return true;
            }
            i += 1;
        }
        false
    }

    /// Its hyper-parameters in the order of [`LossDef::options`], as the kernel takes them; zeros behind them.
    pub fn args(&self) -> [f64; MOST_PARAMS] {
        let mut all = [0.0; MOST_PARAMS];
        all.iter_mut().zip(self.def().options).for_each(|(to, (param, _))| *to = self.params[*param]);
        all
    }

    /// What it is divided by in a mean, as a factor.
    pub fn scale(&self, scales: &Scales) -> f64 {
        let of = match self.def().rule {
            Rule::Pair(_) | Rule::Step(_) => scales.pairs,
            Rule::Tokens => scales.tokens,
            Rule::List(_) | Rule::Judged(_) => scales.units,
        };
        // Exactly `of` where there is one loss.
        self.weight * of
    }
}

impl LossSpec {
    /// One loss with its defaults.
    pub const fn of(loss_type: LossType) -> Self {
        Self::sum(&[Term::of(loss_type)])
    }

    /// No loss: log-probs and statistics, and coefficients of 0.
    pub const STATISTICS: LossSpec = LossSpec::sum(&[]);

    /// A sum of at most [`MOST_TERMS`] losses; panics beyond.
    pub const fn sum(of: &[Term]) -> Self {
        let mut terms = [Term::of(LossType::Sigmoid); MOST_TERMS];
        let mut i = 0;
        while i < of.len() {
            terms[i] = of[i];
            i += 1;
        }
        Self {
            terms,
            len: of.len(),
            divergence: Divergence::ReverseKl,
            f_alpha: 0.5,
            ld_alpha: None,
            use_weighting: false,
        }
    }

    /// With `param` at `value` in every loss that has it.
    pub const fn with(mut self, param: Param, value: f64) -> Self {
        let mut i = 0;
        while i < self.len {
            if self.terms[i].has(param) {
                self.terms[i].params = self.terms[i].params.with(param, value);
            }
            i += 1;
        }
        self
    }

    /// [`LossSpec::with`] of [`Param::Beta`].
    pub const fn beta(self, value: f64) -> Self {
        self.with(Param::Beta, value)
    }

    /// [`LossSpec::with`] of [`Param::LabelSmoothing`].
    pub const fn label_smoothing(self, value: f64) -> Self {
        self.with(Param::LabelSmoothing, value)
    }

    /// The losses.
    pub fn terms(&self) -> &[Term] {
        &self.terms[..self.len]
    }

    /// Whether one of its losses has `param`.
    pub fn has(&self, param: Param) -> bool {
        self.terms().iter().any(|t| t.has(param))
    }

    /// Their rows of the table.
    pub fn defs(&self) -> impl Iterator<Item = &'static LossDef> {
        self.terms().iter().map(Term::def)
    }

    /// Its name: those of its losses.
    pub fn name(&self) -> String {
        self.defs().map(|d| d.name).collect::<Vec<_>>().join(",")
    }

    /// Whether it is maximum likelihood of single responses and nothing else.
    pub fn is_sft(&self) -> bool {
        self.len == 1 && matches!(self.terms[0].def().rule, Rule::Tokens)
    }

    /// Whether it reads judgements of single responses rather than pairs.
    pub fn is_judged(&self) -> bool {
        self.defs().any(|d| matches!(d.rule, Rule::Judged(_)))
    }

    /// Whether it reads every preference of a prompt at once.
    pub fn is_listwise(&self) -> bool {
        self.defs().any(|d| matches!(d.rule, Rule::List(_)))
    }

    /// Whether it reads reference log-probs.
    pub fn reference(&self) -> bool {
        self.defs().any(|d| d.reference)
    }

    /// Whether it reads the data's scores.
    pub fn scores(&self) -> bool {
        self.defs().any(|d| d.scores)
    }

    /// When its coefficients are known: that of its slowest loss.
    pub fn scope(&self) -> Scope {
        if self.defs().all(|d| d.rule.scope() == Scope::Group) { Scope::Group } else { Scope::Step }
    }

    /// What a reward is in the metrics: this times the log-ratio to the reference, and whether by its mean over tokens. Those
    /// of the first loss that has a beta.
    pub fn reward(&self) -> (f64, bool) {
        let first = self.terms().iter().find(|t| t.has(Param::Beta));
        first.map_or((1.0, false), |t| (t.params[Param::Beta], t.def().mean_reward))
    }

    /// The value of one of its losses of pairs, by formula `f`.
    pub fn pair(&self, term: &Term, f: fn(&Params, &Pair) -> PairLoss, p: &Pair) -> PairLoss {
        if self.divergence == Divergence::ReverseKl || !term.def().reference {
            return f(&term.params, p);
        }
        let [chosen, by_chosen] = self.divergence.reward(self.f_alpha, p.ratio_chosen());
        let [rejected, by_rejected] = self.divergence.reward(self.f_alpha, p.ratio_rejected());
        let got = f(&term.params, &Pair { chosen, rejected, ref_chosen: 0.0, ref_rejected: 0.0, ..*p });
        PairLoss { loss: got.loss, d_chosen: got.d_chosen * by_chosen, d_rejected: got.d_rejected * by_rejected }
    }

    /// The value of one of its losses on a pair alone: nothing for losses that see more than a pair.
    pub fn of_pair(&self, term: &Term, p: &Pair) -> PairLoss {
        match term.def().rule {
            Rule::Pair(f) => self.pair(term, f, p),
            Rule::Tokens => PairLoss { loss: -p.chosen, d_chosen: -1.0, d_rejected: 0.0 },
            _ => PairLoss::default(),
        }
    }

    /// Refuses values outside the formulas' domains, and combinations without a meaning.
    pub fn check(&self) -> Result<()> {
        for (i, term) in self.terms().iter().enumerate() {
            let name = term.def().name;
            if !(term.weight.is_finite() && term.weight >= 0.0) {
                let weight = term.weight;
                return Err(Error::usage(format!("`loss_weights` {weight} (of {name}): must be finite, 0 or more")));
            }
            if self.terms()[..i].iter().any(|t| t.loss_type == term.loss_type) {
                return Err(Error::usage(format!("`loss_type`: {name} stands twice; give it one weight")));
            }
            for (param, _) in term.def().options {
                param.check(term.params[*param])?;
            }
            if term.loss_type == LossType::ExoPair && term.params[Param::LabelSmoothing] == 0.0 {
                let why = "`label_smoothing` 0: exo_pair takes its logarithm; it must be greater than 0";
                return Err(Error::usage(why));
            }
        }
        if self.terms().iter().all(|t| t.weight == 0.0) && self.len > 0 {
            return Err(Error::usage("`loss_weights`: all are 0, nothing would be learned"));
        }
        self.check_combination()
    }

    fn check_combination(&self) -> Result<()> {
        let refuse = |option: &str, bad: fn(&LossDef) -> bool, why: &str| {
            let found = self.defs().find(|d| bad(d));
            found.map_or(Ok(()), |d| Err(Error::usage(format!("`{option}`: not with `loss_type` {}: {why}", d.name))))
        };
        if self.len > 1 && (self.is_judged() || self.is_sft()) {
            return Err(Error::usage("`loss_type`: kto reads judgements, not pairs: it stands alone"));
        }
        if self.divergence != Divergence::ReverseKl {
            if !self.reference() {
                refuse("f_divergence_type", |_| true, "it has no reference")?;
            }
            refuse("f_divergence_type", |d| !d.divergence, "it is not a function of two rewards' difference")?;
        }
        if !(self.f_alpha.is_finite() && self.f_alpha > 0.0) {
            return Err(Error::usage(format!("`f_alpha_divergence_coef` {}: must be greater than 0", self.f_alpha)));
        }
        if let Some(alpha) = self.ld_alpha {
            if !(0.0..=1.0).contains(&alpha) {
                return Err(Error::usage(format!("`ld_alpha` {alpha}: must be in [0, 1]")));
            }
            let bad = |d: &LossDef| !matches!(d.rule, Rule::Pair(_) | Rule::Step(_) | Rule::Tokens);
            refuse("ld_alpha", bad, "its lengths are those of a pair")?;
            let alone = |d: &LossDef| !d.reference && !matches!(d.rule, Rule::Tokens);
            refuse("ld_alpha", alone, "it is a way to compare with a reference")?;
            if !self.reference() {
                refuse("ld_alpha", |_| true, "it is a way to compare with a reference")?;
            }
            let counts_all = |d: &LossDef| d.name == "rpo";
            refuse("ld_alpha", counts_all, "its second term is a mean over all tokens; `sigmoid,sft` is meant")?;
        }
        if self.use_weighting {
            let bad = |d: &LossDef| !matches!(d.rule, Rule::Pair(_) | Rule::Tokens);
            refuse("use_weighting", bad, "it weighs single pairs")?;
        }
        Ok(())
    }
}
