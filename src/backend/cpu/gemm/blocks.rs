//! The blocks of a matrix product: who packs what, and the tiles from packed panels.
//!
//! Own code rather than a crate's because a row of the result must have the same bits whatever the number of rows and
//! its place among them (the step-0 proof compares two packings). Here that holds by construction: an element is the
//! sum of blocks along `k`, whose bounds depend on `k` alone, each summed in order by `Kernel::tile`.

use super::kernel::{Kernel, LOW};
use super::matrix::{Base, Mat};
use super::panels::{Side, pack_lines, packed, units};
use super::setup::Gemm;
use crate::backend::cpu::scalar::Scalar;
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of a packed block of `b` that should stay in L2 while the rows of `a` pass by.
const L2_BLOCK: usize = 512 * 1024;
/// Most bytes that a task packs for itself.
pub const TASK: usize = 1 << 20;
/// Bytes of the operand that is packed for all threads at once: several blocks along `k` where it is small, as threads
/// wait for each other after each packing.
pub const SHARED: usize = 4 << 20;

/// Blocks along `k`: equal, of whole units: a function of `k` and the kernel alone.
pub(super) fn k_blocks<K: Kernel>(k: usize) -> impl Iterator<Item = Range<usize>> {
    let (most, of) = (K::BLOCK * K::K, 2 * K::DEPTH);
    let len = k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(of);
    (0..k).step_by(len.max(1)).map(move |at| at..(at + len).min(k))
}

/// The output, shared between threads that write disjoint tiles.
#[derive(Clone, Copy)]
pub(super) struct Out<S> {
    pub c: *mut S,
    pub base: *const S,
    pub ld: usize,
}
impl<S> Out<S> {
    /// The output as the block `ks` finds it: the first adds to the base, the others to what is there.
    pub fn after(self, ks: &Range<usize>) -> Self {
        if ks.start == 0 { self } else { Out { base: self.c.cast_const(), ..self } }
    }
    /// A tile's first element in the output, and in the base, which may be null.
    ///
    /// # Safety
    /// Row and column lie in the output.
    pub unsafe fn at(self, row: usize, column: usize) -> (*mut S, *const S) {
        let at = row * self.ld + column;
        // SAFETY: the caller's contract; a base that is not null has the output's shape.
        unsafe { (self.c.add(at), if self.base.is_null() { self.base } else { self.base.add(at) }) }
    }
}
// SAFETY: `base` is only read; `c` is written at disjoint tiles by construction of the task ranges in `share_a` and `share_b`.
unsafe impl<S: Sync> Sync for Out<S> {}
// SAFETY: two pointers into slices that outlive the tasks, and tasks write disjoint tiles.
unsafe impl<S: Send> Send for Out<S> {}

/// See `HasGemm::gemm`.
pub(super) fn run<K: Kernel>(
    g: &Gemm,
    c: &mut [K::S],
    base: Base<'_, K::S>,
    a: Mat<'_, K::S>,
    b: Mat<'_, K::S>,
    [m, n, k]: [usize; 3],
) {
    assert_eq!(c.len(), m * n, "gemm: output");
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
    assert!(a.data.len() >= a.reach(m, k) && b.data.len() >= b.reach(n, k), "gemm: operands");
    let first = match base {
        Base::Zero => std::ptr::null(),
        Base::Output => c.as_ptr(),
        Base::Other(p) => p.as_ptr(),
    };
    // SAFETY: operands and output were measured above; a kernel is only named for a level that was detected.
    unsafe { run_in::<K>(g, Out { c: c.as_mut_ptr(), base: first, ld: n }, a, b, [m, n, k]) }
}

