//! The boundary between the model and a device: about thirty ops at the granularity of llm.c, two families of
//! implementations ([`cpu`] and `gpu`), no tensor algebra.
//!
//! [`ops`] are the contracts: a trait a family of ops, a struct of arguments an op. `cpu/x.rs` and `gpu/x.rs` implement the
//! trait of `ops/x.rs` beside their code, and the kernel is in `kernels/x.cu`: nothing forwards in between.
//!
//! # Rules of every op
//! - Outputs first, inputs next, sizes last. Row-major, dense. `rows` counts token slots, `dim` the hidden size,
//!   `ffn` the MLP width, `vocab` the vocabulary, `heads`/`kv_heads` attention heads.
//! - Lengths are checked before anything is computed: [`crate::Error::Shape`].
//! - Parameter gradients accumulate (`+=`) in [`Device::Acc`]; activation gradients are set, unless [`Write`] says otherwise.
//! - Every reduction has a fixed order: same inputs, same bits.
//! - An output row depends on its own inputs alone: not on the number of rows, their place, nor what else is packed
//!   beside it.
//! - Ops enqueue; only [`Device::download`], [`Device::arrived`] and [`Device::synchronize`] wait. No op allocates.

pub mod code8;
pub mod cpu;
pub mod dropout;
#[allow(unsafe_code)] // launches kernels on addresses
pub mod gpu;
pub mod metered;
pub mod ops;
pub mod rounding;
pub mod watched;

pub use ops::*;

/// A device and all of its ops. See the [module](self) for the rules that every op keeps.
pub trait Backend:
    Device
    + EmbedOps
    + NormOps
    + LinearOps
    + AdapterOps
    + DropoutOps
    + QuantOps
    + RopeOps
    + AttentionOps
    + DecodeOps
    + SwigluOps
    + RowOps
    + HeadOps
    + LossOps
    + OptimOps
    + SmallStateOps
    + RankOps
{
}

impl<B> Backend for B where
    B: Device
        + EmbedOps
        + NormOps
        + LinearOps
        + AdapterOps
        + DropoutOps
        + QuantOps
        + RopeOps
        + AttentionOps
        + DecodeOps
        + SwigluOps
        + RowOps
        + HeadOps
        + LossOps
        + OptimOps
        + SmallStateOps
        + RankOps
{
}
