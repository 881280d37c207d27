//! Packing with AVX-512: 32-bit units (an `f32`, or two bf16), 16 lines at a time.

use std::arch::x86_64::*;

/// How 16 consecutive units of a line, and the units of 16 neighbouring lines, come out of `f32` memory.
trait Source {
    /// Values of `k` in a unit.
    const K: usize;
    /// Up to 16 units of one line, `len` values from `p`; zero beyond.
    unsafe fn along(p: *const f32, len: usize) -> __m512i;
    /// One unit of the lines in `lines`, values at `p` and, where a unit has two and `second` says so, at `p + step`.
    unsafe fn across(p: *const f32, lines: __mmask16, step: usize, second: bool) -> __m512i;
}

/// The values as they are.
struct Plain;
/// The values rounded to bf16.
struct Rounded;
/// Pairs of values, rounded to bf16.
struct Bf16;

/// Units that memory is asked for ahead, which hardware guesses too late.
const AHEAD: usize = 8;

/// The lowest `n` of 16 lanes.
fn lanes(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1u16 << n) - 1 }
}

impl Source for Plain {
    const K: usize = 1;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn along(p: *const f32, len: usize) -> __m512i {
        // SAFETY: the mask covers the `len` values that the caller vouches for.
        unsafe { _mm512_castps_si512(_mm512_maskz_loadu_ps(lanes(len), p)) }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn across(p: *const f32, lines: __mmask16, _step: usize, _second: bool) -> __m512i {
        // SAFETY: the mask covers the lines that the caller vouches for.
        unsafe { _mm512_castps_si512(_mm512_maskz_loadu_ps(lines, p)) }
    }
}

/// Rounds to bf16, to nearest even, without an instruction for it; denormals become 0, as that would make them, NaN stays.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn rounded(x: __m512i) -> __m512i {
    const DENORMAL: i32 = 0x20;
    const NAN: i32 = 0x81;
    let class = _mm512_castsi512_ps(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
    let up = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let quiet = _mm512_or_si512(x, _mm512_set1_epi32(0x0040_0000));
    let x = _mm512_mask_mov_epi32(up, _mm512_fpclass_ps_mask::<NAN>(class), quiet);
    let sign = _mm512_set1_epi32(i32::MIN);
    let high = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32));
    _mm512_mask_and_epi32(high, _mm512_fpclass_ps_mask::<DENORMAL>(class), high, sign)
}

impl Source for Rounded {
    const K: usize = 1;
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn along(p: *const f32, len: usize) -> __m512i {
        // SAFETY: the caller's contract.
        unsafe { rounded(Plain::along(p, len)) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn across(p: *const f32, lines: __mmask16, step: usize, second: bool) -> __m512i {
        // SAFETY: the caller's contract.
        unsafe { rounded(Plain::across(p, lines, step, second)) }
    }
}

impl Source for Bf16 {
    const K: usize = 2;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn along(p: *const f32, len: usize) -> __m512i {
        // SAFETY: the masks cover the `len` values that the caller vouches for; a transmute between 512-bit registers.
        unsafe {
            let low = _mm512_maskz_loadu_ps(lanes(len), p);
            let high = _mm512_maskz_loadu_ps(lanes(len.saturating_sub(16)), p.wrapping_add(16));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn across(p: *const f32, lines: __mmask16, step: usize, second: bool) -> __m512i {
        // SAFETY: the masks cover what the caller vouches for; transmutes between 256-bit registers.
        unsafe {
            let bits =
                |x: __m512| _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)));
            let low = bits(_mm512_maskz_loadu_ps(lines, p));
            let high = bits(_mm512_maskz_loadu_ps(if second { lines } else { 0 }, p.wrapping_add(step)));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        }
    }
}

/// See `Kernel::pack`.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn pack_f32(
    dst: &mut [f32],
    panel: usize,
    src: *const f32,
    width: usize,
    line: usize,
    len: usize,
    step: usize,
) {
    // SAFETY: the caller's contract.
    unsafe { pack::<Plain>(bytemuck::cast_slice_mut(dst), panel, src, width, line, len, step) }
}

/// See `Kernel::pack`; rounds to bf16, which stays an `f32`.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn pack_rounded(
    dst: &mut [f32],
    panel: usize,
    src: *const f32,
    width: usize,
    line: usize,
    len: usize,
    step: usize,
) {
    // SAFETY: the caller's contract.
    unsafe { pack::<Rounded>(bytemuck::cast_slice_mut(dst), panel, src, width, line, len, step) }
}

/// See `Kernel::pack`; rounds to nearest even, as `VCVTNE2PS2BF16` does (denormals become 0).
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn pack_bf16(
    dst: &mut [u32],
    panel: usize,
    src: *const f32,
    width: usize,
    line: usize,
    len: usize,
    step: usize,
) {
    // SAFETY: the caller's contract.
    unsafe { pack::<Bf16>(dst, panel, src, width, line, len, step) }
}