/// The product into an output, all along `k`.
///
/// # Safety
/// The operands and the output have the given sizes, none of them 0, and the CPU has the kernel's instructions.
pub(super) unsafe fn run_in<K: Kernel>(
    g: &Gemm,
    out: Out<K::S>,
    a: Mat<'_, K::S>,
    b: Mat<'_, K::S>,
    [m, n, k]: [usize; 3],
) {
    let blocks: Vec<Range<usize>> = k_blocks::<K>(k).collect();
    let lines = if m <= n { m.next_multiple_of(K::MR) } else { n.next_multiple_of(K::NR) };
    let shared = lines * units::<K>(&blocks[0]) * size_of::<K::P>();
    for blocks in blocks.chunks((SHARED / shared).max(1)) {
        // SAFETY: the caller's contract.
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
pub(super) fn tasks(panels: usize, most: usize) -> usize {
    let threads = rayon::current_num_threads();
    panels.div_ceil(most.max(1)).max(2 * threads).next_multiple_of(threads).min(panels)
}

/// Lines of task `t`, cut at whole panels as evenly as that allows.
pub(super) fn lines_of(t: usize, tasks: usize, panels: usize, panel: usize, lines: usize) -> Range<usize> {
    t * panels / tasks * panel..((t + 1) * panels / tasks * panel).min(lines)
}

/// Packs all lines of an operand for `blocks`, one block after the other, on all threads.
///
/// # Safety
/// `lines` and `blocks` lie in the operand, and the CPU has the kernel's instructions.
pub(super) unsafe fn pack_all<K: Kernel>(
    dst: &mut [K::P],
    side: Side,
    x: Mat<'_, K::S>,
    lines: usize,
    blocks: &[Range<usize>],
) {
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
            // SAFETY: the lines lie in the operand, which the caller measured.
            unsafe { pack_lines::<K>(dst, side, x, lines, ks) }
        });
    });
}

/// Few rows: `a` packed once for all, each task packs its columns of `b` for itself.
///
/// # Safety
/// The operands and the output have the given sizes, `blocks` lie below `k`, and the CPU has the kernel's instructions.
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
        // SAFETY: the caller's contract.
        unsafe { pack_all::<K>(ap, Side::A, a, m, blocks) };
        let (ap, panels, longest) = (&*ap, n.div_ceil(K::NR), units::<K>(&blocks[0]));
        let tasks = tasks(panels, L2_BLOCK / (K::NR * longest * size_of::<K::P>()));
        (0..tasks).into_par_iter().with_max_len(1).for_each(|t| {
            let cols = lines_of(t, tasks, panels, K::NR, n);
            let of_task = |bp: &mut [K::P], to: &mut [u8]| {
                let mut ap = ap;
                for ks in blocks {
                    let units = units::<K>(ks);
                    let (mine, rest) = ap.split_at(m.next_multiple_of(K::MR) * units);
                    // A panel that few rows meet is gone through once: at once, while it is in the nearest cache.
                    let width = if m > K::MR { cols.len() } else { K::NR };
                    for at in cols.clone().step_by(width.max(1)) {
                        let cols = at..(at + width).min(cols.end);
                        let bp = &mut bp[..cols.len().next_multiple_of(K::NR) * units];
                        // SAFETY: the columns lie in `b` and, disjoint between tasks, in the output.
                        unsafe {
                            pack_lines::<K>(bp, Side::B, b, cols.clone(), ks);
                            parts::<K>(to, bp, units);
                            block::<K>(out.after(ks), mine, bp, to, 0..m, cols, units);
                        }
                    }
                    ap = rest;
                }
            };
            let len = packed::<K>(Side::B, cols.len(), &blocks[..1]);
            let flags = flags::<K>(cols.len().div_ceil(K::NR));
            with_flags::<K>(g, len, flags, of_task);
        });
    });
}

