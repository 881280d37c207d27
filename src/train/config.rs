//! Training options: what the user typed ([`TrainArgs`]), merged with `--config` and checked ([`TrainConfig`]).
//!
//! Every option is also a key of the TOML file, with `_` for `-`; flags win. `RUN/config.toml` holds every resolved
//! value but `out`, so that `--config RUN/config.toml --out RUN2` repeats the run.

use super::schedule::SchedulerType;
use crate::choice;
use crate::commands::choice::named;
use crate::error::{Error, Result};
use crate::loss::{LossSpec, LossType};
use crate::model::SaveDtype;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Most epochs: beyond it, counting the steps alone would not end.
const MAX_EPOCHS: f64 = 1e6;

choice! {
    /// Where to compute.
    pub enum DeviceChoice: default Auto {
        /// A GPU where one can be used, else the CPU.
        Auto = "auto",
        /// The CPU.
        Cpu = "cpu",
        /// The first NVIDIA GPU; an error where there is none.
        Cuda = "cuda",
    }
}

choice! {
    /// Precision of the matrix products.
    pub enum DtypeChoice: default Auto {
        /// f32 on the CPU, bf16 on a GPU.
        Auto = "auto",
        /// Single precision throughout.
        F32 = "f32" | "float32",
        /// bf16 inputs, fp32 accumulation, fp32 master weights.
        Bf16 = "bf16" | "bfloat16",
    }
}

choice! {
    /// Whether passes through the layers are recorded and replayed as CUDA graphs.
    pub enum GraphsChoice: default Auto {
        /// Off until a measurement on a GPU says otherwise.
        Auto = "auto",
        /// Recorded; an error on a device that cannot.
        On = "on",
        /// Launched op by op.
        Off = "off",
    }
}

choice! {
    /// Optimiser, by Hugging Face's name where it has one.
    pub enum OptimizerChoice: default Adamw {
        /// Decoupled weight decay (Loshchilov & Hutter 2019).
        Adamw = "adamw",
        /// The DPO paper's choice.
        Rmsprop = "rmsprop",
    }
}

/// Which stage a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Supervised fine-tuning on completions.
    Sft,
    /// Preference optimisation.
    Dpo,
}

/// Training options as typed; `None` means not given.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
pub struct TrainArgs {
    /// Hugging Face directory of the starting policy
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Folder of shards written by `fusedpo pack`
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// New folder for the trained model, metrics.jsonl and config.toml
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// TOML file with any of these options as keys (`learning_rate = 1e-6`); flags win
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Peak learning rate [default: 1e-6]
    #[arg(long)]
    pub learning_rate: Option<f64>,
    /// Schedule after warm-up [default: linear]
    #[arg(long, value_parser = named::<SchedulerType>())]
    pub lr_scheduler_type: Option<SchedulerType>,
    /// Steps of linear warm-up [default: 0]
    #[arg(long)]
    pub warmup_steps: Option<u64>,
    /// Warm-up as a share of all steps [default: 0]
    #[arg(long)]
    pub warmup_ratio: Option<f64>,
    /// Decay of matrices and embeddings, not of norms and biases [default: 0]
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// Gradient norm to clip to; 0: no clipping [default: 1]
    #[arg(long)]
    pub max_grad_norm: Option<f64>,
    /// AdamW's first decay [default: 0.9]
    #[arg(long)]
    pub adam_beta1: Option<f64>,
    /// AdamW's second decay [default: 0.999]
    #[arg(long)]
    pub adam_beta2: Option<f64>,
    /// Added to the root of the second moment, RMSprop's too [default: 1e-8]
    #[arg(long)]
    pub adam_epsilon: Option<f64>,
    /// Optimiser [default: adamw]
    #[arg(long, value_parser = named::<OptimizerChoice>())]
    pub optim: Option<OptimizerChoice>,
    /// Pairs (sft: responses) a step, at least; a step takes whole groups [default: 8]
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Token slots of a micro-batch [default: 2048, or what the largest pair needs]
    #[arg(long)]
    pub token_budget: Option<usize>,
    /// Steps; wins over --num-train-epochs
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Passes over the data; may be a fraction [default: 1]
    #[arg(long)]
    pub num_train_epochs: Option<f64>,
    /// Precision of the matrix products [default: auto]
    #[arg(long, value_parser = named::<DtypeChoice>())]
    pub dtype: Option<DtypeChoice>,
    /// Precision of the saved weights [default: source]
    #[arg(long, value_parser = named::<SaveDtype>())]
    pub save_dtype: Option<SaveDtype>,
    /// Seed of the data order [default: 42]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where to compute [default: auto]
    #[arg(long, value_parser = named::<DeviceChoice>())]
    pub device: Option<DeviceChoice>,
    /// Evaluate every N steps on the eval split; 0: before the first and after the last step [default: 0]
    #[arg(long, value_name = "N")]
    pub eval_steps: Option<u64>,
    /// Keep only the input of each layer and compute the rest again in the backward pass: less memory, a quarter to a
    /// third more work, the same bits [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub gradient_checkpointing: Option<bool>,
    /// Replay the layers' passes as CUDA graphs: same bits, fewer launches; auto is off, as the gain has not been measured
    /// on a GPU yet [default: auto]
    #[arg(long, value_parser = named::<GraphsChoice>())]
    pub cuda_graphs: Option<GraphsChoice>,
    /// Choose the algorithms of gradients' products by timing them, and keep the choices in FILE: runs with the same file
    /// give the same bits [default: the library's own choice]
    #[arg(long, value_name = "FILE")]
    pub matmul_plans: Option<PathBuf>,
}

