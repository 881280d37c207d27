//! What a policy writes while it trains: responses drawn from it, for how far it has gone from the reference, and continuations
//! of fixed prompts beside the reference's own, to be read.
//!
//! The reference is where it is cheapest: a synced one is in memory. Where it is what the policy was at first (a base without its
//! adapter, too), the weights that train become those of the start for as long as it takes, and are kept on the host meanwhile.
//! Another model is loaded for it. Whatever it takes is in the memory plan.

use super::best::KL;
use super::engine::{Engine, Purpose};
use super::generating::generate_by;
use super::kl::{KlEstimate, mean_with_interval};
use super::sample_plan::{SamplePlan, Whereabouts};
use crate::backend::{Backend, RESPONSE_STATS};
use crate::batch::{Batches, Builder, MicroBatch};
use crate::data::text::TextTokenizer;
use crate::error::{Error, Result};
use crate::loss::LossSpec;
use crate::model::{GenerateOptions, Generated, Model, ModelDir};
use crate::observe::{Event, Flow, Observe};
use crate::units;
use serde_json::{Map, Value, json};

/// What an evaluation's samples came to.
#[derive(Debug, Default)]
pub struct Sampled {
    /// Of the responses drawn from the policy.
    pub kl: Option<KlEstimate>,
    /// Lines of `samples.jsonl`.
    pub rows: Vec<Map<String, Value>>,
    /// Of the continuations: the policy's, and where there is one the reference's.
    pub habits: Vec<Habits>,
    /// What could not be sampled, and why, in words.
    pub warnings: Vec<String>,
}

impl Sampled {
    /// Its part in an evaluation's row.
    pub fn metrics(&self) -> Map<String, Value> {
        let mut row = Map::new();
        if let Some(kl) = &self.kl {
            // JSON has no number for one that is not finite: it stands there as `null`.
            row.insert(KL.into(), json!(kl.mean));
            if kl.is_finite() {
                row.insert(format!("{KL}_ci95"), json!([kl.mean - kl.half_width_95, kl.mean + kl.half_width_95]));
            }
        }
        for (of, habits) in ["", "_reference"].into_iter().zip(&self.habits) {
            let Habits { tokens, finished, repeated, .. } = habits;
            for (key, value) in [("tokens", tokens), ("finished", finished), ("repeated", repeated)] {
                row.insert(format!("eval_samples/{key}{of}"), json!(value));
            }
        }
        row
    }

    /// What it came to, in words; `None`: nothing was sampled.
    pub fn line(&self) -> Option<String> {
        let kl = self.kl.iter().filter(|kl| kl.is_finite());
        let kl = kl.map(|kl| format!("kl {:.4} +- {:.4} nats a response", kl.mean, kl.half_width_95));
        let whose = ["continuations of the policy", "of the reference"];
        let habits = whose
            .into_iter()
            .zip(&self.habits)
            .map(|(whose, h)| format!("{whose}: {:.1} tokens, {:.0} % with an end", h.tokens, 100.0 * h.finished));
        let all: Vec<String> = kl.chain(habits).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// How continuations are: means over them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Habits {
    /// Continuations.
    pub n: usize,
    /// Tokens of one.
    pub tokens: f64,
    /// Share that ended by an end token.
    pub finished: f64,
    /// Share of their tokens' fours that stood in the same continuation before.
    pub repeated: f64,
}

impl Habits {
    fn of(all: &[Generated]) -> Self {
        let n = all.len() as f64;
        let mean = |f: &dyn Fn(&Generated) -> f64| all.iter().map(f).sum::<f64>() / n;
        Self {
            n: all.len(),
            tokens: mean(&|g| g.tokens.len() as f64),
            finished: mean(&|g| f64::from(u8::from(g.finished))),
            repeated: mean(&|g| repeated(&g.tokens)),
        }
    }
}

/// Share of the fours of `tokens` that stood there before.
fn repeated(tokens: &[u32]) -> f64 {
    let mut seen = std::collections::HashSet::new();
    let fours = tokens.windows(4);
    let all = fours.len();
    let again = fours.filter(|four| !seen.insert(*four)).count();
    if all == 0 { 0.0 } else { again as f64 / all as f64 }
}

/// Samples at evaluations.
pub struct Sampler<'a> {
    /// What.
    pub plan: SamplePlan,
    /// The reference, where it is another model.
    pub reference: Option<&'a ModelDir>,
    /// What turns tokens into text; there where continuations are to be read.
    pub tokenizer: Option<&'a TextTokenizer>,
    /// The reference's continuations, once they are known: they do not change, unless it follows the policy.
    pub known: Option<Vec<Generated>>,
}

