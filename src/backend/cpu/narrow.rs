//! Gradients in bf16: what is summed in the element type meets them in pieces.

use super::gemm::matrix::{Base, Mat};
use super::gemm::setup::Gemm;
use super::gemm::thin::THIN;
use super::par;
use super::real::Real;
use super::scalar::Scalar;
use crate::backend::ops::device::Write;
use crate::backend::ops::element::Gradient;
use crate::backend::rounding::widened;
use half::bf16;
use rayon::prelude::*;
use std::any::TypeId;

/// Elements that are widened at a time.
const PIECE: usize = 1024;
/// Elements of a product that lie in scratch before they are added to a narrow output.
pub(super) const PRODUCT: usize = 1 << 20;

/// The elements as they are, where they are of type `S`.
pub(super) fn same<G: Gradient, S: Scalar>(g: &[G]) -> Option<&[S]> {
    (TypeId::of::<G>() == TypeId::of::<S>()).then(|| bytemuck::cast_slice(g))
}

/// [`same`], to write.
pub(super) fn same_mut<G: Gradient, S: Scalar>(g: &mut [G]) -> Option<&mut [S]> {
    (TypeId::of::<G>() == TypeId::of::<S>()).then(|| bytemuck::cast_slice_mut(g))
}

#[inline(always)]
fn wide<G: Gradient, S: Scalar>(x: G) -> S {
    match TypeId::of::<G>() == TypeId::of::<bf16>() {
        true => S::from_f64(f64::from(widened(bytemuck::cast(x)))),
        false => S::from_f64(x.to_f64()),
    }
}

/// Calls `f` with the elements of `g` in order, as they are or widened in pieces, and where each piece begins.
pub(super) fn in_pieces<G: Gradient, S: Scalar>(g: &[G], mut f: impl FnMut(usize, &[S])) {
    if let Some(g) = same(g) {
        return f(0, g);
    }
    let mut piece = [S::ZERO; PIECE];
    for (i, g) in g.chunks(PIECE).enumerate() {
        piece.iter_mut().zip(g).for_each(|(to, x)| *to = wide(*x));
        f(i * PIECE, &piece[..g.len()]);
    }
}

/// `dw += sum`, rounded once.
pub(super) fn fold<G: Gradient, S: Scalar>(dw: &mut [G], sum: &[S]) {
    dw.iter_mut().zip(sum).for_each(|(d, s)| *d = G::from_f64((wide::<G, S>(*d) + *s).to_f64()));
}

/// `dw {=,+=} a b^T`, m x n: lines of `a` by lines of `b`, `a` being `k` rows of `out` elements of which the first m count.
pub(super) fn product<S: Real, G: Gradient>(
    gemm: &Gemm,
    (dw, write): (&mut [G], Write<()>),
    (a, out): (&[S], usize),
    b: Mat<'_, S>,
    [m, n, k]: [usize; 3],
) {
    if let Some(dw) = same_mut(dw) {
        if m <= THIN && m > 0 && n > 0 && k > 0 {
            return S::gemm_thin(gemm, (dw, n, write.adds()), Mat::by_k(a, out), b, [m, n, k]);
        }
        let base = if write.adds() { Base::Output } else { Base::Zero };
        return S::gemm(gemm, dw, base, Mat::by_k(a, out), b, [m, n, k]);
    }
    if !write.adds() {
        par::blocks(dw, |_, dw| dw.fill(G::from_f64(0.0)));
    }
    if k == 0 || n == 0 {
        return;
    }
    let rows = (PRODUCT / n).clamp(1, m.max(1));
    gemm.scratch.with(rows * n, |sums: &mut [S]| {
        for (i, dw) in dw.chunks_mut(rows * n).enumerate() {
            let (at, sums) = (i * rows, &mut sums[..dw.len()]);
            S::gemm(gemm, sums, Base::Zero, Mat::by_k(&a[at..], out), b, [dw.len() / n, n, k]);
            dw.par_chunks_mut(1 << 14).zip(sums.par_chunks(1 << 14)).for_each(|(dw, sums)| fold(dw, sums));
        }
    });
}
