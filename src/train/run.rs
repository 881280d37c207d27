//! A training run: data, reference, steps, evaluation, export.

pub use super::summary::Summary;

use super::check::{check_data, check_model, open_splits, warn_of_positions};
use super::choices::GraphsChoice;
use super::engine::{Engine, Purpose};
use super::eval::EvalSet;
use super::memory::Budgets;
use super::optim::Optimizer;
use super::options::TrainOptions;
use super::reference;
use super::schedule::Schedule;
use super::state::State;
use super::steps::Steps;
use super::trained_with::TrainedWith;
use crate::backend::Backend;
use crate::choice::Choice;
use crate::data::plan::{Objective, PlanOptions, Planner};
use crate::data::shard::Dataset;
use crate::data::sidecar::Sidecars;
use crate::error::{Error, Result};
use crate::files::RunDir;
use crate::model::graphs::no_graphs;
use crate::model::{self, Model, ModelDir};
use crate::observe::jsonl::Jsonl;
use crate::observe::{Both, Event, Flow, Observe};

/// Trains as `c` says and leaves the model in `c.files.out`. Where `observe` ends it, the step that it is at is finished, and
/// the model saved.
pub fn train<B: Backend>(be: &B, c: &TrainOptions, observe: &mut dyn Observe) -> Result<Summary> {
    choose_products(be, c)?;
    let splits = open_splits(&c.files.data)?;
    refuse_empty_evaluation(c, &splits)?;
    let (dir, reference) = open_models(c, &splits)?;
    let (data, held_out) = (&splits[0], splits.get(1));
    let options = plan_options(c);
    let planner = Planner::new(data, &options)?;
    let slots = planner.token_budget();
    let held_out =
        held_out.map(|d| Planner::new(d, &PlanOptions { shuffle: false, token_budget: Some(slots), ..options }));
    let held_out = held_out.transpose()?;
    let positions = splits.iter().map(Dataset::longest_row).max().unwrap_or(0);
    let budgets = Budgets::of([&planner].into_iter().chain(&held_out));
    let purpose = if c.compute.gradient_checkpointing { Purpose::Recompute } else { Purpose::Train };
    let memory = budgets.training(be, dir.config(), positions, (purpose, &c.optim))?;
    let capacity = budgets.capacity();
    let total = total_steps(c, &planner);
    let schedule = Schedule::new(&c.schedule, total)?;
    let trained_with = TrainedWith::of(&dir, data, observe)?;
    let mut out = RunDir::create(&c.files.out, &c.to_toml()?)?;
    announce(be, c, &planner, &schedule, observe)?;
    warn_of_positions(dir.config(), positions, observe)?;
    memory.tell(be, observe)?;

    let mut summary = Summary::default();
    let sidecars = match &reference {
        Some(model) => reference_pass(be, c, (model, &splits, slots), &mut summary, observe)?,
        None => Vec::new(),
    };
    let mut sidecars = sidecars.into_iter();
    // Whatever the reference pass used is free again.
    be.reserve(&memory.table)?;
    let policy = Model::load(be, &dir, positions)?;
    let mut engine = Engine::new(be, policy, capacity, purpose)?;
    if c.compute.cuda_graphs == GraphsChoice::On {
        engine.use_graphs()?;
    }
    let mut optimizer = Optimizer::new(be, &mut engine.state, &c.optim)?;
    let steps = Steps {
        options: c,
        spec: c.loss(),
        plan: &planner,
        sidecars: sidecars.next(),
        // Policy and reference are the same weights: step 0 must show no difference at all.
        starts_at_reference: reference.as_ref().is_some_and(|r| r.is(&dir)),
        schedule,
        eval: held_out.map(|plan| EvalSet { plan, sidecars: sidecars.next() }),
        observe: &mut Both(&mut Jsonl(&mut out), observe),
        summary: &mut summary,
    };
    steps.run(&mut engine, &mut optimizer)?;
    let State { model, master, .. } = &engine.state;
    let report = model::export(be, model, master.as_ref(), None, out.path(), c.save.save_dtype)?;
    trained_with.write(out.path())?;
    summary.changed_share = report.changed_share();
    let (updated, changed) = (report.updated_share(), report.changed_share());
    if let Some(why) = &report.not_compared {
        let why = format!("how much training changed is not known, but the model is whole: {why}");
        observe.tell(&Event::Warning(&why))?;
    }
    observe.tell(&Event::Saved { path: out.path(), updated, changed })?;
    Ok(summary)
}

