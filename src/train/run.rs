//! A training run: data, reference, steps, evaluation, export.

mod steps;

use super::check::{check_data, check_model, open_splits, warn_of_positions};
use super::choices::GraphsChoice;
use super::engine::{Engine, Purpose};
use super::eval::{self, EvalSet};
use super::memory::Budgets;
use super::metrics::Totals;
use super::optim::Optimizer;
use super::options::TrainOptions;
use super::reference;
use super::schedule::Schedule;
use crate::backend::Backend;
use crate::choice::Choice;
use crate::data::plan::{Objective, PlanOptions, Planner};
use crate::data::shard::Dataset;
use crate::data::sidecar::Sidecars;
use crate::error::{Error, Result};
use crate::files::RunDir;
use crate::loss::LossSpec;
use crate::model::graphs::no_graphs;
use crate::model::{self, Model, ModelDir};
use crate::observe::jsonl::Jsonl;
use crate::observe::{Event, Flow, Later, Observe};
use serde_json::{Map, Value, json};

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Steps taken.
    pub steps: u64,
    /// Last training metrics.
    pub last: Map<String, Value>,
    /// First and last evaluation.
    pub eval: Option<(Totals, Totals)>,
    /// Seconds of the reference pass.
    pub reference_seconds: f64,
    /// Seconds of the steps.
    pub train_seconds: f64,
    /// Share of weights that the saved files change.
    pub changed_share: f64,
}

/// Trains as `c` says and leaves the model in `c.files.out`. Where `observe` ends it, the step that it is at is finished, and
/// the model saved.
pub fn train<B: Backend>(be: &B, c: &TrainOptions, observe: &mut dyn Observe) -> Result<Summary> {
    let spec = c.loss();
    if c.compute.cuda_graphs == GraphsChoice::On && !B::GRAPHS {
        return Err(no_graphs());
    }
    if let Some(file) = &c.compute.matmul_plans {
        be.tune_products(file)?;
    }
    let splits = open_splits(&c.files.data)?;
    let eval_steps = c.eval.eval_steps;
    if eval_steps > 0 && splits.len() == 1 {
        let data = c.files.data.display();
        let why = format!(
            "`eval_steps` {eval_steps}: {data} has no held-out split; pack with `eval_fraction`, or leave it out"
        );
        return Err(Error::usage(why));
    }
    let dir = ModelDir::open(&c.files.model)?;
    let reference = spec.loss_type.def().reference.then(|| dir.open_other(c.reference_dir())).transpose()?;
    for d in &splits {
        check_data(&dir, d)?;
        if let Some(reference) = &reference {
            check_model(reference, d)?;
        }
    }
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
    let out = RunDir::create(&c.files.out, &c.to_toml()?)?;
    announce(be, c, &planner, &schedule, observe)?;
    warn_of_positions(dir.config(), positions, observe)?;
    memory.tell(be, observe)?;

    // Policy and reference are the same weights: step 0 must show no difference at all.
    let starts_at_reference = reference.as_ref().is_some_and(|r| r.is(&dir));
    let mut run = Run {
        c,
        data,
        spec,
        be,
        schedule,
        starts_at_reference,
        sidecars: None,
        eval: None,
        out,
        observe,
        summary: Summary::default(),
    };
    let mut sidecars = match &reference {
        Some(reference) => run.reference(reference, &splits, slots)?,
        None => Vec::new(),
    }
    .into_iter();
    run.sidecars = sidecars.next();
    run.eval = held_out.map(|plan| EvalSet { plan, sidecars: sidecars.next() });
    // Whatever the reference pass used is free again.
    be.reserve(&memory.table)?;
    let policy = Model::load(be, &dir, positions)?;
    let mut engine = Engine::new(be, policy, capacity, purpose)?;
    if c.compute.cuda_graphs == GraphsChoice::On {
        engine.use_graphs()?;
    }
    let mut optimizer = Optimizer::new(be, &engine.model, &c.optim)?;
    run.steps(&mut engine, &mut optimizer, &planner, total)?;
    run.save(&engine.model, optimizer.master.as_ref())?;
    Ok(run.summary)
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
    let what = if c.loss().loss_type.def().pair.is_some() { "pairs" } else { "responses" };
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

struct Run<'a, B: Backend> {
    c: &'a TrainOptions,
    data: &'a Dataset,
    spec: LossSpec,
    be: &'a B,
    schedule: Schedule,
    starts_at_reference: bool,
    sidecars: Option<Sidecars>,
    eval: Option<EvalSet<'a>>,
    out: RunDir,
    observe: &'a mut dyn Observe,
    summary: Summary,
}

/// What it tells goes into its own files, then to whoever follows it.
impl<B: Backend> Observe for Run<'_, B> {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        let flow = Jsonl(&mut self.out).on(event)?;
        Ok(flow.and(self.observe.on(event)?))
    }
}

impl<B: Backend> Run<'_, B> {
    /// Log-probs of every split under the reference.
    fn reference(&mut self, model: &ModelDir, splits: &[Dataset], slots: usize) -> Result<Vec<Sidecars>> {
        let parts: Vec<_> = splits.iter().map(|d| (d, slots)).collect();
        let done = reference::ensure(self.be, model, &parts, self.c.reference.cache.as_deref(), self.observe)?;
        let mut all = Vec::with_capacity(done.len());
        for (sidecars, report) in done {
            self.summary.reference_seconds += report.seconds;
            let was = if report.computed == 0 { "found" } else { "computed" };
            let (n, seconds) = (report.responses, report.seconds);
            self.tell(&Event::Note(&format!("reference log-probs of {n} responses {was} in {seconds:.1} s")))?;
            all.push(sidecars);
        }
        Ok(all)
    }

    /// An evaluation is finished even where the run is to stop.
    fn evaluate(&mut self, engine: &mut Engine<'_, B>, step: u64) -> Result<Flow> {
        let Some(set) = &self.eval else { return Ok(Flow::On) };
        let mut later = Later::new(self.observe);
        let totals = eval::evaluate(engine, set, &self.spec, &mut later)?;
        let flow = later.flow();
        let mut row = Map::new();
        row.insert("step".into(), json!(step));
        row.extend(totals.to_json("eval_"));
        let flow = flow.and(self.on(&Event::Evaluation { step, row: &row })?);
        let flow = flow.and(self.on(&Event::Note(&format!("step {step}: held-out {}", eval::line(&totals))))?);
        let first = self.summary.eval.take().map_or_else(|| totals.clone(), |(first, _)| first);
        self.summary.eval = Some((first, totals));
        Ok(flow)
    }

    fn save(&mut self, model: &Model<B>, master: Option<&B::Buf<B::Acc>>) -> Result<()> {
        let report = model::export(self.be, model, master, None, self.out.path(), self.c.save.save_dtype)?;
        self.summary.changed_share = report.changed_share();
        let (updated, changed) = (report.updated_share(), report.changed_share());
        self.observe.tell(&Event::Saved { path: self.out.path(), updated, changed })
    }
}
