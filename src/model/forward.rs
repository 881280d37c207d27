//! The forward pass, written out: embedding, layers, then the final norm of the rows that predict something.

use super::acts::{Acts, LayerActs, Workspace};
use super::graphs::Key;
use super::linear::{Laid, Linear, Product};
use super::load::Model;
use super::low_rank::{self, Rows};
use super::nf4::Dense;
use super::packed::{PackedLayer, Packs};
use super::params::{LayerParams, Param};
use crate::backend::{
    AttentionFwd, Backend, BiasFwd, EmbedFwd, GatherRows, Mark, QkNormFwd, RmsNormFwd, RopeFwd, SwigluFwd, Write,
};
use crate::error::Result;

/// Computes [`Workspace::hidden`] for the micro-batch loaded last. A training workspace keeps its activations for
/// [`super::backward()`]; the other kind keeps one layer's. Both give the same bits.
pub fn forward<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>) -> Result<()> {
    be.marked(Mark::Stage("forward"), || {
        let buffers = [be.address(&model.weights), be.address(&model.rope), 0];
        let key = Key { backward: false, rows: ws.rows, drops: ws.drops(), buffers };
        let mut graphs = std::mem::take(&mut ws.graphs);
        let attention =
            |be: &B, _, layer: &mut LayerActs<B>, batch: &B::Batch, rows| attend(be, model, layer, batch, rows);
        let done = graphs.run(be, Some(key), || layers(be, model, Packs::NONE, ws, attention));
        ws.graphs = graphs;
        done?;
        predictions(be, model, Packs::NONE, ws)
    })
}

/// [`forward`] with the attention given by the caller (generation reads and writes a cache there): it turns
/// [`LayerActs::qkv`] of layer `l` into [`LayerActs::attn`]. `packs` are of the model's own weights.
pub(super) fn forward_with<B: Backend>(
    be: &B,
    model: &Model<B>,
    packs: Packs<'_, B>,
    ws: &mut Workspace<B>,
    attention: impl FnMut(&B, usize, &mut LayerActs<B>, &B::Batch, usize) -> Result<()>,
) -> Result<()> {
    layers(be, model, packs, ws, attention)?;
    predictions(be, model, packs, ws)
}

/// Embedding and layers, up to the last one's attention.
fn layers<B: Backend>(
    be: &B,
    model: &Model<B>,
    packs: Packs<'_, B>,
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
    let last = model.table.layers.len() - 1;
    for l in 0..=last {
        let params = Layer::of(model, packs, l);
        be.marked(Mark::Layer(l), || {
            qkv(be, model, &params, &mut ws.acts, l, &ws.batch, rows)?;
            let kept = ws.acts.kept(l);
            attention(be, l, &mut ws.acts.layers[kept], &ws.batch, rows)?;
            if l == last {
                return Ok(());
            }
            let rows = Rows::all(&ws.batch, rows);
            attention_output(be, model, &params, &mut ws.acts, l, rows)?;
            mlp(be, model, &params, &mut ws.acts, l, rows)?;
            mlp_output(be, model, &params, &mut ws.acts, l, rows)
        })?;
    }
    Ok(())
}

/// From the last layer's attention to the final norm, of the rows that predict something: no other is read again.
fn predictions<B: Backend>(be: &B, model: &Model<B>, packs: Packs<'_, B>, ws: &mut Workspace<B>) -> Result<()> {
    let (hidden, q_width) = (model.config.hidden_size, model.config.attn_shape().q_width());
    let (rows, n, l) = (ws.rows, ws.predictions, model.table.layers.len() - 1);
    let (acts, params) = (&mut ws.acts, Layer::of(model, packs, l));
    let [from, mid, last] = [2 * l, 2 * l + 1, 2 * l + 2].map(|point| acts.slot(point));
    let attn = be.view(&acts.layers[acts.kept(l)].attn, 0..rows * q_width);
    let out = be.view_mut(&mut acts.predicting, 0..n * q_width);
    be.gather_rows(GatherRows { out, x: attn, batch: &ws.batch, dim: q_width })?;
    let [all, predicting] = acts.resid.get_disjoint_mut([from, mid]).expect("neighbours are two buffers");
    let out = be.view_mut(predicting, 0..n * hidden);
    be.gather_rows(GatherRows { out, x: be.view(all, 0..rows * hidden), batch: &ws.batch, dim: hidden })?;
    let x = be.view(&acts.predicting, 0..n * q_width);
    let y = be.view_mut(predicting, 0..n * hidden);
    output_projection(be, model, &params, &mut acts.dense, (y, x), Write::Add)?;
    let of = Rows::predicting(&ws.batch, n);
    let both = (&mut *predicting, &acts.predicting, of);
    low_rank::forward(be, model, params.adapters()[1], &mut acts.low_rank, both)?;
    if let Some(bias) = &params.o_bias {
        be.bias_fwd(BiasFwd { y: be.view_mut(predicting, 0..n * hidden), bias: weight(be, model, bias) })?;
    }
    mlp(be, model, &params, acts, l, of)?;
    mlp_output(be, model, &params, acts, l, of)?;
    be.rmsnorm_fwd(RmsNormFwd {
        y: be.view_mut(&mut ws.hidden, 0..n * hidden),
        rstd: be.view_mut(&mut ws.rstd, 0..n),
        x: be.view(&acts.resid[last], 0..n * hidden),
        w: weight(be, model, &model.table.norm),
        eps: model.config.rms_norm_eps,
    })
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
    let params = Layer::of(model, Packs::NONE, l);
    qkv(be, model, &params, acts, l, batch, rows)?;
    let kept = acts.kept(l);
    attend(be, model, &mut acts.layers[kept], batch, rows)?;
    let rows = Rows::all(batch, rows);
    attention_output(be, model, &params, acts, l, rows)?;
    mlp(be, model, &params, acts, l, rows)
}

