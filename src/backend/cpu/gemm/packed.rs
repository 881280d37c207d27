//! A right operand packed once for many products: reading it is then all that a product of few rows costs, one stream a
//! task. Blocks, panels and sums are those of `blocks`, and so are the bits.
//!
//! Where every element is a bf16 or an f16 value in an `f32`, as in most published models, or is rounded to bf16, the panels
//! hold two elements a word, and the tile widens them: half the memory to read, the same numbers. Drafts, for guesses of a
//! product, hold four: whole multiples, of -127 to 127, of a 127th of what is largest in a line's block along `k`.

use super::blocks::{MAX_TILE, Out, SHARED, edge, k_blocks, lines_of, pack_all, tasks};
use super::kernel::{Kernel, LOW};
use super::matrix::{Base, Mat};
use super::panels::{Side, pack_lines, packed, units};
use super::setup::Gemm;
use crate::backend::cpu::pages;
use crate::backend::ops::decode::Layout;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of a cache line, at which panels begin.
const LINE: usize = 64;
/// Panels of `a` that are packed by the calling thread alone.
const FEW: usize = 2;

/// See the module. Made empty, for a matrix of a certain size.
pub struct Packed {
    words: Vec<u64>,
    /// Lines, and the summed dimension.
    lines: usize,
    k: usize,
    layout: Layout,
    form: Form,
    /// What a draft's numbers are multiples of: of every block, one a line of its panels.
    scales: Vec<f32>,
}

/// What panels hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The kernel's units.
    Whole,
    Bf16,
    F16,
    Int8,
}

impl Packed {
    /// What counts alone: it owns nothing, and nothing can be packed into it.
    pub fn counted(lines: usize, k: usize, layout: Layout) -> Self {
        Packed { words: Vec::new(), lines, k, layout, form: Form::Whole, scales: Vec::new() }
    }

