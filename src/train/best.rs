//! What follows from evaluations: which was the best, and whether the run has gone far enough. As transformers has it
//! (`Trainer._determine_best_metric`, `EarlyStoppingCallback`); the evaluation before the first step is not among them.

use super::eval_options::EvalOptions;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The best evaluation so far, and for how long there was no better one: part of the clock, as it decides where a run ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watched {
    /// The best.
    pub best: Option<Best>,
    /// Evaluations since, in a row, that were not better by more than the threshold.
    pub waited: u64,
}

impl Watched {
    /// Whether nothing was compared yet.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// An evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Steps taken before it.
    pub step: u64,
    /// What it is compared by.
    pub value: f64,
}

/// How evaluations are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Judge {
    /// The key of a row of an evaluation that says which is the best, where that matters.
    pub metric: Option<String>,
    greater: bool,
    /// Evaluations, and by how much one must be better.
    patience: Option<(u64, f64)>,
    /// How far from the reference the run goes, nats.
    kl_budget: Option<f64>,
}

/// The key of the divergence from the reference.
pub const KL: &str = "eval_kl";

/// What an evaluation was.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Whether none before was better.
    pub is_best: bool,
    /// Why the run ends here, where it does.
    pub ends: Option<String>,
}

impl Judge {
    /// As resolved options say; `None`: nothing is compared.
    pub fn of(o: &EvalOptions) -> Option<Self> {
        let named =
            |metric: &String| if metric.starts_with("eval_") { metric.clone() } else { format!("eval_{metric}") };
        let metric = o.metric_for_best_model.as_ref().map(named);
        let patience = o.early_stopping_patience.zip(o.early_stopping_threshold);
        let this = Self { metric, greater: o.greater_is_better.unwrap_or(false), patience, kl_budget: o.kl_budget };
        (this.metric.is_some() || this.kl_budget.is_some()).then_some(this)
    }

    /// Refuses a metric that `row`, of an evaluation, does not have. Errors: its numbers by name.
    pub fn check(&self, row: &Map<String, Value>) -> Result<()> {
        let Some(metric) = &self.metric else { return Ok(()) };
        // What is not finite stands there as `null`.
        if row.get(metric).is_some_and(|value| value.is_number() || value.is_null()) {
            return Ok(());
        }
        let keys = row.iter().filter(|(key, value)| key.starts_with("eval_") && value.is_number());
        let keys: Vec<&str> = keys.map(|(key, _)| key.as_str()).filter(|key| !key.ends_with("_seconds")).collect();
        Err(Error::usage(format!(
            "`metric_for_best_model` {metric}: evaluations of this run have no such number; they have {}",
            keys.join(", ")
        )))
    }

