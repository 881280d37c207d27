//! A reference that follows the policy (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656): every so many steps
//! `reference = (1 - alpha) reference + alpha policy`, as TRL's `sync_ref_model` has it.
//!
//! It is part of the run's state. Its log-probs are computed for the micro-batches of a step, just before the policy's and with
//! the same shapes; no sidecar is read or written. The device does in order what is enqueued: the update of a step, its
//! sync, the passes of the next under the reference and then under the policy. The host need not wait for any of it but the
//! reference's sums, while the policy's pass over the micro-batch before is under way.

use super::engine::Engine;
use super::options::ReferenceOptions;
use super::state::{State, Synced};
use crate::backend::{Backend, Mix};
use crate::batch::{Batches, MicroBatch};
use crate::error::{Error, Result};
use crate::loss::LossSpec;
use crate::model::ModelDir;
use std::collections::VecDeque;

/// When the reference follows, and how far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sync {
    /// The policy's share in the reference after a sync.
    pub alpha: f64,
    /// Steps from one sync to the next.
    pub every: u64,
}

impl Sync {
    /// As resolved options say; `None`: the reference stays what it is.
    pub fn of(o: &ReferenceOptions) -> Option<Self> {
        let (alpha, every) = o.ref_model_mixup_alpha.zip(o.ref_model_sync_steps)?;
        o.sync_ref_model.then_some(Self { alpha, every })
    }

    /// Whether the reference follows after step `step`, from 1. As in TRL also after one that was skipped.
    pub fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.every)
    }

    /// Enqueues a sync.
    pub fn take<B: Backend>(&self, be: &B, state: &mut State<B>) -> Result<()> {
        let n = state.model.table.len;
        let Some(to) = &mut state.reference else { return Ok(()) };
        be.mix(Mix {
            w: be.view_mut(&mut to.weights, 0..n),
            master: to.master.as_mut().map(|master| be.view_mut(master, 0..n)),
            from: be.view(&state.model.weights, 0..n),
            from_master: state.master.as_ref().map(|master| be.view(master, 0..n)),
            alpha: self.alpha,
        })
    }
}

/// Refuses a reference that cannot be mixed with the policy.
pub fn check(policy: &ModelDir, reference: &ModelDir) -> Result<()> {
    let (p, r) = (policy.config(), reference.config());
    // What a text ends with, and what weights are stored as, makes no other model of them.
    let shape = |c: &crate::model::ModelConfig| {
        let mut c = c.clone();
        (c.eos_token_ids, c.bos_token_id, c.dtype) = (Vec::new(), None, None);
        c
    };
    if shape(p) == shape(r) {
        return Ok(());
    }
    let why = format!(
        "its config.json describes another model than that of {}, so that their weights cannot be mixed: give a reference of \
         the same shape, or leave `options.sync_ref_model` out",
        policy.path().display()
    );
    Err(Error::file(reference.path(), why))
}

/// Gives `state` the memory of a synced reference.
pub fn reserve<B: Backend>(be: &B, state: &mut State<B>) -> Result<()> {
    let n = state.model.table.len;
    let weights = be.zeros("reference weights", n)?;
    let master = if B::MASTER_WEIGHTS { Some(be.zeros("reference master weights", n)?) } else { None };
    state.reference = Some(Synced { weights, master });
    Ok(())
}

/// [`reserve`], with the weights of `dir`.
pub fn load<B: Backend>(be: &B, state: &mut State<B>, dir: &ModelDir) -> Result<()> {
    reserve(be, state)?;
    let State { model, reference, .. } = state;
    let Some(Synced { weights, master }) = reference else { return Ok(()) };
    model.fill_from(be, dir, weights)?;
    master.as_mut().map_or(Ok(()), |master| model.fill_from(be, dir, master))
}

/// Fills in the present reference's log-probs of all `batches`: this rank computes those of its own, one of them always being under
/// way on the device, and hears of the others.
pub fn fill<B: Backend>(engine: &mut Engine<'_, B>, batches: &mut Batches, spec: &LossSpec) -> Result<()> {
    let mut late = VecDeque::with_capacity(2);
    let own = &mut batches.own;
    for at in 0..own.len() {
        late.push_back(engine.start_reference(&own[at], spec)?);
        if at > 0 {
            let first = late.pop_front().expect("two were started");
            engine.collect_reference(first, &mut own[at - 1])?;
        }
    }
    if let (Some(last), Some(mb)) = (late.pop_front(), own.last_mut()) {
        engine.collect_reference(last, mb)?;
    }
    if engine.team.size() == 1 {
        return Ok(());
    }
    let numbers = batches.own.iter().flat_map(|mb| {
        let sums = mb.responses().iter().map(|slot| slot.ref_logp);
        sums.chain(mb.pairs().iter().flat_map(|slot| slot.ref_heads))
    });
    let told: Vec<u8> = numbers.flat_map(f64::to_le_bytes).collect();
    let all = engine.team.comm.gather(&told, "hear of the reference's log-probs")?.concat();
    let want: usize = batches.all().map(|of| of.responses().len() + 2 * of.pairs().len()).sum();
    if all.len() != want * size_of::<f64>() {
        let got = all.len() / size_of::<f64>();
        let why =
            format!("the ranks brought {got} log-probs of a reference in place of {want}: do all have the same data?");
        return Err(Error::Device(why));
    }
    let mut all = all.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x));
    let mut next = || all.next().expect("as many were counted");
    for of in batches.all_mut() {
        of.responses_mut().for_each(|slot| slot.ref_logp = next());
        of.pairs_mut().for_each(|slot| slot.ref_heads = [next(), next()]);
    }
    Ok(())
}

/// Calls `with` for each of `batches`, in order, once the present reference's log-probs of it are there: those of the next are
/// on their way by then.
pub fn each<B: Backend>(
    engine: &mut Engine<'_, B>,
    batches: Vec<MicroBatch>,
    spec: &LossSpec,
    mut with: impl FnMut(&mut Engine<'_, B>, MicroBatch) -> Result<()>,
) -> Result<()> {
    let mut before = None;
    for mb in batches {
        let late = engine.start_reference(&mb, spec)?;
        if let Some((mut mb, late)) = before.replace((mb, late)) {
            engine.collect_reference(late, &mut mb)?;
            with(engine, mb)?;
        }
    }
    let Some((mut mb, late)) = before else { return Ok(()) };
    engine.collect_reference(late, &mut mb)?;
    with(engine, mb)
}
