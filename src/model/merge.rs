//! An adapter merged into its base: `W + scale B A`, what PEFT's `merge_and_unload` gives.

use super::config::ModelConfig;
use super::dir::ModelDir;
use super::linear::weight;
use super::load::Model;
use super::nf4;
use super::params::{Param, ParamTable};
use crate::backend::{Backend, LinearBwdWeight, Write};
use crate::error::{Error, Result};
use std::borrow::Cow;

/// The base of `dir` with the adapter in its weights, in f32: of those in four bits, in the numbers that they stand for, as
/// PEFT does; for rows of up to `positions` tokens; it does not remember the
/// adapter, and is exported as the base is.
///
/// Errors: `dir` has no adapter; what loading meets.
pub fn merged<B: Backend<Act = f32, Acc = f32>>(be: &B, dir: &ModelDir, positions: usize) -> Result<Model<B>> {
    let Some(adapter) = dir.adapter() else {
        return Err(Error::file(dir.path(), "has no adapter to merge"));
    };
    let mut model = dense(be, dir.base(), positions)?;
    let adapted = ParamTable::new(&ModelConfig { quantized: None, ..dir.config().clone() })?;
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
                    write: Write::Add,
                })?;
            }
        }
    }
    Ok(model)
}

/// A model with dense weights: those in four bits as the numbers that they stand for.
fn dense<B: Backend>(be: &B, dir: &ModelDir, positions: usize) -> Result<Model<B>> {
    let mut model = Model::load(be, &dir.dequantized(), positions)?;
    if dir.config().quantized.is_none() {
        return Ok(model);
    }
    let held = Model::load(be, dir, 1)?;
    let mut scratch = nf4::scratch(be, &held.table)?;
    for (to, from) in model.table.layers.iter().zip(&held.table.layers) {
        let all = [(&to.qkv, &from.qkv), (&to.o, &from.o), (&to.gate_up, &from.gate_up), (&to.down, &from.down)];
        for (to, from) in all {
            let w = weight(be, &held, from, &mut scratch)?;
            be.copy(be.view_mut(&mut model.weights, to.at.clone()), w)?;
        }
    }
    Ok(model)
}
