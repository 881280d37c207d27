//! Packing with AVX-512: units of 32-bit words (an `f32`, or two bf16; three words where numbers are split), 16 lines at a time.

use std::arch::x86_64::*;

/// How 16 consecutive units of a line, and the units of 16 neighbouring lines, come out of `f32` memory, in `N` words each.
trait Source<const N: usize> {
    /// Values of `k` in a unit.
    const K: usize;
    /// Up to 16 units of one line, `len` values from `p`; zero beyond.
    unsafe fn along(p: *const f32, len: usize) -> [__m512i; N];
    /// One unit of the lines in `lines`, values at `p` and, where a unit has two and `second` says so, at `p + step`.
    unsafe fn across(p: *const f32, lines: __mmask16, step: usize, second: bool) -> [__m512i; N];
}

/// The values as they are.
struct Plain;
/// The values rounded to bf16.
struct Rounded;
/// Pairs of values, rounded to bf16.
struct Bf16;
/// Pairs of values, each the sum of three in bf16: itself rounded, what that leaves rounded, and what is left of that, which
/// is exact but for denormals. An infinity has no such parts, and becomes NaN.
struct Parts;

/// The lowest `n` of 16 lanes.
fn lanes(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1u16 << n) - 1 }
}

impl Source<1> for Plain {
    const K: usize = 1;
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn along(p: *const f32, len: usize) -> [__m512i; 1] {
        // SAFETY: the mask covers the `len` values that the caller vouches for.
        unsafe { [_mm512_castps_si512(_mm512_maskz_loadu_ps(lanes(len), p))] }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn across(p: *const f32, lines: __mmask16, _step: usize, _second: bool) -> [__m512i; 1] {
        // SAFETY: the mask covers the lines that the caller vouches for.
        unsafe { [_mm512_castps_si512(_mm512_maskz_loadu_ps(lines, p))] }
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

impl Source<1> for Rounded {
    const K: usize = 1;
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn along(p: *const f32, len: usize) -> [__m512i; 1] {
        // SAFETY: the caller's contract.
        unsafe { [rounded(Plain::along(p, len)[0])] }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn across(p: *const f32, lines: __mmask16, step: usize, second: bool) -> [__m512i; 1] {
        // SAFETY: the caller's contract.
        unsafe { [rounded(Plain::across(p, lines, step, second)[0])] }
    }
}

/// Two registers of values as one of bf16, to nearest even: `low` in the lower half.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn halves(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are 512 bits, and mean the same.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// The values of the units of lines side by side.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn two(p: *const f32, lines: __mmask16, step: usize, second: bool) -> [__m512; 2] {
    // SAFETY: the masks cover what the caller vouches for.
    unsafe {
        let high = _mm512_maskz_loadu_ps(if second { lines } else { 0 }, p.wrapping_add(step));
        [_mm512_maskz_loadu_ps(lines, p), high]
    }
}

/// [`two`] along a line: its first 16 values, and the next.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn two_along(p: *const f32, len: usize) -> [__m512; 2] {
    // SAFETY: the masks cover the `len` values that the caller vouches for.
    unsafe {
        let high = _mm512_maskz_loadu_ps(lanes(len.saturating_sub(16)), p.wrapping_add(16));
        [_mm512_maskz_loadu_ps(lanes(len), p), high]
    }
}

/// Interleaves what [`halves`] put side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pairs(x: __m512i) -> __m512i {
    let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x));
    // The upper half's values where they are wanted: above the lower half's.
    let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(x)));
    _mm512_or_si512(low, high)
}

