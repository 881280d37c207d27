//! Where and how to compute: options whose values have names.

use crate::choice;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;

/// Where to compute. As torch writes it, a GPU may be named by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// A GPU where one can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first NVIDIA GPU, or of several processes each its own; an error where there is none.
    Cuda,
    /// The NVIDIA GPU of this number.
    CudaAt(u16),
}

impl DeviceChoice {
    /// What a user writes, and what it means.
    pub const NAMES: [(&str, &str); 4] = [
        ("auto", "A GPU where one can be used, else the CPU"),
        ("cpu", "The CPU"),
        ("cuda", "The first NVIDIA GPU, or of several processes each its own; an error where there is none"),
        ("cuda:N", "The NVIDIA GPU of this number, from 0"),
    ];
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |n: &str| n.bytes().all(|b| b.is_ascii_digit()).then(|| n.parse().ok()).flatten();
        let numbered = || text.strip_prefix("cuda:").and_then(number).map(Self::CudaAt);
        let known = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda),
            _ => numbered(),
        };
        let names = || Self::NAMES.map(|(name, _)| format!("`{name}`")).join(", ");
        known.ok_or_else(|| format!("unknown variant `{text}`, expected one of {}", names()))
    }
}

impl Display for DeviceChoice {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Cpu => f.pad("cpu"),
            Self::Cuda => f.pad("cuda"),
            Self::CudaAt(n) => f.pad(&format!("cuda:{n}")),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(device: DeviceChoice) -> Self {
        device.to_string()
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

#[cfg(test)]
mod tests {
    use super::DeviceChoice::{self, Auto, Cpu, Cuda, CudaAt};

    #[test]
    fn a_device_is_written_as_it_is_read() {
        for (text, device) in
            [("auto", Auto), ("cpu", Cpu), ("cuda", Cuda), ("cuda:0", CudaAt(0)), ("cuda:17", CudaAt(17))]
        {
            assert_eq!((text.parse(), device.to_string()), (Ok(device), text.to_owned()));
            assert_eq!(serde_json::to_string(&device).unwrap(), format!("{text:?}"));
            assert_eq!(serde_json::from_str::<DeviceChoice>(&format!("{text:?}")).unwrap(), device);
        }
        let names = "expected one of `auto`, `cpu`, `cuda`, `cuda:N`";
        for text in
            ["", "CUDA", "cuda:", "cuda:N", "cuda:-1", "cuda:+1", "cuda: 1", "cuda:1 ", "cuda:65536", "cpu:0", "gpu"]
        {
            assert_eq!(text.parse::<DeviceChoice>(), Err(format!("unknown variant `{text}`, {names}")));
            let e = serde_json::from_str::<DeviceChoice>(&format!("{text:?}")).unwrap_err();
            assert!(e.to_string().contains(names), "{e}");
        }
    }
}
