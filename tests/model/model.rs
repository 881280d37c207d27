//! The whole model: gradients against finite differences, packing, accumulation, repeatability, generation.

use crate::model_common;

use fusedpo::backend::cpu::Level;
use fusedpo::backend::{Backend, Device, Float};
use fusedpo::loss::{LossSpec, LossType};

use fusedpo::model::sample::{normal, uniform};
use fusedpo::model::{
    Architecture, GenerateOptions, Generated, Gradients, Keep, Model, ModelConfig, ModelDir, Rope, RopeScaling, Sums,
    Workspace, generate,
};
use model_common::*;

const SIGMOID: LossSpec = LossSpec::of(LossType::Sigmoid).beta(0.3);

/// A configuration of odd sizes.
fn tiny(architecture: Architecture) -> ModelConfig {
    ModelConfig {
        architecture,
        hidden_size: 18,
        intermediate_size: 22,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        num_key_value_heads: 1,
        head_dim: 6,
        vocab_size: 29,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 100.0, scaling: RopeScaling::None },
        tie_word_embeddings: true,
        qkv_bias: architecture == Architecture::Qwen2,
        o_bias: false,
        qk_norm: architecture == Architecture::Qwen3,
        max_position_embeddings: 64,
        sliding_window: None,
        eos_token_ids: vec![2],
        bos_token_id: Some(1),
        dtype: None,
        quantized: None,
        skipped: Default::default(),
        adapter: None,
    }
}

/// Every feature at least once.
fn configs() -> Vec<(&'static str, ModelConfig)> {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 32.0,
    };
    let llama = tiny(Architecture::Llama);
    vec![
        ("llama, grouped queries, tied", llama.clone()),
        (
            "llama, untied, one head a group",
            ModelConfig { tie_word_embeddings: false, num_key_value_heads: 3, ..llama.clone() },
        ),
        (
            "llama, biases, linear rope",
            ModelConfig {
                qkv_bias: true,
                o_bias: true,
                rope: Rope { theta: 1000.0, scaling: RopeScaling::Linear { factor: 2.0 } },
                ..llama.clone()
            },
        ),
        ("llama3 rope", ModelConfig { rope: Rope { theta: 100.0, scaling: llama3 }, ..llama }),
        ("qwen2", ModelConfig { tie_word_embeddings: false, ..tiny(Architecture::Qwen2) }),
        ("qwen3, wide heads", ModelConfig { head_dim: 10, ..tiny(Architecture::Qwen3) }),
    ]
}

/// Weights large enough that attention and the MLP matter; norms around 1.
fn model<B: Backend>(be: &B, config: &ModelConfig, seed: u64) -> Model<B> {
    let mut m = Model::random(be, config.clone(), seed, 64).unwrap();
    let mut w = vec![B::Act::from_f64(0.0); m.table.len];
    for (stream, spec) in m.table.specs.iter().enumerate() {
        let centre = if spec.name.contains("norm") { 1.0 } else { 0.0 };
        for (i, v) in w[spec.at.clone()].iter_mut().enumerate() {
            // Through f32, so that both precisions get the same model.
            *v = B::Act::from_f64((centre + 0.3 * normal(seed, stream as u64, i as u64)) as f32 as f64);
        }
    }
    be.upload(be.view_mut(&mut m.weights, 0..w.len()), &w).unwrap();
    m
}

/// Groups of 1, 2 and 3 responses, one of them with an empty prompt, one with a one-token response.
fn groups(seed: u64) -> Vec<Group> {
    let ids = |stream, n: u64| (0..n).map(|i| (29.0 * uniform(seed, stream, i)) as u32).collect::<Vec<u32>>();
    let group = |s: u64, prompt, responses: &[u64], pairs: &[(usize, usize, f32)]| Group {
        prompt: ids(s, prompt),
        responses: responses.iter().zip(1..).map(|(n, k)| ids(s + k, *n)).collect(),
        ref_logps: responses.iter().map(|n| -3.0 * *n as f64).collect(),
        pairs: pairs.to_vec(),
    };
    vec![
        group(10, 5, &[4, 7], &[(0, 1, 1.0)]),
        group(20, 0, &[3, 6], &[(1, 0, 0.5)]),
        group(30, 9, &[2, 11, 5], &[(0, 1, 1.0), (0, 2, 2.0), (1, 2, 1.0)]),
        group(40, 3, &[8], &[]),
        group(50, 1, &[1, 13], &[(1, 0, 1.0)]),
    ]
}

