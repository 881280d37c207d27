//! SwiGLU (Shazeer 2020): `silu(gate) * up`.

use super::device::Cpu;
use super::real::Real;
use super::scalar::Scalar;
use super::simd::simd_fn;
use super::{check, par};
use crate::backend::ops::swiglu::{SwigluBwd, SwigluFwd, SwigluOps};
use crate::error::Result;

#[inline(always)]
fn sigmoid<S: Scalar>(x: S) -> S {
    S::ONE / (S::ONE + (-x).exp())
}

simd_fn! {
    fn row_fwd<S>(act: &mut [S], gate: &[S], up: &[S]) {
        for ((a, g), u) in act.iter_mut().zip(gate).zip(up) {
            let g = g.flushed();
            *a = g * sigmoid(g) * u.flushed();
        }
    }
}
simd_fn! {
    /// [`row_bwd`], and [`row_fwd`] over `dact`.
    fn row_bwd_again<S>(gate: &mut [S], up: &mut [S], dact: &mut [S]) {
        for ((g, u), d) in gate.iter_mut().zip(up).zip(dact) {
            let (x, y, dact) = (g.flushed(), u.flushed(), d.flushed());
            let s = sigmoid(x);
            *d = x * s * y;
            (*g, *u) = (dact * y * (s * (S::ONE + x * (S::ONE - s))), dact * (x * s));
        }
    }
}
simd_fn! {
    /// `d silu / dx = s (1 + x (1 - s))`, `s = sigmoid(x)`.
    fn row_bwd<S>(gate: &mut [S], up: &mut [S], dact: &[S]) {
        for ((g, u), d) in gate.iter_mut().zip(up).zip(dact) {
            let (x, y, d) = (g.flushed(), u.flushed(), d.flushed());
            let s = sigmoid(x);
            (*g, *u) = (d * y * (s * (S::ONE + x * (S::ONE - s))), d * (x * s));
        }
    }
}

impl<S: Real> SwigluOps for Cpu<S> {
    fn swiglu_fwd(&self, op: SwigluFwd<'_, Self>) -> Result<()> {
        let level = self.level();
        let SwigluFwd { act, gate_up, ffn } = op;
        let n = check::rows("swiglu_fwd", "act", act.len(), "ffn", ffn)?;
        check::len("swiglu_fwd", "gate_up", gate_up.len(), &[("rows", n), ("2", 2), ("ffn", ffn)])?;
        par::rows(act, ffn, |t, act| {
            let (gate, up) = gate_up[2 * t * ffn..][..2 * ffn].split_at(ffn);
            row_fwd(level, act, gate, up);
        });
        Ok(())
    }

    fn swiglu_bwd(&self, op: SwigluBwd<'_, Self>) -> Result<()> {
        let level = self.level();
        let SwigluBwd { gate_up, dact, ffn, again } = op;
        let n = check::rows("swiglu_bwd", "dact", dact.len(), "ffn", ffn)?;
        check::len("swiglu_bwd", "gate_up", gate_up.len(), &[("rows", n), ("2", 2), ("ffn", ffn)])?;
        if again {
            par::rows2((gate_up, 2 * ffn), (dact, ffn), |_, row, dact| {
                let (gate, up) = row.split_at_mut(ffn);
                row_bwd_again(level, gate, up, dact);
            });
        } else {
            par::rows(gate_up, 2 * ffn, |t, row| {
                let (gate, up) = row.split_at_mut(ffn);
                row_bwd(level, gate, up, &dact[t * ffn..][..ffn]);
            });
        }
        Ok(())
    }
}