/// The weights of a layer, and the same ones packed.
struct Layer<'a, B: Backend> {
    params: &'a LayerParams,
    packs: Packs<'a, B>,
    l: usize,
}

impl<'a, B: Backend> Layer<'a, B> {
    fn of(model: &'a Model<B>, packs: Packs<'a, B>, l: usize) -> Self {
        Layer { params: &model.table.layers[l], packs, l }
    }

    /// How to multiply with the weight that is packed as `of`.
    fn product(&self, of: impl Fn(&PackedLayer<B>) -> &Laid<B>) -> Product<'a, B> {
        match self.packs.few {
            true => Product::Few(self.packs.find(|w| of(&w.layers[self.l]))),
            false => Product::Many,
        }
    }
}

impl<B: Backend> std::ops::Deref for Layer<'_, B> {
    type Target = LayerParams;
    fn deref(&self) -> &LayerParams {
        self.params
    }
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
    params: &Layer<'_, B>,
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
    let normed = layer.outputs.as_mut().map_or(&mut acts.narrow, |o| &mut o.norm1);
    be.rmsnorm_fwd(RmsNormFwd {
        y: be.view_mut(normed, 0..n_hidden),
        rstd: be.view_mut(&mut layer.rstd1, 0..rows),
        x: be.view(resid, 0..n_hidden),
        w: weight(be, model, &params.input_norm),
        eps: c.rms_norm_eps,
    })?;
    Linear { model, param: &params.qkv, dense: &mut acts.dense }.forward(
        be,
        params.product(|p| &p.qkv),
        (be.view_mut(&mut layer.qkv, 0..n_qkv), be.view(normed, 0..n_hidden)),
        (a.qkv_width(), c.hidden_size),
        Write::Set,
    )?;
    let both = (&mut layer.qkv, &*normed, Rows::all(batch, rows));
    low_rank::forward(be, model, params.adapters()[0], &mut acts.low_rank, both)?;
    let bias = params.qkv_bias.as_ref();
    let (Some(norm), Some(kept)) = (&params.qk_norm, &mut layer.qk_norm) else {
        return be.rope_fwd(RopeFwd {
            qkv: be.view_mut(&mut layer.qkv, 0..n_qkv),
            bias: bias.map(|bias| weight(be, model, bias)),
            table: be.view(&model.rope, 0..model.rope_len()),
            batch,
            shape: a,
        });
    };
    // The norm of queries and keys is of sums with the bias.
    if let Some(bias) = bias {
        be.bias_fwd(BiasFwd { y: be.view_mut(&mut layer.qkv, 0..n_qkv), bias: weight(be, model, bias) })?;
    }
    be.qk_norm_fwd(QkNormFwd {
        qkv: be.view_mut(&mut layer.qkv, 0..n_qkv),
        raw: be.view_mut(&mut kept.raw, 0..rows * (a.q_width() + a.kv_width())),
        rstd: be.view_mut(&mut kept.rstd, 0..rows * (a.heads + a.kv_heads)),
        w: weight(be, model, norm),
        table: be.view(&model.rope, 0..model.rope_len()),
        batch,
        shape: a,
        eps: c.rms_norm_eps,
    })
}

