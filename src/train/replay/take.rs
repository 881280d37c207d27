//! Going there, and taking the step.

use super::inputs;
use super::naming::Names;
use super::report::{Agreement, From, Replay};
use super::start::{check_same, nearest, record_of};
use crate::backend::watched::{Arena, Watched};
use crate::backend::{Backend, Device};
use crate::batch::MicroBatch;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::files::RunDir;
use crate::model::{Model, Sums};
use crate::observe::{Event, Flow, Observe};
use crate::train::check::open_splits;
use crate::train::checkpoint::{Identity, Saved};
use crate::train::engine::Engine;
use crate::train::in_flight::InFlight;
use crate::train::kept_batch::{self, StepBatch};
use crate::train::metrics::Totals;
use crate::train::optim::Optimizer;
use crate::train::options::TrainOptions;
use crate::train::pass::Pass;
use crate::train::ready::{Ready, choose_products, learns};
use crate::train::state::State;
use crate::train::stepper::Stepper;
use crate::train::synced::{self, Sync};
use crate::train::trained::Trained;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Takes step `step` of the run in `c.files.out` again, whose options are `c`, and looks at what every op leaves.
///
/// Errors: what the run was made from is not there any more; a step that it does not have; [`Error::Stopped`].
pub fn replay<B: Backend>(be: B, c: &TrainOptions, step: u64, observe: &mut dyn Observe) -> Result<Replay> {
    let run = c.files.out.as_path();
    let record = record_of(run)?;
    let be = Watched::new(be);
    c.optim.check_on(&be)?;
    choose_products(be.inner(), c)?;
    let splits = open_splits(&c.files.data)?;
    let trained = Trained::of(c.train.train.as_deref())?;
    let learns = learns(c, &trained);
    let ready = Ready::new(be.inner(), c, (&splits, &[], false), learns)?;
    let slots = ready.planner.token_budget();
    let models = (&ready.dir, ready.reference.as_ref());
    let identity = Identity::of(c, &splits, models, be.fingerprint(), slots, &ready.schedule)?;
    check_same(&record, &identity, c, observe)?;
    let total = ready.schedule.total;
    if step == 0 || step > total {
        return Err(Error::usage(format!("step {step}: {} has steps 1 to {total}", run.display())));
    }
    let written = Written::of(run, step)?;
    let goes_on = |of: &Saved| of.identity.difference(&identity, c, &ready.schedule, of.max_steps).is_none();
    let (checkpoint, from) = nearest(&be, (&record, run), goes_on, step, (ready.dir.config(), learns), observe)?;
    let clock = checkpoint.as_ref().map_or_else(Default::default, |c| c.saved().clock);
    tell_start(&from, step, observe)?;
    let sync = Sync::of(&c.reference);
    let sidecars = match &ready.reference {
        Some(model) if sync.is_none() => {
            let of = Pass { c, ready: &ready, held_out: false };
            of.run(be.inner(), model, (clock, step - clock.step), observe)?.0.into_iter().next()
        }
        _ => None,
    };
    be.reserve(&ready.memory.table)?;
    let mut policy = Model::load(&be, &ready.dir, ready.positions)?;
    trained.apply(&mut policy.table)?;
    let mut engine = Engine::for_optimizer(&be, policy, ready.capacity, ready.purpose, &c.optim)?;
    let mut optimizer = Optimizer::new(&be, &mut engine.state, &c.optim)?.seeded(c.data.seed);
    if let (Some(_), Some(model)) = (sync, &ready.reference) {
        synced::load(&be, &mut engine.state, model)?;
    }
    checkpoint.map_or(Ok(()), |c| c.load(&be, &mut engine.state))?;
    let stepper = Stepper {
        spec: c.loss(),
        plan: &ready.planner,
        sidecars,
        sync,
        starts_at_reference: ready.reference.as_ref().is_some_and(|r| ready.dir.computes_as(r)),
        schedule: ready.schedule,
        seed: c.data.seed,
        ledger: false,
        adapter_given: c.train.adapter.is_some(),
    };
    let mut again = Again { be: &be, stepper: &stepper, written, inputs_since: None };
    again.go_to(step, &mut engine, &mut optimizer, observe)?;
    let (state, mut inputs) = inputs::of_state(&be, &engine.state)?;
    know(&be, &engine.state);
    be.look(true);
    let (this, norm) = again.take(&mut engine, &mut optimizer)?;
    be.look(false);
    let (seen, batches) = be.take();
    if sync.is_none() && ready.reference.is_some() {
        inputs.extend(inputs::of_reference(&this.read));
    }
    let inputs_since = again.inputs_since;
    let names = Names { table: &engine.state.model.table, data: &splits[0], batches: &batches };
    let ops = seen.into_iter().map(|seen| names.of(seen)).collect();
    Ok(Replay {
        stage: c.stage.name(),
        step,
        steps: total,
        from,
        agreement: again.written.agreement((&this.read, step), numbers(&this.totals, norm)),
        loss: this.totals.mean_loss(),
        grad_norm: norm,
        updated: norm.is_finite(),
        state,
        inputs_since: inputs_since.filter(|_| !inputs.is_empty()),
        inputs,
        ops,
    })
}

fn tell_start(from: &From, step: u64, observe: &mut dyn Observe) -> Result<()> {
    let start =
        from.checkpoint.as_ref().map_or("the model that the run started from".to_owned(), |p| p.display().to_string());
    let between = match step - 1 - from.step {
        0 => "the step itself comes next".to_owned(),
        1 => "1 step comes before it".to_owned(),
        n => format!("{n} steps come before it"),
    };
    observe.tell(&Event::Note(&format!("replaying step {step} from {start}: {between}")))
}

