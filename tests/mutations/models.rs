//! Damaged model directories: weights, index, configurations.

use super::bench::{Bench, golden};
use super::{Rng, Verdict, bytes, json_value, refused};
use fusedpo::commands::typed::resolve;
use fusedpo::model::{Model, ModelDir};
use fusedpo::train::options::Stage;
use serde_json::{Value, json};

/// Weights have no checksums: what must hold is that what loads has every tensor in its shape, and finite.
pub fn weights(b: &Bench, rng: &mut Rng) -> Verdict {
    let good = std::fs::read(golden().join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let bad = if rng.below(2) == 0 {
        bytes(rng, &good, header)
    } else {
        // A header that is JSON again, with its length.
        let json: Value = serde_json::from_slice(&good[8..header]).unwrap();
        let text = json_value(rng, &json).to_string();
        [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &good[header..]].concat()
    };
    b.write("m/model.safetensors", &bad);
    load(b)
}

pub fn load(b: &Bench) -> Verdict {
    match ModelDir::open(&b.path("m")).and_then(|d| Model::load(&b.be, &d, 64)) {
        Err(e) => refused(&e),
        Ok(m) if m.weights.iter().all(|w| w.is_finite()) => Ok(true),
        Ok(_) => Err("weights that are not finite were accepted".into()),
    }
}

/// Bytes or values of a JSON file of the model.
pub fn mutate_json(b: &Bench, rng: &mut Rng, name: &str) {
    let good = std::fs::read(golden().join(name)).unwrap();
    let bad = match rng.below(3) {
        0 => bytes(rng, &good, good.len()),
        _ => json_value(rng, &serde_json::from_slice(&good).unwrap()).to_string().into_bytes(),
    };
    b.write(&format!("m/{name}"), bad);
}

pub fn config(b: &Bench, rng: &mut Rng) -> Verdict {
    mutate_json(b, rng, "config.json");
    load(b)
}

/// Every kind of rotary embedding, and fields beside it.
fn configurations() -> Vec<Value> {
    let golden: Value = serde_json::from_slice(&std::fs::read(golden().join("../rope.json")).unwrap()).unwrap();
    golden["cases"].as_array().unwrap().iter().map(|c| c["fields"].clone()).collect()
}

/// A configuration of another kind, damaged: what loads has rotary tables that are finite.
pub fn rotary(b: &Bench, rng: &mut Rng) -> Verdict {
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden().join("config.json")).unwrap()).unwrap();
    let fields = rng.pick(&configurations()).clone();
    for (key, value) in fields.as_object().unwrap() {
        config[key] = value.clone();
    }
    config["model_type"] = json!(*rng.pick(&["llama", "llama", "llama", "mistral", "qwen2", "qwen3"]));
    config.as_object_mut().unwrap().shift_remove("architectures");
    // What is inside counts as much as all around it.
    let names = ["rope_scaling", "rope_parameters"];
    let bad = match config.get(*rng.pick(&names)).cloned() {
        Some(inside) if rng.below(2) == 0 => {
            let name = names.into_iter().find(|n| config.get(n) == Some(&inside)).unwrap();
            config[name] = json_value(rng, &inside);
            config
        }
        _ => json_value(rng, &config),
    };
    b.write("m/config.json", bad.to_string());
    match ModelDir::open(&b.path("m")).and_then(|d| Model::load(&b.be, &d, 64)) {
        Err(e) => refused(&e),
        Ok(m) if m.rope.iter().all(|w| w.is_finite() && w.abs() < 1e30) => Ok(true),
        Ok(m) => Err(format!("a rotary embedding that is not finite was accepted: {:?}", m.config.rope)),
    }
}

/// An index, or what generation adds to the configuration.
pub fn index(b: &Bench, rng: &mut Rng) -> Verdict {
    if rng.below(4) == 0 {
        let good = json!({"bos_token_id": 1, "eos_token_id": [2, 5], "temperature": 0.6, "do_sample": true});
        let bad = match rng.below(2) {
            0 => bytes(rng, good.to_string().as_bytes(), 200),
            _ => json_value(rng, &good).to_string().into_bytes(),
        };
        b.write("m/generation_config.json", bad);
        return load(b);
    }
    let path = b.path("m/model.safetensors");
    let good = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&good[8..header]).unwrap();
    let all = tensors.as_object().unwrap().keys().filter(|k| *k != "__metadata__");
    let map: serde_json::Map<String, Value> = all.map(|k| (k.clone(), json!("a.safetensors"))).collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    let text = match rng.below(3) {
        0 => bytes(rng, index.to_string().as_bytes(), 60),
        _ => json_value(rng, &index).to_string().into_bytes(),
    };
    std::fs::rename(&path, b.path("m/a.safetensors")).unwrap();
    b.write("m/model.safetensors.index.json", text);
    load(b)
}

