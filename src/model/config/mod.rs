//! `config.json` of the Llama family, as transformers 4 and 5 write it. What is not implemented is refused by name.

mod families;
mod quantized;
mod rope;
mod write;

pub use families::{Architecture, SUPPORTED};
pub(super) use quantized::json as quantization_json;

use super::adapter::AdapterShape;
use super::json::{Fields, parse_json};
use super::quantized::{Quantized, Skipped};
use super::rope::{Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::files::{Inside, MOST_JSON};
use serde_json::{Map, Value};
use std::path::Path;

/// Name of the configuration.
pub(super) const CONFIG: &str = "config.json";
/// Name of what generation adds to it.
pub(super) const GENERATION: &str = "generation_config.json";

/// Bound on a damaged file's claims; the deepest models have a few hundred.
const MAX_LAYERS: usize = 4096;

/// A directory's configuration as it was read, to be copied when the model is saved.
#[derive(Clone)]
pub(super) struct ConfigFiles {
    /// config.json.
    pub config: Vec<u8>,
    /// generation_config.json, where there is one.
    pub generation: Option<Vec<u8>>,
}

/// A model's shape, checked. Names are Hugging Face's.
///
/// ```
/// use fusedpo::model::{ModelConfig, ParamTable};
///
/// let json = serde_json::json!({
///     "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 500,
///     "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": true,
/// });
/// let config = ModelConfig::parse("config.json".as_ref(), json.as_object().unwrap())?;
/// assert_eq!((config.head_dim, config.qkv_bias, config.qk_norm), (16, true, false));
///
/// // What that makes: tensors under Hugging Face's names, in one arena.
/// let table = ParamTable::new(&config)?;
/// assert_eq!(table.spec("model.layers.1.self_attn.k_proj.weight").unwrap().shape, [32, 64]);
///
/// // What is not implemented is refused by name.
/// let json = serde_json::json!({ "model_type": "mamba" });
/// let error = ModelConfig::parse("config.json".as_ref(), json.as_object().unwrap()).unwrap_err();
/// assert!(error.to_string().starts_with("config.json: model type `mamba` is not supported"));
/// # Ok::<(), fusedpo::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Inside the root of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub o_bias: bool,
    /// RMSNorm of every query and key head before the rotary embedding.
    pub qk_norm: bool,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Keys that a query sees, where that is limited.
    pub sliding_window: Option<usize>,
    /// Tokens that end a text: of `generation_config.json` where it names any, else of `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// `torch_dtype` or `dtype`: what the weights were saved as, if it says.
    pub dtype: Option<String>,
    /// How the linear weights of blocks are held in four bits, where they are: config.json says so where they are stored so.
    pub quantized: Option<Quantized>,
    /// Which of them are not: as config.json says.
    pub skipped: Skipped,
    /// The adapter beside the weights, where there is one: no part of config.json.
    pub adapter: Option<AdapterShape>,
}

impl ModelConfig {
    /// Reads and checks `dir/config.json`, and the end tokens of `dir/generation_config.json`. For anything more than the
    /// shape, [`super::ModelDir`] has it already.
    ///
    /// Errors: [`Error::File`] naming what is missing, damaged or not implemented.
    pub fn load(dir: &Path) -> Result<Self> {
        check_dir(dir)?;
        Ok(Self::read(&Inside::new(dir)?)?.0)
    }

    /// [`ModelConfig::load`], and the files that it read.
    pub(super) fn read(folder: &Inside) -> Result<(Self, ConfigFiles)> {
        let path = folder.path(CONFIG);
        let config = folder.read(CONFIG, MOST_JSON)?.ok_or_else(|| folder.missing(CONFIG))?;
        let mut files = ConfigFiles { config, generation: None };
        let mut config = Self::parse(&path, &parse_json(&path, &files.config)?)?;
        if let Some((ids, bytes)) = Self::end_tokens(folder)? {
            if !ids.is_empty() {
                config.eos_token_ids = ids;
            }
            files.generation = Some(bytes);
        }
        Ok((config, files))
    }

