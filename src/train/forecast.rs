//! What memory a run would take, and what would fit: for a model whose weights need not be there, on a device that need not
//! be there either.
//!
//! Every buffer is counted by the run's own constructors ([`MemoryPlan`]), for what its own planners make of the data.

use super::check::open_splits;
use super::choices::GradientChoice;
use super::engine::Purpose;
use super::memory::{BUDGET_STEP, Budgets, MemoryPlan, SavePlan};
use super::optim::OptimizerChoice;
use super::options::TrainOptions;
use super::ready::{check_quantized, choose_products, planners, refuse_empty_evaluation};
use super::reference::score_options;
use super::sets;
use super::trained::{Learns, Trained};
use crate::backend::Backend;
use crate::choice::Choice;
use crate::data::plan::{PlanOptions, Planner};
use crate::data::shard::Dataset;
use crate::error::{Error, Result};
use crate::model::{AdapterShape, ModelConfig, ModelDir, Quantize};
use crate::units;
use std::collections::HashSet;
use std::path::Path;

/// Largest token budget that is looked at: more than any step holds.
pub const MOST: usize = 1 << 20;
/// Token slots of a micro-batch that is laid out to see what it holds, unless steps are larger.
const ENOUGH: usize = 1 << 16;
/// Steps whose micro-batches are looked at.
const STEPS: u64 = 64;
/// Rank of the adapter that is proposed where nothing fits.
const RANK: usize = 16;

/// Buffers of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Their name.
    pub name: String,
    /// How many there are.
    pub buffers: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Whether they do not depend on the token budget: the model and what it learns.
    pub held: bool,
}

/// What a token budget comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Token slots of a micro-batch.
    pub slots: usize,
    /// Bytes that the device must have free, the margin included.
    pub needed: usize,
    /// What a micro-batch and a step hold.
    pub holds: Holds,
}

/// Means over the first steps of an epoch; units are pairs, or responses where the loss takes no pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Holds {
    /// Units a micro-batch.
    pub units: f64,
    /// Token slots of a micro-batch that hold a token.
    pub filled: f64,
    /// Micro-batches a step.
    pub micro_batches: f64,
    /// Token slots of a step that hold a token.
    pub step: f64,
    /// Most of them.
    pub largest_step: usize,
}

/// What is known before a run, of its memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// The device and its precision, for people.
    pub device: String,
    /// The family.
    pub architecture: &'static str,
    /// Parameters, and how many of them train.
    pub parameters: [usize; 2],
    /// Whether steps count pairs, not responses.
    pub pairs: bool,
    /// Units an epoch.
    pub units: u64,
    /// Slots of the largest unit: the least token budget.
    pub least: usize,
    /// Tokens of the longest row.
    pub longest_row: usize,
    /// What `parts` are of: the budget that was asked for, or that a run would take; where that does not fit and was not
    /// asked for, the largest that does.
    pub at: Budget,
    /// Whether the outputs of norms and SwiGLU are kept: where there is room.
    pub in_full: bool,
    /// Buffers, in order of allocation; what ops keep for themselves last.
    pub parts: Vec<Part>,
    /// What the device has taken before.
    pub beside: Vec<(String, usize)>,
    /// What a run asks for beyond its plan.
    pub margin: usize,
    /// What the reference's pass asks for, before the parts are allocated, where there is one.
    pub reference: Option<usize>,
    /// A checkpoint.
    pub save: Option<SavePlan>,
    /// Bytes that a run can have, without `beside`; `None`: the system does not tell.
    pub free: Option<usize>,
    /// The largest token budget that fits.
    pub largest: Option<Budget>,
    /// The token budget that a run would begin with, and refuse, where none is given: [`Forecast::at`] is the largest that fits.
    pub refused: Option<usize>,
    /// Bytes that the least token budget asks for.
    pub least_needed: usize,
    /// Where not even the least budget fits: changes of options that would make it fit, and what it asks for then.
    pub instead: Vec<(String, usize)>,
}

impl Forecast {
    /// Whether the budget that `parts` are of fits.
    pub fn fits(&self) -> bool {
        self.free.is_none_or(|free| self.at.needed.max(self.reference.unwrap_or(0)) <= free)
    }

    /// All that is taken of the device: parts, margin, and what was taken before.
    pub fn all(&self) -> usize {
        self.at.needed + self.beside.iter().map(|(_, bytes)| bytes).sum::<usize>()
    }

