//! How linear weights of blocks are held in four bits: an option of the command line and of `--config`, and what config.json
//! says.

use crate::choice;

choice! {
    /// What linear weights of blocks are held in.
    pub enum Quantize: default Nf4 {
        /// Four bits a weight, and a magnitude for every 64 of them.
        Nf4 = "nf4",
    }
}

impl Quantize {
    /// With the magnitudes quantized too, or not; `None`: not, as transformers has it.
    pub fn with(self, double: Option<bool>) -> Quantized {
        match self {
            Self::Nf4 => Quantized { double: double.unwrap_or_default() },
        }
    }
}

/// How the linear weights of blocks are held in four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// Whether the magnitudes of blocks are quantised too: 4.127 bits a weight, and not 4.5.
    pub double: bool,
}