    /// The end tokens that the folder's `generation_config.json` names, and the file; `None` where it has none.
    pub(super) fn end_tokens(folder: &Inside) -> Result<Option<(Vec<u32>, Vec<u8>)>> {
        let Some(bytes) = folder.read(GENERATION, MOST_JSON)? else { return Ok(None) };
        let path = folder.path(GENERATION);
        let ids = Fields::new(&path, &parse_json(&path, &bytes)?).ids("eos_token_id")?;
        Ok(Some((ids, bytes)))
    }

    /// Checks the content of a `config.json`; `path` is for messages. Fields that it leaves out have the values that
    /// transformers 5.23 gives them.
    pub fn parse(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let f = Fields::new(path, map);
        let architecture = families::architecture(&f)?;
        families::refuse(&f, architecture)?;
        let d = architecture.defaults();
        let num_hidden_layers = f.size_or("num_hidden_layers", d.num_hidden_layers)?;
        let num_attention_heads = f.size_or("num_attention_heads", d.num_attention_heads)?;
        let hidden_size = f.size_or("hidden_size", d.hidden_size)?;
        let head_dim = f.size_or("head_dim", d.head_dim.unwrap_or(hidden_size / num_attention_heads))?;
        let max_position_embeddings = f.size_or("max_position_embeddings", d.max_position_embeddings)?;
        // Null, where it may be that, is the number of query heads in every family.
        let kv_default = if f.has("num_key_value_heads") { None } else { d.num_key_value_heads };
        let has_bias_field = matches!(architecture, Architecture::Llama | Architecture::Qwen3);
        let attention_bias = has_bias_field && f.flag("attention_bias")?;
        let vocab_size = f.size_or("vocab_size", d.vocab_size)?;
        let ids = |name: &str, default: Option<u32>| match f.has(name) {
            true => f.ids(name),
            // A vocabulary too small for the family's own ids has none of them.
            false => Ok(default.into_iter().filter(|id| (*id as usize) < vocab_size).collect()),
        };
        let (quantized, skipped) = quantized::of(&f)?;
        let config = ModelConfig {
            architecture,
            hidden_size,
            intermediate_size: f.size_or("intermediate_size", d.intermediate_size)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: f.size_or("num_key_value_heads", kv_default.unwrap_or(num_attention_heads))?,
            head_dim,
            vocab_size,
            rms_norm_eps: rms_norm_eps(&f)?,
            rope: Rope { theta: 1.0, scaling: RopeScaling::None },
            tie_word_embeddings: f.flag("tie_word_embeddings")?,
            qkv_bias: attention_bias || architecture == Architecture::Qwen2,
            o_bias: attention_bias,
            qk_norm: architecture == Architecture::Qwen3,
            max_position_embeddings,
            sliding_window: families::sliding_window(&f, architecture, num_hidden_layers)?,
            eos_token_ids: ids("eos_token_id", d.eos_token_id)?,
            bos_token_id: ids("bos_token_id", d.bos_token_id)?.first().copied(),
            dtype: f.get("dtype").or(f.get("torch_dtype")).and_then(|v| v.as_str()).map(str::to_owned),
            quantized,
            skipped,
            adapter: None,
        };
        config.check(&f)?;
        // Last, as it needs a head's width to be sound.
        let known = rope::Known { head_dim, positions: max_position_embeddings };
        Ok(ModelConfig { rope: rope::resolve(&f, &known)?, ..config })
    }