/// Output projection of the attention: residual point `2 l` -> `2 l + 1`.
fn attention_output<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &Layer<'_, B>,
    acts: &mut Acts<B>,
    l: usize,
    of: Rows<'_, B>,
) -> Result<()> {
    let rows = of.n;
    let (hidden, q_width) = (model.config.hidden_size, model.config.attn_shape().q_width());
    let n_hidden = rows * hidden;
    let [kept, from, to] = [acts.kept(l), acts.slot(2 * l), acts.slot(2 * l + 1)];
    let attn = be.view(&acts.layers[kept].attn, 0..rows * q_width);
    let [before, after] = acts.resid.get_disjoint_mut([from, to]).expect("neighbours are two buffers");
    let write = Write::Plus(be.view(before, 0..n_hidden));
    output_projection(be, model, params, &mut acts.dense, (be.view_mut(after, 0..n_hidden), attn), write)?;
    let both = (&mut *after, &acts.layers[kept].attn, of);
    low_rank::forward(be, model, params.adapters()[1], &mut acts.low_rank, both)?;
    match &params.o_bias {
        Some(bias) => be.bias_fwd(BiasFwd { y: be.view_mut(after, 0..n_hidden), bias: weight(be, model, bias) }),
        None => Ok(()),
    }
}

/// `y {+=, = plus +} x o^T`.
fn output_projection<'a, B: Backend>(
    be: &B,
    model: &'a Model<B>,
    params: &'a Layer<'a, B>,
    dense: &'a mut Dense<B>,
    of: (B::ViewMut<'a, B::Act>, B::View<'a, B::Act>),
    write: Write<B::View<'a, B::Act>>,
) -> Result<()> {
    let sizes = (model.config.hidden_size, model.config.attn_shape().q_width());
    Linear { model, param: &params.o, dense }.forward(be, params.product(|p| &p.o), of, sizes, write)
}

/// Norm, gates and ups of the MLP: residual point `2 l + 1` -> `gate_up` of layer `l`.
fn mlp<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &Layer<'_, B>,
    acts: &mut Acts<B>,
    l: usize,
    of: Rows<'_, B>,
) -> Result<()> {
    let rows = of.n;
    let (hidden, ffn) = (model.config.hidden_size, model.config.intermediate_size);
    let n_hidden = rows * hidden;
    let (kept, input) = (acts.kept(l), acts.slot(2 * l + 1));
    let layer = &mut acts.layers[kept];
    let normed = layer.outputs.as_mut().map_or(&mut acts.narrow, |o| &mut o.norm2);
    be.rmsnorm_fwd(RmsNormFwd {
        y: be.view_mut(normed, 0..n_hidden),
        rstd: be.view_mut(&mut layer.rstd2, 0..rows),
        x: be.view(&acts.resid[input], 0..n_hidden),
        w: weight(be, model, &params.post_norm),
        eps: model.config.rms_norm_eps,
    })?;
    Linear { model, param: &params.gate_up, dense: &mut acts.dense }.forward(
        be,
        params.product(|p| &p.gate_up),
        (be.view_mut(&mut layer.gate_up, 0..2 * rows * ffn), be.view(normed, 0..n_hidden)),
        (2 * ffn, hidden),
        Write::Set,
    )?;
    let both = (&mut layer.gate_up, &*normed, of);
    low_rank::forward(be, model, params.adapters()[2], &mut acts.low_rank, both)
}

/// SwiGLU and output projection of the MLP: residual point `2 l + 1` -> `2 l + 2`.
fn mlp_output<B: Backend>(
    be: &B,
    model: &Model<B>,
    params: &Layer<'_, B>,
    acts: &mut Acts<B>,
    l: usize,
    of: Rows<'_, B>,
) -> Result<()> {
    let rows = of.n;
    let (hidden, ffn) = (model.config.hidden_size, model.config.intermediate_size);
    let (n_hidden, n_ffn) = (rows * hidden, rows * ffn);
    let (kept, from, to) = (acts.kept(l), acts.slot(2 * l + 1), acts.slot(2 * l + 2));
    let LayerActs { gate_up, outputs, .. } = &mut acts.layers[kept];
    let act = outputs.as_mut().map_or(&mut acts.wide, |o| &mut o.act);
    let gate_up = be.view(gate_up, 0..2 * n_ffn);
    be.swiglu_fwd(SwigluFwd { act: be.view_mut(act, 0..n_ffn), gate_up, ffn })?;
    let [before, after] = acts.resid.get_disjoint_mut([from, to]).expect("neighbours are two buffers");
    Linear { model, param: &params.down, dense: &mut acts.dense }.forward(
        be,
        params.product(|p| &p.down),
        (be.view_mut(after, 0..n_hidden), be.view(act, 0..n_ffn)),
        (hidden, ffn),
        Write::Plus(be.view(before, 0..n_hidden)),
    )?;
    let both = (&mut *after, &*act, of);
    low_rank::forward(be, model, params.adapters()[3], &mut acts.low_rank, both)
}
