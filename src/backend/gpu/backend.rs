//! [`Backend`] for [`Gpu`]: every op is the method of the same name in its own file.

use super::batch::GpuBatch;
use super::driver::{Driver, Dtype, View, ViewMut};
use super::graph::Graph;
use super::pinned::Pinned;
use super::{Buf, Gpu, GpuFloat};
use crate::backend::{
    AttnShape, Backend, DeviceMemory, HeadMode, HeadStats, LossOut, Rotation, Storage, Update, Write,
};
use crate::batch::{Capacity, Chunk, MicroBatch};
use crate::error::{Result, expect_len};
use crate::loss::LossSpec;
use std::ops::Range;
use std::path::Path;

/// Raised whenever a kernel's arithmetic changes in the last bit, so that sidecars of an earlier version are recomputed.
const NUMERICS: u32 = 2;

impl<D: Driver, A: GpuFloat> Backend for Gpu<D, A> {
    type Act = A;
    type Acc = f32;
    type Buf<T: Storage> = Buf<D, T>;
    type View<'a, T: Storage> = View<'a, T>;
    type ViewMut<'a, T: Storage> = ViewMut<'a, T>;
    type Batch = GpuBatch<D>;
    type Readback = Pinned<D, f64>;
    type Graph = Graph<D>;

    const MASTER_WEIGHTS: bool = matches!(A::DTYPE, Dtype::Bf16);
    // A product's rows must not depend on their number, but what the library does inside its algorithm is its own.
    const FIXED_SHAPES: bool = true;
    const ASYNC: bool = true;
    const GRAPHS: bool = true;
    // Every chunk reads and writes the head's f32 gradient once, so chunks must be of thousands of rows: 3533 of a vocabulary
    // of 151936. No more than this: as bf16 gradients in place of the logits they span 2^30 elements, and libraries count
    // some in 32 bits.
    const LOGITS_BYTES: usize = 2 << 30;

