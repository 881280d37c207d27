//! What is sampled at the evaluations of a run, and the memory that it takes: told, and planned, before any is taken.

use super::kl::{KlOptions, KlPlan, positions_of};
use super::memory::MemoryPlan;
use super::options::TrainOptions;
use crate::backend::Backend;
use crate::batch::Capacity;
use crate::data::shard::Dataset;
use crate::error::{Error, Result};
use crate::model::{GenerateOptions, ModelConfig, ModelDir};
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
    /// A model of its own.
    Other(Box<ModelDir>),
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
        (policy, reference): (&ModelDir, Option<&ModelDir>),
        data: &Dataset,
        capacity: Capacity,
    ) -> Result<Option<Self>> {
        let o = &c.eval;
        if o.kl_samples + o.sample_prompts == 0 {
            return Ok(None);
        }
        let reference = match reference {
            None => Whereabouts::None,
            Some(_) if c.reference.sync_ref_model => Whereabouts::Synced,
            Some(reference) if policy.computes_as(reference) => Whereabouts::Start,
            Some(reference) => Whereabouts::Other(Box::new(reference.clone())),
        };
        if let (Whereabouts::Other(dir), 1..) = (&reference, o.kl_samples)
            && dir.config().vocab_size < policy.config().vocab_size
        {
            return Err(Error::usage(format!(
                "`kl_samples`: {} has a vocabulary of {}, the policy of {}: what the policy draws may be none of its tokens; leave it out",
                dir.path().display(),
                dir.config().vocab_size,
                policy.config().vocab_size
            )));
        }
        let configs = (
            policy.config(),
            match &reference {
                Whereabouts::Other(dir) => dir.config(),
                _ => policy.config(),
            },
        );
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

    /// Gives `plan`, of the steps, room for what is sampled, where the device has it: with weights laid out for decoding, or
    /// without them and with few sequences at a time. `trained` are the parameters that train; `positions` what models are loaded for.
    ///
    /// Errors: [`Error::Device`]: what it needs, and what there is.
    pub fn make_room<B: Backend>(
        &mut self,
        be: &B,
        (policy, trained): (&ModelConfig, usize),
        (positions, capacity): (usize, Capacity),
        plan: &mut MemoryPlan,
    ) -> Result<()> {
        let free = be.memory()?.map(|m| m.free);
        let mut needed = 0;
        for (cache_bytes, packs) in CACHE_BYTES.into_iter().zip([true, false]) {
            for o in self.kl.iter_mut().map(|kl| &mut kl.options).chain(self.shown.iter_mut().map(|s| &mut s.options)) {
                (o.cache_bytes, o.pack_weights) = (cache_bytes, packs);
            }
            let mut with = plan.clone();
            let (table, scratch) = self.takes(be, (policy, trained), positions, capacity)?;
            with.table.extend(table);
            with.scratch = with.scratch.max(scratch);
            needed = with.needed();
            if free.is_none_or(|free| needed <= free) {
                *plan = with;
                return Ok(());
            }
        }
        let [needed, free] = [needed, free.unwrap_or(0)].map(units::bytes);
        Err(Error::Device(format!(
            "out of memory: the steps with what is sampled at evaluations need {needed}, {free} are free; leave `kl_samples` and \
             `sample_prompts` out, or lower `token_budget`"
        )))
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
            Whereabouts::Start => {
                all.push(("weights that train, on the host".to_owned(), trained * size_of::<B::Act>()))
            }
            Whereabouts::Other(dir) => {
                let plan = MemoryPlan::scoring(be, dir.config(), positions, capacity)?;
                all.extend(plan.table.into_iter().map(|(name, bytes)| (format!("reference: {name}"), bytes)));
                models.push(dir.config());
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
