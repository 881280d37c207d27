//! A configuration as a file.

use super::ModelConfig;
use crate::model::rope::RopeScaling;
use serde_json::{Value, json};

impl ModelConfig {
    /// The fields as a config.json that transformers 4 and 5 read, for a model made from scratch.
    pub fn to_json(&self, dtype: &str) -> Value {
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
            "rope_scaling": scaling(&self.rope.scaling),
            "hidden_act": "silu",
            "attention_bias": self.o_bias,
            "sliding_window": self.sliding_window,
            "use_sliding_window": self.sliding_window.is_some(),
            // In every layer, where there is one.
            "max_window_layers": 0,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "torch_dtype": dtype,
        })
    }
}

/// `rope_scaling`, in the words of both generations of transformers.
fn scaling(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": whole(*original_max_position_embeddings),
        }),
        RopeScaling::Dynamic { factor, .. } => json!({"rope_type": "dynamic", "factor": factor}),
        RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "attention_factor": attention_factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "original_max_position_embeddings": whole(*original_max_position_embeddings),
            "truncate": truncate,
        }),
        RopeScaling::LongRope { short_factor, long_factor, attention_factor, original_max_position_embeddings } => {
            json!({
                "rope_type": "longrope",
                "short_factor": short_factor,
                "long_factor": long_factor,
                "attention_factor": attention_factor,
                "original_max_position_embeddings": whole(*original_max_position_embeddings),
            })
        }
        RopeScaling::Proportional { factor, part } => {
            json!({"rope_type": "proportional", "factor": factor, "partial_rotary_factor": part})
        }
    }
}

/// An integer, where it is one: transformers wants it so.
fn whole(n: f64) -> Value {
    if n.fract() == 0.0 && n < 1e15 { json!(n as u64) } else { json!(n) }
}
