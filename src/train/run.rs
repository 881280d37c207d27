//! A training run: data, reference, steps, evaluation, export.

pub use super::summary::{Ended, Summary};

use super::adapter_options::warnings;
use super::announce::{announce, reference_line};
use super::best::Judge;
use super::card::{self, Card};
use super::check::{open_splits, warn_of_positions};
use super::checkpoint::{Checkpoint, Due, Identity, data_sha256};
use super::choices::GraphsChoice;
use super::engine::Engine;
use super::eval::EvalSet;
use super::eval_keys::refuse_unknown_metric;
use super::exchange;
use super::joined::Job;
use super::ledger::{self, HasReference};
use super::memory::MemoryPlan;
use super::metrics::Totals;
use super::optim::Optimizer;
use super::options::{Stage, TrainOptions};
use super::pass::Pass;
use super::ready::{self, Ready, choose_products, looked_at, refuse_empty_evaluation};
use super::record::{Outcome, Record};
use super::report_options::ReportTo;
use super::resume::{self, Start};
use super::samples::Sampler;
use super::saver::Saver;
use super::schedule::Schedule;
use super::sets::{self, NamedSet};
use super::state::State;
use super::stepper::Stepper;
use super::steps::Steps;
use super::synced::{self, Sync};
use super::team::Team;
use super::trained::Trained;
use super::trained_with::TrainedWith;
use super::trend::Trend;
use crate::backend::Backend;
use crate::data::plan::Planner;
use crate::data::shard::Dataset;
use crate::data::sidecar::Sidecars;
use crate::data::text::{TemplateChoice, TextTokenizer, TokenizerOptions};
use crate::error::{Error, Result};
use crate::files::RunDir;
use crate::model::{self, Gradients, Model, ModelDir, Quantized};
use crate::observe::jsonl::Jsonl;
use crate::observe::tensorboard::Events;
use crate::observe::{Both, Event, Observe};

/// Trains as `c` says and leaves the model in `c.files.out`. Where `observe` ends it, the step that it is at is finished, and
/// the model saved; where it pauses it, a checkpoint too. `c.resume` says whether it goes on from one.
pub fn train<B: Backend>(be: &B, c: &TrainOptions, observe: &mut dyn Observe) -> Result<Summary> {
    train_as(be, Job::ALONE, c, observe)
}

