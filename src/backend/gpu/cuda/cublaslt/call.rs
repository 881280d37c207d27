//! A product as the library is told of it. cuBLASLt thinks in columns: a row-major `d = a b` is its column-major
//! `d^T = b^T a^T`, so the operands change places.

use crate::backend::gpu::driver::{Dtype, MatMul, Matrix};
use crate::error::Error;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

/// For `map_err`: what the library says about a call that was to do `doing`.
pub(super) fn failed(doing: &str) -> impl FnOnce(CublasError) -> Error {
    let doing = doing.to_owned();
    move |e| Error::Device(format!("cuBLASLt: cannot {doing}: {:?}", e.0))
}

/// Descriptors of one call; destroyed when dropped.
pub(super) struct Call {
    pub desc: sys::cublasLtMatmulDesc_t,
    pub a: sys::cublasLtMatrixLayout_t,
    pub b: sys::cublasLtMatrixLayout_t,
    pub d: sys::cublasLtMatrixLayout_t,
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
    pub fn new(p: &MatMul) -> Result<Call, CublasError> {
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
