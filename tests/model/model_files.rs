//! Model directories: what loads, what export writes, and the exact line for each way a directory can be wrong.

use crate::model_common;

use fusedpo::backend::Device;
use fusedpo::model::{Architecture, Model, ModelConfig, ModelDir, Rope, RopeScaling, SaveDtype, export};
use model_common::files::*;
use model_common::*;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

const MODELS: [&str; 4] = ["llama", "llama3-tied", "qwen2", "qwen3"];

fn same_files(a: &Path, b: &Path) {
    for entry in std::fs::read_dir(a).unwrap() {
        let name = entry.unwrap().file_name();
        let files = [a, b].map(|d| std::fs::read(d.join(&name)).unwrap());
        assert!(files[0] == files[1], "{} differs", name.display());
    }
}

fn identity(dir: &Path) -> [u8; 32] {
    ModelDir::open(dir).unwrap().identity().unwrap()
}

#[test]
fn export_writes_what_was_loaded() {
    let be = cpu32();
    for name in MODELS {
        let out = TempDir::new().unwrap();
        let m = Model::load(&be, &ModelDir::open(&golden(name)).unwrap(), 64).unwrap();
        let report = export(&be, &m, None, None, out.path(), SaveDtype::Source).unwrap();
        same_files(&golden(name), out.path());
        assert_eq!((report.updated, report.changed), (0, 0));
        assert_eq!(report.weights, m.table.num_parameters() as u64);
        assert_eq!(identity(out.path()), m.sha256().unwrap());
    }
}

#[test]
fn shards_are_kept_and_do_not_change_the_identity() {
    let be = cpu32();
    let (dir, out) = (copy("qwen2"), TempDir::new().unwrap());
    let whole = Model::load(&be, &ModelDir::open(dir.path()).unwrap(), 64).unwrap();
    shard(dir.path());
    let m = Model::load(&be, &ModelDir::open(dir.path()).unwrap(), 64).unwrap();
    assert_eq!(m.sha256().unwrap(), whole.sha256().unwrap());
    assert_eq!(read(&be, &m.weights, m.table.len), read(&be, &whole.weights, m.table.len));
    export(&be, &m, None, None, out.path(), SaveDtype::Source).unwrap();
    same_files(dir.path(), out.path());
    export(&be, &m, None, None, out.path(), SaveDtype::Bf16).unwrap();
    let index = read_json(&out.path().join("model.safetensors.index.json"));
    assert_eq!(index["metadata"]["total_size"], json!(2 * m.table.num_parameters()));
    let single = export(&be, &whole, None, None, out.path(), SaveDtype::Source).unwrap_err().to_string();
    let want = "model.safetensors.index.json: weights of another model are in the way; choose an empty directory";
    assert!(single.ends_with(want), "{single}");
}

#[test]
fn identity_tells_models_apart() {
    let before = identity(copy("llama").path());
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    // Everything that makes another model of the same tensors.
    for (key, value) in [("rope_theta", json!(20000.0)), ("rope_scaling", linear), ("rms_norm_eps", json!(1e-6))] {
        let dir = copy("llama");
        edit_json(&dir.path().join("config.json"), |c| c[key] = value);
        assert!(identity(dir.path()) != before, "another {key}");
    }
    let dir = copy("llama");
    edit_json(&dir.path().join("config.json"), |c| c["max_position_embeddings"] = json!(64));
    assert!(identity(dir.path()) == before, "what computes nothing is no other model");
    let dir = copy("llama");
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(identity(dir.path()) != before, "another weight");
}

