//! Options of the evaluation during a run: on what, how often, and what follows from it.

use super::group::{Group, finite_from_0, options};
use crate::choice;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

choice! {
    /// Whether a run evaluates on what is held out.
    pub enum EvalStrategy: default Steps {
        /// Never, though something is held out.
        No = "no",
        /// Before the first step, after the last, and every so often where that is said.
        Steps = "steps",
    }
}

impl EvalStrategy {
    /// As serde asks.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Longest name of a set.
const LONGEST_NAME: usize = 64;

/// A data set beside the run's own that is evaluated, and the name that its metrics have: written `NAME=DIR`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamedData {
    /// Its name: of `eval_NAME_loss` and the like.
    pub name: String,
    /// Folder of shards.
    pub data: PathBuf,
}

impl std::str::FromStr for NamedData {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, data)) = text.split_once('=').filter(|(_, data)| !data.is_empty()) else {
            return Err(format!("`{text}` is not NAME=DIR"));
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(plain) {
            return Err(format!(
                "`{name}` names no set: give 1 to {LONGEST_NAME} of the letters a to z and A to Z, digits, `_`, `.` and `-`"
            ));
        }
        Ok(Self { name: name.to_owned(), data: data.into() })
    }
}

impl TryFrom<String> for NamedData {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NamedData> for String {
    fn from(set: NamedData) -> Self {
        set.to_string()
    }
}

impl fmt::Display for NamedData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.data.display())
    }
}

options! {
    /// Evaluation during a run.
    pub struct EvalOptions {
        /// Whether there is any.
        #[serde(skip_serializing_if = "EvalStrategy::is_default")]
        eval_strategy: EvalStrategy = EvalStrategy::Steps;
        /// Steps between evaluations; 0: before the first and after the last only.
        eval_steps: u64 = 0;
        /// Pairs (SFT: responses) of each held-out set that are looked at, the first ones, rounded up to whole steps; `None`: all.
        max_eval_samples: Option<u64> = None, in given_positive, "1 or more";
        /// Sets beside the held-out split of the run's data, each under its name.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        eval_data: Vec<NamedData> = Vec::new();
        /// Prompts to sample a response of the policy to at each evaluation, for how far it is from the reference; 0: none.
        #[serde(skip_serializing_if = "is_0")]
        kl_samples: usize = 0;
        /// Longest of those responses, tokens; `None`: 64, where there are some.
        kl_max_new_tokens: Option<usize> = None, in given_some, "1 or more";
        /// The divergence from the reference, nats a response, at which the run ends; `None`: it goes on.
        kl_budget: Option<f64> = None, in given_positive_number, "a finite number above 0";
        /// Prompts that policy and reference continue at each evaluation, in `RUN/samples.jsonl`; 0: none.
        #[serde(skip_serializing_if = "is_0")]
        sample_prompts: usize = 0;
        /// Longest of those continuations, tokens; `None`: 64, where there are some.
        sample_max_new_tokens: Option<usize> = None, in given_some, "1 or more";
        /// Their temperature; `None`: 0, the likeliest token each time.
        sample_temperature: Option<f64> = None, in given_from_0, "0 or more";
        /// Whether the result is the checkpoint of the best evaluation, and not what the last step left.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        load_best_model_at_end: bool = false;
        /// What evaluations are compared by; `None`: `loss`, where something depends on it.
        metric_for_best_model: Option<String> = None;
        /// Whether more of it is better; `None`: unless its name ends in `loss`, `kl` or `samples/repeated`.
        greater_is_better: Option<bool> = None;
        /// Evaluations in a row without a better one that end the run; `None`: it goes on.
        early_stopping_patience: Option<u64> = None, in given_positive, "1 or more";
        /// What is better by no more than this is not better for `early_stopping_patience`; `None`: 0.
        early_stopping_threshold: Option<f64> = None, in given_from_0, "0 or more";
    }
}

fn given_positive(n: &Option<u64>) -> bool {
    *n != Some(0)
}

fn given_some(n: &Option<usize>) -> bool {
    *n != Some(0)
}

fn given_positive_number(x: &Option<f64>) -> bool {
    x.is_none_or(|x| x.is_finite() && x > 0.0)
}

fn is_0(n: &usize) -> bool {
    *n == 0
}

fn given_from_0(x: &Option<f64>) -> bool {
    x.as_ref().is_none_or(finite_from_0)
}

impl EvalOptions {
    /// Checks them, and fills in what depends on others. Errors: what says how to evaluate, or what to do after it, where nothing
    /// is evaluated; what has no effect; two sets of one name.
    pub(super) fn resolve(&mut self) -> Result<()> {
        self.check()?;
        let of_some = [
            ("eval_steps", self.eval_steps > 0),
            ("max_eval_samples", self.max_eval_samples.is_some()),
            ("eval_data", !self.eval_data.is_empty()),
            ("kl_samples", self.kl_samples > 0),
            ("sample_prompts", self.sample_prompts > 0),
            ("load_best_model_at_end", self.load_best_model_at_end),
            ("early_stopping_patience", self.early_stopping_patience.is_some()),
        ];
        if let Some((key, _)) = of_some.iter().find(|(_, given)| *given && self.eval_strategy == EvalStrategy::No) {
            return Err(Error::usage(format!(
                "`{key}`: with `eval_strategy` no nothing is evaluated; leave one of them out"
            )));
        }
        for (i, set) in self.eval_data.iter().enumerate() {
            if self.eval_data[..i].iter().any(|other| other.name == set.name) {
                return Err(Error::usage(format!(
                    "`eval_data`: two sets have the name {}; give each its own",
                    set.name
                )));
            }
        }
        self.resolve_samples()?;
        self.resolve_best()
    }