fn total(step: &Step, groups: &[Group], spec: &LossSpec, scale: f64) -> f64 {
    let weights = groups.iter().flat_map(|g| &g.pairs).map(|p| f64::from(p.2));
    match spec.is_sft() {
        true => step.response_losses.iter().sum::<f64>() * scale,
        false => step.pair_losses.iter().zip(weights).map(|(l, w)| l * w).sum::<f64>() * scale,
    }
}

/// When a layer is told, its gradients and those of all above it are what they are in the end.
#[test]
fn what_is_told_to_be_whole_is_whole() {
    let be = cpu64();
    for (what, config) in configs() {
        let config = ModelConfig { num_hidden_layers: 4, ..config };
        for (seed, keep) in [(3, Keep::Layers), (4, Keep::Inputs), (5, Keep::Outputs)] {
            let (m, batch) = (model(&be, &config, seed), pack(&groups(seed), 3));
            let rows = batch.predictions().len();
            let mut ws = Workspace::keeping(&be, &m, capacity(std::slice::from_ref(&batch)), rows, keep).unwrap();
            let mut grads = Gradients::new(&be, &m.table, false).unwrap();
            // What was there before is not to be taken for a gradient.
            let noise = vec![7.0; m.table.trained_len];
            let Sums::Full(all) = &mut grads.sums else { unreachable!() };
            be.upload(be.view_mut(all, 0..noise.len()), &noise).unwrap();
            grads.clear(&be, &m.table).unwrap();
            let mut seen = Vec::new();
            let mut told = |grads: &mut Gradients<_>, layer| {
                seen.push((layer, read(&be, grads.all().unwrap(), m.table.trained_len)));
                Ok(())
            };
            run(&be, (&m, &mut ws, &mut grads), &batch, (&SIGMOID, 0.7), Some(&mut told));
            let last = read(&be, grads.all().unwrap(), m.table.trained_len);
            assert!(seen.iter().map(|(layer, _)| *layer).eq((0..4).rev()), "{what}");
            for (layer, then) in &seen {
                let above = m.table.layers[*layer..].iter().flat_map(|l| l.params());
                let head = [&m.table.norm].into_iter().chain((!config.tie_word_embeddings).then_some(&m.table.head));
                for at in above.chain(head).flat_map(|p| p.grads()) {
                    assert!(then[at.clone()] == last[at.clone()], "{what}, {keep:?}: layer {layer}, {at:?}");
                    assert!(last[at.clone()].iter().any(|g| *g != 0.0 && *g != 7.0), "{what}: {at:?}");
                }
            }
            // And nobody is told too late.
            let lowest = |l: usize| m.table.layers[l].qkv.whole.clone().unwrap();
            assert!(
                seen.iter().filter(|(l, _)| *l > 0).all(|(l, then)| then[lowest(l - 1)] != last[lowest(l - 1)]),
                "{what}"
            );
        }
    }
}

