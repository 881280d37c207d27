//! Products that are thin: of a few columns, or rows, or terms, beside a matrix that is gone through once. Packing that matrix
//! would be most of the work, so it is read where it lies, if the kernel can; the sums and their bits are those of `blocks`.

use super::blocks::{self, Out, SHARED, edge, k_blocks, lines_of, pack_all, tasks};
use super::kernel::{Kernel, LOW, Rows};
use super::matrix::Mat;
use super::panels::{Side, pack_lines, packed, units};
use super::setup::Gemm;
use rayon::prelude::*;
use std::ops::Range;

/// Most outputs of a layer that is thin: an adapter's first half, two of rank 16. 48 were no faster than by parts.
pub const THIN: usize = 32;

/// See `HasGemm::gemm_thin`.
pub(super) fn run<K: Kernel>(
    g: &Gemm,
    (c, ld, add): (&mut [K::S], usize, bool),
    a: Mat<'_, K::S>,
    b: Mat<'_, K::S>,
    [m, n, k]: [usize; 3],
) {
    assert!(m > 0 && n > 0 && k > 0 && n <= ld && c.len() >= (m - 1) * ld + n, "thin product: output");
    assert!(a.data.len() >= a.reach(m, k) && b.data.len() >= b.reach(n, k), "thin product: operands");
    let c = c.as_mut_ptr();
    let out = Out { c, base: if add { c.cast_const() } else { std::ptr::null() }, ld };
    // The operand that is packed whole is the small one.
    let small = |lines: usize| lines * k * size_of::<K::P>() <= SHARED;
    // SAFETY: operands and output were measured above; a kernel is only named for a level that was detected.
    unsafe {
        match K::ROWS {
            Some(tiles) if a.k_step == 1 && n <= 4 * m && small(n + K::NR) => {
                by_rows::<K>(g, out, tiles, a, b, [m, n, k])
            }
            // A tile of rows and a low one: of more, packing is what pays.
            _ if K::DIRECT && b.line_step == 1 && m <= K::MR + LOW && small(m + K::MR) => {
                by_columns::<K>(g, out, a, b, [m, n, k])
            }
            _ => blocks::run_in::<K>(g, out, a, b, [m, n, k]),
        }
    }
}

/// Many rows: `b` packed once for all, `a` read where it lies.
///
/// # Safety
/// The operands and the output have the given sizes, and the CPU has the kernel's instructions.
unsafe fn by_rows<K: Kernel>(
    g: &Gemm,
    out: Out<K::S>,
    tiles: Rows<K::S>,
    a: Mat<'_, K::S>,
    b: Mat<'_, K::S>,
    [m, n, k]: [usize; 3],
) {
    let blocks: Vec<Range<usize>> = k_blocks::<K>(k).collect();
    g.scratch.with(packed::<K>(Side::B, n, &blocks), |bp: &mut [K::P]| {
        // SAFETY: the caller's contract.
        unsafe { pack_all::<K>(bp, Side::B, b, n, &blocks) };
        let (bp, panels) = (&*bp, m.div_ceil(K::MR));
        let tasks = tasks(panels, 8);
        (0..tasks).into_par_iter().with_max_len(1).for_each(|t| {
            let rows = lines_of(t, tasks, panels, K::MR, m);
            let mut bp = bp;
            for ks in &blocks {
                let (mine, rest) = bp.split_at(n.next_multiple_of(K::NR) * units::<K>(ks));
                bp = rest;
                for i in rows.clone().step_by(K::MR) {
                    // SAFETY: the rows lie in `a` and, disjoint between tasks, in the output.
                    unsafe { rows_by::<K>(g, out.after(ks), tiles, a, mine, i..(i + K::MR).min(m), n, ks) };
                }
            }
        });
    });
}

/// A tile's rows by all panels of `b`, over a block along `k`.
#[allow(clippy::too_many_arguments)]
unsafe fn rows_by<K: Kernel>(
    g: &Gemm,
    out: Out<K::S>,
    tiles: Rows<K::S>,
    a: Mat<'_, K::S>,
    bp: &[K::P],
    rows: Range<usize>,
    n: usize,
    ks: &Range<usize>,
) {
    // SAFETY: the rows and `ks` lie in `a`; the rest is the caller's contract.
    unsafe {
        if rows.len() == K::MR {
            let at = a.data.as_ptr().add(rows.start * a.line_step + ks.start);
            return panels_by::<K>(out, Left::Lines(tiles, at, a.line_step), bp, rows, n, units::<K>(ks));
        }
        // Rows that no whole tile has: packed, as there is nothing to read below them.
        g.scratch.with(K::MR * units::<K>(ks), |ap: &mut [K::P]| {
            pack_lines::<K>(ap, Side::A, a, rows.clone(), ks);
            panels_by::<K>(out, Left::Panel(ap.as_ptr()), bp, rows, n, units::<K>(ks));
        });
    }
}

/// A tile's rows of the left operand.
enum Left<K: Kernel> {
    /// As they lie, so many elements apart.
    Lines(Rows<K::S>, *const K::S, usize),
    Panel(*const K::P),
}

