//! The blocks of a matrix product: who packs what, and the tiles from packed panels.

use super::Real;
use super::gemm::{Gemm, L2_BLOCK, Mat, Out};
use super::kernel::{Kernel, LOW};
use rayon::prelude::*;
use std::ops::Range;

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
            // SAFETY: the lines lie in the operand, which the caller measured.
            unsafe { pack_lines::<K>(dst, side, x, lines, ks) }
        });
    });
}

/// Units that `lines` of an operand are packed to for `blocks`.
pub(super) fn packed<K: Kernel>(side: Side, lines: usize, blocks: &[Range<usize>]) -> usize {
    lines.next_multiple_of(side.panel::<K>()) * blocks.iter().map(units::<K>).sum::<usize>()
}

/// Few rows: `a` packed once for all, each task packs its columns of `b` for itself.
///
/// # Safety
/// The operands and the output have the given sizes, `blocks` lie below `k`, and the CPU has the kernel's instructions.
pub(super) unsafe fn share_a<K: Kernel>(
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
///
/// # Safety
/// As [`share_a`].
pub(super) unsafe fn share_b<K: Kernel>(
    g: &Gemm,
    out: Out<K::S>,
    a: Mat<'_, K::S>,
    b: Mat<'_, K::S>,
    m: usize,
    n: usize,
    blocks: &[Range<usize>],
) {
    g.scratch.with(packed::<K>(Side::B, n, blocks), |bp: &mut [K::P]| {
        // SAFETY: the caller's contract.
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
pub enum Side {
    /// The left one, whose lines are rows of the result.
    A,
    /// The right one, whose lines are columns.
    B,
}

impl Side {
    /// Lines of a panel.
    pub(super) fn panel<K: Kernel>(self) -> usize {
        match self {
            Side::A => K::MR,
            Side::B => K::NR,
        }
    }
}

/// Units of a block along `k`.
pub(super) fn units<K: Kernel>(ks: &Range<usize>) -> usize {
    ks.len().div_ceil(K::K).next_multiple_of(K::DEPTH)
}

/// Packs lines of an operand into panels.
///
/// # Safety
/// The lines and `ks` lie in the operand, and the CPU has the kernel's instructions.
pub(super) unsafe fn pack_lines<K: Kernel>(
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