/// Central differences along a random direction in every tensor, with Richardson extrapolation: what is left is rounding,
/// about 1e-16 * loss / step.
#[test]
fn gradients_match_finite_differences() {
    let be = cpu64();
    for (name, config) in configs() {
        let mut m = model(&be, &config, 3);
        let groups = groups(5);
        let batches = [pack(&groups[..2], 2), pack(&groups[2..], 0)];
        let w = read(&be, &m.weights, m.table.len);
        let grads = train(&be, &m, &batches, &SIGMOID, 0.2).grads;
        let mut at = |direction: &[(usize, f64)], e: f64| {
            let mut moved = w.clone();
            direction.iter().for_each(|(i, d)| moved[*i] += e * d);
            be.upload(be.view_mut(&mut m.weights, 0..w.len()), &moved).unwrap();
            total(&train(&be, &m, &batches, &SIGMOID, 0.2), &groups, &SIGMOID, 0.2)
        };
        for (stream, spec) in fusedpo::model::ParamTable::new(&config).unwrap().specs.iter().enumerate() {
            let scale = 1.0 / (spec.at.len() as f64).sqrt();
            let direction: Vec<(usize, f64)> =
                spec.at.clone().map(|i| (i, scale * normal(9, stream as u64, i as u64))).collect();
            let got: f64 = direction.iter().map(|(i, d)| grads[*i] * d).sum();
            let mut slope = |e: f64| (at(&direction, e) - at(&direction, -e)) / (2.0 * e);
            let want = (4.0 * slope(5e-4) - slope(1e-3)) / 3.0;
            let tol = 1e-8 * (1.0 + want.abs());
            assert!((got - want).abs() <= tol, "{name}, {}: {got}, finite differences {want}", spec.name);
        }
    }
}

/// SFT's coefficient takes another path than the pairs'.
#[test]
fn sft_gradient_is_the_slope_along_itself() {
    let be = cpu64();
    let spec = LossSpec::of(LossType::Sft).beta(0.1);
    let mut m = model(&be, &tiny(Architecture::Llama), 4);
    let groups = groups(6);
    let batches = [pack(&groups, 1)];
    let scale = 1.0 / batches[0].predictions().len() as f64;
    let w = read(&be, &m.weights, m.table.len);
    let grads = train(&be, &m, &batches, &spec, scale).grads;
    let size = norm(&grads);
    let mut at = |e: f64| {
        let moved: Vec<f64> = w.iter().zip(&grads).map(|(w, g)| w + e * g / size).collect();
        be.upload(be.view_mut(&mut m.weights, 0..w.len()), &moved).unwrap();
        let logps = score(&be, &m, &batches);
        -scale * logps.iter().flatten().sum::<f64>()
    };
    let mut slope = |e: f64| (at(e) - at(-e)) / (2.0 * e);
    let want = (4.0 * slope(5e-4) - slope(1e-3)) / 3.0;
    assert!((size - want).abs() <= 1e-8 * (1.0 + want), "{size}, finite differences {want}");
}

/// Largest difference per token between packed groups and each response alone with its prompt.
fn packed_against_alone<B: Backend>(be: &B, config: &ModelConfig) -> f64 {
    let m = model(be, config, 7);
    let groups = groups(8);
    let packed = score(be, &m, &[pack(&groups, 4)]);
    let alone: Vec<_> = groups
        .iter()
        .flat_map(|g| {
            g.responses.iter().map(|r| Group {
                prompt: g.prompt.clone(),
                responses: vec![r.clone()],
                ..Group::default()
            })
        })
        .map(|g| pack(&[g], 0))
        .collect();
    let alone = score(be, &m, &alone);
    assert_eq!(packed.len(), alone.len());
    let pairs = packed.iter().flatten().zip(alone.iter().flatten());
    assert_eq!(packed.iter().flatten().count(), alone.iter().flatten().count());
    pairs.fold(0.0, |worst, (a, b)| if (a - b).abs() <= worst { worst } else { (a - b).abs() })
}

#[test]
fn packed_and_shared_equals_one_response_at_a_time() {
    for (name, config) in configs() {
        let worst = packed_against_alone(&cpu64(), &config);
        assert!(worst <= 1e-12, "{name}, f64: {worst} nat");
        let worst = packed_against_alone(&cpu32(), &config);
        assert!(worst <= 1e-5, "{name}, f32: {worst} nat");
    }
}

