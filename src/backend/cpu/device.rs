//! The CPU as a device: memory is a vector, an op is done when it returns.

use super::batch::CpuBatch;
use super::gemm::blocks::{SHARED, TASK};
use super::gemm::kernel::K_BLOCK;
use super::gemm::setup::{Gemm, GemmPrecision};
use super::narrow::PRODUCT;
use super::real::Real;
use super::simd::Level;
use super::{check, pages, par, system};
use crate::backend::metered::Ceilings;
use crate::backend::ops::device::{AttnShape, Device, DeviceMemory};
use crate::backend::ops::element::Storage;
use crate::batch::{Capacity, MicroBatch};
use crate::error::{Error, Result};
use crate::units;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

/// Raised whenever an op's arithmetic changes in the last bit, so that log-probs of an earlier version are computed again:
/// tests/bits.rs fails where the one changes without the other.
const NUMERICS: u32 = 7;

/// The CPU as a device; `S` is the type of everything: `f32`, or `f64` for tests.
pub struct Cpu<S> {
    pub(super) gemm: Gemm,
    memory: Mutex<Vec<(String, usize)>>,
    /// Whether `zeros` counts alone.
    pub(super) counting: bool,
    /// See [`Cpu::with_bf16_logits`].
    pub(super) narrow_logits: bool,
    /// What [`Device::memory`] says is free, where that is not for the system to say.
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
        Ok(Cpu {
            gemm,
            memory: Mutex::default(),
            counting: false,
            narrow_logits: false,
            free: None,
            element: PhantomData,
        })
    }

    /// The head's logits rounded to bf16, but for the target's: what a GPU does when asked, for its tests. It spares a CPU nothing.
    pub fn with_bf16_logits(self) -> Self {
        Cpu { narrow_logits: true, ..self }
    }

    /// How products of f32 are computed: for people.
    pub fn f32_path(&self) -> &'static str {
        match self.level().multiplies_parts() {
            true => "AMX tiles, each number as a sum of three in bf16: more exact than multiply-adds, and faster",
            false => "multiply-adds",
        }
    }

    /// How products are computed where that is in bf16, and why so: for people.
    pub fn bf16_path(&self) -> Option<&'static str> {
        let bf16 = self.gemm.precision == GemmPrecision::Bf16;
        self.level().bf16().filter(|_| bf16).map(|(_, how)| how)
    }

    /// As if the machine had `bytes` free: plans that need more are refused.
    pub fn with_free(self, bytes: usize) -> Self {
        Cpu { free: Some(bytes), ..self }
    }

    /// Bytes that ops have kept for themselves so far; at most [`Device::scratch`].
    pub fn scratch_bytes(&self) -> usize {
        self.gemm.scratch.bytes()
    }

    /// The products by themselves, for measurements.
    pub fn gemm(&self) -> &Gemm {
        &self.gemm
    }

    pub(super) fn level(&self) -> Level {
        self.gemm.level
    }

    pub(super) fn record(&self, name: &str, bytes: usize) {
        // A panic elsewhere leaves a valid table behind.
        self.memory.lock().unwrap_or_else(|e| e.into_inner()).push((name.into(), bytes));
    }
}

impl<S: Real> Device for Cpu<S> {
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
        let (products, level) = match (self.gemm.precision, self.level().bf16()) {
            (GemmPrecision::Bf16, Some((name, _))) => ("-bf16", name),
            _ if S::NAME == "f32" => ("", self.level().f32()),
            _ => ("", self.level().name()),
        };
        let logits = if self.narrow_logits { "-logits-bf16" } else { "" };
        format!("cpu-{}{products}{logits}-{level}-v{NUMERICS}", S::NAME)
    }
    fn products(&self) -> &'static str {
        match self.gemm.precision {
            GemmPrecision::Native => S::NAME,
            GemmPrecision::Bf16 => "bf16",
        }
    }
    fn description(&self) -> String {
        let products = match self.gemm.precision {
            GemmPrecision::Native => "",
            GemmPrecision::Bf16 => ", bf16 products",
        };
        let threads = rayon::current_num_threads();
        format!("CPU, {threads} thread{}, {}{products}", if threads == 1 { "" } else { "s" }, self.level().label())
    }

    /// A few cores of a server. What matters is their ratio.
    fn ceilings(&self) -> Ceilings {
        Ceilings { products: 2e11, wave: 0.0, attention: [1e11; 2], bandwidth: 2e10, exposed: 1.0, least: 2e-6 }
    }

    fn zeros<T: Storage>(&self, name: &str, len: usize) -> Result<Vec<T>> {
        let owned = if self.counting { 0 } else { len };
        let mut buf = bytemuck::allocation::try_zeroed_vec(owned).map_err(|()| {
            let needed = units::bytes(len.saturating_mul(size_of::<T>()));
            Error::Device(format!("out of memory: {name} needs {needed}; use a smaller `token_budget` or model"))
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
        let (narrow_logits, free) = (self.narrow_logits, self.free);
        Cpu { gemm, memory: Mutex::default(), counting: true, narrow_logits, free, element: PhantomData }
    }
    fn memory(&self) -> Result<Option<DeviceMemory>> {
        let free = self.free.or_else(system::available);
        Ok(free.map(|free| DeviceMemory { used: system::resident().unwrap_or(0), free }))
    }
    fn peak_memory(&self) -> Option<usize> {
        system::peak()
    }
    /// One operand of a product, the smaller one, is packed for all threads; the other, and everything else, by task: a block
    /// of packed columns that stays in L2, or the tiles of attention.
    fn scratch(&self, rows: usize, dim: usize) -> usize {
        let (most, value) = (rows.max(dim).next_multiple_of(64), self.gemm.packed_bytes::<S>());
        // Of gradients in bf16, what is added to them next.
        let sums = PRODUCT.max(dim) * size_of::<S>();
        (most * K_BLOCK * value).max(SHARED) + sums + rayon::current_num_threads() * TASK
    }
    fn attention_partial(&self, _slots: usize, _shape: &AttnShape) -> usize {
        0 // a block sees all queries of its keys
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
    fn lend<'s, T: Storage>(&self, view: &'s mut &mut [T]) -> &'s mut [T] {
        view
    }
    fn read_only<'s, T: Storage>(&self, view: &'s &mut [T]) -> &'s [T] {
        view
    }
    fn part<'s, 'l: 's, T: Storage>(&self, view: &'l [T], range: Range<usize>) -> &'s [T] {
        &view[range]
    }
    fn view_len<T: Storage>(&self, view: &[T]) -> usize {
        view.len()
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
        if self.counting {
            self.record("batch", CpuBatch::bytes_of(capacity));
            return Ok(CpuBatch::new(Capacity::default()));
        }
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
}

fn copy<T: Storage>(op: &'static str, dst: &mut [T], src: &[T]) -> Result<()> {
    check::len(op, "src", src.len(), &[("elements of dst", dst.len())])?;
    par::blocks(dst, |at, dst| dst.copy_from_slice(&src[at..at + dst.len()]));
    Ok(())
}