/// Packs pairs rounded to bf16 in blocks of 16 units: `dst[(u / 16 * panel + w) * 16 + u % 16]` is unit `u` of line `w`,
/// and zero beyond `width` or `len`, to the end of `dst`.
///
/// # Safety
/// As `Kernel::pack`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn pack_bf16_by_line(
    dst: &mut [u32],
    panel: usize,
    src: *const f32,
    width: usize,
    line: usize,
    len: usize,
    step: usize,
) {
    assert!(dst.len().is_multiple_of(16 * panel) && dst.len() >= panel * len.div_ceil(2), "pack: destination");
    assert!(width <= panel && panel.is_multiple_of(16), "pack: lines");
    assert!(step == 1 || line == 1, "pack: one of the two directions is contiguous");
    for (block, dst) in dst.chunks_exact_mut(16 * panel).enumerate() {
        let (k, left) = (block * 32, len.saturating_sub(block * 32));
        for (first, dst) in (0..panel).step_by(16).zip(dst.chunks_exact_mut(256)) {
            let live = width.saturating_sub(first).min(16);
            let mut rows = [_mm512_setzero_si512(); 16];
            // SAFETY: reads stay below `width` lines and `len` values; writes in 16 rows of 16 units.
            unsafe {
                let src = src.wrapping_add(first * line + k * step);
                if step == 1 {
                    for (w, row) in rows.iter_mut().enumerate().take(live) {
                        *row = Bf16::along(src.wrapping_add(w * line), left);
                    }
                } else {
                    for (u, row) in rows.iter_mut().enumerate().take(left.div_ceil(2)) {
                        *row = Bf16::across(src.wrapping_add(2 * u * step), lanes(live), step, 2 * u + 1 < left);
                    }
                    transpose(&mut rows);
                }
                for (row, dst) in rows.iter().zip(dst.chunks_exact_mut(16)) {
                    _mm512_storeu_si512(dst.as_mut_ptr().cast(), *row);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn pack<S: Source>(
    dst: &mut [u32],
    panel: usize,
    src: *const f32,
    width: usize,
    line: usize,
    len: usize,
    step: usize,
) {
    let units = len.div_ceil(S::K);
    assert!(dst.len() >= panel * units && width <= panel, "pack: destination");
    assert!(step == 1 || line == 1, "pack: one of the two directions is contiguous");
    for first in (0..panel).step_by(16) {
        let (columns, live) = (lanes(panel - first), width.saturating_sub(first).min(16));
        let at = |u: usize| u * panel + first;
        // SAFETY: reads stay below `width` lines and `len` values; writes below `panel` units of `units` rows of `dst`.
        unsafe {
            let src = src.wrapping_add(first * line);
            if line == 1 {
                for u in 0..units {
                    let k = u * S::K;
                    _mm_prefetch::<_MM_HINT_T0>(src.wrapping_add((k + AHEAD * S::K) * step).cast());
                    let x = S::across(src.wrapping_add(k * step), lanes(live), step, k + 1 < len);
                    _mm512_mask_storeu_epi32(dst.as_mut_ptr().add(at(u)).cast(), columns, x);
                }
            } else {
                for u in (0..units).step_by(16) {
                    let k = u * S::K;
                    let mut rows = [_mm512_setzero_si512(); 16];
                    for (w, row) in rows.iter_mut().enumerate().take(live) {
                        let at = src.wrapping_add(w * line + k);
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(32 * S::K).cast());
                        // The next panel's, while this one's is multiplied.
                        _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(panel * line).cast());
                        *row = S::along(at, len - k);
                    }
                    transpose(&mut rows);
                    for (i, row) in rows.iter().enumerate().take(units - u) {
                        _mm512_mask_storeu_epi32(dst.as_mut_ptr().add(at(u + i)).cast(), columns, *row);
                    }
                }
            }
        }
    }
}

/// Transposes 16 x 16 units.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: &mut [__m512i; 16]) {
    let mut t = *r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // Afterwards r[b + j] holds, in its 128-bit lane L, column 4 L + j of rows b..b + 4.
    for b in [0, 4, 8, 12] {
        r[b] = _mm512_unpacklo_epi64(t[b], t[b + 2]);
        r[b + 1] = _mm512_unpackhi_epi64(t[b], t[b + 2]);
        r[b + 2] = _mm512_unpacklo_epi64(t[b + 1], t[b + 3]);
        r[b + 3] = _mm512_unpackhi_epi64(t[b + 1], t[b + 3]);
    }
    for j in 0..4 {
        let even = [_mm512_shuffle_i32x4::<0x88>(r[j], r[4 + j]), _mm512_shuffle_i32x4::<0x88>(r[8 + j], r[12 + j])];
        let odd = [_mm512_shuffle_i32x4::<0xdd>(r[j], r[4 + j]), _mm512_shuffle_i32x4::<0xdd>(r[8 + j], r[12 + j])];
        t[j] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        t[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        t[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        t[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    *r = t;
}
