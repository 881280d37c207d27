//! Weights in four bits. A block's sixteen numbers are made once and then looked up, which costs less than the products would.

use super::check;
use super::device::Cpu;
use super::real::Real;
use crate::backend::ops::quant::{DequantizeNf4, Nf4Absmax, QuantOps};
use crate::error::Result;
use crate::quant::nf4::{BLOCK, blocks, levels};
use crate::quant::{Precision, dynamic};
use rayon::prelude::*;

/// Blocks of a task.
const TASK: usize = 256;

impl<S: Real> QuantOps for Cpu<S> {
    fn dequantize_nf4(&self, op: DequantizeNf4<'_, Self>) -> Result<()> {
        const OP: &str = "dequantize_nf4";
        let DequantizeNf4 { w, codes, absmax, round } = op;
        check::len(OP, "codes", codes.len(), &[("half of w", w.len().div_ceil(2))])?;
        let n = blocks(w.len());
        match absmax {
            Nf4Absmax::Plain(all) => check::len(OP, "absmax", all.len(), &[("blocks", n)])?,
            Nf4Absmax::Nested { codes, absmax, map, offset } => {
                check::len(OP, "absmax codes", codes.len(), &[("blocks", n)])?;
                check::len(OP, "nested absmax", absmax.len(), &[("blocks of blocks", n.div_ceil(dynamic::BLOCK))])?;
                check::len(OP, "map", map.len(), &[("codes", 256)])?;
                check::len(OP, "offset", offset.len(), &[("numbers", 1)])?;
            }
        }
        let magnitude = |i: usize| match absmax {
            Nf4Absmax::Plain(all) => all[i],
            Nf4Absmax::Nested { codes, absmax, map, offset } => {
                map[usize::from(codes[i])] * absmax[i / dynamic::BLOCK] + offset[0]
            }
        };
        let tasks = w.par_chunks_mut(TASK * BLOCK).zip(codes.par_chunks(TASK * BLOCK / 2)).enumerate();
        tasks.for_each(|(t, (w, codes))| {
            for (i, (w, codes)) in w.chunks_mut(BLOCK).zip(codes.chunks(BLOCK / 2)).enumerate() {
                block(w, codes, magnitude(t * TASK + i), round);
            }
        });
        Ok(())
    }
}

fn block<S: Real>(w: &mut [S], codes: &[u8], absmax: f32, round: Precision) {
    let levels = levels(absmax, round).map(|level| S::from_f64(level.into()));
    let whole = w.len() / 2;
    for (w, byte) in w.chunks_exact_mut(2).zip(codes) {
        w[0] = levels[usize::from(byte >> 4)];
        w[1] = levels[usize::from(byte & 15)];
    }
    if let (Some(last), Some(byte)) = (w.get_mut(2 * whole), codes.get(whole)) {
        *last = levels[usize::from(byte >> 4)];
    }
}