/// Many rows: `b` packed once for all, each task packs its rows of `a` for itself.
///
/// # Safety
/// As [`share_a`].
unsafe fn share_b<K: Kernel>(
    g: &Gemm,
    out: Out<K::S>,
    a: Mat<'_, K::S>,
    b: Mat<'_, K::S>,
    m: usize,
    n: usize,
    blocks: &[Range<usize>],
) {
    let flags = flags::<K>(n.div_ceil(K::NR));
    with_flags::<K>(g, packed::<K>(Side::B, n, blocks), flags * blocks.len(), |bp: &mut [K::P], parts: &mut [u8]| {
        // SAFETY: the caller's contract.
        unsafe {
            pack_all::<K>(bp, Side::B, b, n, blocks);
            all_parts::<K>(parts, bp, n, blocks);
        }
        let parts = &*parts;
        let (bp, panels, longest) = (&*bp, m.div_ceil(K::MR), units::<K>(&blocks[0]));
        let in_l2 = (L2_BLOCK / (K::NR * longest * size_of::<K::P>())).max(1);
        let tasks = tasks(panels, (TASK / (K::MR * longest * size_of::<K::P>())).min(16));
        (0..tasks).into_par_iter().with_max_len(1).for_each(|t| {
            let rows = lines_of(t, tasks, panels, K::MR, m);
            g.scratch.with(packed::<K>(Side::A, rows.len(), &blocks[..1]), |ap: &mut [K::P]| {
                let mut bp = bp;
                for (i, ks) in blocks.iter().enumerate() {
                    let parts = &parts[i * flags..(i + 1) * flags];
                    let units = units::<K>(ks);
                    let (mine, rest) = bp.split_at(n.next_multiple_of(K::NR) * units);
                    let ap = &mut ap[..rows.len().next_multiple_of(K::MR) * units];
                    // SAFETY: the rows lie in `a` and, disjoint between tasks, in the output.
                    unsafe { pack_lines::<K>(ap, Side::A, a, rows.clone(), ks) };
                    for (t, bp) in mine.chunks(in_l2 * K::NR * units).enumerate() {
                        let cols = t * in_l2 * K::NR..((t + 1) * in_l2 * K::NR).min(n);
                        let parts = &parts[(t * in_l2).min(parts.len())..];
                        // SAFETY: the columns lie in `b`, the rows in the output, disjoint between tasks.
                        unsafe { block::<K>(out.after(ks), ap, bp, parts, rows.clone(), cols, units) }
                    }
                    bp = rest;
                }
            });
        });
    });
}

/// Flags for `panels`, where a kernel has any.
fn flags<K: Kernel>(panels: usize) -> usize {
    if K::PARTS > 1 { panels } else { 0 }
}

/// Scratch of `len` units, and of so many flags behind them.
fn with_flags<K: Kernel>(g: &Gemm, len: usize, flags: usize, f: impl FnOnce(&mut [K::P], &mut [u8])) {
    // Scratch is cut in lines, of which 16 units of any size fill some.
    let room = flags.div_ceil(size_of::<K::P>()).next_multiple_of(16);
    g.scratch.with(len + room, |all: &mut [K::P]| {
        let (panels, rest) = all.split_at_mut(len);
        f(panels, &mut bytemuck::cast_slice_mut(rest)[..flags]);
    });
}

/// `Kernel::parts` of panels of `b`, as many as `to` has room for.
///
/// # Safety
/// The CPU has the kernel's instructions.
unsafe fn parts<K: Kernel>(to: &mut [u8], bp: &[K::P], units: usize) {
    for (to, b) in to.iter_mut().zip(bp.chunks_exact(K::NR * units)) {
        // SAFETY: the caller's contract.
        *to = unsafe { K::parts(b) };
    }
}

/// [`parts`] of `n` lines, block by block, on all threads.
///
/// # Safety
/// As there.
unsafe fn all_parts<K: Kernel>(mut to: &mut [u8], mut bp: &[K::P], n: usize, blocks: &[Range<usize>]) {
    let panels = flags::<K>(n.div_ceil(K::NR));
    for units in blocks.iter().map(units::<K>) {
        let (of_block, tail) = to.split_at_mut(panels);
        let (mine, rest) = bp.split_at(n.next_multiple_of(K::NR) * units);
        (to, bp) = (tail, rest);
        let each = of_block.par_chunks_mut(4).zip(mine.par_chunks(4 * K::NR * units));
        // SAFETY: the caller's contract.
        each.for_each(|(to, bp)| unsafe { parts::<K>(to, bp, units) });
    }
}

