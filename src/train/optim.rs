//! AdamW and RMSprop over the flat parameter arena: moments, clipping, master weights.

use super::group::{finite_from_0, options};
use crate::backend::{Backend, GradNorm, Rule, Update};
use crate::choice;
use crate::error::Result;
use crate::model::Model;

/// `torch.optim.RMSprop`'s default smoothing constant, which the DPO paper's code keeps.
const RMSPROP_ALPHA: f64 = 0.99;

choice! {
    /// Optimiser, by Hugging Face's name where it has one.
    pub enum OptimizerChoice: default Adamw {
        /// Decoupled weight decay (Loshchilov & Hutter 2019).
        Adamw = "adamw",
        /// The DPO paper's choice.
        Rmsprop = "rmsprop",
    }
}

options! {
    /// The optimiser.
    pub struct OptimOptions {
        /// Decay of matrices and embeddings, not of norms and biases.
        weight_decay: f64 = 0.0, in finite_from_0, "a finite number, 0 or more";
        /// Gradient norm to clip to; 0: no clipping.
        max_grad_norm: f64 = 1.0, in finite_from_0, "a finite number, 0 or more";
        /// AdamW's first decay.
        adam_beta1: f64 = 0.9, in decay, "in [0, 1)";
        /// AdamW's second decay.
        adam_beta2: f64 = 0.999, in decay, "in [0, 1)";
        /// Added to the root of the second moment, RMSprop's too.
        adam_epsilon: f64 = 1e-8, in finite_above_0, "greater than 0";
        /// Which.
        optim: OptimizerChoice = OptimizerChoice::Adamw;
    }
}

fn decay(x: &f64) -> bool {
    (0.0..1.0).contains(x)
}

fn finite_above_0(x: &f64) -> bool {
    x.is_finite() && *x > 0.0
}

/// Optimiser state, in the layout of the parameter arena.
pub struct Optimizer<B: Backend> {
    kind: OptimizerChoice,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    steps: u64,
    m: B::Buf<B::Acc>,
    v: B::Buf<B::Acc>,
    /// fp32 master weights, where the backend computes in a narrower type.
    pub master: Option<B::Buf<B::Acc>>,
    norm: B::Buf<f64>,
    /// The norm of the last step, on its way; the flag says that nobody has read it.
    late: B::Readback,
    unread: bool,
}

impl<B: Backend> Optimizer<B> {
    /// Zero moments for `model`. Master weights start as the model's stored values, not as their bf16 rounding.
    pub fn new(be: &B, model: &Model<B>, o: &OptimOptions) -> Result<Self> {
        let mut this = Self::reserve(be, model, o)?;
        if let Some(master) = &mut this.master {
            model.fill_master(be, master)?;
        }
        Ok(this)
    }

    /// [`Optimizer::new`] with master weights of zero.
    pub(super) fn reserve(be: &B, model: &Model<B>, o: &OptimOptions) -> Result<Self> {
        let n = model.table.len;
        // RMSprop has no first moment.
        let m = if o.optim == OptimizerChoice::Adamw { n } else { 0 };
        Ok(Self {
            kind: o.optim,
            betas: (o.adam_beta1, o.adam_beta2),
            eps: o.adam_epsilon,
            weight_decay: o.weight_decay,
            max_grad_norm: o.max_grad_norm,
            steps: 0,
            m: be.zeros("optimizer first moment", m)?,
            v: be.zeros("optimizer second moment", n)?,
            master: if B::MASTER_WEIGHTS { Some(be.zeros("master weights", n)?) } else { None },
            norm: be.zeros("gradient norm", 1)?,
            late: be.readback(1)?,
            unread: false,
        })
    }

    fn rule(&self, lr: f64, weight_decay: f64) -> Rule {
        match self.kind {
            OptimizerChoice::Adamw => Rule::AdamW {
                lr,
                beta1: self.betas.0,
                beta2: self.betas.1,
                eps: self.eps,
                weight_decay,
                step: self.steps,
            },
            OptimizerChoice::Rmsprop => Rule::RmsProp { lr, alpha: RMSPROP_ALPHA, eps: self.eps, weight_decay },
        }
    }

    /// Enqueues one step at `lr`. Where the gradient norm is not finite, the device leaves everything as it was.
    ///
    /// Waits for the norm of the step before, which decides this step's number; not for anything of this one.
    pub fn step(&mut self, be: &B, model: &mut Model<B>, grads: &B::Buf<B::Acc>, lr: f64) -> Result<()> {
        self.settle(be)?;
        let n = model.table.len;
        self.steps += 1;
        be.grad_norm(GradNorm { norm: be.view_mut(&mut self.norm, 0..1), g: be.view(grads, 0..n) })?;
        be.read_back(&mut self.late, &[be.view(&self.norm, 0..1)])?;
        self.unread = true;
        // Norm weights and biases stand last in the arena and do not decay.
        let decay = model.table.decay_len;
        for (range, weight_decay) in [(0..decay, self.weight_decay), (decay..n, 0.0)] {
            let rule = self.rule(lr, weight_decay);
            let m = if self.kind == OptimizerChoice::Adamw { range.clone() } else { 0..0 };
            be.update(Update {
                w: be.view_mut(&mut model.weights, range.clone()),
                master: self.master.as_mut().map(|w| be.view_mut(w, range.clone())),
                m: be.view_mut(&mut self.m, m),
                v: be.view_mut(&mut self.v, range.clone()),
                g: be.view(grads, range),
                norm: be.view(&self.norm, 0..1),
                max_grad_norm: self.max_grad_norm,
                rule,
            })?;
        }
        Ok(())
    }

    /// The gradient norm of the last step before clipping, once it is known; NaN before the first. A step without a finite
    /// norm does not count.
    pub fn settle(&mut self, be: &B) -> Result<f64> {
        let norm = be.arrived(&mut self.late)?.first().copied().unwrap_or(f64::NAN);
        if std::mem::take(&mut self.unread) && !norm.is_finite() {
            self.steps -= 1;
        }
        Ok(norm)
    }
}
