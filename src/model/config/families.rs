//! The families that load, and what transformers 5.23 takes where config.json leaves a field out.

use super::super::json::{Fields, short};
use crate::error::Result;
use serde_json::Value;

/// What loads, for messages.
pub const SUPPORTED: &str = "llama, mistral, qwen2, qwen3";

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

/// A family's values for fields that config.json leaves out.
pub(super) struct Defaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// `None`: as many as there are query heads.
    pub num_key_value_heads: Option<usize>,
    /// `None`: the hidden size over the query heads.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    /// Keys that a query sees, where a window is used.
    pub sliding_window: usize,
    /// First layer that has the window.
    pub max_window_layers: usize,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
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

    /// Source: transformers `models/*/configuration_*.py`.
    pub(super) fn defaults(self) -> Defaults {
        let llama = Defaults {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            sliding_window: 4096,
            max_window_layers: 28,
            bos_token_id: Some(1),
            eos_token_id: Some(2),
        };
        let qwen = Defaults {
            vocab_size: 151936,
            intermediate_size: 22016,
            num_key_value_heads: Some(32),
            max_position_embeddings: 32768,
            bos_token_id: None,
            eos_token_id: None,
            ..llama
        };
        match self {
            Self::Llama => llama,
            Self::Mistral => Defaults {
                intermediate_size: 14336,
                num_key_value_heads: Some(8),
                max_position_embeddings: 131072,
                ..llama
            },
            Self::Qwen2 => qwen,
            Self::Qwen3 => Defaults { head_dim: Some(128), ..qwen },
        }
    }

    /// Fields that transformers reads and that cannot be null there; where they can, null is as good as nothing.
    fn never_null(self) -> &'static [&'static str] {
        match self {
            Self::Llama => &["attention_bias", "mlp_bias"],
            Self::Mistral => &["num_key_value_heads"],
            Self::Qwen2 => &["use_sliding_window", "max_window_layers", "head_dim"],
            Self::Qwen3 => &["use_sliding_window", "max_window_layers", "head_dim", "attention_bias"],
        }
    }
}

/// The family that config.json names.
pub(super) fn architecture(f: &Fields) -> Result<Architecture> {
    let text = |v: &Value| v.as_str().map_or_else(|| short(v), str::to_owned);
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

/// Refuses by name what changes the computation and is not implemented, and null where there is no value for it. What
/// the family's code in transformers never reads is ignored here too: `attention_bias` of Mistral, say. (Dropout is off
/// in preference training, as in TRL.)
pub(super) fn refuse(f: &Fields, family: Architecture) -> Result<()> {
    const NEVER_NULL: [&str; 9] = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "hidden_act",
        "tie_word_embeddings",
    ];
    if let Some(name) = NEVER_NULL.iter().chain(family.never_null()).find(|n| f.raw(n).is_some_and(Value::is_null)) {
        return Err(f.bad(format!("`{name}` is null; give its value, or leave the field out")));
    }
    // `swish` is the same function.
    if let Some(act) = f.get("hidden_act").filter(|v| !matches!(v.as_str(), Some("silu" | "swish"))) {
        return Err(f.bad(format!("`hidden_act` {} is not supported; supported: silu", short(act))));
    }
    if family == Architecture::Llama && f.flag("mlp_bias")? {
        return Err(f.bad("`mlp_bias` true is not supported"));
    }
    // Null is false to transformers here.
    if f.raw("is_causal").is_some_and(|v| v.as_bool() != Some(true)) {
        return Err(f.bad("`is_causal` other than true is not supported: every token would see those after it"));
    }
    if f.get("per_layer_config").is_some_and(|v| v.as_object().is_none_or(|map| !map.is_empty())) {
        return Err(f.bad("`per_layer_config`: layers that differ are not supported"));
    }
    if f.get("configuration_files").is_some() {
        return Err(
            f.bad("`configuration_files`: other versions of config.json are not read; keep the one that counts")
        );
    }
    layer_types(f, family)
}

/// `layer_types` of families that have none in transformers.
fn layer_types(f: &Fields, family: Architecture) -> Result<()> {
    match family {
        // transformers takes it for another family, whose layers alternate.
        Architecture::Mistral if f.has("layer_types") => {
            Err(f.bad("`layer_types` in a mistral model is not supported: transformers reads it as `ministral`"))
        }
        Architecture::Llama => match f.get("layer_types") {
            Some(v) if !full(v) => Err(f.bad("`layer_types` other than full attention is not supported for llama")),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Whether every layer attends to all that came before.
fn full(layer_types: &Value) -> bool {
    let list = layer_types.as_array();
    list.is_some_and(|l| l.iter().all(|v| matches!(v.as_str(), Some("full_attention" | "attention"))))
}

/// Keys that a query sees, where any layer limits them: Mistral's window applies unless it is null, Qwen's with
/// `use_sliding_window` in the layers that say so.
pub(super) fn sliding_window(f: &Fields, family: Architecture, layers: usize) -> Result<Option<usize>> {
    let defaults = family.defaults();
    let named = |null: Option<usize>| match (f.has("sliding_window"), f.get("sliding_window")) {
        (true, None) => Ok(null),
        _ => f.size_or("sliding_window", defaults.sliding_window).map(Some),
    };
    if let Some(v) = f.get("layer_types") {
        match v.as_array() {
            Some(list) if list.len() == layers => {}
            Some(list) => {
                let n = list.len();
                return Err(f.bad(format!("`layer_types` has {n} entries for {layers} layers")));
            }
            None => return Err(f.bad(format!("`layer_types` is {}, expected a list", short(v)))),
        }
    }
    match family {
        Architecture::Llama => Ok(None),
        Architecture::Mistral => named(None),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let window = if f.flag("use_sliding_window")? { named(None)? } else { None };
            let sliding = match f.get("layer_types").and_then(Value::as_array) {
                Some(list) => sliding_layers(f, list)?,
                None => window.is_some() && first_window_layer(f, defaults.max_window_layers)? < layers as i64,
            };
            match (sliding, window) {
                (true, None) => Err(f.bad("`layer_types` has sliding attention, but there is no `sliding_window`")),
                (true, window) => Ok(window),
                (false, _) => Ok(None),
            }
        }
    }
}

/// `max_window_layers`, which may be any integer.
fn first_window_layer(f: &Fields, default: usize) -> Result<i64> {
    let Some(v) = f.get("max_window_layers") else { return Ok(default as i64) };
    v.as_i64().ok_or_else(|| f.bad(format!("`max_window_layers` is {}, expected an integer", short(v))))
}

fn sliding_layers(f: &Fields, list: &[Value]) -> Result<bool> {
    let mut sliding = false;
    for v in list {
        match v.as_str() {
            Some("full_attention" | "attention") => {}
            Some("sliding_attention") => sliding = true,
            _ => {
                return Err(f.bad(format!(
                    "`layer_types` has {}, which is not supported; supported: full_attention, sliding_attention",
                    short(v)
                )));
            }
        }
    }
    Ok(sliding)
}
