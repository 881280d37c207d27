//! Generation: the key/value cache, and attention of one query per sequence. Kernels: `kernels/decode.cu`; reference:
//! `backend/cpu/decode.rs`.

use super::check;
use super::context::{Gpu, GpuFloat, columns};
use super::driver::{Arg, Driver, Grid, View};
use super::lock::lock;
use crate::backend::ops::decode::{AttentionDecode, DecodeOps, KvStore, Layout, LinearPacked, LogitsPacked};
use crate::backend::ops::head::{HeadOps, Logits};
use crate::backend::ops::linear::{LinearFwd, LinearOps};
use crate::error::{Error, Result};

impl<D: Driver, A: GpuFloat> DecodeOps for Gpu<D, A> {
    type Packed = std::convert::Infallible;

    fn packed_room(&self, _: &str, _: usize, _: usize, _: Layout) -> Result<Option<Self::Packed>> {
        Ok(None)
    }

    fn pack_weight(&self, to: &mut Self::Packed, _: View<A>) -> Result<bool> {
        match *to {}
    }

    fn linear_few(&self, op: LinearFwd<'_, Self>) -> Result<()> {
        self.linear_fwd(op)
    }

    fn logits_few(&self, op: Logits<'_, Self>) -> Result<()> {
        self.logits(op)
    }

    fn linear_packed(&self, op: LinearPacked<'_, Self>) -> Result<()> {
        match *op.w {}
    }

    fn logits_packed(&self, op: LogitsPacked<'_, Self>) -> Result<()> {
        match *op.w {}
    }

    fn kv_store(&self, op: KvStore<'_, Self>) -> Result<()> {
        const OP: &str = "kv_store";
        let KvStore { mut k, mut v, qkv, dst, shape } = op;
        check::attn(OP, &shape)?;
        let (rows, width) = (dst.len(), shape.kv_width());
        check::len(OP, "qkv", qkv.len(), &[("rows", rows), ("qkv_width", shape.qkv_width())])?;
        let cached = check::rows(OP, "k", k.len(), width)?;
        check::len(OP, "v", v.len(), &[("cache rows", cached), ("kv_width", width)])?;
        if let Some(last) = dst.iter().filter(|d| **d != u32::MAX).max() {
            check::at_least(OP, "k", cached, &[("largest row + 1", *last as usize + 1)])?;
        }
        let int = |name, v| Arg::int(OP, name, v);
        let sizes = [int("rows", rows)?, int("q_width", shape.q_width())?, int("kv_width", width)?];
        let (blocks, threads) = columns::<A>(width, 256);
        self.with_uploaded(dst, |dst| {
            let args = [k.arg(), v.arg(), qkv.arg(), dst.arg(), sizes[0], sizes[1], sizes[2]];
            // SAFETY: `qkv` is rows x qkv_width; every row of `dst` is one of `k` and `v`, as checked above.
            unsafe { self.launch(OP, Grid::new([blocks, rows.min(65535)], threads), &args) }
        })
    }

    fn attention_decode(&self, op: AttentionDecode<'_, Self>) -> Result<()> {
        const OP: &str = "attention_decode";
        let AttentionDecode { mut out, qkv, k, v, lens, stride, shape } = op;
        check::attn(OP, &shape)?;
        check::at_most(OP, "head_dim", shape.head_dim, 256)?;
        let n = lens.len();
        check::len(OP, "out", out.len(), &[("sequences", n), ("q_width", shape.q_width())])?;
        check::len(OP, "qkv", qkv.len(), &[("sequences", n), ("qkv_width", shape.qkv_width())])?;
        check::at_least(OP, "k", k.len(), &[("sequences", n), ("stride", stride), ("kv_width", shape.kv_width())])?;
        check::len(OP, "v", v.len(), &[("elements of k", k.len())])?;
        if let Some(len) = lens.iter().find(|l| **l == 0 || **l as usize > stride) {
            let shape = format!("between 1 and stride={stride}");
            return Err(Error::Shape { op: OP, name: "lens", got: *len as usize, want: stride, shape });
        }
        let int = |name, v| Arg::int(OP, name, v);
        let sizes = [
            int("stride", stride)?,
            int("heads", shape.heads)?,
            int("kv_heads", shape.kv_heads)?,
            int("head_dim", shape.head_dim)?,
        ];
        let scale = Arg::F32((1.0 / (shape.head_dim as f64).sqrt()) as f32);
        self.with_uploaded(lens, |lens| {
            let pointers = [out.arg(), qkv.arg(), k.arg(), v.arg(), lens.arg()];
            let args = [&pointers[..], &sizes, &[scale]].concat();
            // SAFETY: `out` and `qkv` have a row a sequence; `k` and `v` hold `stride` rows for each, of which `lens` are read, as
            // checked above.
            unsafe { self.launch(OP, Grid::new([shape.heads, n], 128), &args) }
        })
    }
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// Calls `f` with `host` on the device. Only generation needs it; the memory grows to the largest ever asked for.
    fn with_uploaded(&self, host: &[u32], f: impl FnOnce(View<u32>) -> Result<()>) -> Result<()> {
        let mut scratch = lock(&self.scratch);
        if scratch.words.as_ref().is_none_or(|w| w.len < host.len()) {
            scratch.words = None;
            scratch.words = Some(self.alloc("decoding tables", host.len().next_power_of_two())?);
        }
        let words = scratch.words.as_mut().expect("made above");
        self.put(words.view_mut(0..host.len()), host)?;
        f(words.view(0..host.len()))
    }
}
