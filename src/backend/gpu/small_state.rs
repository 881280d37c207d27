//! AdamW with small states. Kernels: `kernels/small_state.cu`; reference: `backend/cpu/small_state.rs`.

use super::check;
use super::context::{Gpu, GpuFloat};
use super::driver::{Arg, Driver, Dtype, Grid};
use super::product::narrow;
use crate::backend::code8::{self, BLOCK};
use crate::backend::ops::element::Gradient;
use crate::backend::ops::optim::Rule;
use crate::backend::ops::small_state::{SmallStateOps, Update8bit, UpdateBf16};
use crate::backend::rounding::Rounding;
use crate::error::{Error, Result};

/// What both kernels take by value, behind the number of parameters.
fn scalars(op: &'static str, rule: Rule, max_grad_norm: f64, rounding: Rounding) -> Result<[Arg; 10]> {
    let Rule::AdamW { lr, beta1, beta2, eps, weight_decay, step } = rule else {
        return Err(Error::usage(format!("{op}: small states are AdamW's alone")));
    };
    let f = |x: f64| Arg::F32(x as f32);
    // Steps beyond i32 have long since reached the limit, 1.
    let power = |b: f64| b.powi(i32::try_from(step).unwrap_or(i32::MAX));
    Ok([
        f(lr / (1.0 - power(beta1))),
        f(1.0 - lr * weight_decay),
        f(1.0 - beta1),
        f(beta2),
        f(1.0 - beta2),
        f((1.0 - power(beta2)).sqrt()),
        f(eps),
        Arg::F64(max_grad_norm),
        Arg::I64(rounding.key.cast_signed()),
        Arg::I64(rounding.index.cast_signed()),
    ])
}

impl<D: Driver, A: GpuFloat> Gpu<D, A> {
    fn needs_bf16(&self, op: &'static str) -> Result<()> {
        match A::DTYPE {
            Dtype::Bf16 => Ok(()),
            Dtype::F32 => {
                Err(Error::usage(format!("{op}: weights are stored in f32 here, and small states need bf16")))
            }
        }
    }
}

impl<D: Driver, A: GpuFloat> SmallStateOps for Gpu<D, A> {
    fn update_bf16<G: Gradient>(&self, op: UpdateBf16<'_, Self, G>) -> Result<()> {
        const OP: &str = "update_bf16";
        let UpdateBf16 { mut w, mut m, mut v, g, norm, max_grad_norm, rule, rounding } = op;
        self.needs_bf16(OP)?;
        let n = w.len();
        for (name, len) in [("m", m.len()), ("v", v.len()), ("g", g.len())] {
            check::len(OP, name, len, &[("parameters", n)])?;
        }
        check::len(OP, "norm", norm.len(), &[("numbers", 1)])?;
        let head = [w.arg(), m.arg(), v.arg(), g.arg(), norm.arg(), Arg::I64(n as i64)];
        let args = [&head[..], &scalars(OP, rule, max_grad_norm, rounding)?].concat();
        let grid = Grid::new([n.div_ceil(8).div_ceil(256), 1], 256);
        let kernel = narrow::<A, G>(OP, ["adamw_in_bf16", "adamw_in_bf16_narrow"])?;
        // SAFETY: weights, moments and gradient have n elements each, as checked above.
        unsafe { self.launch(kernel, grid, &args) }
    }

    fn update_8bit<G: Gradient>(&self, op: Update8bit<'_, Self, G>) -> Result<()> {
        const OP: &str = "update_8bit";
        let Update8bit { mut w, mut m, mut m_scale, mut v, mut v_scale, g, norm, max_grad_norm, rule, rounding } = op;
        self.needs_bf16(OP)?;
        let n = w.len();
        for (name, len) in [("m", m.len()), ("v", v.len()), ("g", g.len())] {
            check::len(OP, name, len, &[("parameters", n)])?;
        }
        let blocks = code8::blocks(n);
        for (name, len) in [("m_scale", m_scale.len()), ("v_scale", v_scale.len())] {
            check::len(OP, name, len, &[("blocks", blocks)])?;
        }
        check::len(OP, "norm", norm.len(), &[("numbers", 1)])?;
        let head = [w.arg(), m.arg(), m_scale.arg(), v.arg(), v_scale.arg(), g.arg(), norm.arg(), Arg::I64(n as i64)];
        let args = [&head[..], &scalars(OP, rule, max_grad_norm, rounding)?].concat();
        let grid = Grid::new([blocks.div_ceil(256 * 8 / BLOCK), 1], 256);
        let kernel = narrow::<A, G>(OP, ["adamw_in_8bit", "adamw_in_8bit_narrow"])?;
        // SAFETY: weights, moments and gradient have n elements each, and scales one a block, as checked above.
        unsafe { self.launch(kernel, grid, &args) }
    }
}
