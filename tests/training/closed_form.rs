//! DPO's theory as a test (paper, section 4): on a problem small enough to enumerate, trained on Bradley-Terry pairs
//! drawn from a known reward, the implicit reward `beta log(pi/pi_ref)` recovers that reward up to a constant per
//! prompt, and the policy approaches the closed-form optimum `pi* ~ pi_ref exp(r / beta)`.

use fusedpo::backend::Device;
use fusedpo::backend::cpu::{Cpu, GemmPrecision};
use fusedpo::batch::{Builder, Capacity, MicroBatch};
use fusedpo::loss::math::sigmoid as sigmoid_of;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::sample::uniform;
use fusedpo::model::{Model, ModelConfig};
use fusedpo::train::engine::{Engine, Purpose};
use fusedpo::train::metrics::Totals;
use fusedpo::train::optim::{OptimOptions, Optimizer};

const VOCAB: u32 = 5;
const PROMPTS: u32 = 3;
/// All sequences of two tokens: `VOCAB^2` responses to a prompt, so that probabilities can be summed exactly.
const RESPONSES: usize = (VOCAB * VOCAB) as usize;
const BETA: f64 = 0.5;

/// A pair of responses by their numbers, and its weight.
type Pair = (usize, usize, f32);

/// Every response to every prompt, with the pairs of each. A prompt is two different tokens: attention cannot tell how often
/// a token repeats.
fn all_responses(pairs: &[Vec<Pair>; PROMPTS as usize]) -> MicroBatch {
    let (mut b, mut ids) = (Builder::default(), 0..);
    for (p, pairs) in (0..PROMPTS).zip(pairs) {
        b.group(p.into(), [p, p + 1]).unwrap();
        for y in 0..RESPONSES as u32 {
            b.response(u64::from(p) * RESPONSES as u64 + u64::from(y), [y / VOCAB, y % VOCAB]).unwrap();
        }
        for (chosen, rejected, weight) in pairs {
            b.pair(*chosen, *rejected, *weight, ids.next().unwrap()).unwrap();
        }
    }
    let slots = b.used();
    b.finish(slots).unwrap()
}

/// `draws` pairs a prompt: two responses of the reference, labelled by Bradley-Terry; equal draws become weights.
fn draw_pairs(reference: &[f64], reward: &[f64], draws: u64) -> [Vec<Pair>; PROMPTS as usize] {
    std::array::from_fn(|p| {
        let base = p * RESPONSES;
        let pick = |u: f64| {
            let mut left = u;
            (0..RESPONSES)
                .find(|y| {
                    left -= reference[base + y].exp();
                    left < 0.0
                })
                .unwrap_or(RESPONSES - 1)
        };
        let mut counts = vec![0f32; RESPONSES * RESPONSES];
        for d in 0..draws {
            let [u, v, label] = [0, 1, 2].map(|k| uniform(7, p as u64, 3 * d + k));
            let (a, b) = (pick(u), pick(v));
            let a_wins = label < sigmoid_of(reward[base + a] - reward[base + b]);
            if a != b {
                let (w, l) = if a_wins { (a, b) } else { (b, a) };
                counts[w * RESPONSES + l] += 1.0;
            }
        }
        let drawn = counts.into_iter().enumerate().filter(|(_, n)| *n > 0.0);
        drawn.map(|(i, weight)| (i / RESPONSES, i % RESPONSES, weight)).collect()
    })
}

fn config() -> ModelConfig {
    let json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
        "max_position_embeddings": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false
    });
    ModelConfig::parse(std::path::Path::new("config.json"), json.as_object().unwrap()).unwrap()
}