/// Rows x columns of the output from packed panels of both.
unsafe fn block<K: Kernel>(
    out: Out<K::S>,
    ap: &[K::P],
    bp: &[K::P],
    parts: &[u8],
    rows: Range<usize>,
    cols: Range<usize>,
    units: usize,
) {
    // SAFETY: the caller's contract; nothing below leaves this thread before `leave`.
    unsafe { K::enter() };
    let part = (K::MR * units).div_ceil((bp.len() / (K::NR * units)).max(1));
    for (i, a) in ap.chunks_exact(K::MR * units).enumerate() {
        let next = ap.as_ptr().wrapping_add((i + 1) * K::MR * units);
        let i = rows.start + i * K::MR;
        for (j, b) in bp.chunks_exact(K::NR * units).enumerate() {
            // The next panel of `a` has left the caches while this block of `b` came in: a part of it at a time.
            if K::ASKS {
                ask_for(next.wrapping_add(j * part), part);
            }
            let parts = parts.get(j).map_or(K::PARTS, |parts| *parts);
            let j = cols.start + j * K::NR;
            let (height, width) = (K::MR.min(rows.end - i), K::NR.min(cols.end - j));
            let tile = |low: bool, c: *mut K::S, ld: usize, base: *const K::S, base_ld: usize| {
                let (a, b) = (a.as_ptr(), b.as_ptr());
                // SAFETY: panels are whole, and `b` has these parts; the rest is the caller's contract.
                unsafe {
                    match () {
                        () if parts < K::PARTS => K::tile_of(parts, units, a, K::MR, b, K::NR, c, ld, base, base_ld),
                        () if low => K::low_tile(units, a, K::MR, b, K::NR, c, ld, base, base_ld),
                        () => K::tile(units, a, K::MR, b, K::NR, c, ld, base, base_ld),
                    }
                }
            };
            // SAFETY: the tile is inside the output, or goes through `edge`.
            unsafe {
                let (c, base) = out.at(i, j);
                if height == K::MR && width == K::NR {
                    tile(false, c, out.ld, base, out.ld);
                } else {
                    edge::<K>(c, base, out.ld, height, width, tile);
                }
            }
        }
    }
    // SAFETY: the CPU has the kernel's instructions, by the caller's contract; this thread entered above.
    unsafe { K::leave() };
}

/// Asks for `len` units from `p`, which need not exist.
#[inline(always)]
fn ask_for<P>(p: *const P, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..len * size_of::<P>()).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.wrapping_byte_add(at).cast()) }
    }
}

/// Largest tile, in elements.
pub(super) const MAX_TILE: usize = 32 * 32;

/// A tile that hangs over the border: computed whole in a buffer that holds the base, and the part inside copied out.
/// `tile(low, c, ld, base, base_ld)` computes it, or its first rows.
///
/// # Safety
/// `height` rows of `width` elements, `ld` apart, exist at `c` and, where it is not null, at `base`.
pub(super) unsafe fn edge<K: Kernel>(
    c: *mut K::S,
    base: *const K::S,
    ld: usize,
    height: usize,
    width: usize,
    tile: impl Fn(bool, *mut K::S, usize, *const K::S, usize),
) {
    const { assert!(K::MR * K::NR <= MAX_TILE) };
    let mut buf = [K::S::ZERO; MAX_TILE];
    // SAFETY: the buffer holds a tile; the part inside the output is the caller's contract.
    unsafe {
        if !base.is_null() {
            for (i, row) in buf.chunks_exact_mut(K::NR).take(height).enumerate() {
                std::ptr::copy_nonoverlapping(base.add(i * ld), row.as_mut_ptr(), width);
            }
        }
        let at = buf.as_mut_ptr();
        let from = if base.is_null() { std::ptr::null() } else { at.cast_const() };
        tile(height <= LOW, at, K::NR, from, K::NR);
        for (i, row) in buf.chunks_exact(K::NR).take(height).enumerate() {
            std::ptr::copy_nonoverlapping(row.as_ptr(), c.add(i * ld), width);
        }
    }
}