#[test]
fn accumulated_micro_batches_equal_one_batch() {
    let be = cpu64();
    for (name, config) in configs() {
        let m = model(&be, &config, 11);
        let groups = groups(12);
        let whole = train(&be, &m, &[pack(&groups, 0)], &SIGMOID, 0.2);
        let parts: Vec<_> = groups.iter().map(|g| pack(std::slice::from_ref(g), 3)).collect();
        let parts = train(&be, &m, &parts, &SIGMOID, 0.2);
        let difference: Vec<f64> = whole.grads.iter().zip(&parts.grads).map(|(a, b)| a - b).collect();
        assert!(norm(&difference) <= 1e-12 * norm(&whole.grads), "{name}: {}", norm(&difference));
        for (a, b) in whole.logps.iter().chain(&whole.pair_losses).zip(parts.logps.iter().chain(&parts.pair_losses)) {
            assert!((a - b).abs() <= 1e-12 * (1.0 + a.abs()), "{name}: {a} {b}");
        }
    }
}

#[test]
fn two_runs_give_the_same_bits() {
    let be = cpu32();
    for (name, config) in configs() {
        let run = || {
            let m = model(&be, &config, 13);
            let step = train(&be, &m, &[pack(&groups(14), 1)], &SIGMOID, 0.2);
            (step.grads, step.logps)
        };
        let (a, b) = (run(), run());
        assert!(a == b && a.0.iter().all(|g| g.is_finite()), "{name}");
    }
}

#[test]
fn a_step_allocates_nothing() {
    let be = cpu32();
    for (name, config) in configs() {
        let m = model(&be, &config, 23);
        let batches = [pack(&groups(24), 1), pack(&groups(25)[..2], 0)];
        let mut ws = workspace(&be, &m, &batches, true);
        let mut grads = Gradients::new(&be, &m.table, false).unwrap();
        let before = be.memory_table().len();
        for b in &batches {
            run(&be, (&m, &mut ws, &mut grads), b, (&SIGMOID, 0.2), None);
        }
        assert_eq!(be.memory_table().len(), before, "{name}");
    }
}

/// The step-0 proof rests on it: the reference pass keeps no activations, training does.
#[test]
fn scoring_and_training_give_the_same_bits() {
    let be = cpu32();
    for (name, config) in configs() {
        let m = model(&be, &config, 15);
        let batches = [pack(&groups(16), 2)];
        let scored: Vec<f64> = score(&be, &m, &batches).iter().map(|r| r.iter().sum()).collect();
        assert_eq!(scored, train(&be, &m, &batches, &SIGMOID, 0.2).logps, "{name}");
    }
}

#[test]
fn frozen_parameters_get_no_gradient() {
    let be = cpu64();
    for (name, config) in configs() {
        let mut m = model(&be, &config, 17);
        let batches = [pack(&groups(18), 0)];
        let all = train(&be, &m, &batches, &SIGMOID, 0.2).grads;
        type Subset = Box<dyn Fn(&str) -> bool>;
        let mut subsets: Vec<Subset> = vec![
            Box::new(|n: &str| n.contains("layers.1.mlp") || n == "model.norm.weight"),
            Box::new(|n: &str| n.contains("v_proj")),
            Box::new(|n: &str| n.contains("bias") && !n.contains("k_proj")),
            Box::new(|n: &str| n.contains("q_norm")),
            Box::new(|_: &str| false),
        ];
        // Every tensor by itself is where the backward pass may end; and some at random.
        let names: Vec<String> = m.table.specs.iter().map(|s| s.name.clone()).collect();
        subsets.extend(names.into_iter().map(|one| Box::new(move |n: &str| n == one) as Subset));
        for seed in 0..12u64 {
            subsets.push(Box::new(move |n| {
                (n.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)) >> 33) % 4 == 0
            }));
        }
        for (i, subset) in subsets.iter().enumerate() {
            m.table.set_trains(subset);
            for keep in [Keep::Layers, Keep::Outputs, Keep::Inputs] {
                let some = train_keeping(&be, &m, &batches, &SIGMOID, 0.2, keep).grads;
                assert_eq!(some.len(), m.table.trained_len);
                for spec in m.table.specs.iter().filter(|s| s.trains) {
                    let (all, some) = (&all[spec.at.clone()], &some[spec.grad.clone()]);
                    assert!(all == some, "{name}, subset {i}, {keep:?}: {}", spec.name);
                }
            }
        }
    }
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens,
        temperature: 0.0,
        top_p: 1.0,
        num_return_sequences: 1,
        seed: 1,
        eos_token_ids: vec![2],
        cache_bytes: 1 << 30,
        pack_weights: true,
    }
}

