//! The forward pass, written out: embedding, layers, then the final norm of the rows that predict something.

use super::acts::{Acts, LayerActs, Workspace};
use super::graphs::Key;
use super::load::Model;
use super::params::{LayerParams, Param};
use crate::backend::{
    AttentionFwd, Backend, BiasFwd, EmbedFwd, GatherRows, LinearFwd, QkNormFwd, RmsNormFwd, Rope, Rotation, SwigluFwd,
    Write,
};
use crate::error::Result;

/// Computes [`Workspace::hidden`] for the micro-batch loaded last. A training workspace keeps its activations for
/// [`super::backward()`]; the other kind keeps one layer's. Both give the same bits.
pub fn forward<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>) -> Result<()> {
    let buffers = [be.address(&model.weights), be.address(&model.rope), 0];
    let key = Key { backward: false, rows: ws.rows, buffers };
    let mut graphs = std::mem::take(&mut ws.graphs);
    let done = graphs
        .run(be, key, || layers(be, model, ws, |be, _, layer, batch, rows| attend(be, model, layer, batch, rows)));
    ws.graphs = graphs;
    done?;
    final_norm(be, model, ws)
}

/// [`forward`] with the attention given by the caller (generation reads and writes a cache there): it turns
/// [`LayerActs::qkv`] of layer `l` into [`LayerActs::attn`].
pub(super) fn forward_with<B: Backend>(
    be: &B,
    model: &Model<B>,
    ws: &mut Workspace<B>,
    attention: impl FnMut(&B, usize, &mut LayerActs<B>, &B::Batch, usize) -> Result<()>,
) -> Result<()> {
    layers(be, model, ws, attention)?;
    final_norm(be, model, ws)
}

/// Embedding and layers.
fn layers<B: Backend>(
    be: &B,
    model: &Model<B>,
    ws: &mut Workspace<B>,
    mut attention: impl FnMut(&B, usize, &mut LayerActs<B>, &B::Batch, usize) -> Result<()>,
) -> Result<()> {
    let hidden = model.config.hidden_size;
    let rows = ws.rows;
    let table = weight(be, model, &model.table.embed);
    be.embed_fwd(EmbedFwd {
        x: be.view_mut(&mut ws.acts.resid[0], 0..rows * hidden),
        table,
        batch: &ws.batch,
        dim: hidden,
    })?;
    for (l, params) in model.table.layers.iter().enumerate() {
        qkv(be, model, params, &mut ws.acts, l, &ws.batch, rows)?;
        let kept = ws.acts.kept(l);
        attention(be, l, &mut ws.acts.layers[kept], &ws.batch, rows)?;
        attention_output(be, model, params, &mut ws.acts, l, rows)?;
        mlp(be, model, params, &mut ws.acts, l, rows)?;
        mlp_output(be, model, params, &mut ws.acts, l, rows)?;
    }
    Ok(())
}

/// Computes again what [`super::backward()`] reads of layer `l`, from the layer's input.
pub(super) fn again<B: Backend>(
    be: &B,
    model: &Model<B>,
    acts: &mut Acts<B>,
    l: usize,
    batch: &B::Batch,
    rows: usize,
) -> Result<()> {
    let params = &model.table.layers[l];
    qkv(be, model, params, acts, l, batch, rows)?;
    let kept = acts.kept(l);
    attend(be, model, &mut acts.layers[kept], batch, rows)?;
    attention_output(be, model, params, acts, l, rows)?;
    mlp(be, model, params, acts, l, rows)
}

/// A weight's elements.
pub(super) fn weight<'a, B: Backend>(be: &B, model: &'a Model<B>, p: &Param) -> B::View<'a, B::Act> {
    be.view(&model.weights, p.at.clone())
}

/// Attention over the batch's segments.
pub(super) fn attend<B: Backend>(
    be: &B,
    model: &Model<B>,
    layer: &mut LayerActs<B>,
    batch: &B::Batch,
    rows: usize,
) -> Result<()> {
    let a = model.config.attn_shape();
    be.attention_fwd(AttentionFwd {
        out: be.view_mut(&mut layer.attn, 0..rows * a.q_width()),
        lse: be.view_mut(&mut layer.lse, 0..rows * a.heads),
        qkv: be.view(&layer.qkv, 0..rows * a.qkv_width()),
        batch,
        shape: a,
    })
}

/// Norm, projection, bias, q/k norm and rotary embedding: residual point `2 l` -> `qkv` of layer `l`.
fn qkv<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    acts: &mut Acts<B>,
    l: usize,
    batch: &B::Batch,
    rows: usize,
) -> Result<()> {
    let (c, a) = (&model.config, model.config.attn_shape());
    let (n_hidden, n_qkv) = (rows * c.hidden_size, rows * a.qkv_width());
    let (kept, input) = (acts.kept(l), acts.slot(2 * l));
    let layer = &mut acts.layers[kept];
    let resid = &acts.resid[input];
    be.rmsnorm_fwd(RmsNormFwd {
        y: be.view_mut(&mut acts.narrow, 0..n_hidden),
        rstd: be.view_mut(&mut layer.rstd1, 0..rows),
        x: be.view(resid, 0..n_hidden),
        w: weight(be, model, &params.input_norm),
        eps: c.rms_norm_eps,
    })?;
    be.linear_fwd(LinearFwd {
        y: be.view_mut(&mut layer.qkv, 0..n_qkv),
        x: be.view(&acts.narrow, 0..n_hidden),
        w: weight(be, model, &params.qkv),
        out: a.qkv_width(),
        inp: c.hidden_size,
        write: Write::Set,
    })?;
    if let Some(bias) = &params.qkv_bias {
        be.bias_fwd(BiasFwd { y: be.view_mut(&mut layer.qkv, 0..n_qkv), bias: weight(be, model, bias) })?;
    }
    if let (Some(norm), Some(kept)) = (&params.qk_norm, &mut layer.qk_norm) {
        be.qk_norm_fwd(QkNormFwd {
            qkv: be.view_mut(&mut layer.qkv, 0..n_qkv),
            raw: be.view_mut(&mut kept.raw, 0..rows * (a.q_width() + a.kv_width())),
            rstd: be.view_mut(&mut kept.rstd, 0..rows * (a.heads + a.kv_heads)),
            w: weight(be, model, norm),
            shape: a,
            eps: c.rms_norm_eps,
        })?;
    }
    let table = be.view(&model.rope, 0..model.rope_len());
    be.rope(Rope { qkv: be.view_mut(&mut layer.qkv, 0..n_qkv), table, batch, shape: a, direction: Rotation::Forward })
}

