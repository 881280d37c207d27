//! How much memory a run takes, told before it takes any.
//!
//! The run's own constructors are called on a backend that only counts ([`crate::backend::Device::counting`]), so that a plan cannot drift
//! from what is allocated later. A plan is compared with what the device has free; where it does not fit, the error
//! names the largest token budget that would.

use super::checkpoint::{BUFFER, PIECE, elements};
use super::engine::{Engine, Purpose};
use super::exchange;
use super::lane_sums::LaneSums;
use super::optim::{OptimOptions, Optimizer};
use super::state::{Section, State};
use super::synced;
use super::team::Ranks;
use super::trained::{Learns, Trained};
use crate::backend::Backend;
use crate::batch::Capacity;
use crate::data::plan::Planner;
use crate::error::{Error, Result};
use crate::model::{GenerateOptions, Model, ModelConfig, ParamTable, generate};
use crate::observe::{Event, InUse, Observe};
use crate::units;

/// Token budgets that an error suggests are multiples of this.
pub(super) const BUDGET_STEP: usize = 64;
/// What a run takes beside its buffers: thread stacks, the allocator's own, batches in flight. The share of the plan and
/// the bytes beside it are above anything measured (docs/memory.md).
const UNPLANNED: (usize, usize) = (50, 64 << 20);

/// Memory of one phase of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Name and bytes of every buffer, in order of allocation.
    pub table: Vec<(String, usize)>,
    /// Most bytes that ops keep for themselves beside it.
    pub scratch: usize,
    /// What a checkpoint takes, of a run that saves some.
    pub save: Option<SavePlan>,
}

/// What a checkpoint takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavePlan {
    /// Bytes on the disk.
    pub disk: u64,
    /// Bytes on the host while it is saved: a piece of the state at a time. Within what [`MemoryPlan::needed`] adds.
    pub memory: usize,
}

impl MemoryPlan {
    /// A model with gradients, the activations that `purpose` keeps, and an optimiser's state.
    pub fn training<B: Backend>(
        be: &B,
        model: &ModelConfig,
        positions: usize,
        capacity: Capacity,
        (purpose, optim): (Purpose, &OptimOptions),
    ) -> Result<Self> {
        let learns = Learns { optim, trained: &Trained::All, synced: false, ranks: Ranks::ALONE };
        Self::training_as(be, model, positions, capacity, (purpose, learns))
    }

