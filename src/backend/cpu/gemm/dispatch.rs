//! Products by element type: which micro-kernel a type and a SIMD level multiply with.

use super::blocks::run;
use super::kernel;
use super::matrix::{Base, Mat};
use super::packed::{self, Packed};
use super::panels::Side;
use super::setup::{Gemm, GemmPrecision};
use super::tiles::{Operand, operand, operand_len, pack, packed_len, product, tile_units, transpose};
use crate::backend::cpu::simd::Isa;
use crate::backend::ops::decode::Layout;
use crate::error::Result;

/// Element types that have micro-kernels.
pub trait HasGemm: Sized {
    /// `c[i, j] = base[i, j] + sum over k of a[i, k] b[j, k]` for `sizes` m, n, k; `c` is `m x n`, row-major.
    fn gemm(g: &Gemm, c: &mut [Self], base: Base<'_, Self>, a: Mat<'_, Self>, b: Mat<'_, Self>, sizes: [usize; 3]);
    /// [`HasGemm::gemm`] for a few rows: by multiply-adds, also where parts are faster once they are packed.
    fn gemm_few(g: &Gemm, c: &mut [Self], base: Base<'_, Self>, a: Mat<'_, Self>, b: Mat<'_, Self>, sizes: [usize; 3]);
    /// A thin product, into rows of `c` that are `ld` apart, set or added to: few columns, or rows, or terms, beside a matrix
    /// that is gone through once. By multiply-adds; the same bits as [`HasGemm::gemm_few`]. No size is 0.
    fn gemm_thin(g: &Gemm, c: (&mut [Self], usize, bool), a: Mat<'_, Self>, b: Mat<'_, Self>, sizes: [usize; 3]);
    /// Most bytes that `lines x k` take when they are packed for good; `None`: there is nothing of that layout.
    fn packed_bytes(g: &Gemm, lines: usize, k: usize, layout: Layout) -> Option<usize>;
    /// Room for `lines x k`, not 0, to be packed in a layout that there is. Errors: [`crate::Error::Device`] where there is no
    /// memory.
    fn room(g: &Gemm, lines: usize, k: usize, layout: Layout) -> Result<Packed>;
    /// Packs `x`, of the sizes that the room was made for; whether it fits the layout.
    fn fill(g: &Gemm, to: &mut Packed, x: Mat<'_, Self>) -> bool;
    /// [`HasGemm::gemm_few`] of `m` rows with a right operand packed before: the same bits, but for drafts.
    fn gemm_packed(g: &Gemm, c: &mut [Self], base: Base<'_, Self>, a: Mat<'_, Self>, b: &Packed, m: usize);
}

/// Element types that have tile products.
pub trait HasTiles: Sized {
    /// Rows and columns of the micro-kernel's tile.
    fn tile_units(g: &Gemm) -> (usize, usize);
    /// Elements that [`HasTiles::pack`] writes for `lines x k`.
    fn packed_len(g: &Gemm, side: Side, lines: usize, k: usize) -> usize;
    /// Packs `lines x k` into `dst`.
    fn pack<'a>(
        g: &Gemm,
        dst: &'a mut [Self],
        side: Side,
        x: Mat<'_, Self>,
        lines: usize,
        k: usize,
    ) -> Operand<'a, Self>;
    /// Elements that [`HasTiles::operand`] needs for `lines x k`: none where the kernel reads operands as they lie.
    fn operand_len(g: &Gemm, side: Side, lines: usize, k: usize) -> usize;
    /// The operand `x`: `k` rows of `ld` elements, of which the first `lines`, rounded up to the kernel's unit, exist.
    fn operand<'a>(
        g: &Gemm,
        dst: &'a mut [Self],
        side: Side,
        x: &'a [Self],
        ld: usize,
        lines: usize,
        k: usize,
    ) -> Operand<'a, Self>;
    /// `c[i, j] {=,+=} sum over k of a[i, k] b[j, k]` for `sizes` m, n, k, in rows of `c_ld`; `m` and `n` are rounded up to
    /// [`HasTiles::tile_units`]: what lies there must exist, and is overwritten.
    fn product(
        g: &Gemm,
        c: &mut [Self],
        c_ld: usize,
        a: Operand<'_, Self>,
        b: Operand<'_, Self>,
        sizes: [usize; 3],
        add: bool,
    );
    /// `dst[c * ld + row] = src[row * src_ld + c]` for `rows x cols`, zero from `rows` to `ld`.
    fn transpose(g: &Gemm, dst: &mut [Self], ld: usize, src: &[Self], src_ld: usize, rows: usize, cols: usize);
}

/// Calls a function of the kernel that `g` multiplies with.
macro_rules! on_kernel {
    ($g:expr, [$portable:ident, $avx2:ident, $avx512:ident $(, $rounded:ident, $bf16:ident, $amx:ident $(, $parts:ident)?)?], $f:ident, $args:tt) => {
        match $g.level.isa() {
            Isa::Portable => $f::<kernel::$portable> $args,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => $f::<kernel::$avx2> $args,
            $(#[cfg(target_arch = "x86_64")]
            Isa::Avx512 if $g.precision == GemmPrecision::Bf16 => $f::<kernel::$rounded> $args,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Pairs if $g.precision == GemmPrecision::Bf16 => $f::<super::bf16::$bf16> $args,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if $g.precision == GemmPrecision::Bf16 => $f::<super::amx::$amx> $args,
            $(#[cfg(target_arch = "x86_64")]
            Isa::Amx => $f::<super::parts::$parts> $args,)?)?
            #[cfg(target_arch = "x86_64")]
            #[allow(unreachable_patterns)] // tiles that have a kernel of their own, above
            Isa::Avx512 | Isa::Avx512Pairs | Isa::Amx => $f::<kernel::$avx512> $args,
        }
    };
}

/// Drafts are for multiply-adds, whatever else is multiplied by.
macro_rules! on_layout {
    ($g:expr, $layout:expr, $direct:tt, $kernels:tt, $f:ident, $args:tt) => {{
        use packed::$f;
        match $layout {
            Layout::Draft => on_kernel!($g, $direct, $f, $args),
            Layout::Whole | Layout::Half => on_kernel!($g, $kernels, $f, $args),
        }
    }};
}

macro_rules! has_gemm {
    ($s:ty, $direct:tt, $kernels:tt, $large:tt) => {
        impl HasGemm for $s {
            fn gemm(
                g: &Gemm,
                c: &mut [Self],
                base: Base<'_, Self>,
                a: Mat<'_, Self>,
                b: Mat<'_, Self>,
                sizes: [usize; 3],
            ) {
                on_kernel!(g, $large, run, (g, c, base, a, b, sizes))
            }
            fn gemm_few(
                g: &Gemm,
                c: &mut [Self],
                base: Base<'_, Self>,
                a: Mat<'_, Self>,
                b: Mat<'_, Self>,
                sizes: [usize; 3],
            ) {
                on_kernel!(g, $kernels, run, (g, c, base, a, b, sizes))
            }
            fn gemm_thin(
                g: &Gemm,
                c: (&mut [Self], usize, bool),
                a: Mat<'_, Self>,
                b: Mat<'_, Self>,
                sizes: [usize; 3],
            ) {
                use super::thin::run;
                on_kernel!(g, $kernels, run, (g, c, a, b, sizes))
            }
            fn packed_bytes(g: &Gemm, lines: usize, k: usize, layout: Layout) -> Option<usize> {
                on_layout!(g, layout, $direct, $kernels, bytes, (lines, k, layout))
            }
            fn room(g: &Gemm, lines: usize, k: usize, layout: Layout) -> Result<Packed> {
                on_layout!(g, layout, $direct, $kernels, room, (lines, k, layout))
            }
            fn fill(g: &Gemm, to: &mut Packed, x: Mat<'_, Self>) -> bool {
                on_layout!(g, to.layout(), $direct, $kernels, fill, (g, to, x))
            }
            fn gemm_packed(g: &Gemm, c: &mut [Self], base: Base<'_, Self>, a: Mat<'_, Self>, b: &Packed, m: usize) {
                on_layout!(g, b.layout(), $direct, $kernels, run, (g, c, base, a, b, m))
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
                sizes: [usize; 3],
                add: bool,
            ) {
                on_kernel!(g, $kernels, product, (c, c_ld, a, b, sizes, add))
            }
            fn transpose(g: &Gemm, dst: &mut [Self], ld: usize, src: &[Self], src_ld: usize, rows: usize, cols: usize) {
                on_kernel!(g, $direct, transpose, (dst, ld, src, src_ld, rows, cols))
            }
        }
    };
}
has_gemm!(
    f32,
    [F32Portable, F32Avx2, F32Avx512],
    [F32Portable, F32Avx2, F32Avx512, F32Rounded, Bf16Avx512, Bf16Amx],
    [F32Portable, F32Avx2, F32Avx512, F32Rounded, Bf16Avx512, Bf16Amx, F32Parts]
);
has_gemm!(f64, [F64Portable, F64Avx2, F64Avx512], [F64Portable, F64Avx2, F64Avx512], [F64Portable, F64Avx2, F64Avx512]);