/// In place, as nobody should: what was said before stands, and only a directory opened again shows the change.
#[test]
fn a_directory_is_read_and_hashed_once() {
    let dir = copy("llama");
    let opened = ModelDir::open(dir.path()).unwrap();
    let (identity_before, tokenizer_before) = (opened.identity().unwrap(), opened.tokenizer_identity().unwrap());
    let change = |name: &str, edit: &dyn Fn(&mut Vec<u8>)| {
        let path = dir.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        edit(&mut bytes);
        let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
    };
    change("model.safetensors", &|bytes| *bytes.last_mut().unwrap() ^= 1);
    change("tokenizer.json", &|bytes| bytes.push(b' '));
    let again = ModelDir::open(dir.path()).unwrap();
    assert!(again.identity().unwrap() != identity_before);
    assert!(again.tokenizer_identity().unwrap() != tokenizer_before);
    for handle in [opened.clone(), opened.open_other(dir.path()).unwrap(), opened] {
        assert_eq!(handle.identity().unwrap(), identity_before);
        assert_eq!(handle.tokenizer_identity().unwrap(), tokenizer_before);
    }
}

/// A model goes on with the files that it was opened with, and saves their configuration.
#[test]
fn files_that_are_replaced_do_not_reach_an_open_directory() {
    let (be, dir, out) = (cpu32(), copy("llama"), TempDir::new().unwrap());
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": 2}"#).unwrap();
    let opened = ModelDir::open(dir.path()).unwrap();
    let model = Model::load(&be, &opened, 64).unwrap();
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name), "another").unwrap();
    }
    assert_eq!(opened.identity().unwrap(), identity(&golden("llama")));
    export(&be, &model, None, None, out.path(), SaveDtype::Source).unwrap();
    same_files(&golden("llama"), out.path());
    assert_eq!(std::fs::read(out.path().join("generation_config.json")).unwrap(), br#"{"eos_token_id": 2}"#);
}

#[test]
fn a_second_name_of_a_directory_is_the_same_one() {
    let (dir, copied) = (copy("llama"), copy("llama"));
    let opened = ModelDir::open(dir.path()).unwrap();
    let same =
        [dir.path().to_owned(), dir.path().join("."), dir.path().join("../").join(dir.path().file_name().unwrap())];
    for path in same {
        assert!(opened.open_other(&path).unwrap().is(&opened), "{}", path.display());
    }
    let other = opened.open_other(copied.path()).unwrap();
    assert!(!other.is(&opened) && other.path() == copied.path());
    assert!(opened.open_other(&dir.path().join("none")).is_err());
}

