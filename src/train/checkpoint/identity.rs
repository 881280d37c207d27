//! All that decides a bit of a run, beside its state: a checkpoint keeps it, and a run of another does not go on from there.

use crate::choice::Choice;
use crate::data::shard::Dataset;
use crate::data::shard::format::hex;
use crate::error::{Error, Result};
use crate::files;
use crate::model::ModelDir;
use crate::train::options::TrainOptions;
use crate::train::schedule::{Schedule, SchedulerType};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Options that change no bit of what is learned, or whose effect is in another field: where things lie, how long the run is,
/// how it is computed (the numerics say), how often it looks and saves. Every other option must stay what it was.
const FREE: &[&str] = &[
    "model",
    "data",
    "ref_model",
    "adapter",
    "cache",
    "matmul_plans",
    "dtype",
    "device",
    "gradient_checkpointing",
    "cuda_graphs",
    "token_budget",
    "max_steps",
    "num_train_epochs",
    "warmup_steps",
    "warmup_ratio",
    "eval_strategy",
    "eval_steps",
    "max_eval_samples",
    "eval_data",
    "kl_samples",
    "kl_max_new_tokens",
    "kl_budget",
    "sample_prompts",
    "sample_max_new_tokens",
    "sample_temperature",
    "load_best_model_at_end",
    "early_stopping_patience",
    "early_stopping_threshold",
    "ledger",
    "save_dtype",
    "save_steps",
    "save_total_limit",
    "report_to",
];

const MAX_EVAL_SAMPLES: &str = "max_eval_samples";

/// Longest file of tuned products: a line a shape.
const MOST_PLANS: u64 = 64 << 20;

/// What a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Of the training split: over its shards' contents.
    pub train_sha256: String,
    /// Of the held-out split, where there is one.
    pub eval_sha256: Option<String>,
    /// Of the model that the run started from: weights and configuration.
    pub model_sha256: String,
    /// Of the reference, where the loss has one; with the numerics it decides the sidecars.
    pub reference_sha256: Option<String>,
    /// Backend, dtype, SIMD level or GPU, kernels.
    pub numerics: String,
    /// Numerics of the steps before, where the run went on with others.
    pub numerics_before: Vec<String>,
    /// File of tuned products, where there is one.
    pub plans: Option<Plans>,
    /// Token slots of a micro-batch.
    pub token_budget: u64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Every option that decides a bit; and beside these, not compared, `max_eval_samples`: what an evaluation was of.
    pub options: Map<String, Value>,
}

/// A file that only grows: what it held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plans {
    /// Bytes.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: String,
}

impl Plans {
    /// Of the file as it is now; an absent one is empty.
    pub fn of(path: &Path) -> Result<Self> {
        let bytes = if path.exists() { files::read(path, MOST_PLANS)? } else { Vec::new() };
        Ok(Self { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(&bytes)) })
    }

    /// Whether the file still begins so.
    fn is_beginning_of(&self, path: &Path) -> bool {
        let bytes = files::read(path, MOST_PLANS).unwrap_or_default();
        bytes.get(..self.bytes as usize).is_some_and(|b| hex(&Sha256::digest(b)) == self.sha256)
    }
}

/// The content of a data set in 64 hexadecimal digits.
pub fn data_sha256(data: &Dataset) -> String {
    let mut sha = Sha256::new();
    data.shards().iter().for_each(|s| sha.update(s.content_sha256()));
    hex(&sha.finalize())
}

/// Every option of `c` that decides a bit by its value alone.
pub fn deciding(c: &TrainOptions) -> Result<Map<String, Value>> {
    let Ok(Value::Object(mut options)) = serde_json::to_value(c) else {
        return Err(Error::usage("an option's value cannot be written down"));
    };
    options.retain(|key, value| !FREE.contains(&key.as_str()) && !value.is_null());
    Ok(options)
}

impl Identity {
    /// Of a run of `c` on `splits`, training first.
    pub fn of(
        c: &TrainOptions,
        splits: &[Dataset],
        (model, reference): (&ModelDir, Option<&ModelDir>),
        numerics: String,
        token_budget: usize,
        schedule: &Schedule,
    ) -> Result<Self> {
        let mut options = deciding(c)?;
        // Of a loaded adapter its files say it, where nobody else does.
        options.remove("lora_dropout");
        if let Some(adapter) = model.config().adapter.filter(|a| a.dropout > 0.0) {
            options.insert("lora_dropout".into(), adapter.dropout.into());
        }
        options.extend(c.eval.max_eval_samples.map(|most| (MAX_EVAL_SAMPLES.to_owned(), most.into())));
        Ok(Self {
            train_sha256: data_sha256(&splits[0]),
            eval_sha256: splits.get(1).map(data_sha256),
            model_sha256: hex(&model.identity()?),
            reference_sha256: reference.map(|r| r.identity().map(|sha| hex(&sha))).transpose()?,
            numerics,
            numerics_before: Vec::new(),
            plans: c.compute.matmul_plans.as_deref().map(Plans::of).transpose()?,
            token_budget: token_budget as u64,
            warmup: schedule.warmup,
            options,
        })
    }

