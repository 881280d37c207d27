//! Generation: the key/value cache, and attention of one query per sequence.

use super::device::{Act, ActMut, AttnShape, Device};
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

/// Ops of generation. Errors: [`crate::Error::Shape`].
pub trait DecodeOps: Device {
    /// See [`KvStore`].
    fn kv_store(&self, op: KvStore<'_, Self>) -> Result<()>;
    /// See [`AttentionDecode`].
    fn attention_decode(&self, op: AttentionDecode<'_, Self>) -> Result<()>;
}
