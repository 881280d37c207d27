//! `f32` products on AMX tiles, as exact as multiply-adds and more than twice as fast: an `f32` is the sum of three numbers in
//! bf16, and a product the sum of the six of their products that `f32` can tell from nothing (Henry, Tang and Heinecke,
//! arXiv 1904.06376). What is left out is below 2^-24 of a product.
//!
//! The six are summed together: an instruction sums 32 products of a kind from nothing and adds that once to its tile, so a
//! tile sees 6 roundings for 32 values where a chain of multiply-adds sees 32. The error is half of that chain's (`tests` below).

use super::amx::{Bf16Amx, TILE};
use super::flush::ask_for;
use super::kernel::{K_BLOCK, Kernel};
use super::pack512;
use std::arch::asm;
use std::arch::x86_64::*;

/// See the module. In strips of 16 units, panels hold a part after the other, each in the order of [`Bf16Amx`].
pub(super) struct F32Parts;

/// Bytes of a strip of a panel: three parts of 32 lines of 16 units.
const STRIP: usize = 3 * 2 * TILE * TILE * 4;
/// A tile in memory of its own.
#[repr(C, align(64))]
struct Sums([f32; 4 * TILE * TILE]);

/// Two registers of `a` by two of `b`, added to the four sums; each is loaded, or not, before its first use.
macro_rules! four {
    ($a0:expr, $a1:expr, $b0:expr, $b1:expr) => {
        concat!(
            $a0,
            $b0,
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            $b1,
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            $a1,
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n"
        )
    };
}

/// Sums over strips from 0, by the given products of each.
macro_rules! sums {
    ($(#[$doc:meta])* $name:ident, $($product:expr),*) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// `strips`, not 0, lie at `a` and `b`, and 32 rows of 32 elements at `to`; the tile registers belong to this thread.
        #[inline(always)]
        unsafe fn $name(strips: usize, a: *const [u32; 3], b: *const [u32; 3], to: *mut f32, ld: usize) {
            // SAFETY: the caller's contract.
            unsafe {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "2:",
                    $($product,)*
                    "add {a}, {strip}",
                    "add {b}, {strip}",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{p} + {ld}], tmm0",
                    "tilestored [{p} + {ld} + 64], tmm1",
                    "tilestored [{q} + {ld}], tmm2",
                    "tilestored [{q} + {ld} + 64], tmm3",
                    a = inout(reg) a => _, b = inout(reg) b => _, n = inout(reg) strips => _,
                    sa = in(reg) 4 * TILE, sb = in(reg) 8 * TILE, strip = const STRIP,
                    p = in(reg) to, q = in(reg) to.wrapping_add(TILE * ld), ld = in(reg) 4 * ld,
                    options(nostack)
                )
            }
        }
    };
}
macro_rules! first_by_first {
    () => {
        four!(
            "tileloadd tmm4, [{a} + {sa}]\n",
            "tileloadd tmm5, [{a} + {sa} + 1024]\n",
            "tileloadd tmm6, [{b} + {sb}]\n",
            "tileloadd tmm7, [{b} + {sb} + 64]\n"
        )
    };
}
macro_rules! second_of_a {
    () => {
        four!("tileloadd tmm4, [{a} + {sa} + 2048]\n", "tileloadd tmm5, [{a} + {sa} + 3072]\n", "", "")
    };
}
macro_rules! third_of_a {
    () => {
        four!("tileloadd tmm4, [{a} + {sa} + 4096]\n", "tileloadd tmm5, [{a} + {sa} + 5120]\n", "", "")
    };
}
sums!(
    /// The parts of `a` by those of `b`: first by first, third and second, second by second and first, third by first, so
    /// that a register is loaded anew seldom.
    sums,
    first_by_first!(),
    four!("", "", "tileloadd tmm6, [{b} + {sb} + 4096]\n", "tileloadd tmm7, [{b} + {sb} + 4160]\n"),
    four!("", "", "tileloadd tmm6, [{b} + {sb} + 2048]\n", "tileloadd tmm7, [{b} + {sb} + 2112]\n"),
    second_of_a!(),
    four!("", "", "tileloadd tmm6, [{b} + {sb}]\n", "tileloadd tmm7, [{b} + {sb} + 64]\n"),
    third_of_a!()
);
sums!(
    /// As [`sums`] where `b` has two parts: what is left out is 0.
    sums_by_two,
    first_by_first!(),
    four!("", "", "tileloadd tmm6, [{b} + {sb} + 2048]\n", "tileloadd tmm7, [{b} + {sb} + 2112]\n"),
    second_of_a!(),
    four!("", "", "tileloadd tmm6, [{b} + {sb}]\n", "tileloadd tmm7, [{b} + {sb} + 64]\n"),
    third_of_a!()
);
sums!(
    /// As [`sums`] where `b` has one part.
    sums_by_one,
    first_by_first!(),
    second_of_a!(),
    third_of_a!()
);

