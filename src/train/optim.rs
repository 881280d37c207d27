//! AdamW and RMSprop over the flat parameter arena, with clipping.

use super::clock::Clock;
use super::group::{finite_from_0, options};
use super::state::{Moments, State};
use crate::backend::{Backend, GradNorm, Mark, Rule, Update};
use crate::choice;
use crate::error::Result;

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

/// The rule by which a [`State`] goes on, and the norm of its gradients. What it remembers of them is the state's.
pub struct Optimizer<B: Backend> {
    options: OptimOptions,
    norm: B::Buf<f64>,
    /// The norm of the last step, on its way; the flag says that nobody has read it.
    late: B::Readback,
    unread: bool,
}

impl<B: Backend> Optimizer<B> {
    /// Gives `state` moments of zero for what trains, and master weights where the backend computes in a narrower type: the model's stored
    /// values, not their bf16 rounding.
    pub fn new(be: &B, state: &mut State<B>, options: &OptimOptions) -> Result<Self> {
        let this = Self::reserve(be, state, options)?;
        if let Some(master) = &mut state.master {
            state.model.fill_master(be, master)?;
        }
        Ok(this)
    }

    /// [`Optimizer::new`] with master weights of zero.
    pub(super) fn reserve(be: &B, state: &mut State<B>, options: &OptimOptions) -> Result<Self> {
        let n = state.model.table.trained_len;
        // RMSprop has no first moment.
        let first = if options.optim == OptimizerChoice::Adamw { n } else { 0 };
        state.moments = Some(Moments {
            first: be.zeros("optimizer first moment", first)?,
            second: be.zeros("optimizer second moment", n)?,
            lens: [first, n],
        });
        state.master = if B::MASTER_WEIGHTS { Some(be.zeros("master weights", n)?) } else { None };
        let (norm, late) = (be.zeros("gradient norm", 1)?, be.readback(1)?);
        Ok(Self { options: options.clone(), norm, late, unread: false })
    }

    fn rule(&self, lr: f64, weight_decay: f64, step: u64) -> Rule {
        let o = &self.options;
        match o.optim {
            OptimizerChoice::Adamw => {
                Rule::AdamW { lr, beta1: o.adam_beta1, beta2: o.adam_beta2, eps: o.adam_epsilon, weight_decay, step }
            }
            OptimizerChoice::Rmsprop => Rule::RmsProp { lr, alpha: RMSPROP_ALPHA, eps: o.adam_epsilon, weight_decay },
        }
    }

    /// Enqueues one step at `lr`, from the state's gradients. Where their norm is not finite, the device leaves everything as
    /// it was.
    ///
    /// Waits for the norm of the step before, which decides this step's number; not for anything of this one.
    pub fn step(&mut self, be: &B, state: &mut State<B>, lr: f64) -> Result<()> {
        self.settle(be, &mut state.clock)?;
        be.marked(Mark::Stage("update"), || self.update(be, state, lr))
    }

    fn update(&mut self, be: &B, state: &mut State<B>, lr: f64) -> Result<()> {
        let State { model, grads, master, moments, clock, .. } = state;
        let grads = grads.as_mut().expect("a state made to train has gradients");
        let moments = moments.as_mut().expect("an optimizer gave it moments");
        let n = model.table.trained_len;
        clock.updates += 1;
        for frozen in &model.table.unused {
            be.clear(be.view_mut(grads, frozen.clone()))?;
        }
        be.grad_norm(GradNorm { norm: be.view_mut(&mut self.norm, 0..1), g: be.view(grads, 0..n) })?;
        be.read_back(&mut self.late, &[be.view(&self.norm, 0..1)])?;
        self.unread = true;
        for run in &model.table.runs {
            let (range, weight_decay) = (run.grad.clone(), if run.decay { self.options.weight_decay } else { 0.0 });
            let first = if self.options.optim == OptimizerChoice::Adamw { range.clone() } else { 0..0 };
            be.update(Update {
                w: be.view_mut(&mut model.weights, run.at.clone()),
                master: master.as_mut().map(|w| be.view_mut(w, range.clone())),
                m: be.view_mut(&mut moments.first, first),
                v: be.view_mut(&mut moments.second, range.clone()),
                g: be.view(grads, range),
                norm: be.view(&self.norm, 0..1),
                max_grad_norm: self.options.max_grad_norm,
                rule: self.rule(lr, weight_decay, clock.updates),
            })?;
        }
        Ok(())
    }

    /// The gradient norm of the last step before clipping, once it is known; NaN before the first. A step without a finite
    /// norm was no update.
    pub fn settle(&mut self, be: &B, clock: &mut Clock) -> Result<f64> {
        let norm = be.arrived(&mut self.late)?.first().copied().unwrap_or(f64::NAN);
        if std::mem::take(&mut self.unread) && !norm.is_finite() {
            clock.updates -= 1;
        }
        Ok(norm)
    }
}
