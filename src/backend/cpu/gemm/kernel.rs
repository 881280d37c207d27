//! Micro-kernels: an MR x NR tile of `c = base + a b` in registers, summed in a fixed order along `k`.
//!
//! Whatever the tile's place or the size of the matrix, an element sees the same operations in the same order, which
//! is what makes a row of a product independent of the rows beside it.

#[cfg(target_arch = "x86_64")]
use super::{flush, pack512, rows};
use crate::backend::cpu::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Rows of a [`Kernel::low_tile`], which spares generation (a row or a few) most of a tile's work.
pub(super) const LOW: usize = 4;

/// Units of the longest block along `k`: an MR-wide panel of it is in L1 or close, and the output is passed over seldom.
/// 384 was 3 to 8 % slower, 768 no faster for `f32`.
pub const K_BLOCK: usize = 576;

/// A tile of `f32` whose `b` is in words of narrow numbers, `b_step` of them a unit; else as [`Kernel::tile`].
type HalvesTile = unsafe fn(usize, *const f32, usize, *const u32, usize, *mut f32, usize, *const f32, usize);

/// See [`Kernel::HALVES`]: [`Kernel::tile`] and [`Kernel::low_tile`] for each kind of word.
#[derive(Clone, Copy)]
pub(super) struct Halves {
    /// bf16: column `j` of a panel in the low half, `j + NR / 2` in the high one.
    pub bf16: [HalvesTile; 2],
    /// f16: columns in order.
    pub f16: [HalvesTile; 2],
    /// Whole numbers of eight bits, four a word: columns in order.
    pub int8: [HalvesTile; 2],
}

/// A tile by panels of `b`, whose `a` is read in lines: elements from one to the next in place of units; else as [`Kernel::tile`].
pub(super) type RowsTile<S> = unsafe fn(usize, *const S, usize, *const S, usize, *mut S, usize, *const S, usize);

/// Tiles of a kernel that read `a` in lines, as they lie.
#[derive(Clone, Copy)]
pub(super) struct Rows<S> {
    /// Of NR columns, and of half as many.
    pub whole: RowsTile<S>,
    pub half: RowsTile<S>,
}

