//! Matrix products: packed panels, a micro-kernel, both cores.
//!
//! Own code rather than a crate's because a row of the result must have the same bits whatever the number of rows and
//! its place among them (the step-0 proof compares two packings). Here that holds by construction: an element is the
//! sum of blocks along `k`, whose bounds depend on `k` alone, each summed in order by `Kernel::tile`.

use super::gemm_blocks::{Side, share_a, share_b, units};
use super::kernel::{self, Kernel};
use super::simd::Isa;
use super::tiles::{HasTiles, Operand, operand, operand_len, pack, packed_len, product, tile_units, transpose};
use super::{Level, Real, Scratch};
use crate::error::{Error, Result};
use std::ops::Range;

/// A matrix operand: element `(line, k)` at `data[line * line_step + k * k_step]`, where `k` is the summed index.
#[derive(Clone, Copy)]
pub struct Mat<'a, S> {
    pub(super) data: &'a [S],
    pub(super) line_step: usize,
    pub(super) k_step: usize,
}

impl<'a, S> Mat<'a, S> {
    /// Each line is contiguous along the summed index: `lines x k`, row-major.
    pub fn by_line(data: &'a [S], k: usize) -> Self {
        Mat { data, line_step: k, k_step: 1 }
    }
    /// Each `k` is contiguous along the lines: `k x lines`, row-major.
    pub fn by_k(data: &'a [S], lines: usize) -> Self {
        Mat { data, line_step: 1, k_step: lines }
    }
}

/// What the product is added to.
#[derive(Clone, Copy)]
pub enum Base<'a, S> {
    /// Nothing.
    Zero,
    /// The previous content of the output.
    Output,
    /// This matrix, of the output's shape.
    Other(&'a [S]),
}

/// Which instructions multiply `f32` matrices in `linear_*`, `head_*`, `logits`, `attention_fwd` and `attention_bwd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemmPrecision {
    /// The element type's own.
    Native,
    /// Operands rounded to bf16 (to nearest even), products summed in f32.
    Bf16,
}

/// Element types that have micro-kernels.
pub trait HasGemm: Sized {
    /// `c[i, j] = base[i, j] + sum over k of a[i, k] b[j, k]`; `c` is `m x n`, row-major.
    #[allow(clippy::too_many_arguments)]
    fn gemm(
        g: &Gemm,
        c: &mut [Self],
        base: Base<'_, Self>,
        a: Mat<'_, Self>,
        b: Mat<'_, Self>,
        m: usize,
        n: usize,
        k: usize,
    );
}

/// Calls a function of the kernel that `g` multiplies with.
macro_rules! on_kernel {
    ($g:expr, [$portable:ident, $avx2:ident, $avx512:ident $(, $bf16:ident, $amx:ident)?], $f:ident, $args:tt) => {
        match $g.level.isa() {
            Isa::Portable => $f::<kernel::$portable> $args,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => $f::<kernel::$avx2> $args,
            $(#[cfg(target_arch = "x86_64")]
            Isa::Avx512 if $g.precision == GemmPrecision::Bf16 => $f::<super::bf16::$bf16> $args,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if $g.precision == GemmPrecision::Bf16 => $f::<super::amx::$amx> $args,)?
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => $f::<kernel::$avx512> $args,
        }
    };
}

macro_rules! has_gemm {
    ($s:ty, [$portable:ident, $avx2:ident, $avx512:ident], $kernels:tt) => {
        impl HasGemm for $s {
            fn gemm(
                g: &Gemm,
                c: &mut [Self],
                base: Base<'_, Self>,
                a: Mat<'_, Self>,
                b: Mat<'_, Self>,
                m: usize,
                n: usize,
                k: usize,
            ) {
                on_kernel!(g, $kernels, run, (g, c, base, a, b, m, n, k))
            }
        }
        impl HasTiles for $s {
            fn tile_units(g: &Gemm) -> (usize, usize) {
                on_kernel!(g, $kernels, tile_units, ())
            }
            fn packed_len(g: &Gemm, side: Side, lines: usize, k: usize) -> usize {
                on_kernel!(g, $kernels, packed_len, (side, lines, k))
            }
            fn pack<'a>(
                g: &Gemm,
                dst: &'a mut [Self],
                side: Side,
                x: Mat<'_, Self>,
                lines: usize,
                k: usize,
            ) -> Operand<'a, Self> {
                on_kernel!(g, $kernels, pack, (dst, side, x, lines, k))
            }
            fn operand_len(g: &Gemm, side: Side, lines: usize, k: usize) -> usize {
                on_kernel!(g, $kernels, operand_len, (side, lines, k))
            }
            fn operand<'a>(
                g: &Gemm,
                dst: &'a mut [Self],
                side: Side,
                x: &'a [Self],
                ld: usize,
                lines: usize,
                k: usize,
            ) -> Operand<'a, Self> {
                on_kernel!(g, $kernels, operand, (dst, side, x, ld, lines, k))
            }
            fn product(
                g: &Gemm,
                c: &mut [Self],
                c_ld: usize,
                a: Operand<'_, Self>,
                b: Operand<'_, Self>,
                m: usize,
                n: usize,
                k: usize,
                add: bool,
            ) {
                on_kernel!(g, $kernels, product, (c, c_ld, a, b, m, n, k, add))
            }
            fn transpose(g: &Gemm, dst: &mut [Self], ld: usize, src: &[Self], src_ld: usize, rows: usize, cols: usize) {
                on_kernel!(g, [$portable, $avx2, $avx512], transpose, (dst, ld, src, src_ld, rows, cols))
            }
        }
    };
}
has_gemm!(f32, [F32Portable, F32Avx2, F32Avx512], [F32Portable, F32Avx2, F32Avx512, Bf16Avx512, Bf16Amx]);
has_gemm!(f64, [F64Portable, F64Avx2, F64Avx512], [F64Portable, F64Avx2, F64Avx512]);

