//! AdamW and RMSprop over the flat parameter arena, with clipping.

use super::carrier::{Carrier, Packed};
use super::choices::GradientChoice;
use super::clock::Clock;
use super::exchange;
use super::group::{finite_from_0, options};
use super::levels::{Level, levels};
use super::on_device::Handed;
use super::places::{self, Kind, Piece};
use super::shares::Shares;
use super::state::{Coded, Moments, State};
use super::team::{Ranks, Team};
use crate::backend::rounding::Rounding;
use crate::backend::{
    Backend, Device, GradNorm, GradNormNarrow, Gradient, Mark, Root, Rule, Squares, Update, Update8bit, UpdateBf16,
};
use crate::choice;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::model::{Gradients, Sums};

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
    /// Sums of squares of the gradients' blocks, where these are of several lanes.
    squares: Option<B::Buf<f64>>,
    /// Where weights of other ranks come, where the devices reach each other.
    handed: Option<Handed<B>>,
    /// And where they do not.
    room: Vec<Packed>,
    /// Among whom they go.
    levels: Vec<Level>,
    /// The norm of the last step, on its way; the flag says that nobody has read it.
    late: B::Readback,
    unread: bool,
}

impl<B: Backend> Optimizer<B> {
    /// Gives `state` moments of zero for what trains, and master weights where the backend computes in a narrower type, unless small
    /// states are asked for: the model's stored values, not their bf16 rounding.
    pub fn new(be: &B, state: &mut State<B>, options: &OptimOptions) -> Result<Self> {
        Self::shared(be, state, options, Ranks::ALONE)
    }

    /// [`Optimizer::new`] of a rank's share.
    pub fn shared(be: &B, state: &mut State<B>, options: &OptimOptions, ranks: Ranks) -> Result<Self> {
        let this = Self::reserve(be, state, options, ranks)?;
        let State { model, grads, master: Some(master), shares, .. } = state else { return Ok(this) };
        let Some(Sums::Full(all)) = grads.as_mut().map(|grads| &mut grads.sums).filter(|_| shares.shared()) else {
            model.fill_master(be, master)?;
            return Ok(this);
        };
        // By way of the gradients, which have room for all of them and are zeros as yet.
        model.fill_master(be, all)?;
        for Piece { place, held: [at, _], .. } in shares.own() {
            let to = be.view_mut(master, *at..at + place.grad.len());
            be.copy(to, be.view(all, place.grad.clone()))?;
        }
        be.clear(be.view_mut(all, 0..model.table.trained_len))?;
        Ok(this)
    }

