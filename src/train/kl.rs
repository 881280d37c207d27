//! Sequence-level KL divergence of the policy from the reference, by sampling the policy.

use super::engine::{Engine, Purpose};
use super::generating::generate_by;
use super::memory::{Budgets, MemoryPlan};
use super::spread::mean_95;
use super::team::Team;
use crate::backend::{Backend, RESPONSE_STATS};
use crate::data::plan::{Objective, PlanOptions, Planner};
use crate::data::shard::format::Meta;
use crate::data::shard::{Dataset, NewGroup, NewResponse, ShardWriter, Split};
use crate::error::{Error, Result};
use crate::files::{ScratchFolder, scratch_folder};
use crate::loss::LossSpec;
use crate::model::{GenerateOptions, Generated, Model, ModelConfig, ModelDir};
use crate::observe::{Event, Flow, Observe};

/// How to estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KlOptions {
    /// Prompts, the first of the data set; one response each.
    pub samples: usize,
    /// Longest response, tokens.
    pub max_new_tokens: usize,
    /// Seed of the samples.
    pub seed: u64,
}

/// Mean of `log pi(y|x) - log pi_ref(y|x)` over sampled responses, nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KlEstimate {
    /// The mean.
    pub mean: f64,
    /// Half the width of its 95 % interval (normal approximation).
    pub half_width_95: f64,
    /// Responses.
    pub samples: usize,
    /// Longest response, tokens: as asked, or what the model's positions leave beside a prompt.
    pub max_new_tokens: usize,
}

impl KlEstimate {
    /// Whether it is a number: every response has a log-prob under both models.
    pub fn is_finite(&self) -> bool {
        self.mean.is_finite()
    }
}

/// What to sample: prompts, and how to continue them.
#[derive(Clone, Debug, PartialEq)]
pub struct KlPlan {
    /// Prompts with room for a response.
    pub prompts: Vec<Vec<u32>>,
    /// Input row of each: of its first response.
    pub rows: Vec<u64>,
    /// One continuation of each, at temperature 1.
    pub options: GenerateOptions,
}

impl KlPlan {
    /// For a policy loaded for rows of up to `positions` tokens. `None` where no prompt of `data` has a token; prompts that
    /// leave no room for a response are passed over.
    pub fn new(policy: &ModelConfig, positions: usize, data: &Dataset, o: &KlOptions) -> Option<Self> {
        // No further than where generating ends.
        let positions = positions.min(policy.rope.turning_point().unwrap_or(usize::MAX));
        let max_new_tokens = o.max_new_tokens.min(positions / 2).max(1);
        let room = positions.saturating_sub(max_new_tokens);
        let (prompts, rows): (Vec<Vec<u32>>, Vec<u64>) = (0..data.num_groups())
            .map(|g| data.group(g))
            .map(|g| (g.prompt().iter().collect::<Vec<u32>>(), g.response(0).row))
            .filter(|(p, _)| !p.is_empty() && p.len() <= room)
            .take(o.samples)
            .unzip();
        let options = GenerateOptions {
            max_new_tokens,
            temperature: 1.0,
            top_p: 1.0,
            num_return_sequences: 1,
            seed: o.seed,
            eos_token_ids: policy.eos_token_ids.clone(),
            cache_bytes: 1 << 30,
            pack_weights: true,
        };
        (!prompts.is_empty()).then_some(Self { prompts, rows, options })
    }
}

/// Positions that samples of at most `max_new_tokens` tokens after the prompts of `data` want: of its longest row and so many more,
/// as far as both models, the policy and the reference, have them.
pub fn positions_of((policy, reference): (&ModelConfig, &ModelConfig), data: &Dataset, max_new_tokens: usize) -> usize {
    let longest = data.longest_row();
    let most = policy.usable_positions().min(reference.usable_positions());
    longest.max(most.min(longest.saturating_add(max_new_tokens)))
}

