//! Matrix products: packed panels, a micro-kernel, both cores.
//!
//! Own code rather than a crate's because a row of the result must have the same bits whatever the number of rows and
//! its place among them (the step-0 proof compares two packings). Here that holds by construction: an element is the
//! sum of blocks along `k`, whose bounds depend on `k` alone, each summed in order by `Kernel::tile`.

use super::kernel::{self, Kernel, LOW};
use super::simd::Isa;
use super::{Level, Real, Scratch};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;

/// A matrix operand: element `(line, k)` at `data[line * line_step + k * k_step]`, where `k` is the summed index.
#[derive(Clone, Copy)]
pub struct Mat<'a, S> {
    data: &'a [S],
    line_step: usize,
    k_step: usize,
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

/// Which instructions multiply `f32` matrices in `linear_*`, `head_*` and `logits`.
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
    /// One tile product on scratch, on the calling thread: `c[i, j] {=,+=} sum over u of a[u * a_ld + i] b[u * b_ld + j]`.
    /// `m` and `n` are rounded up to [`HasGemm::tile_units`]; what lies there must exist, and is overwritten in `c`.
    #[allow(clippy::too_many_arguments)]
    fn tile_gemm(
        level: Level,
        c: &mut [Self],
        c_ld: usize,
        a: &[Self],
        a_ld: usize,
        b: &[Self],
        b_ld: usize,
        m: usize,
        n: usize,
        k: usize,
        add: bool,
    );
    /// Rows and columns of the micro-kernel's tile.
    fn tile_units(level: Level) -> (usize, usize);
}

macro_rules! has_gemm {
    ($s:ty, $portable:ident, $avx2:ident, $avx512:ident $(, $bf16:ident, $amx:ident)?) => {
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
                match g.level.isa() {
                    Isa::Portable => run::<kernel::$portable>(g, c, base, a, b, m, n, k),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => run::<kernel::$avx2>(g, c, base, a, b, m, n, k),
                    $(#[cfg(target_arch = "x86_64")]
                    Isa::Avx512 if g.precision == GemmPrecision::Bf16 => run::<super::bf16::$bf16>(g, c, base, a, b, m, n, k),)?
                    $(#[cfg(target_arch = "x86_64")]
                    Isa::Amx if g.precision == GemmPrecision::Bf16 => run::<super::amx::$amx>(g, c, base, a, b, m, n, k),)?
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 | Isa::Amx => run::<kernel::$avx512>(g, c, base, a, b, m, n, k),
                }
            }
            fn tile_gemm(
                level: Level,
                c: &mut [Self],
                c_ld: usize,
                a: &[Self],
                a_ld: usize,
                b: &[Self],
                b_ld: usize,
                m: usize,
                n: usize,
                k: usize,
                add: bool,
            ) {
                match level.isa() {
                    Isa::Portable => tiles::<kernel::$portable>(c, c_ld, a, a_ld, b, b_ld, m, n, k, add),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => tiles::<kernel::$avx2>(c, c_ld, a, a_ld, b, b_ld, m, n, k, add),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 | Isa::Amx => tiles::<kernel::$avx512>(c, c_ld, a, a_ld, b, b_ld, m, n, k, add),
                }
            }
            fn tile_units(level: Level) -> (usize, usize) {
                match level.isa() {
                    Isa::Portable => (kernel::$portable::MR, kernel::$portable::NR),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => (kernel::$avx2::MR, kernel::$avx2::NR),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 | Isa::Amx => (kernel::$avx512::MR, kernel::$avx512::NR),
                }
            }
        }
    };
}
has_gemm!(f32, F32Portable, F32Avx2, F32Avx512, Bf16Avx512, Bf16Amx);
has_gemm!(f64, F64Portable, F64Avx2, F64Avx512);

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
const K_BLOCK: usize = 576;
/// Bytes of a packed block of `b` that should stay in L2 while the rows of `a` pass by.
const L2_BLOCK: usize = 512 * 1024;
/// Bytes of the operand that is packed for all threads at once: several blocks along `k` where it is small, as threads
/// wait for each other after each packing.
const SHARED: usize = 4 << 20;