    /// Takes the evaluation after `step` steps, whose numbers are `row`.
    pub fn take(&self, watched: &mut Watched, step: u64, row: &Map<String, Value>) -> Judged {
        let number = |key: &str| row.get(key).and_then(Value::as_f64);
        let budget = self.kl_budget.zip(number(KL)).filter(|(budget, kl)| kl >= budget);
        let mut ends = budget.map(|(budget, kl)| format!("{KL} {kl} has reached the budget of {budget} nats"));
        let Some(metric) = &self.metric else { return Judged { is_best: false, ends } };
        let value = number(metric).filter(|x| x.is_finite());
        let (best, better) = (watched.best, |x: f64, than: f64| if self.greater { x > than } else { x < than });
        let is_best = value.is_some_and(|x| best.is_none_or(|best| better(x, best.value)));
        if let Some((patience, threshold)) = self.patience {
            let improves = |x: f64| best.is_none_or(|b| better(x, b.value) && (x - b.value).abs() > threshold);
            watched.waited = if value.is_some_and(improves) { 0 } else { watched.waited + 1 };
            if watched.waited >= patience {
                let times = if patience == 1 { "one evaluation".to_owned() } else { format!("{patience} evaluations") };
                ends.get_or_insert_with(|| format!("{times} in a row without a better {metric}"));
            }
        }
        if let (true, Some(value)) = (is_best, value) {
            watched.best = Some(Best { step, value });
        }
        Judged { is_best, ends }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(patience: Option<u64>, threshold: f64, greater: bool) -> Judge {
        let o = EvalOptions {
            eval_steps: 1,
            metric_for_best_model: Some("m".into()),
            greater_is_better: Some(greater),
            early_stopping_patience: patience,
            early_stopping_threshold: patience.map(|_| threshold),
            ..Default::default()
        };
        Judge::of(&o).unwrap()
    }

    fn row(value: f64) -> Map<String, Value> {
        json!({"step": 1, "eval_m": value, "eval_other": 1.0, "eval_m_ci95": [0.0, 1.0]}).as_object().unwrap().clone()
    }

    fn series(judge: &Judge, values: &[f64]) -> (Watched, Vec<bool>, Option<u64>) {
        let (mut watched, mut bests, mut end) = (Watched::default(), Vec::new(), None);
        for (step, value) in (1..).zip(values) {
            let judged = judge.take(&mut watched, step, &row(*value));
            bests.push(judged.is_best);
            if judged.ends.is_some() {
                end.get_or_insert(step);
            }
        }
        (watched, bests, end)
    }

    #[test]
    fn the_best_is_the_first_of_equals_and_no_number_is_none() {
        let (watched, bests, end) = series(&judge(None, 0.0, false), &[f64::NAN, 0.7, 0.5, 0.5, 0.6, f64::NAN, 0.4]);
        assert_eq!(bests, [false, true, true, false, false, false, true]);
        assert_eq!((watched.best, end), (Some(Best { step: 7, value: 0.4 }), None));
        let (watched, ..) = series(&judge(None, 0.0, true), &[0.7, 0.5, 0.8, 0.8]);
        assert_eq!(watched.best, Some(Best { step: 3, value: 0.8 }));
    }

    /// By hand from `EarlyStoppingCallback.check_metric_value`: compared with the best of before, which a small step moves too.
    #[test]
    fn patience_ends_a_run_and_small_steps_do_not_renew_it() {
        let down = [1.0, 0.9, 0.95, 0.85, 0.9, 0.9];
        assert_eq!(series(&judge(Some(2), 0.0, false), &down).2, Some(6));
        assert_eq!(series(&judge(Some(1), 0.0, false), &down).2, Some(3));
        assert_eq!(series(&judge(Some(9), 0.0, false), &down).2, None);
        // 0.9 is better than 1.0 by less than 0.2, and so on: none of it renews the patience, but each is the best.
        let (watched, bests, end) = series(&judge(Some(3), 0.2, false), &[1.0, 0.9, 0.8, 0.7]);
        assert_eq!((bests, end), (vec![true; 4], Some(4)));
        assert_eq!(watched, Watched { best: Some(Best { step: 4, value: 0.7 }), waited: 3 });
    }

    #[test]
    fn a_budget_ends_a_run_at_the_first_evaluation_that_reaches_it() {
        let judge = Judge::of(&EvalOptions { kl_budget: Some(6.0), ..Default::default() }).unwrap();
        let mut watched = Watched::default();
        let ends = [5.9, f64::NAN, 6.0, 7.0].map(|kl| {
            let row = json!({ KL: kl }).as_object().unwrap().clone();
            judge.take(&mut watched, 1, &row).ends.is_some()
        });
        assert_eq!((ends, watched), ([false, false, true, true], Watched::default()));
    }

    #[test]
    fn a_metric_that_is_not_there_is_named() {
        let judge = judge(None, 0.0, true);
        judge.check(&row(1.0)).unwrap();
        judge.check(&row(f64::NAN)).unwrap();
        let other = Judge { metric: Some("eval_x".into()), ..judge };
        let e = other.check(&row(1.0)).unwrap_err().to_string();
        assert!(e.ends_with("they have eval_m, eval_other"), "{e}");
        assert!(Judge { metric: Some("eval_m_ci95".into()), ..other }.check(&row(1.0)).is_err());
    }
}