    /// Samples of the held-out split that evaluations looked at, at most; `None`: all.
    pub fn max_eval_samples(&self) -> Option<u64> {
        self.options.get(MAX_EVAL_SAMPLES).and_then(Value::as_u64)
    }

    /// Why a run that is `now` cannot go on from here, `options` being its options and `schedule` its rates; the numerics
    /// aside. `max_steps` is what the checkpoint's run was asked for. What differs, and what to do.
    pub fn difference(&self, now: &Self, c: &TrainOptions, schedule: &Schedule, max_steps: u64) -> Option<String> {
        let new = "or name a new `options.out`";
        let other = |what: &str, was: &str, is: &str, instead: &str| {
            (was != is).then(|| {
                let short = |sha: &str| if sha.is_empty() { "none".to_owned() } else { format!("{:.16}...", sha) };
                format!("{what} ({}, now {}): {instead}, {new}", short(was), short(is))
            })
        };
        let none = |sha: &Option<String>| sha.clone().unwrap_or_default();
        let packed = "were the rows packed again? Give the shards of that time";
        let stage = |of: &Self| of.options.get("stage").and_then(Value::as_str).unwrap_or_default().to_owned();
        if stage(self) != stage(now) {
            return Some(format!("is of a run of {}, this is {}: name a new `options.out`", stage(self), stage(now)));
        }
        other("was made on another content of the training shards", &self.train_sha256, &now.train_sha256, packed)
            .or_else(|| {
                let what = "was made with another content of the held-out shards";
                other(what, &none(&self.eval_sha256), &none(&now.eval_sha256), packed)
            })
            .or_else(|| {
                let what = "was trained from another model";
                other(what, &self.model_sha256, &now.model_sha256, "give the `options.model` that the run started from")
            })
            .or_else(|| {
                let what = "was trained with another reference";
                let instead = "give the `options.ref_model` of that time";
                other(what, &none(&self.reference_sha256), &none(&now.reference_sha256), instead)
            })
            .or_else(|| self.other_option(now).map(|why| format!("{why}, {new}")))
            .or_else(|| self.other_length(now, schedule, max_steps).map(|why| format!("{why}, {new}")))
            .or_else(|| self.other_plans(c.compute.matmul_plans.as_deref()).map(|why| format!("{why}, {new}")))
    }

    fn other_option(&self, now: &Self) -> Option<String> {
        let keys = self.options.keys().chain(now.options.keys().filter(|k| !self.options.contains_key(*k)));
        // What is compared with what may change where comparing begins or ends.
        let absent = |of: &Self, key: &str| of.options.get(key).is_none_or(Value::is_null);
        let newly = |key: &str| {
            ["metric_for_best_model", "greater_is_better"].contains(&key) && (absent(self, key) || absent(now, key))
        };
        for key in keys.filter(|key| !FREE.contains(&key.as_str()) && !newly(key)) {
            let (was, is) = (self.options.get(key), now.options.get(key));
            if was != is {
                let said = |v: Option<&Value>| v.map_or("not given".to_owned(), |v| v.to_string().replace('"', ""));
                let back = was.map_or("leave it out".to_owned(), |_| format!("give {}", said(was)));
                return Some(format!("`options.{key}` was {}, and is {} now: {back}", said(was), said(is)));
            }
        }
        let (was, is) = (self.token_budget, now.token_budget);
        (was != is).then(|| format!("`options.token_budget` was {was}, and is {is} now: give {was}"))
    }

    /// How long the run is, where its rates depend on that.
    fn other_length(&self, now: &Self, s: &Schedule, max_steps: u64) -> Option<String> {
        if s.total != max_steps && s.kind != SchedulerType::Constant {
            return Some(format!(
                "the run had {max_steps} steps, now {}, and the rates of its {} schedule depend on that: give `options.max_steps` {max_steps}",
                s.total,
                s.kind.name()
            ));
        }
        let (was, is) = (self.warmup, now.warmup);
        (was != is).then(|| {
            format!("its warm-up had {was} steps, now {is} (a share of all): give `options.warmup_steps` {was}")
        })
    }

    fn other_plans(&self, path: Option<&Path>) -> Option<String> {
        match (&self.plans, path) {
            (Some(plans), Some(path)) if plans.is_beginning_of(path) => None,
            (None, None) => None,
            (Some(_), Some(path)) => Some(format!(
                "its products' algorithms were others than in {}: give the `options.matmul_plans` of that time",
                path.display()
            )),
            (Some(_), None) => Some("it had `options.matmul_plans`: give that file".to_owned()),
            (None, Some(_)) => Some("it had no `options.matmul_plans`: leave it out".to_owned()),
        }
    }
}