    /// Lines, and the summed dimension.
    pub fn sizes(&self) -> [usize; 2] {
        [self.lines, self.k]
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    fn panels<P: bytemuck::Pod>(&self, len: usize) -> &[P] {
        &bytemuck::cast_slice(&self.words[first(&self.words)..])[..len]
    }

    fn panels_mut<P: bytemuck::Pod>(&mut self, len: usize) -> &mut [P] {
        let first = first(&self.words);
        &mut bytemuck::cast_slice_mut(&mut self.words[first..])[..len]
    }
}

/// The first word at the start of a line.
fn first(words: &[u64]) -> usize {
    words.as_ptr().align_offset(LINE)
}

fn blocks_of<K: Kernel>(k: usize) -> Vec<Range<usize>> {
    k_blocks::<K>(k).collect()
}

/// See `HasGemm::packed_bytes`.
pub(super) fn bytes<K: Kernel>(lines: usize, k: usize, layout: Layout) -> Option<usize> {
    let blocks = blocks_of::<K>(k);
    let len = packed::<K>(Side::B, lines, &blocks);
    let bytes = match layout {
        Layout::Draft if K::HALVES.is_none() => return None,
        Layout::Draft => len + 4 * scales::<K>(lines, blocks.len()),
        // Rounded operands are always halves.
        Layout::Whole if !K::ROUNDS => len * size_of::<K::P>(),
        _ if K::HALVES.is_none() => len * size_of::<K::P>(),
        _ => 2 * len,
    };
    Some(bytes.next_multiple_of(LINE) + LINE)
}

/// Scales of a draft.
fn scales<K: Kernel>(lines: usize, blocks: usize) -> usize {
    blocks * lines.next_multiple_of(K::NR)
}

/// See `HasGemm::room`.
pub(super) fn room<K: Kernel>(lines: usize, k: usize, layout: Layout) -> Result<Packed> {
    let bytes = bytes::<K>(lines, k, layout).expect("a layout that there is");
    let none = || Error::Device(format!("out of memory: packing a weight needs {bytes} bytes"));
    // Memory that is never written to is never taken from the system.
    let words = bytemuck::allocation::try_zeroed_vec(bytes / size_of::<u64>()).map_err(|()| none())?;
    let scales = if layout == Layout::Draft { scales::<K>(lines, blocks_of::<K>(k).len()) } else { 0 };
    let scales = bytemuck::allocation::try_zeroed_vec(scales).map_err(|()| none())?;
    Ok(Packed { words, lines, k, layout, form: Form::Whole, scales })
}

/// See `HasGemm::fill`.
pub(super) fn fill<K: Kernel>(g: &Gemm, to: &mut Packed, x: Mat<'_, K::S>) -> bool {
    let [lines, k] = to.sizes();
    assert!(lines > 0 && k > 0 && x.data.len() > (lines - 1) * x.line_step + (k - 1) * x.k_step, "fill: operand");
    let blocks = blocks_of::<K>(k);
    let len = packed::<K>(Side::B, lines, &blocks);
    let all = |are: fn(&[u32]) -> bool| x.data.par_chunks(1 << 16).all(|x| are(bytemuck::cast_slice(x)));
    to.form = match K::HALVES {
        None => Form::Whole,
        Some(_) if to.layout == Layout::Draft => Form::Int8,
        Some(_) if K::ROUNDS || all(are_bf16) => Form::Bf16,
        Some(_) if all(are_f16) => Form::F16,
        Some(_) if to.layout == Layout::Half => return false,
        Some(_) => Form::Whole,
    };
    if to.form == Form::Whole {
        let dst = to.panels_mut::<K::P>(len);
        pages::advise(bytemuck::cast_slice_mut(dst));
        // SAFETY: the operand was measured above; a kernel is only named for a level that was detected.
        unsafe { pack_all::<K>(dst, Side::B, x, lines, &blocks) };
        return true;
    }
    // Elements a word.
    let (form, per) = (to.form, if to.form == Form::Int8 { 4 } else { 2 });
    let mut scales = std::mem::take(&mut to.scales);
    let mut rest = to.panels_mut::<u32>(len / per);
    pages::advise(bytemuck::cast_slice_mut(rest));
    let padded = lines.next_multiple_of(K::NR);
    for (b, ks) in blocks.iter().enumerate() {
        let units = units::<K>(ks);
        let (part, tail) = rest.split_at_mut(padded * units / per);
        rest = tail;
        let scales = if form == Form::Int8 { &mut scales[b * padded..][..padded] } else { &mut [] };
        let scales = scales.chunks_mut(K::NR).map(Some).chain(std::iter::repeat_with(|| None)).take(padded / K::NR);
        let scales: Vec<_> = scales.collect();
        part.par_chunks_mut(K::NR * units / per).zip(scales).enumerate().for_each(|(p, (dst, scales))| {
            g.scratch.with(K::NR * units, |panel: &mut [K::P]| {
                let at = p * K::NR..((p + 1) * K::NR).min(lines);
                // SAFETY: as above.
                unsafe { pack_lines::<K>(panel, Side::B, x, at, ks) };
                let panel = bytemuck::cast_slice::<K::P, u32>(panel);
                if let Some(scales) = scales {
                    return multiples(dst, scales, bytemuck::cast_slice(panel));
                }
                let narrow = if form == Form::Bf16 { two_bf16 } else { two_f16 };
                let rows = panel.chunks_exact(K::NR);
                dst.chunks_exact_mut(K::NR / 2).zip(rows).for_each(|(dst, row)| narrow(dst, row));
            });
        });
    }
    to.scales = scales;
    true
}

/// Rounds a panel's rows, a column a line, to whole multiples of its scale. Of what is no finite number, a guess is worth nothing.
fn multiples(dst: &mut [u32], scales: &mut [f32], rows: &[f32]) {
    scales.fill(0.0);
    for row in rows.chunks_exact(scales.len()) {
        scales.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
    }
    let steps: Vec<f32> = scales.iter().map(|most| if *most > 0.0 { 127.0 / most } else { 0.0 }).collect();
    scales.iter_mut().for_each(|most| *most /= 127.0);
    let dst: &mut [i8] = bytemuck::cast_slice_mut(dst);
    for (dst, row) in dst.chunks_exact_mut(steps.len()).zip(rows.chunks_exact(steps.len())) {
        // Half a step up and then down is to nearest; sums of up to 127.5 are exact enough for a guess.
        let nearest = |x: f32| (x + if x < 0.0 { -0.5 } else { 0.5 }) as i8;
        dst.iter_mut().zip(row.iter().zip(&steps)).for_each(|(d, (x, s))| *d = nearest(x * s));
    }
}

/// Whether `f32`s are bf16 values.
fn are_bf16(x: &[u32]) -> bool {
    x.iter().fold(0, |all, x| all | x) & 0xffff == 0
}

/// The bits of f16's least normal number, and of what is beyond its largest, as an `f32`.
const F16_NORMAL: u32 = 0x3880_0000;
const F16_END: u32 = 0x4780_0000;
/// How often f16's least number goes into 1.
const F16_STEPS: f32 = 16_777_216.0;

/// Whether `f32`s are finite f16 values.
fn are_f16(x: &[u32]) -> bool {
    let is = |x: &u32| {
        let magnitude = x & 0x7fff_ffff;
        let steps = f32::from_bits(magnitude) * F16_STEPS;
        let normal = (x & 0x1fff == 0) & (F16_NORMAL..F16_END).contains(&magnitude);
        normal | ((magnitude < F16_NORMAL) & (steps == (steps as i32) as f32))
    };
    x.iter().fold(true, |all, x| all & is(x))
}

/// See `Halves::bf16`.
fn two_bf16(dst: &mut [u32], row: &[u32]) {
    let (low, high) = row.split_at(dst.len());
    dst.iter_mut().zip(low.iter().zip(high)).for_each(|(d, (l, h))| *d = l >> 16 | h & 0xffff_0000);
}

/// See `Halves::f16`: the exponent's bias goes from 127 to 15; below its least normal number f16 counts steps.
fn two_f16(dst: &mut [u32], row: &[u32]) {
    let half = |x: u32| {
        let magnitude = x & 0x7fff_ffff;
        let steps = (f32::from_bits(magnitude) * F16_STEPS) as i32 as u32;
        let normal = magnitude.wrapping_sub(112 << 23) >> 13;
        (x >> 16 & 0x8000) | if magnitude < F16_NORMAL { steps } else { normal }
    };
    dst.iter_mut().zip(row.chunks_exact(2)).for_each(|(d, x)| *d = half(x[0]) | half(x[1]) << 16);
}

/// See `HasGemm::gemm_packed`.
pub(super) fn run<K: Kernel>(g: &Gemm, c: &mut [K::S], base: Base<'_, K::S>, a: Mat<'_, K::S>, b: &Packed, m: usize) {
    let [n, k] = b.sizes();
    assert_eq!(c.len(), m * n, "gemm: output");
    if m == 0 {
        return;
    }
    assert!(a.data.len() > (m - 1) * a.line_step + (k - 1) * a.k_step, "gemm: operand");
    let base = match base {
        Base::Zero => std::ptr::null(),
        Base::Output => c.as_ptr(),
        Base::Other(p) => {
            assert_eq!(p.len(), c.len(), "gemm: base");
            p.as_ptr()
        }
    };
    let out = Out { c: c.as_mut_ptr(), base, ld: n };
    let (blocks, panels) = (blocks_of::<K>(k), n.div_ceil(K::NR));
    // Blocks of the left operand that are packed at a time.
    let some = (SHARED / packed::<K>(Side::A, m, &blocks[..1]) / size_of::<K::P>()).max(1);
    let mut from = 0;
    for (part, blocks) in blocks.chunks(some).enumerate() {
        g.scratch.with(packed::<K>(Side::A, m, blocks), |ap: &mut [K::P]| {
            // SAFETY: the operand was measured above; a kernel is only named for a level that was detected.
            unsafe { pack_a::<K>(ap, a, m, blocks) };
            let (ap, tasks) = (&*ap, tasks(panels, usize::MAX));
            (0..tasks).into_par_iter().with_max_len(1).for_each(|t| {
                let cols = lines_of(t, tasks, panels, K::NR, n);
                let (mut at_a, mut at_b) = (0, from);
                // SAFETY: the columns lie in the output, disjoint between tasks; nothing else uses this thread until `leave`.
                unsafe {
                    K::enter();
                    for (i, ks) in blocks.iter().enumerate() {
                        let (units, out) = (units::<K>(ks), out.after(ks));
                        let a = &ap[at_a..][..m.next_multiple_of(K::MR) * units];
                        stripe::<K>(out, a, b, (part * some + i, at_b), m, cols.clone(), units);
                        at_a += a.len();
                        at_b += panels * K::NR * units;
                    }
                    K::leave();
                }
            });
        });
        from += packed::<K>(Side::B, n, blocks);
    }
}

/// Packs the left operand: where it is small, sooner done than shared out.
unsafe fn pack_a<K: Kernel>(mut dst: &mut [K::P], a: Mat<'_, K::S>, m: usize, blocks: &[Range<usize>]) {
    if m > FEW * K::MR {
        // SAFETY: the caller's contract.
        return unsafe { pack_all::<K>(dst, Side::A, a, m, blocks) };
    }
    for ks in blocks {
        let (part, rest) = dst.split_at_mut(m.next_multiple_of(K::MR) * units::<K>(ks));
        // SAFETY: the caller's contract.
        unsafe { pack_lines::<K>(part, Side::A, a, 0..m, ks) };
        dst = rest;
    }
}

/// All rows of some columns, for block `block` along `k`, which begins `at_b` elements into the panels: each panel of `b` meets
/// every panel of `a` while it is in the caches.
unsafe fn stripe<K: Kernel>(
    out: Out<K::S>,
    ap: &[K::P],
    b: &Packed,
    (block, at_b): (usize, usize),
    m: usize,
    cols: Range<usize>,
    units: usize,
) {
    for j in cols.clone().step_by(K::NR) {
        // Panels are NR lines, so line j is NR * units / NR elements further in.
        let at = at_b + j * units;
        for (i, a) in (0..m).step_by(K::MR).zip(ap.chunks_exact(K::MR * units)) {
            let (height, width) = (K::MR.min(m - i), K::NR.min(cols.end - j));
            let tile = |low: bool, c: *mut K::S, ld: usize, base: *const K::S, base_ld: usize| {
                let a = a.as_ptr();
                // SAFETY: panels are whole, and of the kind that the tile reads; the rest is the caller's contract.
                unsafe {
                    match K::HALVES.filter(|_| b.form != Form::Whole) {
                        Some(halves) => {
                            let (tiles, per) = match b.form {
                                Form::Int8 => (halves.int8, 4),
                                Form::Bf16 => (halves.bf16, 2),
                                _ => (halves.f16, 2),
                            };
                            let tile = tiles[usize::from(low)];
                            let words = b.panels::<u32>((at + K::NR * units) / per).as_ptr().add(at / per);
                            let (a, c, base) = (a.cast(), c.cast(), base.cast());
                            if b.form != Form::Int8 {
                                return tile(units, a, K::MR, words, K::NR / per, c, ld, base, base_ld);
                            }
                            let mut own = [0f32; MAX_TILE];
                            let none = std::ptr::null();
                            tile(units, a, K::MR, words, K::NR / per, own.as_mut_ptr(), K::NR, none, 0);
                            let scales = &b.scales[block * b.lines.next_multiple_of(K::NR) + j..][..K::NR];
                            let rows = if low { LOW } else { K::MR };
                            scaled((c, ld), (base, base_ld), &own[..rows * K::NR], scales);
                        }
                        None => {
                            let tile = if low { K::low_tile } else { K::tile };
                            let b = b.panels::<K::P>(at + K::NR * units).as_ptr().add(at);
                            tile(units, a, K::MR, b, K::NR, c, ld, base, base_ld);
                        }
                    }
                }
            };
            // SAFETY: the tile lies in the output, by the caller's contract, or goes through `edge`.
            unsafe {
                let (c, base) = out.at(i, j);
                if height == K::MR && width == K::NR {
                    tile(false, c, out.ld, base, out.ld);
                } else {
                    const { assert!(LOW <= K::MR) };
                    edge::<K>(c, base, out.ld, height, width, tile);
                }
            }
        }
    }
}

/// `c = base + sums * scales`, rows of as many elements as there are scales; a null base is 0.
///
/// # Safety
/// So many rows, `ld` elements apart, exist at `c` and, where it is not null, at `base`.
unsafe fn scaled((c, ld): (*mut f32, usize), (base, base_ld): (*const f32, usize), sums: &[f32], scales: &[f32]) {
    for (i, sums) in sums.chunks_exact(scales.len()).enumerate() {
        for (j, (sum, scale)) in sums.iter().zip(scales).enumerate() {
            // SAFETY: the caller's contract.
            unsafe {
                let base = if base.is_null() { 0.0 } else { *base.add(i * base_ld + j) };
                *c.add(i * ld + j) = base + sum * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::gemm::dispatch::HasGemm;
    use crate::backend::cpu::gemm::setup::GemmPrecision;
    use crate::backend::cpu::simd::Level;
    use half::{bf16, f16};

    #[test]
    fn every_f16_and_nothing_else() {
        for bits in 0..=u16::MAX {
            let (h, words) = (f16::from_bits(bits), [f16::from_bits(bits).to_f32().to_bits(); 2]);
            assert_eq!(are_f16(&words), h.is_finite(), "{bits:#x}");
            if h.is_finite() {
                let mut two = [0];
                two_f16(&mut two, &words);
                assert_eq!(two[0], u32::from(bits) << 16 | u32::from(bits), "{bits:#x}");
                // Half a step further is none.
                let beside =
                    f32::from_bits(words[0]) + (f32::from_bits(words[0]).abs() * 2f32.powi(-12)).max(2f32.powi(-26));
                assert!(!are_f16(&[beside.to_bits()]), "{bits:#x}");
            }
        }
    }

    /// The same bits as products that pack for themselves, whatever the panels hold, on rows of every kind of tile.
    #[test]
    fn packed_weights_give_the_same_bits() {
        let mut seed = 9u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        type Kind = (fn(f32) -> f32, Form);
        let kinds: [Kind; 3] = [
            (|x| x, Form::Whole),
            (|x| bf16::from_f32(x).to_f32(), Form::Bf16),
            (|x| f16::from_f32(x * 1e-4).to_f32(), Form::F16),
        ];
        for (n, k) in [(1, 1), (33, 7), (70, 577), (128, 1200)] {
            for m in [1, 3, 4, 5, 12, 13, 14, 15, 16, 40] {
                let (a, base): (Vec<f32>, Vec<f32>) =
                    ((0..m * k).map(|_| next()).collect(), (0..m * n).map(|_| next()).collect());
                for (round, form) in kinds {
                    let b: Vec<f32> = (0..n * k).map(|_| round(next())).collect();
                    for level in Level::available() {
                        for precision in [GemmPrecision::Native, GemmPrecision::Bf16] {
                            let Ok(g) = Gemm::new::<f32>(level, precision) else { continue };
                            let (mut want, mut got) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
                            let (x, w) = (Mat::by_line(&a, k), Mat::by_line(&b, k));
                            f32::gemm_few(&g, &mut want, Base::Other(&base), x, w, [m, n, k]);
                            let what = format!("{m} x {n} x {k}, {level:?}, {precision:?}");
                            let same = |got: &[f32]| want.iter().zip(got).all(|(a, b)| a.to_bits() == b.to_bits());
                            let mut packed = f32::room(&g, n, k, Layout::Whole).unwrap();
                            assert!(f32::fill(&g, &mut packed, w));
                            f32::gemm_packed(&g, &mut got, Base::Other(&base), x, &packed, m);
                            assert!(same(&got), "{what}");
                            // In half the memory, or not at all.
                            let mut half = f32::room(&g, n, k, Layout::Half).unwrap();
                            let fits = f32::fill(&g, &mut half, w);
                            if fits {
                                got.fill(f32::NAN);
                                f32::gemm_packed(&g, &mut got, Base::Other(&base), x, &half, m);
                                assert!(same(&got), "{what}, half");
                            }
                            // A number or two may be any of these by chance.
                            if n * k > 100 && precision == GemmPrecision::Native && level.name() == "avx512" {
                                assert!(packed.form == form && fits == (form != Form::Whole), "{what}");
                            }
                        }
                    }
                }
            }
        }
    }

    /// Drafts are as near as eight bits allow, at every level that has them, whatever products are in, and on rows of every kind
    /// of tile; what is no number harms its own line alone.
    #[test]
    fn drafts_are_near() {
        let mut seed = 3u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut seen = 0;
        for level in Level::available() {
            for precision in [GemmPrecision::Native, GemmPrecision::Bf16] {
                let Ok(g) = Gemm::new::<f32>(level, precision) else { continue };
                if f32::packed_bytes(&g, 1, 1, Layout::Draft).is_none() {
                    assert!(level.name() != "avx512", "{level:?}");
                    continue;
                }
                seen += 1;
                for (n, k) in [(1, 1), (33, 7), (70, 577), (128, 1201)] {
                    // Lines, and blocks of a line, of other sizes.
                    let size = |i: usize| (1 + i / k) as f32 * if 2 * (i % k) < k { 1.0 } else { 50.0 };
                    let mut b: Vec<f32> = (0..n * k).map(|i| next() * size(i)).collect();
                    if n > 1 {
                        b[k..2 * k].fill(0.0);
                        b[(n - 1) * k] = f32::NAN;
                        b[(n - 1) * k + 1] = f32::INFINITY;
                    }
                    let mut draft = f32::room(&g, n, k, Layout::Draft).unwrap();
                    assert!(f32::fill(&g, &mut draft, Mat::by_line(&b, k)));
                    for m in [1, 4, 5, 12, 13, 40] {
                        let a: Vec<f32> = (0..m * k).map(|_| next()).collect();
                        let base: Vec<f32> = (0..m * n).map(|_| next()).collect();
                        let mut c = vec![f32::NAN; m * n];
                        f32::gemm_packed(&g, &mut c, Base::Other(&base), Mat::by_line(&a, k), &draft, m);
                        for (at, c) in c.iter().enumerate().filter(|(at, _)| n == 1 || at % n < n - 1) {
                            let (a, b) = (&a[at / n * k..][..k], &b[at % n * k..][..k]);
                            let most = b.iter().fold(0f32, |most, x| most.max(x.abs()));
                            let want = base[at] + a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                            // Half a step an element, and what f32 rounds.
                            let near = a.iter().map(|a| a.abs()).sum::<f32>() * most * (0.5 / 127.0 + 1e-4) + 1e-6;
                            assert!((c - want).abs() <= near, "{m} x {n} x {k}, {level:?}: {c} {want}");
                        }
                    }
                }
            }
        }
        let avx512 = Level::available().iter().any(|l| l.name() == "avx512");
        assert_eq!(seen > 0, avx512);
    }
}