/// See [`rows_by`].
unsafe fn panels_by<K: Kernel>(out: Out<K::S>, a: Left<K>, bp: &[K::P], rows: Range<usize>, n: usize, units: usize) {
    for (p, b) in bp.chunks_exact(K::NR * units).enumerate() {
        let (j, b) = (p * K::NR, b.as_ptr());
        let (height, width) = (rows.len(), K::NR.min(n - j));
        let half = 2 * width <= K::NR;
        let tile = |low: bool, c: *mut K::S, ld: usize, base: *const K::S, base_ld: usize| {
            // SAFETY: panels are whole, and lines as long as `units`; the rest is the caller's contract.
            unsafe {
                match a {
                    Left::Lines(tiles, a, line) => {
                        let tile = if half { tiles.half } else { tiles.whole };
                        tile(units, a, line, b.cast(), K::NR, c, ld, base, base_ld);
                    }
                    Left::Panel(a) if low => K::low_tile(units, a, K::MR, b, K::NR, c, ld, base, base_ld),
                    Left::Panel(a) => K::tile(units, a, K::MR, b, K::NR, c, ld, base, base_ld),
                }
            }
        };
        // What a tile of lines leaves alone, one of a panel writes: that has the whole width.
        let whole = width == K::NR || matches!(a, Left::Lines(..)) && 2 * width == K::NR;
        // SAFETY: the tile is inside the output, or goes through `edge`.
        unsafe {
            let (c, base) = out.at(rows.start, j);
            if height == K::MR && whole {
                tile(false, c, out.ld, base, out.ld);
            } else {
                edge::<K>(c, base, out.ld, height, width, tile);
            }
        }
    }
}

/// Few rows: `a` packed once for all, `b` read where it lies.
///
/// # Safety
/// As [`by_rows`].
unsafe fn by_columns<K: Kernel>(g: &Gemm, out: Out<K::S>, a: Mat<'_, K::S>, b: Mat<'_, K::S>, [m, n, k]: [usize; 3]) {
    let blocks: Vec<Range<usize>> = k_blocks::<K>(k).collect();
    g.scratch.with(packed::<K>(Side::A, m, &blocks), |ap: &mut [K::P]| {
        // SAFETY: the caller's contract.
        unsafe { pack_all::<K>(ap, Side::A, a, m, &blocks) };
        let (ap, panels) = (&*ap, n.div_ceil(K::NR));
        let tasks = tasks(panels, 8);
        (0..tasks).into_par_iter().with_max_len(1).for_each(|t| {
            let columns = lines_of(t, tasks, panels, K::NR, n);
            let mut ap = ap;
            for ks in &blocks {
                let units = units::<K>(ks);
                let (mine, rest) = ap.split_at(m.next_multiple_of(K::MR) * units);
                ap = rest;
                for j in columns.clone().step_by(K::NR) {
                    // SAFETY: the columns lie in `b` and, disjoint between tasks, in the output.
                    unsafe { columns_by::<K>(g, out.after(ks), mine, b, m, j..(j + K::NR).min(n), ks) };
                }
            }
        });
    });
}