    /// Why it does not fit, and what would. Errors: [`Error::Device`].
    pub fn check(&self) -> Result<()> {
        let Some(free) = self.free.filter(|_| !self.fits()) else { return Ok(()) };
        let (free, of) = (units::bytes(free), |bytes: usize| units::bytes(bytes));
        let why = match (&self.largest, self.reference) {
            (Some(best), Some(reference)) if best.slots >= self.at.slots => format!(
                "the reference's pass needs {}, {free} are free: use a smaller `ref_model`, or a smaller `token_budget`",
                of(reference)
            ),
            (Some(best), _) => format!(
                "`token_budget` {} needs {}, {free} are free; {} would fit ({})",
                self.at.slots,
                of(self.at.needed),
                best.slots,
                of(best.needed)
            ),
            (None, _) => format!(
                "not even `token_budget` {}, the least that these data allow, fits: it needs {}, {free} are free; {}",
                self.least,
                of(self.least_needed),
                self.instead()
            ),
        };
        Err(Error::Device(format!("out of memory: {why}")))
    }

    fn instead(&self) -> String {
        if self.instead.is_empty() {
            return "use a smaller model, or pack with a smaller `max_length`".to_owned();
        }
        let all: Vec<String> = self.instead.iter().map(|(what, n)| format!("{what} ({})", units::bytes(*n))).collect();
        format!("what would fit: {}", all.join(", or "))
    }
}

/// The forecast of the run of `c` over the shards in `data`, on a device with `beside` taken already.
///
/// Errors: options, a model or data that the run would refuse too; not what does not fit ([`Forecast::check`]).
pub fn forecast<B: Backend>(be: &B, c: &TrainOptions, data: &Path, beside: Vec<(String, usize)>) -> Result<Forecast> {
    choose_products(be, c)?;
    c.optim.check_on(be)?;
    let splits = open_splits(data)?;
    refuse_empty_evaluation(c, &splits)?;
    let model = c.folder(&c.files.model);
    let base = ModelDir::shape(model, c.train.adapter.as_deref().map(|adapter| c.folder(adapter)))?;
    check_quantized(model, &base, c)?;
    let reference = match &c.reference.ref_model {
        _ if !c.loss().reference() || c.reference.sync_ref_model => None,
        Some(other) => Some(ModelDir::shape(c.folder(other), None)?),
        None => Some(base.clone()),
    };
    let held = |r: ModelConfig| ModelConfig { quantized: r.quantized.or(c.train.quantized()), ..r };
    let reference = reference.map(held);
    let (planner, held_out) = planners(c, &splits)?;
    let named = sets::open(c)?;
    let sets = sets::planners(c, &named, planner.token_budget())?;
    let all = || [&planner].into_iter().chain(&held_out).chain(&sets);
    let longest_row = all().map(Planner::longest_row).max().unwrap_or(0);
    let run = Run { be, c, base: &base, budgets: Budgets::of(all()), positions: longest_row };
    let free = be.memory()?.map(|m| m.free);
    let least = run.budgets.least();
    let least_needed = run.needed(least)?;
    let largest = match free {
        Some(free) => run.largest(least, free)?,
        None => None,
    };
    let wanted = planner.token_budget();
    let shrinks = c.data.token_budget.is_none();
    let slots = largest.filter(|best| shrinks && *best < wanted).unwrap_or(wanted);
    let (plan, in_full) = run.plan(slots, free)?;
    let instead = match free {
        Some(free) if largest.is_none() => run.instead(least, free)?,
        _ => Vec::new(),
    };
    let budget = |slots: usize, needed: usize| -> Result<Budget> {
        let options = super::ready::plan_options(c);
        let holds = |slots| holds(&Planner::new(&splits[0], &PlanOptions { token_budget: Some(slots), ..options })?);
        // Where every step is one micro-batch, it is in any larger one too, which would be laid out for nothing.
        let some = holds(slots.min(ENOUGH.max(least)))?;
        let whole = slots <= ENOUGH || some.largest_step <= ENOUGH;
        Ok(Budget { slots, needed, holds: if whole { some } else { holds(slots)? } })
    };
    let held = run.with(|config, learns| MemoryPlan::held(be, config, longest_row, learns))?;
    let scored: Vec<&Dataset> = splits.iter().chain(named.iter().map(|set| &set.data)).collect();
    let table = run.with(|config, learns| MemoryPlan::sections(be, config, learns))?.0;
    Ok(Forecast {
        device: format!("{}, {}", be.description().split(", ").next().unwrap_or_default(), be.products()),
        architecture: base.architecture.model_type(),
        parameters: [table.num_parameters(), table.num_trained()],
        pairs: super::ready::plan_options(c).objective.is_of_pairs(),
        units: planner.units(),
        least,
        longest_row,
        at: budget(slots, plan.needed())?,
        in_full,
        parts: parts(&plan, &held),
        beside,
        margin: plan.needed() - plan.bytes(),
        reference: reference.map(|config| scoring(be, &config, &scored, slots)).transpose()?,
        save: plan.save,
        free,
        largest: largest.map(|slots| budget(slots, run.needed(slots)?)).transpose()?,
        refused: (slots != wanted).then_some(wanted),
        least_needed,
        instead,
    })
}

