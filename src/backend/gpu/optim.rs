//! Gradient norm and updates. Kernels: `kernels/optim.cu`; reference: `backend/cpu/optim.rs`.

use super::check;
use super::context::{Gpu, GpuFloat, NORM_SLABS, pack};
use super::driver::{Arg, Driver, Dtype, Grid, View, ViewMut};
use super::lock::lock;
use super::product::narrow;
use crate::backend::ops::element::Gradient;
use crate::backend::ops::optim::{Add, GradNorm, GradNormNarrow, Mix, OptimOps, Root, Rule, Squares, Update};
use crate::error::Result;

/// Slabs of the gradient's norm that are of vectors, where these lie apart.
const NORM_VECTORS: usize = 256;

impl<D: Driver, A: GpuFloat> OptimOps for Gpu<D, A> {
    fn grad_norm(&self, op: GradNorm<'_, Self>) -> Result<()> {
        const OP: &str = "grad_norm";
        let GradNorm { mut norm, g } = op;
        check::len(OP, "norm", norm.len(), &[("numbers", 1)])?;
        let n = g.len();
        let slab = n.div_ceil(NORM_SLABS).max(1).next_multiple_of(1024);
        let slabs = n.div_ceil(slab);
        let mut scratch = lock(&self.scratch);
        let mut part = scratch.doubles.view_mut(0..slabs);
        let sizes = [Arg::I64(n as i64), Arg::I64(slab as i64)];
        let grid = Grid::new([slabs, 1], 256);
        let args = [part.arg(), g.arg(), sizes[0], sizes[1]];
        // SAFETY: `part` has a number a slab of `g`.
        unsafe { self.launch_as(Dtype::F32, "sum_squares", grid, &args) }?;
        let args = [norm.arg(), part.as_view().arg(), Arg::int(OP, "slabs", slabs)?];
        // SAFETY: `part` has a number a slab, and `norm` has one, as checked above.
        unsafe { self.launch_as(Dtype::F32, "norm_of_sums", Grid::new([1, 1], 256), &args) }
    }

    fn grad_norm_narrow(&self, op: GradNormNarrow<'_, Self>) -> Result<()> {
        const OP: &str = "grad_norm_narrow";
        let GradNormNarrow { mut norm, matrices, vectors } = op;
        check::len(OP, "norm", norm.len(), &[("numbers", 1)])?;
        let most = (NORM_SLABS - NORM_VECTORS, NORM_VECTORS);
        let cut = |n: usize, most: usize| n.div_ceil(most).max(1).next_multiple_of(1024);
        let slab = (cut(matrices.len(), most.0), cut(vectors.len(), most.1));
        let slabs = (matrices.len().div_ceil(slab.0), vectors.len().div_ceil(slab.1));
        let mut scratch = lock(&self.scratch);
        let mut part = scratch.doubles.view_mut(0..slabs.0 + slabs.1);
        let parts = [
            ("sum_squares_narrow", matrices.arg(), matrices.len(), slab.0, 0..slabs.0),
            ("sum_squares", vectors.arg(), vectors.len(), slab.1, slabs.0..slabs.0 + slabs.1),
        ];
        for (kernel, g, n, slab, of) in parts.into_iter().filter(|(.., of)| !of.is_empty()) {
            let grid = Grid::new([of.len(), 1], 256);
            let args = [part.part(of).arg(), g, Arg::I64(n as i64), Arg::I64(slab as i64)];
            // SAFETY: this part of `part` has a number a slab of `g`.
            unsafe { self.launch_as(Dtype::F32, kernel, grid, &args) }?;
        }
        let args = [norm.arg(), part.as_view().arg(), Arg::int(OP, "slabs", slabs.0 + slabs.1)?];
        // SAFETY: `part` has a number a slab, and `norm` has one, as checked above.
        unsafe { self.launch_as(Dtype::F32, "norm_of_sums", Grid::new([1, 1], 256), &args) }
    }

    fn add(&self, op: Add<'_, Self>) -> Result<()> {
        const OP: &str = "add";
        let Add { mut to, from } = op;
        let n = to.len();
        check::len(OP, "from", from.len(), &[("parameters", n)])?;
        let grid = Grid::new([n.div_ceil(pack::<f32>()).div_ceil(256), 1], 256);
        // SAFETY: both have n elements, as checked above.
        unsafe { self.launch_as(Dtype::F32, OP, grid, &[to.arg(), from.arg(), Arg::I64(n as i64)]) }
    }

    fn squares(&self, op: Squares<'_, Self>) -> Result<()> {
        const OP: &str = "squares";
        let Squares { mut sums, g, block } = op;
        let (n, blocks) = (g.len(), g.len().div_ceil(block));
        check::len(OP, "sums", sums.len(), &[("blocks", blocks)])?;
        if blocks == 0 {
            return Ok(());
        }
        let args = [sums.arg(), g.arg(), Arg::I64(n as i64), Arg::I64(block as i64)];
        // SAFETY: `sums` has a number a block of `g`, as checked above.
        unsafe { self.launch_as(Dtype::F32, "sum_squares", Grid::new([blocks, 1], 256), &args) }
    }

