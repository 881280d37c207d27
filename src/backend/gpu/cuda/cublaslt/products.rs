//! Which algorithm a product runs by.

use super::call::{Call, failed};
use super::library::{Library, Shape, none_fits, splits_sums};
use super::plans::Plans;
use super::tune;
use crate::backend::gpu::driver::MatMul;
use crate::backend::gpu::lock::lock;
use crate::error::{Error, Result};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Rows for which row-invariant products choose their algorithm.
const REFERENCE_ROWS: usize = 4096;
/// Numbers of rows that the algorithm must take too, behind that.
const ROWS_TRIED: [usize; 5] = [REFERENCE_ROWS, 1, 2, 99, 32768];
/// Shapes remembered; a run has a few dozen, chunks of odd sizes add some.
const REMEMBERED: usize = 4096;

/// Products, and the algorithms that were chosen for them.
pub struct CublasLt {
    library: Library,
    algorithms: Mutex<HashMap<Shape, sys::cublasLtMatmulAlgo_t>>,
    /// Where tuned choices are kept, where they are asked for.
    plans: Mutex<Option<Plans>>,
}

impl CublasLt {
    /// Products on `stream`.
    pub fn new(stream: &Arc<CudaStream>) -> Result<CublasLt> {
        Ok(CublasLt { library: Library::open(stream)?, algorithms: Mutex::default(), plans: Mutex::default() })
    }

    /// Of the library.
    pub fn version(&self) -> usize {
        self.library.version
    }

    /// From now on chooses by timing for products of gradients, and keeps to what `file` says for `device`.
    pub fn tune(&self, file: &Path, device: &str) -> Result<()> {
        let plans = Plans::open(file, device)?;
        *lock(&self.plans) = Some(plans);
        lock(&self.algorithms).clear();
        Ok(())
    }

    /// Enqueues `p`. `recording`: nothing may be timed.
    ///
    /// # Safety
    /// The operands cover their shapes.
    pub unsafe fn matmul(&self, stream: &CudaStream, p: &MatMul, recording: bool) -> Result<()> {
        let call = Call::new(p).map_err(failed("describe a product"))?;
        // SAFETY: the caller's promise.
        let algorithm = unsafe { self.algorithm(p, &call, recording) }?;
        // SAFETY: the caller's promise.
        unsafe { self.library.enqueue(stream, p, &call, &algorithm) }
            .map_err(failed(&format!("multiply {} x {} x {}", p.m, p.n, p.k)))
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
        let mut known = lock(&self.algorithms);
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
        let mut plans = lock(&self.plans);
        let Some(plans) = plans.as_mut() else { return Ok(self.library.proposed(call, shape)?[0]) };
        let mut choose = |key: &str| {
            let data = plans.choose(key, || {
                if recording {
                    return Err(Error::Device(
                        "cuBLASLt: a product was recorded before it was met for the first time".into(),
                    ));
                }
                // SAFETY: the caller's promise.
                Ok(unsafe { tune::fastest(&self.library, p, call, &self.library.proposed(call, shape)?) }?.data)
            })?;
            Ok(sys::cublasLtMatmulAlgo_t { data })
        };
        let about = choose(&shape.rounded().key())?;
        if self.library.check(call, &about).is_ok() {
            return Ok(about);
        }
        // An algorithm for a shape of about this size need not take this one.
        let exact = choose(&shape.key())?;
        let using = format!("use the plan in the file for {}", shape.key());
        self.library.check(call, &exact).map_err(failed(&using)).map(|()| exact)
    }

    /// The first of the library's choices that does not split sums and takes every number of rows, by its own account: all
    /// of them are then computed by it. Choices for `REFERENCE_ROWS` rows come first.
    fn for_all_rows(&self, p: &MatMul, shape: &Shape) -> Result<sys::cublasLtMatmulAlgo_t> {
        let calls: Result<Vec<_>, _> = ROWS_TRIED.iter().map(|m| Call::new(&MatMul { m: *m, ..*p })).collect();
        let calls = calls.map_err(failed("describe a product"))?;
        let (mut proposed, mut refused) = (0, None);
        for (call, m) in calls.iter().zip(ROWS_TRIED) {
            let found = match self.library.proposed(call, &Shape { m, ..*shape }) {
                Ok(found) => found,
                Err(e) => {
                    refused.get_or_insert(e);
                    continue;
                }
            };
            proposed += found.len();
            let takes_all = |a: &_| calls.iter().all(|call| self.library.check(call, a).is_ok());
            if let Some(chosen) = found.into_iter().find(|a| !splits_sums(a) && takes_all(a)) {
                return Ok(chosen);
            }
        }
        let why = format!("each of {proposed} proposed splits sums, or does not take every number of rows");
        Err(refused.filter(|_| proposed == 0).unwrap_or_else(|| none_fits(shape, &why)))
    }
}
