//! AdamW and RMSprop over the flat parameter arena, with clipping.

use super::choices::GradientChoice;
use super::clock::Clock;
use super::group::{finite_from_0, options};
use super::state::{Coded, Moments, State};
use crate::backend::rounding::Rounding;
use crate::backend::{
    Backend, Device, GradNorm, GradNormNarrow, Gradient, Mark, Rule, Update, Update8bit, UpdateBf16, code8,
};
use crate::choice;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::model::{ParamTable, Sums};
use std::ops::Range;

/// `torch.optim.RMSprop`'s default smoothing constant, which the DPO paper's code keeps.
const RMSPROP_ALPHA: f64 = 0.99;

choice! {
    /// Optimiser, by Hugging Face's name where it has one.
    pub enum OptimizerChoice: default Adamw {
        /// Decoupled weight decay (Loshchilov & Hutter 2019).
        Adamw = "adamw" | "adamw_torch" | "adamw_torch_fused",
        /// AdamW on bf16 weights without masters, its moments in bf16, all three rounded stochastically.
        AdamwBf16 = "adamw_bf16",
        /// AdamW on bf16 weights without masters, rounded stochastically, its moments in blocks of 8 bits.
        Adamw8bit = "adamw_8bit" | "adamw_bnb_8bit",
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
        /// What gradients of matrices are summed up in, from micro-batch to micro-batch.
        #[serde(skip_serializing_if = "GradientChoice::is_default")]
        gradient_dtype: GradientChoice = GradientChoice::F32;
    }
}

impl OptimizerChoice {
    /// Whether weights in bf16 are all that there is of them, with moments smaller than single precision.
    pub fn is_small(self) -> bool {
        matches!(self, Self::AdamwBf16 | Self::Adamw8bit)
    }
}

impl OptimOptions {
    /// Whether gradients of matrices are summed up in bf16.
    pub fn narrow_gradients(&self) -> bool {
        self.gradient_dtype == GradientChoice::Bf16
    }

    /// Refuses weights or gradients in bf16 where the passes compute in another precision.
    pub fn check_on<B: Backend>(&self, be: &B) -> Result<()> {
        let products = be.products();
        let (optim, gradients) = (self.optim.name(), self.gradient_dtype.name());
        let what = match self.gradient_dtype {
            _ if products == "bf16" => return Ok(()),
            _ if self.optim.is_small() => format!("`optim` {optim} keeps weights in bf16"),
            GradientChoice::Bf16 => format!("`gradient_dtype` {gradients} sums up what is multiplied in bf16"),
            GradientChoice::F32 => return Ok(()),
        };
        Err(Error::usage(format!("{what}, and products are in {products} here: give `dtype` bf16")))
    }
}

fn decay(x: &f64) -> bool {
    (0.0..1.0).contains(x)
}

fn finite_above_0(x: &f64) -> bool {
    x.is_finite() && *x > 0.0
}

/// Parameters that are updated together.
struct Place {
    /// In the arena of weights.
    at: Range<usize>,
    /// In the trained arena.
    grad: Range<usize>,
    /// Of matrices, or of vectors.
    matrix: bool,
    weight_decay: f64,
    /// Their blocks, where moments have some.
    blocks: Range<usize>,
}

/// Weights, their masters and moments.
type Learned<'a, B> = (
    &'a mut <B as Device>::Buf<<B as Device>::Act>,
    Option<&'a mut <B as Device>::Buf<<B as Device>::Acc>>,
    &'a mut Moments<B>,
);

/// The rule by which a [`State`] goes on, and the norm of its gradients. What it remembers of them is the state's.
pub struct Optimizer<B: Backend> {
    options: OptimOptions,
    /// Of stochastic rounding.
    seed: u64,
    norm: B::Buf<f64>,
    /// The norm of the last step, on its way; the flag says that nobody has read it.
    late: B::Readback,
    unread: bool,
}

impl<B: Backend> Optimizer<B> {
    /// Gives `state` moments of zero for what trains, and master weights where the backend computes in a narrower type, unless small
    /// states are asked for: the model's stored values, not their bf16 rounding.
    pub fn new(be: &B, state: &mut State<B>, options: &OptimOptions) -> Result<Self> {
        let this = Self::reserve(be, state, options)?;
        if let Some(master) = &mut state.master {
            state.model.fill_master(be, master)?;
        }
        Ok(this)
    }

