//! Weights in four bits. Kernel: `kernels/quant.cu`; reference: `backend/cpu/quant.rs`.

use super::check;
use super::context::{Gpu, GpuFloat, pack};
use super::driver::{Arg, Driver, Grid};
use crate::backend::ops::quant::{DequantizeNf4, Nf4Absmax, QuantOps};
use crate::error::Result;
use crate::quant::nf4::blocks;
use crate::quant::{Precision, dynamic};

/// Threads of a block, and packs of each.
const THREADS: usize = 256;
const PACKS: usize = 4;

impl<D: Driver, A: GpuFloat> QuantOps for Gpu<D, A> {
    fn dequantize_nf4(&self, op: DequantizeNf4<'_, Self>) -> Result<()> {
        const OP: &str = "dequantize_nf4";
        let DequantizeNf4 { mut w, codes, absmax, round } = op;
        check::len(OP, "codes", codes.len(), &[("half of w", w.len().div_ceil(2))])?;
        let n = blocks(w.len());
        let (absmax, [nested, map, offset], is_nested) = match absmax {
            Nf4Absmax::Plain(all) => {
                check::len(OP, "absmax", all.len(), &[("blocks", n)])?;
                // Not read.
                (all, [codes.arg(), all.arg(), all.arg()], false)
            }
            Nf4Absmax::Nested { codes, absmax, map, offset } => {
                check::len(OP, "absmax codes", codes.len(), &[("blocks", n)])?;
                check::len(OP, "nested absmax", absmax.len(), &[("blocks of blocks", n.div_ceil(dynamic::BLOCK))])?;
                check::len(OP, "map", map.len(), &[("codes", 256)])?;
                check::len(OP, "offset", offset.len(), &[("numbers", 1)])?;
                (absmax, [codes.arg(), map.arg(), offset.arg()], true)
            }
        };
        let round = match round {
            Precision::F32 => 0,
            Precision::Bf16 => 1,
            Precision::F16 => 2,
        };
        let len = w.len();
        let sizes = [Arg::I64(len as i64), Arg::I32(is_nested.into()), Arg::I32(round)];
        let args = [w.arg(), codes.arg(), absmax.arg(), nested, map, offset, sizes[0], sizes[1], sizes[2]];
        let packs = len.div_ceil(pack::<A>());
        // SAFETY: codes and magnitudes are as many as `w` needs, as checked above; every byte is a place in a map of 256.
        unsafe { self.launch(OP, Grid::new([packs.div_ceil(THREADS * PACKS), 1], THREADS), &args) }
    }
}