/// [`train`] by the processes of a job, each of which calls this with the same `c`. Rank 0 alone writes into `c.files.out`.
pub fn train_as<B: Backend>(be: &B, job: Job<'_>, c: &TrainOptions, observe: &mut dyn Observe) -> Result<Summary> {
    let first = job.comm.world().is_first();
    job.same_options(c)?;
    if let Some(said) = job.told(if first { resume::finished(c) } else { None })? {
        observe.tell(&Event::Note(&said))?;
        let steps = Record::read(&c.files.out).map_or(0, |r| r.steps_done);
        return Ok(Summary { steps, steps_asked: steps, ..Default::default() });
    }
    c.optim.check_on(be)?;
    let start = Start::shared(job.comm, c)?;
    let c = &job.settled(c, start.checkpoint())?;
    job.refuse::<B>(c)?;
    let team = job.team(c);
    let taken = start.take(c)?;
    let fitted = if c.data.fit { Some(start.fit(be, (c, team), observe)?) } else { None };
    let c = fitted.as_ref().unwrap_or(c);
    choose_products(be, c)?;
    let splits = open_splits(&c.files.data)?;
    refuse_empty_evaluation(c, &splits)?;
    let trained = Trained::of(c.train.train.as_deref())?;
    let learns = ready::learns(c, &trained, team.ranks());
    refuse_unknown_metric(c, splits.len() > 1)?;
    let sets = sets::open(c)?;
    let ready = Ready::new(be, c, (&splits, &sets, true), learns)?;
    let (dir, reference, schedule) = (&ready.dir, ready.reference.as_ref(), ready.schedule);
    let (slots, total) = (ready.planner.token_budget(), schedule.total);
    let mut identity = Identity::of(c, &splits, (dir, reference), be.fingerprint(), slots, &schedule)?;
    let mut record = Record::new(be, c, &identity, &splits, total)?;
    record.sha256.eval_sets = sets.iter().map(|set| (set.name.clone(), data_sha256(&set.data))).collect();
    job.compare(&team, &identity, (&schedule, &record.sha256.eval_sets))?;
    if c.stage == Stage::Dpo {
        record.reference = Some(reference_line(c, dir, reference)?);
    }
    let other_numerics = start.check(&mut identity, c, &schedule)?;
    if let Some(checkpoint) = start.checkpoint() {
        // Before anything in the run's folder is changed, and before the reference's pass.
        let (table, sections) = MemoryPlan::sections(be, dir.config(), learns)?;
        checkpoint.verify(&table, &sections)?;
    }
    let trained_with = TrainedWith::of(dir, &splits[0], observe)?;
    let out = if first { Some(start.open(taken, c, &mut record, other_numerics)?) } else { None };
    let run = Run { c, start, splits: &splits, sets: &sets, ready, trained: &trained, trained_with, team };
    let mut summary = Summary { steps_asked: total, ..run.carried() };
    let ended = run.go(be, schedule, identity, (out.as_ref(), &mut record), &mut summary, observe);
    match &ended {
        Ok(()) if summary.ended == Ended::Paused => record.end(Outcome::Stopped, None),
        Ok(()) => record.end(Outcome::Finished, None),
        Err(e @ Error::Stopped(_)) => record.end(Outcome::Stopped, Some(e.to_string())),
        Err(e) => record.end(Outcome::Failed, Some(e.to_string())),
    }
    let written = out.map_or(Ok(()), |out| out.write_record(record.to_text().as_bytes()));
    match (ended, written) {
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
    sets: &'a [NamedSet],
    ready: Ready<'a>,
    trained: &'a Trained,
    trained_with: TrainedWith,
    team: Team<'a>,
}

impl Run<'_> {
    /// What the summary has from before.
    fn carried(&self) -> Summary {
        let Some(checkpoint) = self.start.checkpoint() else { return Summary::default() };
        let carried = &checkpoint.saved().carried;
        Summary {
            reference_seconds: carried.reference_seconds,
            train_seconds: carried.train_seconds,
            eval_seconds: carried.eval_seconds,
            ..Default::default()
        }
    }

    /// Reference pass, steps, export.
    fn go<B: Backend>(
        self,
        be: &B,
        schedule: Schedule,
        identity: Identity,
        (out, record): (Option<&RunDir>, &mut Record),
        summary: &mut Summary,
        observe: &mut dyn Observe,
    ) -> Result<()> {
        let c = self.c;
        let ready = self.ready;
        let team = self.team;
        announce(be, c, &ready.planner, &schedule, observe)?;
        announce_team(&team, observe)?;
        if let (Some(plan), Some(_)) = (&ready.held_out, c.eval.max_eval_samples) {
            let (of, all) = (looked_at(c, plan).1, plan.units());
            observe.tell(&Event::Note(&format!("held out: the first {of} of {all} are evaluated, in whole steps")))?;
        }
        let looked = self.sets.iter().zip(&ready.sets).map(|(set, plan)| (set, looked_at(c, plan).1, plan.units()));
        sets::tell(&looked.collect::<Vec<_>>(), &self.splits[0], observe)?;
        warn_of_positions(ready.dir.config(), ready.positions, observe)?;
        let tokenizer = match &ready.samples {
            Some(plan) => {
                observe.tell(&Event::Note(&plan.line()))?;
                reads_samples(c, &ready.dir, &self.splits[0])?
            }
            None => None,
        };
        ready.memory.tell(be, observe)?;
        if let Some(line) = &record.reference {
            observe.tell(&Event::Note(&format!("reference: {line}")))?;
        }
        let sync = Sync::of(&c.reference);
        let clock = self.start.checkpoint().map_or_else(Default::default, |c| c.saved().clock);
        let mut sidecars = match &ready.reference {
            Some(model) if sync.is_none() => {
                let of = Pass { c, ready: &ready, held_out: true, team };
                let steps = schedule.total.saturating_sub(clock.step);
                let (sidecars, seconds) = of.run(be, model, (clock, steps), observe)?;
                summary.reference_seconds += seconds;
                sidecars
            }
            _ => Vec::new(),
        }
        .into_iter();
        // Whatever the reference pass used is free again.
        be.reserve(&ready.memory.table[..ready.lasting])?;
        let mut policy = Model::load(be, &ready.dir, ready.positions)?;
        self.trained.apply(&mut policy.table)?;
        tell_trained(&policy, observe)?;
        let mut engine = Engine::for_optimizer(be, policy, ready.capacity, ready.purpose, &c.optim)?;
        engine.join(team)?;
        if c.compute.cuda_graphs == GraphsChoice::On {
            engine.use_graphs()?;
        }
        let mut optimizer = Optimizer::shared(be, &mut engine.state, &c.optim, team.ranks())?.seeded(c.data.seed);
        if let (Some(_), Some(model)) = (sync, &ready.reference) {
            synced::load(be, &mut engine.state, model)?;
        }
        self.start.go_on(be, &mut engine.state, (c, out), observe)?;
        let reference = if c.loss().reference() { HasReference::Yes } else { HasReference::No };
        let header = c.ledger.keeps(&c.loss()).then(|| ledger::Header::of(&self.splits[0], reference));
        if let Some(out) = out {
            ledger::begin(out, self.start.held_ledger(out.path()), header)?;
        }
        let mut saver = Saver::new(
            (out, &c.files.out),
            (Due::new(&c.save, schedule.total), c.save.save_total_limit),
            identity,
            (c.to_toml()?, c.compute.matmul_plans.clone(), &self.trained_with),
            record,
            (self.start.own_step(), self.start.other_runs()),
        );
        let best = clock.watched.best.map(|best| best.step).filter(|_| c.eval.load_best_model_at_end);
        saver.protected = best.into_iter().collect();
        // Policy and reference are the same weights: step 0 must show no difference at all.
        let starts_at_reference = ready.reference.as_ref().is_some_and(|r| ready.dir.computes_as(r));
        let reports = c.report.report_to == ReportTo::Tensorboard;
        let mut events = out.map(|out| Events::open(out, reports.then(|| card::options(c)).as_deref())).transpose()?;
        let (plan, sidecars_of_steps) = (&ready.planner, sidecars.next());
        // In the order of the pass: what is held out comes second, where it is evaluated.
        let sidecars_of_held_out = ready.held_out.as_ref().and_then(|_| sidecars.next());
        let before = first_eval(c, self.start.checkpoint(), ready.held_out.as_ref(), observe)?;
        let held_out = ready.held_out.map(|plan| (looked_at(c, &plan).0, plan));
        let sets = self.sets.iter().zip(ready.sets);
        let mut lines = out.map(Jsonl);
        let (mut inner, mut outer);
        let followers: &mut dyn Observe = match (&mut lines, &mut events) {
            (Some(lines), Some(events)) => {
                inner = Both(events, &mut *observe);
                outer = Both(lines, &mut inner);
                &mut outer
            }
            _ => &mut *observe,
        };
        let steps = Steps {
            options: c,
            stepper: Stepper {
                spec: c.loss(),
                plan,
                sidecars: sidecars_of_steps,
                sync,
                starts_at_reference,
                schedule,
                seed: c.data.seed,
                ledger: c.ledger.keeps(&c.loss()) && team.is_first(),
                adapter_given: c.train.adapter.is_some(),
            },
            eval: held_out.map(|(steps, plan)| EvalSet { steps, plan, sidecars: sidecars_of_held_out }),
            sets: sets.map(|(set, plan)| (set.name.as_str(), eval_set(c, plan, sidecars.next()))).collect(),
            sampler: ready.samples.map(|plan| {
                let (reference, tokenizer) = (ready.reference.as_ref(), tokenizer.as_ref());
                Sampler { plan, reference, tokenizer, known: None }
            }),
            judge: Judge::of(&c.eval),
            saver,
            evaluated: None,
            before,
            after: None,
            best: [self.start.checkpoint().and_then(|c| c.saved().carried.best_eval.clone()), None],
            best_sets: Vec::new(),
            ends_early: None,
            trend: Trend::default(),
            observe: followers,
            summary,
        };
        steps.run(&mut engine, &mut optimizer)?;
        if engine.state.clock.step == 0 && summary.ended == Ended::Paused {
            return Err(Error::stopped("stopped before the first step; nothing was learned yet"));
        }
        exchange::whole_master(be, &mut engine.state, &team)?;
        let Some(out) = out else { return Ok(()) };
        let State { model, master, grads, .. } = &engine.state;
        let gathered = grads.as_ref().and_then(Gradients::all).filter(|_| team.size() > 1);
        let master = master.as_ref().map(|own| gathered.unwrap_or(own));
        let report = model::export(be, model, master, None, out.path(), c.save.save_dtype)?;
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
}

/// Says how many processes share how many lanes, where there are several.
fn announce_team(team: &Team<'_>, observe: &mut dyn Observe) -> Result<()> {
    let (lanes, size) = (team.lanes, team.size());
    let by = if size > 1 { format!("{size} processes, {}", team.comm.describe()) } else { "one process".to_owned() };
    match lanes {
        1 => Ok(()),
        _ => observe.tell(&Event::Note(&format!("{lanes} lanes, by {by}"))),
    }
}

/// What turns continuations into text, where some are to be read: the model's tokenizer, or the one beside the shards. Errors:
/// there is none.
fn reads_samples(c: &TrainOptions, model: &ModelDir, data: &Dataset) -> Result<Option<TextTokenizer>> {
    if c.eval.sample_prompts == 0 {
        return Ok(None);
    }
    if let Some(own) = model.tokenizer(None)? {
        return Ok(Some(own));
    }
    let options = TokenizerOptions { chat_template: TemplateChoice::None, ..Default::default() };
    TextTokenizer::load(data.folder(), &options).map(Some).map_err(|_| {
        Error::usage(format!(
            "`sample_prompts`: neither {} nor {} has a tokenizer to write texts with; leave it out",
            model.path().display(),
            data.folder().display()
        ))
    })
}

/// What is evaluated of a set.
fn eval_set<'a>(c: &TrainOptions, plan: Planner<'a>, sidecars: Option<Sidecars>) -> EvalSet<'a> {
    EvalSet { steps: looked_at(c, &plan).0, plan, sidecars }
}

/// The evaluation before the first step, where it was of what is evaluated now: others are not to be compared with it.
fn first_eval(
    c: &TrainOptions,
    from: Option<&Checkpoint>,
    held_out: Option<&Planner<'_>>,
    observe: &mut dyn Observe,
) -> Result<Option<Totals>> {
    let Some(saved) = from.map(Checkpoint::saved) else { return Ok(None) };
    let (first, most) = (saved.carried.first_eval.clone(), saved.identity.max_eval_samples());
    // What this call does not evaluate is carried on only where what it says of it, nothing, is what was said then.
    let (Some(first), Some(plan)) = (&first, held_out) else { return Ok(first.filter(|_| most.is_none())) };
    let (was, is) = (plan.steps_of(most.unwrap_or(u64::MAX)).1, looked_at(c, plan).1);
    if was == is {
        return Ok(Some(first.clone()));
    }
    let line = format!(
        "the evaluation before the first step was of {was} samples, and is not compared with those of {is} now"
    );
    observe.tell(&Event::Note(&line)).map(|()| None)
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