    /// With the seed of stochastic rounding, which is 0 otherwise.
    pub fn seeded(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// [`Optimizer::new`] with master weights of zero.
    pub(super) fn reserve(be: &B, state: &mut State<B>, options: &OptimOptions) -> Result<Self> {
        let n = state.model.table.trained_len;
        let blocks = state.model.table.trained_blocks(code8::blocks);
        let [first, second] = ["optimizer first moment", "optimizer second moment"];
        // Whatever the byte 0 stands for: a scale of 0 makes 0 of it.
        let coded =
            |name| -> Result<Coded<B>> { Ok(Coded { codes: be.zeros(name, n)?, scales: be.zeros(name, blocks)? }) };
        state.moments = Some(match options.optim {
            OptimizerChoice::Adamw | OptimizerChoice::Rmsprop => {
                let has_first = options.optim == OptimizerChoice::Adamw;
                let first = be.zeros(first, if has_first { n } else { 0 })?;
                Moments::Full { first, has_first, second: be.zeros(second, n)? }
            }
            OptimizerChoice::AdamwBf16 => Moments::Bf16 { first: be.zeros(first, n)?, second: be.zeros(second, n)? },
            OptimizerChoice::Adamw8bit => Moments::Block8 { first: coded(first)?, second: coded(second)? },
        });
        let masters = B::MASTER_WEIGHTS && !options.optim.is_small();
        state.master = if masters { Some(be.zeros("master weights", n)?) } else { None };
        let (norm, late) = (be.zeros("gradient norm", 1)?, be.readback(1)?);
        Ok(Self { options: options.clone(), seed: 0, norm, late, unread: false })
    }

    fn rule(&self, lr: f64, weight_decay: f64, step: u64) -> Rule {
        let o = &self.options;
        match o.optim {
            OptimizerChoice::Rmsprop => Rule::RmsProp { lr, alpha: RMSPROP_ALPHA, eps: o.adam_epsilon, weight_decay },
            _ => Rule::AdamW { lr, beta1: o.adam_beta1, beta2: o.adam_beta2, eps: o.adam_epsilon, weight_decay, step },
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
        grads.settle(be, &model.table)?;
        clock.updates += 1;
        for frozen in &model.table.unused {
            be.clear(grads.vectors(be, frozen.clone()))?;
        }
        let (n, norm) = (model.table.trained_len, be.view_mut(&mut self.norm, 0..1));
        match &grads.sums {
            Sums::Full(all) => be.grad_norm(GradNorm { norm, g: be.view(all, 0..n) }),
            Sums::Narrow { matrices, vectors, split } => {
                let (matrices, vectors) = (be.view(matrices, 0..*split), be.view(vectors, 0..n - *split));
                be.grad_norm_narrow(GradNormNarrow { norm, matrices, vectors })
            }
        }?;
        be.read_back(&mut self.late, &[be.view(&self.norm, 0..1)])?;
        self.unread = true;
        let moments = moments.as_mut().expect("an optimizer gave it moments");
        for place in self.places(&model.table, moments) {
            let (at, rule) = (place.grad.clone(), (self.rule(lr, place.weight_decay, clock.updates), clock.updates));
            let learned = (&mut model.weights, master.as_mut(), &mut *moments);
            match &grads.sums {
                Sums::Full(all) => self.one(be, learned, &place, rule, be.view(all, at)),
                Sums::Narrow { matrices, .. } if place.matrix => {
                    self.one(be, learned, &place, rule, be.view(matrices, at))
                }
                Sums::Narrow { vectors, split, .. } => {
                    self.one(be, learned, &place, rule, be.view(vectors, at.start - *split..at.end - *split))
                }
            }?;
        }
        Ok(())
    }

    /// Every parameter that trains, in order: neighbours in both arenas together, unless a tensor has blocks of its own.
    fn places(&self, table: &ParamTable, moments: &Moments<B>) -> Vec<Place> {
        let of = |at: &Range<usize>, grad: &Range<usize>, decay, blocks| {
            let weight_decay = if decay { self.options.weight_decay } else { 0.0 };
            Place { at: at.clone(), grad: grad.clone(), matrix: decay, weight_decay, blocks }
        };
        if !matches!(moments, Moments::Block8 { .. }) {
            return table.runs.iter().map(|run| of(&run.at, &run.grad, run.decay, 0..0)).collect();
        }
        let (mut all, mut block) = (Vec::new(), 0);
        for spec in table.specs.iter().filter(|spec| spec.trains) {
            let blocks = block..block + code8::blocks(spec.grad.len());
            block = blocks.end;
            all.push(of(&spec.at, &spec.grad, spec.decay, blocks));
        }
        all
    }

    /// What lies at `place`, with the gradient `g`.
    fn one<'a, G: Gradient>(
        &'a self,
        be: &B,
        (weights, master, moments): Learned<'a, B>,
        place: &Place,
        (rule, step): (Rule, u64),
        g: B::View<'a, G>,
    ) -> Result<()> {
        let range = place.grad.clone();
        let (w, norm) = (be.view_mut(weights, place.at.clone()), be.view(&self.norm, 0..1));
        let (max_grad_norm, rounding) = (self.options.max_grad_norm, Rounding::of(self.seed, step, range.start as u64));
        match moments {
            Moments::Full { first, has_first, second } => {
                let m = be.view_mut(first, if *has_first { range.clone() } else { 0..0 });
                let master = master.map(|w| be.view_mut(w, range.clone()));
                let v = be.view_mut(second, range);
                be.update(Update { w, master, m, v, g, norm, max_grad_norm, rule })
            }
            Moments::Bf16 { first, second } => {
                let (m, v) = (be.view_mut(first, range.clone()), be.view_mut(second, range));
                be.update_bf16(UpdateBf16 { w, m, v, g, norm, max_grad_norm, rule, rounding })
            }
            Moments::Block8 { first, second } => {
                let blocks = place.blocks.clone();
                be.update_8bit(Update8bit {
                    w,
                    m: be.view_mut(&mut first.codes, range.clone()),
                    m_scale: be.view_mut(&mut first.scales, blocks.clone()),
                    v: be.view_mut(&mut second.codes, range),
                    v_scale: be.view_mut(&mut second.scales, blocks),
                    g,
                    norm,
                    max_grad_norm,
                    rule,
                    rounding,
                })
            }
        }
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