    fn fingerprint(&self) -> String {
        format!("gpu-{}-{}-v{NUMERICS}", self.driver.fingerprint(), A::NAME)
    }
    fn description(&self) -> String {
        format!("{}, {}", self.driver.description(), A::NAME)
    }
    fn zeros<T: Storage>(&self, name: &str, len: usize) -> Result<Buf<D, T>> {
        self.alloc(name, len)
    }
    fn memory_table(&self) -> Vec<(String, usize)> {
        self.heap.table()
    }
    fn counting(&self) -> Self {
        self.counting()
    }
    fn memory(&self) -> Result<Option<DeviceMemory>> {
        let (free, all) = self.driver.memory()?;
        Ok(Some(DeviceMemory { used: all.saturating_sub(free), free }))
    }
    fn scratch(&self, _rows: usize, _dim: usize) -> usize {
        0 // taken when the backend is made, and the library's workspace with the driver
    }
    fn reserve(&self, table: &[(String, usize)]) -> Result<()> {
        self.heap.reserve(table)
    }
    fn len<T: Storage>(&self, buf: &Buf<D, T>) -> usize {
        buf.len
    }
    fn view<'a, T: Storage>(&self, buf: &'a Buf<D, T>, range: Range<usize>) -> View<'a, T> {
        buf.view(range)
    }
    fn view_mut<'a, T: Storage>(&self, buf: &'a mut Buf<D, T>, range: Range<usize>) -> ViewMut<'a, T> {
        buf.view_mut(range)
    }
    fn upload<T: Storage>(&self, dst: ViewMut<T>, src: &[T]) -> Result<()> {
        self.put(dst, src)
    }
    fn download<T: Storage>(&self, dst: &mut [T], src: View<T>) -> Result<()> {
        self.get(dst, src)
    }
    fn copy<T: Storage>(&self, dst: ViewMut<T>, src: View<T>) -> Result<()> {
        expect_len("copy", "src", src.len, &[("dst", dst.len)])?;
        self.usable("copy")?;
        // SAFETY: views cover their lengths of live buffers of this driver; the lengths agree.
        unsafe { self.driver.copy(dst.at, src.at, dst.len * size_of::<T>()) }
    }
    fn clear<T: Storage>(&self, dst: ViewMut<T>) -> Result<()> {
        self.usable("clear")?;
        // SAFETY: a view covers its length of a live buffer of this driver.
        unsafe { self.driver.clear(dst.at, dst.len * size_of::<T>()) }
    }
    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }
    fn readback(&self, len: usize) -> Result<Pinned<D, f64>> {
        self.pinned(len)
    }
    fn read_back(&self, to: &mut Pinned<D, f64>, parts: &[View<f64>]) -> Result<()> {
        to.download(parts)
    }
    fn arrived<'a>(&self, from: &'a mut Pinned<D, f64>) -> Result<&'a [f64]> {
        Ok(from.open()?)
    }
    fn record(&self, ops: impl FnOnce() -> Result<()>) -> Result<Graph<D>> {
        Graph::record(self, ops)
    }
    fn is_current(&self, graph: &Graph<D>) -> bool {
        graph.is_current()
    }
    fn replay(&self, graph: &Graph<D>) -> Result<()> {
        graph.replay()
    }
    fn tune_products(&self, file: &Path) -> Result<()> {
        self.driver.tune(file)
    }
    fn address<T: Storage>(&self, buf: &Buf<D, T>) -> usize {
        buf.at as usize
    }
    fn new_batch(&self, capacity: Capacity, shape: AttnShape) -> Result<GpuBatch<D>> {
        GpuBatch::new(self, capacity, shape)
    }
    fn load_batch(&self, batch: &mut GpuBatch<D>, from: &MicroBatch) -> Result<()> {
        batch.load(from)
    }
    fn rows(&self, batch: &GpuBatch<D>) -> usize {
        batch.slots()
    }
    fn embed_fwd(&self, x: ViewMut<A>, table: View<A>, batch: &GpuBatch<D>, dim: usize) -> Result<()> {
        self.embed_fwd(x, table, batch, dim)
    }
    fn embed_bwd(&self, dtable: ViewMut<f32>, dx: View<A>, batch: &GpuBatch<D>, dim: usize) -> Result<()> {
        self.embed_bwd(dtable, dx, batch, dim)
    }
    fn rmsnorm_fwd(&self, y: ViewMut<A>, rstd: ViewMut<f32>, x: View<A>, w: View<A>, eps: f64) -> Result<()> {
        self.rmsnorm_fwd(y, rstd, x, w, eps)
    }
    fn rmsnorm_again(&self, y: ViewMut<A>, rstd: View<f32>, x: View<A>, w: View<A>) -> Result<()> {
        self.rmsnorm_again(y, rstd, x, w)
    }
    fn rmsnorm_bwd(
        &self,
        dx: ViewMut<A>,
        dw: Option<ViewMut<f32>>,
        dy: View<A>,
        x: View<A>,
        w: View<A>,
        rstd: View<f32>,
        write: Write<()>,
    ) -> Result<()> {
        self.rmsnorm_bwd(dx, dw, dy, x, w, rstd, write)
    }
    fn linear_fwd(
        &self,
        y: ViewMut<A>,
        x: View<A>,
        w: View<A>,
        out: usize,
        inp: usize,
        write: Write<View<A>>,
    ) -> Result<()> {
        self.linear_fwd(y, x, w, out, inp, write)
    }
    fn linear_bwd_input(
        &self,
        dx: ViewMut<A>,
        dy: View<A>,
        w: View<A>,
        out: usize,
        inp: usize,
        write: Write<()>,
    ) -> Result<()> {
        self.linear_bwd_input(dx, dy, w, out, inp, write)
    }
    fn linear_bwd_weight(&self, dw: ViewMut<f32>, dy: View<A>, x: View<A>, out: usize, inp: usize) -> Result<()> {
        self.linear_bwd_weight(dw, dy, x, out, inp)
    }
    fn bias_fwd(&self, y: ViewMut<A>, bias: View<A>) -> Result<()> {
        self.bias_fwd(y, bias)
    }
    fn bias_bwd(&self, dbias: ViewMut<f32>, dy: View<A>) -> Result<()> {
        self.bias_bwd(dbias, dy)
    }
    fn qk_norm_fwd(
        &self,
        qkv: ViewMut<A>,
        raw: ViewMut<A>,
        rstd: ViewMut<f32>,
        w: View<A>,
        shape: AttnShape,
        eps: f64,
    ) -> Result<()> {
        self.qk_norm_fwd(qkv, raw, rstd, w, shape, eps)
    }
    fn qk_norm_bwd(
        &self,
        dqkv: ViewMut<A>,
        dw: Option<ViewMut<f32>>,
        raw: View<A>,
        rstd: View<f32>,
        w: View<A>,
        shape: AttnShape,
    ) -> Result<()> {
        self.qk_norm_bwd(dqkv, dw, raw, rstd, w, shape)
    }
    fn rope(
        &self,
        qkv: ViewMut<A>,
        table: View<f32>,
        batch: &GpuBatch<D>,
        shape: AttnShape,
        direction: Rotation,
    ) -> Result<()> {
        self.rope(qkv, table, batch, shape, direction)
    }
    fn attention_fwd(
        &self,
        out: ViewMut<A>,
        lse: ViewMut<f32>,
        qkv: View<A>,
        batch: &GpuBatch<D>,
        shape: AttnShape,
    ) -> Result<()> {
        self.attention_fwd(out, lse, qkv, batch, shape)
    }
    fn attention_bwd(
        &self,
        dqkv: ViewMut<A>,
        delta: ViewMut<f32>,
        dout: View<A>,
        out: View<A>,
        lse: View<f32>,
        qkv: View<A>,
        batch: &GpuBatch<D>,
        shape: AttnShape,
    ) -> Result<()> {
        self.attention_bwd(dqkv, delta, dout, out, lse, qkv, batch, shape)
    }
    fn swiglu_fwd(&self, act: ViewMut<A>, gate_up: View<A>, ffn: usize) -> Result<()> {
        self.swiglu_fwd(act, gate_up, ffn)
    }
    fn swiglu_bwd(&self, gate_up: ViewMut<A>, dact: View<A>, ffn: usize) -> Result<()> {
        self.swiglu_bwd(gate_up, dact, ffn)
    }
    fn gather_rows(&self, out: ViewMut<A>, x: View<A>, batch: &GpuBatch<D>, dim: usize) -> Result<()> {
        self.gather_rows(out, x, batch, dim)
    }
    fn scatter_rows(&self, dx: ViewMut<A>, dout: View<A>, batch: &GpuBatch<D>, dim: usize) -> Result<()> {
        self.scatter_rows(dx, dout, batch, dim)
    }
    fn head_fwd(
        &self,
        stats: HeadStats<'_, Self>,
        logits: ViewMut<f32>,
        x: View<A>,
        w: View<A>,
        batch: &GpuBatch<D>,
        chunk: &Chunk,
        mode: HeadMode,
    ) -> Result<()> {
        let HeadStats { logp, entropy, log_sum_p2, hit } = stats;
        self.head_fwd([logp, entropy, log_sum_p2, hit], logits, x, w, batch, chunk, mode)
    }
    fn logits(&self, logits: ViewMut<f32>, x: View<A>, w: View<A>, dim: usize) -> Result<()> {
        self.logits(logits, x, w, dim)
    }
    fn head_bwd(
        &self,
        dx: ViewMut<A>,
        dw: Option<ViewMut<f32>>,
        scaled: ViewMut<A>,
        logits: View<f32>,
        x: View<A>,
        w: View<A>,
        coef: View<f32>,
    ) -> Result<()> {
        self.head_bwd(dx, dw, scaled, logits, x, w, coef)
    }
    fn loss(
        &self,
        out: LossOut<'_, Self>,
        logp: View<f32>,
        entropy: View<f32>,
        hit: View<f32>,
        batch: &GpuBatch<D>,
        chunk: &Chunk,
        spec: &LossSpec,
        scale: f64,
    ) -> Result<()> {
        self.loss((out.coef, out.responses, out.pairs), [logp, entropy, hit], batch, chunk, spec, scale)
    }
    fn kv_store(&self, k: ViewMut<A>, v: ViewMut<A>, qkv: View<A>, dst: &[u32], shape: AttnShape) -> Result<()> {
        self.kv_store(k, v, qkv, dst, shape)
    }
    fn attention_decode(
        &self,
        out: ViewMut<A>,
        qkv: View<A>,
        k: View<A>,
        v: View<A>,
        lens: &[u32],
        stride: usize,
        shape: AttnShape,
    ) -> Result<()> {
        self.attention_decode(out, qkv, k, v, lens, stride, shape)
    }
    fn grad_norm(&self, norm: ViewMut<f64>, g: View<f32>) -> Result<()> {
        self.grad_norm(norm, g)
    }
    fn update(
        &self,
        w: ViewMut<A>,
        master: Option<ViewMut<f32>>,
        m: ViewMut<f32>,
        v: ViewMut<f32>,
        g: View<f32>,
        norm: View<f64>,
        max_grad_norm: f64,
        update: &Update,
    ) -> Result<()> {
        self.update(w, master, m, v, g, norm, max_grad_norm, update)
    }
}
