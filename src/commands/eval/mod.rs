//! `fusedpo eval`: loss, rewards, accuracy with its interval, and an estimate of the KL divergence from the reference.

mod args;
mod made;

use crate::backend::Backend;
use crate::commands::{hub, ranks};
use crate::data::plan::{PlanOptions, Planner};
use crate::data::shard::{Dataset, Split};
use crate::device::{self, Task};
use crate::error::Result;
use crate::model::wanted::Wanted;
use crate::model::{Model, ModelConfig, ModelDir};
use crate::observe::Observe;
use crate::say;
use crate::train::check::{check_data, check_loss, check_mismatched, check_model, warn_of_positions};
use crate::train::engine::{Engine, Purpose};
use crate::train::eval::{self, EvalSet};
use crate::train::heads;
use crate::train::joined::Job;
use crate::train::kl::{self, KlEstimate, KlOptions, KlPlan};
use crate::train::means;
use crate::train::memory::{Budgets, MemoryPlan, fitting_generation};
use crate::train::metrics::{Totals, wilson_95};
use crate::train::mismatched;
use crate::train::reference::Keep;
use crate::train::sets::{STEP, evaluated_split};
use crate::units::decimals;
use crate::warn;
pub use args::EvalArgs;
use made::Made;
use serde_json::{Map, Value, json};

/// Runs the command.
pub fn run(args: &EvalArgs, job: Job<'_>, observe: &mut dyn Observe) -> Result<()> {
    let mut args = args.clone();
    ranks::first_fetches(job, || {
        hub::place_both(&mut args.model, &mut args.adapter, observe)?;
        args.ref_model.as_mut().map_or(Ok(()), |other| hub::place(other, Wanted::Model, observe))
    })?;
    let args = &args;
    let (split, totals, kl) =
        device::dispatch_one_of(job.comm, args.device, (args.dtype, args.logits_dtype), Eval(args, job, observe))?;
    if !job.comm.world().is_first() {
        return Ok(());
    }
    let split = split.prefix().trim_end_matches('-');
    if args.json {
        let mut row = json_row(&totals, kl);
        row.insert("split".into(), json!(split));
        say!("{}", Value::Object(row));
        return Ok(());
    }
    say!("{}", eval::line(&totals));
    say!("  {:<22} {split}", "split");
    let row = totals.evaluated("");
    for (key, value) in row.iter().filter(|(key, _)| !key.ends_with("_ci95")) {
        let ends =
            row.get(&format!("{key}_ci95")).and_then(Value::as_array).map(|ends| ends.iter().flat_map(Value::as_f64));
        let ends = ends.map_or_else(String::new, |ends| {
            format!(" [{}]", ends.map(|x| decimals(x, 6)).collect::<Vec<_>>().join(", "))
        });
        say!("  {key:<22} {}{ends}", value.as_f64().map_or_else(|| value.to_string(), |x| decimals(x, 6)));
    }
    if let Some(kl) = kl {
        say!(
            "  {:<22} {} +- {:.4} nats a response ({} samples of the policy, at most {} tokens)",
            "kl",
            decimals(kl.mean, 4),
            kl.half_width_95,
            kl.samples,
            kl.max_new_tokens
        );
    }
    Ok(())
}

fn json_row(t: &Totals, kl: Option<KlEstimate>) -> Map<String, Value> {
    let mut row = t.evaluated("");
    row.insert("pairs".into(), json!(t.pairs));
    row.insert("responses".into(), json!(t.responses));
    if t.pairs > 0 {
        row.insert("accuracy".into(), json!(t.accuracy()));
        row.insert("accuracy_ci95".into(), json!(wilson_95(t.accuracy(), t.pairs)));
    }
    if let Some(kl) = kl {
        row.insert("kl".into(), json!(kl.mean));
        row.insert("kl_ci95".into(), json!([kl.mean - kl.half_width_95, kl.mean + kl.half_width_95]));
        row.insert("kl_samples".into(), json!(kl.samples));
        row.insert("kl_max_new_tokens".into(), json!(kl.max_new_tokens));
    }
    row
}

struct Eval<'a>(&'a EvalArgs, Job<'a>, &'a mut dyn Observe);