    /// [`MemoryPlan::training`] of what `learns` says: with room for what trains alone, and for a synced reference.
    pub fn training_as<B: Backend>(
        be: &B,
        model: &ModelConfig,
        positions: usize,
        capacity: Capacity,
        (purpose, learns): (Purpose, Learns<'_>),
    ) -> Result<Self> {
        let counting = be.counting();
        let mut policy = Model::counted(&counting, model, positions)?;
        learns.trained.apply(&mut policy.table)?;
        let mut engine = Engine::for_optimizer(&counting, policy, capacity, purpose, learns.optim)?;
        let (trained, ranks) = (engine.state.model.table.trained_len, learns.ranks);
        LaneSums::new(&counting, trained, ranks)?;
        Optimizer::reserve(&counting, &mut engine.state, learns.optim, ranks)?;
        if learns.synced {
            synced::reserve(&counting, &mut engine.state)?;
        }
        let save = SavePlan::of(&counting, &engine.state);
        let mut plan = Self { save: Some(save), ..Self::of(be, &counting, model, capacity) };
        // Where devices reach each other, their room is in the table already.
        if be.joined().is_none() {
            let packed = ["gradients between ranks", "weights between ranks"].into_iter();
            let packed = packed.zip(exchange::packed::<B>(&engine.state.shares, ranks));
            plan.table.extend(packed.filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)));
        }
        Ok(plan)
    }

    /// Of [`MemoryPlan::training_as`] what does not depend on the capacity: the model and its state, as they lie from the first
    /// step to the last.
    pub fn held<B: Backend>(be: &B, model: &ModelConfig, positions: usize, learns: Learns<'_>) -> Result<Self> {
        let counting = be.counting();
        let mut policy = Model::counted(&counting, model, positions)?;
        learns.trained.apply(&mut policy.table)?;
        let mut state = State::training(&counting, policy, learns.optim.narrow_gradients())?;
        Optimizer::reserve(&counting, &mut state, learns.optim, learns.ranks)?;
        if learns.synced {
            synced::reserve(&counting, &mut state)?;
        }
        Ok(Self { table: counting.memory_table(), scratch: 0, save: None })
    }

    /// The parameters and the sections of a state to train, as [`MemoryPlan::training_as`] has it.
    pub fn sections<B: Backend>(be: &B, model: &ModelConfig, learns: Learns<'_>) -> Result<(ParamTable, Vec<Section>)> {
        let counting = be.counting();
        let mut policy = Model::counted(&counting, model, 1)?;
        learns.trained.apply(&mut policy.table)?;
        let mut state = State::training(&counting, policy, learns.optim.narrow_gradients())?;
        Optimizer::reserve(&counting, &mut state, learns.optim, learns.ranks)?;
        if learns.synced {
            synced::reserve(&counting, &mut state)?;
        }
        Ok((state.model.table.clone(), state.sections(&counting)))
    }

    /// A model that scores.
    pub fn scoring<B: Backend>(be: &B, model: &ModelConfig, positions: usize, capacity: Capacity) -> Result<Self> {
        let counting = be.counting();
        engine(&counting, model, positions, capacity, Purpose::Score)?;
        Ok(Self::of(be, &counting, model, capacity))
    }

    /// A model alone.
    pub fn model<B: Backend>(be: &B, model: &ModelConfig, positions: usize) -> Result<Self> {
        let counting = be.counting();
        Model::counted(&counting, model, positions)?;
        Ok(Self { table: counting.memory_table(), scratch: 0, save: None })
    }

    /// A model that continues prompts, and how many sequences at a time.
    pub fn generating<B: Backend>(
        be: &B,
        model: &ModelConfig,
        positions: usize,
        prompts: &[Vec<u32>],
        o: &GenerateOptions,
    ) -> Result<(Self, usize)> {
        let counting = be.counting();
        let policy = Model::counted(&counting, model, positions)?;
        let room = generate::counted(&counting, &policy, prompts, o)?;
        let scratch = be.scratch(room.slots, model.hidden_size) + room.host_bytes;
        Ok((Self { table: counting.memory_table(), scratch, save: None }, room.sequences))
    }

    fn of<B: Backend>(be: &B, counting: &B, model: &ModelConfig, capacity: Capacity) -> Self {
        let rows = capacity.slots.max(capacity.predictions);
        Self { table: counting.memory_table(), scratch: be.scratch(rows, model.hidden_size), save: None }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.table.iter().map(|(_, bytes)| bytes).sum::<usize>() + self.scratch
    }

    /// What the device must have free: the plan, 2 % of it and 64 MiB.
    pub fn needed(&self) -> usize {
        let (share, fixed) = UNPLANNED;
        self.bytes() + self.bytes() / share + fixed
    }

    /// Tells what the plan comes to, and beside what.
    pub fn tell<B: Backend>(&self, be: &B, observe: &mut dyn Observe) -> Result<()> {
        let mut table = self.table.clone();
        if self.scratch > 0 {
            table.push(("scratch of ops, at most".into(), self.scratch));
        }
        let device = be.memory()?.map(|m| InUse { used: m.used, free: m.free });
        observe.tell(&Event::Memory { parts: &table, device })?;
        let Some(SavePlan { disk, memory }) = self.save else { return Ok(()) };
        let (disk, memory) = (units::bytes(disk as usize), units::bytes(memory));
        observe.tell(&Event::Note(&format!(
            "a checkpoint takes {disk} on the disk, and {memory} of memory while it is saved"
        )))
    }
}

impl SavePlan {
    fn of<B: Backend>(counting: &B, state: &State<B>) -> Self {
        let lasting = state.sections(counting).into_iter().filter(|s| s.lasting);
        let (table, len) = (&state.model.table, state.model.table.len);
        let (mut disk, mut widest) = (0, 0);
        for s in lasting {
            disk += (elements(table, s.part) * s.width) as u64;
            widest = widest.max(s.width);
        }
        Self { disk, memory: PIECE.min(len) * widest + BUFFER }
    }
}

