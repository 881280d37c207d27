//! A loss at numbers that somebody gives: its value and gradient in f64, with what the formula's letters mean.

use super::pair::{Pair, PairLoss};
use super::spec::{LossSpec, Scales, Term};
use super::step::{Judged, Running, StepPairs};
use super::table::{Lengths, LossDef, Rule};
use crate::error::{Error, Result};

/// The letters of the table's formulas.
pub const NOTATION: &[(&str, &str)] = &[
    ("w", "the policy's log-prob of the chosen response, a sum over its tokens"),
    ("l", "likewise of the rejected response"),
    ("rw", "the reference's log-prob of the chosen response"),
    ("rl", "likewise of the rejected response"),
    ("dw", "w - rw"),
    ("dl", "l - rl"),
    ("dk", "a response's log-prob by the policy, minus that by the reference"),
    ("dj", "likewise"),
    ("h", "dw - dl"),
    ("|w|", "scored tokens of the chosen response"),
    ("|l|", "scored tokens of the rejected response"),
    ("sw", "score of the chosen response"),
    ("sl", "score of the rejected response"),
    ("ls", "log sigmoid"),
    ("s", "sigmoid"),
    ("e", "label_smoothing"),
    ("tau", "discopop_tau"),
    ("D", "desirable_weight"),
    ("U", "undesirable_weight"),
    ("z", "the policy's divergence from the reference, as rows of mismatched prompt and response show it"),
];

/// What is given: sums of log-probs over completion tokens, lengths in tokens, scores; or responses in order of preference.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// Policy log-probability of the chosen response.
    pub chosen: Option<f64>,
    /// Policy log-probability of the rejected response.
    pub rejected: Option<f64>,
    /// Reference log-probability of the chosen response.
    pub ref_chosen: Option<f64>,
    /// Reference log-probability of the rejected response.
    pub ref_rejected: Option<f64>,
    /// Scored tokens of the chosen response.
    pub chosen_len: Option<f64>,
    /// Scored tokens of the rejected response.
    pub rejected_len: Option<f64>,
    /// Score of the chosen response.
    pub chosen_score: Option<f64>,
    /// Score of the rejected response.
    pub rejected_score: Option<f64>,
    /// The policy's divergence from the reference as a step's mismatched rows show it; 0 unless given.
    pub kl: Option<f64>,
    /// Policy log-probabilities of responses, the most preferred first.
    pub logps: Option<Vec<f64>>,
    /// Reference log-probabilities of the same.
    pub ref_logps: Option<Vec<f64>>,
}

/// A loss at what is given, and its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// The loss: of the pair, of the list, or the mean of both judgements.
    pub loss: f64,
    /// Whether it is of a pair; else of a list.
    pub is_pair: bool,
    /// Its derivatives by the policy's log-probs: of chosen and rejected, or of each response of a list.
    pub d: Vec<f64>,
    /// What the metrics call rewards, for each of these; only the first where no rejected response is given.
    pub rewards: Vec<f64>,
    /// The losses of the sum: each with its value and derivatives, weights applied.
    pub terms: Vec<(Term, f64, Vec<f64>)>,
}

