//! The library, opened: its workspace, what it proposes, and products by an algorithm that was chosen.

use super::call::{Call, failed};
use crate::backend::gpu::cuda::error::error;
use crate::backend::gpu::driver::{Dtype, MatMul};
use crate::backend::gpu::lock::lock;
use crate::error::{Error, Result};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaStream, result as driver};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

/// Scratch of the library; what NVIDIA advises for Hopper.
pub const WORKSPACE: usize = 32 << 20;
/// Algorithms that are asked for.
pub(super) const CANDIDATES: usize = 8;

/// What an algorithm is chosen by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub transposed: (bool, bool),
    pub ld: [usize; 3],
    pub dtypes: (Dtype, Dtype),
    pub accumulates: bool,
    pub row_invariant: bool,
    pub alignment: u32,
}

impl Shape {
    /// The shape that stands for those of about its size: rows come in any number, and nobody can time them all. Each number is
    /// rounded up to one of eight between two powers of two.
    pub fn rounded(self) -> Shape {
        let round = |n: usize| n.next_multiple_of((n.next_power_of_two() / 16).max(1));
        Shape { m: round(self.m), k: round(self.k), ..self }
    }

    /// In words, for the file of plans and for messages.
    pub fn key(&self) -> String {
        let Shape { m, n, k, transposed, ld, dtypes, accumulates, row_invariant, alignment } = self;
        let flags =
            [transposed.0, transposed.1, *accumulates, *row_invariant].map(|b| if b { "1" } else { "0" }).concat();
        let [a, b, d] = ld;
        let (from, to) = (dtypes.0.name(), dtypes.1.name());
        format!("m{m} n{n} k{k} ld{a},{b},{d} {from}-{to} flags{flags} align{alignment}")
    }
}

/// The library with its workspace.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    /// A product that splits its sums is two kernels with the workspace between them: another thread's may not come in between.
    turn: Mutex<()>,
    pub stream: Arc<CudaStream>,
    pub version: usize,
}
// SAFETY: the handle may be used from any thread (cuBLAS documentation, "Thread Safety"); the workspace is used in the
// order of the stream alone.
unsafe impl Send for Library {}
// SAFETY: calls by one handle may overlap, by the same page; one product at a time is enqueued with the workspace.
unsafe impl Sync for Library {}

impl Library {
    /// Starts it for products on `stream`.
    pub fn open(stream: &Arc<CudaStream>) -> Result<Library> {
        // SAFETY: takes nothing; the caller has checked that the library is there.
        let version = unsafe { sys::cublasLtGetVersion() };
        let handle = result::create_handle().map_err(failed("start"))?;
        // SAFETY: scratch whose content nobody reads before the library writes it.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE) }.inspect_err(|_| {
            // SAFETY: made above, and used by nobody. A failure leaves nothing to do.
            let _ = unsafe { result::destroy_handle(handle) };
        });
        let workspace = workspace.map_err(error(&format!("allocate {WORKSPACE} bytes of workspace")))?;
        Ok(Library { handle, workspace, turn: Mutex::default(), stream: stream.clone(), version })
    }

    /// Enqueues `p` by an algorithm that was chosen for its shape.
    ///
    /// # Safety
    /// The operands cover their shapes.
    pub unsafe fn enqueue(
        &self,
        stream: &CudaStream,
        p: &MatMul,
        call: &Call,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> Result<(), CublasError> {
        let (alpha, beta) = (p.scale, if p.c.is_some() { 1.0f32 } else { 0.0 });
        let c = p.c.unwrap_or(p.d.at);
        let _turn = lock(&self.turn);
        // SAFETY: descriptors and algorithm belong together; the operands cover their shapes, by the caller's promise;
        // the workspace has the size that the algorithm was chosen for.
        unsafe {
            result::matmul(
                self.handle,
                call.desc.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                p.b.at as *const c_void,
                call.a.0,
                p.a.at as *const c_void,
                call.b.0,
                c as *const c_void,
                call.d.0,
                p.d.at as *mut c_void,
                call.d.0,
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
    }

    /// Refuses an algorithm that this library does not have, or not for these descriptors.
    pub fn check(&self, call: &Call, algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<(), CublasError> {
        let mut result = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: live descriptors; room for one result.
        unsafe {
            let (a, b, d) = (call.a.0, call.b.0, call.d.0);
            sys::cublasLtMatmulAlgoCheck(self.handle, call.desc.0, a, b, d, d, algorithm, result.as_mut_ptr())
                .result()?;
            // SAFETY: all zeros are a result too, whatever of it the call has filled.
            match result.assume_init().workspaceSize <= WORKSPACE {
                true => Ok(()),
                false => Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)),
            }
        }
    }

    /// The library's choices for a shape, best first by its own estimate; at least one.
    pub fn proposed(&self, call: &Call, shape: &Shape) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
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
        let mut found = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed() }; CANDIDATES];
        let mut count = 0;
        // SAFETY: live descriptors; room for as many results as are asked for, and their count.
        let status = done.and_then(|()| unsafe {
            let (h, d) = (self.handle, call.desc.0);
            sys::cublasLtMatmulAlgoGetHeuristic(
                h,
                d,
                call.a.0,
                call.b.0,
                call.d.0,
                call.d.0,
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
        // SAFETY: all zeros are a result too; the library has filled the first `count`.
        let found = found.map(|r| unsafe { r.assume_init() });
        let usable =
            found.filter(|r| r.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && r.workspaceSize <= WORKSPACE);
        let usable: Vec<_> = usable.map(|r| r.algo).collect();
        if usable.is_empty() { Err(none_fits(shape, "the library proposes none")) } else { Ok(usable) }
    }
}

/// Which reductions across blocks the library may use, as bits of cublasLtReductionScheme_t. None where rows must not depend on
/// their number; else only that of f32 sums in the workspace: the others round partial sums to the output's type.
fn reductions(row_invariant: bool) -> u32 {
    const COMPUTE_TYPE: u32 = 2;
    if row_invariant { 0 } else { COMPUTE_TYPE }
}

pub(super) fn none_fits(shape: &Shape, why: &str) -> Error {
    Error::Device(format!("cuBLASLt: cannot find an algorithm for {}: {why}", shape.key()))
}

/// Whether an algorithm cuts sums into parts, by its own account.
pub(super) fn splits_sums(algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
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

impl Drop for Library {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
        // SAFETY: made in `new`, released once, nothing enqueued uses them any more. Failures leave nothing to do.
        unsafe {
            let _ = driver::free_sync(self.workspace);
            let _ = result::destroy_handle(self.handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rounded_shape_stands_for_those_of_about_its_size() {
        let shape = |m, k| Shape {
            m,
            n: 7,
            k,
            transposed: (false, true),
            ld: [k, 7, 7],
            dtypes: (Dtype::Bf16, Dtype::F32),
            accumulates: false,
            row_invariant: false,
            alignment: 16,
        };
        let mut seen = std::collections::BTreeSet::new();
        for n in 1..=5000 {
            let to = shape(n, 2 * n).rounded();
            assert!(
                to.m >= n && to.m * 8 <= n * 9 && (to.k, to.n) == (shape(0, 2 * n).rounded().k, 7),
                "{n}: {}",
                to.m
            );
            assert!(to.rounded() == to, "{n}: rounded once");
            seen.insert(to.m);
        }
        assert!(seen.len() < 16 + 8 * 10, "{} sizes", seen.len());
    }
}
