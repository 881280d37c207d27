//! Generating takes as many sequences at a time as fit into what is free, and says so; what does not fit at all is
//! refused before it begins.

mod model_common;

use fusedpo::backend::Device;
use fusedpo::backend::cpu::Cpu;
use fusedpo::model::{GenerateOptions, Model, ModelConfig, ModelDir, generate};
use fusedpo::observe::Silent;
use fusedpo::train::memory::{MemoryPlan, fitting_generation};
use model_common::files::golden;

const NEW: usize = 2000;
const POSITIONS: usize = NEW + 20;

fn options() -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: NEW,
        temperature: 1.0,
        top_p: 1.0,
        num_return_sequences: 5,
        seed: 3,
        eos_token_ids: vec![2],
        cache_bytes: 2 << 30,
        pack_weights: true,
    }
}

#[test]
fn as_many_sequences_as_fit() {
    let config = ModelConfig::load(&golden("llama")).unwrap();
    let prompts: Vec<Vec<u32>> = (0..16).map(|i| (3..5 + i).collect()).collect();
    let be = Cpu::<f32>::new().unwrap();
    let (all, sequences) = MemoryPlan::generating(&be, &config, POSITIONS, &prompts, &options()).unwrap();
    assert_eq!(sequences, 80);
    let with = |free: usize, beside: usize| {
        let (be, mut o) = (Cpu::<f32>::new().unwrap().with_free(free), options());
        let plan = fitting_generation(&be, (&config, POSITIONS), &prompts, &mut o, (beside, "use less"), &mut Silent);
        plan.map(|plan| (plan, o))
    };
    let (plan, o) = with(all.needed(), 0).unwrap();
    assert_eq!((&plan, &o), (&all, &options()), "what fits is left alone");

    let free = all.needed() * 2 / 3;
    let (few, o) = with(free, 0).unwrap();
    let (again, sequences) = MemoryPlan::generating(&be, &config, POSITIONS, &prompts, &o).unwrap();
    assert_eq!(few, again);
    assert!((1..80).contains(&sequences) && few.needed() <= free, "{sequences}");
    // What is taken already counts.
    let (fewer, _) = with(free, few.bytes() / 2).unwrap();
    assert!(fewer.needed() + few.bytes() / 2 <= free);

    // It is what is then allocated, and the samples are the same.
    let sample = |o: &GenerateOptions, plan: &MemoryPlan| {
        let be = Cpu::<f32>::new().unwrap();
        let model = Model::load(&be, &ModelDir::open(&golden("llama")).unwrap(), POSITIONS).unwrap();
        let out = generate(&be, &model, &prompts, o).unwrap();
        assert_eq!(be.memory_table(), plan.table);
        out
    };
    assert!(sample(&o, &few) == sample(&options(), &all));

    let error = with(few.needed() / 100, 0).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("out of memory: generating one sequence at a time needs ") && text.ends_with("; use less")
    );
    assert_eq!(error.exit_code(), 1);
}