/// Blocks along `k`: equal, multiples of `of`, at most about `most`: a function of `k` and the kernel alone.
fn k_blocks(k: usize, most: usize, of: usize) -> impl Iterator<Item = Range<usize>> {
    let len = k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(of);
    (0..k).step_by(len.max(1)).map(move |at| at..(at + len).min(k))
}

/// The output, shared between threads that write disjoint tiles.
#[derive(Clone, Copy)]
struct Out<S> {
    c: *mut S,
    base: *const S,
    ld: usize,
}
impl<S> Out<S> {
    /// The output as the block `ks` finds it: the first adds to the base, the others to what is there.
    fn after(self, ks: &Range<usize>) -> Self {
        if ks.start == 0 { self } else { Out { base: self.c.cast_const(), ..self } }
    }
}
// SAFETY: `base` is only read; `c` is written at disjoint tiles by construction of the task ranges in `run`.
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

/// Tasks that `panels` are spread over: a multiple of the threads, two a thread or more, about `most` panels each.
fn tasks(panels: usize, most: usize) -> usize {
    let threads = rayon::current_num_threads();
    panels.div_ceil(most.max(1)).max(2 * threads).next_multiple_of(threads).min(panels)
}

/// Lines of task `t`, cut at whole panels as evenly as that allows.
fn lines_of(t: usize, tasks: usize, panels: usize, panel: usize, lines: usize) -> Range<usize> {
    t * panels / tasks * panel..((t + 1) * panels / tasks * panel).min(lines)
}

/// Packs all lines of an operand for `blocks`, one block after the other, on all threads.
unsafe fn pack_all<K: Kernel>(dst: &mut [K::P], side: Side, x: Mat<'_, K::S>, lines: usize, blocks: &[Range<usize>]) {
    let (panel, mut rest) = (side.panel::<K>(), dst);
    let mut parts = Vec::with_capacity(blocks.len());
    for ks in blocks {
        let (part, tail) = rest.split_at_mut(lines.next_multiple_of(panel) * units::<K>(ks));
        parts.push((ks, part));
        rest = tail;
    }
    parts.into_par_iter().for_each(|(ks, part)| {
        part.par_chunks_mut(4 * panel * units::<K>(ks)).enumerate().for_each(|(t, dst)| {
            let lines = t * 4 * panel..((t + 1) * 4 * panel).min(lines);
            // SAFETY: the lines lie in the operand, which `run` measured.
            unsafe { pack_lines::<K>(dst, side, x, lines, ks) }
        });
    });
}

/// Units that `lines` of an operand are packed to for `blocks`.
fn packed<K: Kernel>(side: Side, lines: usize, blocks: &[Range<usize>]) -> usize {
    lines.next_multiple_of(side.panel::<K>()) * blocks.iter().map(units::<K>).sum::<usize>()
}

/// Few rows: `a` packed once for all, each task packs its columns of `b` for itself.
unsafe fn share_a<K: Kernel>(
    g: &Gemm,
    out: Out<K::S>,
    a: Mat<'_, K::S>,
    b: Mat<'_, K::S>,
    m: usize,
    n: usize,
    blocks: &[Range<usize>],
) {
    g.scratch.with(packed::<K>(Side::A, m, blocks), |ap: &mut [K::P]| {
        // SAFETY: `run` measured the operand.
        unsafe { pack_all::<K>(ap, Side::A, a, m, blocks) };
        let (ap, panels, longest) = (&*ap, n.div_ceil(K::NR), units::<K>(&blocks[0]));
        let tasks = tasks(panels, L2_BLOCK / (K::NR * longest * size_of::<K::P>()));
        (0..tasks).into_par_iter().with_max_len(1).for_each(|t| {
            let cols = lines_of(t, tasks, panels, K::NR, n);
            g.scratch.with(packed::<K>(Side::B, cols.len(), &blocks[..1]), |bp: &mut [K::P]| {
                let mut ap = ap;
                for ks in blocks {
                    let units = units::<K>(ks);
                    let (mine, rest) = ap.split_at(m.next_multiple_of(K::MR) * units);
                    let bp = &mut bp[..cols.len().next_multiple_of(K::NR) * units];
                    // SAFETY: the columns lie in `b` and, disjoint between tasks, in the output.
                    unsafe {
                        pack_lines::<K>(bp, Side::B, b, cols.clone(), ks);
                        block::<K>(out.after(ks), mine, bp, 0..m, cols.clone(), units);
                    }
                    ap = rest;
                }
            });
        });
    });
}

