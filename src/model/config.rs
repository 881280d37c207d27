//! `config.json` of the Llama family, as transformers 4 and 5 write it. What is not implemented is refused by name.

use super::json::{Fields, parse_json};
use super::rope::{Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::files::{Inside, MOST_JSON};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What loads, for messages.
pub const SUPPORTED: &str = "llama, mistral, qwen2, qwen3";

/// Name of the configuration.
pub(super) const CONFIG: &str = "config.json";
/// Name of what generation adds to it.
pub(super) const GENERATION: &str = "generation_config.json";

/// Bound on a damaged file's claims; the deepest models have a few hundred.
const MAX_LAYERS: usize = 4096;

/// Families that differ in which extra parameters they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`: Llama 2 and 3.x, SmolLM2, TinyLlama, ...
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`: Qwen2 and 2.5, bias on q, k and v.
    Qwen2,
    /// `Qwen3ForCausalLM`: q/k norm.
    Qwen3,
}

impl Architecture {
    const ALL: [Architecture; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
    /// `architectures[0]` in `config.json`.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// A directory's configuration as it was read, to be copied when the model is saved.
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
        if let Some(bytes) = folder.read(GENERATION, MOST_JSON)? {
            let path = folder.path(GENERATION);
            let ids = Fields::new(&path, &parse_json(&path, &bytes)?).ids("eos_token_id")?;
            if !ids.is_empty() {
                config.eos_token_ids = ids;
            }
            files.generation = Some(bytes);
        }
        Ok((config, files))
    }

    /// Checks the content of a `config.json`; `path` is for messages.
    pub fn parse(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let f = Fields::new(path, map);
        let architecture = architecture(&f)?;
        refuse(&f, architecture)?;
        let num_attention_heads = f.size("num_attention_heads")?;
        let hidden_size = f.size("hidden_size")?;
        // transformers' defaults where config.json may leave a field out: llama has no grouped queries then.
        let kv_default = (architecture == Architecture::Llama).then_some(num_attention_heads);
        let attention_bias = f.flag("attention_bias")?;
        let config = ModelConfig {
            architecture,
            hidden_size,
            intermediate_size: f.size("intermediate_size")?,
            num_hidden_layers: f.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: f.size_or("num_key_value_heads", kv_default)?,
            head_dim: f.size_or("head_dim", Some((hidden_size / num_attention_heads).max(1)))?,
            vocab_size: f.size("vocab_size")?,
            rms_norm_eps: f.positive_or("rms_norm_eps", Some(1e-6))?,
            rope: rope(&f)?,
            tie_word_embeddings: f.flag("tie_word_embeddings")?,
            qkv_bias: attention_bias || architecture == Architecture::Qwen2,
            o_bias: attention_bias,
            qk_norm: architecture == Architecture::Qwen3,
            max_position_embeddings: f.size("max_position_embeddings")?,
            sliding_window: sliding_window(&f, architecture)?,
            eos_token_ids: f.ids("eos_token_id")?,
            bos_token_id: f.ids("bos_token_id")?.first().copied(),
            dtype: f.get("dtype").or(f.get("torch_dtype")).and_then(|v| v.as_str()).map(str::to_owned),
        };
        config.check(&f)?;
        Ok(config)
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
        if !self.head_dim.is_multiple_of(2) {
            return Err(f.bad(format!("head dimension {} is odd: the rotary embedding needs pairs", self.head_dim)));
        }
        if f.get("head_dim").is_none() && !self.hidden_size.is_multiple_of(self.num_attention_heads) {
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
    /// implemented. Rows longer than `max_position_embeddings` are no error: RoPE goes on.
    pub fn check_positions(&self, positions: usize) -> Result<()> {
        match self.sliding_window {
            Some(w) if positions > w => Err(Error::usage(format!(
                "rows of up to {positions} tokens, but the model has a sliding window of {w}: sliding-window attention is not \
                 implemented; use rows of at most {w} tokens"
            ))),
            _ => Ok(()),
        }
    }

    /// The most positions that rows of other length than the data's should have.
    pub fn usable_positions(&self) -> usize {
        self.sliding_window.unwrap_or(usize::MAX).min(self.max_position_embeddings)
    }

    /// The fields as a config.json that transformers 4 and 5 read, for a model made from scratch.
    pub fn to_json(&self, dtype: &str) -> Value {
        let scaling = match self.rope.scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings as u64,
                })
            }
        };
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        json!({
            "architectures": [self.architecture.class()],
            "model_type": self.architecture.model_type(),
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": scaling,
            "hidden_act": "silu",
            "attention_bias": self.o_bias,
            "sliding_window": self.sliding_window,
            "use_sliding_window": self.sliding_window.is_some(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "torch_dtype": dtype,
        })
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
        let what = if dir.exists() { "not a directory" } else { "no such directory" };
        return Err(Error::file(dir, format!("{what}; {WANT}")));
    }
    if dir.join("adapter_config.json").exists() {
        return Err(Error::file(
            dir,
            "a PEFT adapter (adapter_config.json): adapters are not implemented; merge it into its base model first",
        ));
    }
    if dir.join(CONFIG).symlink_metadata().is_err() {
        return Err(Error::file(dir, format!("no config.json; {WANT}")));
    }
    Ok(())
}

fn architecture(f: &Fields) -> Result<Architecture> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let model_type = f.get("model_type").map(text);
    let class = f.get("architectures").and_then(|v| v.get(0)).map(text);
    let found = match (&model_type, &class) {
        (Some(t), _) => Architecture::ALL.into_iter().find(|a| a.model_type() == t),
        (None, Some(c)) => Architecture::ALL.into_iter().find(|a| a.class() == c),
        (None, None) => return Err(f.bad("`model_type` is missing")),
    };
    let Some(found) = found else {
        let name = model_type.or(class).unwrap_or_default();
        return Err(f.bad(format!("model type `{name}` is not supported; supported: {SUPPORTED}")));
    };
    match class {
        Some(c) if c != found.class() => Err(f.bad(format!(
            "architecture `{c}` is not supported; for {} expected {}",
            found.model_type(),
            found.class()
        ))),
        _ => Ok(found),
    }
}

/// Options of the family that change the computation and are not implemented. (`attention_dropout` does not: dropout is
/// off in preference training, as in TRL.)
fn refuse(f: &Fields, architecture: Architecture) -> Result<()> {
    if let Some(act) = f.get("hidden_act").filter(|v| v.as_str() != Some("silu")) {
        return Err(f.bad(format!("`hidden_act` {act} is not supported; supported: silu")));
    }
    if f.flag("mlp_bias")? {
        return Err(f.bad("`mlp_bias` true is not supported"));
    }
    if f.flag("attention_bias")? && !matches!(architecture, Architecture::Llama | Architecture::Qwen3) {
        return Err(f.bad(format!("`attention_bias` true is not supported for {}", architecture.model_type())));
    }
    if f.get("quantization_config").is_some() {
        return Err(f.bad("`quantization_config`: quantized weights are not supported; use the f32, f16 or bf16 model"));
    }
    if f.positive_or("partial_rotary_factor", Some(1.0))? != 1.0 {
        return Err(f.bad("`partial_rotary_factor` other than 1 is not supported"));
    }
    Ok(())
}

/// transformers 4: `rope_theta` and `rope_scaling`; 5: both inside `rope_parameters`.
fn rope(f: &Fields) -> Result<Rope> {
    let name = if f.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let empty = Map::new();
    let map = match f.get(name) {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(v) => return Err(f.bad(format!("`{name}` is {v}, expected an object"))),
    };
    let r = Fields::new(f.path(), map);
    let theta = match r.get("rope_theta") {
        Some(_) => r.positive_or("rope_theta", None)?,
        None => f.positive_or("rope_theta", Some(10000.0))?,
    };
    let kind = r.get("rope_type").or(r.get("type"));
    let scaling = match kind.map(|v| v.as_str().unwrap_or("?")) {
        Some("default") => RopeScaling::None,
        None if map.keys().all(|k| k == "rope_theta") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: r.positive_or("factor", None)? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: r.positive_or("factor", None)?,
            low_freq_factor: r.positive_or("low_freq_factor", None)?,
            high_freq_factor: r.positive_or("high_freq_factor", None)?,
            original_max_position_embeddings: r.positive_or(
                "original_max_position_embeddings",
                f.get("max_position_embeddings").and_then(Value::as_f64),
            )?,
        },
        Some(other) => {
            return Err(
                f.bad(format!("`{name}` of type `{other}` is not supported; supported: default, linear, llama3"))
            );
        }
        None => return Err(f.bad(format!("`{name}` has no `rope_type`; supported: default, linear, llama3"))),
    };
    if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
        && high_freq_factor <= low_freq_factor
    {
        return Err(f.bad(format!("`{name}`: `high_freq_factor` must be greater than `low_freq_factor`")));
    }
    Ok(Rope { theta, scaling })
}

/// The effective window: Mistral's applies whenever set, Qwen's only with `use_sliding_window`.
fn sliding_window(f: &Fields, architecture: Architecture) -> Result<Option<usize>> {
    let used = match architecture {
        Architecture::Llama => false,
        Architecture::Mistral => true,
        Architecture::Qwen2 | Architecture::Qwen3 => f.flag("use_sliding_window")?,
    };
    if !used || f.get("sliding_window").is_none() {
        return Ok(None);
    }
    f.size("sliding_window").map(Some)
}