impl Task for Eval<'_> {
    type Out = (Split, Totals, Option<KlEstimate>);

    fn run<B: Backend>(self, be: &B) -> Result<Self::Out> {
        let Eval(a, job, observe) = self;
        job.same_device(be)?;
        let team = job.ranks();
        let split = evaluated_split(&a.data);
        let data = Dataset::open(&a.data, split)?;
        if split == Split::Train {
            warn!(
                "{} has no held-out split: these are the numbers of its training split; pack with --eval-fraction to hold prompts out",
                a.data.display()
            );
        }
        let dir = a.quantize.open(&a.model, a.adapter.as_deref())?;
        check_data(&dir, &data)?;
        let made = Made::of(a, &data)?;
        let spec = made.spec(a, &data)?;
        check_loss(&spec, &data)?;
        let objective = means::objective(&spec);
        let options =
            PlanOptions { objective, batch_size: STEP, token_budget: a.token_budget, seed: 0, shuffle: false };
        let plan = Planner::new(&data, &options)?;
        let slots = plan.token_budget();
        let reference = if spec.reference() {
            let path = ranks::first_fetches(job, || made.reference(a, observe))?;
            Some(dir.base().open_other(&path)?)
        } else {
            None
        };
        let models: Vec<&ModelDir> = [Some(&dir), reference.as_ref()].into_iter().flatten().collect();
        let decides = [("loss", format!("{spec:?}")), ("token budget", slots.to_string()), ("samples", samples_of(a))];
        job.same_work(be, (&models, &[&data]), &decides)?;
        let mut sidecars = None;
        if let Some(reference) = &reference {
            check_model(reference, &data)?;
            let keep = Keep { cache: a.cache.as_deref(), team };
            let done = {
                let read = plan.responses((0, 0), plan.steps_in_epoch(0));
                heads::ensure_for(be, reference, (&[((&data, slots), read)], &spec), keep, observe)?
            };
            sidecars = done.into_iter().next().map(|(sidecars, _)| sidecars);
            if let Some(to) = &mut sidecars {
                [&dir, reference].into_iter().try_for_each(|model| check_mismatched(model, &plan))?;
                let rows = plan.mismatched((0, 0), plan.steps_in_epoch(0));
                mismatched::ensure(be, reference, (&plan, &rows), keep, to, observe)?;
            }
        }
        let capacity = plan.capacity();
        let config = dir.config();
        let mut samples = Samples::plan(a, config, reference.as_ref(), &data);
        samples.positions = samples.positions.max(plan.longest_row());
        let positions = samples.positions;
        warn_of_positions(config, positions, observe)?;
        let memory = Budgets::of([&plan]).fitting(be, |c| MemoryPlan::scoring(be, config, positions, c))?;
        samples.fit(be, config, &memory, observe)?;
        be.reserve(&memory.table)?;
        let set = EvalSet { steps: plan.steps_in_epoch(0), plan, sidecars };
        let mut engine = Engine::new(be, Model::load(be, &dir, positions)?, capacity, Purpose::Score)?;
        engine.team = team;
        let totals = eval::evaluate(&mut engine, &set, &spec, observe)?;
        eval::check_finite(&totals, &data, dir.path())?;
        // What the evaluation worked with goes before the samples come.
        let policy = engine.into_model();
        let kl = match (reference, samples.kl) {
            (Some(reference), Some(plan)) => {
                Some(kl::estimate(be, policy, &reference, (&data, &plan, slots), team, observe)?)
            }
            _ => None,
        };
        Ok((split, totals, kl))
    }
}

/// What says how to sample, in words.
fn samples_of(a: &EvalArgs) -> String {
    format!("{:?}, {:?}, {:?}", a.kl_samples, a.kl_max_new_tokens, a.seed)
}

/// The KL estimate's samples, and the positions that evaluation and samples need.
struct Samples {
    positions: usize,
    kl: Option<KlPlan>,
}

impl Samples {
    fn plan(a: &EvalArgs, policy: &ModelConfig, reference: Option<&ModelDir>, data: &Dataset) -> Self {
        let longest = data.longest_row();
        let (samples, max_new_tokens) = (a.kl_samples.unwrap_or(16), a.kl_max_new_tokens.unwrap_or(64));
        let o = KlOptions { samples, max_new_tokens, seed: a.seed.unwrap_or(42) };
        let (Some(reference), true) = (reference, o.samples > 0) else { return Self { positions: longest, kl: None } };
        let positions = kl::positions_of((policy, reference.config()), data, o.max_new_tokens);
        Self { positions, kl: KlPlan::new(policy, positions, data, &o) }
    }

    /// Refuses what would not fit beside the evaluation's memory.
    fn fit<B: Backend>(
        &mut self,
        be: &B,
        policy: &ModelConfig,
        evaluation: &MemoryPlan,
        observe: &mut dyn Observe,
    ) -> Result<()> {
        let Some(kl) = &mut self.kl else { return Ok(()) };
        let beside = evaluation.bytes() - MemoryPlan::model(be, policy, self.positions)?.bytes();
        let instead = (beside, "--kl-samples 0 leaves the KL estimate out");
        let of = (policy, self.positions);
        fitting_generation(be, of, &kl.prompts, &mut kl.options, instead, observe).map(drop)
    }
}
