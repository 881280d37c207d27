//! What can be asked of `fusedpo eval`.

use crate::commands::choice::{Devices, named};
use crate::commands::loss_flags::{LossFlags, TokenFlags};
use crate::commands::quantize_flags::QuantizeFlags;
use crate::error::{Error, Result};
use crate::loss::LossType;
use crate::train::choices::{DeviceChoice, DtypeChoice, LogitsChoice};
use crate::train::loss_options::LossTypes;
use std::path::PathBuf;

/// Options of `fusedpo eval`.
#[derive(Clone, clap::Args)]
pub struct EvalArgs {
    /// Hugging Face directory, or name on the hub (org/name@revision), of the policy
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Adapter (LoRA, in PEFT's form) beside the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// How weights are held.
    #[command(flatten)]
    pub quantize: QuantizeFlags,
    /// Hugging Face directory, or name on the hub (org/name@revision), of the reference [default: what MODEL/config.toml
    /// names, else the policy itself]
    #[arg(long, value_name = "DIR")]
    pub ref_model: Option<PathBuf>,
    /// Folder of shards: its held-out split or, with a warning, its training split where nothing is held out
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
    /// Loss, or the losses of a sum; it and its hyper-parameters [default: what MODEL/config.toml says, else sigmoid; sft for data without pairs]
    #[arg(long, value_parser = named::<LossType>(), value_delimiter = ',', value_name = "NAME,...")]
    pub loss_type: Vec<LossType>,
    /// Hyper-parameters of losses.
    #[command(flatten)]
    pub loss: LossFlags,
    /// What losses ask of single tokens.
    #[command(flatten)]
    pub tokens: TokenFlags,
    /// Prompts to sample a response to, for the KL estimate; 0: none [default: 16]
    #[arg(long)]
    pub kl_samples: Option<usize>,
    /// Longest sampled response, in tokens; at most half of the positions that the model has room for [default: 64]
    #[arg(long)]
    pub kl_max_new_tokens: Option<usize>,
    /// Seed of the samples [default: 42]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Folder for reference sidecars [default: beside the shards]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Token slots of a micro-batch
    #[arg(long)]
    pub token_budget: Option<usize>,
    /// Precision of the matrix products
    #[arg(long, value_parser = named::<DtypeChoice>(), default_value = "auto")]
    pub dtype: DtypeChoice,
    /// Precision of the head's logits; bf16 on a GPU only
    #[arg(long, value_parser = named::<LogitsChoice>(), default_value = "f32")]
    pub logits_dtype: LogitsChoice,
    /// Device
    #[arg(long, value_parser = Devices, default_value = "auto")]
    pub device: DeviceChoice,
}

impl EvalArgs {
    /// What was asked of the loss, beside its name, as keys of a configuration.
    pub fn of_loss(&self) -> Result<toml::Table> {
        let table = |flags: Result<toml::Table, toml::ser::Error>| flags.map_err(|e| Error::usage(e.to_string()));
        let mut all = table(toml::Table::try_from(&self.loss))?;
        all.extend(table(toml::Table::try_from(&self.tokens))?);
        Ok(all)
    }

    /// The losses asked for.
    pub fn loss_types(&self) -> Option<LossTypes> {
        (!self.loss_type.is_empty()).then(|| LossTypes(self.loss_type.clone()))
    }
}