/// A micro-kernel on packed operands. `a` holds columns of MR units, `b` rows of NR units; a unit is `K` values that
/// are adjacent along `k`.
pub(super) trait Kernel: Send + Sync + 'static {
    /// Type of the matrices.
    type S: Scalar;
    /// Packed unit.
    type P: bytemuck::Pod + Send + Sync;
    /// Rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// Values in a unit.
    const K: usize;
    /// Units are multiplied so many at a time: a sum over fewer is filled up with zeros.
    const DEPTH: usize = 1;
    /// Units of a block along `k` at most.
    const BLOCK: usize = K_BLOCK;
    /// Whether the next panel of `a` is asked for: tiles that are through with one sooner than memory are only held up.
    const ASKS: bool = true;
    /// Whether a unit is a value as it lies in memory, so that operands need no packing.
    const DIRECT: bool = false;

    /// Numbers of which a value is the sum, packed one by one.
    const PARTS: u8 = 1;
    /// Whether packing rounds to bf16, with units of one value.
    const ROUNDS: bool = false;
    /// Tiles that read `a` as it lies, where there are any.
    const ROWS: Option<Rows<Self::S>> = None;
    /// Tiles that read `b` in half the memory, where there are any.
    const HALVES: Option<Halves> = None;

    /// Called on a thread before its tiles, and [`Kernel::leave`] after them.
    ///
    /// # Safety
    /// The CPU has the kernel's instructions.
    unsafe fn enter() {}
    /// See [`Kernel::enter`].
    ///
    /// # Safety
    /// As there.
    unsafe fn leave() {}

    /// `c[i, j] = base[i, j] + sum over u of a[u][i] . b[u][j]` on a whole tile; null `base`: 0.
    ///
    /// # Safety
    /// The CPU has the kernel's instructions, the thread is between [`Kernel::enter`] and [`Kernel::leave`], and `units` is
    /// a multiple of DEPTH. Readable: MR units at `a + u * a_step` and NR at `b + u * b_step` for
    /// `u < units`, NR elements at `base + i * base_ld` for `i < MR`. Writable: NR elements at `c + i * c_ld`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn tile(
        units: usize,
        a: *const Self::P,
        a_step: usize,
        b: *const Self::P,
        b_step: usize,
        c: *mut Self::S,
        c_ld: usize,
        base: *const Self::S,
        base_ld: usize,
    );

    /// As [`Kernel::tile`] for the first [`LOW`] rows only: the same operations on each. The other rows of the tile are
    /// left, or set to anything.
    ///
    /// # Safety
    /// As [`Kernel::tile`].
    #[allow(clippy::too_many_arguments)]
    unsafe fn low_tile(
        units: usize,
        a: *const Self::P,
        a_step: usize,
        b: *const Self::P,
        b_step: usize,
        c: *mut Self::S,
        c_ld: usize,
        base: *const Self::S,
        base_ld: usize,
    );

    /// Parts, from the first, that numbers of a panel of `b` have.
    ///
    /// # Safety
    /// The CPU has the kernel's instructions.
    unsafe fn parts(_b: &[Self::P]) -> u8 {
        Self::PARTS
    }

    /// [`Kernel::tile`] for a panel of `b` of so many [`Kernel::parts`]: the same bits, but for the sign of a zero, if its numbers are finite.
    ///
    /// # Safety
    /// As [`Kernel::tile`], and the other parts of `b` are 0.
    #[allow(clippy::too_many_arguments)]
    unsafe fn tile_of(
        _parts: u8,
        units: usize,
        a: *const Self::P,
        a_step: usize,
        b: *const Self::P,
        b_step: usize,
        c: *mut Self::S,
        c_ld: usize,
        base: *const Self::S,
        base_ld: usize,
    ) {
        // SAFETY: the caller's contract.
        unsafe { Self::tile(units, a, a_step, b, b_step, c, c_ld, base, base_ld) }
    }

    /// Packs `width` lines (at most MR for `a`, NR for `b`, given as `panel`) of `len` values each:
    /// `dst[u * panel + w]` is unit `u` of line `w`, and zero beyond `width` or `len`.
    ///
    /// # Safety
    /// The CPU has the kernel's instructions. Value `k` of line `w` is readable at `src + w * line + k * step`; `dst` holds
    /// `panel * len.div_ceil(K)` units.
    unsafe fn pack(
        dst: &mut [Self::P],
        panel: usize,
        src: *const Self::S,
        width: usize,
        line: usize,
        len: usize,
        step: usize,
    );

    /// As [`Kernel::pack`] for a panel of `a`, in whatever order the kernel reads it.
    ///
    /// # Safety
    /// As there.
    unsafe fn pack_a(dst: &mut [Self::P], src: *const Self::S, width: usize, line: usize, len: usize, step: usize) {
        // SAFETY: the caller's contract.
        unsafe { Self::pack(dst, Self::MR, src, width, line, len, step) }
    }
}

/// A SIMD register as the micro-kernel sees it.
trait Lanes: Copy {
    type S: Scalar;
    const N: usize;
    unsafe fn zero() -> Self;
    unsafe fn load(p: *const Self::S) -> Self;
    unsafe fn store(self, p: *mut Self::S);
    unsafe fn splat(p: *const Self::S) -> Self;
    unsafe fn add(self, o: Self) -> Self;
    /// `a * b + self`
    unsafe fn mul_acc(self, a: Self, b: Self) -> Self;
}