/// Log-probs that decoding reports are those of the full forward pass on what it generated, however it was drawn.
#[test]
fn decoding_equals_the_full_forward_pass() {
    let be = cpu64();
    let ways = [(1.0, 1.0), (0.7, 1.0), (1.3, 0.9)];
    for ((name, config), (temperature, top_p)) in configs().into_iter().zip(ways.into_iter().cycle()) {
        let m = model(&be, &config, 19);
        let prompts: Vec<Vec<u32>> = groups(20).into_iter().map(|g| g.prompt).filter(|p| !p.is_empty()).collect();
        let o = GenerateOptions { temperature, top_p, num_return_sequences: 3, ..options(12) };
        let out = generate(&be, &m, &prompts, &o).unwrap();
        let groups: Vec<Group> = prompts
            .iter()
            .zip(&out)
            .map(|(p, g)| Group {
                prompt: p.clone(),
                responses: g.iter().map(|s| s.tokens.clone()).collect(),
                ..Group::default()
            })
            .collect();
        let full = score(&be, &m, &[pack(&groups, 0)]);
        for (i, s) in out.iter().flatten().enumerate() {
            assert_eq!(s.finished, s.tokens.last() == Some(&2), "{name}");
            assert!(s.finished || s.tokens.len() == 12, "{name}: stopped early");
            assert!(!s.tokens[..s.tokens.len() - 1].contains(&2), "{name}: went on after the end");
            assert_eq!(s.logps.len(), full[i].len());
            s.logps.iter().zip(&full[i]).for_each(|(a, b)| assert!((a - b).abs() <= 1e-11, "{name}: {a} {b}"));
        }
    }
}

