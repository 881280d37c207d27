//! A backend that passes every op on and measures how long it takes, family by family.
//!
//! It waits after every op, so a step through it takes longer than one that is only measured as a whole.

use fusedpo::backend::{
    AttnShape, Backend, DeviceMemory, HeadMode, HeadStats, LossOut, Rotation, Storage, Update, Write,
};
use fusedpo::batch::{Capacity, Chunk, MicroBatch};
use fusedpo::error::Result;
use fusedpo::loss::LossSpec;
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

type Act<'a, B> = <B as Backend>::View<'a, <B as Backend>::Act>;
type ActMut<'a, B> = <B as Backend>::ViewMut<'a, <B as Backend>::Act>;
type Acc<'a, B> = <B as Backend>::View<'a, <B as Backend>::Acc>;
type AccMut<'a, B> = <B as Backend>::ViewMut<'a, <B as Backend>::Acc>;

macro_rules! timed {
    ($family:ident: $(fn $name:ident($($arg:ident: $type:ty),*);)*) => { $(
        fn $name(&self, $($arg: $type),*) -> Result<()> {
            self.time(Family::$family, || self.be.$name($($arg),*))
        }
    )* };
}

#[allow(clippy::too_many_arguments)]
impl<B: Backend> Backend for Timed<B> {
    type Act = B::Act;
    type Acc = B::Acc;
    type Buf<T: Storage> = B::Buf<T>;
    type View<'a, T: Storage> = B::View<'a, T>;
    type ViewMut<'a, T: Storage> = B::ViewMut<'a, T>;
    type Batch = B::Batch;
    type Readback = B::Readback;
    type Graph = B::Graph;

    const MASTER_WEIGHTS: bool = B::MASTER_WEIGHTS;
    const FIXED_SHAPES: bool = B::FIXED_SHAPES;
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

    fn head_fwd(
        &self,
        stats: HeadStats<'_, Self>,
        logits: AccMut<'_, B>,
        x: Act<'_, B>,
        w: Act<'_, B>,
        batch: &B::Batch,
        chunk: &Chunk,
        mode: HeadMode,
    ) -> Result<()> {
        let HeadStats { logp, entropy, log_sum_p2, hit } = stats;
        let stats = HeadStats { logp, entropy, log_sum_p2, hit };
        self.time(Family::Head, || self.be.head_fwd(stats, logits, x, w, batch, chunk, mode))
    }
    fn loss(
        &self,
        out: LossOut<'_, Self>,
        logp: Acc<'_, B>,
        entropy: Acc<'_, B>,
        hit: Acc<'_, B>,
        batch: &B::Batch,
        chunk: &Chunk,
        spec: &LossSpec,
        scale: f64,
    ) -> Result<()> {
        let LossOut { coef, responses, pairs } = out;
        let out = LossOut { coef, responses, pairs };
        self.time(Family::Head, || self.be.loss(out, logp, entropy, hit, batch, chunk, spec, scale))
    }

    timed! { Gemm:
        fn linear_fwd(y: ActMut<'_, B>, x: Act<'_, B>, w: Act<'_, B>, out: usize, inp: usize, write: Write<Act<'_, B>>);
        fn linear_bwd_input(dx: ActMut<'_, B>, dy: Act<'_, B>, w: Act<'_, B>, out: usize, inp: usize, write: Write<()>);
        fn linear_bwd_weight(dw: AccMut<'_, B>, dy: Act<'_, B>, x: Act<'_, B>, out: usize, inp: usize);
    }
    timed! { Attention:
        fn attention_fwd(out: ActMut<'_, B>, lse: AccMut<'_, B>, qkv: Act<'_, B>, batch: &B::Batch, shape: AttnShape);
        fn attention_bwd(dqkv: ActMut<'_, B>, delta: AccMut<'_, B>, dout: Act<'_, B>, out: Act<'_, B>, lse: Acc<'_, B>, qkv: Act<'_, B>, batch: &B::Batch, shape: AttnShape);
        fn attention_decode(out: ActMut<'_, B>, qkv: Act<'_, B>, k: Act<'_, B>, v: Act<'_, B>, lens: &[u32], stride: usize, shape: AttnShape);
    }
    timed! { Head:
        fn logits(logits: AccMut<'_, B>, x: Act<'_, B>, w: Act<'_, B>, dim: usize);
        fn head_bwd(dx: ActMut<'_, B>, dw: Option<AccMut<'_, B>>, scaled: ActMut<'_, B>, logits: Acc<'_, B>, x: Act<'_, B>, w: Act<'_, B>, coef: Acc<'_, B>);
    }
    timed! { Rows:
        fn embed_fwd(x: ActMut<'_, B>, table: Act<'_, B>, batch: &B::Batch, dim: usize);
        fn embed_bwd(dtable: AccMut<'_, B>, dx: Act<'_, B>, batch: &B::Batch, dim: usize);
        fn rmsnorm_fwd(y: ActMut<'_, B>, rstd: AccMut<'_, B>, x: Act<'_, B>, w: Act<'_, B>, eps: f64);
        fn rmsnorm_again(y: ActMut<'_, B>, rstd: Acc<'_, B>, x: Act<'_, B>, w: Act<'_, B>);
        fn rmsnorm_bwd(dx: ActMut<'_, B>, dw: Option<AccMut<'_, B>>, dy: Act<'_, B>, x: Act<'_, B>, w: Act<'_, B>, rstd: Acc<'_, B>, write: Write<()>);
        fn bias_fwd(y: ActMut<'_, B>, bias: Act<'_, B>);
        fn bias_bwd(dbias: AccMut<'_, B>, dy: Act<'_, B>);
        fn qk_norm_fwd(qkv: ActMut<'_, B>, raw: ActMut<'_, B>, rstd: AccMut<'_, B>, w: Act<'_, B>, shape: AttnShape, eps: f64);
        fn qk_norm_bwd(dqkv: ActMut<'_, B>, dw: Option<AccMut<'_, B>>, raw: Act<'_, B>, rstd: Acc<'_, B>, w: Act<'_, B>, shape: AttnShape);
        fn rope(qkv: ActMut<'_, B>, table: Acc<'_, B>, batch: &B::Batch, shape: AttnShape, direction: Rotation);
        fn swiglu_fwd(act: ActMut<'_, B>, gate_up: Act<'_, B>, ffn: usize);
        fn swiglu_bwd(gate_up: ActMut<'_, B>, dact: Act<'_, B>, ffn: usize);
        fn gather_rows(out: ActMut<'_, B>, x: Act<'_, B>, batch: &B::Batch, dim: usize);
        fn scatter_rows(dx: ActMut<'_, B>, dout: Act<'_, B>, batch: &B::Batch, dim: usize);
        fn kv_store(k: ActMut<'_, B>, v: ActMut<'_, B>, qkv: Act<'_, B>, dst: &[u32], shape: AttnShape);
    }
    timed! { Optimizer:
        fn grad_norm(norm: B::ViewMut<'_, f64>, g: Acc<'_, B>);
        fn update(w: ActMut<'_, B>, master: Option<AccMut<'_, B>>, m: AccMut<'_, B>, v: AccMut<'_, B>, g: Acc<'_, B>, norm: B::View<'_, f64>, max_grad_norm: f64, update: &Update);
    }
}
