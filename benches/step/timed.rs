//! A backend that passes every op on and measures how long it takes, kind by kind.
//!
//! It waits after every op, so a step through it takes longer than one that is only measured as a whole.

use fusedpo::backend::*;
use fusedpo::batch::{Capacity, MicroBatch};
use fusedpo::error::Result;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Ops of one kind.
#[derive(Clone, Copy, Debug)]
pub enum Family {
    Gemm,
    Attention,
    Head,
    Rows,
    Optimizer,
}

/// What people call them, in the order of [`Family`].
pub const FAMILIES: [&str; 5] = ["gemm", "attention", "head_loss", "norm_elementwise", "optimizer"];

/// See the [module](self).
pub struct Timed<B> {
    be: B,
    nanos: [AtomicU64; 5],
    calls: AtomicU64,
    /// Whether ops are waited for and timed.
    waits: AtomicBool,
}

impl<B: Backend> Timed<B> {
    pub fn new(be: B) -> Self {
        Timed { be, nanos: Default::default(), calls: AtomicU64::new(0), waits: AtomicBool::new(true) }
    }
    pub fn inner(&self) -> &B {
        &self.be
    }
    /// Whether ops are waited for and timed from now on; otherwise they are passed on alone.
    pub fn wait(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }
    /// Seconds by family and ops since the last call.
    pub fn take(&self) -> ([f64; 5], u64) {
        let seconds = self.nanos.each_ref().map(|n| n.swap(0, Ordering::Relaxed) as f64 / 1e9);
        (seconds, self.calls.swap(0, Ordering::Relaxed))
    }
    fn time(&self, family: Family, op: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.waits.load(Ordering::Relaxed) {
            return op();
        }
        let begun = Instant::now();
        op()?;
        self.be.synchronize()?;
        self.nanos[family as usize].fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl<B: Backend> Device for Timed<B> {
    type Act = B::Act;
    type Acc = B::Acc;
    type Buf<T: Storage> = B::Buf<T>;
    type View<'a, T: Storage> = B::View<'a, T>;
    type ViewMut<'a, T: Storage> = B::ViewMut<'a, T>;
    type Batch = B::Batch;
    type Readback = B::Readback;
    type Graph = B::Graph;

    const MASTER_WEIGHTS: bool = B::MASTER_WEIGHTS;
    const SHAPES_BY_CAPACITY: bool = B::SHAPES_BY_CAPACITY;
    const ASYNC: bool = B::ASYNC;
    const GRAPHS: bool = B::GRAPHS;
    const LOGITS_BYTES: usize = B::LOGITS_BYTES;

    fn fingerprint(&self) -> String {
        self.be.fingerprint()
    }
    fn description(&self) -> String {
        self.be.description()
    }
    fn zeros<T: Storage>(&self, name: &str, len: usize) -> Result<B::Buf<T>> {
        self.be.zeros(name, len)
    }
    fn memory_table(&self) -> Vec<(String, usize)> {
        self.be.memory_table()
    }
    fn counting(&self) -> Self {
        Timed::new(self.be.counting())
    }
    fn memory(&self) -> Result<Option<DeviceMemory>> {
        self.be.memory()
    }
    fn scratch(&self, rows: usize, dim: usize) -> usize {
        self.be.scratch(rows, dim)
    }
    fn reserve(&self, table: &[(String, usize)]) -> Result<()> {
        self.be.reserve(table)
    }
    fn len<T: Storage>(&self, buf: &B::Buf<T>) -> usize {
        self.be.len(buf)
    }
    fn view<'a, T: Storage>(&self, buf: &'a B::Buf<T>, range: Range<usize>) -> B::View<'a, T> {
        self.be.view(buf, range)
    }
    fn view_mut<'a, T: Storage>(&self, buf: &'a mut B::Buf<T>, range: Range<usize>) -> B::ViewMut<'a, T> {
        self.be.view_mut(buf, range)
    }
    fn upload<T: Storage>(&self, dst: B::ViewMut<'_, T>, src: &[T]) -> Result<()> {
        self.be.upload(dst, src)
    }
    fn download<T: Storage>(&self, dst: &mut [T], src: B::View<'_, T>) -> Result<()> {
        self.be.download(dst, src)
    }
    fn copy<T: Storage>(&self, dst: B::ViewMut<'_, T>, src: B::View<'_, T>) -> Result<()> {
        self.be.copy(dst, src)
    }
    fn clear<T: Storage>(&self, dst: B::ViewMut<'_, T>) -> Result<()> {
        self.time(Family::Optimizer, || self.be.clear(dst))
    }
    fn synchronize(&self) -> Result<()> {
        self.be.synchronize()
    }
    fn tune_products(&self, file: &std::path::Path) -> Result<()> {
        self.be.tune_products(file)
    }
    fn readback(&self, len: usize) -> Result<B::Readback> {
        self.be.readback(len)
    }
    fn read_back(&self, to: &mut B::Readback, parts: &[B::View<'_, f64>]) -> Result<()> {
        self.be.read_back(to, parts)
    }
    fn arrived<'a>(&self, from: &'a mut B::Readback) -> Result<&'a [f64]> {
        self.be.arrived(from)
    }
    fn record(&self, ops: impl FnOnce() -> Result<()>) -> Result<B::Graph> {
        self.be.record(ops)
    }
    fn is_current(&self, graph: &B::Graph) -> bool {
        self.be.is_current(graph)
    }
    fn replay(&self, graph: &B::Graph) -> Result<()> {
        self.be.replay(graph)
    }
    fn address<T: Storage>(&self, buf: &B::Buf<T>) -> usize {
        self.be.address(buf)
    }
    fn new_batch(&self, capacity: Capacity, shape: AttnShape) -> Result<B::Batch> {
        self.be.new_batch(capacity, shape)
    }
    fn load_batch(&self, batch: &mut B::Batch, from: &MicroBatch) -> Result<()> {
        self.be.load_batch(batch, from)
    }
    fn rows(&self, batch: &B::Batch) -> usize {
        self.be.rows(batch)
    }
}