/// A run's configuration: refused, or a configuration that resolves within its ranges.
pub fn run_config(b: &Bench, rng: &mut Rng) -> Verdict {
    let good = "model = \"m\"\ndata = \"d\"\nbeta = 0.1\nloss_type = \"sigmoid\"\nlearning_rate = 1e-6\nseed = 42\n\
        lr_scheduler_type = \"linear\"\nwarmup_ratio = 0.1\nbatch_size = 8\nmax_steps = 10\nnum_train_epochs = 1.5\n\
        dtype = \"auto\"\nsave_dtype = \"source\"\nadam_beta2 = 0.999\neval_steps = 0\n";
    b.write("c.toml", bytes(rng, good.as_bytes(), good.len()));
    let typed = toml::Table::from_iter([("out".to_owned(), b.path("r").to_str().unwrap().into())]);
    let resolved = resolve(Stage::Dpo, Some(&b.path("c.toml")), typed);
    match resolved {
        Err(e) => refused(&e),
        Ok(c)
            if c.schedule.learning_rate.is_finite()
                && c.loss.beta.is_some_and(|b| b > 0.0)
                && c.data.batch_size > 0 =>
        {
            Ok(true)
        }
        Ok(c) => Err(format!("accepted: {c:?}")),
    }
}

/// Keys of a run's configuration with what fits them, or with values of other types and sizes.
pub fn run_values(b: &Bench, rng: &mut Rng) -> Verdict {
    let fitting = [
        ("beta", "0.2"),
        ("loss_type", "\"ipo\""),
        ("label_smoothing", "0.1"),
        ("learning_rate", "1e-5"),
        ("seed", "7"),
        ("weight_decay", "0.01"),
        ("lr_scheduler_type", "\"cosine\""),
        ("warmup_ratio", "0.1"),
        ("batch_size", "4"),
        ("max_steps", "9"),
        ("num_train_epochs", "2"),
        ("dtype", "\"f32\""),
        ("save_dtype", "\"bf16\""),
        ("adam_beta1", "0.8"),
        ("adam_beta2", "0.95"),
        ("adam_epsilon", "1e-8"),
        ("max_grad_norm", "1.0"),
        ("eval_steps", "3"),
        ("token_budget", "256"),
        ("gradient_checkpointing", "true"),
        ("device", "\"cpu\""),
        ("ref_model", "\"m\""),
        ("nonsense", "1"),
        ("a.b", "1"),
    ];
    let others = [
        "1",
        "0",
        "-1",
        "0.1",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "true",
        "\"m\"",
        "\"\"",
        "\"linear\"",
        "[]",
        "[1, \"a\"]",
        "{}",
        "{ a = 1 }",
        "1979-05-27",
        "9223372036854775807",
        "99999999999999999999",
        "\"\\u0000\\u001b[31m\"",
        "'''a\nb'''",
        "0x7f",
        "1_000",
    ];
    let mut lines = vec!["model = \"m\"".to_owned(), "data = \"d\"".to_owned()];
    for _ in 0..1 + rng.below(5) {
        let (key, fits) = *rng.pick(&fitting);
        let value = if rng.below(4) == 0 { *rng.pick(&others) } else { fits };
        lines.push(format!("{key} = {value}"));
    }
    if rng.below(8) > 0 {
        lines.sort();
        lines.dedup_by(|a, b| a.split(' ').next() == b.split(' ').next());
    }
    let mut text = lines.join("\n") + "\n";
    if rng.below(6) == 0 {
        text = String::from_utf8_lossy(&bytes(rng, text.as_bytes(), text.len())).into_owned();
    }
    b.write("c.toml", text);
    let typed = toml::Table::from_iter([("out".to_owned(), b.path("r").to_str().unwrap().into())]);
    let stage = if rng.below(2) == 0 { Stage::Dpo } else { Stage::Sft };
    match resolve(stage, Some(&b.path("c.toml")), typed) {
        Err(e) => refused(&e),
        Ok(c) if c.schedule.learning_rate.is_finite() && c.data.batch_size > 0 => Ok(true),
        Ok(c) => Err(format!("accepted: {c:?}")),
    }
}
