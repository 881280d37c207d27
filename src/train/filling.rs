//! A pass that asks for no gradient, over all of some data: each rank computes its share of the micro-batches, all hear the numbers,
//! and rank 0 keeps them as they come.

use super::engine::Engine;
use crate::backend::Backend;
use crate::batch::{Batches, Outline};
use crate::data::plan::Planner;
use crate::data::sidecar::{Keyed, Sidecars};
use crate::error::{Error, Result};
use crate::loss::LossSpec;
use crate::observe::{Event, Flow, Observe};
use std::time::Duration;

/// How much work an interruption may lose.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// What a pass goes through.
pub(super) struct Work<'w> {
    /// Whose tokens they are.
    pub plan: &'w Planner<'w>,
    /// Steps of it.
    pub steps: u64,
    /// Their micro-batches.
    pub step: &'w dyn Fn(u64) -> Result<Vec<Outline>>,
    /// What is counted in a micro-batch,
    pub units: fn(&Outline) -> u64,
    /// how many there are of it,
    pub total: u64,
    /// and what it is called.
    pub called: &'static str,
    /// What is asked of the passes.
    pub spec: LossSpec,
}

/// What a pass leaves its numbers in.
pub(super) trait Fill {
    /// Takes those of the responses and of the pairs of a micro-batch.
    fn take(&mut self, of: &Outline, responses: &[f64], pairs: &[f64]);

    /// Makes what was taken survive the process; with `if_due` not before it is worth the work.
    fn keep(&mut self, if_due: bool) -> Result<()>;
}

/// Goes through `work` and leaves the numbers in `to`. Where `observe` ends it on any rank, rank 0 keeps what was computed.
pub(super) fn fill<B: Backend>(
    engine: &mut Engine<'_, B>,
    work: &Work<'_>,
    to: &mut impl Fill,
    observe: &mut dyn Observe,
) -> Result<()> {
    let team = engine.team;
    let (total, spec) = (work.total, &work.spec);
    let mut flow = observe.on(&Event::Begin { task: "reference", total, keeps: true })?;
    // One micro-batch is always under way while the host prepares the next.
    let mut before = None;
    let (mut step, mut seen) = (0, 0);
    while step < work.steps {
        let mut outlines = Vec::new();
        while step < work.steps && !team.is_enough(outlines.len()) {
            outlines.extend((work.step)(step)?);
            step += 1;
        }
        seen += outlines.iter().map(work.units).sum::<u64>();
        let mine = team.share(outlines.len());
        let mut batches = work.plan.batches(outlines, mine)?;
        if team.size() > 1 {
            let numbers = engine.evaluated(&batches, spec)?;
            batches.all().zip(numbers).for_each(|(of, (responses, pairs))| to.take(of, &responses, &pairs));
            batches = Batches::default();
        }
        for mb in batches.own {
            let late = engine.start_evaluation(&mb, spec)?;
            if let Some((mb, late)) = before.replace((mb, late)) {
                engine.read(late, |responses, pairs| to.take(mb.outline(), responses, pairs))?;
            }
        }
        flow = flow.and(observe.on(&Event::Tick)?);
        (flow, _) = team.agree(flow, false)?;
        let stop = flow != Flow::On;
        if let Some((mb, late)) = before.take_if(|_| stop || step == work.steps) {
            engine.read(late, |responses, pairs| to.take(mb.outline(), responses, pairs))?;
        }
        if team.is_first() {
            to.keep(!stop)?;
        }
        if stop {
            // Whoever ends with another exit code than 0 takes the others along.
            team.comm.barrier("wait for what rank 0 keeps")?;
            let (left, called) = (total - seen, work.called);
            let why = format!("stopped: {left} {called} still to do; the same command goes on from here");
            return Err(Error::stopped(why));
        }
        flow = observe.on(&Event::Progress { done: seen, beside: format_args!("") })?;
    }
    observe.tell(&Event::End)?;
    if team.is_first() { to.keep(false) } else { Ok(()) }
}

/// Makes `sidecars` survive the process.
pub(super) fn keep_sums(sidecars: &mut Sidecars, if_due: bool) -> Result<()> {
    if if_due { sidecars.flush_if_due(FLUSH_EVERY).map(drop) } else { sidecars.flush() }
}

/// Makes `keyed` survive the process.
pub(super) fn keep_keyed(keyed: &mut Keyed, if_due: bool) -> Result<()> {
    if if_due { keyed.flush_if_due(FLUSH_EVERY).map(drop) } else { keyed.flush() }
}
