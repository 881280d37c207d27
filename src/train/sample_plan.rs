//! What is sampled at the evaluations of a run, and the memory that it takes: told, and planned, before any is taken.

use super::kl::{KlOptions, KlPlan, positions_of};
use super::memory::MemoryPlan;
use super::options::TrainOptions;
use crate::backend::Backend;
use crate::batch::Capacity;
use crate::data::shard::Dataset;
use crate::error::{Error, Result};
use crate::model::{GenerateOptions, ModelConfig};
use crate::units;

/// Bytes that keys, values and logits may take while a run generates, at first, and where that does not fit.
const CACHE_BYTES: [usize; 2] = [1 << 30, 64 << 20];

/// Where the reference is.
#[derive(Clone, Debug)]
pub enum Whereabouts {
    /// The run has none.
    None,
    /// In the state: it follows the policy.
    Synced,
    /// It is what the policy was before the first step.
    Start,
    /// A model of its own, of this shape.
    Other(Box<ModelConfig>),
}

impl Whereabouts {
    /// Where `c` has it, `reference` being its model's shape and whether its weights are the `policy`'s at first. Errors: what the
    /// policy draws for the KL divergence may be none of its tokens.
    pub fn of(c: &TrainOptions, policy: &ModelConfig, reference: Option<(&ModelConfig, bool)>) -> Result<Self> {
        let (config, same) = match reference {
            None => return Ok(Self::None),
            Some(_) if c.reference.sync_ref_model => return Ok(Self::Synced),
            Some(of) => of,
        };
        if same {
            return Ok(Self::Start);
        }
        if c.eval.kl_samples > 0 && config.vocab_size < policy.vocab_size {
            return Err(Error::usage(format!(
                "`kl_samples`: the reference has a vocabulary of {}, the policy of {}: what the policy draws may be none of its \
                 tokens; leave it out",
                config.vocab_size, policy.vocab_size
            )));
        }
        Ok(Self::Other(Box::new(config.clone())))
    }
}

/// Prompts that are continued to be read.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Input row of each.
    pub rows: Vec<u64>,
    /// Their tokens.
    pub prompts: Vec<Vec<u32>>,
    /// How they are continued.
    pub options: GenerateOptions,
}

/// What is sampled at every evaluation.
#[derive(Clone, Debug)]
pub struct SamplePlan {
    /// For how far the policy is from the reference.
    pub kl: Option<KlPlan>,
    /// To be read.
    pub shown: Option<Shown>,
    /// Positions that a model needs for it.
    pub positions: usize,
    /// Where the reference is.
    pub reference: Whereabouts,
}

impl SamplePlan {
    /// As `c` says, of prompts of `data`; `None`: nothing is sampled. No row has more than `slots` tokens, no response more than
    /// `capacity` has predictions.
    ///
    /// Errors: no prompt of `data` has a token and room for a response.
    pub fn new(
        c: &TrainOptions,
        (policy, reference): (&ModelConfig, Whereabouts),
        data: &Dataset,
        capacity: Capacity,
    ) -> Result<Option<Self>> {
        let o = &c.eval;
        if o.kl_samples + o.sample_prompts == 0 {
            return Ok(None);
        }
        let configs = match &reference {
            Whereabouts::Other(config) => (policy, &**config),
            _ => (policy, policy),
        };
        let none = |key: &str, n: usize| {
            Error::usage(format!(
                "`{key}` {n}: no prompt of {} has a token and room for a response",
                data.folder().display()
            ))
        };
        let plan = |key: &str, samples: usize, max_new_tokens: usize| -> Result<Option<(KlPlan, usize)>> {
            if samples == 0 {
                return Ok(None);
            }
            let o = KlOptions { samples, max_new_tokens: max_new_tokens.min(capacity.predictions), seed: c.data.seed };
            let positions = positions_of(configs, data, o.max_new_tokens).min(capacity.slots);
            let plan = KlPlan::new(configs.0, positions, data, &o).ok_or_else(|| none(key, samples))?;
            Ok(Some((plan, positions)))
        };
        let kl = plan("kl_samples", o.kl_samples, o.kl_max_new_tokens.unwrap_or_default())?;
        let shown = plan("sample_prompts", o.sample_prompts, o.sample_max_new_tokens.unwrap_or_default())?;
        let positions = [&kl, &shown].into_iter().flatten().map(|(_, positions)| *positions).max().unwrap_or(0);
        let shown = shown.map(|(plan, _)| {
            let temperature = o.sample_temperature.unwrap_or_default();
            Shown { rows: plan.rows, prompts: plan.prompts, options: GenerateOptions { temperature, ..plan.options } }
        });
        Ok(Some(Self { kl: kl.map(|(plan, _)| plan), shown, positions, reference }))
    }