/// Many rows: `b` packed once for all, each task packs its rows of `a` for itself.
unsafe fn share_b<K: Kernel>(
    g: &Gemm,
    out: Out<K::S>,
    a: Mat<'_, K::S>,
    b: Mat<'_, K::S>,
    m: usize,
    n: usize,
    blocks: &[Range<usize>],
) {
    g.scratch.with(packed::<K>(Side::B, n, blocks), |bp: &mut [K::P]| {
        // SAFETY: `run` measured the operand.
        unsafe { pack_all::<K>(bp, Side::B, b, n, blocks) };
        let (bp, panels, longest) = (&*bp, m.div_ceil(K::MR), units::<K>(&blocks[0]));
        let in_l2 = (L2_BLOCK / (K::NR * longest * size_of::<K::P>())).max(1);
        let tasks = tasks(panels, 16);
        (0..tasks).into_par_iter().with_max_len(1).for_each(|t| {
            let rows = lines_of(t, tasks, panels, K::MR, m);
            g.scratch.with(packed::<K>(Side::A, rows.len(), &blocks[..1]), |ap: &mut [K::P]| {
                let mut bp = bp;
                for ks in blocks {
                    let units = units::<K>(ks);
                    let (mine, rest) = bp.split_at(n.next_multiple_of(K::NR) * units);
                    let ap = &mut ap[..rows.len().next_multiple_of(K::MR) * units];
                    // SAFETY: the rows lie in `a` and, disjoint between tasks, in the output.
                    unsafe { pack_lines::<K>(ap, Side::A, a, rows.clone(), ks) };
                    for (t, bp) in mine.chunks(in_l2 * K::NR * units).enumerate() {
                        let cols = t * in_l2 * K::NR..((t + 1) * in_l2 * K::NR).min(n);
                        // SAFETY: as above.
                        unsafe { block::<K>(out.after(ks), ap, bp, rows.clone(), cols, units) }
                    }
                    bp = rest;
                }
            });
        });
    });
}

/// Which operand is packed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    A,
    B,
}

impl Side {
    /// Lines of a panel.
    fn panel<K: Kernel>(self) -> usize {
        match self {
            Side::A => K::MR,
            Side::B => K::NR,
        }
    }
}

/// Units of a block along `k`.
fn units<K: Kernel>(ks: &Range<usize>) -> usize {
    ks.len().div_ceil(K::K).next_multiple_of(K::DEPTH)
}

/// Packs lines of an operand into panels.
unsafe fn pack_lines<K: Kernel>(
    dst: &mut [K::P],
    side: Side,
    x: Mat<'_, K::S>,
    lines: Range<usize>,
    ks: &Range<usize>,
) {
    let (panel, units) = (side.panel::<K>(), units::<K>(ks));
    for (p, dst) in dst.chunks_exact_mut(panel * units).enumerate() {
        let at = lines.start + p * panel;
        let width = panel.min(lines.end - at);
        // SAFETY: `at + width <= lines.end` and `ks` lie in the operand, by the caller's contract.
        unsafe {
            let src = x.data.as_ptr().add(at * x.line_step + ks.start * x.k_step);
            match side {
                Side::A => K::pack_a(dst, src, width, x.line_step, ks.len(), x.k_step),
                Side::B => K::pack(dst, K::NR, src, width, x.line_step, ks.len(), x.k_step),
            }
        }
    }
}