macro_rules! lanes {
    ($v:ty, $s:ty, $n:literal, $zero:ident, $load:ident, $store:ident, $splat:ident, $add:ident, $fma:ident) => {
        #[cfg(target_arch = "x86_64")]
        impl Lanes for $v {
            type S = $s;
            const N: usize = $n;
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the contract of micro-kernels: the CPU has the instruction, and a pointer covers N elements.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn load(p: *const $s) -> Self {
                // SAFETY: the contract of micro-kernels: the CPU has the instruction, and a pointer covers N elements.
                unsafe { $load(p) }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $s) {
                // SAFETY: the contract of micro-kernels: the CPU has the instruction, and a pointer covers N elements.
                unsafe { $store(p, self) }
            }
            #[inline(always)]
            unsafe fn splat(p: *const $s) -> Self {
                // SAFETY: the contract of micro-kernels: the CPU has the instruction, and a pointer covers N elements.
                unsafe { $splat(*p) }
            }
            #[inline(always)]
            unsafe fn add(self, o: Self) -> Self {
                // SAFETY: the contract of micro-kernels: the CPU has the instruction, and a pointer covers N elements.
                unsafe { $add(self, o) }
            }
            #[inline(always)]
            unsafe fn mul_acc(self, a: Self, b: Self) -> Self {
                // SAFETY: the contract of micro-kernels: the CPU has the instruction, and a pointer covers N elements.
                unsafe { $fma(a, b, self) }
            }
        }
    };
}
lanes!(
    __m512d,
    f64,
    8,
    _mm512_setzero_pd,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_set1_pd,
    _mm512_add_pd,
    _mm512_fmadd_pd
);
lanes!(
    __m256d,
    f64,
    4,
    _mm256_setzero_pd,
    _mm256_loadu_pd,
    _mm256_storeu_pd,
    _mm256_set1_pd,
    _mm256_add_pd,
    _mm256_fmadd_pd
);

/// Four elements without intrinsics; the compiler maps it to what the target has.
#[derive(Clone, Copy)]
struct Quad<S>([S; 4]);