impl Sampler<'_> {
    /// Samples the policy of `engine` after `step` steps. A model that computes no finite numbers ends nothing: what that leaves
    /// unknown is among the warnings. Errors: [`Error::Stopped`] where `observe` ends it.
    pub fn take<B: Backend>(
        &mut self,
        engine: &mut Engine<'_, B>,
        step: u64,
        observe: &mut dyn Observe,
    ) -> Result<Sampled> {
        let SamplePlan { kl, shown, .. } = &self.plan;
        let (kl, mut warnings) = (kl.as_ref(), Vec::new());
        let known = self.known.take().filter(|_| !matches!(self.plan.reference, Whereabouts::Synced));
        let wanted = shown.as_ref().filter(|_| known.is_none());
        let has = !matches!(self.plan.reference, Whereabouts::None);
        let no_kl = |why: &str| format!("`{KL}` is not known: {why}");
        let drawn = match kl {
            Some(kl) => {
                let drawn = generate(engine, (&kl.prompts, &kl.options), observe);
                finite(drawn, &mut warnings, |why| no_kl(&format!("the policy, {why}")))?
            }
            None => None,
        };
        let of_policy = kl.zip(drawn.as_ref()).map(|(kl, drawn)| score(engine, &kl.prompts, drawn)).transpose()?;
        let own = match shown {
            Some(s) => {
                let own = generate(engine, (&s.prompts, &s.options), observe);
                finite(own, &mut warnings, |why| {
                    format!("nothing is in samples.jsonl of this step: the policy, {why}")
                })?
            }
            None => None,
        };
        let (mut scored, mut theirs) = (None, known);
        if has && (drawn.is_some() || wanted.is_some()) {
            with_reference(engine, (&self.plan.reference, self.reference), self.plan.positions, &mut |engine| {
                scored = kl.zip(drawn.as_ref()).map(|(kl, drawn)| score(engine, &kl.prompts, drawn)).transpose()?;
                if let Some(s) = wanted {
                    let all = generate(engine, (&s.prompts, &s.options), observe);
                    theirs = finite(all, &mut warnings, |why| format!("the reference continues no prompt: {why}"))?;
                }
                Ok(())
            })?;
        }
        let estimate = kl.filter(|_| has).map(|kl| {
            let gaps = of_policy.iter().flatten().zip(scored.iter().flatten());
            let gaps: Vec<f64> = gaps.map(|(own, theirs)| own - theirs).collect();
            let none = gaps.iter().filter(|gap| !gap.is_finite()).count();
            if none > 0 {
                let of =
                    format!("of {} responses {none} have no finite log-prob under policy and reference", gaps.len());
                warnings.push(no_kl(&of));
            }
            mean_with_interval(&gaps, kl.options.max_new_tokens)
        });
        let mut sampled = Sampled { kl: estimate, warnings, ..Default::default() };
        if let (Some(shown), Some(own)) = (shown, &own) {
            sampled.habits = [Some(own), theirs.as_ref()].into_iter().flatten().map(|all| Habits::of(all)).collect();
            for (i, own) in own.iter().enumerate() {
                sampled.rows.push(self.row(
                    step,
                    (shown.rows[i], &shown.prompts[i]),
                    own,
                    theirs.as_ref().map(|all| &all[i]),
                )?);
            }
        }
        self.known = theirs;
        Ok(sampled)
    }

    fn row(
        &self,
        step: u64,
        (row, prompt): (u64, &[u32]),
        policy: &Generated,
        reference: Option<&Generated>,
    ) -> Result<Map<String, Value>> {
        let decode = |tokens: &[u32], skips| self.tokenizer.map(|t| t.decode(tokens, skips)).transpose();
        let mut line = Map::new();
        line.insert("step".into(), json!(step));
        line.insert("row".into(), json!(row));
        line.insert("prompt".into(), json!(decode(prompt, false)?));
        for (who, text) in [("policy", Some(policy)), ("reference", reference)] {
            line.insert(who.into(), json!(text.map(|g| decode(&g.tokens, true)).transpose()?.flatten()));
            line.insert(format!("{who}_tokens"), json!(text.map(|g| g.tokens.len())));
            line.insert(format!("{who}_finished"), json!(text.map(|g| g.finished)));
        }
        Ok(line)
    }
}

/// What was sampled; `None`, and a warning of `why` in words, where the model computes no finite numbers.
fn finite<T>(sampled: Result<T>, warnings: &mut Vec<String>, of: impl Fn(&str) -> String) -> Result<Option<T>> {
    match sampled {
        Err(Error::Training(why)) => {
            warnings.push(of(&why));
            Ok(None)
        }
        sampled => sampled.map(Some),
    }
}

/// One continuation of each prompt by the engine's model; its ranks share them.
fn generate<B: Backend>(
    engine: &Engine<'_, B>,
    (prompts, options): (&[Vec<u32>], &GenerateOptions),
    observe: &mut dyn Observe,
) -> Result<Vec<Generated>> {
    let goes_on = &mut || Ok(observe.on(&Event::Tick)? == Flow::On);
    let all = generate_by(engine.team, engine.be, &engine.state.model, (prompts, options), goes_on)?;
    Ok(all.into_iter().flatten().collect())
}

