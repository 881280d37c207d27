//! The precision of saved weights: an option of the command line, of `--config` and of [`super::export()`].

use crate::choice;
use safetensors::tensor::Dtype;

choice! {
    /// Dtype of exported weights.
    pub enum SaveDtype: default Source {
        /// Each tensor as in the model that training started from; f32 for a model made from scratch
        Source = "source",
        /// Single precision
        F32 = "f32" | "float32",
        /// bfloat16
        Bf16 = "bf16" | "bfloat16",
        /// IEEE half precision
        F16 = "f16" | "float16",
    }
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
