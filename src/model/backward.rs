//! The backward pass, written out: from the gradient of the final norm's output to every parameter's.
//!
//! A kernel that turns the gradient of an output into that of its input leaves the output itself behind where the product
//! of the weight's gradient wants it (`again`), unless the forward pass has kept it ([`super::acts::Outputs`]).
//!
//! It goes down to the lowest parameter that trains ([`super::ParamTable::floor`]) and not further: nothing is computed of
//! which no gradient comes.

use super::acts::{Acts, Grads, Keep, LayerActs, Workspace};
use super::forward::{again, weight};
use super::gradients::Gradients;
use super::graphs::Key;
use super::head::scoring_only;
use super::linear::Linear;
use super::load::Model;
use super::low_rank::{self, LowRank, Rows};
use super::nf4::Dense;
use super::params::{LayerParams, Place, Stage};
use crate::backend::{
    AttentionBwd, Backend, BiasBwd, Mark, QkNormBwd, RmsNormBwd, RmsNormFwd, RopeBwd, ScatterRows, SwigluBwd,
    SwigluFwd, Write,
};
use crate::error::Result;

/// Hears of each layer, from above, when its gradients and those of all above it have been enqueued whole.
pub type Told<'a, B> = &'a mut dyn FnMut(&mut Gradients<B>, usize) -> Result<()>;

/// Adds the gradient of every parameter that trains, below the head, to `grads` (the table's trained arena), from
/// what [`super::forward()`] kept and [`super::head_backward`] left for every chunk. Consumes the activations.
///
/// Where somebody is `told` how far it is, nothing of it is recorded or replayed.
pub fn backward<B: Backend>(
    be: &B,
    model: &Model<B>,
    ws: &mut Workspace<B>,
    grads: &mut Gradients<B>,
    told: Option<Told<'_, B>>,
) -> Result<()> {
    be.marked(Mark::Stage("backward"), || all(be, model, ws, grads, told))
}

fn all<B: Backend>(
    be: &B,
    model: &Model<B>,
    ws: &mut Workspace<B>,
    grads: &mut Gradients<B>,
    mut told: Option<Told<'_, B>>,
) -> Result<()> {
    let floor = model.table.floor;
    grads.settle_head(be, &model.table)?;
    if floor > Stage::Norm {
        return Ok(());
    }
    predictions(be, model, ws, grads)?;
    let (rows, last) = (ws.rows, model.table.layers.len() - 1);
    if floor > Stage::Layer(last, Place::Qkv) {
        grads.layers_are_set();
        return Ok(());
    }
    let drops = ws.drops();
    let (acts, g) = (&mut ws.acts, ws.grads.as_mut().ok_or_else(scoring_only)?);
    let all = Rows::all(&ws.batch, rows);
    let buffers = [be.address(&model.weights), be.address(&model.rope), grads.address(be)];
    let key = told.is_none().then_some(Key { backward: true, rows, drops, buffers });
    let mut tell = |grads: &mut Gradients<B>, l| told.as_mut().map_or(Ok(()), |told| told(grads, l));
    ws.graphs.run(be, key, || {
        be.marked(Mark::Layer(last), || attention(be, model, last, acts, g, all, grads))?;
        tell(grads, last)?;
        let reached = |l: &usize| floor <= Stage::Layer(*l, Place::Down);
        (0..last).rev().take_while(reached).try_for_each(|l| {
            be.marked(Mark::Layer(l), || {
                // The last layer's activations are those that the forward pass left.
                if acts.keep == Keep::Inputs {
                    again(be, model, acts, l, &ws.batch, rows)?;
                }
                mlp(be, model, l, acts, (&mut g.resid, all), grads)?;
                let kept = acts.kept(l);
                let (n, params) = (rows * model.config.attn_shape().q_width(), &model.table.layers[l]);
                let scratch = &mut acts.low_rank;
                output_weight(be, model, params, &acts.layers[kept].attn, (&g.resid, all), scratch, grads)?;
                if floor >= Stage::Layer(l, Place::Output) {
                    return Ok(());
                }
                let dx = be.view_mut(&mut acts.narrow, 0..n);
                output_input(be, model, params, &mut acts.dense, dx, (&g.resid, rows))?;
                let adapter = params.adapters()[1];
                low_rank::input(be, model, adapter, &mut acts.low_rank, (&mut acts.narrow, all))?;
                attention(be, model, l, acts, g, all, grads)
            })?;
            tell(grads, l)
        })
    })?;
    grads.layers_are_set();
    let (dim, batch) = (model.config.hidden_size, &ws.batch);
    grads.embedding(be, &model.table.embed, (be.view(&g.resid, 0..rows * dim), batch, dim))
}

