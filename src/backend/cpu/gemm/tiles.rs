//! Products of small tiles on the calling thread, for attention: operands packed as the micro-kernel reads them, or read
//! where they lie if it can.

use super::kernel::Kernel;
use super::matrix::Mat;
use super::panels::{Side, pack_lines, packed, units};

/// An operand of a tile product: whole panels of lines.
#[derive(Clone, Copy)]
pub struct Operand<'a, S> {
    data: &'a [S],
    /// Elements from one panel to the next, and from one unit along `k` to the next.
    panel: usize,
    step: usize,
}

/// See `HasTiles::tile_units`.
pub(super) fn tile_units<K: Kernel>() -> (usize, usize) {
    (K::MR, K::NR)
}

/// See `HasTiles::pack`.
pub(super) fn pack<'a, K: Kernel>(
    dst: &'a mut [K::S],
    side: Side,
    x: Mat<'_, K::S>,
    lines: usize,
    k: usize,
) -> Operand<'a, K::S> {
    assert!(lines > 0 && k > 0 && x.data.len() > (lines - 1) * x.line_step + (k - 1) * x.k_step, "pack: operand");
    let ks = 0..k;
    let len = packed::<K>(side, lines, std::slice::from_ref(&ks));
    // SAFETY: the operand was measured above; a kernel is only named for a level that was detected.
    unsafe { pack_lines::<K>(bytemuck::cast_slice_mut(&mut dst[..len]), side, x, 0..lines, &ks) };
    Operand { data: &dst[..len], panel: side.panel::<K>() * units::<K>(&ks), step: side.panel::<K>() }
}

/// See `HasTiles::operand`.
pub(super) fn operand<'a, K: Kernel>(
    dst: &'a mut [K::S],
    side: Side,
    x: &'a [K::S],
    ld: usize,
    lines: usize,
    k: usize,
) -> Operand<'a, K::S> {
    if K::DIRECT {
        Operand { data: x, panel: side.panel::<K>(), step: ld }
    } else {
        pack::<K>(dst, side, Mat::by_k(x, ld), lines, k)
    }
}

/// See `HasTiles::operand_len`.
pub(super) fn operand_len<K: Kernel>(side: Side, lines: usize, k: usize) -> usize {
    if K::DIRECT { 0 } else { packed_len::<K>(side, lines, k) }
}

/// See `HasTiles::packed_len`.
pub(super) fn packed_len<K: Kernel>(side: Side, lines: usize, k: usize) -> usize {
    const { assert!(size_of::<K::P>() == size_of::<K::S>()) };
    packed::<K>(side, lines, std::slice::from_ref(&(0..k)))
}

/// See `HasTiles::product`.
pub(super) fn product<K: Kernel>(
    c: &mut [K::S],
    c_ld: usize,
    a: Operand<'_, K::S>,
    b: Operand<'_, K::S>,
    [m, n, k]: [usize; 3],
    add: bool,
) {
    if m == 0 || n == 0 || k == 0 {
        assert!(add || m == 0 || n == 0, "tile product: an empty sum to set");
        return;
    }
    let (m, n, units) = (m.next_multiple_of(K::MR), n.next_multiple_of(K::NR), units::<K>(&(0..k)));
    let reach = |x: &Operand<'_, K::S>, lines: usize, of: usize| {
        assert!(x.step >= of, "tile product: step");
        (lines / of - 1) * x.panel + (units - 1) * x.step + of
    };
    assert!(a.data.len() >= reach(&a, m, K::MR) && b.data.len() >= reach(&b, n, K::NR), "tile product: operands");
    assert!(c_ld >= n && c.len() >= (m - 1) * c_ld + n, "tile product: output");
    // SAFETY: whole tiles inside the three slices, measured above; the level of the kernel was detected; nothing else uses
    // this thread between `enter` and `leave`.
    unsafe {
        K::enter();
        for j in 0..n / K::NR {
            let b_panel = b.data.as_ptr().add(j * b.panel).cast();
            for i in 0..m / K::MR {
                let c = c.as_mut_ptr().add(i * K::MR * c_ld + j * K::NR);
                let base = if add { c.cast_const() } else { std::ptr::null() };
                K::tile(units, a.data.as_ptr().add(i * a.panel).cast(), a.step, b_panel, b.step, c, c_ld, base, c_ld);
            }
        }
        K::leave();
    }
}

/// See `HasTiles::transpose`; `K` reads operands as they lie.
pub(super) fn transpose<K: Kernel<P = <K as Kernel>::S>>(
    dst: &mut [K::S],
    ld: usize,
    src: &[K::S],
    src_ld: usize,
    rows: usize,
    cols: usize,
) {
    assert!(rows > 0 && cols > 0 && src.len() >= (rows - 1) * src_ld + cols, "transpose: source");
    // SAFETY: the source was measured above, `pack` measures the destination; the level of the kernel was detected.
    unsafe { K::pack(dst, ld, src.as_ptr(), rows, src_ld, cols, 1) }
}