/// A reference that is far from uniform: random weights, five times the usual size.
fn reference_model(be: &Cpu<f64>) -> Model<Cpu<f64>> {
    let mut model = Model::random(be, config(), 3, 16).unwrap();
    let n = model.table.len;
    let mut values = vec![0.0; n];
    be.download(&mut values, be.view(&model.weights, 0..n)).unwrap();
    values[..model.table.decay_len].iter_mut().for_each(|w| *w *= 8.0);
    be.upload(be.view_mut(&mut model.weights, 0..n), &values).unwrap();
    model
}

#[test]
fn dpo_finds_the_closed_form_optimum() {
    let be = Cpu::<f64>::with(GemmPrecision::Native).unwrap();
    let mb = all_responses(&Default::default());
    let reward: Vec<f64> = (0..mb.responses().len() as u64).map(|i| 1.5 * (2.0 * uniform(11, 0, i) - 1.0)).collect();
    let capacity = Capacity { pairs: RESPONSES * RESPONSES * PROMPTS as usize, ..mb.capacity() };
    let mut engine = Engine::new(&be, reference_model(&be), capacity, Purpose::Train).unwrap();

    let reference = engine.score(&mb).unwrap();
    for p in reference.chunks(RESPONSES) {
        let total: f64 = p.iter().map(|l| l.exp()).sum();
        assert!((total - 1.0).abs() <= 1e-12, "the responses to a prompt are all there is: {total}");
    }
    let mut mb = all_responses(&draw_pairs(&reference, &reward, 1_000_000));
    mb.set_ref_logps(|r| Ok(reference[r.id as usize])).unwrap();
    let (before, _) = distance(&reference, &reference, &reward);

    let unclipped = OptimOptions { max_grad_norm: 0.0, ..Default::default() };
    let mut opt = Optimizer::new(&be, &mut engine.state, &unclipped).unwrap();
    let spec = LossSpec::of(LossType::Sigmoid).beta(BETA);
    let weight: f64 = mb.pairs().iter().map(|p| f64::from(p.weight)).sum();
    const STEPS: usize = 1200;
    for step in 0..STEPS {
        engine.clear_grads().unwrap();
        let mut totals = Totals::default();
        engine.accumulate(&mb, &spec, 1.0 / weight, &mut totals).unwrap();
        if step == 0 {
            assert_eq!(totals.off_reference, 0);
            assert_eq!(totals.mean_loss() as f32, std::f32::consts::LN_2);
        }
        let lr = 3e-3 * (1.0 - step as f64 / STEPS as f64);
        opt.step(&be, &mut engine.state, lr).unwrap();
    }
    let policy = engine.score(&mb).unwrap();
    let (kl, error) = distance(&policy, &reference, &reward);
    println!("KL(pi || pi*): {before:.4} before, {kl:.2e} after; reward error {error:.3} (rewards span 3)");
    assert!(before > 0.3, "{before}");
    assert!(kl < 1e-3, "{kl}");
    assert!(error < 0.03, "{error}");
}

/// Mean over prompts of KL(policy || pi*), and the pi*-weighted RMS error of the implicit reward, each prompt's
/// constant taken out.
fn distance(policy: &[f64], reference: &[f64], reward: &[f64]) -> (f64, f64) {
    let (mut kl, mut square) = (0.0, 0.0);
    for p in 0..PROMPTS as usize {
        let all = p * RESPONSES..(p + 1) * RESPONSES;
        let score = |y: usize| reference[y] + reward[y] / BETA;
        let z: f64 = all.clone().map(|y| score(y).exp()).sum::<f64>().ln();
        let optimum = |y: usize| score(y) - z;
        kl += all.clone().map(|y| policy[y].exp() * (policy[y] - optimum(y))).sum::<f64>() / f64::from(PROMPTS);
        let gap = |y: usize| BETA * (policy[y] - reference[y]) - reward[y];
        let mean: f64 = all.clone().map(|y| optimum(y).exp() * gap(y)).sum();
        square += all.map(|y| optimum(y).exp() * (gap(y) - mean).powi(2)).sum::<f64>() / f64::from(PROMPTS);
    }
    (kl, square.sqrt())
}
