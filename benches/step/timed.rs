//! A backend that passes every op on and measures how long it takes, kind by kind.
//!
//! It waits after every op, so a step through it takes longer than one that is only measured as a whole.

use fusedpo::backend::metered::Ceilings;
use fusedpo::backend::*;
use fusedpo::batch::{Capacity, MicroBatch};
use fusedpo::error::Result;
use std::ops::Range;
use std::path::Path;
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

/// What takes no time worth telling.
macro_rules! passed_on {
    ($($name:ident $([$($generic:tt)*])? ($($arg:ident: $type:ty),*) -> $out:ty;)*) => { $(
        fn $name $(<$($generic)*>)? (&self, $($arg: $type),*) -> $out {
            self.be.$name($($arg),*)
        }
    )* };
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
    const OWN_MEMORY: bool = B::OWN_MEMORY;
    const LOGITS_BYTES: usize = B::LOGITS_BYTES;

    fn counting(&self) -> Self {
        Timed::new(self.be.counting())
    }
    fn marked<T>(&self, mark: Mark, work: impl FnOnce() -> T) -> T {
        self.be.marked(mark, work)
    }
    fn computed_rows(used: usize, slots: usize, capacity: usize) -> usize {
        B::computed_rows(used, slots, capacity)
    }
    fn clear<T: Storage>(&self, dst: B::ViewMut<'_, T>) -> Result<()> {
        self.time(Family::Optimizer, || self.be.clear(dst))
    }
    passed_on! {
        fingerprint() -> String;
        products() -> &'static str;
        description() -> String;
        ceilings() -> Ceilings;
        zeros[T: Storage](name: &str, len: usize) -> Result<B::Buf<T>>;
        memory_table() -> Vec<(String, usize)>;
        memory() -> Result<Option<DeviceMemory>>;
        scratch(rows: usize, dim: usize) -> usize;
        attention_partial(slots: usize, shape: &AttnShape) -> usize;
        reserve(table: &[(String, usize)]) -> Result<()>;
        len[T: Storage](buf: &B::Buf<T>) -> usize;
        view['a, T: Storage](buf: &'a B::Buf<T>, range: Range<usize>) -> B::View<'a, T>;
        view_mut['a, T: Storage](buf: &'a mut B::Buf<T>, range: Range<usize>) -> B::ViewMut<'a, T>;
        lend['s, T: Storage](view: &'s mut B::ViewMut<'_, T>) -> B::ViewMut<'s, T>;
        read_only['s, T: Storage](view: &'s B::ViewMut<'_, T>) -> B::View<'s, T>;
        part['s, 'l: 's, T: Storage](view: B::View<'l, T>, range: Range<usize>) -> B::View<'s, T>;
        view_len[T: Storage](view: B::View<'_, T>) -> usize;
        upload[T: Storage](dst: B::ViewMut<'_, T>, src: &[T]) -> Result<()>;
        download[T: Storage](dst: &mut [T], src: B::View<'_, T>) -> Result<()>;
        copy[T: Storage](dst: B::ViewMut<'_, T>, src: B::View<'_, T>) -> Result<()>;
        synchronize() -> Result<()>;
        readback(len: usize) -> Result<B::Readback>;
        read_back(to: &mut B::Readback, parts: &[B::View<'_, f64>]) -> Result<()>;
        arrived['a](from: &'a mut B::Readback) -> Result<&'a [f64]>;
        record(ops: impl FnOnce() -> Result<()>) -> Result<B::Graph>;
        is_current(graph: &B::Graph) -> bool;
        replay(graph: &B::Graph) -> Result<()>;
        tune_products(file: &Path) -> Result<()>;
        address[T: Storage](buf: &B::Buf<T>) -> usize;
        new_batch(capacity: Capacity, shape: AttnShape) -> Result<B::Batch>;
        load_batch(batch: &mut B::Batch, from: &MicroBatch) -> Result<()>;
        rows(batch: &B::Batch) -> usize;
    }
}

impl<B: Backend> DecodeOps for Timed<B> {
    type Packed = B::Packed;

    passed_on! {
        packed_room(name: &str, out: usize, inp: usize, layout: Layout) -> Result<Option<B::Packed>>;
        pack_weight(to: &mut B::Packed, w: Act<'_, B>) -> Result<bool>;
    }
    fn linear_few(&self, op: LinearFwd<'_, Self>) -> Result<()> {
        let LinearFwd { y, x, w, out, inp, write } = op;
        self.time(Family::Gemm, || self.be.linear_few(LinearFwd { y, x, w, out, inp, write }))
    }
    fn logits_few(&self, op: Logits<'_, Self>) -> Result<()> {
        let Logits { logits, x, w, dim } = op;
        self.time(Family::Head, || self.be.logits_few(Logits { logits, x, w, dim }))
    }
    fn linear_packed(&self, op: LinearPacked<'_, Self>) -> Result<()> {
        let LinearPacked { y, x, w, write } = op;
        self.time(Family::Gemm, || self.be.linear_packed(LinearPacked { y, x, w, write }))
    }
    fn logits_packed(&self, op: LogitsPacked<'_, Self>) -> Result<()> {
        let LogitsPacked { logits, x, w } = op;
        self.time(Family::Head, || self.be.logits_packed(LogitsPacked { logits, x, w }))
    }
    fn kv_store(&self, op: KvStore<'_, Self>) -> Result<()> {
        let KvStore { k, v, qkv, dst, shape } = op;
        self.time(Family::Rows, || self.be.kv_store(KvStore { k, v, qkv, dst, shape }))
    }
    fn attention_decode(&self, op: AttentionDecode<'_, Self>) -> Result<()> {
        let AttentionDecode { out, qkv, k, v, lens, stride, shape } = op;
        self.time(Family::Attention, || {
            self.be.attention_decode(AttentionDecode { out, qkv, k, v, lens, stride, shape })
        })
    }
}

fn passed<B: Backend>(of: Dropout<'_, Timed<B>>) -> Dropout<'_, B> {
    let Dropout { batch, predicting, site, p } = of;
    Dropout { batch, predicting, site, p }
}

impl<B: Backend> DropoutOps for Timed<B> {
    passed_on! {
        make_room(batch: &mut B::Batch, capacity: Capacity) -> Result<()>;
    }
    fn dropout_fwd(&self, op: DropoutFwd<'_, Self>) -> Result<()> {
        let DropoutFwd { y, x, dim, dropout } = op;
        let dropout = passed(dropout);
        self.time(Family::Rows, || self.be.dropout_fwd(DropoutFwd { y, x, dim, dropout }))
    }
    fn dropout_bwd(&self, op: DropoutBwd<'_, Self>) -> Result<()> {
        let DropoutBwd { dx, dy, dim, dropout } = op;
        let dropout = passed(dropout);
        self.time(Family::Rows, || self.be.dropout_bwd(DropoutBwd { dx, dy, dim, dropout }))
    }
}

/// The ops of each trait, with the names of their arguments and the kind that they are timed as.
macro_rules! timed {
    ($($ops:ident { $($kind:ident: $name:ident$([$g:ident])?($args:ident { $($field:ident),* });)* })*) => { $(
        impl<B: Backend> $ops for Timed<B> { $(
            fn $name$(<$g: Gradient>)?(&self, op: $args<'_, Self $(, $g)?>) -> Result<()> {
                let $args { $($field),* } = op;
                self.time(Family::$kind, || self.be.$name($args { $($field),* }))
            }
        )* }
    )* };
}
timed! {
    EmbedOps {
        Rows: embed_fwd(EmbedFwd { x, table, batch, dim });
        Rows: embed_bwd[G](EmbedBwd { dtable, dx, batch, dim });
    }
    NormOps {
        Rows: rmsnorm_fwd(RmsNormFwd { y, rstd, x, w, eps });
        Rows: rmsnorm_bwd(RmsNormBwd { dx, dw, dy, x, w, rstd, write, again });
        Rows: qk_norm_fwd(QkNormFwd { qkv, raw, rstd, w, table, batch, shape, eps });
        Rows: qk_norm_bwd(QkNormBwd { dqkv, dw, raw, rstd, w, table, batch, shape });
    }
    LinearOps {
        Gemm: linear_fwd(LinearFwd { y, x, w, out, inp, write });
        Gemm: linear_bwd_input(LinearBwdInput { dx, dy, w, out, inp, write });
        Gemm: linear_bwd_weight[G](LinearBwdWeight { dw, dy, x, out, inp, write });
        Gemm: linear_bwd_part[G](LinearBwdPart { dw, dy, x, columns, out, inp });
        Rows: bias_fwd(BiasFwd { y, bias });
        Rows: bias_bwd(BiasBwd { dbias, dy });
    }
    AdapterOps {
        Gemm: adapter_fwd(AdapterFwd { y, low, x, a, b, parts });
        Gemm: adapter_bwd_low(AdapterBwdLow { dlow, dy, b, parts });
        Gemm: adapter_bwd_weight(AdapterBwdWeight { db, low, dy, x, a, parts });
    }
    QuantOps {
        Gemm: dequantize_nf4(DequantizeNf4 { w, codes, absmax, round });
    }
    RopeOps {
        Rows: rope_fwd(RopeFwd { qkv, bias, table, batch, shape });
        Rows: rope_bwd(RopeBwd { dqkv, dbias, table, batch, shape });
    }
    AttentionOps {
        Attention: attention_fwd(AttentionFwd { out, lse, qkv, batch, shape });
        Attention: attention_bwd(AttentionBwd { dqkv, delta, partial, dout, out, lse, qkv, batch, shape });
    }
    SwigluOps {
        Rows: swiglu_fwd(SwigluFwd { act, gate_up, ffn });
        Rows: swiglu_bwd(SwigluBwd { gate_up, dact, ffn, again });
    }
    RowOps {
        Rows: gather_rows(GatherRows { out, x, batch, dim });
        Rows: scatter_rows(ScatterRows { dx, dout, batch, dim });
    }
    HeadOps {
        Head: head_fwd(HeadFwd { logp, entropy, log_sum_p2, hit, logits, x, w, batch, chunk, mode });
        Head: logits(Logits { logits, x, w, dim });
        Head: head_bwd[G](HeadBwd { dx, dw, scaled, logits, x, w, coef });
    }
    LossOps {
        Head: loss(Loss { coef, responses, pairs, logp, entropy, hit, log_sum_p2, batch, chunk, spec, scales, given });
    }
    OptimOps {
        Optimizer: grad_norm(GradNorm { norm, g });
        Optimizer: grad_norm_narrow(GradNormNarrow { norm, matrices, vectors });
        Optimizer: add(Add { to, from });
        Optimizer: squares(Squares { sums, g, block });
        Optimizer: root(Root { norm, sums });
        Optimizer: update[G](Update { w, master, m, v, g, norm, max_grad_norm, rule });
        Optimizer: mix(Mix { w, master, from, from_master, alpha });
    }
    SmallStateOps {
        Optimizer: update_bf16[G](UpdateBf16 { w, m, v, g, norm, max_grad_norm, rule, rounding });
        Optimizer: update_8bit[G](Update8bit { w, m, m_scale, v, v_scale, g, norm, max_grad_norm, rule, rounding });
    }
}

/// One process.
impl<B: Backend> RankOps for Timed<B> {}
