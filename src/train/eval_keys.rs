//! What the evaluations of a run will report, known before it begins.

use super::best::Judge;
use super::kl::KlEstimate;
use super::metrics::Totals;
use super::options::TrainOptions;
use super::samples::{Habits, Sampled};
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// Likeness from which on a key is taken for what was meant, and how many are named.
const NEAR: (f64, usize) = (0.4, 3);

/// The row of an evaluation of the run of `c` as its keys say it, without numbers; `held_out`: whether its own data have such a
/// split. Sets may have nothing of a kind: of judgements none that are desirable, say.
fn row(c: &TrainOptions, held_out: bool) -> Map<String, Value> {
    let spec = c.loss();
    let count = u64::from(!spec.is_sft() && !spec.is_judged());
    let judged = f64::from(u8::from(spec.is_judged()));
    let totals = Totals {
        pairs: count,
        desirable: judged,
        undesirable: judged,
        divergences: u64::from(spec.is_judged()),
        ..Totals::default()
    };
    let own = held_out.then(|| "eval_".to_owned());
    let sets = c.eval.eval_data.iter().map(|set| format!("eval_{}_", set.name));
    let mut row: Map<String, Value> = own.into_iter().chain(sets).flat_map(|at| totals.evaluated(&at)).collect();
    let kl = (c.eval.kl_samples > 0).then(KlEstimate::default);
    let of = if c.eval.sample_prompts == 0 { 0 } else { 1 + usize::from(spec.reference()) };
    row.extend(Sampled { kl, habits: vec![Habits::default(); of], ..Sampled::default() }.metrics());
    row
}

/// Refuses a metric to compare evaluations by that they will not have. Errors: the keys nearest to it, or all.
pub(super) fn refuse_unknown_metric(c: &TrainOptions, held_out: bool) -> Result<()> {
    let Some(metric) = Judge::of(&c.eval).and_then(|judge| judge.metric) else { return Ok(()) };
    let row = row(c, held_out);
    let mut keys: Vec<&str> = row.keys().map(String::as_str).filter(|key| !key.ends_with("_ci95")).collect();
    if keys.contains(&metric.as_str()) {
        return Ok(());
    }
    // Both without what all of them begin with, which would make any two alike.
    let bare = |key: &str| key.trim_start_matches("eval_").to_owned();
    let likeness = |key: &str| strsim::normalized_damerau_levenshtein(&bare(&metric), &bare(key));
    let mut near: Vec<&str> = keys.iter().copied().filter(|key| likeness(key) >= NEAR.0).collect();
    near.sort_by(|a, b| likeness(b).total_cmp(&likeness(a)));
    near.truncate(NEAR.1);
    let near = if near.is_empty() { String::new() } else { format!("; nearest: {}", near.join(", ")) };
    keys.sort_unstable();
    Err(Error::usage(format!(
        "`metric_for_best_model` {metric}: evaluations of this run have no such number{near}; they have {}",
        keys.join(", ")
    )))
}
