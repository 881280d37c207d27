//! The forward pass, written out: embedding, layers, then the final norm of the rows that predict something.

use super::acts::{Acts, LayerActs, Workspace};
use super::params::{LayerParams, Model, Param};
use crate::backend::{Backend, Rotation, Write};
use crate::error::Result;

/// Computes [`Workspace::hidden`] for the micro-batch loaded last. A training workspace keeps its activations for
/// [`super::backward()`]; the other kind keeps one layer's. Both give the same bits.
pub fn forward<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>) -> Result<()> {
    forward_with(be, model, ws, |be, _, layer, batch, rows| attend(be, model, layer, batch, rows))
}

/// [`forward`] with the attention given by the caller (generation reads and writes a cache there): it turns
/// [`LayerActs::qkv`] of layer `l` into [`LayerActs::attn`].
pub(super) fn forward_with<B: Backend>(
    be: &B,
    model: &Model<B>,
    ws: &mut Workspace<B>,
    mut attention: impl FnMut(&B, usize, &mut LayerActs<B>, &B::Batch, usize) -> Result<()>,
) -> Result<()> {
    let hidden = model.config.hidden_size;
    let rows = ws.rows;
    let table = weight(be, model, &model.table.embed);
    be.embed_fwd(be.view_mut(&mut ws.acts.resid[0], 0..rows * hidden), table, &ws.batch, hidden)?;
    for (l, params) in model.table.layers.iter().enumerate() {
        let kept = l % ws.acts.layers.len();
        qkv(be, model, params, &mut ws.acts, [2 * l, kept], &ws.batch, rows)?;
        attention(be, l, &mut ws.acts.layers[kept], &ws.batch, rows)?;
        output_and_mlp(be, model, params, &mut ws.acts, [2 * l, kept], rows)?;
    }
    final_norm(be, model, ws)
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
    be.attention_fwd(
        be.view_mut(&mut layer.attn, 0..rows * a.q_width()),
        be.view_mut(&mut layer.lse, 0..rows * a.heads),
        be.view(&layer.qkv, 0..rows * a.qkv_width()),
        batch,
        a,
    )
}

/// Norm, projection, bias, q/k norm and rotary embedding: residual buffer `at[0]` -> `qkv` of kept layer `at[1]`.
fn qkv<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    acts: &mut Acts<B>,
    at: [usize; 2],
    batch: &B::Batch,
    rows: usize,
) -> Result<()> {
    let (c, a) = (&model.config, model.config.attn_shape());
    let (n_hidden, n_qkv) = (rows * c.hidden_size, rows * a.qkv_width());
    let layer = &mut acts.layers[at[1]];
    let resid = &acts.resid[at[0] % acts.resid.len()];
    be.rmsnorm_fwd(
        be.view_mut(&mut acts.narrow, 0..n_hidden),
        be.view_mut(&mut layer.rstd1, 0..rows),
        be.view(resid, 0..n_hidden),
        weight(be, model, &params.input_norm),
        c.rms_norm_eps,
    )?;
    be.linear_fwd(
        be.view_mut(&mut layer.qkv, 0..n_qkv),
        be.view(&acts.narrow, 0..n_hidden),
        weight(be, model, &params.qkv),
        a.qkv_width(),
        c.hidden_size,
        Write::Set,
    )?;
    if let Some(bias) = &params.qkv_bias {
        be.bias_fwd(be.view_mut(&mut layer.qkv, 0..n_qkv), weight(be, model, bias))?;
    }
    if let (Some([wq, wk]), Some(kept)) = (&params.qk_norm, &mut layer.qk_norm) {
        be.qk_norm_fwd(
            be.view_mut(&mut layer.qkv, 0..n_qkv),
            be.view_mut(&mut kept.raw, 0..rows * (a.q_width() + a.kv_width())),
            be.view_mut(&mut kept.rstd, 0..rows * (a.heads + a.kv_heads)),
            weight(be, model, wq),
            weight(be, model, wk),
            a,
            c.rms_norm_eps,
        )?;
    }
    let table = be.view(&model.rope, 0..model.max_positions * a.head_dim);
    be.rope(be.view_mut(&mut layer.qkv, 0..n_qkv), table, batch, a, Rotation::Forward)
}

/// Output projection and MLP: residual buffers `at[0]` -> `at[0] + 1` -> `at[0] + 2`.
fn output_and_mlp<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &LayerParams,
    acts: &mut Acts<B>,
    at: [usize; 2],
    rows: usize,
) -> Result<()> {
    let (c, a) = (&model.config, model.config.attn_shape());
    let (hidden, ffn) = (c.hidden_size, c.intermediate_size);
    let (n_hidden, n_ffn) = (rows * hidden, rows * ffn);
    let layer = &mut acts.layers[at[1]];

    let (before, after) = step(&mut acts.resid, at[0]);
    be.linear_fwd(
        be.view_mut(after, 0..n_hidden),
        be.view(&layer.attn, 0..rows * a.q_width()),
        weight(be, model, &params.o),
        hidden,
        a.q_width(),
        Write::Plus(be.view(before, 0..n_hidden)),
    )?;
    if let Some(bias) = &params.o_bias {
        be.bias_fwd(be.view_mut(after, 0..n_hidden), weight(be, model, bias))?;
    }

    let (before, after) = step(&mut acts.resid, at[0] + 1);
    be.rmsnorm_fwd(
        be.view_mut(&mut acts.narrow, 0..n_hidden),
        be.view_mut(&mut layer.rstd2, 0..rows),
        be.view(before, 0..n_hidden),
        weight(be, model, &params.post_norm),
        c.rms_norm_eps,
    )?;
    be.linear_fwd(
        be.view_mut(&mut layer.gate_up, 0..2 * n_ffn),
        be.view(&acts.narrow, 0..n_hidden),
        weight(be, model, &params.gate_up),
        2 * ffn,
        hidden,
        Write::Set,
    )?;
    be.swiglu_fwd(be.view_mut(&mut acts.wide, 0..n_ffn), be.view(&layer.gate_up, 0..2 * n_ffn), ffn)?;
    be.linear_fwd(
        be.view_mut(after, 0..n_hidden),
        be.view(&acts.wide, 0..n_ffn),
        weight(be, model, &params.down),
        hidden,
        ffn,
        Write::Plus(be.view(before, 0..n_hidden)),
    )
}

/// Residual buffers number `i` and `i + 1`, to read and to write. Where not all are kept, they take turns.
fn step<T>(resid: &mut [T], i: usize) -> (&T, &mut T) {
    let n = resid.len();
    let [from, to] = resid.get_disjoint_mut([i % n, (i + 1) % n]).expect("at least two residual buffers");
    (from, to)
}

/// Gathers the predicting rows of the last residual buffer and normalises them.
fn final_norm<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>) -> Result<()> {
    let hidden = model.config.hidden_size;
    let last = 2 * model.table.layers.len() % ws.acts.resid.len();
    let n = ws.predictions;
    be.gather_rows(
        be.view_mut(&mut ws.gathered, 0..n * hidden),
        be.view(&ws.acts.resid[last], 0..ws.rows * hidden),
        &ws.batch,
        hidden,
    )?;
    be.rmsnorm_fwd(
        be.view_mut(&mut ws.hidden, 0..n * hidden),
        be.view_mut(&mut ws.rstd, 0..n),
        be.view(&ws.gathered, 0..n * hidden),
        weight(be, model, &model.table.norm),
        model.config.rms_norm_eps,
    )
}