/// What is asked of memory, by token budget.
struct Run<'a, B: Backend> {
    be: &'a B,
    c: &'a TrainOptions,
    /// The model, with an adapter where one is loaded.
    base: &'a ModelConfig,
    budgets: Budgets<'a>,
    positions: usize,
}

impl<B: Backend> Run<'_, B> {
    /// Calls `f` with the model as it is trained, and what is learned.
    fn with<T>(&self, f: impl FnOnce(&ModelConfig, Learns<'_>) -> Result<T>) -> Result<T> {
        let trained = Trained::of(self.c.train.train.as_deref())?;
        let learns = Learns { optim: &self.c.optim, trained: &trained, synced: self.c.reference.sync_ref_model };
        let train = &self.c.train;
        let adapter: Option<AdapterShape> = train.new_adapter().map(|(shape, _)| shape).or(self.base.adapter);
        let adapter = adapter.map(|a| AdapterShape { dropout: train.lora_dropout.unwrap_or(a.dropout), ..a });
        let quantized = self.base.quantized.or(self.c.train.quantized());
        f(&ModelConfig { adapter, quantized, ..self.base.clone() }, learns)
    }

    fn at(&self, slots: usize, purpose: Purpose) -> Result<MemoryPlan> {
        let capacity = self.budgets.capacity_at(slots);
        self.with(|config, learns| {
            MemoryPlan::training_as(self.be, config, self.positions, capacity, (purpose, learns))
        })
    }

    fn purpose(&self) -> Purpose {
        if self.c.compute.gradient_checkpointing { Purpose::Recompute } else { Purpose::Train }
    }

    /// What the least that a run can do with takes.
    fn needed(&self, slots: usize) -> Result<usize> {
        self.at(slots, self.purpose()).map(|plan| plan.needed())
    }

    /// What a run takes where `free` bytes are there, and whether it keeps what it could compute again.
    fn plan(&self, slots: usize, free: Option<usize>) -> Result<(MemoryPlan, bool)> {
        if let (true, Purpose::Train, Some(free)) = (B::OWN_MEMORY, self.purpose(), free) {
            let full = self.at(slots, Purpose::TrainInFull)?;
            if full.needed() <= free {
                return Ok((full, true));
            }
        }
        Ok((self.at(slots, self.purpose())?, false))
    }

    /// The largest token budget that fits into `free` bytes; multiples of [`BUDGET_STEP`] are looked at, and the least.
    fn largest(&self, least: usize, free: usize) -> Result<Option<usize>> {
        if self.needed(least)? > free {
            return Ok(None);
        }
        let budget = |n: usize| (n * BUDGET_STEP).max(least);
        // Everything grows with the budget, so the budgets that fit are those below some bound.
        let (mut fits, mut not) = (least / BUDGET_STEP, least / BUDGET_STEP + 1);
        while not * BUDGET_STEP <= MOST && self.needed(budget(not))? <= free {
            (fits, not) = (not, 2 * not);
        }
        not = not.min((MOST / BUDGET_STEP).max(fits) + 1);
        while fits + 1 < not {
            let middle = fits.midpoint(not);
            if self.needed(budget(middle))? <= free { fits = middle } else { not = middle }
        }
        Ok(Some(budget(fits)))
    }

    /// Changes of options with which `slots` fit into `free` bytes: single ones, or else two together.
    fn instead(&self, slots: usize, free: usize) -> Result<Vec<(String, usize)>> {
        let changes = changes(self.be, self.c);
        let singles = (0..changes.len()).map(|i| vec![i]);
        let both = (0..changes.len()).flat_map(|j| (0..j).map(move |i| vec![i, j]));
        for sets in [singles.collect::<Vec<_>>(), both.collect()] {
            let mut fit = Vec::new();
            for set in sets {
                let mut c = self.c.clone();
                set.iter().for_each(|i| changes[*i].1(&mut c));
                // What does not go together is no answer.
                let Ok(c) = c.clone().resolve(c.stage) else { continue };
                let changed = Run { c: &c, budgets: self.budgets.clone(), ..*self };
                let needed = changed.needed(slots)?;
                if needed <= free {
                    let names: Vec<&str> = set.iter().map(|i| changes[*i].0.as_str()).collect();
                    fit.push((names.join(" with "), needed));
                }
            }
            if !fit.is_empty() {
                return Ok(fit);
            }
        }
        Ok(Vec::new())
    }
}