/// Samples a response of `policy` to each prompt of `plan` and scores it under both models, the reference in micro-batches
/// of at least `slots` token slots; the ranks of `team` share it. The policy is gone before the reference comes. Errors: an estimate that is no number.
pub fn estimate<B: Backend>(
    be: &B,
    policy: Model<B>,
    reference: &ModelDir,
    (data, plan, slots): (&Dataset, &KlPlan, usize),
    team: Team<'_>,
    observe: &mut dyn Observe,
) -> Result<KlEstimate> {
    let goes_on = &mut || Ok(observe.on(&Event::Tick)? == Flow::On);
    let samples = generate_by(team, be, &policy, (&plan.prompts, &plan.options), goes_on)?;
    let samples: Vec<Generated> = samples.into_iter().flatten().collect();
    // A model may have more rows than its tokenizer has tokens, and draw one of them.
    let vocab_size = policy.config.vocab_size.min(u32::MAX as usize) as u32;
    let meta = Meta { vocab_size: vocab_size.max(data.meta().vocab_size), ..data.meta().clone() };
    let drawn = Drawn::new(&meta, (&plan.prompts, &samples))?;
    // Both by the same passes, so that a policy is no way from itself.
    let own = drawn.score(be, Scorer::Loaded(Box::new(policy)), slots, team)?;
    let theirs = drawn.score(be, Scorer::Dir(reference), slots, team)?;
    let gaps: Vec<f64> = own.iter().zip(theirs).map(|(own, theirs)| own - theirs).collect();
    let estimate = mean_with_interval(&gaps, plan.options.max_new_tokens);
    match estimate.is_finite() {
        true => Ok(estimate),
        false => Err(Error::Training("the KL estimate is not finite: a model gives non-finite log-probs".into())),
    }
}

/// Who scores; a model that is loaded is gone afterwards.
enum Scorer<'a, B: Backend> {
    Loaded(Box<Model<B>>),
    Dir(&'a ModelDir),
}

/// Responses that were drawn, in a shard of their own, so that there is one way to score.
struct Drawn {
    data: Dataset,
    samples: usize,
    // Dropped after the data that lie in it.
    _folder: ScratchFolder,
}

impl Drawn {
    fn new(meta: &Meta, (prompts, samples): (&[Vec<u32>], &[Generated])) -> Result<Self> {
        let folder = scratch_folder()?;
        let mut writer = ShardWriter::create(&folder.path().join("train-00000.pref"), meta)?;
        for (row, (prompt, sample)) in prompts.iter().zip(samples).enumerate() {
            let response = NewResponse { tokens: &sample.tokens, score: None, label: None, row: row as u64, index: 0 };
            writer.push(&NewGroup { prompt, responses: vec![response], pairs: Vec::new() })?;
        }
        writer.finish()?;
        Ok(Self { data: Dataset::open(folder.path(), Split::Train)?, samples: samples.len(), _folder: folder })
    }

    /// Their log-probs.
    fn score<B: Backend>(&self, be: &B, scorer: Scorer<'_, B>, slots: usize, team: Team<'_>) -> Result<Vec<f64>> {
        let longest = self.data.longest_row();
        let options = PlanOptions {
            objective: Objective::Score,
            batch_size: 64,
            token_budget: Some(slots.max(longest)),
            seed: 0,
            shuffle: false,
        };
        let plan = Planner::new(&self.data, &options)?;
        let model = match scorer {
            Scorer::Loaded(model) => {
                let (config, positions) = (&model.config, model.max_positions);
                let held = MemoryPlan::model(be, config, positions)?.table.len();
                let memory = Budgets::of([&plan]).fitting(be, |c| {
                    let mut plan = MemoryPlan::scoring(be, config, positions, c)?;
                    plan.table.drain(..held);
                    Ok(plan)
                })?;
                be.reserve(&memory.table)?;
                *model
            }
            Scorer::Dir(dir) => {
                let memory = Budgets::of([&plan]).fitting(be, |c| MemoryPlan::scoring(be, dir.config(), longest, c))?;
                be.reserve(&memory.table)?;
                Model::load(be, dir, longest)?
            }
        };
        let mut engine = Engine::new(be, model, plan.capacity(), Purpose::Score)?;
        engine.team = team;
        let mut scored = vec![f64::NAN; self.samples];
        for step in 0..plan.steps_in_epoch(0) {
            let outlines = plan.outlines(0, step)?;
            let mine = team.share(outlines.len());
            let batches = plan.batches(outlines, mine)?;
            let numbers = engine.evaluated(&batches, &LossSpec::STATISTICS)?;
            for (of, (responses, _)) in batches.all().zip(numbers) {
                let sums = responses.chunks_exact(RESPONSE_STATS);
                of.responses().iter().zip(sums).for_each(|(slot, stats)| scored[slot.id as usize] = stats[0]);
            }
        }
        Ok(scored)
    }
}

/// The estimate that the gaps `x`, a response each, come to.
pub fn mean_with_interval(x: &[f64], max_new_tokens: usize) -> KlEstimate {
    let [mean, half_width_95] = mean_95(x);
    KlEstimate { mean, half_width_95, samples: x.len(), max_new_tokens }
}