    /// Gives `plan`, of the steps, room for what is sampled: [`SamplePlan::beside`]. Errors: [`Error::Device`]: what it needs, and
    /// what there is.
    pub fn make_room<B: Backend>(
        &mut self,
        be: &B,
        policy: (&ModelConfig, usize),
        size: (usize, Capacity),
        plan: &mut MemoryPlan,
    ) -> Result<()> {
        let free = be.memory()?.map(|m| m.free);
        let with = self.beside(be, policy, size, (plan, free))?;
        if let Some(free) = free.filter(|free| with.needed() > *free) {
            let [needed, free] = [with.needed(), free].map(units::bytes);
            return Err(Error::Device(format!(
                "out of memory: the steps with what is sampled at evaluations need {needed}, {free} are free; leave `kl_samples` \
                 and `sample_prompts` out, or lower `token_budget`"
            )));
        }
        *plan = with;
        Ok(())
    }

    /// `plan`, of the steps, with what is sampled: with weights laid out for decoding where that fits into `free` bytes (`None`: any
    /// number), or without them and with few sequences at a time, whether that fits or not. `trained` are the parameters that
    /// train; `positions` what models are loaded for.
    pub fn beside<B: Backend>(
        &mut self,
        be: &B,
        (policy, trained): (&ModelConfig, usize),
        (positions, capacity): (usize, Capacity),
        (plan, free): (&MemoryPlan, Option<usize>),
    ) -> Result<MemoryPlan> {
        let mut with = plan.clone();
        for (cache_bytes, packs) in CACHE_BYTES.into_iter().zip([true, false]) {
            for o in self.kl.iter_mut().map(|kl| &mut kl.options).chain(self.shown.iter_mut().map(|s| &mut s.options)) {
                (o.cache_bytes, o.pack_weights) = (cache_bytes, packs);
            }
            let (table, scratch) = self.takes(be, (policy, trained), positions, capacity)?;
            with = plan.clone();
            with.table.extend(table);
            with.scratch = with.scratch.max(scratch);
            if free.is_none_or(|free| with.needed() <= free) {
                break;
            }
        }
        Ok(with)
    }

    /// Buffers beside those of the steps, and the scratch of ops.
    fn takes<B: Backend>(
        &self,
        be: &B,
        (policy, trained): (&ModelConfig, usize),
        positions: usize,
        capacity: Capacity,
    ) -> Result<(Vec<(String, usize)>, usize)> {
        let mut most: (Vec<(String, usize)>, usize, usize) = Default::default();
        let mut models = vec![policy];
        let mut all = Vec::new();
        match &self.reference {
            // A device with memory of its own has none of it on the host.
            Whereabouts::Start if !B::OWN_MEMORY => {
                all.push(("weights that train, on the host".to_owned(), trained * size_of::<B::Act>()))
            }
            Whereabouts::Other(config) => {
                let plan = MemoryPlan::scoring(be, config, positions, capacity)?;
                all.extend(plan.table.into_iter().map(|(name, bytes)| (format!("reference: {name}"), bytes)));
                models.push(config);
            }
            _ => {}
        }
        for model in models {
            let without = MemoryPlan::model(be, model, positions)?.table.len();
            for (prompts, o) in self.generations() {
                let (plan, _) = MemoryPlan::generating(be, model, positions, prompts, o)?;
                if plan.bytes() > most.2 {
                    let table = plan.table[without..].iter().map(|(name, bytes)| (format!("samples: {name}"), *bytes));
                    most = (table.collect(), plan.scratch, plan.bytes());
                }
            }
        }
        all.extend(most.0);
        Ok((all, most.1))
    }

    fn generations(&self) -> impl Iterator<Item = (&[Vec<u32>], &GenerateOptions)> {
        let kl = self.kl.iter().map(|kl| (&kl.prompts[..], &kl.options));
        kl.chain(self.shown.iter().map(|shown| (&shown.prompts[..], &shown.options)))
    }

    /// What will be sampled, in words.
    pub fn line(&self) -> String {
        let of = |what: &str, (prompts, o): (&Vec<Vec<u32>>, &GenerateOptions)| {
            format!("{} {what}, of at most {} tokens", prompts.len(), o.max_new_tokens)
        };
        let kl = self.kl.iter().map(|kl| of("responses for the KL divergence", (&kl.prompts, &kl.options)));
        let shown = self.shown.iter().map(|s| of("continuations in samples.jsonl", (&s.prompts, &s.options)));
        let how = match &self.reference {
            Whereabouts::None => "the run has no reference",
            Whereabouts::Synced => "the reference is in memory",
            Whereabouts::Start => {
                "the reference is the policy with the weights of its start, put in place for as long as it takes"
            }
            Whereabouts::Other(_) => "the reference is loaded each time",
        };
        format!("sampled at each evaluation: {}; {how}", kl.chain(shown).collect::<Vec<_>>().join(", "))
    }
}