    /// With the seed of stochastic rounding, which is 0 otherwise.
    pub fn seeded(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// [`Optimizer::shared`] with master weights of zero.
    pub(super) fn reserve(be: &B, state: &mut State<B>, options: &OptimOptions, ranks: Ranks) -> Result<Self> {
        let coded = options.optim == OptimizerChoice::Adamw8bit;
        state.shares = Shares::new(&state.model.table, coded, ranks.world);
        let [n, scales] = [Kind::Elements, Kind::Scales].map(|kind| state.shares.held(kind));
        let [first, second] = ["optimizer first moment", "optimizer second moment"];
        // Whatever the byte 0 stands for: a scale of 0 makes 0 of it.
        let coded =
            |name| -> Result<Coded<B>> { Ok(Coded { codes: be.zeros(name, n)?, scales: be.zeros(name, scales)? }) };
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
        let handed = Handed::new(be, state.model.table.trained_len, ranks)?;
        let blocks = (ranks.lanes > 1).then(|| be.zeros("gradient norms of blocks", state.shares.blocks()));
        let (options, squares, room, levels) = (options.clone(), blocks.transpose()?, Vec::new(), levels(ranks));
        Ok(Self { options, seed: 0, norm, squares, handed, room, levels, late, unread: false })
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
        self.step_of(be, state, lr, &Team::ALONE)
    }

    /// [`Optimizer::step`] by the ranks of `team`: each has the sums of its own share of the gradients, and updates that; all have all
    /// of the weights afterwards.
    pub fn step_of(&mut self, be: &B, state: &mut State<B>, lr: f64, team: &Team<'_>) -> Result<()> {
        self.settle(be, &mut state.clock)?;
        be.marked(Mark::Stage("update"), || self.update(be, state, lr, team))
    }

    fn update(&mut self, be: &B, state: &mut State<B>, lr: f64, team: &Team<'_>) -> Result<()> {
        let State { model, grads, master, moments, shares, clock, .. } = state;
        let grads = grads.as_mut().expect("a state made to train has gradients");
        grads.settle(be, &model.table)?;
        clock.updates += 1;
        for frozen in &model.table.unused {
            be.clear(grads.vectors(be, frozen.clone()))?;
        }
        self.norm(be, (grads, model.table.trained_len), shares, team)?;
        be.read_back(&mut self.late, &[be.view(&self.norm, 0..1)])?;
        self.unread = true;
        let moments = moments.as_mut().expect("an optimizer gave it moments");
        let (mut learned, at) = ((&mut model.weights, master.as_mut(), moments), (lr, clock.updates));
        if !shares.shared() {
            return shares.buckets().try_for_each(|k| self.bucket(be, &mut learned, (shares, k), &grads.sums, at));
        }
        match self.handed.take() {
            Some(mut handed) => {
                for k in shares.buckets() {
                    self.bucket(be, &mut learned, (shares, k), &grads.sums, at)?;
                    be.beside(|| handed.add(be, team, (&self.levels, shares, k), learned.0))?;
                }
                handed.end(be, team)?;
                self.handed = Some(handed);
                Ok(())
            }
            None => self.by_host(be, learned, shares, team, (&grads.sums, at)),
        }
    }

    /// Updates bucket by bucket; each travels to the other ranks, and theirs come, while the next is updated.
    fn by_host(
        &mut self,
        be: &B,
        mut learned: Learned<'_, B>,
        shares: &Shares,
        team: &Team<'_>,
        (grads, at): (&Sums<B>, (f64, u64)),
    ) -> Result<()> {
        let (room, comm, levels) = (std::mem::take(&mut self.room), team.comm, self.levels.clone());
        let hand_out = move |parcel: &mut _| exchange::hand_out(comm, (&levels, size_of::<B::Act>()), parcel);
        std::thread::scope(|scope| {
            let (mut carrier, ends) = Carrier::start(scope, comm, room, hand_out)?;
            for k in shares.buckets() {
                self.bucket(be, &mut learned, (shares, k), grads, at)?;
                let room = carrier.room(|parcel| exchange::unpack_weights(be, shares, parcel, learned.0))?;
                carrier.send(exchange::pack_weights(be, (shares, k), learned.0, room)?)?;
            }
            self.room = carrier.finish(|parcel| exchange::unpack_weights(be, shares, parcel, learned.0))?;
            ends.well();
            Ok(())
        })
    }

    /// Updates what this rank has of bucket `k`.
    fn bucket(
        &self,
        be: &B,
        (weights, master, moments): &mut Learned<'_, B>,
        (shares, k): (&Shares, usize),
        grads: &Sums<B>,
        (lr, updates): (f64, u64),
    ) -> Result<()> {
        for piece in shares.own_of(k) {
            let (at, decay) = (piece.place.grad.clone(), piece.place.decay);
            let weight_decay = if decay { self.options.weight_decay } else { 0.0 };
            let rule = (self.rule(lr, weight_decay, updates), updates);
            let learned = (&mut **weights, master.as_deref_mut(), &mut **moments);
            match grads {
                Sums::Full(all) => self.one(be, learned, piece, rule, be.view(all, at)),
                Sums::Narrow { matrices, .. } if decay => self.one(be, learned, piece, rule, be.view(matrices, at)),
                Sums::Narrow { vectors, split, .. } => {
                    self.one(be, learned, piece, rule, be.view(vectors, at.start - *split..at.end - *split))
                }
            }?;
        }
        Ok(())
    }

    /// The norm of the gradients: of several lanes' block by block, each rank having its share of them.
    fn norm(&mut self, be: &B, (grads, n): (&Gradients<B>, usize), shares: &Shares, team: &Team<'_>) -> Result<()> {
        let norm = be.view_mut(&mut self.norm, 0..1);
        match (&grads.sums, &mut self.squares) {
            (Sums::Full(all), Some(squares)) => {
                for Piece { place, blocks, .. } in shares.own() {
                    let (sums, g) = (be.view_mut(squares, blocks.clone()), be.view(all, place.grad.clone()));
                    be.squares(Squares { sums, g, block: places::BLOCK })?;
                }
                exchange::complete(be, team, shares, squares)?;
                be.root(Root { norm, sums: be.view(squares, 0..shares.blocks()) })
            }
            (Sums::Full(all), None) => be.grad_norm(GradNorm { norm, g: be.view(all, 0..n) }),
            (Sums::Narrow { matrices, vectors, split }, _) => {
                let (matrices, vectors) = (be.view(matrices, 0..*split), be.view(vectors, 0..n - *split));
                be.grad_norm_narrow(GradNormNarrow { norm, matrices, vectors })
            }
        }
    }

    /// What lies at `piece`, with the gradient `g`.
    fn one<'a, G: Gradient>(
        &'a self,
        be: &B,
        (weights, master, moments): Learned<'a, B>,
        Piece { place, held: [at, scales], .. }: &Piece,
        (rule, step): (Rule, u64),
        g: B::View<'a, G>,
    ) -> Result<()> {
        let range = *at..at + place.grad.len();
        let (w, norm) = (be.view_mut(weights, place.at.clone()), be.view(&self.norm, 0..1));
        let rounding = Rounding::of(self.seed, step, place.grad.start as u64);
        let max_grad_norm = self.options.max_grad_norm;
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
                let blocks = *scales..scales + place.scales.len();
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