/// Rounded weights may guess what comes next: what is generated, and with which probability, has the same bits, whether the
/// guesses are mostly right or, where small differences grow, mostly wrong.
#[test]
fn guesses_change_nothing() {
    let be = cpu32();
    for (seed, (name, config)) in (40..).zip(configs()) {
        for factor in [1.0f32, 40.0] {
            let mut m = model(&be, &config, seed);
            let mut weights = vec![0.0; m.table.len];
            be.download(&mut weights, be.view(&m.weights, 0..m.table.len)).unwrap();
            weights.iter_mut().for_each(|w| *w *= factor);
            be.upload(be.view_mut(&mut m.weights, 0..weights.len()), &weights).unwrap();
            let prompts: Vec<Vec<u32>> = groups(seed).into_iter().map(|g| g.prompt).filter(|p| !p.is_empty()).collect();
            for (temperature, copies, eos_token_ids) in
                [(0.0, 1, vec![]), (0.8, 1, vec![2]), (1.5, 2, vec![2, 5]), (1.0, 5, vec![])]
            {
                for prompts in [&prompts[..1], &prompts] {
                    let o = GenerateOptions {
                        temperature,
                        num_return_sequences: copies,
                        eos_token_ids: eos_token_ids.clone(),
                        ..options(21)
                    };
                    let plain =
                        generate(&be, &m, prompts, &GenerateOptions { pack_weights: false, ..o.clone() }).unwrap();
                    let bits = |all: &[Vec<Generated>]| -> Vec<_> {
                        let one = |g: &Generated| {
                            (g.tokens.clone(), g.finished, g.logps.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
                        };
                        all.iter().flatten().map(one).collect()
                    };
                    assert_eq!(
                        bits(&generate(&be, &m, prompts, &o).unwrap()),
                        bits(&plain),
                        "{name}, {temperature}, {copies}"
                    );
                }
            }
        }
    }
    // There were some to change something.
    let drafts = be.memory_table().iter().any(|(name, _)| name == "drafts of weights");
    assert_eq!(drafts, Level::available().iter().any(|l| l.name() == "avx512"));
}

/// Any of several end tokens ends a sequence, the first time that it is drawn, and no other does.
#[test]
fn every_end_token_ends_a_sequence() {
    let be = cpu64();
    let m = model(&be, &tiny(Architecture::Llama), 23);
    let draw = |ends: Vec<u32>| {
        let o = GenerateOptions { temperature: 1.0, eos_token_ids: ends, ..options(15) };
        generate(&be, &m, &[vec![3, 4, 5]], &o).unwrap()[0][0].clone()
    };
    let free = draw(vec![]);
    assert_eq!((free.tokens.len(), free.finished), (15, false));
    let never = (0..29).find(|t| !free.tokens.contains(t)).unwrap();
    assert_eq!(draw(vec![never]), free);
    // A prompt may fill the positions to the last.
    for (len, fits) in [(m.max_positions - 15, true), (m.max_positions - 14, false)] {
        assert_eq!(generate(&be, &m, &[vec![3; len]], &options(15)).is_ok(), fits, "{len}");
    }
    for token in free.tokens.iter().copied() {
        let at = free.tokens.iter().position(|t| *t == token).unwrap();
        for ends in [vec![token, never], vec![never, token], vec![token]] {
            let got = draw(ends);
            assert_eq!((&got.tokens[..], got.finished), (&free.tokens[..=at], true));
            assert_eq!(got.logps[..], free.logps[..=at]);
        }
    }
}

/// What a sequence draws depends on its number and the seed, not on how many share the batch.
#[test]
fn generation_does_not_depend_on_the_batch() {
    let be = cpu32();
    let m = model(&be, &tiny(Architecture::Llama), 21);
    let prompts: Vec<Vec<u32>> = (0..7).map(|i| (3..5 + i).collect()).collect();
    let o = GenerateOptions { temperature: 0.9, top_p: 0.95, num_return_sequences: 4, ..options(15) };
    let all = generate(&be, &m, &prompts, &o).unwrap();
    // One slot at a time; then three, so that groups are cut between admissions.
    let slot = (11 + 15) * 6 * 2 * 2 * 4 + 29 * 4;
    for slots in [1, 3] {
        let few = generate(&be, &m, &prompts, &GenerateOptions { cache_bytes: slots * slot, ..o.clone() }).unwrap();
        assert_eq!(all, few, "{slots} slots");
    }
    assert!(all != generate(&be, &m, &prompts, &GenerateOptions { seed: 2, ..o }).unwrap());
}

#[test]
fn generation_refuses_what_it_cannot_do() {
    let be = cpu32();
    let m = model(&be, &tiny(Architecture::Llama), 22);
    let error = |prompts: &[Vec<u32>], o: GenerateOptions| generate(&be, &m, prompts, &o).unwrap_err().to_string();
    assert_eq!(
        error(&[vec![1], vec![]], options(4)),
        "prompt 2 has no tokens: nothing to continue; start it with a BOS token"
    );
    assert_eq!(
        error(&[vec![1; 60]], options(5)),
        "prompt 1 has 60 tokens; with 5 new ones it exceeds the 64 positions that the model was loaded for"
    );
    assert_eq!(error(&[vec![29]], options(4)), "token id 29 is outside the model's vocabulary of 29");
    assert_eq!(error(&[vec![1]], GenerateOptions { top_p: 0.0, ..options(4) }), "`top_p` 0: must be in (0, 1]");
}

/// llama2.c's published golden text for this model.
#[test]
fn stories260k_tells_the_published_story() {
    let Some(dir) = test_data("stories260k", "data/stories260k") else { return };
    let be = cpu32();
    let m = Model::load(&be, &ModelDir::open(&dir).unwrap(), 512).unwrap();
    let source = std::fs::read_to_string(dir.join("SOURCE.txt")).unwrap();
    let golden = source.split_once("-t 0): \"").unwrap().1.split_once(" ...\"").unwrap().0;
    let out = generate(&be, &m, &[vec![1]], &GenerateOptions { eos_token_ids: vec![1, 2], ..options(255) }).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    let text = tokenizer.decode(&out[0][0].tokens, true).unwrap();
    assert!(text.trim_start().starts_with(golden), "{text}");
}