    fn check(&self, f: &Fields) -> Result<()> {
        if self.num_hidden_layers > MAX_LAYERS {
            return Err(f.bad(format!("`num_hidden_layers` {} exceeds {MAX_LAYERS}", self.num_hidden_layers)));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(f.bad(format!(
                "`num_attention_heads` {} is not a multiple of `num_key_value_heads` {}",
                self.num_attention_heads, self.num_key_value_heads
            )));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(f.bad(format!("head dimension {} is odd: the rotary embedding needs pairs", self.head_dim)));
        }
        // Llama alone insists, and does so where heads have a width of their own too.
        if self.architecture == Architecture::Llama && !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(f.bad(format!(
                "`hidden_size` {} is not a multiple of `num_attention_heads` {}",
                self.hidden_size, self.num_attention_heads
            )));
        }
        if let Some(id) =
            self.eos_token_ids.iter().chain(&self.bos_token_id).find(|id| **id as usize >= self.vocab_size)
        {
            return Err(f.bad(format!("token id {id} is outside `vocab_size` {}", self.vocab_size)));
        }
        Ok(())
    }

    /// Refuses rows of `positions` tokens that this model cannot take: a sliding window shorter than the rows is not
    /// implemented, nor are frequencies of each row's own length (dynamic NTK). Rows longer than
    /// `max_position_embeddings` are no error otherwise: RoPE goes on.
    pub fn check_positions(&self, positions: usize) -> Result<()> {
        if let Some(w) = self.sliding_window.filter(|w| positions > *w) {
            return Err(Error::usage(format!(
                "rows of up to {positions} tokens, but the model has a sliding window of {w}: sliding-window attention is not \
                 implemented; use rows of at most {w} tokens"
            )));
        }
        if let (RopeScaling::Dynamic { .. }, Some(n)) = (&self.rope.scaling, self.rope.turning_point())
            && positions > n
        {
            return Err(Error::usage(format!(
                "rows of up to {positions} tokens, but this model's `dynamic` rotary embedding has other frequencies for \
                 every length above {n}, which is not implemented; use rows of at most {n} tokens"
            )));
        }
        Ok(())
    }

    /// Whether a prompt's rows, of `shortest` to `longest` tokens, are turned as long ones ([`Rope::turning_point`]): the
    /// rows share the prompt's keys, so that all of them are or none.
    ///
    /// Errors: [`Error::Usage`] where some are and some are not.
    pub fn turns_as_long(&self, shortest: usize, longest: usize) -> Result<bool> {
        match self.rope.turning_point() {
            Some(n) if shortest <= n && longest > n => Err(Error::usage(format!(
                "a prompt has rows of {shortest} and of {longest} tokens, but this model's `longrope` turns rows of more than \
                 {n} tokens by other frequencies: not implemented for rows that share a prompt; use rows of at most {n} tokens"
            ))),
            Some(n) => Ok(longest > n),
            None => Ok(false),
        }
    }

    /// The most positions that rows of other length than the data's should have.
    pub fn usable_positions(&self) -> usize {
        let turned_alike = self.rope.turning_point().unwrap_or(usize::MAX);
        self.sliding_window.unwrap_or(usize::MAX).min(self.max_position_embeddings).min(turned_alike)
    }

    /// Attention geometry.
    pub fn attn_shape(&self) -> crate::backend::AttnShape {
        crate::backend::AttnShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
    }
}

/// Says what a folder is when it is not a model directory.
pub(super) fn check_dir(dir: &Path) -> Result<()> {
    const WANT: &str = "expected a Hugging Face model directory with config.json and model.safetensors";
    if !dir.is_dir() {
        if dir.exists() {
            return Err(Error::file(dir, format!("not a directory; {WANT}")));
        }
        return Err(Error::file(dir, format!("no such directory; {WANT}, or a name on the hub: {}", of_hub(dir))));
    }
    if dir.join("adapter_config.json").exists() {
        return Err(Error::file(
            dir,
            "a PEFT adapter (adapter_config.json), not a model: give it as `options.adapter`, and its base as `options.model`",
        ));
    }
    if dir.join(CONFIG).symlink_metadata().is_err() && dir.join("run.json").exists() {
        let why = "a run that has no model yet: go on with it (`options.resume` auto), or give a checkpoint of it, RUN/checkpoint-STEP";
        return Err(Error::file(dir, why));
    }
    if dir.join(CONFIG).symlink_metadata().is_err() {
        return Err(Error::file(dir, format!("no config.json; {WANT}")));
    }
    Ok(())
}

/// How what `dir` may mean is named on the hub.
fn of_hub(dir: &Path) -> String {
    match dir.parent().filter(|p| p.is_dir() && !p.as_os_str().is_empty() && dir.is_relative()) {
        Some(owner) => format!("org/name, or hf://org/name where the folder {} is here too", owner.display()),
        None => "org/name".to_owned(),
    }
}

fn rms_norm_eps(f: &Fields) -> Result<f64> {
    match f.get("rms_norm_eps") {
        Some(v) if v.is_u64() => {
            Err(f.bad(format!("`rms_norm_eps` is {v}, expected a fraction: so transformers wants it")))
        }
        _ => f.positive_or("rms_norm_eps", 1e-6),
    }
}
