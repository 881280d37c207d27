//! A run that is not begun: its data, its model's shape, and what of memory it asks by token budget.

use crate::backend::Backend;
use crate::batch::Capacity;
use crate::data::plan::{PlanOptions, Planner};
use crate::data::shard::Dataset;
use crate::error::Result;
use crate::files::paths;
use crate::model::{AdapterShape, ModelConfig, ModelDir};
use crate::train::check::open_splits;
use crate::train::engine::Purpose;
use crate::train::eval_keys::refuse_unknown_metric;
use crate::train::memory::{BUDGET_STEP, Budgets, MemoryPlan};
use crate::train::options::TrainOptions;
use crate::train::ready::{check_quantized, choose_products, no_prompts, planners, refuse_empty_evaluation};
use crate::train::reference::score_options;
use crate::train::sample_plan::{SamplePlan, Whereabouts};
use crate::train::sets::{self, NamedSet};
use crate::train::team::{Ranks, Team};
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
    /// The one that evaluations compare with, where the loss has one; and whether it is what the policy is at first.
    compared: Option<(ModelConfig, bool)>,
    /// Whether the shards stand for others of such lengths.
    stands_in: bool,
}

impl Opened {
    /// Of the run of `c` over the shards in `data`, which with `stands_in` are not its own but of such lengths. Errors: what the run
    /// would refuse too.
    pub fn of<B: Backend>(be: &B, c: &TrainOptions, (data, stands_in): (&Path, bool)) -> Result<Self> {
        choose_products(be, c)?;
        c.optim.check_on(be)?;
        let splits = open_splits(data)?;
        refuse_empty_evaluation(c, &splits)?;
        refuse_unknown_metric(c, stands_in || splits.len() > 1)?;
        let model = c.folder(&c.files.model);
        let base = ModelDir::shape(model, c.train.adapter.as_deref().map(|adapter| c.folder(adapter)))?;
        check_quantized(model, &base, c)?;
        let held = |r: ModelConfig| ModelConfig { quantized: r.quantized.or(c.train.quantized()), ..r };
        let compared = match &c.reference.ref_model {
            _ if !c.loss().reference() => None,
            // With the adapter that is loaded the model is another than without.
            Some(other) if c.train.adapter.is_some() || !paths::is_same(model, c.folder(other)) => {
                Some((held(ModelDir::shape(c.folder(other), None)?), false))
            }
            _ => Some((held(base.clone()), true)),
        };
        let reference = compared.as_ref().filter(|_| !c.reference.sync_ref_model).map(|(config, _)| config.clone());
        Ok(Self { splits, named: sets::open(c)?, base, reference, compared, stands_in })
    }

    /// What prompts to sample are taken from, where some are. Errors: the run has nothing of the kind.
    fn prompts(&self, c: &TrainOptions) -> Result<Option<&Dataset>> {
        if c.eval.kl_samples + c.eval.sample_prompts == 0 {
            return Ok(None);
        }
        let held_out = if self.stands_in { self.splits.first() } else { self.splits.get(1) };
        held_out.or(self.named.first().map(|set| &set.data)).map(Some).ok_or_else(|| no_prompts(c))
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
    /// What prompts to sample are taken from, where evaluations sample.
    pub prompts: Option<&'a Dataset>,
    /// By whom.
    pub ranks: Ranks,
}

/// The memory of a run.
pub(super) struct Planned {
    /// Buffers, those that evaluations take to sample last.
    pub memory: MemoryPlan,
    /// Buffers of it that are there all the time.
    pub lasting: usize,
    /// What the engine is for.
    pub purpose: Purpose,
}

impl<'a, B: Backend> Run<'a, B> {
    /// Of `c` over what is open, cut as `cut`. Errors: evaluations find no prompt to sample.
    pub fn new(be: &'a B, c: &'a TrainOptions, opened: &'a Opened, cut: &'a Cut<'_>) -> Result<Self> {
        let (budgets, positions) = (Budgets::of(cut.all()), cut.longest_row());
        let ranks = Team::by_one(c.data.lanes).ranks();
        Ok(Self { be, c, opened, budgets, positions, prompts: opened.prompts(c)?, ranks })
    }

    /// Calls `f` with the model as it is trained, and what is learned.
    pub fn with<T>(&self, f: impl FnOnce(&ModelConfig, Learns<'_>) -> Result<T>) -> Result<T> {
        let trained = Trained::of(self.c.train.train.as_deref())?;
        let (synced, ranks) = (self.c.reference.sync_ref_model, self.ranks);
        let learns = Learns { optim: &self.c.optim, trained: &trained, synced, ranks };
        let train = &self.c.train;
        let adapter: Option<AdapterShape> = train.new_adapter().map(|(shape, _)| shape).or(self.opened.base.adapter);
        let adapter = adapter.map(|a| AdapterShape { dropout: train.lora_dropout.unwrap_or(a.dropout), ..a });
        let quantized = self.opened.base.quantized.or(self.c.train.quantized());
        f(&ModelConfig { adapter, quantized, ..self.opened.base.clone() }, learns)
    }

    /// What is sampled at evaluations of the policy `policy`.
    fn samples(&self, policy: &ModelConfig, capacity: Capacity) -> Result<Option<SamplePlan>> {
        let Some(prompts) = self.prompts else { return Ok(None) };
        let reference = self.opened.compared.as_ref().map(|(config, same)| (config, *same));
        let at = Whereabouts::of(self.c, policy, reference)?;
        SamplePlan::new(self.c, (policy, at), prompts, capacity)
    }

    /// What a run takes; `free` bytes are there for what is sampled too.
    fn at(&self, slots: usize, purpose: Purpose, free: Option<usize>) -> Result<Planned> {
        let capacity = self.budgets.capacity_at(slots);
        self.with(|config, learns| {
            let samples = self.samples(config, capacity)?;
            let positions = samples.iter().map(|s| s.positions).fold(self.positions, usize::max);
            let steps = MemoryPlan::training_as(self.be, config, positions, capacity, (purpose, learns))?;
            let lasting = steps.table.len();
            let Some(mut samples) = samples else { return Ok(Planned { memory: steps, lasting, purpose }) };
            let trained = MemoryPlan::sections(self.be, config, learns)?.0.trained_len;
            let memory = samples.beside(self.be, (config, trained), (positions, capacity), (&steps, free))?;
            Ok(Planned { memory, lasting, purpose })
        })
    }

    fn purpose(&self) -> Purpose {
        if self.c.compute.gradient_checkpointing { Purpose::Recompute } else { Purpose::Train }
    }

    /// What the least that a run can do with takes.
    pub fn needed(&self, slots: usize) -> Result<usize> {
        self.at(slots, self.purpose(), Some(0)).map(|plan| plan.memory.needed())
    }

    /// What a run takes where `free` bytes are there, and what its engine is for: it keeps what it could compute again where that
    /// fits.
    pub fn plan(&self, slots: usize, free: Option<usize>) -> Result<Planned> {
        if let (true, Purpose::Train, Some(free)) = (B::OWN_MEMORY, self.purpose(), free) {
            let full = self.at(slots, Purpose::TrainInFull, Some(free))?;
            if full.memory.needed() <= free {
                return Ok(full);
            }
        }
        self.at(slots, self.purpose(), free)
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
