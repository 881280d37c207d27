//! Going there, and taking the step.

use super::inputs;
use super::naming::Names;
use super::report::{From, Replay};
use super::start::{check_same, nearest, record_of, warn_of_numerics};
use super::written::{Written, numbers};
use crate::backend::watched::{Arena, Watched};
use crate::backend::{Backend, Device};
use crate::choice::Choice;
use crate::data::shard::Dataset;
use crate::error::{Error, Result};
use crate::model::{Model, Sums};
use crate::observe::{Event, Flow, Observe};
use crate::train::check::open_splits;
use crate::train::checkpoint::{Checkpoint, Identity, Saved};
use crate::train::engine::Engine;
use crate::train::in_flight::InFlight;
use crate::train::optim::Optimizer;
use crate::train::options::TrainOptions;
use crate::train::pass::Pass;
use crate::train::ready::{Ready, choose_products, learns};
use crate::train::record::Record;
use crate::train::state::State;
use crate::train::stepper::Stepper;
use crate::train::synced::{self, Sync};
use crate::train::team::Team;
use crate::train::trained::Trained;

/// Takes step `step` of the run in `c.files.out` again, whose options are `c`, and looks at what every op leaves.
///
/// Errors: what the run was made from is not there any more; a step that it does not have; [`Error::Stopped`].
pub fn replay<B: Backend>(be: B, c: &TrainOptions, step: u64, observe: &mut dyn Observe) -> Result<Replay> {
    let record = record_of(&c.files.out)?;
    let be = Watched::new(be);
    c.optim.check_on(&be)?;
    choose_products(be.inner(), c)?;
    let splits = open_splits(&c.files.data)?;
    let trained = Trained::of(c.train.train.as_deref())?;
    let of = learns(c, &trained, Team::by_one(c.data.lanes).ranks());
    let ready = Ready::new(be.inner(), c, (&splits, &[], false), of)?;
    let made = Made { c, step, splits: &splits, trained: &trained, ready: &ready };
    let begin = made.begin(&be, &record, observe)?;
    let sync = Sync::of(&c.reference);
    let sidecars = match &ready.reference {
        Some(model) if sync.is_none() => {
            let clock = begin.checkpoint.as_ref().map_or_else(Default::default, |c| c.saved().clock);
            let of = Pass { c, ready: &ready, held_out: false, team: Team::ALONE };
            of.run(be.inner(), model, (clock, step - clock.step), observe)?.0.into_iter().next()
        }
        _ => None,
    };
    let (mut engine, mut optimizer) = made.load(&be, begin.checkpoint.as_ref())?;
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
    let mut again = Again { be: &be, stepper: &stepper, written: begin.written, updated: None };
    again.go_to(step, &mut engine, &mut optimizer, observe)?;
    made.look(again, begin.from, &mut engine, &mut optimizer)
}

/// What a step is taken again from.
struct Made<'a> {
    c: &'a TrainOptions,
    step: u64,
    splits: &'a [Dataset],
    trained: &'a Trained,
    ready: &'a Ready<'a>,
}

/// Where it begins.
struct Begin {
    written: Written,
    checkpoint: Option<Checkpoint>,
    from: From,
}

/// What takes steps.
type Loaded<'b, B> = (Engine<'b, B>, Optimizer<B>);

impl Made<'_> {
    /// The nearest place before the step. Errors: what the run was not made from; a step that it does not have.
    fn begin<B: Backend>(&self, be: &Watched<B>, record: &Record, observe: &mut dyn Observe) -> Result<Begin> {
        let Self { c, step, splits, trained, ready } = *self;
        let (run, schedule) = (c.files.out.as_path(), &ready.schedule);
        let models = (&ready.dir, ready.reference.as_ref());
        let identity = Identity::of(c, splits, models, be.fingerprint(), ready.planner.token_budget(), schedule)?;
        check_same(record, &identity, c)?;
        let total = schedule.total;
        if step == 0 || step > total {
            return Err(Error::usage(format!("step {step}: {} has steps 1 to {total}", run.display())));
        }
        let written = Written::of(run, step)?;
        let goes_on = |of: &Saved| of.identity.difference(&identity, c, schedule, of.max_steps).is_none();
        let model = (ready.dir.config(), learns(c, trained, Team::by_one(c.data.lanes).ranks()));
        let (checkpoint, from) = nearest(be, (record, run), goes_on, step, model, observe)?;
        warn_of_numerics(record, &identity.numerics, (from.step, step), observe)?;
        tell_start(&from, step, observe)?;
        Ok(Begin { written, checkpoint, from })
    }

    /// The state there.
    fn load<'b, B: Backend>(
        &self,
        be: &'b Watched<B>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Loaded<'b, Watched<B>>> {
        let Self { c, ready, .. } = *self;
        be.reserve(&ready.memory.table)?;
        let mut policy = Model::load(be, &ready.dir, ready.positions)?;
        self.trained.apply(&mut policy.table)?;
        let mut engine = Engine::for_optimizer(be, policy, ready.capacity, ready.purpose, &c.optim)?;
        let team = Team::by_one(c.data.lanes);
        engine.join(team)?;
        let optimizer = Optimizer::shared(be, &mut engine.state, &c.optim, team.ranks())?.seeded(c.data.seed);
        if let (Some(_), Some(model)) = (Sync::of(&c.reference), &ready.reference) {
            synced::load(be, &mut engine.state, model)?;
        }
        checkpoint.map_or(Ok(()), |c| c.load(be, &mut engine.state))?;
        Ok((engine, optimizer))
    }

    /// Takes the step that comes next, and names what its ops leave.
    fn look<B: Backend>(
        &self,
        mut again: Again<'_, B>,
        from: From,
        engine: &mut Engine<'_, Watched<B>>,
        optimizer: &mut Optimizer<Watched<B>>,
    ) -> Result<Replay> {
        let (step, be) = (self.step, again.be);
        let (state, mut inputs) = inputs::of_state(be, &engine.state)?;
        let inputs_since = again.updated.filter(|_| inputs::weights_tell(&inputs, &engine.state.model.table));
        know(be, &engine.state);
        be.look(true);
        let (this, norm) = again.take(engine, optimizer)?;
        be.look(false);
        let (seen, batches) = be.take();
        if again.stepper.sync.is_none() && self.ready.reference.is_some() {
            inputs.extend(inputs::of_reference(&this.batches));
        }
        let names = Names { table: &engine.state.model.table, data: &self.splits[0], batches: &batches };
        Ok(Replay {
            stage: self.c.stage.name(),
            step,
            steps: self.ready.schedule.total,
            from,
            agreement: again.written.agreement((&this.batches.own, step), numbers(&this.totals, norm)),
            loss: this.totals.mean_loss(),
            grad_norm: norm,
            updated: norm.is_finite(),
            state,
            inputs_since,
            inputs,
            ops: seen.into_iter().map(|seen| names.of(seen)).collect(),
        })
    }
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

/// Steps of a run, taken again.
struct Again<'a, B: Backend> {
    be: &'a Watched<B>,
    stepper: &'a Stepper<'a>,
    written: Written,
    /// The last step on the way whose update was made: weights that are not finite give no finite norm from then on.
    updated: Option<u64>,
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
            if norm.is_finite() {
                self.updated = Some(at);
            }
            flow = observe.on(&Event::Progress { done: at - first, beside: format_args!("") })?;
        }
        observe.tell(&Event::End)
    }
}
