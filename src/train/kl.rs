//! Sequence-level KL divergence of the policy from the reference, by sampling the policy.

use super::engine::{Engine, Purpose};
use crate::backend::Backend;
use crate::data::dataset::{Dataset, Split};
use crate::data::format::Meta;
use crate::data::plan::{Objective, PlanOptions, Planner};
use crate::data::shard_write::{NewGroup, NewResponse, ShardWriter};
use crate::error::{Error, Result};
use crate::model::{GenerateOptions, Generated, Model, generate};
use std::path::Path;

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
#[derive(Clone, Copy, Debug, PartialEq)]
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

/// Samples a response of `policy` at temperature 1 to each of the first prompts of `data` and scores it under both.
/// `None` where no prompt has a token. Prompts that leave no room for a response are passed over.
pub fn estimate<B: Backend>(
    be: &B,
    policy: &Model<B>,
    reference: &Path,
    data: &Dataset,
    o: &KlOptions,
) -> Result<Option<KlEstimate>> {
    let max_new_tokens = o.max_new_tokens.min(policy.max_positions / 2).max(1);
    let room = policy.max_positions.saturating_sub(max_new_tokens);
    let prompts: Vec<Vec<u32>> = (0..data.num_groups())
        .map(|g| data.group(g).prompt().iter().collect::<Vec<u32>>())
        .filter(|p| !p.is_empty() && p.len() <= room)
        .take(o.samples)
        .collect();
    if prompts.is_empty() {
        return Ok(None);
    }
    let options = GenerateOptions {
        max_new_tokens,
        temperature: 1.0,
        top_p: 1.0,
        num_return_sequences: 1,
        seed: o.seed,
        eos_token_ids: policy.config.eos_token_ids.clone(),
        cache_bytes: 1 << 30,
    };
    let samples: Vec<Generated> = generate(be, policy, &prompts, &options)?.into_iter().flatten().collect();
    let reference = Model::load(be, reference, policy.max_positions)?;
    // A model may have more rows than its tokenizer has tokens, and draw one of them.
    let vocab_size = policy.config.vocab_size.min(u32::MAX as usize) as u32;
    let meta = Meta { vocab_size: vocab_size.max(data.meta().vocab_size), ..data.meta().clone() };
    let scored = score(be, reference, &meta, &prompts, &samples)?;
    let gaps: Vec<f64> = samples.iter().zip(scored).map(|(s, logp)| s.logps.iter().sum::<f64>() - logp).collect();
    mean_with_interval(&gaps, max_new_tokens).map(Some)
}

/// Log-probs of `samples` under `model`. They go through a shard of their own, so that there is one way to score.
fn score<B: Backend>(
    be: &B,
    model: Model<B>,
    meta: &Meta,
    prompts: &[Vec<u32>],
    samples: &[Generated],
) -> Result<Vec<f64>> {
    let dir = tempfile::tempdir().map_err(Error::io(std::env::temp_dir(), "make a folder"))?;
    let path = dir.path().join("train-00000.pref");
    let mut writer = ShardWriter::create(&path, meta)?;
    for (row, (prompt, sample)) in prompts.iter().zip(samples).enumerate() {
        let response = NewResponse { tokens: &sample.tokens, score: None, label: None, row: row as u64, index: 0 };
        writer.push(&NewGroup { prompt, responses: vec![response], pairs: Vec::new() })?;
    }
    writer.finish()?;
    let data = Dataset::open(dir.path(), Split::Train)?;
    let options =
        PlanOptions { objective: Objective::Score, batch_size: 64, token_budget: None, seed: 0, shuffle: false };
    let plan = Planner::new(&data, &options)?;
    let mut engine = Engine::new(be, model, plan.capacity(), Purpose::Score)?;
    let mut scored = vec![f64::NAN; samples.len()];
    for step in 0..plan.steps_in_epoch(0) {
        for mb in plan.step(0, step) {
            for (slot, logp) in mb.responses.iter().zip(engine.score(&mb)?) {
                scored[slot.id as usize] = logp;
            }
        }
    }
    Ok(scored)
}

fn mean_with_interval(x: &[f64], max_new_tokens: usize) -> Result<KlEstimate> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    if !mean.is_finite() {
        return Err(Error::Training("the KL estimate is not finite: a model gives non-finite log-probs".into()));
    }
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    Ok(KlEstimate { mean, half_width_95: 1.96 * (variance / n).sqrt(), samples: x.len(), max_new_tokens })
}
