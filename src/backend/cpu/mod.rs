//! The CPU backend: plain Rust, the definition of every op, on every core and with the SIMD that the CPU has.
//!
//! A file per op under the op's name. Underneath them: [`gemm`], its blocks and micro-kernels (matrix products; bf16 ones
//! on AMX or AVX512_BF16), `tiles` (the same micro-kernels inside attention), [`simd`] (run-time dispatch), `real` (element types and fixed-order sums), `par` (dealing rows out to cores), `scratch` (memory that
//! outlives an op). `Cpu<f32>` trains; `Cpu<f64>` is the same code as the tests' oracle.
//!
//! The number of threads never decides a bit: every output element is computed by one task, in an order that depends on
//! sizes alone. Scratch memory is kept between ops, so that from its second use on a size allocates nothing.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod batch;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod check;
mod decode;
mod embed;
pub mod gemm;
mod gemm_blocks;
mod head;
mod kernel;
mod linear;
mod loss;
mod norm;
mod optim;
#[cfg(target_arch = "x86_64")]
mod pack512;
mod pages;
mod par;
mod real;
mod rope;
mod rows;
mod scratch;
pub mod simd;
mod swiglu;
pub(crate) mod system;
mod tiles;

pub use batch::CpuBatch;
use gemm::Gemm;
pub use gemm::GemmPrecision;
pub use real::Real;
use scratch::Scratch;
pub use simd::Level;

use super::{AttnShape, Backend, DeviceMemory, HeadMode, HeadStats, LossOut, Rotation, Storage, Update, Write};
use crate::batch::{Capacity, Chunk, MicroBatch};
use crate::error::{Error, Result};
use crate::loss::LossSpec;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

/// Raised whenever an op's arithmetic changes in the last bit, so that sidecars of an earlier version are recomputed.
const NUMERICS: u32 = 4;

/// The CPU as a device; `S` is the type of everything: `f32`, or `f64` for tests.
pub struct Cpu<S> {
    gemm: Gemm,
    memory: Mutex<Vec<(String, usize)>>,
    /// Whether `zeros` counts alone.
    counting: bool,
    /// What [`Backend::memory`] says is free, where that is not for the system to say.
    free: Option<usize>,
    element: PhantomData<S>,
}

impl<S: Real> Cpu<S> {
    /// The best that this CPU has, products in `S`. Never fails today; the signature leaves room for other devices' reasons.
    pub fn new() -> Result<Self> {
        Self::with(GemmPrecision::Native)
    }

    /// As [`Cpu::new`], with a choice of how `linear_*`, `head_*`, `logits` and `attention_*` (but not `attention_decode`) multiply.
    ///
    /// # Errors
    /// [`Error::Device`] where the CPU has no instructions for it; [`Error::Usage`] for bf16 products of `f64`.
    pub fn with(precision: GemmPrecision) -> Result<Self> {
        Self::at(Level::detect(), precision)
    }

    /// As [`Cpu::with`], restricted to a SIMD level (for tests and measurements).
    pub fn at(level: Level, precision: GemmPrecision) -> Result<Self> {
        let gemm = Gemm::new::<S>(level, precision)?;
        Ok(Cpu { gemm, memory: Mutex::default(), counting: false, free: None, element: PhantomData })
    }

    /// As if the machine had `bytes` free: plans that need more are refused.
    pub fn with_free(self, bytes: usize) -> Self {
        Cpu { free: Some(bytes), ..self }
    }

    /// Bytes that ops have kept for themselves so far; at most [`Backend::scratch`].
    pub fn scratch_bytes(&self) -> usize {
        self.gemm.scratch.bytes()
    }

    /// The products by themselves, for measurements.
    pub fn gemm(&self) -> &Gemm {
        &self.gemm
    }

    fn level(&self) -> Level {
        self.gemm.level
    }

    fn record(&self, name: &str, bytes: usize) {
        // A panic elsewhere leaves a valid table behind.
        self.memory.lock().unwrap_or_else(|e| e.into_inner()).push((name.into(), bytes));
    }
}

/// Whether an op without a third operand adds to its output; "plus nothing" can only mean the output itself.
fn adds(write: Write<()>) -> bool {
    !matches!(write, Write::Set)
}