/// Options of `dpo` as typed.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
pub struct DpoArgs {
    /// Hugging Face directory of the reference [default: the starting policy]
    #[arg(long, value_name = "DIR")]
    pub ref_model: Option<PathBuf>,
    /// Strength of the pull towards the reference (DPO eq. 7) [default: 0.1]
    #[arg(long)]
    pub beta: Option<f64>,
    /// Loss [default: sigmoid]
    #[arg(long, value_parser = named::<LossType>())]
    pub loss_type: Option<LossType>,
    /// Probability that a label is flipped (cDPO), in [0, 0.5); sigmoid only [default: 0]
    #[arg(long)]
    pub label_smoothing: Option<f64>,
    /// Folder for reference sidecars [default: beside the shards]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// Checked options of a run. Serialised as `RUN/config.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Starting policy.
    pub model: PathBuf,
    /// Shards.
    pub data: PathBuf,
    /// Where the result goes.
    #[serde(skip)]
    pub out: PathBuf,
    /// Reference; `None` (and for SFT): the starting policy.
    pub ref_model: Option<PathBuf>,
    /// Folder for sidecars.
    pub cache: Option<PathBuf>,
    /// DPO's beta.
    pub beta: Option<f64>,
    /// Which loss.
    pub loss_type: LossType,
    /// cDPO's epsilon.
    pub label_smoothing: Option<f64>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Schedule after warm-up.
    pub lr_scheduler_type: SchedulerType,
    /// Warm-up in steps.
    pub warmup_steps: u64,
    /// Warm-up as a share.
    pub warmup_ratio: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Clipping; 0: none.
    pub max_grad_norm: f64,
    /// AdamW's first decay.
    pub adam_beta1: f64,
    /// AdamW's second decay.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Optimiser.
    pub optim: OptimizerChoice,
    /// Pairs a step.
    pub batch_size: usize,
    /// Token slots of a micro-batch; `None`: chosen from the data.
    pub token_budget: Option<usize>,
    /// Steps; `None`: by epochs.
    pub max_steps: Option<u64>,
    /// Epochs.
    pub num_train_epochs: f64,
    /// Precision of the matrix products.
    pub dtype: DtypeChoice,
    /// Precision of the saved weights.
    pub save_dtype: SaveDtype,
    /// Seed of the data order.
    pub seed: u64,
    /// Device.
    pub device: DeviceChoice,
    /// Steps between evaluations; 0: first and last only.
    pub eval_steps: u64,
    /// Layers are computed again in the backward pass.
    pub gradient_checkpointing: bool,
    /// CUDA graphs.
    pub cuda_graphs: GraphsChoice,
    /// File of tuned algorithms.
    pub matmul_plans: Option<PathBuf>,
}