impl Source<1> for Bf16 {
    const K: usize = 2;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn along(p: *const f32, len: usize) -> [__m512i; 1] {
        // SAFETY: the caller's contract.
        let [low, high] = unsafe { two_along(p, len) };
        [halves(low, high)]
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn across(p: *const f32, lines: __mmask16, step: usize, second: bool) -> [__m512i; 1] {
        // SAFETY: the caller's contract.
        let [low, high] = unsafe { two(p, lines, step, second) };
        [pairs(halves(low, high))]
    }
}

/// The three parts of two registers of values, as [`halves`] puts them.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn parts([mut low, mut high]: [__m512; 2]) -> [__m512i; 3] {
    let wide = |half: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
    let mut parts = [_mm512_setzero_si512(); 3];
    for part in &mut parts {
        *part = halves(low, high);
        low = _mm512_sub_ps(low, wide(_mm512_castsi512_si256(*part)));
        high = _mm512_sub_ps(high, wide(_mm512_extracti64x4_epi64::<1>(*part)));
    }
    parts
}

impl Source<3> for Parts {
    const K: usize = 2;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn along(p: *const f32, len: usize) -> [__m512i; 3] {
        // SAFETY: the caller's contract.
        parts(unsafe { two_along(p, len) })
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn across(p: *const f32, lines: __mmask16, step: usize, second: bool) -> [__m512i; 3] {
        // SAFETY: the caller's contract.
        let [first, second, third] = parts(unsafe { two(p, lines, step, second) });
        [pairs(first), pairs(second), pairs(third)]
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
    unsafe { pack::<Plain, 1>(bytemuck::cast_slice_mut(dst), panel, src, width, line, len, step) }
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
    unsafe { pack::<Rounded, 1>(bytemuck::cast_slice_mut(dst), panel, src, width, line, len, step) }
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
    unsafe { pack::<Bf16, 1>(dst, panel, src, width, line, len, step) }
}

/// See `Kernel::pack`: as [`pack_bf16`], of the three parts, in strips of 16 units: all of a part, then all of the next.
///
/// # Safety
/// As there; `dst` is whole strips.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn pack_parts(
    dst: &mut [u32],
    panel: usize,
    src: *const f32,
    width: usize,
    line: usize,
    len: usize,
    step: usize,
) {
    // SAFETY: the caller's contract.
    unsafe { pack::<Parts, 3>(dst, panel, src, width, line, len, step) }
}

/// Packs pairs rounded to bf16 in strips of 16 units: `dst[(u / 16 * panel + w) * 16 + u % 16]` is unit `u` of line `w`,
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
    // SAFETY: the caller's contract.
    unsafe { pack_by_line::<Bf16, 1>(dst, panel, src, width, line, len, step) }
}

/// As [`pack_bf16_by_line`], of the three parts: of a strip all of a part, then all of the next.
///
/// # Safety
/// As `Kernel::pack`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn pack_parts_by_line(
    dst: &mut [u32],
    panel: usize,
    src: *const f32,
    width: usize,
    line: usize,
    len: usize,
    step: usize,
) {
    // SAFETY: the caller's contract.
    unsafe { pack_by_line::<Parts, 3>(dst, panel, src, width, line, len, step) }
}

#[inline(always)]
unsafe fn pack_by_line<S: Source<N>, const N: usize>(
    dst: &mut [u32],
    panel: usize,
    src: *const f32,
    width: usize,
    line: usize,
    len: usize,
    step: usize,
) {
    assert!(dst.len().is_multiple_of(16 * panel * N) && dst.len() >= panel * N * len.div_ceil(2), "pack: destination");
    assert!(width <= panel && panel.is_multiple_of(16), "pack: lines");
    assert!(step == 1 || line == 1, "pack: one of the two directions is contiguous");
    for (strip, dst) in dst.chunks_exact_mut(16 * panel * N).enumerate() {
        let (k, left) = (strip * 32, len.saturating_sub(strip * 32));
        for first in (0..panel).step_by(16) {
            let live = width.saturating_sub(first).min(16);
            // SAFETY: reads stay below `width` lines and `len` values; writes in 16 rows of 16 units of a part.
            unsafe {
                let mut rows = [[_mm512_setzero_si512(); 16]; N];
                let src = src.wrapping_add(first * line + k * step);
                if step == 1 {
                    for w in 0..live {
                        let at = src.wrapping_add(w * line);
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(64).cast());
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(80).cast());
                        put(&mut rows, w, S::along(at, left));
                    }
                } else {
                    for u in 0..left.div_ceil(2).min(16) {
                        for k in 2 * u..2 * u + 2 {
                            _mm_prefetch::<_MM_HINT_T0>(src.wrapping_add(k * step + panel).cast());
                        }
                        let x = S::across(src.wrapping_add(2 * u * step), lanes(live), step, 2 * u + 1 < left);
                        put(&mut rows, u, x);
                    }
                    for rows in &mut rows {
                        transpose(rows);
                    }
                }
                for (part, rows) in rows.iter().enumerate() {
                    let at = dst[(part * panel + first) * 16..][..256].as_mut_ptr();
                    for (w, row) in rows.iter().enumerate() {
                        _mm512_storeu_si512(at.add(w * 16).cast(), *row);
                    }
                }
            }
        }
    }
}

