//! Generation: the key/value cache, and attention of one query per sequence.

use super::device::{AccMut, Act, ActMut, AttnShape, Device, Write};
use super::head::Logits;
use super::linear::LinearFwd;
use crate::error::Result;

/// Appends keys and values of `qkv` to a cache: row `r` goes to cache row `dst[r]` (`u32::MAX`: nowhere).
pub struct KvStore<'a, B: Device> {
    /// cache rows x kv_width.
    pub k: ActMut<'a, B>,
    /// cache rows x kv_width.
    pub v: ActMut<'a, B>,
    /// rows x qkv_width.
    pub qkv: Act<'a, B>,
    /// rows.
    pub dst: &'a [u32],
    /// Heads and their width.
    pub shape: AttnShape,
}

/// One query per sequence against its cache: sequence `s` owns cache rows `s * stride .. s * stride + lens[s]`, its own key
/// included.
pub struct AttentionDecode<'a, B: Device> {
    /// sequences x q_width.
    pub out: ActMut<'a, B>,
    /// sequences x qkv_width.
    pub qkv: Act<'a, B>,
    /// cache rows x kv_width.
    pub k: Act<'a, B>,
    /// cache rows x kv_width.
    pub v: Act<'a, B>,
    /// sequences; each of 1 to `stride`.
    pub lens: &'a [u32],
    /// Cache rows from one sequence to the next.
    pub stride: usize,
    /// Heads and their width.
    pub shape: AttnShape,
}

/// `y {=,+=,= plus +} x w^T` as [`DecodeOps::linear_few`], with the same bits but for drafts, of a weight that was laid out
/// before.
pub struct LinearPacked<'a, B: DecodeOps> {
    /// rows x out.
    pub y: ActMut<'a, B>,
    /// rows x inp.
    pub x: Act<'a, B>,
    /// out x inp.
    pub w: &'a B::Packed,
    /// What becomes of `y`; the operand of [`Write::Plus`] is rows x out.
    pub write: Write<Act<'a, B>>,
}

/// `x w^T` as [`DecodeOps::logits_few`], with the same bits but for drafts, of a weight that was laid out before.
pub struct LogitsPacked<'a, B: DecodeOps> {
    /// At least n x vocab.
    pub logits: AccMut<'a, B>,
    /// n x dim.
    pub x: Act<'a, B>,
    /// vocab x dim.
    pub w: &'a B::Packed,
}

/// What a weight is laid out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Products with its bits.
    Whole,
    /// The same, where its elements fit into half the memory as they are: bf16 or f16 values.
    Half,
    /// Guesses of its products: rounded, in a quarter of the memory or so.
    Draft,
}

/// Ops of generation. Errors: [`crate::Error::Shape`].
pub trait DecodeOps: Device {
    /// A weight as products of few rows read it fastest.
    type Packed: Send + Sync;
    /// Room for a weight of `out x inp`, entered in the memory table under `name` with the most that it can take; `None`
    /// where weights are read fastest as they lie, or there is nothing of that layout.
    fn packed_room(&self, name: &str, out: usize, inp: usize, layout: Layout) -> Result<Option<Self::Packed>>;
    /// Lays out a weight in room made for its sizes; whether it has that layout.
    fn pack_weight(&self, to: &mut Self::Packed, w: Act<'_, Self>) -> Result<bool>;
    /// `linear_fwd` for the few rows of generation: its bits may be others, but are as little a matter of the rows beside them.
    fn linear_few(&self, op: LinearFwd<'_, Self>) -> Result<()>;
    /// `logits` in the same way.
    fn logits_few(&self, op: Logits<'_, Self>) -> Result<()>;
    /// See [`LinearPacked`].
    fn linear_packed(&self, op: LinearPacked<'_, Self>) -> Result<()>;
    /// See [`LogitsPacked`].
    fn logits_packed(&self, op: LogitsPacked<'_, Self>) -> Result<()>;
    /// See [`KvStore`].
    fn kv_store(&self, op: KvStore<'_, Self>) -> Result<()>;
    /// See [`AttentionDecode`].
    fn attention_decode(&self, op: AttentionDecode<'_, Self>) -> Result<()>;
}