    fn root(&self, op: Root<'_, Self>) -> Result<()> {
        const OP: &str = "root";
        let Root { mut norm, sums } = op;
        check::len(OP, "norm", norm.len(), &[("numbers", 1)])?;
        let args = [norm.arg(), sums.arg(), Arg::int(OP, "blocks", sums.len())?];
        // SAFETY: `sums` has as many numbers as it is told, and `norm` has one, as checked above.
        unsafe { self.launch_as(Dtype::F32, "norm_of_sums", Grid::new([1, 1], 256), &args) }
    }

    fn update<G: Gradient>(&self, op: Update<'_, Self, G>) -> Result<()> {
        const OP: &str = "update";
        let Update { mut w, master, mut m, mut v, g, norm, max_grad_norm, rule } = op;
        let n = w.len();
        // f32 weights are their own master.
        let needs_master = A::DTYPE != Dtype::F32;
        let given = master.as_ref().map_or(0, ViewMut::len);
        check::len(OP, "master", given, &[("parameters", if needs_master { n } else { 0 })])?;
        // RMSprop has no first moment.
        let moment = if matches!(rule, Rule::RmsProp { .. }) && m.is_empty() { n } else { m.len() };
        for (name, len) in [("m", moment), ("v", v.len()), ("g", g.len())] {
            check::len(OP, name, len, &[("parameters", n)])?;
        }
        check::len(OP, "norm", norm.len(), &[("numbers", 1)])?;
        let w_arg = w.arg();
        let master = match master {
            Some(mut master) => master.arg(),
            None => w_arg,
        };
        let grid = Grid::new([n.div_ceil(pack::<A>()).div_ceil(256), 1], 256);
        let f = |x: f64| Arg::F32(x as f32);
        let (len, max) = (Arg::I64(n as i64), f(max_grad_norm));
        match rule {
            Rule::AdamW { lr, beta1, beta2, eps, weight_decay, step } => {
                // Steps beyond i32 have long since reached the limit, 1.
                let power = |b: f64| b.powi(i32::try_from(step).unwrap_or(i32::MAX));
                let scalars = [
                    f(lr / (1.0 - power(beta1))),
                    f(1.0 - lr * weight_decay),
                    f(1.0 - beta1),
                    f(beta2),
                    f(1.0 - beta2),
                    f((1.0 - power(beta2)).sqrt()),
                    f(eps),
                    max,
                ];
                let head = [w_arg, master, m.arg(), v.arg(), g.arg(), norm.arg(), len];
                // SAFETY: weights, master, moments and gradient have n elements each, as checked above.
                unsafe {
                    self.launch(narrow::<A, G>(OP, ["adamw", "adamw_narrow"])?, grid, &[&head[..], &scalars].concat())
                }
            }
            Rule::RmsProp { lr, alpha, eps, weight_decay } => {
                let scalars = [f(lr), f(weight_decay), f(alpha), f(1.0 - alpha), f(eps), max];
                let head = [w_arg, master, v.arg(), g.arg(), norm.arg(), len];
                // SAFETY: weights, master, second moment and gradient have n elements each, as checked above.
                unsafe {
                    self.launch(
                        narrow::<A, G>(OP, ["rmsprop", "rmsprop_narrow"])?,
                        grid,
                        &[&head[..], &scalars].concat(),
                    )
                }
            }
        }
    }

    fn mix(&self, op: Mix<'_, Self>) -> Result<()> {
        const OP: &str = "mix";
        let Mix { mut w, master, from, from_master, alpha } = op;
        let n = w.len();
        check::len(OP, "from", from.len(), &[("parameters", n)])?;
        // f32 weights are their own master.
        let masters = if A::DTYPE == Dtype::F32 { 0 } else { n };
        check::len(OP, "master", master.as_ref().map_or(0, ViewMut::len), &[("parameters", masters)])?;
        check::len(OP, "from_master", from_master.as_ref().map_or(0, View::len), &[("parameters", masters)])?;
        let w_arg = w.arg();
        let master = match master {
            Some(mut master) => master.arg(),
            None => w_arg,
        };
        let from = from_master.map_or_else(|| from.arg(), |from| from.arg());
        let grid = Grid::new([n.div_ceil(pack::<A>()).div_ceil(256), 1], 256);
        let shares = [1.0 - alpha, alpha].map(|x| Arg::F32(x as f32));
        let args = [w_arg, master, from, Arg::I64(n as i64), shares[0], shares[1]];
        // SAFETY: weights and masters of both have n elements each, as checked above; an f32 store has no other masters.
        unsafe { self.launch(OP, grid, &args) }
    }
}
