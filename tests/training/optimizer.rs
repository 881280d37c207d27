//! Steps that must not happen: a gradient that is not finite changes nothing and is not counted.

use crate::model_common;

use fusedpo::backend::Device;
use fusedpo::backend::cpu::Cpu;
use fusedpo::model::{Model, ModelDir, Sums};
use fusedpo::train::optim::{OptimOptions, Optimizer};
use fusedpo::train::state::State;
use model_common::files::golden;
use model_common::{cpu64, read};

#[test]
fn a_step_without_a_finite_norm_leaves_no_trace() {
    let options = OptimOptions { weight_decay: 0.1, ..Default::default() };
    let be = cpu64();
    let run = |bad: &[f64]| {
        let model: Model<Cpu<f64>> = Model::load(&be, &ModelDir::open(&golden("llama")).unwrap(), 64).unwrap();
        let n = model.table.len;
        let mut state = State::new(&be, model, true).unwrap();
        let mut opt = Optimizer::new(&be, &mut state, &options).unwrap();
        let mut step = |state: &mut State<Cpu<f64>>, value: f64| {
            let mut grads = be.zeros("gradients", n).unwrap();
            let g: Vec<f64> = (0..n).map(|i| if i == n / 2 { value } else { (i as f64).sin() }).collect();
            be.upload(be.view_mut(&mut grads, 0..n), &g).unwrap();
            state.grads = Some(Sums::Full(grads).into());
            opt.step(&be, state, 1e-3).unwrap();
            opt.settle(&be, &mut state.clock).unwrap()
        };
        assert!(step(&mut state, 0.25).is_finite());
        for bad in bad {
            let before = read(&be, &state.model.weights, n);
            assert!(!step(&mut state, *bad).is_finite());
            assert_eq!(read(&be, &state.model.weights, n), before, "{bad}");
        }
        assert!(step(&mut state, 0.5).is_finite());
        read(&be, &state.model.weights, n)
    };
    let want = run(&[]);
    assert!(want.iter().any(|w| *w != 0.0));
    // Were a skipped step counted, AdamW's bias corrections would be those of another step.
    assert_eq!(run(&[f64::NAN]), want);
    assert_eq!(run(&[f64::INFINITY, f64::NAN]), want);
}
