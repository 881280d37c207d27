//! `fusedpo eval`: loss, rewards, accuracy with its interval, and an estimate of the KL divergence from the reference.

use crate::backend::Backend;
use crate::data::dataset::{Dataset, Split};
use crate::data::plan::{Objective, PlanOptions, Planner};
use crate::device::{self, Task};
use crate::error::{Error, Result};
use crate::loss::{LossSpec, LossType};
use crate::model::{Model, ModelConfig};
use crate::note;
use crate::train::check::{check_data, check_model, longest_row};
use crate::train::config::{DeviceChoice, DtypeChoice};
use crate::train::engine::{Engine, Purpose};
use crate::train::eval::{self, EvalSet};
use crate::train::kl::{self, KlEstimate, KlOptions};
use crate::train::memory::{Budgets, MemoryPlan};
use crate::train::metrics::{Totals, wilson_95};
use crate::train::reference;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Options of `fusedpo eval`.
#[derive(clap::Args)]
pub struct EvalArgs {
    /// Hugging Face directory of the policy
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Hugging Face directory of the reference [default: what MODEL/config.toml names, else the policy itself]
    #[arg(long, value_name = "DIR")]
    pub ref_model: Option<PathBuf>,
    /// Folder of shards; the eval split where there is one, else all
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
    /// Scale of the rewards
    #[arg(long, default_value_t = 0.1)]
    pub beta: f64,
    /// Loss; data without pairs: sft
    #[arg(long, value_enum)]
    pub loss_type: Option<LossType>,
    /// Probability that a label is flipped (cDPO); sigmoid only
    #[arg(long, default_value_t = 0.0)]
    pub label_smoothing: f64,
    /// Prompts to sample a response to, for the KL estimate; 0: none
    #[arg(long, default_value_t = 16)]
    pub kl_samples: usize,
    /// Longest sampled response, in tokens
    #[arg(long, default_value_t = 64)]
    pub kl_max_new_tokens: usize,
    /// Seed of the samples
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Folder for reference sidecars [default: beside the shards]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Token slots of a micro-batch
    #[arg(long)]
    pub token_budget: Option<usize>,
    /// Precision of the matrix products
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: DtypeChoice,
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceChoice,
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> Result<()> {
    let (totals, kl) = device::dispatch(args.device, args.dtype, Eval(args))?;
    if args.json {
        println!("{}", Value::Object(json_row(&totals, kl)));
        return Ok(());
    }
    println!("{}", eval::line(&totals));
    for (key, value) in totals.to_json("") {
        println!("  {key:<22} {}", value.as_f64().map_or_else(|| value.to_string(), |x| format!("{x:.6}")));
    }
    if let Some(kl) = kl {
        println!(
            "  {:<22} {:.4} +- {:.4} nats a response ({} samples of the policy, at most {} tokens)",
            "kl", kl.mean, kl.half_width_95, kl.samples, kl.max_new_tokens
        );
    }
    Ok(())
}

fn json_row(t: &Totals, kl: Option<KlEstimate>) -> Map<String, Value> {
    let mut row = t.to_json("");
    row.insert("pairs".into(), json!(t.pairs));
    row.insert("responses".into(), json!(t.responses));
    if t.pairs > 0 {
        row.insert("accuracy".into(), json!(t.accuracy()));
        row.insert("accuracy_ci95".into(), json!(wilson_95(t.accuracy(), t.pairs)));
    }
    if let Some(kl) = kl {
        row.insert("kl".into(), json!(kl.mean));
        row.insert("kl_ci95".into(), json!([kl.mean - kl.half_width_95, kl.mean + kl.half_width_95]));
        row.insert("kl_samples".into(), json!(kl.samples));
        row.insert("kl_max_new_tokens".into(), json!(kl.max_new_tokens));
    }
    row
}

struct Eval<'a>(&'a EvalArgs);

impl Task for Eval<'_> {
    type Out = (Totals, Option<KlEstimate>);

    fn run<B: Backend>(self, be: &B) -> Result<Self::Out> {
        let a = self.0;
        let split = if Dataset::has_split(&a.data, Split::Eval) { Split::Eval } else { Split::Train };
        let data = Dataset::open(&a.data, split)?;
        check_data(&a.model, &data)?;
        let spec = spec(a, &data)?;
        let paired = spec.loss_type.def().pair.is_some();
        let objective = if paired { Objective::Preference } else { Objective::Sft };
        let options = PlanOptions { objective, batch_size: 64, token_budget: a.token_budget, seed: 0, shuffle: false };
        let plan = Planner::new(&data, &options)?;
        let slots = plan.token_budget();
        let reference_dir = if paired { Some(reference_dir(a)?) } else { None };
        let sidecars = match &reference_dir {
            Some(dir) => {
                check_model(dir, &data)?;
                Some(reference::ensure(be, dir, &data, a.cache.as_deref(), slots)?.0)
            }
            None => None,
        };
        let capacity = plan.capacity();
        let (config, longest) = (ModelConfig::load(&a.model)?, longest_row(&data));
        // Room for samples, where the model has it.
        let positions = longest.max(config.max_position_embeddings.min(longest.saturating_add(a.kl_max_new_tokens)));
        let memory = Budgets::of([&plan]).fitting(be, |c| MemoryPlan::scoring(be, &config, positions, c))?;
        be.reserve(&memory.table)?;
        let set = EvalSet { plan, sidecars };
        let mut engine = Engine::new(be, Model::load(be, &a.model, positions)?, capacity, Purpose::Score)?;
        let totals = eval::evaluate(&mut engine, &set, &spec)?;
        let kl = match reference_dir {
            Some(dir) if a.kl_samples > 0 => {
                let o = KlOptions { samples: a.kl_samples, max_new_tokens: a.kl_max_new_tokens, seed: a.seed };
                kl::estimate(be, &engine.model, &dir, &data, &o)?
            }
            _ => None,
        };
        Ok((totals, kl))
    }
}

fn spec(a: &EvalArgs, data: &Dataset) -> Result<LossSpec> {
    let default = if data.num_pairs() > 0 { LossType::Sigmoid } else { LossType::Sft };
    let spec = LossSpec { loss_type: a.loss_type.unwrap_or(default), beta: a.beta, label_smoothing: a.label_smoothing };
    spec.check()?;
    if a.kl_samples > 0 && a.kl_max_new_tokens == 0 {
        return Err(Error::usage("--kl-max-new-tokens 0: must be 1 or more; --kl-samples 0 leaves the estimate out"));
    }
    Ok(spec)
}

/// The reference: as asked, or what the run that made the policy started from, or the policy.
fn reference_dir(a: &EvalArgs) -> Result<PathBuf> {
    if let Some(dir) = &a.ref_model {
        return Ok(dir.clone());
    }
    let path = a.model.join("config.toml");
    let Ok(text) = std::fs::read_to_string(&path) else {
        note!("no --ref-model: rewards are measured against the policy itself, and are 0");
        return Ok(a.model.clone());
    };
    let run: toml::Table =
        text.parse().map_err(|_| Error::file(&path, "not valid TOML; name the reference with --ref-model"))?;
    let named = ["ref_model", "model"].iter().find_map(|k| run.get(*k)?.as_str());
    match named.map(Path::new) {
        Some(dir) if dir.is_dir() => {
            note!("reference: {} (from {})", dir.display(), path.display());
            Ok(dir.to_owned())
        }
        Some(dir) => Err(Error::file(
            &path,
            format!("names the reference {}, which is not there; use --ref-model", dir.display()),
        )),
        None => Err(Error::file(&path, "names no model; use --ref-model")),
    }
}