/// Rows x columns of the output from packed panels of both.
unsafe fn block<K: Kernel>(
    out: Out<K::S>,
    ap: &[K::P],
    bp: &[K::P],
    rows: Range<usize>,
    cols: Range<usize>,
    units: usize,
) {
    // SAFETY: the caller's contract; nothing below leaves this thread before `leave`.
    unsafe { K::enter() };
    for (i, a) in ap.chunks_exact(K::MR * units).enumerate() {
        let i = rows.start + i * K::MR;
        for (j, b) in bp.chunks_exact(K::NR * units).enumerate() {
            let j = cols.start + j * K::NR;
            let (height, width) = (K::MR.min(rows.end - i), K::NR.min(cols.end - j));
            // SAFETY: panels are whole; the tile is inside the output, or goes through `edge`.
            unsafe {
                let at = i * out.ld + j;
                let c = out.c.add(at);
                let base = if out.base.is_null() { out.base } else { out.base.add(at) };
                if height == K::MR && width == K::NR {
                    K::tile(units, a.as_ptr(), K::MR, b.as_ptr(), K::NR, c, out.ld, base, out.ld);
                } else {
                    edge::<K>(units, a, b, c, base, out.ld, height, width);
                }
            }
        }
    }
    // SAFETY: as above.
    unsafe { K::leave() };
}

/// Largest tile, in elements.
const MAX_TILE: usize = 32 * 32;

/// A tile that hangs over the border: computed whole in a buffer that holds the base, and the part inside copied out.
#[allow(clippy::too_many_arguments)]
unsafe fn edge<K: Kernel>(
    units: usize,
    a: &[K::P],
    b: &[K::P],
    c: *mut K::S,
    base: *const K::S,
    ld: usize,
    height: usize,
    width: usize,
) {
    const { assert!(K::MR * K::NR <= MAX_TILE) };
    let mut buf = [K::S::ZERO; MAX_TILE];
    // SAFETY: panels are whole and the buffer holds a tile; the part inside the output is the caller's contract.
    unsafe {
        if !base.is_null() {
            for (i, row) in buf.chunks_exact_mut(K::NR).take(height).enumerate() {
                std::ptr::copy_nonoverlapping(base.add(i * ld), row.as_mut_ptr(), width);
            }
        }
        let at = buf.as_mut_ptr();
        let from = if base.is_null() { std::ptr::null() } else { at.cast_const() };
        let tile = if height <= LOW { K::low_tile } else { K::tile };
        tile(units, a.as_ptr(), K::MR, b.as_ptr(), K::NR, at, K::NR, from, K::NR);
        for (i, row) in buf.chunks_exact(K::NR).take(height).enumerate() {
            std::ptr::copy_nonoverlapping(row.as_ptr(), c.add(i * ld), width);
        }
    }
}

/// See [`HasGemm::tile_gemm`].
#[allow(clippy::too_many_arguments)]
fn tiles<K: Kernel<P = <K as Kernel>::S>>(
    c: &mut [K::S],
    c_ld: usize,
    a: &[K::S],
    a_ld: usize,
    b: &[K::S],
    b_ld: usize,
    m: usize,
    n: usize,
    k: usize,
    add: bool,
) {
    if m == 0 || n == 0 || k == 0 {
        assert!(add || m == 0 || n == 0, "tile_gemm: an empty sum to set");
        return;
    }
    let (m, n) = (m.next_multiple_of(K::MR), n.next_multiple_of(K::NR));
    assert!(a_ld >= m && b_ld >= n && c_ld >= n, "tile_gemm: strides");
    assert!(a.len() >= (k - 1) * a_ld + m && b.len() >= (k - 1) * b_ld + n, "tile_gemm: operands");
    assert!(c.len() >= (m - 1) * c_ld + n, "tile_gemm: output");
    for j in (0..n).step_by(K::NR) {
        for i in (0..m).step_by(K::MR) {
            // SAFETY: whole tiles inside the three slices, measured above; the level of the kernel was detected.
            unsafe {
                let c = c.as_mut_ptr().add(i * c_ld + j);
                let base = if add { c.cast_const() } else { std::ptr::null() };
                K::tile(k, a.as_ptr().add(i), a_ld, b.as_ptr().add(j), b_ld, c, c_ld, base, c_ld);
            }
        }
    }
}