/// Read, the pages that are gone would kill the process.
#[test]
fn a_file_that_was_cut_short_is_an_error() {
    let (be, dir) = (cpu32(), copy("llama"));
    let [hashes, loads] = [(), ()].map(|()| ModelDir::open(dir.path()).unwrap());
    let models = [&hashes, &loads].map(|d| Model::load(&be, d, 64).unwrap());
    let path = dir.path().join("model.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let errors = [hashes.identity().map(drop), models[0].sha256().map(drop), Model::load(&be, &loads, 64).map(drop)];
    for error in errors {
        let want = "was cut short while in use: leave a model's files alone during a run, and start it again";
        assert_eq!(error.unwrap_err().to_string(), format!("{}: {want}", path.display()));
    }
}

#[test]
fn saving_in_another_dtype_rounds_and_says_so() {
    let be = cpu32();
    for (save, dtype, torch) in
        [(SaveDtype::Bf16, safetensors::Dtype::BF16, "bfloat16"), (SaveDtype::F16, safetensors::Dtype::F16, "float16")]
    {
        for (name, field) in [("llama", "torch_dtype"), ("qwen3", "dtype")] {
            let out = TempDir::new().unwrap();
            let m = Model::load(&be, &ModelDir::open(&golden(name)).unwrap(), 64).unwrap();
            let report = export(&be, &m, None, None, out.path(), save).unwrap();
            assert_eq!((report.updated, report.changed), (0, 0), "rounding alone is no update");
            assert_eq!(read_json(&out.path().join("config.json"))[field], json!(torch));
            let (saved, source) =
                (tensors(&out.path().join("model.safetensors")), tensors(&golden(name).join("model.safetensors")));
            assert!(saved.keys().eq(source.keys()));
            assert!(saved.values().all(|t| t.0 == dtype));
            let back = Model::load(&be, &ModelDir::open(out.path()).unwrap(), 64).unwrap();
            let (a, b) = (read(&be, &m.weights, m.table.len), read(&be, &back.weights, m.table.len));
            let round = |x: f64| match save {
                SaveDtype::Bf16 => half::bf16::from_f32(x as f32).to_f64(),
                _ => half::f16::from_f32(x as f32).to_f64(),
            };
            a.iter().zip(&b).for_each(|(a, b)| assert_eq!(round(*a), *b));
        }
    }
}

#[test]
fn export_counts_updates_that_rounding_swallows() {
    let be = cpu32();
    let (dir, out) = (copy("llama"), TempDir::new().unwrap());
    let m = Model::load(&be, &ModelDir::open(dir.path()).unwrap(), 64).unwrap();
    let bf16 = TempDir::new().unwrap();
    export(&be, &m, None, None, bf16.path(), SaveDtype::Bf16).unwrap();
    let m = Model::load(&be, &ModelDir::open(bf16.path()).unwrap(), 64).unwrap();
    let spec = m.table.spec("model.norm.weight").unwrap();
    // bf16 has 8 bits: 2^-10 relative is below half its spacing, 2^-6 above.
    for (relative, changed) in [(2f64.powi(-10), 0), (2f64.powi(-6), spec.at.len() as u64)] {
        let mut master = m.master(&be).unwrap();
        let moved: Vec<f32> =
            read(&be, &master, m.table.len)[spec.at.clone()].iter().map(|w| (w * (1.0 + relative)) as f32).collect();
        be.upload(be.view_mut(&mut master, spec.at.clone()), &moved).unwrap();
        let report = export(&be, &m, Some(&master), None, out.path(), SaveDtype::Source).unwrap();
        assert_eq!((report.updated, report.changed), (spec.at.len() as u64, changed));
        assert_eq!(report.weights, m.table.num_parameters() as u64);
    }
}

#[test]
fn export_refuses_what_the_dtype_cannot_hold() {
    let be = cpu32();
    let out = TempDir::new().unwrap();
    let mut m = Model::load(&be, &ModelDir::open(&golden("llama")).unwrap(), 64).unwrap();
    be.upload(be.view_mut(&mut m.weights, 0..1), &[7e4]).unwrap();
    let error = export(&be, &m, None, None, out.path(), SaveDtype::F16).unwrap_err().to_string();
    let want = "model.safetensors: tensor `model.embed_tokens.weight` has a weight that is not finite in F16; use another `options.save_dtype`, or check the training";
    assert!(error.ends_with(want), "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "a refused export leaves nothing behind");
}

#[test]
fn models_from_scratch_come_back() {
    let be = cpu32();
    for (i, name) in MODELS.iter().enumerate() {
        let config = ModelConfig::load(&golden(name)).unwrap();
        let out = TempDir::new().unwrap();
        let m = Model::random(&be, config.clone(), i as u64, 64).unwrap();
        export(&be, &m, None, Some(&golden(name)), out.path(), SaveDtype::Source).unwrap();
        let back = Model::load(&be, &ModelDir::open(out.path()).unwrap(), 64).unwrap();
        assert_eq!(back.config, ModelConfig { dtype: Some("float32".into()), ..config });
        assert_eq!(back.sha256().unwrap(), m.sha256().unwrap());
        assert!(out.path().join("tokenizer.json").exists());
        let ends = read_json(&out.path().join("generation_config.json"))["eos_token_id"].clone();
        assert_eq!(ends, json!(m.config.eos_token_ids), "for what reads no more than that");
        let other = Model::random(&be, back.config, 99, 64).unwrap();
        assert!(other.sha256().unwrap() != m.sha256().unwrap());
    }
}

#[test]
fn f64_holds_what_f32_does() {
    let (a, b) = (cpu32(), cpu64());
    let m = Model::load(&a, &ModelDir::open(&golden("llama")).unwrap(), 64).unwrap();
    let n = Model::load(&b, &ModelDir::open(&golden("llama")).unwrap(), 64).unwrap();
    assert_eq!(read(&a, &m.weights, m.table.len), read(&b, &n.weights, n.table.len));
}

#[test]
fn configurations_of_both_transformers_generations() {
    let load = |edit: &dyn Fn(&mut Value)| {
        let dir = copy("llama");
        edit_json(&dir.path().join("config.json"), edit);
        ModelConfig::load(dir.path()).unwrap()
    };
    let plain = load(&|_| ());
    assert_eq!(plain.dtype.as_deref(), Some("float32"));
    let five = load(&|c| {
        let c = c.as_object_mut().unwrap();
        c.remove("rope_theta");
        c.remove("rope_scaling");
        c.remove("torch_dtype");
        c.insert("dtype".into(), json!("float32"));
        c.insert("rope_parameters".into(), json!({"rope_type": "default", "rope_theta": 10000.0}));
    });
    assert_eq!(plain, five);
    assert_eq!(load(&|c| c["eos_token_id"] = json!([2, 5])).eos_token_ids, [2, 5]);
    assert!(load(&|c| c["eos_token_id"] = Value::Null).eos_token_ids.is_empty());
    let mistral = load(&|c| {
        c["architectures"] = json!(["MistralForCausalLM"]);
        c["model_type"] = json!("mistral");
        c["sliding_window"] = json!(48);
    });
    assert_eq!((mistral.architecture, mistral.sliding_window), (Architecture::Mistral, Some(48)));
    assert!(mistral.check_positions(48).is_ok());
    assert_eq!(
        mistral.check_positions(49).unwrap_err().to_string(),
        "rows of up to 49 tokens, but the model has a sliding window of 48: sliding-window attention is not implemented; use \
         rows of at most 48 tokens"
    );
    let dir = copy("llama");
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [7, 2]}"#).unwrap();
    assert_eq!(ModelConfig::load(dir.path()).unwrap().eos_token_ids, [7, 2]);
}

/// What old exporters add is accepted and exported again.
#[test]
fn extra_tensors_of_old_exporters() {
    let be = cpu32();
    let (dir, out) = (copy("llama3-tied"), TempDir::new().unwrap());
    let path = dir.path().join("model.safetensors");
    let mut all = tensors(&path);
    all.insert("lm_head.weight".into(), all["model.embed_tokens.weight"].clone());
    all.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (safetensors::Dtype::F32, vec![1], vec![0; 4]));
    write_tensors(&path, &all);
    let m = Model::load(&be, &ModelDir::open(dir.path()).unwrap(), 64).unwrap();
    let report = export(&be, &m, None, None, out.path(), SaveDtype::Source).unwrap();
    assert_eq!(report.weights, m.table.num_parameters() as u64);
    same_files(dir.path(), out.path());
    // A copy of a tied head goes with the embedding.
    let mut m = m;
    be.upload(be.view_mut(&mut m.weights, 0..1), &[0.75]).unwrap();
    export(&be, &m, None, None, out.path(), SaveDtype::Source).unwrap();
    let saved = tensors(&out.path().join("model.safetensors"));
    assert_eq!(saved["model.embed_tokens.weight"].2[..4], 0.75f32.to_le_bytes());
    assert!(saved["lm_head.weight"] == saved["model.embed_tokens.weight"]);
}

