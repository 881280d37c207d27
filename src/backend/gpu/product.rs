//! Matrix products over views: measured here, enqueued by [`Driver::matmul`].

use super::check;
use super::context::{Gpu, GpuFloat};
use super::driver::{Driver, Dtype, MatMul, Matrix, View, ViewMut};
use crate::backend::ops::element::Gradient;
use crate::error::{Error, Result};
use std::marker::PhantomData;

/// A matrix in a live buffer: row-major, `ld` elements from row to row.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    matrix: Matrix,
    /// Elements that the view has.
    len: usize,
    life: PhantomData<&'a ()>,
}

impl<'a> Operand<'a> {
    /// The elements of `view` in rows of `ld`.
    pub fn new<T: GpuFloat>(view: View<'a, T>, ld: usize) -> Self {
        Operand { matrix: Matrix { at: view.at, dtype: T::DTYPE, ld }, len: view.len, life: PhantomData }
    }

    /// The columns from `start` on of `view` in rows of `ld`.
    pub fn columns<T: GpuFloat>(view: View<'a, T>, ld: usize, start: usize) -> Self {
        let start = start.min(view.len);
        let at = view.at + (start * T::DTYPE.size()) as u64;
        Operand { matrix: Matrix { at, dtype: T::DTYPE, ld }, len: view.len - start, life: PhantomData }
    }

    /// As [`Operand::new`], to write.
    pub fn output<T: GpuFloat>(view: &'a mut ViewMut<'_, T>, ld: usize) -> Self {
        Operand::new(view.as_view(), ld)
    }

    /// As [`Operand::output`], a gradient. Errors: a type that kernels do not know.
    pub fn gradient<G: Gradient>(view: &'a mut ViewMut<'_, G>, ld: usize) -> Result<Self> {
        let matrix = Matrix { at: view.at, dtype: dtype::<G>()?, ld };
        Ok(Operand { matrix, len: view.len, life: PhantomData })
    }

    /// Rows of `T` that start where rows of `width` floats do, in place of these.
    pub fn in_place_of<T: GpuFloat>(floats: View<'a, f32>, width: usize) -> Self {
        let per_float = size_of::<f32>() / T::DTYPE.size();
        let matrix = Matrix { at: floats.at, dtype: T::DTYPE, ld: width * per_float };
        Operand { matrix, len: floats.len * per_float, life: PhantomData }
    }

    /// Rows of `width` bf16, one after the other, in the memory of as many floats.
    pub fn narrow(floats: View<'a, f32>, width: usize) -> Self {
        Operand { matrix: Matrix { at: floats.at, dtype: Dtype::Bf16, ld: width }, len: floats.len, life: PhantomData }
    }

    /// Errors: fewer elements than `rows` x `columns` take.
    fn covers(&self, op: &'static str, name: &'static str, rows: usize, columns: usize) -> Result<()> {
        match rows.checked_sub(1) {
            Some(before) if columns > 0 => {
                check::at_least(op, name, self.len, &[("last element + 1", before * self.matrix.ld + columns)])
            }
            _ => Ok(()),
        }
    }
}

/// What kernels call a gradient's type.
pub(super) fn dtype<G: Gradient>() -> Result<Dtype> {
    match [Dtype::F32, Dtype::Bf16].into_iter().find(|d| d.name() == G::NAME) {
        Some(dtype) => Ok(dtype),
        None => Err(Error::usage(format!("gradients in {}: kernels know f32 and bf16", G::NAME))),
    }
}

/// Of two kernels the one for gradients of type `G`: those of single precision, or those in bf16, which are of bf16 weights alone.
pub(super) fn narrow<A: GpuFloat, G: Gradient>(op: &'static str, kernels: [&'static str; 2]) -> Result<&'static str> {
    match (dtype::<G>()?, A::DTYPE) {
        (Dtype::F32, _) => Ok(kernels[0]),
        (Dtype::Bf16, Dtype::Bf16) => Ok(kernels[1]),
        (Dtype::Bf16, Dtype::F32) => Err(Error::usage(format!("{op}: gradients in bf16 are of weights in bf16 alone"))),
    }
}

/// `d = op(a) op(b) + c`, as [`MatMul`].
pub(super) struct Product<'a> {
    /// For messages.
    pub op: &'static str,
    /// m, n, k: `op(a)` is m x k, `op(b)` k x n, `c` and `d` m x n.
    pub sizes: [usize; 3],
    /// The first operand, and whether it is stored k x m.
    pub a: (Operand<'a>, bool),
    /// The second operand, and whether it is stored n x k.
    pub b: (Operand<'a>, bool),
    /// What is added.
    pub c: Add<'a>,
    /// The result.
    pub d: Operand<'a>,
    /// See [`MatMul::row_invariant`].
    pub row_invariant: bool,
}

/// What a product is added to.
pub(super) enum Add<'a> {
    /// Nothing.
    Nothing,
    /// What the output holds.
    Output,
    /// These elements, of the output's type, in rows as its.
    Other(Operand<'a>),
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// Enqueues a product. Errors: [`crate::Error::Shape`] for an operand that is smaller than its shape.
    pub(super) fn product(&self, p: Product<'_>) -> Result<()> {
        self.scaled_product(p, 1.0)
    }

    /// [`Gpu::product`], `op(a) op(b)` being multiplied with `scale`.
    pub(super) fn scaled_product(&self, p: Product<'_>, scale: f32) -> Result<()> {
        let [m, n, k] = p.sizes;
        if m == 0 || n == 0 {
            return Ok(());
        }
        self.usable("a product")?;
        let stored = |(_, transposed): (_, bool), r: usize, c: usize| if transposed { (c, r) } else { (r, c) };
        let (a, b) = (stored(p.a, m, k), stored(p.b, k, n));
        p.a.0.covers(p.op, "a", a.0, a.1)?;
        p.b.0.covers(p.op, "b", b.0, b.1)?;
        p.d.covers(p.op, "d", m, n)?;
        let c = match p.c {
            Add::Nothing => None,
            Add::Output => Some(p.d.matrix.at),
            Add::Other(c) => {
                debug_assert!(c.matrix.dtype == p.d.matrix.dtype && c.matrix.ld == p.d.matrix.ld);
                c.covers(p.op, "c", m, n)?;
                Some(c.matrix.at)
            }
        };
        let product = MatMul {
            m,
            n,
            k,
            a: p.a.0.matrix,
            a_transposed: p.a.1,
            b: p.b.0.matrix,
            b_transposed: p.b.1,
            c,
            d: p.d.matrix,
            scale,
            row_invariant: p.row_invariant,
        };
        // SAFETY: operands are parts of live buffers of this driver, and were measured above.
        unsafe { self.driver.matmul(&product) }
    }
}
