//! An adapter merged into its base: `W + scale B A`, what PEFT's `merge_and_unload` gives.

use super::dir::ModelDir;
use super::load::Model;
use super::params::{Param, ParamTable};
use crate::backend::{Backend, LinearBwdWeight};
use crate::error::{Error, Result};
use std::borrow::Cow;

/// The base of `dir` with the adapter in its weights, in f32, for rows of up to `positions` tokens; it does not remember the
/// adapter, and is exported as the base is.
///
/// Errors: `dir` has no adapter; what loading meets.
pub fn merged<B: Backend<Act = f32, Acc = f32>>(be: &B, dir: &ModelDir, positions: usize) -> Result<Model<B>> {
    let Some(adapter) = dir.adapter() else {
        return Err(Error::file(dir.path(), "has no adapter to merge"));
    };
    let mut model = Model::load(be, dir.base(), positions)?;
    let adapted = ParamTable::new(dir.config())?;
    let values = |of: &Param| -> Vec<Cow<'_, [f32]>> {
        let inside = adapted.specs.iter().filter(|s| of.at.start <= s.at.start && s.at.end <= of.at.end);
        inside.filter_map(|s| adapter.get(&s.name, None)).collect()
    };
    let upload = |values: &[f32]| -> Result<B::Buf<f32>> {
        let mut buf = be.zeros("adapter", values.len())?;
        be.upload(be.view_mut(&mut buf, 0..values.len()), values)?;
        Ok(buf)
    };
    for layer in &adapted.layers {
        let products = [&layer.qkv, &layer.o, &layer.gate_up, &layer.down];
        for (w, p) in products.into_iter().zip(layer.adapters()) {
            let Some(p) = p else { continue };
            for ((a, b), columns) in values(&p.a).into_iter().zip(values(&p.b)).zip(&p.columns) {
                // B as `rank` rows, so that the sum over rows is the product.
                let (out, scale) = (columns.len(), p.scale as f32);
                let b: Vec<f32> = (0..p.rank * out).map(|i| scale * b[i % out * p.rank + i / out]).collect();
                let (a, b) = (upload(&a)?, upload(&b)?);
                let at = w.at.start + columns.start * p.inp..w.at.start + columns.end * p.inp;
                be.linear_bwd_weight(LinearBwdWeight {
                    dw: be.view_mut(&mut model.weights, at),
                    dy: be.view(&b, 0..p.rank * out),
                    x: be.view(&a, 0..p.rank * p.inp),
                    out,
                    inp: p.inp,
                })?;
            }
        }
    }
    Ok(model)
}