/// Overlays what was typed on the keys of `--config`. Keys that the stage does not know are refused by name.
pub fn merge_config(stage: Stage, train: TrainArgs, dpo: DpoArgs) -> Result<(TrainArgs, DpoArgs)> {
    let Some(path) = train.config.clone() else { return Ok((train, dpo)) };
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read the configuration"))?;
    let bad = |why: String| Error::file(&path, why);
    let mut file: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let before = e.span().and_then(|s| text.get(..s.start)).unwrap_or_default();
        bad(format!("line {}: {}", before.matches('\n').count() + 1, first_line(&e)))
    })?;
    // An SFT run's own config.toml says so; in that stage there is nothing else to choose.
    if stage == Stage::Sft && file.get("loss_type").and_then(|v| v.as_str()) == Some("sft") {
        file.remove("loss_type");
    }
    let train = overlay(&mut file, &train).map_err(bad)?;
    let dpo = match stage {
        Stage::Dpo => overlay(&mut file, &dpo).map_err(bad)?,
        Stage::Sft => dpo,
    };
    match file.keys().next() {
        Some(key) => Err(Error::file(&path, format!("`{key}` is not an option of this command"))),
        None => Ok((train, dpo)),
    }
}

/// Takes the keys of `A` out of `file`, and puts on top what was typed.
fn overlay<A: Serialize + serde::de::DeserializeOwned>(file: &mut toml::Table, typed: &A) -> Result<A, String> {
    let keys = serde_json::to_value(typed).expect("options are plain values");
    let mut mine = toml::Table::new();
    for key in keys.as_object().into_iter().flat_map(|o| o.keys()) {
        let Some((key, value)) = file.remove_entry(key) else { continue };
        // One by one, so that the error can name its key.
        let alone: Result<A, _> = toml::Table::from_iter([(key.clone(), value.clone())]).try_into();
        alone.map_err(|e| format!("`{key}`: {}", first_line(&e)))?;
        mine.insert(key, value);
    }
    mine.extend(toml::Table::try_from(typed).map_err(|e| format!("an option cannot be written as TOML: {e}"))?);
    mine.try_into().map_err(|e| first_line(&e))
}

fn first_line(e: &toml::de::Error) -> String {
    e.message().lines().next().unwrap_or("not valid TOML").to_owned()
}

fn required<T>(value: Option<T>, flag: &str) -> Result<T> {
    value.ok_or_else(|| Error::usage(format!("{flag} is required (as a flag or in --config)")))
}