/// `sums` added to `base`.
///
/// # Safety
/// As [`Kernel::tile`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn whole_tile(
    sums: unsafe fn(usize, *const [u32; 3], *const [u32; 3], *mut f32, usize),
    units: usize,
    [a, b]: [*const [u32; 3]; 2],
    c: *mut f32,
    c_ld: usize,
    base: *const f32,
    base_ld: usize,
) {
    ask_for(2 * TILE, 2 * TILE, c, c_ld, base, base_ld);
    // SAFETY: whole panels of `a` and `b`, 32 rows of 32 elements of `base` and `c`: the caller's contract.
    unsafe {
        if base.is_null() {
            return sums(units / TILE, a, b, c, c_ld);
        }
        let mut own = Sums([0.0; 4 * TILE * TILE]);
        sums(units / TILE, a, b, own.0.as_mut_ptr(), 2 * TILE);
        for (i, row) in own.0.chunks_exact(2 * TILE).enumerate() {
            for at in [0, TILE] {
                let sum = _mm512_load_ps(row.as_ptr().add(at));
                let sum = _mm512_add_ps(_mm512_loadu_ps(base.add(i * base_ld + at)), sum);
                _mm512_storeu_ps(c.add(i * c_ld + at), sum);
            }
        }
    }
}

impl Kernel for F32Parts {
    type S = f32;
    type P = [u32; 3];
    const MR: usize = 2 * TILE;
    const NR: usize = 2 * TILE;
    const K: usize = 2;
    const DEPTH: usize = TILE;
    const BLOCK: usize = K_BLOCK / 2;
    const ASKS: bool = false;
    const PARTS: u8 = 3;

