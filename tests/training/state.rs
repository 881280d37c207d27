//! The state of a run: what is in it, piece by piece, and that a run goes on from it with the same bits.

use crate::host;
use crate::model_common;

use fusedpo::backend::Backend;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::backend::gpu::Gpu;
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{Model, ModelDir};
use fusedpo::train::choices::GradientChoice;
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::metrics::Totals;
use fusedpo::train::optim::{OptimOptions, Optimizer, OptimizerChoice};
use fusedpo::train::state::{Part, Section, State};
use half::bf16;
use model_common::files::golden;
use model_common::{Group, capacity, pack};

const SPEC: LossSpec = LossSpec::of(LossType::Sigmoid).beta(0.1);

fn batch() -> MicroBatch {
    let tokens = |n: u32, from: u32| (0..n).map(|i| (from + i * 5) % 90 + 3).collect::<Vec<u32>>();
    let responses = vec![tokens(5, 35), tokens(4, 28)];
    pack(&[Group { prompt: tokens(9, 1), responses, ref_logps: vec![-22.0, -18.0], pairs: vec![(0, 1, 1.0)] }], 6)
}

fn engine<'a, B: Backend>(be: &'a B, optim: &OptimOptions) -> (Engine<'a, B>, Optimizer<B>) {
    let model = Model::load(be, &ModelDir::open(&golden("llama")).unwrap(), 40).unwrap();
    let mut engine = Engine::for_optimizer(be, model, capacity(&[batch()]), Purpose::Train, optim).unwrap();
    let optimizer = Optimizer::new(be, &mut engine.state, optim).unwrap().seeded(5);
    (engine, optimizer)
}

fn step<B: Backend>(engine: &mut Engine<'_, B>, optimizer: &mut Optimizer<B>) {
    engine.clear_grads().unwrap();
    engine.accumulate(&batch(), &SPEC, 1.0, &mut Totals::default()).unwrap();
    engine.state.clock.advance(|_| 2);
    optimizer.step(engine.be, &mut engine.state, 1e-2).unwrap();
    assert!(optimizer.settle(engine.be, &mut engine.state.clock).unwrap().is_finite());
}

fn whole<B: Backend>(be: &B, state: &State<B>, s: &Section) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.read(be, s.part, 0..s.len, &mut bytes).unwrap();
    assert_eq!(bytes.len(), s.len * s.width, "{}", s.name);
    bytes
}

/// Two steps, everything that lasts into another state by pieces, and one more step of both.
fn goes_on<B: Backend>(be: &B, optim: OptimizerChoice, gradient_dtype: GradientChoice, want: &[(&str, &str)]) {
    let options = OptimOptions { optim, gradient_dtype, weight_decay: 0.1, ..Default::default() };
    let (mut one, mut by_one) = engine(be, &options);
    step(&mut one, &mut by_one);
    step(&mut one, &mut by_one);
    let (mut two, mut by_two) = engine(be, &options);
    let lasting: Vec<Section> = one.state.sections(be).into_iter().filter(|s| s.lasting).collect();
    assert_eq!(lasting.iter().map(|s| (s.name, s.dtype)).collect::<Vec<_>>(), want);
    for s in &lasting {
        assert!(whole(be, &one.state, s) != whole(be, &two.state, s), "{}: two steps have changed it", s.name);
        for start in (0..s.len).step_by(1000) {
            let mut piece = vec![0xab];
            one.state.read(be, s.part, start..(start + 1000).min(s.len), &mut piece).unwrap();
            // What was there stays, and the piece need not be aligned.
            assert_eq!(piece[0], 0xab);
            two.state.write(be, s.part, start, &piece[1..]).unwrap();
        }
        assert!(whole(be, &one.state, s) == whole(be, &two.state, s), "{}", s.name);
    }
    two.state.clock = one.state.clock;
    step(&mut one, &mut by_one);
    step(&mut two, &mut by_two);
    for s in one.state.sections(be) {
        assert!(whole(be, &one.state, &s) == whole(be, &two.state, &s), "{optim:?}: {} after another step", s.name);
    }
    assert_eq!(two.state.clock, one.state.clock);
    assert_eq!((one.state.clock.updates, one.state.clock.step, one.state.clock.epoch), (3, 3, 1));
}

#[test]
fn a_run_goes_on_from_sections_and_clock() {
    let cpu = Cpu::<f32>::with(GemmPrecision::Native).unwrap();
    let [w, m1, m2] = [("weights", "f32"), ("first_moment", "f32"), ("second_moment", "f32")];
    let (f32s, narrow) = (GradientChoice::F32, GradientChoice::Bf16);
    goes_on(&cpu, OptimizerChoice::Adamw, f32s, &[w, m1, m2]);
    goes_on(&cpu, OptimizerChoice::Rmsprop, narrow, &[w, m2]);
    let [b1, b2] = [("first_moment", "bf16"), ("second_moment", "bf16")];
    let coded = [("first_moment", "u8"), ("first_scale", "f32"), ("second_moment", "u8"), ("second_scale", "f32")];
    goes_on(&cpu, OptimizerChoice::AdamwBf16, f32s, &[w, b1, b2]);
    goes_on(&cpu, OptimizerChoice::Adamw8bit, narrow, &[&[w][..], &coded].concat());
    let Some(driver) = host::host_driver(0) else { return };
    let gpu = Gpu::<_, bf16>::new(driver).unwrap();
    let w = ("weights", "bf16");
    goes_on(&gpu, OptimizerChoice::Adamw, f32s, &[w, ("master", "f32"), m1, m2]);
    goes_on(&gpu, OptimizerChoice::Adamw, narrow, &[w, ("master", "f32"), m1, m2]);
    goes_on(&gpu, OptimizerChoice::AdamwBf16, narrow, &[w, b1, b2]);
    goes_on(&gpu, OptimizerChoice::Adamw8bit, f32s, &[&[w][..], &coded].concat());
}

#[test]
fn what_is_not_there_cannot_be_read_or_written() {
    let be = Cpu::<f32>::with(GemmPrecision::Native).unwrap();
    let model = Model::load(&be, &ModelDir::open(&golden("llama")).unwrap(), 40).unwrap();
    let mut state = State::new(&be, model, false).unwrap();
    let n = state.model.table.len;
    let sections = state.sections(&be);
    assert_eq!(sections.len(), 1);
    assert_eq!((sections[0].part, sections[0].len, sections[0].width), (Part::Weights, n, 4));
    let before = whole(&be, &state, &sections[0]);
    let mut to = Vec::new();
    let scales = [Part::FirstScale, Part::SecondScale, Part::VectorGradients];
    for part in [Part::Gradients, Part::Master, Part::First, Part::Second].into_iter().chain(scales) {
        assert!(state.read(&be, part, 0..1, &mut to).is_err(), "{part:?}");
        assert!(state.write(&be, part, 0, &[0; 4]).is_err(), "{part:?}");
    }
    assert!(state.read(&be, Part::Weights, n - 1..n + 1, &mut to).is_err());
    assert!(state.write(&be, Part::Weights, n - 1, &[0; 8]).is_err());
    assert!(state.write(&be, Part::Weights, usize::MAX, &[0; 8]).is_err());
    let e = state.write(&be, Part::Weights, 0, &[0; 6]).unwrap_err().to_string();
    assert_eq!(e, "Weights: 6 bytes end within an element");
    assert!(to.is_empty() && whole(&be, &state, &sections[0]) == before, "nothing was touched");
}