impl TrainConfig {
    /// Applies defaults (TRL 1.16's, but one epoch) and checks every range.
    pub fn resolve(stage: Stage, t: TrainArgs, d: DpoArgs) -> Result<Self> {
        let loss_type = match stage {
            Stage::Sft => LossType::Sft,
            Stage::Dpo => d.loss_type.unwrap_or(LossType::Sigmoid),
        };
        let pairwise = loss_type.def().pair.is_some();
        if !pairwise && (d.beta.is_some() || d.label_smoothing.is_some()) {
            return Err(Error::usage("--beta and --label-smoothing: the sft loss has neither; leave them out"));
        }
        if !loss_type.def().reference && (d.ref_model.is_some() || d.cache.is_some()) {
            return Err(Error::usage("--ref-model and --cache: the sft loss has no reference; leave them out"));
        }
        let c = TrainConfig {
            model: required(t.model, "--model")?,
            data: required(t.data, "--data")?,
            out: required(t.out, "--out")?,
            ref_model: d.ref_model,
            cache: d.cache,
            beta: pairwise.then_some(d.beta.unwrap_or(0.1)),
            loss_type,
            label_smoothing: pairwise.then_some(d.label_smoothing.unwrap_or(0.0)),
            learning_rate: t.learning_rate.unwrap_or(1e-6),
            lr_scheduler_type: t.lr_scheduler_type.unwrap_or(SchedulerType::Linear),
            warmup_steps: t.warmup_steps.unwrap_or(0),
            warmup_ratio: t.warmup_ratio.unwrap_or(0.0),
            weight_decay: t.weight_decay.unwrap_or(0.0),
            max_grad_norm: t.max_grad_norm.unwrap_or(1.0),
            adam_beta1: t.adam_beta1.unwrap_or(0.9),
            adam_beta2: t.adam_beta2.unwrap_or(0.999),
            adam_epsilon: t.adam_epsilon.unwrap_or(1e-8),
            optim: t.optim.unwrap_or(OptimizerChoice::Adamw),
            batch_size: t.batch_size.unwrap_or(8),
            token_budget: t.token_budget,
            max_steps: t.max_steps,
            num_train_epochs: t.num_train_epochs.unwrap_or(1.0),
            dtype: t.dtype.unwrap_or(DtypeChoice::Auto),
            save_dtype: t.save_dtype.unwrap_or(SaveDtype::Source),
            seed: t.seed.unwrap_or(42),
            device: t.device.unwrap_or_default(),
            eval_steps: t.eval_steps.unwrap_or(0),
            gradient_checkpointing: t.gradient_checkpointing.unwrap_or(false),
            cuda_graphs: t.cuda_graphs.unwrap_or_default(),
            matmul_plans: t.matmul_plans,
        };
        c.check()?;
        Ok(c)
    }

    fn check(&self) -> Result<()> {
        let range = |ok: bool, flag: &str, value: &dyn std::fmt::Display, want: &str| match ok {
            true => Ok(()),
            false => Err(Error::usage(format!("--{flag} {value}: must be {want}"))),
        };
        let finite_from_0 = |x: f64| x.is_finite() && x >= 0.0;
        range(finite_from_0(self.learning_rate), "learning-rate", &self.learning_rate, "a finite number, 0 or more")?;
        range(finite_from_0(self.weight_decay), "weight-decay", &self.weight_decay, "a finite number, 0 or more")?;
        range(finite_from_0(self.max_grad_norm), "max-grad-norm", &self.max_grad_norm, "a finite number, 0 or more")?;
        range((0.0..1.0).contains(&self.adam_beta1), "adam-beta1", &self.adam_beta1, "in [0, 1)")?;
        range((0.0..1.0).contains(&self.adam_beta2), "adam-beta2", &self.adam_beta2, "in [0, 1)")?;
        range(
            self.adam_epsilon.is_finite() && self.adam_epsilon > 0.0,
            "adam-epsilon",
            &self.adam_epsilon,
            "greater than 0",
        )?;
        range(self.batch_size > 0, "batch-size", &self.batch_size, "1 or more")?;
        range(self.token_budget != Some(0), "token-budget", &0, "1 or more")?;
        range(self.max_steps != Some(0), "max-steps", &0, "1 or more")?;
        // config.toml must be able to hold it.
        range(i64::try_from(self.seed).is_ok(), "seed", &self.seed, "at most 2^63 - 1")?;
        let e = self.num_train_epochs;
        range(
            e > 0.0 && e <= MAX_EPOCHS,
            "num-train-epochs",
            &format_args!("{e:?}"),
            "greater than 0, and at most 1000000",
        )?;
        self.loss().check()
    }

    /// The loss with its hyper-parameters.
    pub fn loss(&self) -> LossSpec {
        LossSpec {
            loss_type: self.loss_type,
            beta: self.beta.unwrap_or(1.0),
            label_smoothing: self.label_smoothing.unwrap_or(0.0),
        }
    }

    /// The reference model's directory.
    pub fn reference(&self) -> &Path {
        self.ref_model.as_deref().unwrap_or(&self.model)
    }
}
