//! The golden models under other rotary embeddings: log-probs of transformers, each row by itself in float32
//! (`tests/golden/rope.json`, by `scripts/make_rope_golden.py`); and what rows of some lengths cannot have.

use crate::model_common;

use fusedpo::backend::*;
use fusedpo::error::Error;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{GenerateOptions, Model, ModelConfig, ModelDir, Rope, RopeScaling, generate};
use model_common::files::{copy, edit_json};
use model_common::*;
use serde_json::{Value, json};
use tempfile::TempDir;

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(project(&format!("tests/golden/{name}"))).unwrap()).unwrap()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// A copy of a golden model with other fields in its config.json; null takes one out.
fn with(model: &str, fields: &Value) -> TempDir {
    let dir = copy(model);
    edit_json(&dir.path().join("config.json"), |c| {
        for (key, value) in fields.as_object().unwrap() {
            match value {
                Value::Null => drop(c.as_object_mut().unwrap().shift_remove(key)),
                value => c[key] = value.clone(),
            }
        }
    });
    dir
}

/// Every response of the golden rows as a group of its own.
fn rows() -> Vec<Group> {
    let golden = golden("golden.json");
    let one = |row: &Value| {
        let prompt = ids(&row["prompt_ids"]);
        let responses = row["responses_ids"].as_array().unwrap().iter().map(ids).collect::<Vec<_>>();
        responses.into_iter().map(move |r| Group { prompt: prompt.clone(), responses: vec![r], ..Group::default() })
    };
    golden["rows"].as_array().unwrap().iter().flat_map(one).collect()
}

/// Largest difference to transformers', in nats a response; rows packed together.
fn difference<B: Backend>(be: &B, case: &Value) -> f64 {
    let dir = with(case["model"].as_str().unwrap(), &case["fields"]);
    let m = Model::load(be, &ModelDir::open(dir.path()).unwrap(), 64).unwrap();
    let rows = rows();
    let got = score(be, &m, &[pack(&rows[..7], 3), pack(&rows[7..], 0)]);
    let want = case["logps"].as_array().unwrap();
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (g.iter().sum::<f64>() - w.as_f64().unwrap()).abs()).fold(0.0, f64::max)
}

#[test]
fn log_probs_are_those_of_transformers() {
    let golden = golden("rope.json");
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (f64s, f32s) = (difference(&cpu64(), case), difference(&cpu32(), case));
        println!("{name}: {f64s:.1e} nat in f64, {f32s:.1e} in f32");
        // Rounding of transformers' float32, over up to 40 tokens: cases differ by far more from one another.
        assert!(f64s < 3e-4 && f32s < 3e-4, "{name}: {f64s} {f32s}");
    }
}

const LONGROPE: [f64; 4] = [1.0, 1.2, 1.9, 2.8];

fn longrope(original: usize) -> TempDir {
    let rope = json!({"rope_type": "longrope", "short_factor": LONGROPE, "long_factor": [2.0, 3.0, 5.0, 9.0]});
    with("llama", &json!({"rope_scaling": rope, "original_max_position_embeddings": original}))
}

/// Responses to one prompt share its keys: both are long, or both short.
#[test]
fn longrope_turns_a_whole_group_or_says_why_not() {
    let be = cpu64();
    let dir = longrope(10);
    let m = Model::load(&be, &ModelDir::open(dir.path()).unwrap(), 64).unwrap();
    let group = |prompt: u32, lens: [u32; 2]| Group {
        prompt: (3..3 + prompt).collect(),
        responses: lens.map(|n| (20..20 + n).collect()).into(),
        ref_logps: vec![-9.0, -8.0],
        pairs: vec![(0, 1, 1.0)],
    };
    let alone = |g: &Group| {
        let one = |r: &[u32]| Group { responses: vec![r.to_vec()], pairs: vec![], ..g.clone() };
        g.responses.iter().flat_map(|r| score(&be, &m, &[pack(&[one(r)], 0)])).collect::<Vec<_>>()
    };
    // Short, long, short again, in one micro-batch.
    let groups = [group(4, [6, 2]), group(4, [7, 9]), group(0, [10, 3]), group(0, [11, 12])];
    let packed = score(&be, &m, &[pack(&groups, 2)]);
    for (a, b) in packed.iter().zip(groups.iter().flat_map(alone)) {
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} {b:?}");
    }
    // The gradient goes back through the same table.
    let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
    let step = train(&be, &m, &[pack(&groups, 2)], &spec, 1.0);
    let slope = |h: f64| {
        let mut moved = Model::load(&be, &ModelDir::open(dir.path()).unwrap(), 64).unwrap();
        let at = moved.table.spec("model.layers.0.self_attn.k_proj.weight").unwrap().at.start + 5;
        let w = read(&be, &moved.weights, moved.table.len)[at] + h;
        be.upload(be.view_mut(&mut moved.weights, at..at + 1), &[w]).unwrap();
        (train(&be, &moved, &[pack(&groups, 2)], &spec, 1.0).pair_losses.iter().sum::<f64>(), at)
    };
    let ((up, at), (down, _)) = (slope(1e-5), slope(-1e-5));
    let (got, want) = (step.grads[at], (up - down) / 2e-5);
    assert!((got - want).abs() < 1e-7 * (1.0 + want.abs()) && want.abs() > 1e-6, "{got} {want}");
    // A prompt with a short row and a long one has no keys for both.
    let mixed = pack(&[group(4, [6, 7])], 0);
    let error =
        workspace(&be, &m, std::slice::from_ref(&mixed), false).load_batch(&be, &mixed).unwrap_err().to_string();
    assert_eq!(
        error,
        "a prompt has rows of 10 and of 11 tokens, but this model's `longrope` turns rows of more than 10 tokens by other \
         frequencies: not implemented for rows that share a prompt; use rows of at most 10 tokens"
    );
    // Where no row is long, there is one table.
    let small = Model::load(&be, &ModelDir::open(dir.path()).unwrap(), 10).unwrap();
    assert_eq!((small.rope.len(), m.rope.len()), (10 * 8, 2 * 64 * 8));
}

