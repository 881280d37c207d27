//! Matrix products by cuBLASLt: bf16 x bf16 -> bf16 or f32, f32 x f32 -> f32 (no TF32), f32 accumulation throughout.
//!
//! cuBLASLt thinks in columns: a row-major `d = a b` is its column-major `d^T = b^T a^T`, so the operands change places.
//!
//! # Which algorithm
//! The algorithm decides the last bits. It is chosen once per shape by the library's heuristic, which is a function of the
//! shape, not of a timing: two runs compute the same bits. Products of a forward pass (`row_invariant`) always go by it, as
//! reference log-probs that other processes have kept must equal the policy's to the bit; split-K is ruled out there, and one
//! algorithm, chosen for [`REFERENCE_ROWS`], serves every number of rows. Where sums are split, their parts are f32 too. Products of gradients, two thirds of the work,
//! may be tuned instead ([`CublasLt::tune`]): the library's first [`CANDIDATES`] are timed when a shape is met for the
//! first time, and what won is kept in a file, by which later runs compute the same bits.

mod plans;
mod tune;

use super::driver::{Dtype, MatMul, Matrix};
use crate::error::{Error, Result};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaStream, result as driver};
use plans::Plans;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Scratch of the library; what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Rows for which row-invariant products choose their algorithm.
const REFERENCE_ROWS: usize = 4096;
/// Numbers of rows that the algorithm must take too, behind that.
const ROWS_TRIED: [usize; 5] = [REFERENCE_ROWS, 1, 2, 99, 32768];
/// Algorithms that are asked for.
const CANDIDATES: usize = 8;
/// Shapes remembered; a run has a few dozen, chunks of odd sizes add some.
const REMEMBERED: usize = 4096;

/// What an algorithm is chosen by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    transposed: (bool, bool),
    ld: [usize; 3],
    dtypes: (Dtype, Dtype),
    accumulates: bool,
    row_invariant: bool,
    alignment: u32,
}

impl Shape {
    /// In words, for the file of plans and for messages.
    fn key(&self) -> String {
        let Shape { m, n, k, transposed, ld, dtypes, accumulates, row_invariant, alignment } = self;
        let flags =
            [transposed.0, transposed.1, *accumulates, *row_invariant].map(|b| if b { "1" } else { "0" }).concat();
        let [a, b, d] = ld;
        let (from, to) = (dtypes.0.name(), dtypes.1.name());
        format!("m{m} n{n} k{k} ld{a},{b},{d} {from}-{to} flags{flags} align{alignment}")
    }
}

/// The library with its workspace.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    stream: Arc<CudaStream>,
    algorithms: Mutex<HashMap<Shape, sys::cublasLtMatmulAlgo_t>>,
    /// Where tuned choices are kept, where they are asked for.
    plans: Mutex<Option<Plans>>,
    version: usize,
}
// SAFETY: the handle may be used from any thread (cuBLAS documentation, "Thread Safety"); the workspace is used in the
// order of the stream alone.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

fn failed(doing: &str) -> impl FnOnce(CublasError) -> Error {
    let doing = doing.to_owned();
    move |e| Error::Device(format!("cuBLASLt: cannot {doing}: {:?}", e.0))
}

/// Descriptors of one call; destroyed when dropped.
struct Call {
    desc: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
}

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: made in `Call::new`, destroyed once. Failures leave nothing to do.
        unsafe {
            let _ = result::destroy_matmul_desc(self.desc);
            for layout in [self.a, self.b, self.d] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

fn cuda_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
    }
}

impl Call {
    /// Descriptors of `p`, with the operands in cuBLASLt's order.
    fn new(p: &MatMul) -> Result<Call, CublasError> {
        // A row-major r x c matrix is a column-major c x r one.
        let layout = |m: &Matrix, rows: usize, columns: usize| {
            result::create_matrix_layout(cuda_type(m.dtype), columns as u64, rows as u64, m.ld as i64)
        };
        let stored = |transposed: bool, r: usize, c: usize| if transposed { (c, r) } else { (r, c) };
        let (first, second) = (stored(p.b_transposed, p.k, p.n), stored(p.a_transposed, p.m, p.k));
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let call = Call {
            desc: result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?,
            a: layout(&p.b, first.0, first.1)?,
            b: layout(&p.a, second.0, second.1)?,
            d: layout(&p.d, p.m, p.n)?,
        };
        for (attribute, transposed) in [
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed),
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed),
        ] {
            let op = i32::from(transposed); // CUBLAS_OP_N, CUBLAS_OP_T
            // SAFETY: a live descriptor, and an attribute of this type.
            unsafe {
                result::set_matmul_desc_attribute(call.desc, attribute, (&raw const op).cast(), size_of_val(&op))
            }?;
        }
        Ok(call)
    }
}