/// Log-probs of `samples` under the engine's model, in micro-batches within its capacity, which its ranks share.
fn score<B: Backend>(engine: &mut Engine<'_, B>, prompts: &[Vec<u32>], samples: &[Generated]) -> Result<Vec<f64>> {
    let capacity = engine.capacity();
    let mut batches: Vec<MicroBatch> = Vec::new();
    let (mut batch, mut used, mut predictions, mut responses) = (Builder::default(), 0, 0, 0);
    let mut flush = |batch: &mut Builder| -> Result<()> {
        batches.push(std::mem::take(batch).finish(capacity.slots)?);
        Ok(())
    };
    for (id, (prompt, sample)) in prompts.iter().zip(samples).enumerate() {
        let (slots, rows) = (prompt.len() + sample.tokens.len(), sample.tokens.len());
        let full = used + slots > capacity.slots || predictions + rows > capacity.predictions;
        if used > 0 && (full || responses == capacity.responses) {
            flush(&mut batch)?;
            (used, predictions, responses) = (0, 0, 0);
        }
        batch.group(id as u64, prompt.iter().copied())?;
        batch.response(id as u64, sample.tokens.iter().copied())?;
        (used, predictions, responses) = (used + slots, predictions + rows, responses + 1);
    }
    if used > 0 {
        flush(&mut batch)?;
    }
    let mine = engine.team.share(batches.len());
    let numbers = engine.evaluated(&Batches::share(batches, mine), &LossSpec::STATISTICS)?;
    Ok(numbers.iter().flat_map(|(responses, _)| responses.chunks_exact(RESPONSE_STATS).map(|stats| stats[0])).collect())
}

/// Calls `f` with an engine whose model is the reference; `engine` is as it was afterwards.
fn with_reference<'b, B: Backend>(
    engine: &mut Engine<'b, B>,
    (reference, other): (&Whereabouts, Option<&ModelDir>),
    positions: usize,
    f: &mut dyn FnMut(&mut Engine<'b, B>) -> Result<()>,
) -> Result<()> {
    match reference {
        Whereabouts::None => Ok(()),
        Whereabouts::Synced => {
            engine.exchange();
            let done = f(engine);
            engine.exchange();
            done
        }
        Whereabouts::Start => {
            let be = engine.be;
            let model = &mut engine.state.model;
            let kept = keep(be, model)?;
            let done = model.fill_start(be).and_then(|()| f(engine));
            put_back(be, &mut engine.state.model, &kept)?;
            done
        }
        Whereabouts::Other(_) => {
            let dir = other.expect("a run that has another reference has its folder");
            let model = Model::load(engine.be, dir, positions)?;
            let mut theirs = Engine::new(engine.be, model, engine.capacity(), Purpose::Score)?;
            theirs.team = engine.team;
            f(&mut theirs)
        }
    }
}

/// The weights that train, on the host.
fn keep<B: Backend>(be: &B, model: &Model<B>) -> Result<Vec<B::Act>> {
    let trained = || model.table.specs.iter().filter(|spec| spec.trains).map(|spec| spec.at.clone());
    let all: usize = trained().map(|at| at.len()).sum();
    let none = |()| {
        let bytes = units::bytes(all * size_of::<B::Act>());
        Error::Device(format!(
            "out of memory: {bytes} for the weights that train, kept on the host while the reference is in their place"
        ))
    };
    let mut kept: Vec<B::Act> = bytemuck::allocation::try_zeroed_vec(all).map_err(none)?;
    let mut start = 0;
    for at in trained() {
        let n = at.len();
        be.download(&mut kept[start..start + n], be.view(&model.weights, at))?;
        start += n;
    }
    Ok(kept)
}

fn put_back<B: Backend>(be: &B, model: &mut Model<B>, kept: &[B::Act]) -> Result<()> {
    let mut start = 0;
    for spec in model.table.specs.iter().filter(|spec| spec.trains) {
        let n = spec.at.len();
        be.upload(be.view_mut(&mut model.weights, spec.at.clone()), &kept[start..start + n])?;
        start += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_twice_is_counted() {
        assert_eq!(repeated(&[1, 2, 3]), 0.0);
        assert_eq!(repeated(&[1, 2, 3, 4, 5, 6]), 0.0);
        // 1 1 1 1 1 1: three fours, two of them again.
        assert_eq!(repeated(&[1; 6]), 2.0 / 3.0);
        // abcd abcd: fours abcd bcda cdab dabc abcd.
        assert_eq!(repeated(&[1, 2, 3, 4, 1, 2, 3, 4]), 0.2);
    }
}
