//! Matrix products by cuBLASLt: bf16 x bf16 -> bf16 or f32, f32 x f32 -> f32 (no TF32), f32 accumulation throughout.
//!
//! cuBLASLt thinks in columns: a row-major `d = a b` is its column-major `d^T = b^T a^T`, so the operands change places. An
//! algorithm is chosen once per shape by the library's heuristic, which is a function of the shape, not of a timing: two
//! runs compute the same bits. Split-K is ruled out where a row must not depend on the number of rows; there one
//! algorithm, chosen for [`REFERENCE_ROWS`], serves every number of rows.

use super::driver::{Dtype, MatMul, Matrix};
use crate::error::{Error, Result};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaStream, result as driver};
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

/// Scratch of the library; what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Rows for which row-invariant products choose their algorithm.
const REFERENCE_ROWS: usize = 4096;
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

/// The library with its workspace.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    stream: Arc<CudaStream>,
    algorithms: Mutex<HashMap<Shape, sys::cublasLtMatmulAlgo_t>>,
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
        let workspace =
            workspace.map_err(|e| Error::Device(format!("cuBLASLt: {WORKSPACE} bytes of workspace: {e:?}")))?;
        Ok(CublasLt { handle, workspace, stream: stream.clone(), algorithms: Mutex::default(), version })
    }

    pub(super) fn version(&self) -> usize {
        self.version
    }

    /// Enqueues `p`.
    ///
    /// # Safety
    /// The operands cover their shapes.
    pub(super) unsafe fn matmul(&self, stream: &CudaStream, p: &MatMul) -> Result<()> {
        let call = Call::new(p).map_err(failed("describe a product"))?;
        let algorithm = self.algorithm(p, &call)?;
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
                &algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed(&format!("multiply {} x {} x {}", p.m, p.n, p.k)))
    }

    fn algorithm(&self, p: &MatMul, call: &Call) -> Result<sys::cublasLtMatmulAlgo_t> {
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
            let reference = Call::new(&MatMul { m, ..*p }).map_err(failed("describe a product"))?;
            self.heuristic(&reference, &shape)?
        } else {
            self.heuristic(call, &shape)?
        };
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(shape, chosen);
        Ok(chosen)
    }

    /// The library's first choice for a shape.
    fn heuristic(&self, call: &Call, shape: &Shape) -> Result<sys::cublasLtMatmulAlgo_t> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let doing = format!("find an algorithm for {} x {} x {}", shape.m, shape.n, shape.k);
        let preference = result::create_matmul_pref().map_err(failed(&doing))?;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: a live preference; each value below is of its attribute's type.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, size) }
        };
        // 0 allows no reduction across blocks: no split-K.
        let (workspace, reductions) = (WORKSPACE, if shape.row_invariant { 0u32 } else { u32::MAX });
        let mut done = set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8);
        if shape.row_invariant {
            let attribute = Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
            done = done.and_then(|()| set(attribute, (&raw const reductions).cast(), 4));
        }
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            done = done.and_then(|()| set(attribute, (&raw const shape.alignment).cast(), 4));
        }
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
        let mut count = 0;
        // SAFETY: live descriptors; room for one result and its count.
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
                1,
                found.as_mut_ptr(),
                &mut count,
            )
            .result()
        });
        // SAFETY: made above, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        status.map_err(failed(&doing))?;
        if count == 0 {
            return Err(Error::Device(format!("cuBLASLt: cannot {doing}: none fits")));
        }
        // SAFETY: the library has filled `count` = 1 results.
        Ok(unsafe { found.assume_init() }.algo)
    }
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