/// transformers' values where a configuration leaves a field out.
#[test]
fn fields_that_may_be_left_out() {
    let load = |name: &str, without: &[&str], edit: &dyn Fn(&mut Value)| {
        let dir = copy(name);
        edit_json(&dir.path().join("config.json"), |c| {
            without.iter().for_each(|key| drop(c.as_object_mut().unwrap().remove(*key)));
            edit(c);
        });
        ModelConfig::load(dir.path()).unwrap()
    };
    let left_out = ["rope_theta", "rope_scaling", "rms_norm_eps", "num_key_value_heads", "tie_word_embeddings"];
    let c = load("llama", &left_out, &|_| ());
    assert_eq!((c.rope, c.rms_norm_eps), (Rope { theta: 10000.0, scaling: RopeScaling::None }, 1e-6));
    assert_eq!((c.num_key_value_heads, c.head_dim, c.tie_word_embeddings), (4, 8, false));
    assert_eq!((c.qkv_bias, c.o_bias, c.sliding_window), (false, false, None));
    // Llama and Qwen3 may have biases, all four.
    for name in ["llama", "qwen3"] {
        let c = load(name, &[], &|c| c["attention_bias"] = json!(true));
        assert_eq!((c.qkv_bias, c.o_bias), (true, true), "{name}");
    }
    let c = load("llama", &[], &|c| {
        c["rope_scaling"] =
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    });
    let RopeScaling::Llama3 { original_max_position_embeddings, .. } = c.rope.scaling else { panic!("{:?}", c.rope) };
    assert_eq!(original_max_position_embeddings, 128.0, "the model's own positions");
    let c = load("qwen3", &[], &|c| c["rope_parameters"]["rope_theta"] = json!(500000.0));
    assert_eq!(c.rope.theta, 500000.0);
    // Null key heads are as many as the query heads; left out, each family has its own number.
    assert_eq!(load("qwen3", &[], &|c| c["num_key_value_heads"] = Value::Null).num_key_value_heads, 4);
    let dir = copy("qwen3");
    edit_json(&dir.path().join("config.json"), |c| drop(c.as_object_mut().unwrap().remove("num_key_value_heads")));
    let e = ModelConfig::load(dir.path()).unwrap_err().to_string();
    assert!(e.ends_with("`num_attention_heads` 4 is not a multiple of `num_key_value_heads` 32"), "{e}");
    // No token is outside the vocabulary.
    for (name, key, value, want) in [
        ("llama", "bos_token_id", json!(97), "token id 97 is outside `vocab_size` 97"),
        ("llama", "eos_token_id", json!([2, 97]), "token id 97 is outside `vocab_size` 97"),
    ] {
        let dir = copy(name);
        edit_json(&dir.path().join("config.json"), |c| c[key] = value);
        let e = ModelConfig::load(dir.path()).unwrap_err().to_string();
        assert!(e.contains(want), "{e}");
    }
    // A window is used where it is set (Mistral), where it is asked for (Qwen), or never (Llama).
    let window = |name: &str, used: Option<bool>, first: i32| {
        let c = load(name, &[], &|c| {
            c["sliding_window"] = json!(48);
            used.iter().for_each(|used| c["use_sliding_window"] = json!(used));
            // Qwen's first layers have none.
            c["max_window_layers"] = json!(first);
        });
        (c.sliding_window, c.usable_positions())
    };
    assert_eq!(window("llama", None, 0), (None, 128));
    assert_eq!(window("qwen3", Some(true), 2), (None, 128), "its second layer is its last");
    assert_eq!(
        [None, Some(false), Some(true)].map(|used| window("qwen3", used, 1)),
        [(None, 128), (None, 128), (Some(48), 48)]
    );
}

