//! Options of `fusedpo sft` and `fusedpo dpo`.

use super::choice::{Devices, Reports, named};
use super::loss_flags::{LossFlags, TokenFlags};
use super::quantize_flags::QuantizeFlags;
use crate::loss::LossType;
use crate::model::{AdapterInit, SaveDtype};
use crate::train::choices::{DeviceChoice, DtypeChoice, GradientChoice, GraphsChoice, LogitsChoice};
use crate::train::ledger::LedgerChoice;
use crate::train::optim::OptimizerChoice;
use crate::train::options::{EvalStrategy, NamedData};
use crate::train::report_options::ReportTo;
use crate::train::schedule::SchedulerType;
use serde::Serialize;
use std::path::PathBuf;

/// Training options as typed; `None` means not given.
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
pub struct TrainFlags {
    /// Hugging Face directory, or name on the hub (org/name@revision), of the starting policy
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Folder of shards written by `fusedpo pack`
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// New folder for the trained model, metrics.jsonl and config.toml
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// TOML or YAML file with any of these options as keys; YAML also by TRL's names; flags win
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
    /// What gradients are summed up in: bf16 takes half of the memory; norms and biases stay in f32 [default: f32]
    #[arg(long, value_parser = named::<GradientChoice>())]
    pub gradient_dtype: Option<GradientChoice>,
    /// Pairs (sft: responses) a step, at least; a step takes whole groups [default: 8]
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Parameters that train: all, adapters, or a regular expression that their names have a match for; the others are
    /// frozen, and take no memory for gradients and moments [default: adapters where there is one, else all]
    #[arg(long, value_name = "all|adapters|REGEX")]
    pub train: Option<String>,
    /// Adapter (LoRA, in PEFT's form) beside --model to go on training; of dpo the reference is the model with it
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Train a new adapter (LoRA) of this rank, and nothing else
    #[arg(long, value_name = "N")]
    pub lora_r: Option<usize>,
    /// Scale of the adapter: alpha / r [default: twice the rank]
    #[arg(long, value_name = "X")]
    pub lora_alpha: Option<f64>,
    /// Share of the adapter's input that is dropped while it trains [default: 0; of a loaded adapter what its files say]
    #[arg(long, value_name = "P")]
    pub lora_dropout: Option<f64>,
    /// Linear layers that have an adapter, by PEFT's names with commas between them [default: all-linear, the seven of a block]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora_target_modules: Vec<String>,
    /// Scale the adapter by alpha / sqrt(r) (rank-stabilised LoRA) [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub use_rslora: Option<bool>,
    /// What a new adapter's A is drawn from; B is zero [default: kaiming]
    #[arg(long, value_parser = named::<AdapterInit>())]
    pub lora_init: Option<AdapterInit>,
    /// How weights are held.
    #[command(flatten)]
    #[serde(flatten)]
    pub quantize: QuantizeFlags,
    /// Parts that a step's gradient is summed up in, which the processes of a launcher share [default: 1; with a launcher 8, or
    /// one a process]
    #[arg(long, value_name = "N")]
    pub lanes: Option<usize>,
    /// Token slots of a micro-batch [default: 2048, or what the largest pair needs]
    #[arg(long)]
    pub token_budget: Option<usize>,
    /// Choose the token budget that `fusedpo plan` recommends: the smallest that is about as fast as any that fits
    /// [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub fit: Option<bool>,
    /// Steps, in place of --num-train-epochs
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Passes over the data; may be a fraction [default: 1]
    #[arg(long)]
    pub num_train_epochs: Option<f64>,
    /// Precision of the matrix products [default: auto]
    #[arg(long, value_parser = named::<DtypeChoice>())]
    pub dtype: Option<DtypeChoice>,
    /// Precision of the head's logits: f32, or bf16 but for the target's, on a GPU only [default: f32]
    #[arg(long, value_parser = named::<LogitsChoice>())]
    pub logits_dtype: Option<LogitsChoice>,
    /// Precision of the saved weights [default: source]
    #[arg(long, value_parser = named::<SaveDtype>())]
    pub save_dtype: Option<SaveDtype>,
    /// Steps between checkpoints; 0: only when the run is stopped [default: a tenth of the run, and at least 10 minutes]
    #[arg(long, value_name = "N")]
    pub save_steps: Option<u64>,
    /// Checkpoints to keep, the last ones; 0: all [default: 2]
    #[arg(long, value_name = "N")]
    pub save_total_limit: Option<usize>,
    /// Who gets the metrics, beside metrics.jsonl: TensorBoard, by an event file in the run's folder, or none [default: tensorboard]
    #[arg(long, value_name = "NAME", value_parser = Reports)]
    pub report_to: Option<ReportTo>,
    /// Go on from the last checkpoint in --out (auto; without one the run begins) or from RUN/checkpoint-STEP: the same bits
    /// as of a run that was never stopped
    #[arg(long, value_name = "auto|DIR")]
    pub resume: Option<PathBuf>,
    /// Go on even where another CPU, GPU or precision would give other bits; run.json records it
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_other_numerics: Option<bool>,
    /// Seed of the data order [default: 42]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Device [default: auto]
    #[arg(long, value_parser = Devices)]
    pub device: Option<DeviceChoice>,
    /// Whether the held-out split is evaluated [default: steps]
    #[arg(long, value_parser = named::<EvalStrategy>())]
    pub eval_strategy: Option<EvalStrategy>,
    /// Pairs (sft: responses) of each held-out set to evaluate, the first ones, rounded up to whole steps [default: all]
    #[arg(long, value_name = "N")]
    pub max_eval_samples: Option<u64>,
    /// Evaluate every N steps on what is held out; 0: before the first and after the last step [default: 0]
    #[arg(long, value_name = "N")]
    pub eval_steps: Option<u64>,
    /// Evaluate on these shards too (their held-out split; all where nothing is held out), as eval_NAME_loss and the like; may
    /// be given several times
    #[arg(long, value_name = "NAME=DIR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub eval_data: Vec<NamedData>,
    /// Held-out prompts that policy and reference continue at each evaluation, side by side in samples.jsonl; 0: none
    /// [default: 0]
    #[arg(long, value_name = "N")]
    pub sample_prompts: Option<usize>,
    /// Longest of these continuations, in tokens [default: 64]
    #[arg(long, value_name = "N")]
    pub sample_max_new_tokens: Option<usize>,
    /// Their temperature; 0: the likeliest token each time [default: 0]
    #[arg(long, value_name = "X")]
    pub sample_temperature: Option<f64>,
    /// End with the model of the best evaluation, whose checkpoint stays whatever the limit; needs --eval-steps
    /// [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub load_best_model_at_end: Option<bool>,
    /// What evaluations are compared by: a key of theirs in metrics.jsonl, eval_ may be left out [default: loss]
    #[arg(long, value_name = "KEY")]
    pub metric_for_best_model: Option<String>,
    /// Whether more of it is better [default: unless its name ends in loss, kl or repeated]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub greater_is_better: Option<bool>,
    /// End after N evaluations in a row without a better one; needs --eval-steps [default: never]
    #[arg(long, value_name = "N")]
    pub early_stopping_patience: Option<u64>,
    /// By how much more than this it must be better to renew the patience [default: 0]
    #[arg(long, value_name = "X")]
    pub early_stopping_threshold: Option<f64>,
    /// Keep only the input of each layer and compute the rest again in the backward pass: less memory, a quarter to a
    /// third more work, the same bits [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub gradient_checkpointing: Option<bool>,
    /// Replay the layers' passes as CUDA graphs: same bits, fewer launches; auto is off, as they gained nothing at 0.5B on
    /// an H100 [default: auto]
    #[arg(long, value_parser = named::<GraphsChoice>())]
    pub cuda_graphs: Option<GraphsChoice>,
    /// Choose the algorithms of gradients' products by timing them, and keep the choices in FILE: runs with the same file
    /// give the same bits [default: the library's own choice]
    #[arg(long, value_name = "FILE")]
    pub matmul_plans: Option<PathBuf>,
}

