//! A product as the library is told of it. cuBLASLt thinks in columns: a row-major `d = a b` is its column-major
//! `d^T = b^T a^T`, so the operands change places.

use crate::backend::gpu::cuda::error::{error, is_lost};
use crate::backend::gpu::driver::{Dtype, MatMul, Matrix};
use crate::error::Error;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::result::{self as driver, DriverError};

/// For `map_err`: what the library says about a call that was to do `doing`; of a device that is lost, what the driver says.
pub(super) fn failed(doing: &str) -> impl FnOnce(CublasError) -> Error {
    let doing = doing.to_owned();
    move |e| match lost() {
        Some(lost) => error(&doing)(lost),
        None => Error::Device(format!("cuBLASLt: cannot {doing}: {:?}", e.0)),
    }
}

/// The error by which the device is lost, if it is. Asks for what may be asked for while work is recorded, too.
pub(super) fn lost() -> Option<DriverError> {
    driver::mem_get_info().err().filter(|e| is_lost(e.0))
}

/// A descriptor of the library, destroyed when dropped.
pub(super) struct Desc(pub sys::cublasLtMatmulDesc_t);
/// A matrix as the library is told of it, destroyed when dropped.
pub(super) struct Layout(pub sys::cublasLtMatrixLayout_t);

impl Drop for Desc {
    fn drop(&mut self) {
        // SAFETY: made in `Call::new`, destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}
impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `Call::new`, destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// Descriptors of one call.
pub(super) struct Call {
    pub desc: Desc,
    pub a: Layout,
    pub b: Layout,
    pub d: Layout,
}

fn cuda_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
    }
}

impl Call {
    /// Descriptors of `p`, with the operands in cuBLASLt's order.
    pub fn new(p: &MatMul) -> Result<Call, CublasError> {
        // A row-major r x c matrix is a column-major c x r one.
        let layout = |m: &Matrix, rows: usize, columns: usize| {
            result::create_matrix_layout(cuda_type(m.dtype), columns as u64, rows as u64, m.ld as i64).map(Layout)
        };
        let stored = |transposed: bool, r: usize, c: usize| if transposed { (c, r) } else { (r, c) };
        let (first, second) = (stored(p.b_transposed, p.k, p.n), stored(p.a_transposed, p.m, p.k));
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let call = Call {
            desc: Desc(result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?),
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
                result::set_matmul_desc_attribute(call.desc.0, attribute, (&raw const op).cast(), size_of_val(&op))
            }?;
        }
        Ok(call)
    }
}