    fn resolve_samples(&mut self) -> Result<()> {
        let without = [
            ("kl_max_new_tokens", self.kl_max_new_tokens.is_some() && self.kl_samples == 0, "kl_samples"),
            ("kl_budget", self.kl_budget.is_some() && self.kl_samples == 0, "kl_samples"),
            (
                "sample_max_new_tokens",
                self.sample_max_new_tokens.is_some() && self.sample_prompts == 0,
                "sample_prompts",
            ),
            ("sample_temperature", self.sample_temperature.is_some() && self.sample_prompts == 0, "sample_prompts"),
        ];
        if let Some((key, _, needs)) = without.into_iter().find(|(_, alone, _)| *alone) {
            return Err(Error::usage(format!("`{key}` has no effect without `{needs}`; leave it out, or give both")));
        }
        if self.kl_samples > 0 {
            self.kl_max_new_tokens.get_or_insert(64);
        }
        if self.sample_prompts > 0 {
            self.sample_max_new_tokens.get_or_insert(64);
            self.sample_temperature.get_or_insert(0.0);
        }
        Ok(())
    }

    fn resolve_best(&mut self) -> Result<()> {
        let chooses = [
            ("load_best_model_at_end", self.load_best_model_at_end),
            ("early_stopping_patience", self.early_stopping_patience.is_some()),
        ];
        let ends = [chooses[0], chooses[1], ("kl_budget", self.kl_budget.is_some())];
        if let Some((key, _)) = ends.iter().find(|(_, given)| *given && self.eval_steps == 0) {
            return Err(Error::usage(format!(
                "`{key}`: without `eval_steps` the run is evaluated before its first step and after its last, and there is \
                 nothing to choose from; give `eval_steps`"
            )));
        }
        let threshold = self.early_stopping_threshold.is_some();
        if threshold && self.early_stopping_patience.is_none() {
            let why = "`early_stopping_threshold` has no effect without `early_stopping_patience`; leave it out, or give both";
            return Err(Error::usage(why));
        }
        if !chooses.iter().any(|(_, given)| *given) {
            let of_a_choice = [
                ("metric_for_best_model", self.metric_for_best_model.is_some()),
                ("greater_is_better", self.greater_is_better.is_some()),
            ];
            return of_a_choice.iter().find(|(_, given)| *given).map_or(Ok(()), |(key, _)| {
                Err(Error::usage(format!(
                    "`{key}` has no effect without `load_best_model_at_end` or `early_stopping_patience`; leave it out, or give \
                     one of them"
                )))
            });
        }
        let metric = self.metric_for_best_model.get_or_insert_with(|| "loss".to_owned());
        if self.greater_is_better.is_none() && NEITHER.iter().any(|end| metric.ends_with(end)) {
            return Err(Error::usage(format!(
                "`metric_for_best_model` {metric}: neither more nor less of it is better by itself; say which by `greater_is_better`"
            )));
        }
        self.greater_is_better.get_or_insert(!LESS.iter().any(|end| metric.ends_with(end)));
        if self.early_stopping_patience.is_some() {
            self.early_stopping_threshold.get_or_insert(0.0);
        }
        Ok(())
    }

    /// Whether evaluations are compared with one another.
    pub fn compares(&self) -> bool {
        self.metric_for_best_model.is_some()
    }
}

/// Ends of metrics of which less is better: as in transformers a loss; and nobody wishes for a divergence or repetitions that grow.
const LESS: [&str; 4] = ["loss", "kl", "kl_mismatched", "samples/repeated"];
/// Ends of those that have no good direction, or are none of the model's.
const NEITHER: [&str; 4] = ["entropy", "samples/tokens", "/rejected", "_reference"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_a_direction_or_are_given_one() {
        let of = |metric: &str, greater: Option<bool>| {
            let mut o = EvalOptions {
                eval_steps: 1,
                load_best_model_at_end: true,
                metric_for_best_model: Some(metric.to_owned()),
                greater_is_better: greater,
                ..Default::default()
            };
            o.resolve_best().map(|()| o.greater_is_better.unwrap())
        };
        for metric in ["loss", "eval_hard_loss", "eval_kl", "eval_kl_mismatched", "samples/repeated"] {
            assert!(!of(metric, None).unwrap(), "{metric}");
        }
        for metric in ["rewards/margins", "eval_rewards/accuracies", "logps/chosen", "samples/finished"] {
            assert!(of(metric, None).unwrap(), "{metric}");
        }
        for metric in ["entropy", "eval_logps/rejected", "samples/tokens", "samples/repeated_reference"] {
            assert!(of(metric, None).unwrap_err().to_string().contains("say which by `greater_is_better`"), "{metric}");
            assert!(!of(metric, Some(false)).unwrap(), "{metric}");
        }
    }

    #[test]
    fn sets_have_names_and_folders() {
        let set: NamedData = "hard.1=a=b/c".parse().unwrap();
        assert_eq!((set.name.as_str(), set.data.to_str()), ("hard.1", Some("a=b/c")));
        assert_eq!(set.to_string(), "hard.1=a=b/c");
        for bad in ["", "a", "a=", "=d", "a b=d", "a/b=d", "\u{e9}=d", &format!("{}=d", "x".repeat(65))] {
            assert!(bad.parse::<NamedData>().is_err(), "{bad}");
        }
    }
}