    unsafe fn enter() {
        // SAFETY: the caller's contract.
        unsafe { Bf16Amx::enter() }
    }
    unsafe fn leave() {
        // SAFETY: the caller's contract.
        unsafe { Bf16Amx::leave() }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tile(
        units: usize,
        a: *const [u32; 3],
        _a_step: usize,
        b: *const [u32; 3],
        _b_step: usize,
        c: *mut f32,
        c_ld: usize,
        base: *const f32,
        base_ld: usize,
    ) {
        // SAFETY: the caller's contract.
        unsafe { whole_tile(sums, units, [a, b], c, c_ld, base, base_ld) }
    }

    /// Weights as they were published: bf16 has one part, f16 and most that were quantised once have two.
    #[target_feature(enable = "avx512f")]
    unsafe fn parts(b: &[[u32; 3]]) -> u8 {
        let any = |part: &[u32]| part.iter().fold(0, |all, x| all | x) != 0;
        let mut parts = 1;
        for strip in bytemuck::cast_slice::<[u32; 3], u32>(b).chunks_exact(STRIP / 4) {
            let (second, third) = strip[STRIP / 12..].split_at(STRIP / 12);
            if any(third) {
                return 3;
            }
            parts = if parts == 1 && any(second) { 2 } else { parts };
        }
        parts
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tile_of(
        parts: u8,
        units: usize,
        a: *const [u32; 3],
        _a_step: usize,
        b: *const [u32; 3],
        _b_step: usize,
        c: *mut f32,
        c_ld: usize,
        base: *const f32,
        base_ld: usize,
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            match parts {
                1 => whole_tile(sums_by_one, units, [a, b], c, c_ld, base, base_ld),
                2 => whole_tile(sums_by_two, units, [a, b], c, c_ld, base, base_ld),
                _ => whole_tile(sums, units, [a, b], c, c_ld, base, base_ld),
            }
        }
    }

    /// The whole tile: few rows are for kernels that read less.
    #[target_feature(enable = "avx512f")]
    unsafe fn low_tile(
        units: usize,
        a: *const [u32; 3],
        a_step: usize,
        b: *const [u32; 3],
        b_step: usize,
        c: *mut f32,
        c_ld: usize,
        base: *const f32,
        base_ld: usize,
    ) {
        // SAFETY: the caller's contract.
        unsafe { Self::tile(units, a, a_step, b, b_step, c, c_ld, base, base_ld) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn pack(
        dst: &mut [[u32; 3]],
        panel: usize,
        src: *const f32,
        width: usize,
        line: usize,
        len: usize,
        step: usize,
    ) {
        let whole = len.div_ceil(Self::K) / TILE * TILE * panel;
        dst[whole..].fill([0; 3]);
        // SAFETY: the caller's contract.
        unsafe { pack512::pack_parts(bytemuck::cast_slice_mut(dst), panel, src, width, line, len, step) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    unsafe fn pack_a(dst: &mut [[u32; 3]], src: *const f32, width: usize, line: usize, len: usize, step: usize) {
        // SAFETY: the caller's contract.
        unsafe { pack512::pack_parts_by_line(bytemuck::cast_slice_mut(dst), Self::MR, src, width, line, len, step) }
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::cpu::gemm::dispatch::HasGemm;
    use crate::backend::cpu::gemm::matrix::{Base, Mat};
    use crate::backend::cpu::gemm::setup::{Gemm, GemmPrecision};
    use crate::backend::cpu::simd::Level;

    /// Sum of squares of the errors of a level's product, each as a share of the sum of the absolute products.
    fn error(level: Level, a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> f64 {
        let g = Gemm::new::<f32>(level, GemmPrecision::Native).unwrap();
        let mut c = vec![f32::NAN; m * n];
        f32::gemm(&g, &mut c, Base::Zero, Mat::by_line(a, k), Mat::by_line(b, k), [m, n, k]);
        let mut sum = 0.0;
        for (i, row) in c.chunks_exact(n).enumerate() {
            for (j, c) in row.iter().enumerate() {
                let products = || (0..k).map(|u| f64::from(a[i * k + u]) * f64::from(b[j * k + u]));
                let (want, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                sum += ((f64::from(*c) - want) / size).powi(2);
            }
        }
        assert!(sum.is_finite());
        sum
    }

    /// On numbers of every size, with and without a sign that lets sums grow, parts are nearer the truth than multiply-adds;
    /// where sums are too short to round often, a product's own last bit shows.
    #[test]
    fn parts_are_no_less_exact_than_multiply_adds() {
        let levels = Level::available();
        let Some(parts) = levels.iter().find(|l| l.multiplies_parts()) else {
            return println!("skipped: this CPU has no AMX");
        };
        let adds = levels.iter().rfind(|l| l.name() == "avx512" && !l.multiplies_parts()).unwrap();
        let mut seed = 5u32;
        let mut next = |positive: bool| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = (seed >> 8) as f32 / (1 << 23) as f32 - 1.0;
            (if positive { x.abs() } else { x }) * f32::from(1 + (seed & 15) as u8).powi(3)
        };
        for (m, n, k, most) in
            [(33, 40, 577, 0.7), (32, 64, 1024, 0.7), (7, 5, 2000, 0.7), (64, 32, 100, 1.0), (40, 40, 3, 2.0)]
        {
            for positive in [false, true] {
                let mut draw = |len: usize| (0..len).map(|_| next(positive)).collect::<Vec<_>>();
                let (a, b) = (draw(m * k), draw(n * k));
                let [parts, adds] = [parts, adds].map(|l| error(*l, &a, &b, [m, n, k]).sqrt());
                assert!(parts <= most * adds, "{m} x {n} x {k}, positive {positive}: {parts:e} against {adds:e}");
            }
        }
    }

    /// Panels whose numbers have one part or two are multiplied by fewer: a line's sums are those beside a line of three.
    #[test]
    fn fewer_parts_give_the_same_bits() {
        let Some(level) = Level::available().into_iter().find(|l| l.multiplies_parts()) else {
            return println!("skipped: this CPU has no AMX");
        };
        let g = Gemm::new::<f32>(level, GemmPrecision::Native).unwrap();
        let mut seed = 11u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f64::from(seed) / f64::from(1u32 << 31) - 1.0) as f32 * f32::from(1 + (seed >> 3 & 7) as u8).powi(5)
        };
        for (m, n, k) in [(33, 45, 700), (70, 32, 64), (5, 64, 1153), (40, 7, 31)] {
            let a: Vec<f32> = (0..m * k).map(|_| next()).collect();
            let whole: Vec<f32> = (0..n * k).map(|_| next()).collect();
            for bits in [16, 8] {
                let cut = |x: &f32| f32::from_bits(x.to_bits() & (u32::MAX << bits));
                let product = |b: &[f32]| {
                    let mut c = vec![f32::NAN; m * n];
                    let base: Vec<f32> = (0..m * n).map(|i| i as f32).collect();
                    f32::gemm(&g, &mut c, Base::Other(&base), Mat::by_line(&a, k), Mat::by_line(b, k), [m, n, k]);
                    c
                };
                let mut b: Vec<f32> = whole.iter().map(cut).collect();
                let few = product(&b);
                (0..n).step_by(32).for_each(|j| b[j * k..][..k].copy_from_slice(&whole[j * k..][..k]));
                let all = product(&b);
                for (i, (few, all)) in few.iter().zip(&all).enumerate() {
                    assert!(i % n % 32 == 0 || few.to_bits() == all.to_bits(), "{m} x {n} x {k}, {bits} bits cut: {i}");
                    assert!(few.is_finite());
                }
                assert!(few.iter().zip(&all).any(|(few, all)| few.to_bits() != all.to_bits()));
            }
        }
    }

    /// What is no number stays none, and does not reach other rows; what is too small for a third part counts as if it had none.
    #[test]
    fn numbers_at_the_ends() {
        let Some(level) = Level::available().into_iter().find(|l| l.multiplies_parts()) else {
            return println!("skipped: this CPU has no AMX");
        };
        let g = Gemm::new::<f32>(level, GemmPrecision::Native).unwrap();
        let (m, n, k) = (4, 3, 50);
        let (mut a, b) = (vec![1.0f32; m * k], vec![1.0f32; n * k]);
        a[7] = f32::NAN;
        a[k + 49] = f32::INFINITY;
        a[2 * k..3 * k].fill(f32::MIN_POSITIVE);
        let mut c = vec![0f32; m * n];
        f32::gemm(&g, &mut c, Base::Zero, Mat::by_line(&a, k), Mat::by_line(&b, k), [m, n, k]);
        assert!(c[..2 * n].iter().all(|c| !c.is_finite()), "{c:?}");
        assert!(c[2 * n..3 * n].iter().all(|c| *c == 50.0 * f32::MIN_POSITIVE), "{c:?}");
        assert!(c[3 * n..].iter().all(|c| *c == 50.0), "{c:?}");
        // What rounds up to infinity in bf16 is none either: no number that a model computes.
        a[..k].fill(0.0);
        a[0] = f32::MAX;
        f32::gemm(&g, &mut c, Base::Zero, Mat::by_line(&a, k), Mat::by_line(&b, k), [m, n, k]);
        assert!(!c[0].is_finite());
    }
}
