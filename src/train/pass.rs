//! The reference's log-probs of what a run's steps read.

use super::clock::Clock;
use super::heads;
use super::mismatched;
use super::options::TrainOptions;
use super::ready::{Ready, looked_at};
use super::reference::Keep;
use super::team::Team;
use crate::backend::Backend;
use crate::data::plan::ResponseSet;
use crate::data::shard::Dataset;
use crate::data::sidecar::Sidecars;
use crate::error::Result;
use crate::model::ModelDir;
use crate::observe::{Event, Flow, Observe};
use std::collections::VecDeque;
use std::time::Instant;

/// What the log-probs are of.
pub(super) struct Pass<'a, 'd> {
    /// The run's options.
    pub c: &'a TrainOptions,
    /// What it is made from.
    pub ready: &'a Ready<'d>,
    /// Whether those of what is evaluated are asked for too.
    pub held_out: bool,
    /// Who shares the work; the first writes.
    pub team: Team<'a>,
}

impl Pass<'_, '_> {
    /// Log-probs under the reference of every response that `steps` steps read from where `clock` stands, then of the held-out split
    /// and of each other set; and how long it took.
    pub fn run<B: Backend>(
        &self,
        be: &B,
        model: &ModelDir,
        (clock, steps): (Clock, u64),
        observe: &mut dyn Observe,
    ) -> Result<(Vec<Sidecars>, f64)> {
        let (c, plan) = (self.c, &self.ready.planner);
        let slots = plan.token_budget();
        let from = (clock.epoch, clock.place);
        let evaluated = || self.ready.held_out.iter().chain(&self.ready.sets).filter(|_| self.held_out);
        let held_out = || evaluated().map(|plan| (plan, looked_at(c, plan).0));
        let others = held_out().map(|(plan, steps)| plan.responses((0, 0), steps));
        let needed: Vec<ResponseSet> = std::iter::once(plan.responses(from, steps)).chain(others).collect();
        let data: Vec<&Dataset> = std::iter::once(plan).chain(evaluated()).map(|plan| plan.data()).collect();
        let mut aloud = Aloud { observe, all: data.iter().map(|data| data.num_responses()).collect() };
        let parts: Vec<_> = data.into_iter().map(|d| (d, slots)).zip(needed).collect();
        let (parts, spec) = (&parts[..], &c.loss());
        let keep = Keep { cache: c.reference.cache.as_deref(), team: self.team };
        let done = heads::ensure_for(be, model, (parts, spec), keep, &mut aloud)?;
        let mut seconds = done.iter().map(|(_, report)| report.seconds).sum::<f64>();
        let mut sidecars: Vec<Sidecars> = done.into_iter().map(|(sidecars, _)| sidecars).collect();
        let others = held_out().map(|(plan, steps)| (plan, plan.mismatched((0, 0), steps)));
        let begun = Instant::now();
        for ((plan, rows), to) in std::iter::once((plan, plan.mismatched(from, steps))).chain(others).zip(&mut sidecars)
        {
            mismatched::ensure(be, model, (plan, &rows), keep, to, aloud.observe)?;
        }
        seconds += begun.elapsed().as_secs_f64();
        Ok((sidecars, seconds))
    }
}

/// Says of every split when the reference is through with it.
struct Aloud<'a> {
    observe: &'a mut dyn Observe,
    /// Responses of each split that is still to come.
    all: VecDeque<u64>,
}

impl Observe for Aloud<'_> {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        if let &Event::Referenced { responses, computed, seconds } = event {
            let all = self.all.pop_front().unwrap_or(responses);
            let was = if computed == 0 { "found" } else { "computed" };
            let unused = match all - responses {
                0 => String::new(),
                n => format!("; {n} others, which this run does not read, were left out"),
            };
            let line = format!("reference log-probs of {responses} responses {was} in {seconds:.1} s{unused}");
            self.observe.tell(&Event::Note(&line))?;
        }
        self.observe.on(event)
    }
}