impl CublasLt {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<CublasLt> {
        // SAFETY: takes nothing; the caller has checked that the library is there.
        let version = unsafe { sys::cublasLtGetVersion() };
        let handle = result::create_handle().map_err(failed("start"))?;
        // SAFETY: scratch whose content nobody reads before the library writes it.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE) };
        let workspace = workspace.map_err(super::cuda::error(&format!("allocate {WORKSPACE} bytes of workspace")))?;
        Ok(CublasLt {
            handle,
            workspace,
            stream: stream.clone(),
            algorithms: Mutex::default(),
            plans: Mutex::default(),
            version,
        })
    }

    pub(super) fn version(&self) -> usize {
        self.version
    }

    /// From now on chooses by timing for products of gradients, and keeps to what `file` says for `device`.
    pub(super) fn tune(&self, file: &Path, device: &str) -> Result<()> {
        let plans = Plans::open(file, device)?;
        *super::lock(&self.plans) = Some(plans);
        super::lock(&self.algorithms).clear();
        Ok(())
    }

    /// Enqueues `p`. `recording`: nothing may be timed.
    ///
    /// # Safety
    /// The operands cover their shapes.
    pub(super) unsafe fn matmul(&self, stream: &CudaStream, p: &MatMul, recording: bool) -> Result<()> {
        let call = Call::new(p).map_err(failed("describe a product"))?;
        // SAFETY: the caller's promise.
        let algorithm = unsafe { self.algorithm(p, &call, recording) }?;
        // SAFETY: the caller's promise.
        unsafe { self.enqueue(stream, p, &call, &algorithm) }
            .map_err(failed(&format!("multiply {} x {} x {}", p.m, p.n, p.k)))
    }