/// What a product needs of the backend.
pub struct Gemm {
    pub(super) level: Level,
    pub(super) precision: GemmPrecision,
    pub(super) scratch: Scratch,
}

impl Gemm {
    /// Products of `S` at `level`; see [`super::Cpu::with`] for errors.
    pub(super) fn new<S: Real>(level: Level, precision: GemmPrecision) -> Result<Self> {
        if precision == GemmPrecision::Bf16 {
            if S::NAME != "f32" {
                return Err(Error::usage(format!("bf16 products: defined for f32 only, not for {}", S::NAME)));
            }
            if !level.has_bf16() {
                let why = "bf16 products need a CPU with AVX512_BF16 (Zen 4, Cooper Lake or newer); use f32";
                return Err(Error::Device(why.into()));
            }
        }
        Ok(Gemm { level, precision, scratch: Scratch::default() })
    }
}

/// Units of the longest block along `k`: an MR-wide panel of it is in L1 or close, and the output is passed over seldom.
/// 384 was 3 to 8 % slower, 768 no faster for `f32`.
pub(super) const K_BLOCK: usize = 576;
/// Bytes of a packed block of `b` that should stay in L2 while the rows of `a` pass by.
pub(super) const L2_BLOCK: usize = 512 * 1024;
/// Bytes of the operand that is packed for all threads at once: several blocks along `k` where it is small, as threads
/// wait for each other after each packing.
pub(super) const SHARED: usize = 4 << 20;

/// Blocks along `k`: equal, multiples of `of`, at most about `most`: a function of `k` and the kernel alone.
fn k_blocks(k: usize, most: usize, of: usize) -> impl Iterator<Item = Range<usize>> {
    let len = k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(of);
    (0..k).step_by(len.max(1)).map(move |at| at..(at + len).min(k))
}

/// The output, shared between threads that write disjoint tiles.
#[derive(Clone, Copy)]
pub(super) struct Out<S> {
    pub(super) c: *mut S,
    pub(super) base: *const S,
    pub(super) ld: usize,
}
impl<S> Out<S> {
    /// The output as the block `ks` finds it: the first adds to the base, the others to what is there.
    pub(super) fn after(self, ks: &Range<usize>) -> Self {
        if ks.start == 0 { self } else { Out { base: self.c.cast_const(), ..self } }
    }
}
// SAFETY: `base` is only read; `c` is written at disjoint tiles by construction of the task ranges in `share_a` and `share_b`.
unsafe impl<S: Sync> Sync for Out<S> {}
// SAFETY: as above.
unsafe impl<S: Send> Send for Out<S> {}

#[allow(clippy::too_many_arguments)]
fn run<K: Kernel>(
    g: &Gemm,
    c: &mut [K::S],
    base: Base<'_, K::S>,
    a: Mat<'_, K::S>,
    b: Mat<'_, K::S>,
    m: usize,
    n: usize,
    k: usize,
) {
    assert_eq!(c.len(), m * n, "gemm: output");
    let reach = |x: &Mat<'_, K::S>, lines: usize| (lines - 1) * x.line_step + (k - 1) * x.k_step + 1;
    if let Base::Other(p) = base {
        assert_eq!(p.len(), c.len(), "gemm: base");
    }
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        match base {
            Base::Zero => c.fill(K::S::ZERO),
            Base::Output => {}
            Base::Other(p) => c.copy_from_slice(p),
        }
        return;
    }
    assert!(a.data.len() >= reach(&a, m) && b.data.len() >= reach(&b, n), "gemm: operands");
    let first = match base {
        Base::Zero => std::ptr::null(),
        Base::Output => c.as_ptr(),
        Base::Other(p) => p.as_ptr(),
    };
    let c = c.as_mut_ptr();
    let blocks: Vec<Range<usize>> = k_blocks(k, K_BLOCK * K::K, 2 * K::DEPTH).collect();
    let shared = m.min(n) * units::<K>(&blocks[0]) * size_of::<K::P>();
    for blocks in blocks.chunks((SHARED / shared).max(1)) {
        let out = Out { c, base: first, ld: n };
        // SAFETY: operands and output were measured above; a kernel is only named for a level that was detected.
        unsafe {
            if m <= n {
                share_a::<K>(g, out, a, b, m, n, blocks);
            } else {
                share_b::<K>(g, out, a, b, m, n, blocks);
            }
        }
    }
}
