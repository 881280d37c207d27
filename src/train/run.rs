//! A training run: data, reference, steps, evaluation, export.

use super::check::{check_data, check_model, longest_row, open_splits};
use super::config::{GraphsChoice, TrainConfig};
use super::engine::{Engine, Late, Purpose};
use super::eval::{self, EvalSet};
use super::memory::{Budgets, MemoryPlan};
use super::metrics::Totals;
use super::optim::Optimizer;
use super::reference;
use super::schedule::Schedule;
use crate::backend::Backend;
use crate::data::batch::MicroBatch;
use crate::data::dataset::Dataset;
use crate::data::plan::{Objective, PlanOptions, Planner};
use crate::data::sidecar::Sidecars;
use crate::error::{Error, Result};
use crate::loss::LossSpec;
use crate::model::graphs::no_graphs;
use crate::model::{self, Model, ModelConfig};
use crate::output::RunDir;
use crate::progress::Progress;
use crate::signal;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::time::Instant;

/// Steps in a row that may be skipped for non-finite values.
const MAX_SKIPPED: u32 = 3;

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

/// Trains as `c` says and leaves the model in `c.out`.
pub fn train<B: Backend>(be: &B, c: &TrainConfig) -> Result<Summary> {
    let spec = c.loss();
    if c.cuda_graphs == GraphsChoice::On && !B::GRAPHS {
        return Err(no_graphs());
    }
    if let Some(file) = &c.matmul_plans {
        be.tune_products(file)?;
    }
    let splits = open_splits(&c.data)?;
    for d in &splits {
        check_data(&c.model, d)?;
        if spec.loss_type.def().reference {
            check_model(c.reference(), d)?;
        }
    }
    let (data, held_out) = (&splits[0], splits.get(1));
    let options = plan_options(c);
    let planner = Planner::new(data, &options)?;
    let slots = planner.token_budget();
    let held_out =
        held_out.map(|d| Planner::new(d, &PlanOptions { shuffle: false, token_budget: Some(slots), ..options }));
    let held_out = held_out.transpose()?;
    let (config, positions) = (ModelConfig::load(&c.model)?, splits.iter().map(longest_row).max().unwrap_or(0));
    let budgets = Budgets::of([&planner].into_iter().chain(&held_out));
    let purpose = if c.gradient_checkpointing { Purpose::Recompute } else { Purpose::Train };
    let plan = |capacity| MemoryPlan::training(be, &config, positions, capacity, (purpose, c));
    let memory = budgets.fitting(be, plan)?;
    let capacity = budgets.capacity();
    let total = total_steps(c, &planner);
    let schedule = Schedule::new(c.lr_scheduler_type, c.learning_rate, c.warmup_steps, c.warmup_ratio, total)?;
    let out = RunDir::create(&c.out, &toml::to_string(c).map_err(|e| Error::usage(e.to_string()))?)?;
    announce(be, c, &planner, &schedule);
    memory.print(be)?;

    let mut run = Run { c, data, spec, be, schedule, sidecars: None, eval: None, out, summary: Summary::default() };
    let needs_reference = spec.loss_type.def().reference;
    if needs_reference {
        run.sidecars = Some(run.reference(data, slots)?);
    }
    if let Some(plan) = held_out {
        let sidecars = if needs_reference { Some(run.reference(plan.data(), slots)?) } else { None };
        run.eval = Some(EvalSet { plan, sidecars });
    }
    // Whatever the reference pass used is free again.
    be.reserve(&memory.table)?;
    let policy = Model::load(be, &c.model, positions)?;
    let mut engine = Engine::new(be, policy, capacity, purpose)?;
    if c.cuda_graphs == GraphsChoice::On {
        engine.use_graphs()?;
    }
    let mut optimizer = Optimizer::new(be, &engine.model, c)?;
    run.steps(&mut engine, &mut optimizer, &planner, total)?;
    run.save(&engine.model, optimizer.master.as_ref())?;
    Ok(run.summary)
}

/// How the run reads its data.
fn plan_options(c: &TrainConfig) -> PlanOptions {
    let objective = if c.loss().loss_type.def().pair.is_some() { Objective::Preference } else { Objective::Sft };
    PlanOptions { objective, batch_size: c.batch_size, token_budget: c.token_budget, seed: c.seed, shuffle: true }
}

