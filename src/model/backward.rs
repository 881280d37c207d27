//! The backward pass, written out: from the gradient of the final norm's output to every parameter's.
//!
//! A kernel that turns the gradient of an output into that of its input leaves the output itself behind where the product
//! of the weight's gradient wants it (`again`), unless the forward pass has kept it ([`super::acts::Outputs`]).

use super::acts::{Acts, Grads, Keep, LayerActs, Workspace};
use super::forward::{again, weight};
use super::graphs::Key;
use super::head::scoring_only;
use super::load::Model;
use super::params::{LayerParams, Param};
use crate::backend::{
    AttentionBwd, Backend, BiasBwd, EmbedBwd, LinearBwdInput, LinearBwdWeight, Mark, QkNormBwd, RmsNormBwd, RopeBwd,
    ScatterRows, SwigluBwd, Write,
};
use crate::error::Result;

/// Adds the gradient of every parameter that trains, below the head, to `grads` (an arena in the table's layout), from
/// what [`super::forward()`] kept and [`super::head_backward`] left for every chunk. Consumes the activations.
pub fn backward<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>, grads: &mut B::Buf<B::Acc>) -> Result<()> {
    be.marked(Mark::Stage("backward"), || all(be, model, ws, grads))
}

fn all<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>, grads: &mut B::Buf<B::Acc>) -> Result<()> {
    predictions(be, model, ws, grads)?;
    let (rows, last) = (ws.rows, model.table.layers.len() - 1);
    let (acts, g) = (&mut ws.acts, ws.grads.as_mut().ok_or_else(scoring_only)?);
    let buffers = [be.address(&model.weights), be.address(&model.rope), be.address(grads)];
    ws.graphs.run(be, Key { backward: true, rows, buffers }, || {
        be.marked(Mark::Layer(last), || attention(be, model, last, acts, g, (&ws.batch, rows), grads))?;
        (0..last).rev().try_for_each(|l| {
            be.marked(Mark::Layer(l), || {
                // The last layer's activations are those that the forward pass left.
                if acts.keep == Keep::Inputs {
                    again(be, model, acts, l, &ws.batch, rows)?;
                }
                mlp(be, model, l, acts, (&mut g.resid, rows), grads)?;
                let kept = acts.kept(l);
                let (n, params) = (rows * model.config.attn_shape().q_width(), &model.table.layers[l]);
                output_weight(be, model, params, &acts.layers[kept].attn, (&g.resid, rows), grads)?;
                output_input(be, model, params, be.view_mut(&mut acts.narrow, 0..n), (&g.resid, rows))?;
                attention(be, model, l, acts, g, (&ws.batch, rows), grads)
            })
        })
    })?;
    let (dim, batch) = (model.config.hidden_size, &ws.batch);
    match gradient(be, grads, &model.table.embed) {
        Some(dtable) => be.embed_bwd(EmbedBwd { dtable, dx: be.view(&g.resid, 0..rows * dim), batch, dim }),
        None => Ok(()),
    }
}

/// From the final norm down to the last layer's attention, of the rows that predict something; then every row has the
/// gradient of its attention's output in `narrow`, and of the residual stream before in `g.resid`.
fn predictions<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>, grads: &mut B::Buf<B::Acc>) -> Result<()> {
    let (hidden, q_width) = (model.config.hidden_size, model.config.attn_shape().q_width());
    let (rows, n, l) = (ws.rows, ws.predictions, model.table.layers.len() - 1);
    let (norm, params) = (&model.table.norm, &model.table.layers[l]);
    let (acts, g) = (&mut ws.acts, ws.grads.as_mut().ok_or_else(scoring_only)?);
    // The norm's own output is not needed any more: its buffer takes the gradient of its input.
    be.rmsnorm_bwd(RmsNormBwd {
        dx: be.view_mut(&mut ws.hidden, 0..n * hidden),
        dw: gradient(be, grads, norm),
        dy: be.view_mut(&mut g.hidden, 0..n * hidden),
        x: be.view(&acts.resid[acts.slot(2 * l + 2)], 0..n * hidden),
        w: weight(be, model, norm),
        rstd: be.view(&ws.rstd, 0..n),
        write: Write::Set,
        again: false,
    })?;
    mlp(be, model, l, acts, (&mut ws.hidden, n), grads)?;
    output_weight(be, model, params, &acts.predicting, (&ws.hidden, n), grads)?;
    output_input(be, model, params, be.view_mut(&mut acts.predicting, 0..n * q_width), (&ws.hidden, n))?;
    be.scatter_rows(ScatterRows {
        dx: be.view_mut(&mut acts.narrow, 0..rows * q_width),
        dout: be.view(&acts.predicting, 0..n * q_width),
        batch: &ws.batch,
        dim: q_width,
    })?;
    be.scatter_rows(ScatterRows {
        dx: be.view_mut(&mut g.resid, 0..rows * hidden),
        dout: be.view(&ws.hidden, 0..n * hidden),
        batch: &ws.batch,
        dim: hidden,
    })
}