/// All panels of `a` by a tile's columns, over a block along `k`.
unsafe fn columns_by<K: Kernel>(
    g: &Gemm,
    out: Out<K::S>,
    ap: &[K::P],
    b: Mat<'_, K::S>,
    m: usize,
    columns: Range<usize>,
    ks: &Range<usize>,
) {
    let (units, width) = (units::<K>(ks), columns.len());
    let rows = |b: *const K::P, b_step: usize| {
        for (p, a) in ap.chunks_exact(K::MR * units).enumerate() {
            let i = p * K::MR;
            let tile = |low: bool, c: *mut K::S, c_ld: usize, base: *const K::S, base_ld: usize| {
                let tile = if low { K::low_tile } else { K::tile };
                // SAFETY: the panel of `a` is whole, and so is that of `b`.
                unsafe { tile(units, a.as_ptr(), K::MR, b, b_step, c, c_ld, base, base_ld) }
            };
            let height = K::MR.min(m - i);
            // SAFETY: the tile is inside the output, or goes through `edge`.
            unsafe {
                let (c, base) = out.at(i, columns.start);
                match height {
                    _ if width < K::NR => edge::<K>(c, base, out.ld, height, width, tile),
                    LOW => tile(true, c, out.ld, base, out.ld),
                    _ if height < K::MR => edge::<K>(c, base, out.ld, height, width, tile),
                    _ => tile(false, c, out.ld, base, out.ld),
                }
            }
        }
    };
    // SAFETY: the columns and `ks` lie in `b`; the rest is the caller's contract.
    unsafe {
        if width == K::NR {
            return rows(b.data.as_ptr().add(columns.start + ks.start * b.k_step).cast(), b.k_step);
        }
        g.scratch.with(K::NR * units, |bp: &mut [K::P]| {
            pack_lines::<K>(bp, Side::B, b, columns.clone(), ks);
            rows(bp.as_ptr(), K::NR);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::HasGemm;
    use super::super::setup::GemmPrecision;
    use super::*;
    use crate::backend::cpu::gemm::matrix::Base;
    use crate::backend::cpu::simd::Level;

    fn check<S: HasGemm + crate::backend::cpu::scalar::Scalar>(
        level: Level,
        precision: GemmPrecision,
        sizes: [usize; 3],
    ) {
        let Ok(g) = Gemm::new::<S>(level, precision) else { return };
        let [m, n, k] = sizes;
        let mut seed = (m * 31 + n * 7 + k) as u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            S::from_f64(f64::from(seed >> 8) / f64::from(1 << 23) - 1.0)
        };
        // Lines, and rows, lie further apart than they are long.
        let (a_ld, b_ld, c_ld) = (m.max(k) + 3, n.max(k) + 5, n + 2);
        let a: Vec<S> = (0..a_ld * m.max(k)).map(|_| next()).collect();
        let b: Vec<S> = (0..b_ld * n.max(k)).map(|_| next()).collect();
        let before: Vec<S> = (0..m * c_ld).map(|_| next()).collect();
        let dense: Vec<S> = before.chunks_exact(c_ld).flat_map(|row| row[..n].to_vec()).collect();
        for a in [Mat::by_line(&a[..(m - 1) * a_ld + k], a_ld), Mat::by_k(&a[..(k - 1) * a_ld + m], a_ld)] {
            for b in [Mat::by_line(&b[..(n - 1) * b_ld + k], b_ld), Mat::by_k(&b[..(k - 1) * b_ld + n], b_ld)] {
                for add in [false, true] {
                    let (mut want, mut got) = (dense.clone(), before.clone());
                    S::gemm_few(&g, &mut want, if add { Base::Output } else { Base::Zero }, a, b, sizes);
                    S::gemm_thin(&g, (&mut got[..(m - 1) * c_ld + n], c_ld, add), a, b, sizes);
                    let what = format!("{m} x {n} x {k}, {level:?}, {precision:?}, add {add}");
                    for (i, (got, want)) in got.chunks_exact(c_ld).zip(want.chunks_exact(n)).enumerate() {
                        assert!(
                            got[..n].iter().zip(want).all(|(a, b)| a.to_f64().to_bits() == b.to_f64().to_bits()),
                            "{what}"
                        );
                        assert!(got[n..] == before[i * c_ld + n..(i + 1) * c_ld], "{what}: beside the output");
                    }
                }
            }
        }
    }

    /// The same bits as products that pack, whatever lies how, and nothing beside the output is touched.
    #[test]
    fn thin_products_have_the_same_bits() {
        for m in [1, 4, 8, 12, 15, 16, 25, 48, 131] {
            for n in [1, 8, 16, 17, 32, 48, 50, 130] {
                for k in [1, 16, 47, 577] {
                    for level in Level::available() {
                        check::<f32>(level, GemmPrecision::Native, [m, n, k]);
                        check::<f32>(level, GemmPrecision::Bf16, [m, n, k]);
                        check::<f64>(level, GemmPrecision::Native, [m, n, k]);
                    }
                }
            }
        }
    }

    /// Whatever is thin, scratch stays below what the memory plan allows for.
    #[test]
    fn scratch_is_bounded() {
        let (n, out) = (4096, 2048);
        let (dy, low, b) = (vec![1f32; n * out], vec![1f32; n * 16], vec![1f32; out * 16]);
        for level in Level::available() {
            for r in [1, 16] {
                let g = Gemm::new::<f32>(level, GemmPrecision::Native).unwrap();
                let (mut turned, mut sums) = (vec![0f32; r * out], vec![0f32; n * r]);
                f32::gemm_thin(&g, (&mut turned, out, true), Mat::by_k(&low, r), Mat::by_k(&dy, out), [r, out, n]);
                f32::gemm_thin(&g, (&mut sums, r, false), Mat::by_line(&dy, out), Mat::by_k(&b, r), [n, r, out]);
                let most = SHARED + rayon::current_num_threads() * (2 << 20) + (1 << 20);
                assert!(g.scratch.bytes() <= most, "rank {r}, {level:?}: {} bytes", g.scratch.bytes());
                assert!(sums.iter().all(|s| *s == out as f32) && turned.iter().all(|s| *s == n as f32));
            }
        }
    }

    /// Denormals count as 0 in tiles that read lines, and the control register is what it was after them.
    #[test]
    fn denormals_count_as_nothing() {
        let Some(level) = Level::available().into_iter().rfind(|l| l.name() == "avx512" || l.multiplies_parts()) else {
            return println!("skipped: this CPU has no AVX-512");
        };
        let g = Gemm::new::<f32>(level, GemmPrecision::Native).unwrap();
        let (least, mut c) = (f32::from_bits(1), vec![f32::NAN; 24 * 16]);
        let (a, b) = (vec![least; 24 * 20], vec![1e30f32; 16 * 20]);
        f32::gemm_thin(&g, (&mut c, 16, false), Mat::by_line(&a, 20), Mat::by_line(&b, 20), [24, 16, 20]);
        assert!(c.iter().all(|c| *c == 0.0), "{c:?}");
        assert!(std::hint::black_box(least) * std::hint::black_box(1e30f32) > 0.0);
    }
}