/// Options of `dpo` as typed.
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
pub struct DpoFlags {
    /// Hugging Face directory, or name on the hub (org/name@revision), of the reference [default: the starting policy]
    #[arg(long, value_name = "DIR")]
    pub ref_model: Option<PathBuf>,
    /// Loss, or the losses of a sum with commas between them; `fusedpo loss list` describes them [default: sigmoid]
    #[arg(long, value_parser = named::<LossType>(), value_delimiter = ',', value_name = "NAME,...")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loss_type: Vec<LossType>,
    /// Hyper-parameters of losses.
    #[command(flatten)]
    #[serde(flatten)]
    pub loss: LossFlags,
    /// What losses ask of single tokens.
    #[command(flatten)]
    #[serde(flatten)]
    pub tokens: TokenFlags,
    /// Whether ledger.bin keeps what every pair was to the run, for `fusedpo analyze`: 64 bytes a pair and epoch [default: auto]
    #[arg(long, value_parser = named::<LedgerChoice>())]
    pub ledger: Option<LedgerChoice>,
    /// Folder for reference sidecars [default: beside the shards]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Prompts to sample a response to at each evaluation, for the KL divergence from the reference; 0: none [default: 0]
    #[arg(long, value_name = "N")]
    pub kl_samples: Option<usize>,
    /// Longest of these responses, in tokens; at most half of the positions there are [default: 64]
    #[arg(long, value_name = "N")]
    pub kl_max_new_tokens: Option<usize>,
    /// End at the first evaluation whose KL divergence is this many nats a response or more; needs --kl-samples and
    /// --eval-steps [default: never]
    #[arg(long, value_name = "NATS")]
    pub kl_budget: Option<f64>,
    /// Let the reference follow the policy (TR-DPO); it is in memory then, and computed at every step [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub sync_ref_model: Option<bool>,
    /// Share of the policy in the reference after a sync, in (0, 1]; needs --sync-ref-model [default: 0.6]
    #[arg(long, value_name = "SHARE")]
    pub ref_model_mixup_alpha: Option<f64>,
    /// Steps from one sync to the next; needs --sync-ref-model [default: 512]
    #[arg(long, value_name = "N")]
    pub ref_model_sync_steps: Option<u64>,
}