impl Given {
    /// Whether nothing is.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn numbers(&self) -> [(&'static str, Option<f64>); 9] {
        [
            ("chosen", self.chosen),
            ("rejected", self.rejected),
            ("ref_chosen", self.ref_chosen),
            ("ref_rejected", self.ref_rejected),
            ("chosen_len", self.chosen_len),
            ("rejected_len", self.rejected_len),
            ("chosen_score", self.chosen_score),
            ("rejected_score", self.rejected_score),
            ("kl", self.kl),
        ]
    }

    /// Refuses what is no sum of log-probs, no length, no score.
    fn check(&self) -> Result<()> {
        let lists = [("logps", &self.logps), ("ref_logps", &self.ref_logps)];
        let listed = lists.into_iter().flat_map(|(name, of)| of.iter().flatten().map(move |x| (name, *x)));
        let single = self.numbers().into_iter().filter_map(|(name, x)| Some((name, x?)));
        for (name, x) in single.chain(listed) {
            let (fine, must) = match name {
                "chosen_len" | "rejected_len" => {
                    (x >= 1.0 && x.is_finite() && x.fract() == 0.0, "a number of tokens: whole, 1 or more")
                }
                "kl" => (x >= 0.0 && x.is_finite(), "a finite number, 0 or more"),
                _ => (x.is_finite(), "a finite number"),
            };
            if !fine {
                let (plain, short) = (x.to_string(), format!("{x:e}"));
                let x = if plain.len() > 24 { short } else { plain };
                return Err(Error::usage(format!("`{name}` {x}: must be {must}")));
            }
        }
        Ok(())
    }

    /// Refuses what `spec` does not read, and names what it needs and was not given.
    fn suits(&self, spec: &LossSpec) -> Result<()> {
        let (name, reads) = (spec.name(), |lengths: &[Lengths]| spec.defs().any(|d| lengths.contains(&d.lengths)));
        if self.kl.is_some() && !spec.is_judged() {
            return Err(Error::usage(format!("`kl`: {name} reads no judgements")));
        }
        let (reference, pair) = (spec.reference(), !spec.is_sft());
        let needs = [
            true,
            pair,
            reference,
            reference && pair,
            reads(&[Lengths::Chosen, Lengths::Both]),
            reads(&[Lengths::Both]),
            spec.scores(),
            spec.scores(),
        ];
        let missing = self.numbers().into_iter().zip(needs).filter(|((_, x), needed)| *needed && x.is_none());
        let missing: Vec<String> = missing.map(|((name, _), _)| format!("`{name}`")).collect();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(Error::usage(format!("{name} also needs {}", missing.join(", ")))),
        }
    }

    /// Log-probs under a reference are facts of a pair, as lengths and scores are: a loss that reads none takes them as 0.
    fn pair(&self, spec: &LossSpec) -> Pair {
        let under_reference = |x: Option<f64>| x.filter(|_| spec.reference()).unwrap_or(0.0);
        Pair {
            chosen: self.chosen.unwrap_or(0.0),
            rejected: self.rejected.unwrap_or(0.0),
            ref_chosen: under_reference(self.ref_chosen),
            ref_rejected: under_reference(self.ref_rejected),
            chosen_len: self.chosen_len.unwrap_or(1.0),
            rejected_len: self.rejected_len.unwrap_or(1.0),
            chosen_score: self.chosen_score.unwrap_or(f64::NAN),
            rejected_score: self.rejected_score.unwrap_or(f64::NAN),
        }
    }
}

/// The letters that `def`'s formula has, and those that these are made of, with their meanings.
pub fn notation(def: &LossDef) -> Vec<(&'static str, &'static str)> {
    let mut found = words(def.formula);
    // Until nothing is added: `h` is `dw - dl`, `dw` is `w - rw`.
    for _ in 0..2 {
        let made =
            NOTATION.iter().filter(|(letter, _)| found.contains(letter)).filter_map(|(_, of)| of.split_once(" - "));
        let parts: Vec<&str> = made.flat_map(|(a, b)| [a, b]).collect();
        found.extend(parts);
    }
    NOTATION.iter().copied().filter(|(letter, _)| found.contains(letter)).collect()
}

/// Names and lengths in a formula.
fn words(formula: &str) -> Vec<&str> {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == '|';
    formula.split(|c| !part(c)).filter(|w| w.starts_with(|c: char| c.is_alphabetic() || c == '|')).collect()
}

/// Value and gradient of `spec` at what is given. Losses of a whole step take the pair as a step of its own; judgements take
/// the chosen response as desirable and the rejected one as undesirable, and the loss is the mean of both.
///
/// Errors: [`Error::Usage`] about what is missing, not read, or outside its domain; about a result that is not finite.
pub fn explain(spec: &LossSpec, given: &Given) -> Result<Explained> {
    spec.check()?;
    given.check()?;
    let explained = match (&given.logps, &given.ref_logps) {
        (None, None) => of_pair(spec, given)?,
        _ => of_list(spec, given)?,
    };
    let finite = explained.d.iter().chain(&explained.rewards).chain([&explained.loss]).all(|x| x.is_finite());
    match finite {
        true => Ok(explained),
        false => Err(Error::usage(format!("{}: no finite value in f64 at these log-probs", spec.name()))),
    }
}

