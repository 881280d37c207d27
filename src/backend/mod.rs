//! The boundary between the model and a device: about thirty ops at the granularity of llm.c, two families of
//! implementations ([`cpu`] and `gpu`), no tensor algebra.
//!
//! # Rules of every op
//! - Outputs first, inputs next, sizes last. Row-major, dense. `rows` counts token slots, `dim` the hidden size,
//!   `ffn` the MLP width, `vocab` the vocabulary, `heads`/`kv_heads` attention heads.
//! - Lengths are checked before anything is computed: [`crate::Error::Shape`].
//! - Parameter gradients accumulate (`+=`) in [`Backend::Acc`]; activation gradients are set, unless [`Write`] says otherwise.
//! - Every reduction has a fixed order: same inputs, same bits.
//! - An output row depends on its own inputs alone: not on the number of rows, their place, nor what else is packed
//!   beside it.
//! - Ops enqueue; only [`Backend::download`], [`Backend::arrived`] and [`Backend::synchronize`] wait. No op allocates.

pub mod cpu;
pub mod gpu;

use crate::batch::{Capacity, Chunk, MicroBatch};
use crate::error::Result;
use crate::loss::LossSpec;
use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;

/// An element that buffers can hold.
pub trait Storage: bytemuck::Pod + PartialEq + Debug + Send + Sync {
    /// Name for messages: `f32`, `bf16`, ...
    const NAME: &'static str;
}

/// A floating-point [`Storage`].
pub trait Float: Storage {
    /// Nearest value.
    fn from_f64(x: f64) -> Self;
    /// Exact value.
    fn to_f64(self) -> f64;
}

macro_rules! storage {
    ($($t:ty = $name:literal),*) => { $(impl Storage for $t { const NAME: &'static str = $name; })* };
}
storage!(f32 = "f32", f64 = "f64", u32 = "u32", half::bf16 = "bf16");

impl Float for f32 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.into()
    }
}
impl Float for f64 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
}
impl Float for half::bf16 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        // half's own from_f64 looks at the upper 32 bits only, so that some f32 values round as if they were ties.
        half::bf16::from_f32(x as f32)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        half::bf16::to_f64(self)
    }
}

/// What an op does with its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write<V> {
    /// Overwrite.
    Set,
    /// Add to what is there.
    Add,
    /// Overwrite with the result plus this operand (a residual stream that must be kept).
    Plus(V),
}

/// Attention geometry. A row of `qkv` is `heads * head_dim` queries, then `kv_heads * head_dim` keys, then as many values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttnShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`. Query head `h` reads key/value head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl AttnShape {
    /// `heads * head_dim`: width of the queries and of attention's output.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// `kv_heads * head_dim`: width of the keys, and of the values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
    /// Width of a row of `qkv`.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }
}

/// Direction of the rotary embedding: backward rotates by the negative angle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// `+theta`.
    Forward,
    /// `-theta`.
    Backward,
}

/// Whether the head leaves the unscaled gradient in the logits buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadMode {
    /// Statistics only; what is left in the logits buffer is unspecified.
    Score,
    /// Statistics, and `G = onehot(target) - softmax(z)` in the logits buffer, for [`Backend::head_bwd`].
    Train,
}

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes in use before anything is asked for: on the CPU by this process, on a GPU by anybody.
    pub used: usize,
    /// Bytes that can still be had.
    pub free: usize,
}

/// Per-prediction outputs of the head, each `[predictions]`.
pub struct HeadStats<'a, B: Backend> {
    /// `log softmax(z)[target]`, nats.
    pub logp: B::ViewMut<'a, B::Acc>,
    /// `-sum p log p`, nats.
    pub entropy: B::ViewMut<'a, B::Acc>,
    /// `log sum p^2` (WPO's weight needs it).
    pub log_sum_p2: B::ViewMut<'a, B::Acc>,
    /// 1 where the target is the argmax (the lowest index among equals), else 0.
    pub hit: B::ViewMut<'a, B::Acc>,
}

