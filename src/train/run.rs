//! A training run: data, reference, steps, evaluation, export.

pub use super::summary::{Ended, Summary};

use super::adapter_options::warnings;
use super::announce::{announce, reference_line};
use super::card::Card;
use super::check::{check_data, check_loss, check_mismatched, check_model, open_splits, warn_of_positions};
use super::checkpoint::{Due, Identity};
use super::choices::GraphsChoice;
use super::engine::{Engine, Purpose};
use super::eval::EvalSet;
use super::heads;
use super::means;
use super::memory::{Budgets, MemoryPlan};
use super::mismatched;
use super::optim::Optimizer;
use super::options::{EvalStrategy, Stage, TrainOptions};
use super::record::{Outcome, Record};
use super::resume::{self, Start};
use super::saver::Saver;
use super::schedule::Schedule;
use super::state::State;
use super::steps::Steps;
use super::synced::{self, Sync};
use super::trained::{Learns, Trained};
use super::trained_with::TrainedWith;
use super::trend::Trend;
use crate::backend::Backend;
use crate::data::plan::{PlanOptions, Planner, ResponseSet};
use crate::data::shard::Dataset;
use crate::data::sidecar::Sidecars;
use crate::error::{Error, Result};
use crate::files::RunDir;
use crate::model::graphs::no_graphs;
use crate::model::{self, Model, ModelConfig, ModelDir, Quantized};
use crate::observe::jsonl::Jsonl;
use crate::observe::{Both, Event, Flow, Observe};
use std::path::Path;

/// Trains as `c` says and leaves the model in `c.files.out`. Where `observe` ends it, the step that it is at is finished, and
/// the model saved; where it pauses it, a checkpoint too. `c.resume` says whether it goes on from one.
pub fn train<B: Backend>(be: &B, c: &TrainOptions, observe: &mut dyn Observe) -> Result<Summary> {
    if let Some(said) = resume::finished(c) {
        observe.tell(&Event::Note(&said))?;
        let steps = Record::read(&c.files.out).map_or(0, |r| r.steps_done);
        return Ok(Summary { steps, steps_asked: steps, ..Default::default() });
    }
    c.optim.check_on(be)?;
    let start = Start::of(c)?;
    let taken = start.take(c)?;
    choose_products(be, c)?;
    let splits = open_splits(&c.files.data)?;
    refuse_empty_evaluation(c, &splits)?;
    let (dir, reference) = open_models(c, &splits)?;
    let (planner, held_out) = planners(c, &splits)?;
    let slots = planner.token_budget();
    let positions = [&planner].into_iter().chain(&held_out).map(Planner::longest_row).max().unwrap_or(0);
    for model in [Some(&dir), reference.as_ref()].into_iter().flatten() {
        [&planner].into_iter().chain(&held_out).try_for_each(|plan| check_mismatched(model, plan))?;
    }
    let trained = Trained::of(c.train.train.as_deref())?;
    let learns = Learns { optim: &c.optim, trained: &trained, synced: c.reference.sync_ref_model };
    let budgets = Budgets::of([&planner].into_iter().chain(&held_out));
    let purpose = if c.compute.gradient_checkpointing { Purpose::Recompute } else { Purpose::Train };
    let (memory, purpose) = budgets.training(be, dir.config(), positions, (purpose, learns))?;
    let capacity = budgets.capacity();
    let total = total_steps(c, &planner);
    let schedule = Schedule::new(&c.schedule, total)?;
    let mut identity = Identity::of(c, &splits, (&dir, reference.as_ref()), be.fingerprint(), slots, &schedule)?;
    let mut record = Record::new(be, c, &identity, &splits, total)?;
    if c.stage == Stage::Dpo {
        record.reference = Some(reference_line(c, &dir, reference.as_ref())?);
    }
    let other_numerics = start.check(&mut identity, c, &schedule)?;
    if let Some(checkpoint) = start.checkpoint() {
        // Before anything in the run's folder is changed, and before the reference's pass.
        let (table, sections) = MemoryPlan::sections(be, dir.config(), learns)?;
        checkpoint.verify(&table, &sections)?;
    }
    let trained_with = TrainedWith::of(&dir, &splits[0], observe)?;
    let out = start.open(taken, c, &mut record, other_numerics)?;
    let run = Run {
        c,
        start,
        splits: &splits,
        planner,
        held_out,
        dir,
        reference,
        memory,
        capacity,
        purpose,
        positions,
        trained: &trained,
        trained_with,
    };
    let mut summary = Summary { steps_asked: total, ..run.carried() };
    let ended = run.go(be, schedule, identity, (&out, &mut record), &mut summary, observe);
    match &ended {
        Ok(()) if summary.ended == Ended::Paused => record.end(Outcome::Stopped, None),
        Ok(()) => record.end(Outcome::Finished, None),
        Err(e @ Error::Stopped(_)) => record.end(Outcome::Stopped, Some(e.to_string())),
        Err(e) => record.end(Outcome::Failed, Some(e.to_string())),
    }
    match (ended, out.write_record(record.to_text().as_bytes())) {
        (Ok(()), Ok(())) => Ok(summary),
        (Ok(()), Err(e)) => observe.tell(&Event::Warning(&format!("{e}; it is not up to date"))).map(|()| summary),
        // The first thing that went wrong is the one to report.
        (Err(e), _) => Err(e),
    }
}

