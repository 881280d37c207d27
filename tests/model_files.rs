//! Model directories: what loads, what export writes, and the exact line for each way a directory can be wrong.

mod model_common;

use fusedpo::backend::Backend;
use fusedpo::model::{Architecture, Model, ModelConfig, SaveDtype, export};
use model_common::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

const MODELS: [&str; 4] = ["llama", "llama3-tied", "qwen2", "qwen3"];

fn golden(name: &str) -> std::path::PathBuf {
    project("tests/golden").join(name)
}

/// A copy of a golden model that may be changed.
fn copy(name: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let entry = entry.unwrap();
        // Written, not copied: the source may be read-only.
        std::fs::write(dir.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
    dir
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut v = read_json(path);
    edit(&mut v);
    std::fs::write(path, v.to_string()).unwrap();
}

type Tensors = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(n, (dtype, shape, data))| (n, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Splits model.safetensors into two shards with an index.
fn shard(dir: &Path) {
    let all = tensors(&dir.join("model.safetensors"));
    let mut map = serde_json::Map::new();
    for (i, name) in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].iter().enumerate() {
        let part: Tensors = all.clone().into_iter().enumerate().filter(|(n, _)| n % 2 == i).map(|(_, t)| t).collect();
        part.keys().for_each(|t| drop(map.insert(t.clone(), json!(name))));
        write_tensors(&dir.join(name), &part);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
}

fn same_files(a: &Path, b: &Path) {
    for entry in std::fs::read_dir(a).unwrap() {
        let name = entry.unwrap().file_name();
        let files = [a, b].map(|d| std::fs::read(d.join(&name)).unwrap());
        assert!(files[0] == files[1], "{} differs", name.display());
    }
}

#[test]
fn export_writes_what_was_loaded() {
    let be = cpu32();
    for name in MODELS {
        let out = TempDir::new().unwrap();
        let m = Model::load(&be, &golden(name), 64).unwrap();
        let report = export(&be, &m, None, None, out.path(), SaveDtype::Source).unwrap();
        same_files(&golden(name), out.path());
        assert_eq!((report.updated, report.changed), (0, 0));
        assert_eq!(report.weights, m.table.num_parameters() as u64);
        assert_eq!(Model::load(&be, out.path(), 64).unwrap().sha256(), m.sha256());
    }
}

#[test]
fn shards_are_kept_and_do_not_change_the_identity() {
    let be = cpu32();
    let (dir, out) = (copy("qwen2"), TempDir::new().unwrap());
    let whole = Model::load(&be, dir.path(), 64).unwrap();
    shard(dir.path());
    let m = Model::load(&be, dir.path(), 64).unwrap();
    assert_eq!(m.sha256(), whole.sha256());
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
    let be = cpu32();
    let of = |dir: &Path| Model::load(&be, dir, 64).unwrap().sha256();
    let dir = copy("llama");
    let before = of(dir.path());
    edit_json(&dir.path().join("config.json"), |c| c["rope_theta"] = json!(20000.0));
    assert!(of(dir.path()) != before, "another rope_theta");
    let dir = copy("llama");
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(of(dir.path()) != before, "another weight");
}

#[test]
fn saving_in_another_dtype_rounds_and_says_so() {
    let be = cpu32();
    for (save, dtype, torch) in
        [(SaveDtype::Bf16, safetensors::Dtype::BF16, "bfloat16"), (SaveDtype::F16, safetensors::Dtype::F16, "float16")]
    {
        for (name, field) in [("llama", "torch_dtype"), ("qwen3", "dtype")] {
            let out = TempDir::new().unwrap();
            let m = Model::load(&be, &golden(name), 64).unwrap();
            let report = export(&be, &m, None, None, out.path(), save).unwrap();
            assert_eq!((report.updated, report.changed), (0, 0), "rounding alone is no update");
            assert_eq!(read_json(&out.path().join("config.json"))[field], json!(torch));
            let (saved, source) =
                (tensors(&out.path().join("model.safetensors")), tensors(&golden(name).join("model.safetensors")));
            assert!(saved.keys().eq(source.keys()));
            assert!(saved.values().all(|t| t.0 == dtype));
            let back = Model::load(&be, out.path(), 64).unwrap();
            let (a, b) = (read(&be, &m.weights, m.table.len), read(&be, &back.weights, m.table.len));
            let round = |x: f64| match save {
                SaveDtype::Bf16 => half::bf16::from_f64(x).to_f64(),
                _ => half::f16::from_f64(x).to_f64(),
            };
            a.iter().zip(&b).for_each(|(a, b)| assert_eq!(round(*a), *b));
        }
    }
}

#[test]
fn export_counts_updates_that_rounding_swallows() {
    let be = cpu32();
    let (dir, out) = (copy("llama"), TempDir::new().unwrap());
    let m = Model::load(&be, dir.path(), 64).unwrap();
    let bf16 = TempDir::new().unwrap();
    export(&be, &m, None, None, bf16.path(), SaveDtype::Bf16).unwrap();
    let m = Model::load(&be, bf16.path(), 64).unwrap();
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
    let mut m = Model::load(&be, &golden("llama"), 64).unwrap();
    be.upload(be.view_mut(&mut m.weights, 0..1), &[7e4]).unwrap();
    let error = export(&be, &m, None, None, out.path(), SaveDtype::F16).unwrap_err().to_string();
    let want = "model.safetensors: tensor `model.embed_tokens.weight` has a weight that is not finite in F16; use another --save-dtype, or check the training";
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
        let back = Model::load(&be, out.path(), 64).unwrap();
        assert_eq!(back.config, ModelConfig { dtype: Some("float32".into()), ..config });
        assert_eq!(back.sha256(), m.sha256());
        assert!(out.path().join("tokenizer.json").exists());
        let other = Model::random(&be, back.config, 99, 64).unwrap();
        assert!(other.sha256() != m.sha256());
    }
}

#[test]
fn f64_holds_what_f32_does() {
    let (a, b) = (cpu32(), cpu64());
    let m = Model::load(&a, &golden("llama"), 64).unwrap();
    let n = Model::load(&b, &golden("llama"), 64).unwrap();
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
    let m = Model::load(&be, dir.path(), 64).unwrap();
    let report = export(&be, &m, None, None, out.path(), SaveDtype::Source).unwrap();
    assert_eq!(report.weights, m.table.num_parameters() as u64);
    same_files(dir.path(), out.path());
}

/// One way to break a copy of the llama model, and the line that it must give; `{}` is the directory.
type Bad = (&'static str, fn(&Path), &'static str);

fn config(dir: &Path, field: &str, value: Value) {
    edit_json(&dir.join("config.json"), |c| c[field] = value);
}

fn change_tensors(dir: &Path, change: impl FnOnce(&mut Tensors)) {
    let path = dir.join("model.safetensors");
    let mut all = tensors(&path);
    change(&mut all);
    write_tensors(&path, &all);
}

const BAD: &[Bad] = &[
    ("no directory", |d| std::fs::remove_dir_all(d).unwrap(), "{}: no such directory; expected a Hugging Face model directory with config.json and model.safetensors"),
    ("no config", |d| std::fs::remove_file(d.join("config.json")).unwrap(), "{}: no config.json; expected a Hugging Face model directory with config.json and model.safetensors"),
    ("adapter", |d| std::fs::write(d.join("adapter_config.json"), "{}").unwrap(), "{}: a PEFT adapter (adapter_config.json): adapters are not implemented; merge it into its base model first"),
    ("config no JSON", |d| std::fs::write(d.join("config.json"), "{").unwrap(), "{}/config.json: not JSON: EOF while parsing an object at line 1 column 1"),
    ("config a list", |d| std::fs::write(d.join("config.json"), "[]").unwrap(), "{}/config.json: expected a JSON object"),
    ("another family", |d| config(d, "model_type", json!("gemma2")), "{}/config.json: model type `gemma2` is not supported; supported: llama, mistral, qwen2, qwen3"),
    ("another class", |d| config(d, "architectures", json!(["LlamaForSequenceClassification"])), "{}/config.json: architecture `LlamaForSequenceClassification` is not supported; for llama expected LlamaForCausalLM"),
    ("field missing", |d| edit_json(&d.join("config.json"), |c| drop(c.as_object_mut().unwrap().remove("hidden_size"))), "{}/config.json: `hidden_size` is missing"),
    ("field negative", |d| config(d, "num_hidden_layers", json!(-1)), "{}/config.json: `num_hidden_layers` is -1, expected an integer from 1 to 2147483647"),
    ("field a string", |d| config(d, "vocab_size", json!("97")), "{}/config.json: `vocab_size` is \"97\", expected an integer from 1 to 2147483647"),
    ("eps", |d| config(d, "rms_norm_eps", json!(0.0)), "{}/config.json: `rms_norm_eps` is 0.0, expected a number greater than 0"),
    ("activation", |d| config(d, "hidden_act", json!("gelu")), "{}/config.json: `hidden_act` \"gelu\" is not supported; supported: silu"),
    ("mlp bias", |d| config(d, "mlp_bias", json!(true)), "{}/config.json: `mlp_bias` true is not supported"),
    ("quantized", |d| config(d, "quantization_config", json!({})), "{}/config.json: `quantization_config`: quantized weights are not supported; use the f32, f16 or bf16 model"),
    ("yarn", |d| config(d, "rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})), "{}/config.json: `rope_scaling` of type `yarn` is not supported; supported: default, linear, llama3"),
    ("rope factor", |d| config(d, "rope_scaling", json!({"type": "linear"})), "{}/config.json: `factor` is missing"),
    ("partial rotary", |d| config(d, "partial_rotary_factor", json!(0.5)), "{}/config.json: `partial_rotary_factor` other than 1 is not supported"),
    ("heads", |d| config(d, "num_key_value_heads", json!(3)), "{}/config.json: `num_attention_heads` 4 is not a multiple of `num_key_value_heads` 3"),
    ("odd head", |d| config(d, "head_dim", json!(7)), "{}/config.json: head dimension 7 is odd: the rotary embedding needs pairs"),
    ("eos", |d| config(d, "eos_token_id", json!(97)), "{}/config.json: token id 97 is outside `vocab_size` 97"),
    ("huge", |d| { config(d, "vocab_size", json!(2147483647)); config(d, "hidden_size", json!(2147483644)); config(d, "num_hidden_layers", json!(9)) }, "the configuration's weights exceed the address space"),
    ("no weights", |d| std::fs::remove_file(d.join("model.safetensors")).unwrap(), "{}: neither model.safetensors nor model.safetensors.index.json"),
    ("pickle", |d| std::fs::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap(), "{}: neither model.safetensors nor model.safetensors.index.json (pytorch_model.bin is not read: save the model as safetensors)"),
    ("empty file", |d| std::fs::write(d.join("model.safetensors"), "").unwrap(), "{}/model.safetensors: damaged safetensors file (header too small); download or export it again"),
    ("cut short", |d| { let p = d.join("model.safetensors"); let b = std::fs::read(&p).unwrap(); std::fs::write(&p, &b[..b.len() - 1]).unwrap() }, "{}/model.safetensors: damaged safetensors file (incomplete metadata, file not fully covered); download or export it again"),
    ("header too long", |d| { let p = d.join("model.safetensors"); let mut b = std::fs::read(&p).unwrap(); b[..8].fill(255); std::fs::write(&p, &b).unwrap() }, "{}/model.safetensors: damaged safetensors file (header too large); download or export it again"),
    ("missing tensor", |d| change_tensors(d, |t| drop(t.remove("model.layers.1.mlp.up_proj.weight"))), "{}: tensor `model.layers.1.mlp.up_proj.weight` is missing from the safetensors files"),
    ("untied without head", |d| change_tensors(d, |t| drop(t.remove("lm_head.weight"))), "{}: tensor `lm_head.weight` is missing from the safetensors files"),
    ("unknown tensor", |d| change_tensors(d, |t| drop(t.insert("lora_A".into(), (safetensors::Dtype::F32, vec![1], vec![0; 4])))), "{}/model.safetensors: tensor `lora_A` is not part of a llama model of this config.json"),
    ("shape", |d| change_tensors(d, |t| t.get_mut("model.norm.weight").unwrap().1 = vec![4, 8]), "{}/model.safetensors: tensor `model.norm.weight` has shape [4, 8], but config.json makes it [32]"),
    ("dtype", |d| change_tensors(d, |t| t.get_mut("model.norm.weight").unwrap().0 = safetensors::Dtype::I32), "{}/model.safetensors: tensor `model.norm.weight` has dtype I32; supported: F32, F16, BF16"),
    ("not a number", |d| change_tensors(d, |t| t.get_mut("model.norm.weight").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes())), "{}: tensor `model.norm.weight` holds NaN or infinity; the checkpoint is damaged"),
    ("tied but different", |d| config(d, "tie_word_embeddings", json!(true)), "{}/model.safetensors: `lm_head.weight` differs from `model.embed_tokens.weight`, but config.json ties them; set `tie_word_embeddings` to false if the head is its own"),
    ("shard missing", |d| { shard(d); std::fs::remove_file(d.join("model-00002-of-00002.safetensors")).unwrap() }, "{}/model-00002-of-00002.safetensors: cannot open: No such file or directory (os error 2)"),
    ("index outside", |d| { shard(d); edit_json(&d.join("model.safetensors.index.json"), |i| i["weight_map"] = json!({"a": "../x"})) }, "{}/model.safetensors.index.json: `weight_map` gives \"../x\" for `a`, expected a file name"),
    ("index empty", |d| { shard(d); edit_json(&d.join("model.safetensors.index.json"), |i| i["weight_map"] = json!({})) }, "{}/model.safetensors.index.json: no `weight_map`"),
];

#[test]
fn bad_directories_give_one_exact_line() {
    let be = cpu32();
    for (what, damage, want) in BAD {
        let dir = copy("llama");
        damage(dir.path());
        let error = match Model::load(&be, dir.path(), 64) {
            Ok(_) => panic!("{what}: loaded"),
            Err(e) => e.to_string(),
        };
        assert_eq!(error, want.replace("{}", &dir.path().display().to_string()), "{what}");
    }
}

/// Every truncation of a small file, and every bit of its length field: an error, never a panic.
#[test]
fn damaged_headers_never_panic() {
    let be = cpu32();
    let dir = copy("llama");
    let path = dir.path().join("model.safetensors");
    let good = std::fs::read(&path).unwrap();
    let damaged = (0..600).step_by(7).map(|n| good[..n].to_vec());
    let flipped = (0..64 + 8 * 40).map(|bit| {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    for (i, bytes) in damaged.chain(flipped).enumerate() {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        if let Err(e) = Model::load(&be, dir.path(), 64) {
            assert!(!e.to_string().contains('\n'), "case {i}: {e}");
        }
    }
}
