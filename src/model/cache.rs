//! Keys and values of sequences that are being generated.

use super::acts::LayerActs;
use super::load::Model;
use crate::backend::{Backend, KvStore};
use crate::error::Result;

/// Keys and values of every slot, by layer: slot `s` owns rows `s * stride .. (s + 1) * stride`.
pub(super) struct Cache<B: Backend> {
    /// Keys and values, `[slots * stride, kv_width]` each.
    pub layers: Vec<[B::Buf<B::Act>; 2]>,
    /// `[stride, kv_width]`, to move a slot.
    spare: B::Buf<B::Act>,
    /// Rows of a slot.
    pub stride: usize,
    kv_width: usize,
}

impl<B: Backend> Cache<B> {
    /// Room for `slots` sequences of `stride` tokens.
    pub fn new(be: &B, model: &Model<B>, slots: usize, stride: usize) -> Result<Self> {
        let kv_width = model.config.attn_shape().kv_width();
        let n = slots * stride * kv_width;
        let layer = |_| Ok([be.zeros("cached keys", n)?, be.zeros("cached values", n)?]);
        let layers = (0..model.config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, spare: be.zeros("cache move", stride * kv_width)?, stride, kv_width })
    }

    /// Stores the keys and values of `layer`'s rows: row `r` at `dst[r]`.
    pub fn store(&mut self, be: &B, model: &Model<B>, l: usize, layer: &LayerActs<B>, dst: &[u32]) -> Result<()> {
        let a = model.config.attn_shape();
        let [k, v] = &mut self.layers[l];
        let (nk, nv) = (be.len(k), be.len(v));
        let qkv = be.view(&layer.qkv, 0..dst.len() * a.qkv_width());
        be.kv_store(KvStore { k: be.view_mut(k, 0..nk), v: be.view_mut(v, 0..nv), qkv, dst, shape: a })
    }

    /// Copies the first `len` rows of slot `from` to slot `to`.
    pub fn copy_slot(&mut self, be: &B, from: usize, to: usize, len: usize) -> Result<()> {
        let n = len * self.kv_width;
        let start = |slot: usize| slot * self.stride * self.kv_width;
        for buf in self.layers.iter_mut().flatten() {
            be.copy(be.view_mut(&mut self.spare, 0..n), be.view(buf, start(from)..start(from) + n))?;
            be.copy(be.view_mut(buf, start(to)..start(to) + n), be.view(&self.spare, 0..n))?;
        }
        Ok(())
    }
}