/// Steps of the run: `max_steps`, or whole epochs and the given share of the last.
fn total_steps(c: &TrainConfig, planner: &Planner<'_>) -> u64 {
    c.max_steps.unwrap_or_else(|| {
        let whole = c.num_train_epochs.floor() as u64;
        let part = c.num_train_epochs - whole as f64;
        let steps: u64 = (0..whole).map(|e| planner.steps_in_epoch(e)).sum();
        steps + (part * planner.steps_in_epoch(whole) as f64).ceil() as u64
    })
}

fn announce<B: Backend>(be: &B, c: &TrainConfig, planner: &Planner<'_>, s: &Schedule) {
    eprintln!("{}: {} {} -> {}", be.description(), c.model.display(), c.data.display(), c.out.display());
    let what = if c.loss().loss_type.def().pair.is_some() { "pairs" } else { "responses" };
    let beta = c.beta.map_or_else(String::new, |b| format!(" beta {b}"));
    eprintln!(
        "{} {what} an epoch, {} a step, {} steps; loss {}{beta}; {:?} lr {:e} {:?}, warm-up {}; clip {}; decay {}; {} token slots; seed {}",
        planner.units(),
        c.batch_size,
        s.total,
        c.loss_type.name(),
        c.optim,
        c.learning_rate,
        c.lr_scheduler_type,
        s.warmup,
        c.max_grad_norm,
        c.weight_decay,
        planner.token_budget(),
        c.seed
    );
    if planner.unscorable() > 0 {
        eprintln!(
            "{} {what} are skipped: a response of one token after an empty prompt has nothing to predict it",
            planner.unscorable()
        );
    }
    if planner.skipped_groups() > 0 {
        eprintln!("{} prompts have nothing to train this stage on and are skipped", planner.skipped_groups());
    }
}

struct Run<'a, B: Backend> {
    c: &'a TrainConfig,
    data: &'a Dataset,
    spec: LossSpec,
    be: &'a B,
    schedule: Schedule,
    sidecars: Option<Sidecars>,
    eval: Option<EvalSet<'a>>,
    out: RunDir,
    summary: Summary,
}