/// Numbers per response in [`LossOut::responses`]: sum of logp, of entropy, of hits, and the response's own loss (SFT).
pub const RESPONSE_STATS: usize = 4;
/// Numbers per pair in [`LossOut::pairs`]: the unweighted loss, reward of chosen, reward of rejected (`beta * (logp - ref_logp)`).
pub const PAIR_STATS: usize = 3;

/// Outputs of [`Backend::loss`] for one chunk.
pub struct LossOut<'a, B: Backend> {
    /// `dL/dlogp` of every prediction of the chunk, `[predictions]`.
    pub coef: B::ViewMut<'a, B::Acc>,
    /// `[responses, RESPONSE_STATS]` of the chunk.
    pub responses: B::ViewMut<'a, f64>,
    /// `[pairs, PAIR_STATS]` of the chunk.
    pub pairs: B::ViewMut<'a, f64>,
}

/// One optimiser update; everything that a kernel needs by value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    /// Loshchilov & Hutter 2019, as `torch.optim.AdamW`: decoupled decay, bias correction by `step` (from 1).
    AdamW {
        /// Learning rate of this step.
        lr: f64,
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the corrected second moment.
        eps: f64,
        /// Decoupled weight decay.
        weight_decay: f64,
        /// Number of this step, from 1.
        step: u64,
    },
    /// `torch.optim.RMSprop` (not centred, no momentum): the optimiser of the DPO paper's code.
    RmsProp {
        /// Learning rate of this step.
        lr: f64,
        /// Smoothing constant.
        alpha: f64,
        /// Added to the root.
        eps: f64,
        /// L2 penalty added to the gradient.
        weight_decay: f64,
    },
}

