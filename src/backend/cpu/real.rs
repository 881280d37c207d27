//! The element types of the CPU.

use super::gemm::dispatch::{HasGemm, HasTiles};
use super::scalar::Scalar;

/// `f32` or `f64`: what has arithmetic and products.
pub trait Real: Scalar + HasGemm + HasTiles {}
impl<S: Scalar + HasGemm + HasTiles> Real for S {}