impl<S: Real> Backend for Cpu<S> {
    type Act = S;
    type Acc = S;
    type Buf<T: Storage> = Vec<T>;
    type View<'a, T: Storage> = &'a [T];
    type ViewMut<'a, T: Storage> = &'a mut [T];
    type Batch = CpuBatch;
    type Readback = Vec<f64>;
    type Graph = std::convert::Infallible;

    const MASTER_WEIGHTS: bool = false;

    fn fingerprint(&self) -> String {
        let (products, level) = match self.gemm.precision {
            GemmPrecision::Native => ("", self.level().without_amx()),
            GemmPrecision::Bf16 => ("-bf16", self.level()),
        };
        format!("cpu-{}{products}-{}-v{NUMERICS}", S::NAME, level.name())
    }
    fn description(&self) -> String {
        let products = match self.gemm.precision {
            GemmPrecision::Native => "",
            GemmPrecision::Bf16 => ", bf16 products",
        };
        let threads = rayon::current_num_threads();
        format!("CPU, {threads} thread{}, {}{products}", if threads == 1 { "" } else { "s" }, self.level().label())
    }

    fn zeros<T: Storage>(&self, name: &str, len: usize) -> Result<Vec<T>> {
        let owned = if self.counting { 0 } else { len };
        let mut buf = bytemuck::allocation::try_zeroed_vec(owned).map_err(|()| {
            let gib = len as f64 * size_of::<T>() as f64 / f64::from(1u32 << 30);
            Error::Device(format!("out of memory: {name} needs {gib:.2} GiB; use a smaller `token_budget` or model"))
        })?;
        pages::make_ready(&mut buf);
        self.record(name, len * size_of::<T>());
        Ok(buf)
    }
    fn memory_table(&self) -> Vec<(String, usize)> {
        self.memory.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
    fn counting(&self) -> Self {
        let gemm = Gemm::new::<S>(self.gemm.level, self.gemm.precision).expect("what this backend has");
        Cpu { gemm, memory: Mutex::default(), counting: true, free: self.free, element: PhantomData }
    }
    fn memory(&self) -> Result<Option<DeviceMemory>> {
        let free = self.free.or_else(system::available);
        Ok(free.map(|free| DeviceMemory { used: system::resident().unwrap_or(0), free }))
    }
    fn scratch(&self, rows: usize, dim: usize) -> usize {
        scratch::bound::<S>(rows, dim)
    }
    fn reserve(&self, _: &[(String, usize)]) -> Result<()> {
        // The system hands out zero pages when they are first written to.
        Ok(())
    }
    fn len<T: Storage>(&self, buf: &Vec<T>) -> usize {
        buf.len()
    }
    fn view<'a, T: Storage>(&self, buf: &'a Vec<T>, range: Range<usize>) -> &'a [T] {
        &buf[range]
    }
    fn view_mut<'a, T: Storage>(&self, buf: &'a mut Vec<T>, range: Range<usize>) -> &'a mut [T] {
        &mut buf[range]
    }
    fn upload<T: Storage>(&self, dst: &mut [T], src: &[T]) -> Result<()> {
        copy("upload", dst, src)
    }
    fn download<T: Storage>(&self, dst: &mut [T], src: &[T]) -> Result<()> {
        copy("download", dst, src)
    }
    fn copy<T: Storage>(&self, dst: &mut [T], src: &[T]) -> Result<()> {
        copy("copy", dst, src)
    }
    fn clear<T: Storage>(&self, dst: &mut [T]) -> Result<()> {
        par::blocks(dst, |_, dst| dst.fill(T::zeroed()));
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn readback(&self, len: usize) -> Result<Vec<f64>> {
        Ok(Vec::with_capacity(len))
    }
    fn read_back(&self, to: &mut Vec<f64>, parts: &[&[f64]]) -> Result<()> {
        to.clear();
        parts.iter().for_each(|part| to.extend_from_slice(part));
        Ok(())
    }
    fn arrived<'a>(&self, from: &'a mut Vec<f64>) -> Result<&'a [f64]> {
        Ok(from)
    }
    fn record(&self, _: impl FnOnce() -> Result<()>) -> Result<Self::Graph> {
        Err(Error::usage("the CPU records no graphs"))
    }
    fn is_current(&self, graph: &Self::Graph) -> bool {
        match *graph {}
    }
    fn replay(&self, graph: &Self::Graph) -> Result<()> {
        match *graph {}
    }
    fn tune_products(&self, _: &Path) -> Result<()> {
        Err(Error::usage("`matmul_plans`: the CPU has one algorithm for products; leave it out, or use `device` cuda"))
    }
    fn address<T: Storage>(&self, buf: &Vec<T>) -> usize {
        buf.as_ptr() as usize
    }

    fn new_batch(&self, capacity: Capacity, _: AttnShape) -> Result<CpuBatch> {
        let batch = CpuBatch::new(capacity);
        self.record("batch", batch.bytes());
        Ok(batch)
    }
    fn load_batch(&self, batch: &mut CpuBatch, from: &MicroBatch) -> Result<()> {
        batch.load(from)
    }
    fn rows(&self, batch: &CpuBatch) -> usize {
        batch.rows()
    }

    fn embed_fwd(&self, x: &mut [S], table: &[S], batch: &CpuBatch, dim: usize) -> Result<()> {
        embed::fwd(x, table, batch, dim)
    }

    fn embed_bwd(&self, dtable: &mut [S], dx: &[S], batch: &CpuBatch, dim: usize) -> Result<()> {
        embed::bwd(dtable, dx, batch, dim)
    }

    fn rmsnorm_fwd(&self, y: &mut [S], rstd: &mut [S], x: &[S], w: &[S], eps: f64) -> Result<()> {
        norm::fwd(self.level(), y, rstd, x, w, eps)
    }

    fn rmsnorm_again(&self, y: &mut [S], rstd: &[S], x: &[S], w: &[S]) -> Result<()> {
        norm::again(self.level(), y, rstd, x, w)
    }

    fn rmsnorm_bwd(
        &self,
        dx: &mut [S],
        dw: Option<&mut [S]>,
        dy: &[S],
        x: &[S],
        w: &[S],
        rstd: &[S],
        write: Write<()>,
    ) -> Result<()> {
        norm::bwd(self.level(), dx, dw, dy, x, w, rstd, write)
    }

    fn linear_fwd(&self, y: &mut [S], x: &[S], w: &[S], out: usize, inp: usize, write: Write<&[S]>) -> Result<()> {
        linear::fwd(&self.gemm, y, x, w, out, inp, write)
    }

    fn linear_bwd_input(
        &self,
        dx: &mut [S],
        dy: &[S],
        w: &[S],
        out: usize,
        inp: usize,
        write: Write<()>,
    ) -> Result<()> {
        linear::bwd_input(&self.gemm, dx, dy, w, out, inp, write)
    }

    fn linear_bwd_weight(&self, dw: &mut [S], dy: &[S], x: &[S], out: usize, inp: usize) -> Result<()> {
        linear::bwd_weight(&self.gemm, dw, dy, x, out, inp)
    }

    fn bias_fwd(&self, y: &mut [S], bias: &[S]) -> Result<()> {
        linear::bias_fwd(self.level(), y, bias)
    }

    fn bias_bwd(&self, dbias: &mut [S], dy: &[S]) -> Result<()> {
        linear::bias_bwd(self.level(), dbias, dy)
    }

    fn qk_norm_fwd(
        &self,
        qkv: &mut [S],
        raw: &mut [S],
        rstd: &mut [S],
        w: &[S],
        shape: AttnShape,
        eps: f64,
    ) -> Result<()> {
        norm::qk_fwd(self.level(), qkv, raw, rstd, w, shape, eps)
    }

    fn qk_norm_bwd(
        &self,
        dqkv: &mut [S],
        dw: Option<&mut [S]>,
        raw: &[S],
        rstd: &[S],
        w: &[S],
        shape: AttnShape,
    ) -> Result<()> {
        norm::qk_bwd(self.level(), dqkv, dw, raw, rstd, w, shape)
    }

    fn rope(&self, qkv: &mut [S], table: &[S], batch: &CpuBatch, shape: AttnShape, direction: Rotation) -> Result<()> {
        rope::rope(self.level(), qkv, table, batch, shape, direction)
    }

    fn attention_fwd(&self, out: &mut [S], lse: &mut [S], qkv: &[S], batch: &CpuBatch, shape: AttnShape) -> Result<()> {
        attention::fwd(&self.gemm, out, lse, qkv, batch, shape)
    }

    fn attention_bwd(
        &self,
        dqkv: &mut [S],
        delta: &mut [S],
        dout: &[S],
        out: &[S],
        lse: &[S],
        qkv: &[S],
        batch: &CpuBatch,
        shape: AttnShape,
    ) -> Result<()> {
        attention::bwd(&self.gemm, dqkv, delta, dout, out, lse, qkv, batch, shape)
    }

    fn swiglu_fwd(&self, act: &mut [S], gate_up: &[S], ffn: usize) -> Result<()> {
        swiglu::fwd(self.level(), act, gate_up, ffn)
    }

    fn swiglu_bwd(&self, gate_up: &mut [S], dact: &[S], ffn: usize) -> Result<()> {
        swiglu::bwd(self.level(), gate_up, dact, ffn)
    }

    fn gather_rows(&self, out: &mut [S], x: &[S], batch: &CpuBatch, dim: usize) -> Result<()> {
        rows::gather(out, x, batch, dim)
    }

    fn scatter_rows(&self, dx: &mut [S], dout: &[S], batch: &CpuBatch, dim: usize) -> Result<()> {
        rows::scatter(dx, dout, batch, dim)
    }

    fn head_fwd(
        &self,
        stats: HeadStats<'_, Self>,
        logits: &mut [S],
        x: &[S],
        w: &[S],
        batch: &CpuBatch,
        chunk: &Chunk,
        mode: HeadMode,
    ) -> Result<()> {
        let HeadStats { logp, entropy, log_sum_p2, hit } = stats;
        head::fwd(&self.gemm, [logp, entropy, log_sum_p2, hit], logits, x, w, batch, chunk, mode)
    }

    fn logits(&self, logits: &mut [S], x: &[S], w: &[S], dim: usize) -> Result<()> {
        head::logits(&self.gemm, logits, x, w, dim)
    }

    fn head_bwd(
        &self,
        dx: &mut [S],
        dw: Option<&mut [S]>,
        scaled: &mut [S],
        logits: &[S],
        x: &[S],
        w: &[S],
        coef: &[S],
    ) -> Result<()> {
        head::bwd(&self.gemm, dx, dw, scaled, logits, x, w, coef)
    }

    fn loss(
        &self,
        out: LossOut<'_, Self>,
        logp: &[S],
        entropy: &[S],
        hit: &[S],
        batch: &CpuBatch,
        chunk: &Chunk,
        spec: &LossSpec,
        scale: f64,
    ) -> Result<()> {
        let out = (out.coef, out.responses, out.pairs);
        loss::loss(&self.gemm.scratch, out, [logp, entropy, hit], batch, chunk, spec, scale)
    }

    fn kv_store(&self, k: &mut [S], v: &mut [S], qkv: &[S], dst: &[u32], shape: AttnShape) -> Result<()> {
        decode::kv_store(k, v, qkv, dst, shape)
    }

    fn attention_decode(
        &self,
        out: &mut [S],
        qkv: &[S],
        k: &[S],
        v: &[S],
        lens: &[u32],
        stride: usize,
        shape: AttnShape,
    ) -> Result<()> {
        decode::attention(&self.gemm, out, qkv, k, v, lens, stride, shape)
    }

    fn grad_norm(&self, norm: &mut [f64], g: &[S]) -> Result<()> {
        optim::grad_norm(self.level(), &self.gemm.scratch, norm, g)
    }

    fn update(
        &self,
        w: &mut [S],
        master: Option<&mut [S]>,
        m: &mut [S],
        v: &mut [S],
        g: &[S],
        norm: &[f64],
        max_grad_norm: f64,
        update: &Update,
    ) -> Result<()> {
        optim::update(self.level(), w, master.is_some(), m, v, g, norm, max_grad_norm, update)
    }
}

fn copy<T: Storage>(op: &'static str, dst: &mut [T], src: &[T]) -> Result<()> {
    check::len(op, "src", src.len(), &[("elements of dst", dst.len())])?;
    par::blocks(dst, |at, dst| dst.copy_from_slice(&src[at..at + dst.len()]));
    Ok(())
}