/// From the final norm down to the last layer's attention, of the rows that predict something; then every row has the
/// gradient of its attention's output in `narrow`, and of the residual stream before in `g.resid`.
fn predictions<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>, grads: &mut Gradients<B>) -> Result<()> {
    let (hidden, q_width) = (model.config.hidden_size, model.config.attn_shape().q_width());
    let (rows, n, l, floor) = (ws.rows, ws.predictions, model.table.layers.len() - 1, model.table.floor);
    let (norm, params) = (&model.table.norm, &model.table.layers[l]);
    let (acts, g) = (&mut ws.acts, ws.grads.as_mut().ok_or_else(scoring_only)?);
    // The norm's own output is not needed any more: its buffer takes the gradient of its input.
    be.rmsnorm_bwd(RmsNormBwd {
        dx: be.view_mut(&mut ws.hidden, 0..n * hidden),
        dw: grads.vector(be, norm),
        dy: be.view_mut(&mut g.hidden, 0..n * hidden),
        x: be.view(&acts.resid[acts.slot(2 * l + 2)], 0..n * hidden),
        w: weight(be, model, norm),
        rstd: be.view(&ws.rstd, 0..n),
        write: Write::Set,
        again: false,
    })?;
    if floor > Stage::Layer(l, Place::Down) {
        return Ok(());
    }
    let of = Rows::predicting(&ws.batch, n);
    mlp(be, model, l, acts, (&mut ws.hidden, of), grads)?;
    output_weight(be, model, params, &acts.predicting, (&ws.hidden, of), &mut acts.low_rank, grads)?;
    if floor >= Stage::Layer(l, Place::Output) {
        return Ok(());
    }
    let dx = be.view_mut(&mut acts.predicting, 0..n * q_width);
    output_input(be, model, params, &mut acts.dense, dx, (&ws.hidden, n))?;
    low_rank::input(be, model, params.adapters()[1], &mut acts.low_rank, (&mut acts.predicting, of))?;
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

/// `x_out = x_mid + down(silu(gate) * up)`: gradient of `x_out` in `stream` -> gradient of `x_mid` in its place.
fn mlp<B: Backend>(
    be: &B,
    model: &Model<B>,
    l: usize,
    acts: &mut Acts<B>,
    (stream, of): (&mut B::Buf<B::Act>, Rows<'_, B>),
    grads: &mut Gradients<B>,
) -> Result<()> {
    let rows = of.n;
    let (hidden, ffn, params) = (model.config.hidden_size, model.config.intermediate_size, &model.table.layers[l]);
    let (n_hidden, n_ffn, floor) = (rows * hidden, rows * ffn, model.table.floor);
    let (kept, input) = (acts.kept(l), acts.slot(2 * l + 1));
    let LayerActs { rstd2, gate_up, outputs, .. } = &mut acts.layers[kept];
    let (scratch, [_, _, of_gate_up, of_down]) = (&mut acts.low_rank, params.adapters());

    if floor < Stage::Layer(l, Place::Down) {
        let both = (be.view_mut(&mut acts.wide, 0..n_ffn), be.view(stream, 0..n_hidden));
        Linear { model, param: &params.down, dense: &mut acts.dense }.input(be, both, (hidden, ffn))?;
        low_rank::backward(be, model, of_down, scratch, (stream, Some(&mut acts.wide), of))?;
        be.swiglu_bwd(SwigluBwd {
            gate_up: be.view_mut(gate_up, 0..2 * n_ffn),
            dact: be.view_mut(&mut acts.wide, 0..n_ffn),
            ffn,
            again: (params.down.trains() || of_down.is_some()) && outputs.is_none(),
        })?;
    } else {
        low_rank::backward(be, model, of_down, scratch, (stream, None, of))?;
        if outputs.is_none() {
            let (act, gate_up) = (be.view_mut(&mut acts.wide, 0..n_ffn), be.view(gate_up, 0..2 * n_ffn));
            be.swiglu_fwd(SwigluFwd { act, gate_up, ffn })?;
        }
    }
    let act = outputs.as_ref().map_or(&acts.wide, |o| &o.act);
    grads.matrix(be, &params.down, (stream, act, rows), (hidden, ffn))?;
    low_rank::weights(be, model, of_down, scratch, (stream, act, of), grads)?;
    if floor >= Stage::Layer(l, Place::Down) {
        return Ok(());
    }

    let again = (params.gate_up.trains() || of_gate_up.is_some()) && outputs.is_none();
    if floor < Stage::Layer(l, Place::GateUp) {
        let both = (be.view_mut(&mut acts.narrow, 0..n_hidden), be.view(gate_up, 0..2 * n_ffn));
        Linear { model, param: &params.gate_up, dense: &mut acts.dense }.input(be, both, (2 * ffn, hidden))?;
        low_rank::backward(be, model, of_gate_up, scratch, (gate_up, Some(&mut acts.narrow), of))?;
        be.rmsnorm_bwd(RmsNormBwd {
            dx: be.view_mut(stream, 0..n_hidden),
            dw: grads.vector(be, &params.post_norm),
            dy: be.view_mut(&mut acts.narrow, 0..n_hidden),
            x: be.view(&acts.resid[input], 0..n_hidden),
            w: weight(be, model, &params.post_norm),
            rstd: be.view(rstd2, 0..rows),
            write: Write::Add,
            again,
        })?;
    } else {
        low_rank::backward(be, model, of_gate_up, scratch, (gate_up, None, of))?;
        if again {
            be.rmsnorm_fwd(RmsNormFwd {
                y: be.view_mut(&mut acts.narrow, 0..n_hidden),
                rstd: be.view_mut(rstd2, 0..rows),
                x: be.view(&acts.resid[input], 0..n_hidden),
                w: weight(be, model, &params.post_norm),
                eps: model.config.rms_norm_eps,
            })?;
        }
    }
    let normed = outputs.as_ref().map_or(&acts.narrow, |o| &o.norm2);
    grads.matrix(be, &params.gate_up, (gate_up, normed, rows), (2 * ffn, hidden))?;
    low_rank::weights(be, model, of_gate_up, scratch, (gate_up, normed, of), grads)
}

/// `x_mid = x_in + o(attn) + bias`: the gradients of `o`, its adapter and its bias, from the gradient of `x_mid` in `stream`.
fn output_weight<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    attn: &B::Buf<B::Act>,
    (stream, of): (&B::Buf<B::Act>, Rows<'_, B>),
    scratch: &mut Option<LowRank<B>>,
    grads: &mut Gradients<B>,
) -> Result<()> {
    let rows = of.n;
    let (out, inp) = (model.config.hidden_size, model.config.attn_shape().q_width());
    grads.matrix(be, &params.o, (stream, attn, rows), (out, inp))?;
    let adapter = params.adapters()[1];
    low_rank::backward(be, model, adapter, scratch, (stream, None, of))?;
    low_rank::weights(be, model, adapter, scratch, (stream, attn, of), grads)?;
    match params.o_bias.as_ref().and_then(|p| grads.vector(be, p)) {
        Some(dbias) => be.bias_bwd(BiasBwd { dbias, dy: be.view(stream, 0..rows * out) }),
        None => Ok(()),
    }
}

/// As [`output_weight`], the gradient of `attn`.
fn output_input<'a, B: Backend>(
    be: &B,
    model: &'a Model<B>,
    params: &'a LayerParams,
    dense: &'a mut Dense<B>,
    dx: B::ViewMut<'a, B::Act>,
    (stream, rows): (&'a B::Buf<B::Act>, usize),
) -> Result<()> {
    let (out, inp) = (model.config.hidden_size, model.config.attn_shape().q_width());
    Linear { model, param: &params.o, dense }.input(be, (dx, be.view(stream, 0..rows * out)), (out, inp))
}

/// From the gradient of attention's output in `narrow`, and what has reached the layer's input besides in `g.resid`: the
/// gradient of the layer's input in `g.resid`.
fn attention<B: Backend>(
    be: &B,
    model: &Model<B>,
    l: usize,
    acts: &mut Acts<B>,
    g: &mut Grads<B>,
    of: Rows<'_, B>,
    grads: &mut Gradients<B>,
) -> Result<()> {
    let Rows { n: rows, batch, .. } = of;
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
    rotation(be, model, params, layer, &mut acts.wide, (batch, rows), grads)?;
    let (scratch, adapter) = (&mut acts.low_rank, params.adapters()[0]);
    let again = (params.qkv.trains() || adapter.is_some()) && layer.outputs.is_none();
    if model.table.floor < Stage::Layer(l, Place::Qkv) {
        let both = (be.view_mut(&mut acts.narrow, 0..n_hidden), be.view(&acts.wide, 0..n_qkv));
        Linear { model, param: &params.qkv, dense: &mut acts.dense }.input(be, both, (a.qkv_width(), hidden))?;
        low_rank::backward(be, model, adapter, scratch, (&acts.wide, Some(&mut acts.narrow), of))?;
        be.rmsnorm_bwd(RmsNormBwd {
            dx: be.view_mut(&mut g.resid, 0..n_hidden),
            dw: grads.vector(be, &params.input_norm),
            dy: be.view_mut(&mut acts.narrow, 0..n_hidden),
            x: be.view(&acts.resid[input], 0..n_hidden),
            w: weight(be, model, &params.input_norm),
            rstd: be.view(&layer.rstd1, 0..rows),
            write: Write::Add,
            again,
        })?;
    } else {
        low_rank::backward(be, model, adapter, scratch, (&acts.wide, None, of))?;
        if again {
            be.rmsnorm_fwd(RmsNormFwd {
                y: be.view_mut(&mut acts.narrow, 0..n_hidden),
                rstd: be.view_mut(&mut layer.rstd1, 0..rows),
                x: be.view(&acts.resid[input], 0..n_hidden),
                w: weight(be, model, &params.input_norm),
                eps: model.config.rms_norm_eps,
            })?;
        }
    }
    let normed = layer.outputs.as_ref().map_or(&acts.narrow, |o| &o.norm1);
    grads.matrix(be, &params.qkv, (&acts.wide, normed, rows), (a.qkv_width(), hidden))?;
    low_rank::weights(be, model, adapter, scratch, (&acts.wide, normed, of), grads)
}

/// Backward of the rotation, of the q/k norm where the model has one, and of the bias before them, in place in `dqkv`.
fn rotation<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    layer: &LayerActs<B>,
    dqkv: &mut B::Buf<B::Act>,
    (batch, rows): (&B::Batch, usize),
    grads: &mut Gradients<B>,
) -> Result<()> {
    let (a, bias) = (model.config.attn_shape(), params.qkv_bias.as_ref());
    let n = rows * a.qkv_width();
    let table = be.view(&model.rope, 0..model.rope_len());
    let (Some(norm), Some(kept)) = (&params.qk_norm, &layer.qk_norm) else {
        let dbias = bias.and_then(|p| grads.vector(be, p));
        return be.rope_bwd(RopeBwd { dqkv: be.view_mut(dqkv, 0..n), dbias, table, batch, shape: a });
    };
    let raw = be.view(&kept.raw, 0..rows * (a.q_width() + a.kv_width()));
    let rstd = be.view(&kept.rstd, 0..rows * (a.heads + a.kv_heads));
    be.qk_norm_bwd(QkNormBwd {
        dqkv: be.view_mut(dqkv, 0..n),
        dw: grads.vector(be, norm),
        raw,
        rstd,
        w: weight(be, model, norm),
        table,
        batch,
        shape: a,
    })?;
    match bias.and_then(|p| grads.vector(be, p)) {
        Some(dbias) => be.bias_bwd(BiasBwd { dbias, dy: be.view(dqkv, 0..n) }),
        None => Ok(()),
    }
}