/// Makes known what ops are told apart by.
fn know<B: Backend>(be: &Watched<B>, state: &State<Watched<B>>) {
    be.know(be.address(&state.model.weights), Arena::Weights);
    if let Some(reference) = &state.reference {
        be.know(be.address(&reference.weights), Arena::Reference);
    }
    match state.grads.as_ref().map(|g| &g.sums) {
        Some(Sums::Full(all)) => be.know(be.address(all), Arena::Gradients),
        Some(Sums::Narrow { matrices, vectors, .. }) => {
            be.know(be.address(matrices), Arena::Gradients);
            be.know(be.address(vectors), Arena::Vectors);
        }
        None => {}
    }
    if let Some(nf4) = &state.model.nf4 {
        be.know(nf4.address(be), Arena::Codes);
    }
}

/// What the run has written down of its steps: loss and gradient norm, `null` where they are no numbers; and how what is taken again
/// compares.
struct Written {
    rows: HashMap<u64, [Value; 2]>,
    compared: u64,
    difference: Option<String>,
    /// The step's batch, where the run kept it.
    kept: Option<(PathBuf, StepBatch)>,
}

impl Written {
    /// Of the steps up to `step`. Errors: a batch that was kept is damaged.
    fn of(run: &Path, step: u64) -> Result<Self> {
        let mut rows = HashMap::new();
        RunDir::each_row_of(run, |row| {
            let at = row.get("step").and_then(Value::as_u64).filter(|at| *at <= step);
            if let (Some(at), Some(loss), Some(norm)) = (at, row.get("loss"), row.get("grad_norm")) {
                rows.insert(at, [loss.clone(), norm.clone()]);
            }
        })?;
        let kept = RunDir::kept_batches(run).into_iter().find(|(of, _)| *of == step);
        let kept = kept.map(|(_, path)| StepBatch::read(&path).map(|of| (path, of))).transpose()?;
        Ok(Self { rows, compared: 0, difference: None, kept })
    }

    fn compare(&mut self, step: u64, is: [Value; 2]) {
        let Some(was) = self.rows.get(&step) else { return };
        self.compared += 1;
        if *was != is && self.difference.is_none() {
            let said = |[loss, norm]: &[Value; 2]| format!("loss {loss} and gradient norm {norm}");
            let why = format!("step {step} had {}, and has {} now", said(was), said(&is));
            self.difference = Some(why);
        }
    }

    /// [`Written::compare`] of the step itself; its batch too, where the run kept it.
    fn agreement(mut self, this: (&[MicroBatch], u64), is: [Value; 2]) -> Agreement {
        let (batches, step) = this;
        self.compare(step, is.clone());
        if let Some((path, of)) = &self.kept {
            // A run that ended with this step has no row of it.
            let same = |was: &str, is: &Value| was.parse::<f64>().is_ok_and(|was| serde_json::json!(was) == *is);
            if !self.rows.contains_key(&step) {
                self.compared += 1;
                if !(same(&of.loss, &is[0]) && same(&of.grad_norm, &is[1])) {
                    let was = format!("loss {} and gradient norm {}", of.loss, of.grad_norm);
                    let why = format!("step {step} had {was}, and has loss {} and gradient norm {} now", is[0], is[1]);
                    self.difference.get_or_insert(why);
                }
            }
            if of.sha256 != kept_batch::sum(batches) {
                let why = "is another batch than the data and the reference give for this step";
                self.difference.get_or_insert_with(|| format!("{} {why}", path.display()));
            }
        }
        let batch = self.kept.map(|(path, _)| path);
        Agreement { compared: self.compared, difference: self.difference, batch }
    }
}

fn numbers(totals: &Totals, norm: f64) -> [Value; 2] {
    [totals.to_json("")["loss"].clone(), serde_json::json!(norm)]
}

/// Steps of a run, taken again.
struct Again<'a, B: Backend> {
    be: &'a Watched<B>,
    stepper: &'a Stepper<'a>,
    written: Written,
    /// The step whose update left weights that are not finite.
    inputs_since: Option<u64>,
}

impl<B: Backend> Again<'_, B> {
    /// Takes a step; gives its gradient norm too.
    fn take(
        &mut self,
        engine: &mut Engine<'_, Watched<B>>,
        optimizer: &mut Optimizer<Watched<B>>,
    ) -> Result<(InFlight<Watched<B>>, f64)> {
        let mut this = self.stepper.start(engine)?;
        this.collect(engine, &self.stepper.spec)?;
        self.stepper.update(engine, optimizer, &this)?;
        let norm = optimizer.settle(self.be, &mut engine.state.clock)?;
        Ok((this, norm))
    }

    /// The steps before `step`.
    fn go_to(
        &mut self,
        step: u64,
        engine: &mut Engine<'_, Watched<B>>,
        optimizer: &mut Optimizer<Watched<B>>,
        observe: &mut dyn Observe,
    ) -> Result<()> {
        let first = engine.state.clock.step;
        let total = step - 1 - first;
        if total == 0 {
            return Ok(());
        }
        let mut flow = observe.on(&Event::Begin { task: "replay", total, keeps: false })?;
        while engine.state.clock.step + 1 < step {
            if flow != Flow::On {
                return Err(Error::stopped(format!("stopped before step {step} was reached; nothing was changed")));
            }
            let (this, norm) = self.take(engine, optimizer)?;
            let at = this.step;
            self.written.compare(at, numbers(&this.totals, norm));
            if self.inputs_since.is_none() && !inputs::weights_are_finite(self.be, &engine.state)? {
                self.inputs_since = Some(at);
            }
            flow = observe.on(&Event::Progress { done: at - first, beside: format_args!("") })?;
        }
        observe.tell(&Event::End)
    }
}
