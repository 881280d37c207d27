//! The precision of saved weights: an option of the command line, of `--config` and of [`super::export()`].

use safetensors::tensor::Dtype;

/// Dtype of exported weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum SaveDtype {
    /// Each tensor as in the model that training started from; f32 for a model made from scratch
    Source,
    /// Single precision
    #[serde(alias = "float32")]
    #[clap(alias = "float32")]
    F32,
    /// bfloat16
    #[serde(alias = "bfloat16")]
    #[clap(alias = "bfloat16")]
    Bf16,
    /// IEEE half precision
    #[serde(alias = "float16")]
    #[clap(alias = "float16")]
    F16,
}

impl SaveDtype {
    /// The dtype of a tensor whose dtype in the source is this.
    pub(super) fn of(self, source: Dtype) -> Dtype {
        match self {
            Self::Source => source,
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }
    /// `torch_dtype` in config.json.
    pub(super) fn torch(self) -> Option<&'static str> {
        match self {
            Self::Source => None,
            Self::F32 => Some("float32"),
            Self::Bf16 => Some("bfloat16"),
            Self::F16 => Some("float16"),
        }
    }
}
