//! Bytes that a step moves besides what products and attention read and write for themselves: every operand of every other kernel
//! once, by family, as the headers of `kernels/*.cu` count them.

use crate::predict::Work;
use crate::shapes::Shape;

/// Bytes by family.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// Norms, and the residual sums that products add.
    pub norms: f64,
    /// Rotation of queries and keys, with the bias or the norm before it.
    pub rotation: f64,
    /// SwiGLU.
    pub swiglu: f64,
    /// Attention's delta.
    pub delta: f64,
    /// Embedding, predicting rows gathered and scattered.
    pub rows: f64,
    /// Logits: written, read for statistics and gradient, and as the operand of two products.
    pub logits: f64,
    /// Optimiser.
    pub optimizer: f64,
}

impl Moved {
    /// What `steps` steps over such work move with elements of `act` bytes, where the outputs of norms and SwiGLU are `kept` or
    /// left behind by the backward pass's kernels.
    pub fn of(shape: &Shape, w: &Work, act: f64, kept: bool, steps: f64) -> Moved {
        let c = shape.config();
        let a = c.attn_shape();
        let [hidden, ffn, q, qk, v, vocab] =
            [c.hidden_size, c.intermediate_size, a.q_width(), a.q_width() + a.kv_width(), a.kv_width(), c.vocab_size]
                .map(|n| n as f64);
        let again = if kept { 0.0 } else { 1.0 };
        // The MLP of the last layer, its norm, the residual sums around it and the final norm have a row for every prediction.
        let mlps = (c.num_hidden_layers as f64 - 1.0) * w.rows + w.predictions;
        let attentions = c.num_hidden_layers as f64 * w.rows;
        // Forward: read x, write y. Backward: dy, x and the residual's gradient in, that out; y out where it was not kept.
        let norm = (6.0 + again) * hidden;
        let sum = 2.0 * hidden;
        // With a norm, what was before it is kept, and read again backward.
        let turned = if c.qk_norm { 6.0 } else { 4.0 } * qk + if c.qkv_bias { 3.0 * v } else { 0.0 };
        // Logits in f32; their gradient in the storage type in their place. The second read for statistics comes from L2 at best.
        let logit = 4.0 + 8.0 + 3.0 * act;
        let weights = shape.parameters();
        Moved {
            norms: act * (norm * attentions + norm * mlps + sum * (attentions + mlps) + 5.0 * hidden * w.predictions),
            rotation: act * turned * attentions,
            swiglu: act * (8.0 + again) * ffn * mlps,
            delta: act * 2.0 * q * attentions,
            rows: act * (4.0 * hidden * w.rows + (3.0 * (hidden + q)) * w.predictions + (hidden + q) * w.rows),
            logits: logit * vocab * w.predictions,
            // AdamW reads and writes f32 weights and moments, reads gradients, writes bf16 weights where there are any; gradients
            // are also cleared and read for their norm.
            optimizer: weights * steps * if act < 4.0 { 38.0 } else { 36.0 },
        }
    }

    /// Names and bytes.
    pub fn families(&self) -> [(&'static str, f64); 7] {
        [
            ("norms", self.norms),
            ("rotation", self.rotation),
            ("swiglu", self.swiglu),
            ("delta", self.delta),
            ("rows", self.rows),
            ("logits", self.logits),
            ("optimizer", self.optimizer),
        ]
    }

    /// Elementwise kernels of the layers.
    pub fn layers(&self) -> f64 {
        self.norms + self.rotation + self.swiglu + self.delta + self.rows
    }
}
