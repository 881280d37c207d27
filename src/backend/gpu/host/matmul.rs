//! Matrix products of the host driver.

use crate::backend::gpu::driver::{Dtype, MatMul, Matrix};
use rayon::prelude::*;

/// Element `i` of a matrix.
///
/// # Safety
/// `i` is inside the allocation.
unsafe fn get(m: &Matrix, i: usize) -> f32 {
    match m.dtype {
        // SAFETY: the caller's promise.
        Dtype::Bf16 => f32::from(unsafe { *(m.at as *const half::bf16).add(i) }),
        // SAFETY: the caller's promise.
        Dtype::F32 => unsafe { *(m.at as *const f32).add(i) },
    }
}

/// Products whose f32 sum is added to the total at once: keeps rounding near that of a tensor core.
const BLOCK: usize = 32;

/// The definition, row by row: sums over blocks of k in order, so a row does not depend on the others.
///
/// # Safety
/// The operands cover their shapes.
pub(super) unsafe fn matmul(p: &MatMul) {
    // SAFETY: the operands cover their shapes, by the caller's promise.
    let b: Vec<f32> = (0..p.k * p.n)
        .map(|i| (i / p.n, i % p.n))
        .map(|(k, j)| unsafe { get(&p.b, if p.b_transposed { j * p.b.ld + k } else { k * p.b.ld + j }) })
        .collect();
    (0..p.m).into_par_iter().for_each(|i| {
        let (mut sum, mut block) = (vec![0.0f32; p.n], vec![0.0f32; p.n]);
        for k in 0..p.k {
            // SAFETY: `a` covers its shape, by the caller's promise.
            let a = unsafe { get(&p.a, if p.a_transposed { k * p.a.ld + i } else { i * p.a.ld + k }) };
            block.iter_mut().zip(&b[k * p.n..][..p.n]).for_each(|(s, b)| *s += a * b);
            if (k + 1) % BLOCK == 0 || k + 1 == p.k {
                sum.iter_mut().zip(&mut block).for_each(|(s, b)| *s += std::mem::take(b));
            }
        }
        for (j, s) in sum.iter().enumerate() {
            let at = i * p.d.ld + j;
            // SAFETY: `c` and `d` cover their shapes, by the caller's promise; every task writes a row of its own.
            unsafe {
                let c = p.c.map_or(0.0, |c| get(&Matrix { at: c, ..p.d }, at));
                match p.d.dtype {
                    Dtype::Bf16 => *(p.d.at as *mut half::bf16).add(at) = half::bf16::from_f32(p.scale * s + c),
                    Dtype::F32 => *(p.d.at as *mut f32).add(at) = p.scale * s + c,
                }
            }
        }
    });
}
