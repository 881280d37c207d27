//! A run that is not begun: its data, its model's shape, and what of memory it asks by token budget.

use crate::backend::Backend;
use crate::data::plan::{PlanOptions, Planner};
use crate::data::shard::Dataset;
use crate::error::Result;
use crate::model::{AdapterShape, ModelConfig, ModelDir};
use crate::train::check::open_splits;
use crate::train::engine::Purpose;
use crate::train::memory::{BUDGET_STEP, Budgets, MemoryPlan};
use crate::train::options::TrainOptions;
use crate::train::ready::{check_quantized, choose_products, planners, refuse_empty_evaluation};
use crate::train::reference::score_options;
use crate::train::sets::{self, NamedSet};
use crate::train::team::Team;
use crate::train::trained::{Learns, Trained};
use std::path::Path;

/// Largest token budget that is looked at: more than any step holds.
pub const MOST: usize = 1 << 20;

/// What a run reads, as far as its shape goes.
pub(super) struct Opened {
    /// The shards, training first.
    pub splits: Vec<Dataset>,
    /// Other sets that are evaluated.
    pub named: Vec<NamedSet>,
    /// The model, with an adapter where one is loaded.
    pub base: ModelConfig,
    /// The reference that is computed before the steps, where there is one.
    pub reference: Option<ModelConfig>,
}

impl Opened {
    /// Of the run of `c` over the shards in `data`. Errors: what the run would refuse too.
    pub fn of<B: Backend>(be: &B, c: &TrainOptions, data: &Path) -> Result<Self> {
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
        Ok(Self { splits, named: sets::open(c)?, base, reference: reference.map(held) })
    }

    /// All data that the reference scores.
    pub fn scored(&self) -> Vec<&Dataset> {
        self.splits.iter().chain(self.named.iter().map(|set| &set.data)).collect()
    }
}

/// How the run cuts its data.
pub(super) struct Cut<'a> {
    /// What it trains on.
    pub train: Planner<'a>,
    /// What is held out.
    pub held_out: Option<Planner<'a>>,
    /// Other sets that are evaluated.
    pub sets: Vec<Planner<'a>>,
}

impl<'a> Cut<'a> {
    /// As the run of `c` cuts what is open.
    pub fn of(c: &TrainOptions, opened: &'a Opened) -> Result<Self> {
        let (train, held_out) = planners(c, &opened.splits)?;
        let sets = sets::planners(c, &opened.named, train.token_budget())?;
        Ok(Self { train, held_out, sets })
    }

    /// [`Cut::of`] in micro-batches of `slots`.
    pub fn at(c: &TrainOptions, opened: &'a Opened, slots: usize) -> Result<Self> {
        let mut c = c.clone();
        c.data.token_budget = Some(slots);
        Self::of(&c, opened)
    }

    /// Every planner.
    pub fn all(&self) -> impl Iterator<Item = &Planner<'a>> {
        [&self.train].into_iter().chain(self.evaluated())
    }

    /// Those of what is evaluated.
    pub fn evaluated(&self) -> impl Iterator<Item = &Planner<'a>> {
        self.held_out.iter().chain(&self.sets)
    }

    /// Tokens of the longest row.
    pub fn longest_row(&self) -> usize {
        self.all().map(Planner::longest_row).max().unwrap_or(0)
    }
}

/// What is asked of memory, by token budget.
pub(super) struct Run<'a, B: Backend> {
    /// The device.
    pub be: &'a B,
    /// The options.
    pub c: &'a TrainOptions,
    /// What it reads.
    pub opened: &'a Opened,
    /// By token budget.
    pub budgets: Budgets<'a>,
    /// Positions of the longest row.
    pub positions: usize,
}

impl<'a, B: Backend> Run<'a, B> {
    /// Of `c` over what is open, cut as `cut`.
    pub fn new(be: &'a B, c: &'a TrainOptions, opened: &'a Opened, cut: &'a Cut<'_>) -> Self {
        Self { be, c, opened, budgets: Budgets::of(cut.all()), positions: cut.longest_row() }
    }

    /// Calls `f` with the model as it is trained, and what is learned.
    pub fn with<T>(&self, f: impl FnOnce(&ModelConfig, Learns<'_>) -> Result<T>) -> Result<T> {
        let trained = Trained::of(self.c.train.train.as_deref())?;
        let learns = Learns { optim: &self.c.optim, trained: &trained, synced: self.c.reference.sync_ref_model };
        let train = &self.c.train;
        let adapter: Option<AdapterShape> = train.new_adapter().map(|(shape, _)| shape).or(self.opened.base.adapter);
        let adapter = adapter.map(|a| AdapterShape { dropout: train.lora_dropout.unwrap_or(a.dropout), ..a });
        let quantized = self.opened.base.quantized.or(self.c.train.quantized());
        f(&ModelConfig { adapter, quantized, ..self.opened.base.clone() }, learns)
    }

    fn at(&self, slots: usize, purpose: Purpose) -> Result<MemoryPlan> {
        let capacity = self.budgets.capacity_at(slots);
        let copies = Team::by_one(self.c.data.lanes).copies();
        let plan = self.with(|config, learns| {
            MemoryPlan::training_as(self.be, config, self.positions, capacity, (purpose, learns))
        })?;
        Ok(plan.with_copies(copies))
    }

    fn purpose(&self) -> Purpose {
        if self.c.compute.gradient_checkpointing { Purpose::Recompute } else { Purpose::Train }
    }

    /// What the least that a run can do with takes.
    pub fn needed(&self, slots: usize) -> Result<usize> {
        self.at(slots, self.purpose()).map(|plan| plan.needed())
    }

    /// What a run takes where `free` bytes are there, and what its engine is for: it keeps what it could compute again where that
    /// fits.
    pub fn plan(&self, slots: usize, free: Option<usize>) -> Result<(MemoryPlan, Purpose)> {
        if let (true, Purpose::Train, Some(free)) = (B::OWN_MEMORY, self.purpose(), free) {
            let full = self.at(slots, Purpose::TrainInFull)?;
            if full.needed() <= free {
                return Ok((full, Purpose::TrainInFull));
            }
        }
        Ok((self.at(slots, self.purpose())?, self.purpose()))
    }

    /// The largest token budget that fits into `free` bytes; multiples of [`BUDGET_STEP`] are looked at, and the least.
    pub fn largest(&self, least: usize, free: usize) -> Result<Option<usize>> {
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

    /// What the reference's pass over all responses asks for, where there is one.
    pub fn scoring(&self, slots: usize) -> Result<Option<usize>> {
        let Some(config) = &self.opened.reference else { return Ok(None) };
        let all = self.opened.scored();
        // Rows that the run scores may be fewer: a split that is not evaluated has none, however long its rows are.
        let planners =
            all.iter().map(|data| Planner::new(data, &PlanOptions { token_budget: None, ..score_options(slots) }));
        let planners: Vec<Planner<'_>> = planners.collect::<Result<_>>()?;
        let positions = all.iter().map(|data| data.longest_row()).max().unwrap_or(0);
        let budgets = Budgets::of(&planners);
        let capacity = budgets.capacity_at(slots.max(budgets.least()));
        MemoryPlan::scoring(self.be, config, positions, capacity).map(|plan| Some(plan.needed()))
    }
}
