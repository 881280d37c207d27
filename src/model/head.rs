//! The fused head over one chunk of a micro-batch at a time: never more than a chunk of logits alive.

use super::acts::Workspace;
use super::forward::weight;
use super::gradients::Gradients;
use super::load::Model;
use crate::backend::{Backend, HeadBwd, HeadFwd, HeadMode, Loss, Mark, PAIR_STATS, RESPONSE_STATS};
use crate::batch::Chunk;
use crate::error::{Error, Result};
use crate::loss::{LossSpec, Scales};

/// Log-probs and statistics of the chunk's predictions from [`Workspace::hidden`]; with [`HeadMode::Train`] the unscaled
/// gradient stays in [`Workspace::logits`] for [`head_backward`].
pub fn head<B: Backend>(be: &B, model: &Model<B>, ws: &mut Workspace<B>, chunk: &Chunk, mode: HeadMode) -> Result<()> {
    let (hidden, n) = (model.config.hidden_size, chunk.predictions.clone());
    be.marked(Mark::Stage("head"), || {
        be.head_fwd(HeadFwd {
            logp: be.view_mut(&mut ws.logp, n.clone()),
            entropy: be.view_mut(&mut ws.entropy, n.clone()),
            log_sum_p2: be.view_mut(&mut ws.log_sum_p2, n.clone()),
            hit: be.view_mut(&mut ws.hit, n.clone()),
            logits: be.view_mut(&mut ws.logits, 0..n.len() * model.config.vocab_size),
            x: be.view(&ws.hidden, n.start * hidden..n.end * hidden),
            w: weight(be, model, &model.table.head),
            batch: &ws.batch,
            chunk,
            mode,
        })
    })
}

/// Coefficients ([`Workspace::coef`]) and statistics of a chunk whose [`head()`] was computed; with `given` also the
/// coefficients that the micro-batch has.
pub fn loss<B: Backend>(
    be: &B,
    ws: &mut Workspace<B>,
    chunk: &Chunk,
    (spec, scales, given): (&LossSpec, Scales, bool),
) -> Result<()> {
    let (n, r, p) = (chunk.predictions.clone(), &chunk.responses, &chunk.pairs);
    be.marked(Mark::Stage("loss"), || {
        be.loss(Loss {
            coef: be.view_mut(&mut ws.coef, n.clone()),
            responses: be.view_mut(&mut ws.response_stats, r.start * RESPONSE_STATS..r.end * RESPONSE_STATS),
            pairs: be.view_mut(&mut ws.pair_stats, p.start * PAIR_STATS..p.end * PAIR_STATS),
            logp: be.view(&ws.logp, n.clone()),
            entropy: be.view(&ws.entropy, n.clone()),
            hit: be.view(&ws.hit, n.clone()),
            log_sum_p2: be.view(&ws.log_sum_p2, n),
            batch: &ws.batch,
            chunk,
            spec,
            scales,
            given,
        })
    })
}

/// From the gradient that [`head()`] left in the logits buffer and [`Workspace::coef`]: the gradient of
/// [`Workspace::hidden`] for the chunk's rows, and `+=` the head's in `grads`, the trained arena (when tied, the embedding's).
pub fn head_backward<B: Backend>(
    be: &B,
    model: &Model<B>,
    ws: &mut Workspace<B>,
    chunk: &Chunk,
    grads: &mut Gradients<B>,
) -> Result<()> {
    let (hidden, n) = (model.config.hidden_size, chunk.predictions.clone());
    let rows = n.start * hidden..n.end * hidden;
    let g = ws.grads.as_mut().ok_or_else(scoring_only)?;
    let p = &model.table.head;
    be.marked(Mark::Stage("head backward"), || {
        let op = HeadBwd {
            dx: be.view_mut(&mut g.hidden, rows.clone()),
            dw: None,
            scaled: be.view_mut(&mut g.scaled, 0..rows.len()),
            logits: be.view(&ws.logits, 0..n.len() * model.config.vocab_size),
            x: be.view(&ws.hidden, rows),
            w: weight(be, model, p),
            coef: be.view(&ws.coef, n),
        };
        grads.head(be, p, op)
    })
}

/// The error of a backward pass on a workspace that keeps nothing.
pub(super) fn scoring_only() -> Error {
    Error::usage("the workspace was made without `train`: it keeps no activations to go backward through")
}