/// A device and its ops. See the [module](self) for the rules that every op keeps.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Weights in compute precision, activations and their gradients.
    type Act: Float;
    /// Statistics, logits, parameter gradients, master weights, optimiser moments.
    type Acc: Float;
    /// Memory owned on the device.
    type Buf<T: Storage>: Send + Sync;
    /// Borrowed part of a buffer.
    type View<'a, T: Storage>: Copy;
    /// Mutably borrowed part of a buffer.
    type ViewMut<'a, T: Storage>;
    /// A [`MicroBatch`] on the device, with whatever tables its attention needs.
    type Batch: Send;
    /// Numbers on their way from the device to the host.
    type Readback: Send;
    /// Ops recorded once, to be enqueued again and again.
    type Graph: Send;

    /// True where `Act` is narrower than `Acc`, so that the optimiser needs master weights of its own.
    const MASTER_WEIGHTS: bool;
    /// True where the number of slots decides which shapes a library is asked for: the number is then part of what a
    /// reference log-prob is kept under.
    const FIXED_SHAPES: bool = false;
    /// True where ops return before they are done, so that it pays to read their results late.
    const ASYNC: bool = false;
    /// True where [`Backend::record`] can record.
    const GRAPHS: bool = false;
    /// Bytes of logits alive at a time: the head works in chunks of as many rows as fit.
    const LOGITS_BYTES: usize = 128 << 20;

    /// What decides the last bit of a result: backend, dtype, SIMD level or architecture. Part of a sidecar's key.
    fn fingerprint(&self) -> String;
    /// For people: `CPU, 2 threads, AVX-512`.
    fn description(&self) -> String;

    /// `len` zeros, entered in the memory table under `name`.
    fn zeros<T: Storage>(&self, name: &str, len: usize) -> Result<Self::Buf<T>>;
    /// Bytes handed out so far, by name, in order of allocation.
    fn memory_table(&self) -> Vec<(String, usize)>;
    /// A backend of the same kind with an empty memory table that only counts: what `zeros` and `new_batch` give owns
    /// nothing and must not be read or written. What is built on it tells what building it here would take.
    fn counting(&self) -> Self;
    /// Memory of the device, where the system tells.
    fn memory(&self) -> Result<Option<DeviceMemory>>;
    /// Most bytes beyond the memory table that ops keep for themselves, for batches of `rows` slots and a hidden size of
    /// `dim`.
    fn scratch(&self, rows: usize, dim: usize) -> usize;
    /// Takes the memory of everything in `table` from the device at once, for the next [`Backend::zeros`] to hand out. Where
    /// memory is plentiful only once it is written to, this does nothing.
    fn reserve(&self, table: &[(String, usize)]) -> Result<()>;
    /// Elements of a buffer.
    fn len<T: Storage>(&self, buf: &Self::Buf<T>) -> usize;
    /// Elements `range` of `buf`. Panics when out of range: ranges come from checked tables.
    fn view<'a, T: Storage>(&self, buf: &'a Self::Buf<T>, range: Range<usize>) -> Self::View<'a, T>;
    /// Elements `range` of `buf`, to write.
    fn view_mut<'a, T: Storage>(&self, buf: &'a mut Self::Buf<T>, range: Range<usize>) -> Self::ViewMut<'a, T>;
    /// Host to device.
    fn upload<T: Storage>(&self, dst: Self::ViewMut<'_, T>, src: &[T]) -> Result<()>;
    /// Device to host; waits.
    fn download<T: Storage>(&self, dst: &mut [T], src: Self::View<'_, T>) -> Result<()>;
    /// Device to device, equal lengths.
    fn copy<T: Storage>(&self, dst: Self::ViewMut<'_, T>, src: Self::View<'_, T>) -> Result<()>;
    /// Fills with zero bytes.
    fn clear<T: Storage>(&self, dst: Self::ViewMut<'_, T>) -> Result<()>;
    /// Waits for everything enqueued.
    fn synchronize(&self) -> Result<()>;

    /// Room on the host for up to `len` numbers that are read back.
    fn readback(&self, len: usize) -> Result<Self::Readback>;
    /// Enqueues copies of `parts`, one after the other, to `to`.
    fn read_back(&self, to: &mut Self::Readback, parts: &[Self::View<'_, f64>]) -> Result<()>;
    /// Waits for the last [`Backend::read_back`], and for nothing enqueued after it.
    fn arrived<'a>(&self, from: &'a mut Self::Readback) -> Result<&'a [f64]>;

    /// Records what `ops` enqueues, without running it. Errors: a device that cannot; `ops` allocated, waited, or moved
    /// data between host and device.
    fn record(&self, ops: impl FnOnce() -> Result<()>) -> Result<Self::Graph>;
    /// Whether the graph can still be enqueued: no memory of the device was given back since it was recorded.
    fn is_current(&self, graph: &Self::Graph) -> bool;
    /// Enqueues recorded ops. Errors: the graph is not current.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
    /// From now on chooses the algorithms of gradients' products by timing them, once a shape, and keeps the choices in
    /// `file`: with the same file the same bits. Errors: a device with nothing to choose from, a file of another device.
    fn tune_products(&self, file: &Path) -> Result<()>;
    /// Where a buffer is: recorded ops keep to it.
    fn address<T: Storage>(&self, buf: &Self::Buf<T>) -> usize;

    /// An empty batch that can take any micro-batch within `capacity`, for attention over `shape`.
    fn new_batch(&self, capacity: Capacity, shape: AttnShape) -> Result<Self::Batch>;
    /// Replaces the content of `batch`.
    fn load_batch(&self, batch: &mut Self::Batch, from: &MicroBatch) -> Result<()>;
    /// Rows that ops on `batch` compute: live rows on the CPU, some more where there must be few shapes.
    fn rows(&self, batch: &Self::Batch) -> usize;

    /// `x[t] = table[token[t]]`. Shapes: `x` rows x dim, `table` vocab x dim.
    fn embed_fwd(
        &self,
        x: Self::ViewMut<'_, Self::Act>,
        table: Self::View<'_, Self::Act>,
        batch: &Self::Batch,
        dim: usize,
    ) -> Result<()>;
    /// `dtable[id] += sum of dx[t] over live rows with token id`, in row order. Shapes as [`Backend::embed_fwd`].
    fn embed_bwd(
        &self,
        dtable: Self::ViewMut<'_, Self::Acc>,
        dx: Self::View<'_, Self::Act>,
        batch: &Self::Batch,
        dim: usize,
    ) -> Result<()>;

    /// `y = x * rstd * w`, `rstd = 1 / sqrt(mean(x^2) + eps)`. Shapes: `x`, `y` rows x dim, `rstd` rows, `w` dim.
    /// Source: Zhang & Sennrich 2019, eq. 4; eps inside the root as in Hugging Face Llama.
    fn rmsnorm_fwd(
        &self,
        y: Self::ViewMut<'_, Self::Act>,
        rstd: Self::ViewMut<'_, Self::Acc>,
        x: Self::View<'_, Self::Act>,
        w: Self::View<'_, Self::Act>,
        eps: f64,
    ) -> Result<()>;
    /// `y = x * rstd * w` with the `rstd` of the forward pass: the norm's output again, for activations that were not kept.
    fn rmsnorm_again(
        &self,
        y: Self::ViewMut<'_, Self::Act>,
        rstd: Self::View<'_, Self::Acc>,
        x: Self::View<'_, Self::Act>,
        w: Self::View<'_, Self::Act>,
    ) -> Result<()>;
    /// `dx {=,+=} rstd * (w dy - x * rstd^2 * mean(w dy x))`, `dw += sum over rows of dy * x * rstd` (rows in order;
    /// `None`: the weight is frozen). `write` is [`Write::Set`] or [`Write::Add`].
    #[allow(clippy::too_many_arguments)]
    fn rmsnorm_bwd(
        &self,
        dx: Self::ViewMut<'_, Self::Act>,
        dw: Option<Self::ViewMut<'_, Self::Acc>>,
        dy: Self::View<'_, Self::Act>,
        x: Self::View<'_, Self::Act>,
        w: Self::View<'_, Self::Act>,
        rstd: Self::View<'_, Self::Acc>,
        write: Write<()>,
    ) -> Result<()>;

    /// `y {=,+=,= plus +} x w^T`. Shapes: `y` rows x out, `x` rows x inp, `w` out x inp (Hugging Face's `Linear`).
    fn linear_fwd(
        &self,
        y: Self::ViewMut<'_, Self::Act>,
        x: Self::View<'_, Self::Act>,
        w: Self::View<'_, Self::Act>,
        out: usize,
        inp: usize,
        write: Write<Self::View<'_, Self::Act>>,
    ) -> Result<()>;
    /// `dx {=,+=} dy w`. Shapes as [`Backend::linear_fwd`].
    fn linear_bwd_input(
        &self,
        dx: Self::ViewMut<'_, Self::Act>,
        dy: Self::View<'_, Self::Act>,
        w: Self::View<'_, Self::Act>,
        out: usize,
        inp: usize,
        write: Write<()>,
    ) -> Result<()>;
    /// `dw += dy^T x`. Shapes as [`Backend::linear_fwd`].
    fn linear_bwd_weight(
        &self,
        dw: Self::ViewMut<'_, Self::Acc>,
        dy: Self::View<'_, Self::Act>,
        x: Self::View<'_, Self::Act>,
        out: usize,
        inp: usize,
    ) -> Result<()>;
    /// `y += bias` for every row. Shapes: `y` rows x dim, `bias` dim.
    fn bias_fwd(&self, y: Self::ViewMut<'_, Self::Act>, bias: Self::View<'_, Self::Act>) -> Result<()>;
    /// `dbias += sum over rows of dy`, rows in order.
    fn bias_bwd(&self, dbias: Self::ViewMut<'_, Self::Acc>, dy: Self::View<'_, Self::Act>) -> Result<()>;

    /// Qwen3's q/k norm: RMSNorm of every query head by the first head_dim numbers of `w`, of every key head by the others,
    /// in place in `qkv`. `raw` keeps the queries and keys from before, rows x (q_width + kv_width); `rstd` is rows x
    /// (heads + kv_heads), `w` 2 x head_dim.
    #[allow(clippy::too_many_arguments)]
    fn qk_norm_fwd(
        &self,
        qkv: Self::ViewMut<'_, Self::Act>,
        raw: Self::ViewMut<'_, Self::Act>,
        rstd: Self::ViewMut<'_, Self::Acc>,
        w: Self::View<'_, Self::Act>,
        shape: AttnShape,
        eps: f64,
    ) -> Result<()>;
    /// Turns `dqkv` (gradient of the normed) into the gradient of the raw, in place; `dw` += (`None`: frozen), as `w`.
    fn qk_norm_bwd(
        &self,
        dqkv: Self::ViewMut<'_, Self::Act>,
        dw: Option<Self::ViewMut<'_, Self::Acc>>,
        raw: Self::View<'_, Self::Act>,
        rstd: Self::View<'_, Self::Acc>,
        w: Self::View<'_, Self::Act>,
        shape: AttnShape,
    ) -> Result<()>;

    /// Rotary embedding of queries and keys, in place, NeoX halves: `(a, b) -> (a cos - b sin, b cos + a sin)` with
    /// `a`, `b` elements `i` and `i + head_dim/2`. `table` is positions x head_dim: head_dim/2 cosines, then as many sines.
    fn rope(
        &self,
        qkv: Self::ViewMut<'_, Self::Act>,
        table: Self::View<'_, Self::Acc>,
        batch: &Self::Batch,
        shape: AttnShape,
        direction: Rotation,
    ) -> Result<()>;

    /// Softmax attention over the batch's segments, scale `1 / sqrt(head_dim)`, the prompt's keys shared by its responses.
    /// Shapes: `out` rows x q_width, `lse` rows x heads (natural log of the sum of exponentials), `qkv` rows x qkv_width.
    /// Rows in no segment give zeros.
    fn attention_fwd(
        &self,
        out: Self::ViewMut<'_, Self::Act>,
        lse: Self::ViewMut<'_, Self::Acc>,
        qkv: Self::View<'_, Self::Act>,
        batch: &Self::Batch,
        shape: AttnShape,
    ) -> Result<()>;
    /// Backward of [`Backend::attention_fwd`]; `dqkv` is set in full. `delta` is scratch, rows x heads.
    #[allow(clippy::too_many_arguments)]
    fn attention_bwd(
        &self,
        dqkv: Self::ViewMut<'_, Self::Act>,
        delta: Self::ViewMut<'_, Self::Acc>,
        dout: Self::View<'_, Self::Act>,
        out: Self::View<'_, Self::Act>,
        lse: Self::View<'_, Self::Acc>,
        qkv: Self::View<'_, Self::Act>,
        batch: &Self::Batch,
        shape: AttnShape,
    ) -> Result<()>;

    /// `act = silu(gate) * up`; a row of `gate_up` is `ffn` gates, then `ffn` ups. Shapes: `act` rows x ffn.
    fn swiglu_fwd(
        &self,
        act: Self::ViewMut<'_, Self::Act>,
        gate_up: Self::View<'_, Self::Act>,
        ffn: usize,
    ) -> Result<()>;
    /// Replaces `gate_up` by its gradient, given `dact`.
    fn swiglu_bwd(
        &self,
        gate_up: Self::ViewMut<'_, Self::Act>,
        dact: Self::View<'_, Self::Act>,
        ffn: usize,
    ) -> Result<()>;

    /// `out[n] = x[row of prediction n]`. Shapes: `out` predictions x dim, `x` rows x dim.
    fn gather_rows(
        &self,
        out: Self::ViewMut<'_, Self::Act>,
        x: Self::View<'_, Self::Act>,
        batch: &Self::Batch,
        dim: usize,
    ) -> Result<()>;
    /// `dx[row] = sum of dout[n] over the predictions n of that row`, in order of n; all other rows of `dx` become 0.
    fn scatter_rows(
        &self,
        dx: Self::ViewMut<'_, Self::Act>,
        dout: Self::View<'_, Self::Act>,
        batch: &Self::Batch,
        dim: usize,
    ) -> Result<()>;

    /// The fused head on the predictions of `chunk`: `z = x w^T` into `logits`, then [`HeadStats`] (views of the chunk's part) and, in
    /// [`HeadMode::Train`], the unscaled gradient in place. Shapes: `x` n x dim, `w` vocab x dim, `logits` >= n x vocab.
    #[allow(clippy::too_many_arguments)]
    fn head_fwd(
        &self,
        stats: HeadStats<'_, Self>,
        logits: Self::ViewMut<'_, Self::Acc>,
        x: Self::View<'_, Self::Act>,
        w: Self::View<'_, Self::Act>,
        batch: &Self::Batch,
        chunk: &Chunk,
        mode: HeadMode,
    ) -> Result<()>;
    /// `logits = x w^T` alone, for sampling. Shapes as [`Backend::head_fwd`].
    fn logits(
        &self,
        logits: Self::ViewMut<'_, Self::Acc>,
        x: Self::View<'_, Self::Act>,
        w: Self::View<'_, Self::Act>,
        dim: usize,
    ) -> Result<()>;
    /// `dx = c . (G w)` and `dw += G^T (c . x)`: `c` is one number per row, so it commutes with both products and never
    /// meets the vocabulary. `G` is what [`Backend::head_fwd`] left in `logits`; `scaled` is scratch, n x dim; `dw` `None`: frozen head.
    #[allow(clippy::too_many_arguments)]
    fn head_bwd(
        &self,
        dx: Self::ViewMut<'_, Self::Act>,
        dw: Option<Self::ViewMut<'_, Self::Acc>>,
        scaled: Self::ViewMut<'_, Self::Act>,
        logits: Self::View<'_, Self::Acc>,
        x: Self::View<'_, Self::Act>,
        w: Self::View<'_, Self::Act>,
        coef: Self::View<'_, Self::Acc>,
    ) -> Result<()>;
    /// Per-response sums, losses, metrics and coefficients of one chunk, from the head's statistics and the batch's
    /// reference log-probs. `scale` is 1 / (total pair weight of the global batch), or 1 / (predicted tokens of the global batch) for SFT.
    /// The statistics are views of the chunk's part, `[predictions]`.
    #[allow(clippy::too_many_arguments)]
    fn loss(
        &self,
        out: LossOut<'_, Self>,
        logp: Self::View<'_, Self::Acc>,
        entropy: Self::View<'_, Self::Acc>,
        hit: Self::View<'_, Self::Acc>,
        batch: &Self::Batch,
        chunk: &Chunk,
        spec: &LossSpec,
        scale: f64,
    ) -> Result<()>;

    /// Appends keys and values of `qkv` to a cache: row `r` goes to cache row `dst[r]` (`u32::MAX`: nowhere). `k`, `v`: cache rows x kv_width.
    fn kv_store(
        &self,
        k: Self::ViewMut<'_, Self::Act>,
        v: Self::ViewMut<'_, Self::Act>,
        qkv: Self::View<'_, Self::Act>,
        dst: &[u32],
        shape: AttnShape,
    ) -> Result<()>;
    /// One query per sequence against its cache: sequence `s` owns cache rows `s * stride .. s * stride + lens[s]`, its
    /// own key included. Shapes: `out` sequences x q_width, `qkv` sequences x qkv_width.
    #[allow(clippy::too_many_arguments)]
    fn attention_decode(
        &self,
        out: Self::ViewMut<'_, Self::Act>,
        qkv: Self::View<'_, Self::Act>,
        k: Self::View<'_, Self::Act>,
        v: Self::View<'_, Self::Act>,
        lens: &[u32],
        stride: usize,
        shape: AttnShape,
    ) -> Result<()>;

    /// `norm[0] = sqrt(sum g^2)`, non-finite where any element is; summed in f64 in a fixed order.
    fn grad_norm(&self, norm: Self::ViewMut<'_, f64>, g: Self::View<'_, Self::Acc>) -> Result<()>;
    /// One optimiser step on a range of the arena. The gradient is first scaled by `min(1, max_grad_norm / (norm + 1e-6))`
    /// (`max_grad_norm` 0: not at all). A non-finite `norm` leaves everything as it was. `master` is `Some` exactly where
    /// [`Backend::MASTER_WEIGHTS`]; `w` is then rounded from it. RMSprop leaves `m` alone: it may be
    /// empty.
    #[allow(clippy::too_many_arguments)]
    fn update(
        &self,
        w: Self::ViewMut<'_, Self::Act>,
        master: Option<Self::ViewMut<'_, Self::Acc>>,
        m: Self::ViewMut<'_, Self::Acc>,
        v: Self::ViewMut<'_, Self::Acc>,
        g: Self::View<'_, Self::Acc>,
        norm: Self::View<'_, f64>,
        max_grad_norm: f64,
        update: &Update,
    ) -> Result<()>;
}
