//! The micro-kernel of bf16 products.

use super::kernel::{Kernel, LOW};
use std::arch::x86_64::*;

/// `f32` matrices, operands rounded to bf16 while they are packed: a unit is two of them, the lower `k` in the low half.
pub(super) struct Bf16Avx512;

impl Kernel for Bf16Avx512 {
    type S = f32;
    type P = u32;
    const MR: usize = 12;
    const NR: usize = 32;
    const K: usize = 2;
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn tile(
        units: usize,
        a: *const u32,
        a_step: usize,
        b: *const u32,
        b_step: usize,
        c: *mut f32,
        c_ld: usize,
        base: *const f32,
        base_ld: usize,
    ) {
        // SAFETY: passed on to the caller.
        unsafe { bf16_tile::<12>(units, a, a_step, b, b_step, c, c_ld, base, base_ld) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn low_tile(
        units: usize,
        a: *const u32,
        a_step: usize,
        b: *const u32,
        b_step: usize,
        c: *mut f32,
        c_ld: usize,
        base: *const f32,
        base_ld: usize,
    ) {
        // SAFETY: passed on to the caller.
        unsafe { bf16_tile::<LOW>(units, a, a_step, b, b_step, c, c_ld, base, base_ld) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn pack(dst: &mut [u32], panel: usize, src: *const f32, width: usize, line: usize, len: usize, step: usize) {
        // SAFETY: passed on to the caller.
        unsafe { super::pack512::pack_bf16(dst, panel, src, width, line, len, step) }
    }
}

/// The tile of the `f32` kernels, with two products and two additions an instruction (VDPBF16PS: denormals count as 0).
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(clippy::too_many_arguments)]
unsafe fn bf16_tile<const MR: usize>(
    units: usize,
    a: *const u32,
    a_step: usize,
    b: *const u32,
    b_step: usize,
    c: *mut f32,
    c_ld: usize,
    base: *const f32,
    base_ld: usize,
) {
    let pairs = |x: __m512i| -> __m512bh {
        // SAFETY: both are 512 bits, and mean the same.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
    };
    // SAFETY: indices stay below MR, 32 and `units`, which the caller's contract covers.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; MR];
        for u in 0..units {
            let (a, b) = (a.add(u * a_step), b.add(u * b_step));
            let row: [__m512bh; 2] = [pairs(_mm512_loadu_si512(b.cast())), pairs(_mm512_loadu_si512(b.add(16).cast()))];
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = pairs(_mm512_set1_epi32((*a.add(i)).cast_signed()));
                for (t, r) in acc.iter_mut().zip(row) {
                    *t = _mm512_dpbf16_ps(*t, x, r);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (v, t) in acc.iter().enumerate() {
                let at = v * 16;
                let t =
                    if base.is_null() { *t } else { _mm512_add_ps(_mm512_loadu_ps(base.add(i * base_ld + at)), *t) };
                _mm512_storeu_ps(c.add(i * c_ld + at), t);
            }
        }
    }
}
