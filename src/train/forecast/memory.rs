//! The memory of a run, buffer by buffer, and what would fit.

use super::fit;
use super::holds::Budget;
use super::rates::{On, Rates};
use super::run::{Cut, Opened, Planned, Run};
use super::time::{self, Pace, Time};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::train::engine::Purpose;
use crate::train::memory::{MemoryPlan, SavePlan};
use crate::train::options::TrainOptions;
use crate::train::ready::plan_options;
use crate::units;
use std::collections::HashSet;
use std::path::Path;

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
    /// Whether only evaluations take them, for what they sample.
    pub samples: bool,
}

/// The token budget with which a run of these data is fast, in as little memory as that takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Recommended {
    /// It.
    pub budget: Budget,
    /// How fast steps are with it, where the device's rates are known.
    pub pace: Option<Pace>,
}

/// What is known before a run, of its memory and time.
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
    /// The token budget that is recommended, where one fits.
    pub recommended: Option<Recommended>,
    /// Its time, where the device's rates are known.
    pub time: Option<Time>,
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

/// The forecast of the run of `c` over the shards in `data`, on the device that `on` says. `counted`: they are all the data that there are, and
/// do not stand for others of such lengths.
///
/// Errors: options, a model or data that the run would refuse too; not what does not fit ([`Forecast::check`]).
pub fn forecast<B: Backend>(be: &B, c: &TrainOptions, (data, counted): (&Path, bool), on: On<B>) -> Result<Forecast> {
    let On { beside, here, assumed } = on;
    let opened = Opened::of(be, c, (data, !counted))?;
    let cut = Cut::of(c, &opened)?;
    let longest_row = cut.longest_row();
    let run = Run::new(be, c, &opened, &cut)?;
    let free = be.memory()?.map(|m| m.free);
    let least = run.budgets.least();
    let least_needed = run.needed(least)?;
    let largest = match free {
        Some(free) => run.largest(least, free)?,
        None => None,
    };
    let by = assumed.map_or_else(|| be.ceilings(), |assumed| assumed.ceilings);
    let recommended = fit::recommended(&run, free, &by)?;
    let wanted = cut.train.token_budget();
    let shrinks = c.data.token_budget.is_none();
    let fitted = recommended.filter(|_| c.data.fit);
    let slots = fitted.or(largest.filter(|best| shrinks && *best < wanted)).unwrap_or(wanted);
    let Planned { memory: plan, lasting, purpose } = run.plan(slots, free)?;
    let instead = match free {
        Some(free) if largest.is_none() => run.instead(least, free)?,
        _ => Vec::new(),
    };
    let budget = |slots: usize| Budget::of(&run, slots, run.needed(slots)?);
    let held = run.with(|config, learns| MemoryPlan::held(be, config, longest_row, learns))?;
    let table = run.with(|config, learns| MemoryPlan::sections(be, config, learns))?.0;
    let rates = Rates::of(&run, &time::laid_out(&run, slots)?, (here, assumed))?;
    let recommended = match recommended {
        Some(slots) => {
            let Planned { memory, purpose, .. } = run.plan(slots, free)?;
            let pace = rates.as_ref().map(|rates| time::pace(&run, (slots, purpose), rates)).transpose()?;
            Some(Recommended { budget: Budget::of(&run, slots, memory.needed())?, pace })
        }
        None => None,
    };
    Ok(Forecast {
        device: format!("{}, {}", be.description().split(", ").next().unwrap_or_default(), be.products()),
        architecture: opened.base.architecture.model_type(),
        parameters: [table.num_parameters(), table.num_trained()],
        pairs: plan_options(c).objective.is_of_pairs(),
        units: cut.train.units(),
        least,
        longest_row,
        at: Budget::of(&run, slots, plan.needed())?,
        in_full: purpose == Purpose::TrainInFull,
        parts: parts(&plan, lasting, &held),
        beside,
        margin: plan.needed() - plan.bytes(),
        reference: run.scoring(slots)?,
        save: plan.save,
        free,
        largest: largest.map(budget).transpose()?,
        refused: (fitted.is_none() && slots != wanted).then_some(wanted),
        least_needed,
        instead,
        time: rates.map(|rates| time::time(&run, (slots, purpose), rates, counted)).transpose()?,
        recommended,
    })
}

/// The buffers of `plan` by name, those from `lasting` on being samples'.
fn parts(plan: &MemoryPlan, lasting: usize, held: &MemoryPlan) -> Vec<Part> {
    let held: HashSet<&str> = held.table.iter().map(|(name, _)| name.as_str()).collect();
    let mut all: Vec<Part> = Vec::new();
    for (i, (name, bytes)) in plan.table.iter().enumerate().filter(|(_, (_, bytes))| *bytes > 0) {
        let samples = i >= lasting;
        match all.iter_mut().find(|part| part.name == *name && part.samples == samples) {
            Some(part) => (part.buffers, part.bytes) = (part.buffers + 1, part.bytes + bytes),
            None => {
                let held = !samples && held.contains(name.as_str());
                all.push(Part { name: name.clone(), buffers: 1, bytes: *bytes, held, samples })
            }
        }
    }
    if plan.scratch > 0 {
        let name = "scratch of ops, at most".into();
        all.push(Part { name, buffers: 1, bytes: plan.scratch, held: false, samples: false });
    }
    all
}
