//! Matrix products and biases. Products: [`Driver::matmul`]; kernels: `kernels/bias.cu`; reference: `backend/cpu/linear.rs`.

use super::driver::{Arg, Driver, Dtype, Grid, MatMul, Matrix, View, ViewMut};
use super::{Gpu, GpuFloat, SCRATCH, SLABS, check, columns, lock};
use crate::backend::Write;
use crate::error::Result;

fn matrix(at: u64, dtype: Dtype, ld: usize) -> Matrix {
    Matrix { at, dtype, ld }
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    /// Callers have checked that the operands cover their shapes.
    fn product(&self, p: &MatMul) -> Result<()> {
        if p.m == 0 || p.n == 0 {
            return Ok(());
        }
        self.usable("a product")?;
        // SAFETY: operands come from views of live buffers of this driver; each caller checks lengths first.
        unsafe { self.driver.matmul(p) }
    }

    /// See [`crate::backend::Backend::linear_fwd`].
    pub fn linear_fwd(
        &self,
        y: ViewMut<A>,
        x: View<A>,
        w: View<A>,
        out: usize,
        inp: usize,
        write: Write<View<A>>,
    ) -> Result<()> {
        const OP: &str = "linear_fwd";
        let rows = check::rows(OP, "x", x.len(), inp)?;
        check::len(OP, "y", y.len(), &[("rows", rows), ("out", out)])?;
        check::len(OP, "w", w.len(), &[("out", out), ("inp", inp)])?;
        let c = match write {
            Write::Set => None,
            Write::Add => Some(y.at),
            Write::Plus(v) => {
                check::len(OP, "plus", v.len(), &[("rows", rows), ("out", out)])?;
                Some(v.at)
            }
        };
        self.product(&MatMul {
            m: rows,
            n: out,
            k: inp,
            a: matrix(x.at, A::DTYPE, inp),
            a_transposed: false,
            b: matrix(w.at, A::DTYPE, inp),
            b_transposed: true,
            c,
            d: matrix(y.at, A::DTYPE, out),
            row_invariant: true,
        })
    }

    /// See [`crate::backend::Backend::linear_bwd_input`].
    pub fn linear_bwd_input(
        &self,
        dx: ViewMut<A>,
        dy: View<A>,
        w: View<A>,
        out: usize,
        inp: usize,
        write: Write<()>,
    ) -> Result<()> {
        const OP: &str = "linear_bwd_input";
        let rows = check::rows(OP, "dy", dy.len(), out)?;
        check::len(OP, "dx", dx.len(), &[("rows", rows), ("inp", inp)])?;
        check::len(OP, "w", w.len(), &[("out", out), ("inp", inp)])?;
        self.product(&MatMul {
            m: rows,
            n: inp,
            k: out,
            a: matrix(dy.at, A::DTYPE, out),
            a_transposed: false,
            b: matrix(w.at, A::DTYPE, inp),
            b_transposed: false,
            c: (!matches!(write, Write::Set)).then_some(dx.at),
            d: matrix(dx.at, A::DTYPE, inp),
            row_invariant: false,
        })
    }

    /// See [`crate::backend::Backend::linear_bwd_weight`].
    pub fn linear_bwd_weight(&self, dw: ViewMut<f32>, dy: View<A>, x: View<A>, out: usize, inp: usize) -> Result<()> {
        const OP: &str = "linear_bwd_weight";
        let rows = check::rows(OP, "dy", dy.len(), out)?;
        check::len(OP, "x", x.len(), &[("rows", rows), ("inp", inp)])?;
        check::len(OP, "dw", dw.len(), &[("out", out), ("inp", inp)])?;
        self.accumulate(dw, (dy.at, out), x, out, inp, rows)
    }

    /// `dw += g^T x` with `g` of the storage type at `(address, leading dimension)`: rows x out; `x` rows x inp.
    pub(super) fn accumulate(
        &self,
        dw: ViewMut<f32>,
        g: (u64, usize),
        x: View<A>,
        out: usize,
        inp: usize,
        rows: usize,
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        self.product(&MatMul {
            m: out,
            n: inp,
            k: rows,
            a: matrix(g.0, A::DTYPE, g.1),
            a_transposed: true,
            b: matrix(x.at, A::DTYPE, inp),
            b_transposed: false,
            c: Some(dw.at),
            d: matrix(dw.at, Dtype::F32, inp),
            row_invariant: false,
        })
    }

    /// See [`crate::backend::Backend::logits`].
    pub fn logits(&self, logits: ViewMut<f32>, x: View<A>, w: View<A>, dim: usize) -> Result<()> {
        const OP: &str = "logits";
        let rows = check::rows(OP, "x", x.len(), dim)?;
        let vocab = check::rows(OP, "w", w.len(), dim)?;
        check::at_least(OP, "logits", logits.len(), &[("rows", rows), ("vocab", vocab)])?;
        self.product(&MatMul {
            m: rows,
            n: vocab,
            k: dim,
            a: matrix(x.at, A::DTYPE, dim),
            a_transposed: false,
            b: matrix(w.at, A::DTYPE, dim),
            b_transposed: true,
            c: None,
            d: matrix(logits.at, Dtype::F32, vocab),
            row_invariant: true,
        })
    }

    /// `dx = g w` with `g` as in [`Gpu::accumulate`], rows x out; `w` out x inp, `dx` rows x inp.
    pub(super) fn input_gradient(
        &self,
        dx: ViewMut<A>,
        g: (u64, usize),
        w: View<A>,
        rows: usize,
        out: usize,
    ) -> Result<()> {
        let inp = w.len() / out;
        self.product(&MatMul {
            m: rows,
            n: inp,
            k: out,
            a: matrix(g.0, A::DTYPE, g.1),
            a_transposed: false,
            b: matrix(w.at, A::DTYPE, inp),
            b_transposed: false,
            c: None,
            d: matrix(dx.at, A::DTYPE, inp),
            row_invariant: false,
        })
    }

    /// See [`crate::backend::Backend::bias_fwd`].
    pub fn bias_fwd(&self, mut y: ViewMut<A>, bias: View<A>) -> Result<()> {
        const OP: &str = "bias_fwd";
        let dim = bias.len();
        let rows = check::rows(OP, "y", y.len(), dim)?;
        let (blocks, threads) = columns::<A>(dim, 256);
        let args = [y.arg(), bias.arg(), Arg::int(OP, "rows", rows)?, Arg::int(OP, "dim", dim)?];
        self.launch(OP, Grid::new([blocks, rows.min(65535)], threads), &args)
    }

    /// See [`crate::backend::Backend::bias_bwd`].
    pub fn bias_bwd(&self, dbias: ViewMut<f32>, dy: View<A>) -> Result<()> {
        const OP: &str = "bias_bwd";
        let dim = dbias.len();
        let rows = check::rows(OP, "dy", dy.len(), dim)?;
        check::at_most(OP, "dim", dim, SCRATCH)?;
        let slab = rows.div_ceil(SLABS.min(SCRATCH / dim)).max(1);
        let slabs = rows.div_ceil(slab);
        let mut scratch = lock(&self.scratch);
        let mut part = scratch.floats.view_mut(0..slabs * dim);
        let sizes = [Arg::int(OP, "rows", rows)?, Arg::int(OP, "dim", dim)?, Arg::int(OP, "slab", slab)?];
        let (blocks, threads) = columns::<A>(dim, 256);
        let args = [part.arg(), dy.arg(), sizes[0], sizes[1], sizes[2]];
        self.launch(OP, Grid::new([blocks, slabs], threads), &args)?;
        self.reduce_slabs(dbias, part.as_view(), slabs, dim)
    }
}