impl<B: Backend> Run<'_, B> {
    fn reference(&mut self, data: &Dataset, slots: usize) -> Result<Sidecars> {
        let (sidecars, report) = reference::ensure(self.be, self.c.reference(), data, self.c.cache.as_deref(), slots)?;
        self.summary.reference_seconds += report.seconds;
        let was = if report.computed == 0 { "found" } else { "computed" };
        eprintln!("reference log-probs of {} responses {was} in {:.1} s", report.responses, report.seconds);
        Ok(sidecars)
    }

    /// Policy and reference start from the same weights, so that step 0 must show no difference at all.
    fn starts_at_reference(&self) -> bool {
        self.sidecars.is_some() && self.c.ref_model.as_ref().is_none_or(|r| *r == self.c.model)
    }

    fn steps(
        &mut self,
        engine: &mut Engine<'_, B>,
        opt: &mut Optimizer<B>,
        plan: &Planner<'_>,
        total: u64,
    ) -> Result<()> {
        self.evaluate(engine, 0)?;
        let mut progress = Progress::new(if self.sidecars.is_some() { "dpo" } else { "sft" }, total);
        let mut log = Log { skipped: 0, tokens: 0, at: Instant::now() };
        let (mut epoch, mut at, mut before) = (0, 0, None);
        for step in 1..=total {
            if at == plan.steps_in_epoch(epoch) {
                (epoch, at) = (epoch + 1, 0);
            }
            let this = self.start(engine, plan, [epoch, at], step);
            at += 1;
            // Its numbers have long been there: the device is at work on the passes that were started just now. They are
            // written even where that failed.
            if let Some(before) = before.take() {
                let finished = self.finish(engine, opt, before, plan, &mut log, &mut progress);
                this.as_ref().map_or(Ok(()), |_| finished)?;
            }
            let mut this = this?;
            if step == 1 && self.starts_at_reference() {
                this.collect(engine)?;
                prove_step_0(&this.totals, &self.spec)?;
            }
            let grads = engine.grads.as_ref().expect("an engine made to train has gradients");
            opt.step(engine.be, &mut engine.model, grads, this.lr)?;
            let stop = signal::stop_requested();
            let evaluates = step == total || stop || (self.c.eval_steps > 0 && step % self.c.eval_steps == 0);
            if evaluates || !B::ASYNC {
                self.finish(engine, opt, this, plan, &mut log, &mut progress)?;
            } else {
                before = Some(this);
            }
            if evaluates {
                self.evaluate(engine, step)?;
            }
            if stop {
                progress.say(&format!("stopped after step {step} of {total}; saving what was learned so far"));
                break;
            }
        }
        progress.finish();
        Ok(())
    }

    /// Enqueues the passes of a step.
    fn start(
        &mut self,
        engine: &mut Engine<'_, B>,
        plan: &Planner<'_>,
        [epoch, at]: [u64; 2],
        step: u64,
    ) -> Result<InFlight<B>> {
        let begun = Instant::now();
        self.data.check_unchanged()?;
        let mut batches = plan.step(epoch, at);
        if let Some(sidecars) = &self.sidecars {
            eval::fill_reference(&mut batches, sidecars)?;
        }
        let scale = eval::mean_scale(&batches);
        engine.clear_grads()?;
        let mut late = VecDeque::with_capacity(batches.len());
        for mb in batches {
            let numbers = engine.start(&mb, &self.spec, scale)?;
            late.push_back((mb, numbers));
        }
        let lr = self.schedule.at(step - 1);
        Ok(InFlight { step, epoch, at, lr, begun, late, totals: Totals::default() })
    }

    /// Reads and reports a step's numbers: on a device that works by itself, while it is at the next.
    fn finish(
        &mut self,
        engine: &mut Engine<'_, B>,
        opt: &mut Optimizer<B>,
        mut done: InFlight<B>,
        plan: &Planner<'_>,
        log: &mut Log,
        progress: &mut Progress,
    ) -> Result<()> {
        done.collect(engine)?;
        let norm = opt.settle(engine.be)?;
        let InFlight { step, epoch, at, lr, begun, totals, .. } = done;
        // Where steps overlap, one begins to take time when the one before is done.
        let seconds = begun.max(log.at).elapsed().as_secs_f64();
        log.at = Instant::now();
        log.skipped = self.check_finite(&totals, norm, step, log.skipped, progress, || pair_ids(plan, epoch, at))?;
        self.summary.train_seconds += seconds;
        self.summary.steps = step;
        log.tokens += totals.tokens_with_prompts;
        let epochs = epoch as f64 + (at + 1) as f64 / plan.steps_in_epoch(epoch) as f64;
        let row = row(step, epochs, &totals, norm, lr, log.tokens, seconds);
        self.out.log(&row)?;
        progress.set(step, || note(&totals, seconds));
        self.summary.last = row;
        Ok(())
    }

    /// Reports a step that was skipped; ends the run after [`MAX_SKIPPED`] in a row, or where it skipped all it had.
    fn check_finite(
        &self,
        totals: &Totals,
        norm: f64,
        step: u64,
        skipped: u32,
        progress: &Progress,
        pairs: impl Fn() -> Vec<u64>,
    ) -> Result<u32> {
        if norm.is_finite() && totals.non_finite.is_empty() {
            return Ok(0);
        }
        // Where every loss is finite and the gradient is not, any of the step's pairs may be the cause.
        let mut ids = if totals.non_finite.is_empty() { pairs() } else { totals.non_finite.clone() };
        ids.sort_unstable();
        ids.dedup();
        ids.truncate(8);
        progress.say(&format!("step {step} skipped: gradient norm {norm}, loss {}, pairs {ids:?}", totals.mean_loss()));
        let skipped = skipped + 1;
        if skipped < MAX_SKIPPED && !(step == self.schedule.total && u64::from(skipped) == step) {
            return Ok(skipped);
        }
        Err(Error::Training(format!(
            "no finite gradient in {skipped} steps in a row, the last was step {step}: lower --learning-rate, or look at pairs {ids:?}; no model was saved"
        )))
    }

    fn evaluate(&mut self, engine: &mut Engine<'_, B>, step: u64) -> Result<()> {
        let Some(set) = &self.eval else { return Ok(()) };
        let totals = eval::evaluate(engine, set, &self.spec)?;
        let mut row = Map::new();
        row.insert("step".into(), json!(step));
        row.extend(totals.to_json("eval_"));
        self.out.log(&row)?;
        eprintln!("step {step}: held-out {}", eval::line(&totals));
        let first = self.summary.eval.take().map_or_else(|| totals.clone(), |(first, _)| first);
        self.summary.eval = Some((first, totals));
        Ok(())
    }

    fn save(&mut self, model: &Model<B>, master: Option<&B::Buf<B::Acc>>) -> Result<()> {
        let report = model::export(self.be, model, master, None, self.out.path(), self.c.save_dtype)?;
        self.summary.changed_share = report.changed_share();
        let [updated, changed] = [report.updated_share(), report.changed_share()].map(|x| 100.0 * x);
        eprintln!(
            "saved {}: training changed {updated:.1} % of the weights, {changed:.1} % in the saved precision",
            self.out.path().display()
        );
        if changed < 0.5 * updated {
            eprintln!("most updates are smaller than the saved precision can show; --save-dtype f32 keeps them");
        }
        Ok(())
    }
}

