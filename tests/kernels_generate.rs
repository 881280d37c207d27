//! Generation through the kernels: a prompt's pass, then a row a sequence against the cache. Against the CPU backend in f32,
//! and with the same bits under every schedule; and the KL estimate, which samples and then scores.

mod cli_common;
#[path = "common/device.rs"]
mod device;
#[path = "common/host.rs"]
mod host;

use cli_common::{Cli, golden};
use device::SameBits;
use fusedpo::backend::Backend;
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::model::{GenerateOptions, Generated, Model, ModelDir, generate};
use fusedpo::observe::Silent;
use fusedpo::train::kl::{KlOptions, KlPlan, estimate};
use fusedpo::train::team::Team;
use half::bf16;

const POSITIONS: usize = 32;

fn sample<B: Backend>(be: &B, name: &str, temperature: f64) -> Vec<Vec<Generated>> {
    let options = GenerateOptions {
        max_new_tokens: 9,
        temperature,
        top_p: 0.9,
        num_return_sequences: 2,
        seed: 5,
        eos_token_ids: vec![2],
        // Fewer sequences at a time than there are, so that some wait and slots are moved.
        cache_bytes: 40_000,
        pack_weights: true,
    };
    let model = Model::load(be, &ModelDir::open(&golden(name)).unwrap(), POSITIONS).unwrap();
    let prompts: Vec<Vec<u32>> = (0..5).map(|i| (3..6 + 4 * i).collect()).collect();
    generate(be, &model, &prompts, &options).unwrap()
}

fn samples<A: GpuFloat>(compare: impl Fn(&str, &[Vec<Generated>], &[Vec<Generated>])) {
    for name in ["llama", "llama3-tied", "qwen2", "qwen3"] {
        for temperature in [0.0, 1.0] {
            let cpu = sample(&Cpu::<f32>::new().unwrap(), name, temperature);
            let mut same = SameBits::new();
            on_devices!(A, [0, 3], |be, place| {
                let got = sample(be, name, temperature);
                compare(&format!("{name}, temperature {temperature}, {place}"), &got, &cpu);
                same.see(name, place, got);
            });
        }
    }
}

#[test]
fn samples_in_f32_are_those_of_the_cpu() {
    samples::<f32>(|what, got, want| {
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            assert_eq!(got.tokens, want.tokens, "{what}");
            got.logps.iter().zip(&want.logps).for_each(|(a, b)| assert!((a - b).abs() <= 1e-4, "{what}: {a} {b}"));
        }
    });
}

#[test]
fn samples_in_bf16_are_whole_and_the_same_every_time() {
    samples::<bf16>(|what, got, want| {
        assert_eq!(got.len(), want.len(), "{what}");
        for g in got.iter().flatten() {
            assert!(g.finished || g.tokens.len() == 9, "{what}: {g:?}");
            assert!(g.logps.iter().all(|x| x.is_finite() && *x <= 0.0), "{what}: {g:?}");
        }
    });
}

#[test]
fn a_model_has_no_distance_from_itself() {
    let cli = Cli::with_data();
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let mut same = SameBits::new();
    on_devices!(f32, [0, 3], |be, place| {
        let model = Model::load(be, &ModelDir::open(&cli.path("m")).unwrap(), POSITIONS).unwrap();
        let o = KlOptions { samples: 6, max_new_tokens: 8, seed: 1 };
        let plan = KlPlan::new(&model.config, POSITIONS, &data, &o).unwrap();
        let kl =
            estimate(be, model, &ModelDir::open(&cli.path("m")).unwrap(), (&data, &plan, 64), Team::ALONE, &mut Silent)
                .unwrap();
        assert!(kl.samples == 6 && kl.mean.abs() <= 1e-4, "{place}: {kl:?}");
        same.see("kl", place, kl.mean);
    });
}
