//! Panels: an operand's lines as a micro-kernel reads them.

use super::kernel::Kernel;
use super::matrix::Mat;
use std::ops::Range;

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

/// Units that `lines` of an operand are packed to for `blocks`.
pub(super) fn packed<K: Kernel>(side: Side, lines: usize, blocks: &[Range<usize>]) -> usize {
    lines.next_multiple_of(side.panel::<K>()) * blocks.iter().map(units::<K>).sum::<usize>()
}

/// Units packed of each panel in turn where lines lie side by side in memory: a row of it is then read in one go.
const STRIP: usize = 16;

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
    const { assert!(STRIP.is_multiple_of(K::DEPTH)) };
    let (panel, units) = (side.panel::<K>(), units::<K>(ks));
    let strip = if x.line_step == 1 { STRIP } else { units };
    for first in (0..units).step_by(strip.max(1)) {
        let (last, at_k) = ((first + strip).min(units), ks.start + first * K::K);
        let len = (ks.len().saturating_sub(first * K::K)).min((last - first) * K::K);
        for (p, dst) in dst.chunks_exact_mut(panel * units).enumerate() {
            let at = lines.start + p * panel;
            let (width, dst) = (panel.min(lines.end - at), &mut dst[first * panel..last * panel]);
            // SAFETY: `at + width <= lines.end` and `ks` lie in the operand, by the caller's contract.
            unsafe {
                let src = x.data.as_ptr().add(at * x.line_step).wrapping_add(at_k * x.k_step);
                match side {
                    Side::A => K::pack_a(dst, src, width, x.line_step, len, x.k_step),
                    Side::B => K::pack(dst, K::NR, src, width, x.line_step, len, x.k_step),
                }
            }
        }
    }
}