#[test]
fn dynamic_refuses_rows_beyond_the_models_positions() {
    let be = cpu64();
    let rope = json!({"type": "dynamic", "factor": 2.0});
    let dir = with("llama", &json!({"rope_scaling": rope, "max_position_embeddings": 48}));
    let model = ModelDir::open(dir.path()).unwrap();
    assert!(Model::load(&be, &model, 48).is_ok());
    assert_eq!(model.config().usable_positions(), 48);
    let error = Model::load(&be, &model, 49).err().unwrap();
    assert!(matches!(error, Error::Usage(_)));
    assert_eq!(
        error.to_string(),
        "rows of up to 49 tokens, but this model's `dynamic` rotary embedding has other frequencies for every length above \
         48, which is not implemented; use rows of at most 48 tokens"
    );
}

/// Keys in the cache were turned by the short factors: nothing continues them with the long ones.
#[test]
fn generating_ends_where_the_frequencies_change() {
    let be = cpu64();
    let dir = longrope(10);
    let m = Model::load(&be, &ModelDir::open(dir.path()).unwrap(), 64).unwrap();
    assert_eq!(m.config.usable_positions(), 10);
    let options = |max_new_tokens| GenerateOptions {
        max_new_tokens,
        temperature: 0.0,
        top_p: 1.0,
        num_return_sequences: 1,
        seed: 0,
        eos_token_ids: Vec::new(),
        cache_bytes: 1 << 20,
        pack_weights: true,
    };
    let error = generate(&be, &m, &[vec![3, 4, 5, 6]], &options(7)).unwrap_err().to_string();
    assert_eq!(
        error,
        "prompt 1 has 4 tokens; with 7 new ones it exceeds the 10 that this model turns by the same frequencies, and \
         continuing beyond is not implemented; lower `options.max_new_tokens`"
    );
    assert_eq!(generate(&be, &m, &[vec![3, 4, 5, 6]], &options(6)).unwrap()[0][0].tokens.len(), 6);
}

/// A model made from scratch is read again as it was, in every kind.
#[test]
fn every_kind_is_written_and_read_again() {
    let llama = ModelConfig::load(&project("tests/golden/llama")).unwrap();
    let original_max_position_embeddings = 32.0;
    for scaling in [
        RopeScaling::None,
        RopeScaling::Linear { factor: 2.5 },
        RopeScaling::Dynamic { factor: 2.0, max_position_embeddings: 128.0 },
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings,
        },
        RopeScaling::Yarn {
            factor: 4.0,
            attention_factor: 1.25,
            beta_fast: 16.0,
            beta_slow: 2.0,
            original_max_position_embeddings,
            truncate: false,
        },
        RopeScaling::LongRope {
            short_factor: LONGROPE.into(),
            long_factor: vec![2.0, 3.0, 5.0, 9.0],
            attention_factor: 1.5,
            original_max_position_embeddings,
        },
        RopeScaling::Proportional { factor: 2.0, part: 0.5 },
    ] {
        let config = ModelConfig { rope: Rope { theta: 500.0, scaling }, ..llama.clone() };
        let json = config.to_json("float32");
        assert_eq!(ModelConfig::parse("config.json".as_ref(), json.as_object().unwrap()).unwrap(), config);
    }
}
