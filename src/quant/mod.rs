//! Weights in four bits: NF4 (Dettmers et al. 2023, QLoRA, arXiv 2305.14314), in bitsandbytes' layout, to the byte.
//!
//! A tensor is taken row by row, in blocks of [`nf4::BLOCK`] numbers, also across rows. A block keeps its largest magnitude
//! (`absmax`) and for every number the place of the nearest of [`nf4::CODE`] times that; two places a byte, the first in the
//! upper half. That is 4.5 bits a number. With double quantisation the magnitudes lose their mean and are kept in 8 bits
//! themselves ([`dynamic`]): 4.127 bits.
//!
//! What a weight is, is `round(code x absmax)`, in the type that it had before. No device and no file is known here.

pub mod dynamic;
pub mod nf4;
pub mod precision;
pub mod state;
pub mod tensor;

pub use dynamic::Dynamic;
pub use precision::Precision;
pub use tensor::{Absmax, Nf4Tensor};
