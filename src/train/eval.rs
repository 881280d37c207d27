//! Evaluation: the loss and TRL's metrics over a data set, without gradients.

use super::engine::Engine;
use super::metrics::{Totals, wilson_95};
use super::mismatched::reference_of;
use super::synced;
use super::whole_step::{self, Taking};
use crate::backend::Backend;
use crate::batch::{Batches, Outline, PairSlot, ResponseSlot};
use crate::data::plan::Planner;
use crate::data::shard::Dataset;
use crate::data::sidecar::Sidecars;
use crate::error::{Error, Result};
use crate::loss::{LossSpec, Scope};
use crate::observe::{Event, Flow, Observe};
use crate::units::decimals;
use std::path::Path;

/// What an evaluation reads.
pub struct EvalSet<'a> {
    /// The data, in order.
    pub plan: Planner<'a>,
    /// The reference, where the loss has one.
    pub sidecars: Option<Sidecars>,
    /// Steps of the plan that are looked at, the first ones.
    pub steps: u64,
}

/// The whole of `set` under `spec`. Errors: [`Error::Training`] where `observe` ends it, as half a result is none.
pub fn evaluate<B: Backend>(
    engine: &mut Engine<'_, B>,
    set: &EvalSet<'_>,
    spec: &LossSpec,
    observe: &mut dyn Observe,
) -> Result<Totals> {
    let steps = set.steps;
    let begun = observe.on(&Event::Begin { task: "evaluation", total: steps, keeps: false })?;
    let (mut flow, _) = engine.team.agree(begun, false)?;
    let mut totals = Totals::default();
    // One micro-batch is always under way while the host prepares the next.
    let mut before = None;
    for step in 0..steps {
        if flow != Flow::On {
            return Err(Error::stopped("stopped; what was evaluated so far is not kept"));
        }
        let outlines = set.plan.first_outlines(0, step)?;
        let mine = engine.team.share(outlines.len());
        let mut batches = set.plan.batches(outlines, mine)?;
        if let Some(sidecars) = &set.sidecars {
            fill_reference(&mut batches, sidecars, spec, false)?;
        }
        if engine.state.reference.is_some() {
            synced::fill(engine, &mut batches, spec)?;
        }
        if spec.scope() == Scope::Step {
            // A step's pairs are compared with one another, as in training; nothing is remembered of them.
            let how = Taking { spec, scales: 1.0.into(), seed: [0, step], trains: false, proves: false };
            totals.merge(whole_step::first(engine, &mut batches, how, &mut { engine.state.clock.running })?);
            batches = Batches::default();
        }
        if engine.team.size() > 1 && !batches.is_empty() {
            let numbers = engine.evaluated(&batches, spec)?;
            let all = batches.all().zip(&numbers);
            all.for_each(|(of, (responses, pairs))| totals.add(of, spec, responses, pairs));
            batches = Batches::default();
        }
        for mb in batches.own {
            let late = engine.start_evaluation(&mb, spec)?;
            if let Some((mb, late)) = before.replace((mb, late)) {
                engine.collect(late, &mb, spec, &mut totals)?;
            }
        }
        let next = observe.on(&Event::Progress { done: step + 1, beside: format_args!("") })?;
        (flow, _) = engine.team.agree(next, false)?;
    }
    if let Some((mb, late)) = before {
        engine.collect(late, &mb, spec, &mut totals)?;
    }
    observe.tell(&Event::End)?;
    Ok(totals)
}

/// Refuses numbers that are none: of a model that computes no finite ones, a loss says nothing. `model` is for the message.
///
/// Errors: [`Error::Training`] naming the first response, or the first pair where every response has a number.
pub fn check_finite(t: &Totals, data: &Dataset, model: &Path) -> Result<()> {
    let hint = "check its config.json, and whether the download is whole";
    let model = model.display();
    if let Some(id) = t.non_finite_responses.iter().min() {
        let row = data.response_row(*id).map_or_else(String::new, |row| format!("row {row}, "));
        let of = t.non_finite_responses.len();
        return Err(Error::Training(format!(
            "{model}: {row}response {id} of the data: its log-probability is not finite, and of {} responses that of {of}; {hint}",
            t.responses
        )));
    }
    match t.non_finite.iter().min() {
        Some(id) => {
            let (of, all) = (t.non_finite.len(), t.pairs);
            Err(Error::Training(format!(
                "{model}: pair {id} of the data: its loss is not finite, and of {all} pairs that of {of}; {hint}"
            )))
        }
        None => Ok(()),
    }
}

/// Copies the reference's log-probs into this rank's own of `batches`; into those of others too where `all` says so, or where the
/// losses compare a whole step. Where `spec` reads them also those of the tokens that both responses of a pair have.
pub fn fill_reference(batches: &mut Batches, sidecars: &Sidecars, spec: &LossSpec, all: bool) -> Result<()> {
    match all || spec.scope() == Scope::Step {
        true => batches.all_mut().try_for_each(|of| look_up(of, sidecars, spec)),
        false => batches.own.iter_mut().try_for_each(|mb| look_up(mb.outline_mut(), sidecars, spec)),
    }
}

fn look_up(to: &mut Outline, sidecars: &Sidecars, spec: &LossSpec) -> Result<()> {
    let of = |slot: &ResponseSlot| {
        reference_of(slot, sidecars).ok_or_else(|| {
            Error::Training(format!("response {} has no reference log-prob: run `fusedpo reference` again", slot.id))
        })
    };
    to.set_ref_logps(of)?;
    if spec.ld_alpha.is_some() { look_up_heads(to, sidecars) } else { Ok(()) }
}

fn look_up_heads(to: &mut Outline, sidecars: &Sidecars) -> Result<()> {
    let of = |pair: &PairSlot| {
        let shared = to.shared_len(pair) as u64;
        let head = |r: u32| {
            let id = to.responses()[r as usize].id;
            sidecars.head(id, shared).ok_or_else(|| {
                let why = "has no reference log-prob: run the same command again";
                Error::Training(format!("response {id}: the sum of its first {shared} tokens {why}"))
            })
        };
        Ok([head(pair.chosen)?, head(pair.rejected)?])
    };
    let heads: Vec<[f64; 2]> = to.pairs().iter().map(of).collect::<Result<_>>()?;
    to.pairs_mut().zip(heads).for_each(|(pair, heads)| pair.ref_heads = heads);
    Ok(())
}

/// The result in one line.
pub fn line(t: &Totals) -> String {
    let loss = decimals(t.mean_loss(), 4);
    if let Some(kl) = t.kl() {
        let of = |what: &str, reward: Option<f64>| {
            reward.map_or_else(String::new, |r| format!(", {what} {}", decimals(r, 4)))
        };
        let [desirable, undesirable] = t.judged_rewards();
        let rewards = of("reward of desirable", desirable) + &of("of undesirable", undesirable);
        return format!("loss {loss}{rewards}, kl {kl:.4}, {} responses", t.responses);
    }
    if t.pairs == 0 {
        return format!("loss {loss}, token accuracy {:.3}", t.hits / t.chosen_tokens as f64);
    }
    let [lo, hi] = wilson_95(t.accuracy(), t.pairs);
    let margin = decimals((t.reward_chosen - t.reward_rejected) / t.pairs as f64, 4);
    format!("loss {loss}, accuracy {:.3} [{lo:.3}, {hi:.3}], margin {margin}, {} pairs", t.accuracy(), t.pairs)
}
