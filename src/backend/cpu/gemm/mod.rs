//! Matrix products: packed panels, micro-kernels, every core (`blocks`), and the same micro-kernels on the calling thread for
//! attention (`tiles`).

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod bf16;
pub(super) mod blocks;
pub(super) mod dispatch;
#[cfg(target_arch = "x86_64")]
mod flush;
pub(super) mod kernel;
pub(super) mod matrix;
#[cfg(target_arch = "x86_64")]
mod pack512;
pub(super) mod packed;
pub(super) mod panels;
#[cfg(target_arch = "x86_64")]
mod parts;
#[cfg(target_arch = "x86_64")]
mod rows;
pub(super) mod setup;
pub(super) mod thin;
mod tiles;

pub use dispatch::{HasGemm, HasTiles};
pub use matrix::{Base, Mat};
pub use packed::Packed;
pub use panels::Side;
pub use setup::{Gemm, GemmPrecision};
pub use tiles::Operand;