/// A step whose numbers may still be on their way.
struct InFlight<B: Backend> {
    /// From 1.
    step: u64,
    epoch: u64,
    /// Its place in the epoch, from 0.
    at: u64,
    lr: f64,
    begun: Instant,
    /// Micro-batches whose numbers were not read yet, in order.
    late: VecDeque<(MicroBatch, Late<B>)>,
    /// What was read.
    totals: Totals,
}

impl<B: Backend> InFlight<B> {
    /// Waits for the rest of the numbers.
    fn collect(&mut self, engine: &mut Engine<'_, B>) -> Result<()> {
        while let Some((mb, late)) = self.late.pop_front() {
            engine.collect(late, &mb, &mut self.totals)?;
        }
        Ok(())
    }
}

/// What rows of metrics need of the rows before.
struct Log {
    /// Steps skipped in a row.
    skipped: u32,
    /// Tokens so far, as TRL counts them.
    tokens: u64,
    /// When the last step was known to be done.
    at: Instant,
}

/// Ids of the pairs of a step.
fn pair_ids(plan: &Planner<'_>, epoch: u64, at: u64) -> Vec<u64> {
    plan.step(epoch, at).iter().flat_map(|mb| &mb.pairs).map(|p| p.id).collect()
}

/// DESIGN's step-0 proof: policy and reference are the same model, so that every margin is exactly 0 and the loss is
/// exactly its value there. Anything else means that the numbers cannot be trusted, and the run ends.
fn prove_step_0(totals: &Totals, spec: &LossSpec) -> Result<()> {
    let want = spec.at_reference().expect("a loss with a reference is a loss of pairs");
    let loss = totals.mean_loss();
    if totals.off_reference == 0 && loss as f32 == want as f32 {
        return Ok(());
    }
    Err(Error::Training(format!(
        "step-0 proof failed: policy and reference are the same weights, yet {} of {} pairs differ and the loss is {loss} instead of {want}; \
         delete the reference sidecars and try again, and report this if it stays",
        totals.off_reference, totals.pairs
    )))
}

fn row(step: u64, epoch: f64, t: &Totals, norm: f64, lr: f64, tokens: u64, seconds: f64) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("step".into(), json!(step));
    row.insert("epoch".into(), json!(epoch));
    row.extend(t.to_json(""));
    row.insert("grad_norm".into(), json!(norm));
    row.insert("learning_rate".into(), json!(lr));
    row.insert("num_tokens".into(), json!(tokens));
    row.insert("step_seconds".into(), json!(seconds));
    row.insert("tokens_per_second".into(), json!(t.tokens as f64 / seconds));
    let units = if t.pairs > 0 { ("pairs_per_second", t.pairs) } else { ("samples_per_second", t.responses) };
    row.insert(units.0.into(), json!(units.1 as f64 / seconds));
    row
}

fn note(t: &Totals, seconds: f64) -> String {
    let tokens_per_s = t.tokens as f64 / seconds;
    match t.pairs {
        0 => format!(
            "loss {:.4} token accuracy {:.3} {tokens_per_s:.0} tokens/s",
            t.mean_loss(),
            t.hits / t.chosen_tokens as f64
        ),
        _ => format!("loss {:.4} accuracy {:.2} {tokens_per_s:.0} tokens/s", t.mean_loss(), t.accuracy()),
    }
}
