//! Linear layers and biases.

use super::device::Cpu;
use super::gemm::matrix::{Base, Mat};
use super::gemm::setup::Gemm;
use super::gemm::thin::THIN;
use super::narrow::product;
use super::real::Real;
use super::simd::simd_fn;
use super::{check, par};
use crate::backend::ops::device::Write;
use crate::backend::ops::element::Gradient;
use crate::backend::ops::linear::{
    BiasBwd, BiasFwd, LinearBwdInput, LinearBwdPart, LinearBwdWeight, LinearFwd, LinearOps,
};
use crate::error::Result;

fn rows(
    op: &'static str,
    y: (&'static str, usize),
    x: (&'static str, usize),
    w: (&'static str, usize),
    out: usize,
    inp: usize,
) -> Result<usize> {
    let n = check::rows(op, y.0, y.1, "out", out)?;
    check::nonzero(op, "inp", inp)?;
    check::len(op, x.0, x.1, &[("rows", n), ("inp", inp)])?;
    check::len(op, w.0, w.1, &[("out", out), ("inp", inp)])?;
    Ok(n)
}

/// What a forward product is added to.
pub(super) fn base<'a, S>(op: &'static str, write: Write<&'a [S]>, rows: usize, out: usize) -> Result<Base<'a, S>> {
    Ok(match write {
        Write::Set => Base::Zero,
        Write::Add => Base::Output,
        Write::Plus(p) => {
            check::len(op, "plus", p.len(), &[("rows", rows), ("out", out)])?;
            Base::Other(p)
        }
    })
}

/// `HasGemm::gemm`, or a function like it.
pub(super) type Product<S> = fn(&Gemm, &mut [S], Base<'_, S>, Mat<'_, S>, Mat<'_, S>, [usize; 3]);

impl<S: Real> Cpu<S> {
    /// A forward product by `product`.
    pub(super) fn linear(&self, name: &'static str, op: LinearFwd<'_, Self>, product: Product<S>) -> Result<()> {
        let LinearFwd { y, x, w, out, inp, write } = op;
        let n = rows(name, ("y", y.len()), ("x", x.len()), ("w", w.len()), out, inp)?;
        let base = base(name, write, n, out)?;
        product(&self.gemm, y, base, Mat::by_line(x, inp), Mat::by_line(w, inp), [n, out, inp]);
        Ok(())
    }
}

impl<S: Real> LinearOps for Cpu<S> {
    fn linear_fwd(&self, op: LinearFwd<'_, Self>) -> Result<()> {
        self.linear("linear_fwd", op, S::gemm)
    }

    fn linear_bwd_input(&self, op: LinearBwdInput<'_, Self>) -> Result<()> {
        const OP: &str = "linear_bwd_input";
        let g = &self.gemm;
        let LinearBwdInput { dx, dy, w, out, inp, write } = op;
        let n = rows(OP, ("dy", dy.len()), ("dx", dx.len()), ("w", w.len()), out, inp)?;
        let (dy, w) = (Mat::by_line(dy, out), Mat::by_k(w, inp));
        if n > 0 && out <= THIN {
            S::gemm_thin(g, (dx, inp, write.adds()), dy, w, [n, inp, out]);
            return Ok(());
        }
        S::gemm(g, dx, if write.adds() { Base::Output } else { Base::Zero }, dy, w, [n, inp, out]);
        Ok(())
    }

    fn linear_bwd_weight<G: Gradient>(&self, op: LinearBwdWeight<'_, Self, G>) -> Result<()> {
        let g = &self.gemm;
        let LinearBwdWeight { dw, dy, x, out, inp, write } = op;
        let n = rows("linear_bwd_weight", ("dy", dy.len()), ("x", x.len()), ("dw", dw.len()), out, inp)?;
        product(g, (dw, write), (dy, out), Mat::by_k(x, inp), [out, inp, n]);
        Ok(())
    }

    fn linear_bwd_part<G: Gradient>(&self, op: LinearBwdPart<'_, Self, G>) -> Result<()> {
        const OP: &str = "linear_bwd_part";
        let LinearBwdPart { dw, dy, x, columns, out, inp } = op;
        check::columns(OP, &columns, out)?;
        let n = rows(OP, ("dy", dy.len()), ("x", x.len()), ("dw", dw.len() / columns.len() * out), out, inp)?;
        check::len(OP, "dw", dw.len(), &[("columns", columns.len()), ("inp", inp)])?;
        if n > 0 {
            let dy = &dy[columns.start..];
            product(&self.gemm, (dw, Write::Add), (dy, out), Mat::by_k(x, inp), [columns.len(), inp, n]);
        }
        Ok(())
    }

    fn bias_fwd(&self, op: BiasFwd<'_, Self>) -> Result<()> {
        let level = self.level();
        let BiasFwd { y, bias } = op;
        check::rows("bias_fwd", "y", y.len(), "dim", bias.len())?;
        par::rows(y, bias.len(), |_, y| add(level, y, bias));
        Ok(())
    }

    fn bias_bwd(&self, op: BiasBwd<'_, Self>) -> Result<()> {
        let level = self.level();
        let BiasBwd { dbias, dy } = op;
        let dim = dbias.len();
        check::rows("bias_bwd", "dy", dy.len(), "dim", dim)?;
        par::columns(dbias, |at, d| column_sums(level, d, dy, at, dim));
        Ok(())
    }
}

simd_fn! {
    pub(super) fn add<S>(y: &mut [S], x: &[S]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += *x);
    }
}
simd_fn! {
    /// Sums down the rows, in order, for the columns from `at`.
    pub(super) fn column_sums<S>(out: &mut [S], x: &[S], at: usize, dim: usize) {
        let mut acc = [S::ZERO; 64];
        let acc = &mut acc[..out.len()];
        for x in x.chunks_exact(dim) {
            acc.iter_mut().zip(&x[at..at + out.len()]).for_each(|(a, x)| *a += *x);
        }
        out.iter_mut().zip(acc).for_each(|(o, a)| *o += *a);
    }
}