fn engine<'a, B: Backend>(
    counting: &'a B,
    model: &ModelConfig,
    positions: usize,
    capacity: Capacity,
    purpose: Purpose,
) -> Result<Engine<'a, B>> {
    Engine::new(counting, Model::counted(counting, model, positions)?, capacity, purpose)
}

/// [`MemoryPlan::generating`] with as many sequences at a time as fit, `beside` bytes being taken already when it begins,
/// and without packed weights where it does not fit with them; `o.cache_bytes` and `o.pack_weights` say so afterwards, and
/// notes where it is less than asked.
///
/// Errors: [`Error::Device`] where not even one sequence fits; `instead` ends its line.
pub fn fitting_generation<B: Backend>(
    be: &B,
    (model, positions): (&ModelConfig, usize),
    prompts: &[Vec<u32>],
    o: &mut GenerateOptions,
    (beside, instead): (usize, &str),
    observe: &mut dyn Observe,
) -> Result<MemoryPlan> {
    let (mut plan, wanted) = MemoryPlan::generating(be, model, positions, prompts, o)?;
    let Some(memory) = be.memory()? else { return Ok(plan) };
    let mut sequences = wanted;
    if plan.needed() + beside > memory.free && o.pack_weights {
        o.pack_weights = false;
        let (without, _) = MemoryPlan::generating(be, model, positions, prompts, o)?;
        // They may not have been part of it: a GPU reads weights as they lie, and a few tokens are not worth it.
        if without.needed() < plan.needed() {
            let free = units::bytes(memory.free);
            observe.tell(&Event::Note(&format!(
                "memory: weights are not laid out for decoding, which is slower, as {free} are free"
            )))?;
        }
        plan = without;
    }
    while plan.needed() + beside > memory.free {
        let (needed, free) = (units::bytes(plan.needed() + beside), units::bytes(memory.free));
        if sequences == 1 {
            return Err(Error::Device(format!(
                "out of memory: generating one sequence at a time needs {needed}, {free} are free; {instead}"
            )));
        }
        o.cache_bytes /= 2;
        (plan, sequences) = MemoryPlan::generating(be, model, positions, prompts, o)?;
    }
    if sequences < wanted {
        let free = units::bytes(memory.free);
        observe.tell(&Event::Note(&format!("memory: {sequences} sequences at a time, as {free} are free")))?;
    }
    Ok(plan)
}

/// Capacities of a run by token budget: what all its planners need.
#[derive(Clone)]
pub struct Budgets<'a> {
    planners: Vec<&'a Planner<'a>>,
}

impl<'a> Budgets<'a> {
    /// Of planners with the same token budget.
    pub fn of(planners: impl IntoIterator<Item = &'a Planner<'a>>) -> Self {
        Self { planners: planners.into_iter().collect() }
    }

    /// The capacity of micro-batches as they are planned.
    pub fn capacity(&self) -> Capacity {
        let all = self.planners.iter().map(|p| p.capacity());
        all.reduce(Capacity::or_larger).expect("a run has a planner")
    }

    /// [`Budgets::capacity`] with another token budget, at least [`Budgets::least`].
    pub fn capacity_at(&self, slots: usize) -> Capacity {
        let all = self.planners.iter().map(|p| p.capacity_at(slots));
        all.reduce(Capacity::or_larger).expect("a run has a planner")
    }

    /// The least token budget that the data allow.
    pub fn least(&self) -> usize {
        self.planners.iter().map(|p| p.least_budget()).max().unwrap_or(0)
    }

    /// The plan that `plan` makes of the capacity, where it fits into what the device has free.
    ///
    /// Errors: [`Error::Device`]: what is needed, what there is, and what would fit. Nothing has been allocated then.
    pub fn fitting<B: Backend>(&self, be: &B, plan: impl Fn(Capacity) -> Result<MemoryPlan>) -> Result<MemoryPlan> {
        self.fits(be, plan)?.map_err(Error::Device)
    }

