//! The backward pass, written out: from the gradient of the final norm's output to every parameter's.

use super::acts::{Acts, Grads, Keep, LayerActs, Workspace};
use super::forward::{again, weight};
use super::graphs::Key;
use super::head::scoring_only;
use super::load::Model;
use super::params::{LayerParams, Param};
use crate::backend::{
    AttentionBwd, Backend, BiasBwd, EmbedBwd, LinearBwdInput, LinearBwdWeight, QkNormBwd, RmsNormAgain, RmsNormBwd,
    Rope, Rotation, ScatterRows, SwigluBwd, SwigluFwd, Write,
};
use crate::error::Result;

/// Adds the gradient of every parameter that trains, below the head, to `grads` (an arena in the table's layout), from
/// what [`super::forward()`] kept and [`super::head_backward`] left for every chunk. Consumes the activations.
pub fn backward<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>, grads: &mut B::Buf<B::Acc>) -> Result<()> {
    let hidden = model.config.hidden_size;
    let (n, rows) = (ws.predictions * hidden, ws.rows);
    let g = ws.grads.as_mut().ok_or_else(scoring_only)?;
    let norm = &model.table.norm;
    // The norm's own output is not needed any more: its buffer takes the gradient of its input.
    be.rmsnorm_bwd(RmsNormBwd {
        dx: be.view_mut(&mut ws.hidden, 0..n),
        dw: gradient(be, grads, norm),
        dy: be.view(&g.hidden, 0..n),
        x: be.view(&ws.gathered, 0..n),
        w: weight(be, model, norm),
        rstd: be.view(&ws.rstd, 0..ws.predictions),
        write: Write::Set,
    })?;
    be.scatter_rows(ScatterRows {
        dx: be.view_mut(&mut g.resid, 0..rows * hidden),
        dout: be.view(&ws.hidden, 0..n),
        batch: &ws.batch,
        dim: hidden,
    })?;
    let buffers = [be.address(&model.weights), be.address(&model.rope), be.address(grads)];
    ws.graphs.run(be, Key { backward: true, rows, buffers }, || {
        for (l, params) in model.table.layers.iter().enumerate().rev() {
            // The last layer's activations are those that the forward pass left.
            if ws.acts.keep == Keep::Inputs && l + 1 < model.table.layers.len() {
                again(be, model, &mut ws.acts, l, &ws.batch, rows)?;
            }
            mlp(be, model, params, &mut ws.acts, l, g, rows, grads)?;
            attention(be, model, params, &mut ws.acts, l, g, &ws.batch, rows, grads)?;
        }
        Ok(())
    })?;
    if let Some(d) = gradient(be, grads, &model.table.embed) {
        be.embed_bwd(EmbedBwd { dtable: d, dx: be.view(&g.resid, 0..rows * hidden), batch: &ws.batch, dim: hidden })?;
    }
    Ok(())
}

/// Where a weight's gradient goes; nowhere when frozen.
fn gradient<'a, B: Backend>(be: &B, grads: &'a mut B::Buf<B::Acc>, p: &Param) -> Option<B::ViewMut<'a, B::Acc>> {
    p.trains.then(|| be.view_mut(grads, p.at.clone()))
}

/// `x_out = x_mid + down(silu(gate) * up)`: gradient of `x_out` in `g.resid` -> gradient of `x_mid` in its place.
#[allow(clippy::too_many_arguments)]
fn mlp<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    acts: &mut Acts<B>,
    l: usize,
    g: &mut Grads<B>,
    rows: usize,
    grads: &mut B::Buf<B::Acc>,
) -> Result<()> {
    let (hidden, ffn) = (model.config.hidden_size, model.config.intermediate_size);
    let (n_hidden, n_ffn) = (rows * hidden, rows * ffn);
    let (kept, input) = (acts.kept(l), acts.slot(2 * l + 1));
    let LayerActs { rstd2, gate_up, .. } = &mut acts.layers[kept];
    let mid = &acts.resid[input];

    if let Some(dw) = gradient(be, grads, &params.down) {
        be.swiglu_fwd(SwigluFwd {
            act: be.view_mut(&mut acts.wide, 0..n_ffn),
            gate_up: be.view(gate_up, 0..2 * n_ffn),
            ffn,
        })?;
        be.linear_bwd_weight(LinearBwdWeight {
            dw,
            dy: be.view(&g.resid, 0..n_hidden),
            x: be.view(&acts.wide, 0..n_ffn),
            out: hidden,
            inp: ffn,
        })?;
    }
    be.linear_bwd_input(LinearBwdInput {
        dx: be.view_mut(&mut acts.wide, 0..n_ffn),
        dy: be.view(&g.resid, 0..n_hidden),
        w: weight(be, model, &params.down),
        out: hidden,
        inp: ffn,
        write: Write::Set,
    })?;
    be.swiglu_bwd(SwigluBwd { gate_up: be.view_mut(gate_up, 0..2 * n_ffn), dact: be.view(&acts.wide, 0..n_ffn), ffn })?;

    if let Some(dw) = gradient(be, grads, &params.gate_up) {
        be.rmsnorm_again(RmsNormAgain {
            y: be.view_mut(&mut acts.narrow, 0..n_hidden),
            rstd: be.view(rstd2, 0..rows),
            x: be.view(mid, 0..n_hidden),
            w: weight(be, model, &params.post_norm),
        })?;
        be.linear_bwd_weight(LinearBwdWeight {
            dw,
            dy: be.view(gate_up, 0..2 * n_ffn),
            x: be.view(&acts.narrow, 0..n_hidden),
            out: 2 * ffn,
            inp: hidden,
        })?;
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
        dx: be.view_mut(&mut g.resid, 0..n_hidden),
        dw: gradient(be, grads, &params.post_norm),
        dy: be.view(&acts.narrow, 0..n_hidden),
        x: be.view(mid, 0..n_hidden),
        w: weight(be, model, &params.post_norm),
        rstd: be.view(rstd2, 0..rows),
        write: Write::Add,
    })
}