/// A run whose parts are known to fit together.
struct Run<'a> {
    c: &'a TrainOptions,
    start: Start,
    splits: &'a [Dataset],
    planner: Planner<'a>,
    held_out: Option<Planner<'a>>,
    dir: ModelDir,
    reference: Option<ModelDir>,
    memory: MemoryPlan,
    capacity: crate::batch::Capacity,
    purpose: Purpose,
    positions: usize,
    trained: &'a Trained,
    trained_with: TrainedWith,
}

impl Run<'_> {
    /// What the summary has from before.
    fn carried(&self) -> Summary {
        let Some(checkpoint) = self.start.checkpoint() else { return Summary::default() };
        let carried = &checkpoint.saved().carried;
        Summary {
            reference_seconds: carried.reference_seconds,
            train_seconds: carried.train_seconds,
            ..Default::default()
        }
    }

    /// Reference pass, steps, export.
    fn go<B: Backend>(
        self,
        be: &B,
        schedule: Schedule,
        identity: Identity,
        (out, record): (&RunDir, &mut Record),
        summary: &mut Summary,
        observe: &mut dyn Observe,
    ) -> Result<()> {
        let c = self.c;
        announce(be, c, &self.planner, &schedule, observe)?;
        if let (Some(plan), Some(_)) = (&self.held_out, c.eval.max_eval_samples) {
            let (of, all) = (looked_at(c, plan).1, plan.units());
            observe.tell(&Event::Note(&format!("held out: the first {of} of {all} are evaluated, in whole steps")))?;
        }
        warn_of_positions(self.dir.config(), self.positions, observe)?;
        self.memory.tell(be, observe)?;
        if let Some(line) = &record.reference {
            observe.tell(&Event::Note(&format!("reference: {line}")))?;
        }
        let sync = Sync::of(&c.reference);
        let mut sidecars = match &self.reference {
            Some(model) if sync.is_none() => self.reference_pass(be, model, &schedule, summary, observe)?,
            _ => Vec::new(),
        }
        .into_iter();
        // Whatever the reference pass used is free again.
        be.reserve(&self.memory.table)?;
        let mut policy = Model::load(be, &self.dir, self.positions)?;
        self.trained.apply(&mut policy.table)?;
        tell_trained(&policy, observe)?;
        let mut engine = Engine::for_optimizer(be, policy, self.capacity, self.purpose, &c.optim)?;
        if c.compute.cuda_graphs == GraphsChoice::On {
            engine.use_graphs()?;
        }
        let mut optimizer = Optimizer::new(be, &mut engine.state, &c.optim)?.seeded(c.data.seed);
        if let (Some(_), Some(model)) = (sync, &self.reference) {
            synced::load(be, &mut engine.state, model)?;
        }
        self.start.go_on(be, &mut engine.state, (c, out), observe)?;
        let saver = Saver::new(
            out,
            (Due::new(&c.save, schedule.total), c.save.save_total_limit),
            identity,
            (c.to_toml()?, c.compute.matmul_plans.clone(), &self.trained_with),
            record,
            self.start.own_step(),
        );
        // Policy and reference are the same weights: step 0 must show no difference at all.
        let starts_at_reference = self.reference.as_ref().is_some_and(|r| self.dir.computes_as(r));
        let (plan, spec) = (&self.planner, c.loss());
        let steps = Steps {
            options: c,
            spec,
            plan,
            sidecars: sidecars.next(),
            sync,
            starts_at_reference,
            schedule,
            eval: self.held_out.map(|plan| EvalSet { steps: looked_at(c, &plan).0, plan, sidecars: sidecars.next() }),
            saver,
            evaluated: None,
            before: self.start.checkpoint().and_then(|c| c.saved().carried.first_eval.clone()),
            after: None,
            trend: Trend::default(),
            observe: &mut Both(&mut Jsonl(out), observe),
            summary,
        };
        steps.run(&mut engine, &mut optimizer)?;
        if engine.state.clock.step == 0 && summary.ended == Ended::Paused {
            return Err(Error::stopped("stopped before the first step; nothing was learned yet"));
        }
        let State { model, master, .. } = &engine.state;
        let report = model::export(be, model, master.as_ref(), None, out.path(), c.save.save_dtype)?;
        self.trained_with.write(out.path())?;
        summary.changed_share = report.changed_share();
        if let Some(why) = &report.not_compared {
            let why = format!("how much training changed is not known, but the model is whole: {why}");
            observe.tell(&Event::Warning(&why))?;
        }
        let card = Card {
            options: c,
            record,
            summary,
            splits: self.splits,
            steps: engine.state.clock.step,
            parameters: (model.table.num_trained(), model.table.num_parameters()),
        };
        card.write(out, observe)?;
        let (updated, changed) = (report.updated_share(), report.changed_share());
        observe.tell(&Event::Saved { path: out.path(), updated, changed })
    }

    /// Log-probs under the reference of every response that a step to come reads, and of those held out.
    fn reference_pass<B: Backend>(
        &self,
        be: &B,
        model: &ModelDir,
        schedule: &Schedule,
        summary: &mut Summary,
        observe: &mut dyn Observe,
    ) -> Result<Vec<Sidecars>> {
        let slots = self.planner.token_budget();
        let clock = self.start.checkpoint().map_or_else(Default::default, |c| c.saved().clock);
        let used = self.planner.responses((clock.epoch, clock.place), schedule.total.saturating_sub(clock.step));
        let held_out = self.held_out.iter().map(|plan| plan.responses((0, 0), looked_at(self.c, plan).0));
        let needed: Vec<ResponseSet> = std::iter::once(used).chain(held_out).collect();
        let parts: Vec<_> = self.splits.iter().map(|d| (d, slots)).zip(needed).collect();
        let mut aloud = Aloud { observe, all: self.splits.iter().map(Dataset::num_responses).collect() };
        let (parts, spec) = (&parts[..], &self.c.loss());
        let done = heads::ensure_for(be, model, (parts, spec), self.c.reference.cache.as_deref(), &mut aloud)?;
        summary.reference_seconds += done.iter().map(|(_, report)| report.seconds).sum::<f64>();
        let mut sidecars: Vec<Sidecars> = done.into_iter().map(|(sidecars, _)| sidecars).collect();
        let used = self.planner.mismatched((clock.epoch, clock.place), schedule.total.saturating_sub(clock.step));
        let held_out = self.held_out.iter().map(|plan| (plan, plan.mismatched((0, 0), looked_at(self.c, plan).0)));
        let begun = std::time::Instant::now();
        for ((plan, rows), to) in std::iter::once((&self.planner, used)).chain(held_out).zip(&mut sidecars) {
            mismatched::ensure(be, model, (plan, &rows), self.c.reference.cache.as_deref(), to, aloud.observe)?;
        }
        summary.reference_seconds += begun.elapsed().as_secs_f64();
        Ok(sidecars)
    }
}