    /// Enqueues `p` by an algorithm that was chosen for its shape.
    ///
    /// # Safety
    /// The operands cover their shapes.
    unsafe fn enqueue(
        &self,
        stream: &CudaStream,
        p: &MatMul,
        call: &Call,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> Result<(), CublasError> {
        let (alpha, beta) = (1.0f32, if p.c.is_some() { 1.0f32 } else { 0.0 });
        let c = p.c.unwrap_or(p.d.at);
        // SAFETY: descriptors and algorithm belong together; the operands cover their shapes, by the caller's promise;
        // the workspace has the size that the algorithm was chosen for.
        unsafe {
            result::matmul(
                self.handle,
                call.desc,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                p.b.at as *const c_void,
                call.a,
                p.a.at as *const c_void,
                call.b,
                c as *const c_void,
                call.d,
                p.d.at as *mut c_void,
                call.d,
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
    }

    /// # Safety
    /// The operands cover their shapes.
    unsafe fn algorithm(&self, p: &MatMul, call: &Call, recording: bool) -> Result<sys::cublasLtMatmulAlgo_t> {
        let m = if p.row_invariant { REFERENCE_ROWS } else { p.m };
        let addresses = p.a.at | p.b.at | p.d.at | p.c.unwrap_or(0);
        let alignment = 1u32 << addresses.trailing_zeros().min(4);
        let shape = Shape {
            m,
            n: p.n,
            k: p.k,
            transposed: (p.a_transposed, p.b_transposed),
            ld: [p.a.ld, p.b.ld, p.d.ld],
            dtypes: (p.a.dtype, p.d.dtype),
            accumulates: p.c.is_some(),
            row_invariant: p.row_invariant,
            alignment,
        };
        let mut known = super::lock(&self.algorithms);
        if let Some(found) = known.get(&shape) {
            return Ok(*found);
        }
        let chosen = if p.row_invariant {
            self.for_all_rows(p, &shape)?
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.for_gradients(p, call, &shape, recording) }?
        };
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(shape, chosen);
        Ok(chosen)
    }

    /// The library's first choice, or the tuned one.
    ///
    /// # Safety
    /// The operands cover their shapes.
    unsafe fn for_gradients(
        &self,
        p: &MatMul,
        call: &Call,
        shape: &Shape,
        recording: bool,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let mut plans = super::lock(&self.plans);
        let Some(plans) = plans.as_mut() else { return Ok(self.proposed(call, shape)?[0]) };
        let data = plans.choose(&shape.key(), || {
            if recording {
                return Err(Error::Device(
                    "cuBLASLt: a product was recorded before it was met for the first time".into(),
                ));
            }
            // SAFETY: the caller's promise.
            Ok(unsafe { self.fastest(p, call, &self.proposed(call, shape)?) }?.data)
        })?;
        let algorithm = sys::cublasLtMatmulAlgo_t { data };
        self.check(call, &algorithm).map_err(failed(&format!("use the plan in the file for {}", shape.key())))?;
        Ok(algorithm)
    }

    /// Refuses an algorithm that this library does not have, or not for these descriptors.
    fn check(&self, call: &Call, algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<(), CublasError> {
        let mut result = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
        // SAFETY: live descriptors; room for one result.
        unsafe {
            let (a, b, d) = (call.a, call.b, call.d);
            sys::cublasLtMatmulAlgoCheck(self.handle, call.desc, a, b, d, d, algorithm, result.as_mut_ptr())
                .result()?;
            // SAFETY: filled by the call that succeeded.
            match result.assume_init().workspaceSize <= WORKSPACE {
                true => Ok(()),
                false => Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)),
            }
        }
    }

    /// The library's choices for a shape, best first by its own estimate; at least one.
    fn proposed(&self, call: &Call, shape: &Shape) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let doing = format!("find an algorithm for {} x {} x {}", shape.m, shape.n, shape.k);
        let preference = result::create_matmul_pref().map_err(failed(&doing))?;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: a live preference; each value below is of its attribute's type.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, size) }
        };
        let (workspace, reductions) = (WORKSPACE, reductions(shape.row_invariant));
        let attribute = Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        let mut done = set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8);
        done = done.and_then(|()| set(attribute, (&raw const reductions).cast(), 4));
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            done = done.and_then(|()| set(attribute, (&raw const shape.alignment).cast(), 4));
        }
        let mut found = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; CANDIDATES];
        let mut count = 0;
        // SAFETY: live descriptors; room for as many results as are asked for, and their count.
        let status = done.and_then(|()| unsafe {
            let (h, d) = (self.handle, call.desc);
            sys::cublasLtMatmulAlgoGetHeuristic(
                h,
                d,
                call.a,
                call.b,
                call.d,
                call.d,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr().cast(),
                &mut count,
            )
            .result()
        });
        // SAFETY: made above, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        status.map_err(failed(&doing))?;
        let found = found.iter().take(usize::try_from(count).unwrap_or(0));
        // SAFETY: the library has filled the first `count` results.
        let found = found.map(|r| unsafe { r.assume_init() });
        let usable =
            found.filter(|r| r.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && r.workspaceSize <= WORKSPACE);
        let usable: Vec<_> = usable.map(|r| r.algo).collect();
        if usable.is_empty() { Err(none_fits(shape, "the library proposes none")) } else { Ok(usable) }
    }

    /// The first of the library's choices that does not split sums and takes every number of rows, by its own account: all
    /// of them are then computed by it.
    fn for_all_rows(&self, p: &MatMul, shape: &Shape) -> Result<sys::cublasLtMatmulAlgo_t> {
        let calls = ROWS_TRIED.map(|m| Call::new(&MatMul { m, ..*p }));
        let [reference, others @ ..] = &calls;
        let found = self.proposed(reference.as_ref().map_err(|e| failed("describe a product")(*e))?, shape)?;
        let whole: Vec<_> = found.iter().filter(|a| !splits_sums(a)).collect();
        let takes_all = |a: &&&_| others.iter().flatten().all(|call| self.check(call, a).is_ok());
        let chosen = whole.iter().find(takes_all).or(whole.first());
        chosen.map(|a| **a).ok_or_else(|| none_fits(shape, &format!("all {} proposed split sums", found.len())))
    }
}

/// Which reductions across blocks the library may use, as bits of cublasLtReductionScheme_t. None where rows must not depend on
/// their number; else only that of f32 sums in the workspace: the others round partial sums to the output's type.
fn reductions(row_invariant: bool) -> u32 {
    const COMPUTE_TYPE: u32 = 2;
    if row_invariant { 0 } else { COMPUTE_TYPE }
}

fn none_fits(shape: &Shape, why: &str) -> Error {
    Error::Device(format!("cuBLASLt: cannot find an algorithm for {}: {why}", shape.key()))
}

/// Whether an algorithm cuts sums into parts, by its own account.
fn splits_sums(algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
    use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
    let mut parts = 0i32;
    let attribute = Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM;
    let mut written = 0;
    // SAFETY: an algorithm that the library has filled, and an attribute of this type.
    let asked = unsafe {
        let to = (&raw mut parts).cast();
        sys::cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, to, size_of_val(&parts), &mut written).result()
    };
    asked.is_err() || parts > 1
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        // SAFETY: made in `new`, released once, nothing enqueued uses them any more. Failures leave nothing to do.
        unsafe {
            let _ = driver::free_sync(self.workspace);
            let _ = result::destroy_handle(self.handle);
        }
    }
}