    /// [`Budgets::fitting`], with what does not fit apart from what could not be asked.
    fn fits<B: Backend>(
        &self,
        be: &B,
        plan: impl Fn(Capacity) -> Result<MemoryPlan>,
    ) -> Result<Result<MemoryPlan, String>> {
        let wanted = plan(self.capacity())?;
        let Some(memory) = be.memory()? else { return Ok(Ok(wanted)) };
        if wanted.needed() <= memory.free {
            return Ok(Ok(wanted));
        }
        let (needed, free) = (units::bytes(wanted.needed()), units::bytes(memory.free));
        let would = self.suggestion(memory.free, plan)?;
        Ok(Err(format!("out of memory: this needs {needed}, {free} are free; {would}")))
    }

    /// [`Budgets::fitting`] for [`MemoryPlan::training_as`], and what the engine is to be for: where the device's memory
    /// is this run's alone and there is enough, [`Purpose::Train`] becomes [`Purpose::TrainInFull`]. The error also names
    /// `gradient_checkpointing` where that alone would do.
    pub fn training<B: Backend>(
        &self,
        be: &B,
        model: &ModelConfig,
        positions: usize,
        (purpose, learns): (Purpose, Learns<'_>),
    ) -> Result<(MemoryPlan, Purpose)> {
        let plan = |purpose| move |capacity| MemoryPlan::training_as(be, model, positions, capacity, (purpose, learns));
        let (free, least) = (be.memory()?.map(|m| m.free), purpose == Purpose::Train);
        let fits = |purpose, free| -> Result<Option<MemoryPlan>> {
            Ok(Some(plan(purpose)(self.capacity())?).filter(|plan| plan.needed() <= free))
        };
        if let (true, true, Some(free)) = (B::OWN_MEMORY, least, free)
            && let Some(full) = fits(Purpose::TrainInFull, free)?
        {
            return Ok((full, Purpose::TrainInFull));
        }
        match (self.fits(be, plan(purpose))?, free) {
            (Err(why), Some(free)) if least => {
                let other = match fits(Purpose::Recompute, free)? {
                    Some(fits) => format!("; so would `gradient_checkpointing` ({})", units::bytes(fits.needed())),
                    None => String::new(),
                };
                Err(Error::Device(why + &other))
            }
            (fitting, _) => Ok((fitting.map_err(Error::Device)?, purpose)),
        }
    }

    /// What would fit into `free` bytes, in words.
    fn suggestion(&self, free: usize, plan: impl Fn(Capacity) -> Result<MemoryPlan>) -> Result<String> {
        let least = self.least();
        let at = |slots: usize| plan(self.capacity_at(slots)).map(|p| p.needed());
        let needed = at(least)?;
        if needed > free {
            let needed = units::bytes(needed);
            return Ok(format!(
                "not even `token_budget` {least}, the least that these data allow, would fit ({needed}): use a smaller model"
            ));
        }
        // Everything grows with the budget, so the budgets that fit are those below some bound.
        let (mut fits, mut not) = (least.div_ceil(BUDGET_STEP), self.capacity().slots.div_ceil(BUDGET_STEP));
        while fits + 1 < not {
            let middle = fits.midpoint(not);
            if at(middle * BUDGET_STEP)? <= free { fits = middle } else { not = middle }
        }
        let rounded = fits * BUDGET_STEP;
        let best = if rounded < self.capacity().slots && at(rounded)? <= free { rounded } else { least };
        Ok(format!("`token_budget` {best} would fit ({})", units::bytes(at(best)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryPlan;

    /// Two in a hundred of all that is planned, and 64 MiB.
    #[test]
    fn more_is_needed_than_is_planned() {
        let table = vec![("a".into(), 3_000_000), ("b".into(), 1_000_000)];
        let plan = MemoryPlan { table, scratch: 1_000_000, save: None };
        assert_eq!((plan.bytes(), plan.needed()), (5_000_000, 5_100_000 + (64 << 20)));
    }
}