impl<S: Scalar> Lanes for Quad<S> {
    type S = S;
    const N: usize = 4;
    #[inline(always)]
    unsafe fn zero() -> Self {
        Quad([S::ZERO; 4])
    }
    #[inline(always)]
    unsafe fn load(p: *const S) -> Self {
        // SAFETY: the caller's contract: N elements are readable.
        Quad(unsafe { p.cast::<[S; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut S) {
        // SAFETY: the caller's contract: N elements are writable.
        unsafe { p.cast::<[S; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const S) -> Self {
        // SAFETY: the caller's contract: one element is readable.
        Quad([unsafe { *p }; 4])
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        Quad(std::array::from_fn(|l| self.0[l] + o.0[l]))
    }
    #[inline(always)]
    unsafe fn mul_acc(self, a: Self, b: Self) -> Self {
        // Not fused: without the instruction a fused multiply-add is a library call.
        Quad(std::array::from_fn(|l| a.0[l] * b.0[l] + self.0[l]))
    }
}

/// The micro-kernel of every level; see [`Kernel::tile`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<V: Lanes, const MR: usize, const NV: usize>(
    units: usize,
    a: *const V::S,
    a_step: usize,
    b: *const V::S,
    b_step: usize,
    c: *mut V::S,
    c_ld: usize,
    base: *const V::S,
    base_ld: usize,
) {
    // SAFETY: indices stay below MR, NV * V::N and `units`, which the caller's contract covers.
    unsafe {
        let mut acc = [[V::zero(); NV]; MR];
        for u in 0..units {
            let (a, b) = (a.add(u * a_step), b.add(u * b_step));
            let mut row = [V::zero(); NV];
            for (v, r) in row.iter_mut().enumerate() {
                *r = V::load(b.add(v * V::N));
            }
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = V::splat(a.add(i));
                for (t, r) in acc.iter_mut().zip(row) {
                    *t = t.mul_acc(x, r);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (v, t) in acc.iter().enumerate() {
                let t = if base.is_null() { *t } else { V::load(base.add(i * base_ld + v * V::N)).add(*t) };
                t.store(c.add(i * c_ld + v * V::N));
            }
        }
    }
}

/// [`Kernel::pack`] for units of one value.
#[inline(always)]
unsafe fn pack<S: Scalar>(
    dst: &mut [S],
    panel: usize,
    src: *const S,
    width: usize,
    line: usize,
    len: usize,
    step: usize,
) {
    for (k, out) in dst.chunks_exact_mut(panel).take(len).enumerate() {
        for (w, o) in out.iter_mut().enumerate() {
            // SAFETY: w < width and k < len: readable by the caller's contract.
            *o = if w < width { unsafe { *src.add(w * line + k * step) } } else { S::ZERO };
        }
    }
}

macro_rules! kernel {
    (
        $(#[$doc:meta])* $name:ident, $v:ty, $s:ty, $mr:literal x $nv:literal, [$tile:path, $low:path], $pack:path,
        direct: $direct:literal $(, $feature:literal)? $(; $($more:tt)*)?
    ) => {
        $(#[$doc])*
        pub(super) struct $name;
        impl Kernel for $name {
            type S = $s;
            type P = $s;
            const MR: usize = $mr;
            const NR: usize = $nv * size_of::<$v>() / size_of::<$s>();
            const K: usize = 1;
            const DIRECT: bool = $direct;
            $($($more)*)?
            $(#[target_feature(enable = $feature)])?
            unsafe fn tile(
                units: usize, a: *const $s, a_step: usize, b: *const $s, b_step: usize,
                c: *mut $s, c_ld: usize, base: *const $s, base_ld: usize,
            ) {
                // SAFETY: passed on to the caller.
                unsafe { $tile(units, a, a_step, b, b_step, c, c_ld, base, base_ld) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn low_tile(
                units: usize, a: *const $s, a_step: usize, b: *const $s, b_step: usize,
                c: *mut $s, c_ld: usize, base: *const $s, base_ld: usize,
            ) {
                // SAFETY: passed on to the caller.
                unsafe { $low(units, a, a_step, b, b_step, c, c_ld, base, base_ld) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn pack(
                dst: &mut [$s], panel: usize, src: *const $s, width: usize, line: usize, len: usize, step: usize,
            ) {
                // SAFETY: passed on to the caller.
                unsafe { $pack(dst, panel, src, width, line, len, step) }
            }
        }
    };
}

// 24 accumulators of 32 registers, 12 of 16: the rest holds a row of b and broadcasts of a.
#[cfg(target_arch = "x86_64")]
kernel!(
    /// `f32`, AVX-512.
    F32Avx512, __m512, f32, 12 x 2, [flush::avx512, flush::avx512_low], pack512::pack_f32, direct: true,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"; const HALVES: Option<Halves> = Some(HALVES);
    const ROWS: Option<Rows<f32>> = Some(Rows { whole: rows::by_32, half: rows::by_16 });
);
#[cfg(target_arch = "x86_64")]
kernel!(
    /// `f32` matrices whose elements are rounded to bf16 while they are packed, multiplied as `f32`: where the CPU does that
    /// faster than its products of bf16 pairs, or has none. A product of two is exact.
    F32Rounded, __m512, f32, 12 x 2, [flush::avx512, flush::avx512_low], pack512::pack_rounded, direct: false,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"; const HALVES: Option<Halves> = Some(HALVES); const ROUNDS: bool = true;
);
#[cfg(target_arch = "x86_64")]
const HALVES: Halves = Halves {
    bf16: [flush::avx512_bf16, flush::avx512_bf16_low],
    f16: [flush::avx512_f16, flush::avx512_f16_low],
    int8: [flush::avx512_int8, flush::avx512_int8_low],
};
#[cfg(target_arch = "x86_64")]
kernel!(
    /// `f64`, AVX-512.
    F64Avx512, __m512d, f64, 12 x 2, [tile::<__m512d, 12, 2>, tile::<__m512d, LOW, 2>], pack, direct: true,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
);
#[cfg(target_arch = "x86_64")]
kernel!(
    /// `f32`, AVX2 and FMA.
    F32Avx2, __m256, f32, 6 x 2, [flush::avx2, flush::avx2_low], pack, direct: true, "avx2,fma"
);
#[cfg(target_arch = "x86_64")]
kernel!(
    /// `f64`, AVX2 and FMA.
    F64Avx2, __m256d, f64, 6 x 2, [tile::<__m256d, 6, 2>, tile::<__m256d, LOW, 2>], pack, direct: true, "avx2,fma"
);
kernel!(
    /// `f32`, what the target guarantees.
    F32Portable, Quad<f32>, f32, 4 x 2, [tile::<Quad<f32>, 4, 2>, tile::<Quad<f32>, LOW, 2>], pack, direct: true
);
kernel!(
    /// `f64`, what the target guarantees.
    F64Portable, Quad<f64>, f64, 4 x 2, [tile::<Quad<f64>, 4, 2>, tile::<Quad<f64>, LOW, 2>], pack, direct: true
);