/// Where a weight's gradient goes; nowhere when frozen.
fn gradient<'a, B: Backend>(be: &B, grads: &'a mut B::Buf<B::Acc>, p: &Param) -> Option<B::ViewMut<'a, B::Acc>> {
    p.trains.then(|| be.view_mut(grads, p.at.clone()))
}

/// `x_out = x_mid + down(silu(gate) * up)`: gradient of `x_out` in `stream` -> gradient of `x_mid` in its place.
fn mlp<B: Backend>(
    be: &B,
    model: &Model<B>,
    l: usize,
    acts: &mut Acts<B>,
    (stream, rows): (&mut B::Buf<B::Act>, usize),
    grads: &mut B::Buf<B::Acc>,
) -> Result<()> {
    let (hidden, ffn, params) = (model.config.hidden_size, model.config.intermediate_size, &model.table.layers[l]);
    let (n_hidden, n_ffn) = (rows * hidden, rows * ffn);
    let (kept, input) = (acts.kept(l), acts.slot(2 * l + 1));
    let LayerActs { rstd2, gate_up, outputs, .. } = &mut acts.layers[kept];

    be.linear_bwd_input(LinearBwdInput {
        dx: be.view_mut(&mut acts.wide, 0..n_ffn),
        dy: be.view(stream, 0..n_hidden),
        w: weight(be, model, &params.down),
        out: hidden,
        inp: ffn,
        write: Write::Set,
    })?;
    be.swiglu_bwd(SwigluBwd {
        gate_up: be.view_mut(gate_up, 0..2 * n_ffn),
        dact: be.view_mut(&mut acts.wide, 0..n_ffn),
        ffn,
        again: params.down.trains && outputs.is_none(),
    })?;
    if let Some(dw) = gradient(be, grads, &params.down) {
        let act = outputs.as_ref().map_or(&acts.wide, |o| &o.act);
        let (dy, x) = (be.view(stream, 0..n_hidden), be.view(act, 0..n_ffn));
        be.linear_bwd_weight(LinearBwdWeight { dw, dy, x, out: hidden, inp: ffn })?;
    }

    be.linear_bwd_input(LinearBwdInput {
        dx: be.view_mut(&mut acts.narrow, 0..n_hidden),
        dy: be.view(gate_up, 0..2 * n_ffn),
        w: weight(be, model, &params.gate_up),
        out: 2 * ffn,
        inp: hidden,
        write: Write::Set,
    })?;
    be.rmsnorm_bwd(RmsNormBwd {
        dx: be.view_mut(stream, 0..n_hidden),
        dw: gradient(be, grads, &params.post_norm),
        dy: be.view_mut(&mut acts.narrow, 0..n_hidden),
        x: be.view(&acts.resid[input], 0..n_hidden),
        w: weight(be, model, &params.post_norm),
        rstd: be.view(rstd2, 0..rows),
        write: Write::Add,
        again: params.gate_up.trains && outputs.is_none(),
    })?;
    let Some(dw) = gradient(be, grads, &params.gate_up) else { return Ok(()) };
    let normed = outputs.as_ref().map_or(&acts.narrow, |o| &o.norm2);
    let (dy, x) = (be.view(gate_up, 0..2 * n_ffn), be.view(normed, 0..n_hidden));
    be.linear_bwd_weight(LinearBwdWeight { dw, dy, x, out: 2 * ffn, inp: hidden })
}

/// `x_mid = x_in + o(attn) + bias`: the gradients of `o` and its bias, from the gradient of `x_mid` in `stream`.
fn output_weight<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    attn: &B::Buf<B::Act>,
    (stream, rows): (&B::Buf<B::Act>, usize),
    grads: &mut B::Buf<B::Acc>,
) -> Result<()> {
    let (out, inp) = (model.config.hidden_size, model.config.attn_shape().q_width());
    if let Some(dw) = gradient(be, grads, &params.o) {
        let (dy, x) = (be.view(stream, 0..rows * out), be.view(attn, 0..rows * inp));
        be.linear_bwd_weight(LinearBwdWeight { dw, dy, x, out, inp })?;
    }
    match params.o_bias.as_ref().and_then(|p| gradient(be, grads, p)) {
        Some(dbias) => be.bias_bwd(BiasBwd { dbias, dy: be.view(stream, 0..rows * out) }),
        None => Ok(()),
    }
}