/// Row `at` of each part.
#[inline(always)]
fn put<const N: usize>(rows: &mut [[__m512i; 16]; N], at: usize, parts: [__m512i; N]) {
    for (rows, part) in rows.iter_mut().zip(parts) {
        rows[at] = part;
    }
}

/// Where a unit of a word more than one goes: in strips of 16 units, all of a part, then all of the next.
#[inline(always)]
fn place<const N: usize>(part: usize, unit: usize, panel: usize) -> usize {
    if N == 1 { unit * panel } else { ((unit / 16 * N + part) * 16 + unit % 16) * panel }
}

#[inline(always)]
unsafe fn pack<S: Source<N>, const N: usize>(
    dst: &mut [u32],
    panel: usize,
    src: *const f32,
    width: usize,
    line: usize,
    len: usize,
    step: usize,
) {
    let units = len.div_ceil(S::K);
    let strips = if N == 1 { units } else { units.next_multiple_of(16) };
    assert!(dst.len() >= panel * strips * N && width <= panel, "pack: destination");
    assert!(step == 1 || line == 1, "pack: one of the two directions is contiguous");
    for first in (0..panel).step_by(16) {
        let (columns, live) = (lanes(panel - first), width.saturating_sub(first).min(16));
        let dst = dst.as_mut_ptr().wrapping_add(first);
        // SAFETY: reads stay below `width` lines and `len` values; writes below `panel` units of `units` rows of `dst`.
        unsafe {
            let src = src.wrapping_add(first * line);
            if line == 1 {
                for u in 0..units {
                    let k = u * S::K;
                    for k in k..k + S::K {
                        // The same values of the next panel.
                        _mm_prefetch::<_MM_HINT_T0>(src.wrapping_add(k * step + panel).cast());
                    }
                    let words = S::across(src.wrapping_add(k * step), lanes(live), step, k + 1 < len);
                    for (part, x) in words.iter().enumerate() {
                        _mm512_mask_storeu_epi32(dst.add(place::<N>(part, u, panel)).cast(), columns, *x);
                    }
                }
            } else {
                for u in (0..units).step_by(16) {
                    let k = u * S::K;
                    let mut rows = [[_mm512_setzero_si512(); 16]; N];
                    for w in 0..live {
                        let at = src.wrapping_add(w * line + k);
                        for of in 0..S::K {
                            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(32 * S::K + 16 * of).cast());
                            // The next panel's, while this one's is multiplied.
                            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(panel * line + 16 * of).cast());
                        }
                        put(&mut rows, w, S::along(at, len - k));
                    }
                    for (part, rows) in rows.iter_mut().enumerate() {
                        transpose(rows);
                        for (i, row) in rows.iter().enumerate().take(units - u) {
                            _mm512_mask_storeu_epi32(dst.add(place::<N>(part, u + i, panel)).cast(), columns, *row);
                        }
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