/// GPT-2's rule: deviations of the matrices, norms of 1, no bias.
#[test]
fn a_new_models_weights_are_of_the_stated_sizes() {
    let be = cpu64();
    for name in MODELS {
        let config = ModelConfig::load(&golden(name)).unwrap();
        let layers = config.num_hidden_layers as f64;
        let m = Model::random(&be, config, 5, 64).unwrap();
        let weights = read(&be, &m.weights, m.table.len);
        for spec in &m.table.specs {
            let values = &weights[spec.at.clone()];
            if spec.shape.len() < 2 {
                let want = if spec.name.ends_with(".bias") { 0.0 } else { 1.0 };
                assert!(values.iter().all(|w| *w == want), "{}", spec.name);
                continue;
            }
            let into_residual = spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
            let want = if into_residual { 0.02 / (2.0 * layers).sqrt() } else { 0.02 };
            let n = values.len() as f64;
            let (mean, deviation) = (values.iter().sum::<f64>() / n, norm(values) / n.sqrt());
            // Five standard errors of each.
            assert!(mean.abs() <= 5.0 * want / n.sqrt(), "{name}: {}: mean {mean}", spec.name);
            let error = 5.0 * want / (2.0 * n).sqrt();
            assert!((deviation - want).abs() <= error, "{name}: {}: {deviation}, not {want}", spec.name);
        }
    }
}