/// The ops of each trait, with the names of their arguments and the kind that they are timed as.
macro_rules! timed {
    ($($ops:ident { $($kind:ident: $name:ident($args:ident { $($field:ident),* });)* })*) => { $(
        impl<B: Backend> $ops for Timed<B> { $(
            fn $name(&self, op: $args<'_, Self>) -> Result<()> {
                let $args { $($field),* } = op;
                self.time(Family::$kind, || self.be.$name($args { $($field),* }))
            }
        )* }
    )* };
}
timed! {
    EmbedOps {
        Rows: embed_fwd(EmbedFwd { x, table, batch, dim });
        Rows: embed_bwd(EmbedBwd { dtable, dx, batch, dim });
    }
    NormOps {
        Rows: rmsnorm_fwd(RmsNormFwd { y, rstd, x, w, eps });
        Rows: rmsnorm_again(RmsNormAgain { y, rstd, x, w });
        Rows: rmsnorm_bwd(RmsNormBwd { dx, dw, dy, x, w, rstd, write });
        Rows: qk_norm_fwd(QkNormFwd { qkv, raw, rstd, w, shape, eps });
        Rows: qk_norm_bwd(QkNormBwd { dqkv, dw, raw, rstd, w, shape });
    }
    LinearOps {
        Gemm: linear_fwd(LinearFwd { y, x, w, out, inp, write });
        Gemm: linear_bwd_input(LinearBwdInput { dx, dy, w, out, inp, write });
        Gemm: linear_bwd_weight(LinearBwdWeight { dw, dy, x, out, inp });
        Rows: bias_fwd(BiasFwd { y, bias });
        Rows: bias_bwd(BiasBwd { dbias, dy });
    }
    RopeOps {
        Rows: rope(Rope { qkv, table, batch, shape, direction });
    }
    AttentionOps {
        Attention: attention_fwd(AttentionFwd { out, lse, qkv, batch, shape });
        Attention: attention_bwd(AttentionBwd { dqkv, delta, dout, out, lse, qkv, batch, shape });
    }
    DecodeOps {
        Rows: kv_store(KvStore { k, v, qkv, dst, shape });
        Attention: attention_decode(AttentionDecode { out, qkv, k, v, lens, stride, shape });
    }
    SwigluOps {
        Rows: swiglu_fwd(SwigluFwd { act, gate_up, ffn });
        Rows: swiglu_bwd(SwigluBwd { gate_up, dact, ffn });
    }
    RowOps {
        Rows: gather_rows(GatherRows { out, x, batch, dim });
        Rows: scatter_rows(ScatterRows { dx, dout, batch, dim });
    }
    HeadOps {
        Head: head_fwd(HeadFwd { logp, entropy, log_sum_p2, hit, logits, x, w, batch, chunk, mode });
        Head: logits(Logits { logits, x, w, dim });
        Head: head_bwd(HeadBwd { dx, dw, scaled, logits, x, w, coef });
    }
    LossOps {
        Head: loss(Loss { coef, responses, pairs, logp, entropy, hit, batch, chunk, spec, scale });
    }
    OptimOps {
        Optimizer: grad_norm(GradNorm { norm, g });
        Optimizer: update(Update { w, master, m, v, g, norm, max_grad_norm, rule });
    }
}