/// As [`output_weight`], the gradient of `attn`.
fn output_input<'a, B: Backend>(
    be: &B,
    model: &'a Model<B>,
    params: &LayerParams,
    dx: B::ViewMut<'a, B::Act>,
    (stream, rows): (&'a B::Buf<B::Act>, usize),
) -> Result<()> {
    let (out, inp) = (model.config.hidden_size, model.config.attn_shape().q_width());
    let dy = be.view(stream, 0..rows * out);
    be.linear_bwd_input(LinearBwdInput { dx, dy, w: weight(be, model, &params.o), out, inp, write: Write::Set })
}

/// From the gradient of attention's output in `narrow`, and what has reached the layer's input besides in `g.resid`: the
/// gradient of the layer's input in `g.resid`.
fn attention<B: Backend>(
    be: &B,
    model: &Model<B>,
    l: usize,
    acts: &mut Acts<B>,
    g: &mut Grads<B>,
    (batch, rows): (&B::Batch, usize),
    grads: &mut B::Buf<B::Acc>,
) -> Result<()> {
    let (hidden, a, params) = (model.config.hidden_size, model.config.attn_shape(), &model.table.layers[l]);
    let (n_hidden, n_q, n_qkv) = (rows * hidden, rows * a.q_width(), rows * a.qkv_width());
    let (kept, input) = (acts.kept(l), acts.slot(2 * l));
    let layer = &mut acts.layers[kept];

    be.attention_bwd(AttentionBwd {
        dqkv: be.view_mut(&mut acts.wide, 0..n_qkv),
        delta: be.view_mut(&mut g.delta, 0..rows * a.heads),
        partial: {
            let len = be.len(&g.partial);
            be.view_mut(&mut g.partial, 0..len)
        },
        dout: be.view(&acts.narrow, 0..n_q),
        out: be.view(&layer.attn, 0..n_q),
        lse: be.view(&layer.lse, 0..rows * a.heads),
        qkv: be.view(&layer.qkv, 0..n_qkv),
        batch,
        shape: a,
    })?;
    let bias = params.qkv_bias.as_ref();
    be.rope_bwd(RopeBwd {
        dqkv: be.view_mut(&mut acts.wide, 0..n_qkv),
        dbias: bias.filter(|_| params.qk_norm.is_none()).and_then(|p| gradient(be, grads, p)),
        table: be.view(&model.rope, 0..model.rope_len()),
        batch,
        shape: a,
    })?;
    qk_norm(be, model, params, layer, &mut acts.wide, rows, grads)?;

    if let Some(dbias) = bias.filter(|_| params.qk_norm.is_some()).and_then(|p| gradient(be, grads, p)) {
        be.bias_bwd(BiasBwd { dbias, dy: be.view(&acts.wide, 0..n_qkv) })?;
    }
    be.linear_bwd_input(LinearBwdInput {
        dx: be.view_mut(&mut acts.narrow, 0..n_hidden),
        dy: be.view(&acts.wide, 0..n_qkv),
        w: weight(be, model, &params.qkv),
        out: a.qkv_width(),
        inp: hidden,
        write: Write::Set,
    })?;
    be.rmsnorm_bwd(RmsNormBwd {
        dx: be.view_mut(&mut g.resid, 0..n_hidden),
        dw: gradient(be, grads, &params.input_norm),
        dy: be.view_mut(&mut acts.narrow, 0..n_hidden),
        x: be.view(&acts.resid[input], 0..n_hidden),
        w: weight(be, model, &params.input_norm),
        rstd: be.view(&layer.rstd1, 0..rows),
        write: Write::Add,
        again: params.qkv.trains && layer.outputs.is_none(),
    })?;
    let Some(dw) = gradient(be, grads, &params.qkv) else { return Ok(()) };
    let normed = layer.outputs.as_ref().map_or(&acts.narrow, |o| &o.norm1);
    let (dy, x) = (be.view(&acts.wide, 0..n_qkv), be.view(normed, 0..n_hidden));
    be.linear_bwd_weight(LinearBwdWeight { dw, dy, x, out: a.qkv_width(), inp: hidden })
}

/// Backward of the q/k norm, where the model has one, in place in `dqkv`.
fn qk_norm<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    layer: &LayerActs<B>,
    dqkv: &mut B::Buf<B::Act>,
    rows: usize,
    grads: &mut B::Buf<B::Acc>,
) -> Result<()> {
    let (Some(norm), Some(kept)) = (&params.qk_norm, &layer.qk_norm) else { return Ok(()) };
    let a = model.config.attn_shape();
    let n = rows * a.qkv_width();
    let raw = be.view(&kept.raw, 0..rows * (a.q_width() + a.kv_width()));
    let rstd = be.view(&kept.rstd, 0..rows * (a.heads + a.kv_heads));
    be.qk_norm_bwd(QkNormBwd {
        dqkv: be.view_mut(dqkv, 0..n),
        dw: gradient(be, grads, norm),
        raw,
        rstd,
        w: weight(be, model, norm),
        shape: a,
    })
}
