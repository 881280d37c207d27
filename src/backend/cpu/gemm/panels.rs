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