/// How products and passes are enqueued, where that is asked for. Errors: a device that cannot.
fn choose_products<B: Backend>(be: &B, c: &TrainOptions) -> Result<()> {
    if c.compute.cuda_graphs == GraphsChoice::On && !B::GRAPHS {
        return Err(no_graphs());
    }
    c.compute.matmul_plans.as_ref().map_or(Ok(()), |file| be.tune_products(file))
}

fn refuse_empty_evaluation(c: &TrainOptions, splits: &[Dataset]) -> Result<()> {
    let eval_steps = c.eval.eval_steps;
    if eval_steps == 0 || splits.len() > 1 {
        return Ok(());
    }
    let data = c.files.data.display();
    Err(Error::usage(format!(
        "`eval_steps` {eval_steps}: {data} has no held-out split; pack with `eval_fraction`, or leave it out"
    )))
}

/// The model to train, and the reference where the loss has one; both fit the data.
fn open_models(c: &TrainOptions, splits: &[Dataset]) -> Result<(ModelDir, Option<ModelDir>)> {
    let dir = ModelDir::open(&c.files.model)?;
    // What the export will copy: a file that cannot be copied is known before the work.
    dir.read_side_files()?;
    let reference = c.loss().loss_type.def().reference.then(|| dir.open_other(c.reference_dir())).transpose()?;
    for d in splits {
        check_data(&dir, d)?;
        if let Some(reference) = &reference {
            check_model(reference, d)?;
        }
    }
    Ok((dir, reference))
}

/// Log-probs of every split under the reference.
fn reference_pass<B: Backend>(
    be: &B,
    c: &TrainOptions,
    (model, splits, slots): (&ModelDir, &[Dataset], usize),
    summary: &mut Summary,
    observe: &mut dyn Observe,
) -> Result<Vec<Sidecars>> {
    let parts: Vec<_> = splits.iter().map(|d| (d, slots)).collect();
    let done = reference::ensure(be, model, &parts, c.reference.cache.as_deref(), &mut Aloud(observe))?;
    summary.reference_seconds = done.iter().map(|(_, report)| report.seconds).sum();
    Ok(done.into_iter().map(|(sidecars, _)| sidecars).collect())
}

/// Says of every split when the reference is through with it.
struct Aloud<'a>(&'a mut dyn Observe);

impl Observe for Aloud<'_> {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        if let &Event::Referenced { responses, computed, seconds } = event {
            let was = if computed == 0 { "found" } else { "computed" };
            let line = format!("reference log-probs of {responses} responses {was} in {seconds:.1} s");
            self.0.tell(&Event::Note(&line))?;
        }
        self.0.on(event)
    }
}

/// How the run reads its data.
fn plan_options(c: &TrainOptions) -> PlanOptions {
    let objective = if c.loss().loss_type.def().pair.is_some() { Objective::Preference } else { Objective::Sft };
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

/// Says what the run is about to do.
fn announce<B: Backend>(
    be: &B,
    c: &TrainOptions,
    planner: &Planner<'_>,
    s: &Schedule,
    observe: &mut dyn Observe,
) -> Result<()> {
    let mut note = |text: String| observe.tell(&Event::Note(&text));
    let [model, data, out] = [&c.files.model, &c.files.data, &c.files.out].map(|p| p.display());
    note(format!("{}: {model} {data} -> {out}", be.description()))?;
    // Of an SFT run, how many of the data's responses it learns: the chosen, the best, and what nobody compared.
    let what = if c.loss().loss_type.def().pair.is_some() {
        "pairs".to_owned()
    } else {
        match planner.data().num_responses() {
            all if all > planner.units() => format!("responses (of {all}: every chosen or best one)"),
            _ => "responses".to_owned(),
        }
    };
    let beta = c.loss.beta.map_or_else(String::new, |b| format!(" beta {b}"));
    note(format!(
        "{} {what} an epoch, {} a step, {} steps; loss {}{beta}; {:?} lr {:e} {:?}, warm-up {}; clip {}; decay {}; {} token slots; seed {}",
        planner.units(),
        c.data.batch_size,
        s.total,
        c.loss.loss_type.name(),
        c.optim.optim,
        c.schedule.learning_rate,
        c.schedule.lr_scheduler_type,
        s.warmup,
        c.optim.max_grad_norm,
        c.optim.weight_decay,
        planner.token_budget(),
        c.data.seed
    ))?;
    if planner.unscorable() > 0 {
        note(format!(
            "{} {what} are skipped: a response of one token after an empty prompt has nothing to predict it",
            planner.unscorable()
        ))?;
    }
    if planner.skipped_groups() > 0 {
        let n = planner.skipped_groups();
        note(format!("{n} prompts have nothing to train this stage on and are skipped"))?;
    }
    Ok(())
}