/// Output projection of the attention: residual point `2 l` -> `2 l + 1`.
fn attention_output<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    acts: &mut Acts<B>,
    l: usize,
    rows: usize,
) -> Result<()> {
    let (hidden, q_width) = (model.config.hidden_size, model.config.attn_shape().q_width());
    let n_hidden = rows * hidden;
    let attn = be.view(&acts.layers[acts.kept(l)].attn, 0..rows * q_width);
    let [from, to] = [acts.slot(2 * l), acts.slot(2 * l + 1)];
    let [before, after] = acts.resid.get_disjoint_mut([from, to]).expect("neighbours are two buffers");
    be.linear_fwd(LinearFwd {
        y: be.view_mut(after, 0..n_hidden),
        x: attn,
        w: weight(be, model, &params.o),
        out: hidden,
        inp: q_width,
        write: Write::Plus(be.view(before, 0..n_hidden)),
    })?;
    match &params.o_bias {
        Some(bias) => be.bias_fwd(BiasFwd { y: be.view_mut(after, 0..n_hidden), bias: weight(be, model, bias) }),
        None => Ok(()),
    }
}

/// Norm, gates and ups of the MLP: residual point `2 l + 1` -> `gate_up` of layer `l`.
fn mlp<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    acts: &mut Acts<B>,
    l: usize,
    rows: usize,
) -> Result<()> {
    let (hidden, ffn) = (model.config.hidden_size, model.config.intermediate_size);
    let n_hidden = rows * hidden;
    let (kept, input) = (acts.kept(l), acts.slot(2 * l + 1));
    let layer = &mut acts.layers[kept];
    be.rmsnorm_fwd(RmsNormFwd {
        y: be.view_mut(&mut acts.narrow, 0..n_hidden),
        rstd: be.view_mut(&mut layer.rstd2, 0..rows),
        x: be.view(&acts.resid[input], 0..n_hidden),
        w: weight(be, model, &params.post_norm),
        eps: model.config.rms_norm_eps,
    })?;
    be.linear_fwd(LinearFwd {
        y: be.view_mut(&mut layer.gate_up, 0..2 * rows * ffn),
        x: be.view(&acts.narrow, 0..n_hidden),
        w: weight(be, model, &params.gate_up),
        out: 2 * ffn,
        inp: hidden,
        write: Write::Set,
    })
}

/// SwiGLU and output projection of the MLP: residual point `2 l + 1` -> `2 l + 2`.
fn mlp_output<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    acts: &mut Acts<B>,
    l: usize,
    rows: usize,
) -> Result<()> {
    let (hidden, ffn) = (model.config.hidden_size, model.config.intermediate_size);
    let (n_hidden, n_ffn) = (rows * hidden, rows * ffn);
    let gate_up = be.view(&acts.layers[acts.kept(l)].gate_up, 0..2 * n_ffn);
    be.swiglu_fwd(SwigluFwd { act: be.view_mut(&mut acts.wide, 0..n_ffn), gate_up, ffn })?;
    let act = be.view(&acts.wide, 0..n_ffn);
    let [from, to] = [acts.slot(2 * l + 1), acts.slot(2 * l + 2)];
    let [before, after] = acts.resid.get_disjoint_mut([from, to]).expect("neighbours are two buffers");
    be.linear_fwd(LinearFwd {
        y: be.view_mut(after, 0..n_hidden),
        x: act,
        w: weight(be, model, &params.down),
        out: hidden,
        inp: ffn,
        write: Write::Plus(be.view(before, 0..n_hidden)),
    })
}

/// Gathers the predicting rows of the last residual buffer and normalises them.
fn final_norm<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>) -> Result<()> {
    let hidden = model.config.hidden_size;
    let last = ws.acts.slot(2 * model.table.layers.len());
    let n = ws.predictions;
    be.gather_rows(GatherRows {
        out: be.view_mut(&mut ws.gathered, 0..n * hidden),
        x: be.view(&ws.acts.resid[last], 0..ws.rows * hidden),
        batch: &ws.batch,
        dim: hidden,
    })?;
    be.rmsnorm_fwd(RmsNormFwd {
        y: be.view_mut(&mut ws.hidden, 0..n * hidden),
        rstd: be.view_mut(&mut ws.rstd, 0..n),
        x: be.view(&ws.gathered, 0..n * hidden),
        w: weight(be, model, &model.table.norm),
        eps: model.config.rms_norm_eps,
    })
}