/// How products and passes are enqueued, where that is asked for. Errors: a device that cannot.
pub(super) fn choose_products<B: Backend>(be: &B, c: &TrainOptions) -> Result<()> {
    if c.compute.cuda_graphs == GraphsChoice::On && !B::GRAPHS {
        return Err(no_graphs());
    }
    c.compute.matmul_plans.as_ref().map_or(Ok(()), |file| be.tune_products(file))
}

pub(super) fn refuse_empty_evaluation(c: &TrainOptions, splits: &[Dataset]) -> Result<()> {
    let (data, eval) = (c.files.data.display(), &c.eval);
    let asked = match (eval.eval_steps, eval.max_eval_samples) {
        _ if splits.len() > 1 => return Ok(()),
        (0, None) => return Ok(()),
        (0, Some(most)) => format!("`max_eval_samples` {most}"),
        (steps, _) => format!("`eval_steps` {steps}"),
    };
    Err(Error::usage(format!("{asked}: {data} has no held-out split; pack with `eval_fraction`, or leave it out")))
}

/// Says how many parameters train, where not all do, and what others would make of an adapter.
fn tell_trained<B: Backend>(policy: &Model<B>, observe: &mut dyn Observe) -> Result<()> {
    let (some, all) = (policy.table.num_trained(), policy.table.num_parameters());
    if some < all {
        observe.tell(&Event::Note(&format!("{some} of {all} parameters train, the others are frozen")))?;
    }
    if let Some(Quantized { double }) = policy.config.quantized {
        let n: usize = policy.table.nf4.iter().map(|p| p.len).sum();
        let bits = if double { "4.127" } else { "4.5" };
        observe
            .tell(&Event::Note(&format!("{n} of them, the linear weights of blocks, are in NF4: {bits} bits each")))?;
    }
    let Some(shape) = &policy.config.adapter else { return Ok(()) };
    if shape.dropout > 0.0 {
        let line = format!(
            "the adapter drops {} of its input in the passes that train it, and nothing in others",
            shape.dropout
        );
        observe.tell(&Event::Note(&line))?;
    }
    warnings(shape).iter().try_for_each(|why| observe.tell(&Event::Warning(why)))
}