fn of_pair(spec: &LossSpec, given: &Given) -> Result<Explained> {
    given.suits(spec)?;
    let pair = given.pair(spec);
    // A mean over the two judgements, where it is one of judgements.
    let units = if spec.is_judged() { 0.5 } else { 1.0 };
    let scales = Scales { pairs: 1.0, tokens: 1.0 / pair.chosen_len, units };
    let value = |term: &Term| {
        let (got, scale) = (alone(spec, term, &pair, given.kl.unwrap_or(0.0)), term.scale(&scales));
        (*term, scale * got.loss, vec![scale * got.d_chosen, scale * got.d_rejected])
    };
    let (beta, mean) = spec.reward();
    let over = |len: f64| if mean { len } else { 1.0 };
    let mut rewards = vec![beta * pair.ratio_chosen() / over(pair.chosen_len)];
    rewards.extend(given.rejected.map(|_| beta * pair.ratio_rejected() / over(pair.rejected_len)));
    Ok(sum(true, spec.terms().iter().map(value).collect(), rewards))
}

/// One loss on a pair that is all there is.
fn alone(spec: &LossSpec, term: &Term, pair: &Pair, kl: f64) -> PairLoss {
    let (params, ratios) = (&term.params, [pair.ratio_chosen(), pair.ratio_rejected()]);
    match term.def().rule {
        Rule::Pair(_) | Rule::Tokens => spec.of_pair(term, pair),
        Rule::List(f) => {
            let mut d = [0.0; 2];
            PairLoss { loss: f(params, &ratios, &mut d), d_chosen: d[0], d_rejected: d[1] }
        }
        Rule::Step(f) => {
            let step = StepPairs { params, pairs: &[*pair], weights: &[1.0], ids: &[0], seed: [0, 0], trains: false };
            f(&step, &mut Running::default())[0]
        }
        Rule::Judged(f) => {
            let judged = |desirable, policy, reference| Judged { desirable, policy, reference };
            let both = [judged(true, pair.chosen, pair.ref_chosen), judged(false, pair.rejected, pair.ref_rejected)];
            let got = f(params, &both, kl);
            PairLoss { loss: got[0][0] + got[1][0], d_chosen: got[0][1], d_rejected: got[1][1] }
        }
    }
}

fn of_list(spec: &LossSpec, given: &Given) -> Result<Explained> {
    let logps = given.logps.as_deref().unwrap_or_default();
    let ref_logps = given.ref_logps.as_deref().unwrap_or_default();
    let [term] = spec.terms() else { return Err(no_list(spec)) };
    let Rule::List(f) = term.def().rule else { return Err(no_list(spec)) };
    if let Some((name, _)) = given.numbers().into_iter().find(|(_, x)| x.is_some()) {
        return Err(Error::usage(format!("`{name}`: not with `logps`, which names every response")));
    }
    if logps.is_empty() || ref_logps.len() != logps.len() {
        let (k, r) = (logps.len(), ref_logps.len());
        let why = format!("`logps` names {k} responses, `ref_logps` {r}: give both, as many of each");
        return Err(Error::usage(why));
    }
    let ratios: Vec<f64> = logps.iter().zip(ref_logps).map(|(p, r)| p - r).collect();
    let (mut loss, mut d) = (0.0, vec![0.0; ratios.len()]);
    // Each response against all behind it.
    for k in 0..ratios.len() {
        let mut by = vec![0.0; ratios.len() - k];
        loss += f(&term.params, &ratios[k..], &mut by);
        d[k..].iter_mut().zip(by).for_each(|(d, by)| *d += by);
    }
    let scaled = d.iter().map(|d| term.weight * d).collect();
    let rewards = ratios.iter().map(|r| spec.reward().0 * r).collect();
    Ok(sum(false, vec![(*term, term.weight * loss, scaled)], rewards))
}

fn no_list(spec: &LossSpec) -> Error {
    Error::usage(format!("`logps`: {} reads no lists; give `chosen` and `rejected`", spec.name()))
}

fn sum(is_pair: bool, terms: Vec<(Term, f64, Vec<f64>)>, rewards: Vec<f64>) -> Explained {
    let mut d = vec![0.0; terms.first().map_or(0, |(.., d)| d.len())];
    for (.., of) in &terms {
        d.iter_mut().zip(of).for_each(|(d, of)| *d += of);
    }
    Explained { loss: terms.iter().map(|(_, loss, _)| loss).sum(), is_pair, d, rewards, terms }
}
