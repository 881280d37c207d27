//! Where and how to compute: options whose values have names.

use crate::choice;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

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
        /// bf16 inputs, fp32 accumulation, fp32 master weights unless the optimizer keeps none.
        Bf16 = "bf16" | "bfloat16",
    }
}

choice! {
    /// Precision of the head's logits.
    pub enum LogitsChoice: default F32 {
        /// Single precision.
        F32 = "f32" | "float32",
        /// bf16 but for the target's, on a GPU with weights in bf16: less to move, less precise (docs/gpu.md).
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

/// Where to go on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PathBuf", into = "PathBuf")]
pub enum Resume {
    /// The last checkpoint of the run's folder; without one it begins.
    Auto,
    /// This checkpoint, `RUN/checkpoint-STEP`.
    Path(PathBuf),
}

impl From<PathBuf> for Resume {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "auto" { Self::Auto } else { Self::Path(path) }
    }
}

impl From<Resume> for PathBuf {
    fn from(resume: Resume) -> Self {
        match resume {
            Resume::Auto => "auto".into(),
            Resume::Path(path) => path,
        }
    }
}

choice! {
    /// What gradients are summed up in.
    pub enum GradientChoice: default F32 {
        /// Single precision.
        F32 = "f32" | "float32",
        /// bf16, rounded once a micro-batch; norms and biases in single precision.
        Bf16 = "bf16" | "bfloat16",
    }
}

impl GradientChoice {
    /// Whether it says what runs did that knew no other: their checkpoints are of the same run.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