type Change = (String, Box<dyn Fn(&mut TrainOptions)>);

/// What takes less memory than `c`, by its option.
fn changes<B: Backend>(be: &B, c: &TrainOptions) -> Vec<Change> {
    let mut all: Vec<Change> = Vec::new();
    if !c.compute.gradient_checkpointing {
        all.push(("`gradient_checkpointing`".into(), Box::new(|c| c.compute.gradient_checkpointing = true)));
    }
    // Weights in bf16 alone can do without masters, and a reference that follows cannot.
    let narrow = be.products() == "bf16" && !c.reference.sync_ref_model;
    let others = OptimizerChoice::ALL.iter().filter(|other| **other != c.optim.optim);
    for other in others.filter(|other| narrow || !other.is_small()) {
        all.push((format!("`optim` {other}"), Box::new(|c| c.optim.optim = *other)));
    }
    // An adapter's gradients are summed in f32.
    let sums = if c.optim.narrow_gradients() { " without `gradient_dtype`" } else { "" };
    let adapter = |c: &mut TrainOptions| {
        c.optim.gradient_dtype = GradientChoice::F32;
        c.train.lora_r = Some(RANK);
    };
    if !c.train.has_adapter() && c.train.train.is_none() {
        all.push((format!("`lora_r` {RANK}{sums}"), Box::new(adapter)));
    }
    if c.train.train.is_none() && c.train.quantize.is_none() {
        let rank = if c.train.has_adapter() { String::new() } else { format!("`lora_r` {RANK} and ") };
        let change = move |c: &mut TrainOptions| {
            if !c.train.has_adapter() {
                adapter(c);
            }
            c.train.quantize = Some(Quantize::Nf4);
        };
        all.push((format!("{rank}`quantize` nf4{sums}"), Box::new(change)));
    }
    all
}

/// The buffers of `plan` by name.
fn parts(plan: &MemoryPlan, held: &MemoryPlan) -> Vec<Part> {
    let held: HashSet<&str> = held.table.iter().map(|(name, _)| name.as_str()).collect();
    let mut all: Vec<Part> = Vec::new();
    for (name, bytes) in plan.table.iter().filter(|(_, bytes)| *bytes > 0) {
        match all.iter_mut().find(|part| part.name == *name) {
            Some(part) => (part.buffers, part.bytes) = (part.buffers + 1, part.bytes + bytes),
            None => {
                all.push(Part { name: name.clone(), buffers: 1, bytes: *bytes, held: held.contains(name.as_str()) })
            }
        }
    }
    if plan.scratch > 0 {
        all.push(Part { name: "scratch of ops, at most".into(), buffers: 1, bytes: plan.scratch, held: false });
    }
    all
}

/// What the reference's pass over all responses asks for.
fn scoring<B: Backend>(be: &B, config: &ModelConfig, all: &[&Dataset], slots: usize) -> Result<usize> {
    let planners = all.iter().map(|data| Planner::new(data, &score_options(slots)));
    let planners: Vec<Planner<'_>> = planners.collect::<Result<_>>()?;
    let positions = all.iter().map(|data| data.longest_row()).max().unwrap_or(0);
    Ok(MemoryPlan::scoring(be, config, positions, Budgets::of(&planners).capacity())?.needed())
}

fn holds(planner: &Planner<'_>) -> Result<Holds> {
    let steps = planner.steps_in_epoch(0).min(STEPS);
    let (mut units, mut filled, mut batches, mut largest_step) = (0, 0, 0, 0);
    for step in 0..steps {
        let all = planner.step(0, step)?;
        let slots: usize = all.iter().map(|mb| mb.used()).sum();
        units += all
            .iter()
            .map(|mb| if mb.pairs().is_empty() { mb.responses().len() } else { mb.pairs().len() })
            .sum::<usize>();
        (filled, batches, largest_step) = (filled + slots, batches + all.len(), slots.max(largest_step));
    }
    let by = |n: usize, of: f64| n as f64 / of.max(1.0);
    Ok(Holds {
        units: by(units, batches as f64),
        filled: by(filled, batches as f64),
        micro_batches: by(batches, steps as f64),
        step: by(filled, steps as f64),
        largest_step,
    })
}