/// `x_mid = x_in + o(attention(qkv))`: gradient of `x_mid` in `g.resid` -> gradient of `x_in` in its place.
#[allow(clippy::too_many_arguments)]
fn attention<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    acts: &mut Acts<B>,
    l: usize,
    g: &mut Grads<B>,
    batch: &B::Batch,
    rows: usize,
    grads: &mut B::Buf<B::Acc>,
) -> Result<()> {
    let (hidden, a) = (model.config.hidden_size, model.config.attn_shape());
    let (n_hidden, n_q, n_qkv) = (rows * hidden, rows * a.q_width(), rows * a.qkv_width());
    let (kept, input) = (acts.kept(l), acts.slot(2 * l));
    let layer = &mut acts.layers[kept];

    if let Some(dw) = gradient(be, grads, &params.o) {
        be.linear_bwd_weight(LinearBwdWeight {
            dw,
            dy: be.view(&g.resid, 0..n_hidden),
            x: be.view(&layer.attn, 0..n_q),
            out: hidden,
            inp: a.q_width(),
        })?;
    }
    if let Some(dbias) = params.o_bias.as_ref().and_then(|p| gradient(be, grads, p)) {
        be.bias_bwd(BiasBwd { dbias, dy: be.view(&g.resid, 0..n_hidden) })?;
    }
    be.linear_bwd_input(LinearBwdInput {
        dx: be.view_mut(&mut acts.narrow, 0..n_q),
        dy: be.view(&g.resid, 0..n_hidden),
        w: weight(be, model, &params.o),
        out: hidden,
        inp: a.q_width(),
        write: Write::Set,
    })?;
    be.attention_bwd(AttentionBwd {
        dqkv: be.view_mut(&mut acts.wide, 0..n_qkv),
        delta: be.view_mut(&mut g.delta, 0..rows * a.heads),
        dout: be.view(&acts.narrow, 0..n_q),
        out: be.view(&layer.attn, 0..n_q),
        lse: be.view(&layer.lse, 0..rows * a.heads),
        qkv: be.view(&layer.qkv, 0..n_qkv),
        batch,
        shape: a,
    })?;
    be.rope(Rope {
        qkv: be.view_mut(&mut acts.wide, 0..n_qkv),
        table: be.view(&model.rope, 0..model.rope_len()),
        batch,
        shape: a,
        direction: Rotation::Backward,
    })?;
    qk_norm(be, model, params, layer, &mut acts.wide, rows, grads)?;

    if let Some(dbias) = params.qkv_bias.as_ref().and_then(|p| gradient(be, grads, p)) {
        be.bias_bwd(BiasBwd { dbias, dy: be.view(&acts.wide, 0..n_qkv) })?;
    }
    let x = &acts.resid[input];
    if let Some(dw) = gradient(be, grads, &params.qkv) {
        be.rmsnorm_again(RmsNormAgain {
            y: be.view_mut(&mut acts.narrow, 0..n_hidden),
            rstd: be.view(&layer.rstd1, 0..rows),
            x: be.view(x, 0..n_hidden),
            w: weight(be, model, &params.input_norm),
        })?;
        be.linear_bwd_weight(LinearBwdWeight {
            dw,
            dy: be.view(&acts.wide, 0..n_qkv),
            x: be.view(&acts.narrow, 0..n_hidden),
            out: a.qkv_width(),
            inp: hidden,
        })?;
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
        dy: be.view(&acts.narrow, 0..n_hidden),
        x: be.view(x, 0..n_hidden),
        w: weight(be, model, &params.input_norm),
        rstd: be.view(&layer.rstd1, 0..rows),
        write: Write::Add,
    })
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