/// The model to train, and the reference where the loss has one; both fit the data.
fn open_models(c: &TrainOptions, splits: &[Dataset]) -> Result<(ModelDir, Option<ModelDir>)> {
    let mut dir = ModelDir::open(c.folder(&c.files.model))?;
    check_quantized(dir.path(), dir.config(), c)?;
    dir = dir.quantized_if(c.train.quantized())?;
    if let Some(adapter) = &c.train.adapter {
        dir = dir.with_adapter_dropping(c.folder(adapter), c.train.lora_dropout)?;
    }
    let base = dir.clone();
    if let Some((shape, init)) = c.train.new_adapter() {
        dir = dir.with_new_adapter(shape, init, c.data.seed)?;
    }
    // What the export will copy: a file that cannot be copied is known before the work.
    dir.read_side_files()?;
    // Of a new adapter, what it is beside: it changes nothing yet. Of a loaded one, the policy as it is now.
    let reference = match &c.reference.ref_model {
        _ if !c.loss().reference() => None,
        Some(other) if c.train.has_adapter() => Some(base.base().open_other(c.folder(other))?),
        Some(other) => Some(dir.open_other(c.folder(other))?),
        None => Some(base),
    };
    for d in splits {
        check_data(&dir, d)?;
        check_loss(&c.loss(), d)?;
        if let Some(reference) = &reference {
            check_model(reference, d)?;
        }
    }
    if let Some(reference) = reference.as_ref().filter(|_| c.reference.sync_ref_model) {
        synced::check(&dir, reference)?;
    }
    Ok((dir, reference))
}

/// Refuses what cannot be done with the weights of `model` in four bits, `config` being of it as it is stored.
pub(super) fn check_quantized(model: &Path, config: &ModelConfig, c: &TrainOptions) -> Result<()> {
    let Some(_) = config.quantized else { return Ok(()) };
    if c.train.quantized().is_some() {
        return Err(model::dir::quantized_already(model));
    }
    match c.train.has_adapter() {
        true => Ok(()),
        false => Err(Error::file(
            model,
            "its weights are in four bits, which do not train: give `options.lora_r` to train an adapter beside them, or the model that is not quantized",
        )),
    }
}

/// Says of every split when the reference is through with it.
struct Aloud<'a> {
    observe: &'a mut dyn Observe,
    /// Responses of each split that is still to come.
    all: std::collections::VecDeque<u64>,
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

/// How the run cuts what it trains on, and what is held out.
pub(super) fn planners<'a>(c: &TrainOptions, splits: &'a [Dataset]) -> Result<(Planner<'a>, Option<Planner<'a>>)> {
    let options = plan_options(c);
    let planner = Planner::new(&splits[0], &options)?;
    let held_out = PlanOptions { shuffle: false, token_budget: Some(planner.token_budget()), ..options };
    let evaluated = splits.get(1).filter(|_| c.eval.eval_strategy != EvalStrategy::No);
    let held_out = evaluated.map(|data| Planner::new(data, &held_out)).transpose()?;
    Ok((planner, held_out))
}

/// Steps of the held-out split that an evaluation takes, and their pairs (SFT: responses).
fn looked_at(c: &TrainOptions, held_out: &Planner<'_>) -> (u64, u64) {
    held_out.steps_of(c.eval.max_eval_samples.unwrap_or(u64::MAX))
}

/// How the run reads its data.
pub(super) fn plan_options(c: &TrainOptions) -> PlanOptions {
    let objective = means::objective(&c.loss());
    PlanOptions {
        objective,
        batch_size: c.data.batch_size,
        token_budget: c.data.token_budget,
        seed: c.data.seed,
        shuffle: true,
    }
}

/// Steps of the run: `max_steps`, or whole epochs and the given share of the last.
fn total_steps(c: &TrainOptions, planner: &Planner<'_>) -> u64 {
    c.data.max_steps.unwrap_or_else(|| {
        let whole = c.data.num_train_epochs.floor() as u64;
        let part = c.data.num_train_epochs - whole as f64;
        let steps: u64 = (0..whole).map(|e| planner.steps_in_epoch(e)).sum();
        steps + (part * planner.steps_in_epoch(whole) as f64).ceil() as u64
    })
}
