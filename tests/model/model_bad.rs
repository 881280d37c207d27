//! The exact line for each way a model directory can be wrong.

use crate::model_common;

use fusedpo::model::{Model, ModelDir};
use model_common::cpu32;
use model_common::files::*;
use serde_json::{Value, json};
use std::path::Path;

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
    (
        "no directory",
        |d| std::fs::remove_dir_all(d).unwrap(),
        "{}: no such directory; expected a Hugging Face model directory with config.json and model.safetensors, or a name on the \
         hub: org/name",
    ),
    (
        "no config",
        |d| std::fs::remove_file(d.join("config.json")).unwrap(),
        "{}: no config.json; expected a Hugging Face model directory with config.json and model.safetensors",
    ),
    (
        "adapter",
        |d| std::fs::write(d.join("adapter_config.json"), "{}").unwrap(),
        "{}: a PEFT adapter (adapter_config.json), not a model: give it as `options.adapter`, and its base as `options.model`",
    ),
    (
        "config no JSON",
        |d| std::fs::write(d.join("config.json"), "{").unwrap(),
        "{}/config.json: not JSON: EOF while parsing an object at line 1 column 1",
    ),
    (
        "config a list",
        |d| std::fs::write(d.join("config.json"), "[]").unwrap(),
        "{}/config.json: expected a JSON object",
    ),
    (
        "another family",
        |d| config(d, "model_type", json!("gemma2")),
        "{}/config.json: model type `gemma2` is not supported; supported: llama, mistral, qwen2, qwen3",
    ),
    (
        "another class",
        |d| config(d, "architectures", json!(["LlamaForSequenceClassification"])),
        "{}/config.json: architecture `LlamaForSequenceClassification` is not supported; for llama expected LlamaForCausalLM",
    ),
    (
        "field missing",
        |d| edit_json(&d.join("config.json"), |c| drop(c.as_object_mut().unwrap().remove("hidden_size"))),
        "{}/model.safetensors: tensor `model.embed_tokens.weight` has shape [97, 32], but config.json makes it [97, 4096]",
    ),
    (
        "field negative",
        |d| config(d, "num_hidden_layers", json!(-1)),
        "{}/config.json: `num_hidden_layers` is -1, expected an integer from 1 to 2147483647",
    ),
    (
        "field a string",
        |d| config(d, "vocab_size", json!("97")),
        "{}/config.json: `vocab_size` is \"97\", expected an integer from 1 to 2147483647",
    ),
    (
        "layers",
        |d| config(d, "num_hidden_layers", json!(5000)),
        "{}/config.json: `num_hidden_layers` 5000 exceeds 4096",
    ),
    (
        "eps",
        |d| config(d, "rms_norm_eps", json!(0.0)),
        "{}/config.json: `rms_norm_eps` is 0.0, expected a number greater than 0",
    ),
    (
        "activation",
        |d| config(d, "hidden_act", json!("gelu")),
        "{}/config.json: `hidden_act` \"gelu\" is not supported; supported: silu",
    ),
    ("mlp bias", |d| config(d, "mlp_bias", json!(true)), "{}/config.json: `mlp_bias` true is not supported"),
    (
        "quantized",
        |d| config(d, "quantization_config", json!({})),
        "{}/config.json: `quantization_config`: `quant_method` is not given: bitsandbytes with NF4 alone is supported; use the f32, f16 or bf16 model, and `options.quantize`",
    ),
    (
        "kind of rope",
        |d| config(d, "rope_scaling", json!({"rope_type": "mrope", "factor": 4.0})),
        "{}/config.json: `rope_scaling` is of type `mrope`, which is not supported; supported: default, linear, dynamic, \
         yarn, longrope, llama3, proportional",
    ),
    (
        "no kind of rope",
        |d| config(d, "rope_scaling", json!({"factor": 4.0})),
        "{}/config.json: `rope_scaling` has `factor` but no `rope_type`, without which transformers ignores it; expected \
         one of default, linear, dynamic, yarn, longrope, llama3, proportional",
    ),
    (
        "rope factor",
        |d| config(d, "rope_scaling", json!({"type": "linear"})),
        "{}/config.json: `rope_scaling`: `factor` is missing",
    ),
    (
        "rope no object",
        |d| config(d, "rope_parameters", json!("linear")),
        "{}/config.json: `rope_parameters` is \"linear\", expected an object",
    ),
    (
        "rope factors",
        |d| {
            let rope = json!({"rope_type": "longrope", "short_factor": [1, 2, 3, 4], "long_factor": [1, 2]});
            config(d, "rope_scaling", rope)
        },
        "{}/config.json: `rope_scaling`: `long_factor` is [1,2], expected 4 numbers greater than 0",
    ),
    (
        "rope beyond numbers",
        |d| config(d, "rope_scaling", json!({"rope_type": "linear", "factor": 1e-308})),
        "{}/config.json: `rope_scaling` makes a rotary embedding that is not finite: the numbers are out of range",
    ),
    (
        "theta null",
        |d| config(d, "rope_theta", json!(null)),
        "{}/config.json: `rope_theta` is null, expected a number greater than 0",
    ),
    (
        "partial rotary",
        |d| {
            config(d, "rope_scaling", json!({"rope_type": "linear", "factor": 2.0}));
            config(d, "partial_rotary_factor", json!(0.5))
        },
        "{}/config.json: `partial_rotary_factor` other than 1 is not supported",
    ),
    (
        "not causal",
        |d| config(d, "is_causal", json!(null)),
        "{}/config.json: `is_causal` other than true is not supported: every token would see those after it",
    ),
    (
        "layers that differ",
        |d| config(d, "per_layer_config", json!({"0": {"intermediate_size": 8}})),
        "{}/config.json: `per_layer_config`: layers that differ are not supported",
    ),
    (
        "other versions",
        |d| config(d, "configuration_files", json!(["config.4.0.0.json"])),
        "{}/config.json: `configuration_files`: other versions of config.json are not read; keep the one that counts",
    ),
    (
        "field null",
        |d| config(d, "vocab_size", json!(null)),
        "{}/config.json: `vocab_size` is null; give its value, or leave the field out",
    ),
    (
        "eps an integer",
        |d| config(d, "rms_norm_eps", json!(1)),
        "{}/config.json: `rms_norm_eps` is 1, expected a fraction: so transformers wants it",
    ),
    (
        "heads",
        |d| config(d, "num_key_value_heads", json!(3)),
        "{}/config.json: `num_attention_heads` 4 is not a multiple of `num_key_value_heads` 3",
    ),
    (
        "odd head",
        |d| config(d, "head_dim", json!(7)),
        "{}/config.json: head dimension 7 is odd: the rotary embedding needs pairs",
    ),
    ("eos", |d| config(d, "eos_token_id", json!(97)), "{}/config.json: token id 97 is outside `vocab_size` 97"),
    (
        "huge",
        |d| {
            config(d, "vocab_size", json!(2147483647));
            config(d, "hidden_size", json!(2147483640));
            config(d, "num_hidden_layers", json!(9))
        },
        "the configuration's weights exceed the address space",
    ),
    (
        "no weights",
        |d| std::fs::remove_file(d.join("model.safetensors")).unwrap(),
        "{}: neither model.safetensors nor model.safetensors.index.json",
    ),
    (
        "pickle",
        |d| std::fs::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap(),
        "{}: neither model.safetensors nor model.safetensors.index.json (pytorch_model.bin is not read: save the model as safetensors)",
    ),
    (
        "empty file",
        |d| std::fs::write(d.join("model.safetensors"), "").unwrap(),
        "{}/model.safetensors: damaged safetensors file (header too small); download or export it again",
    ),
    (
        "cut short",
        |d| {
            let p = d.join("model.safetensors");
            let b = std::fs::read(&p).unwrap();
            std::fs::write(&p, &b[..b.len() - 1]).unwrap()
        },
        "{}/model.safetensors: damaged safetensors file (incomplete metadata, file not fully covered); download or export it again",
    ),
    (
        "header too long",
        |d| {
            let p = d.join("model.safetensors");
            let mut b = std::fs::read(&p).unwrap();
            b[..8].fill(255);
            std::fs::write(&p, &b).unwrap()
        },
        "{}/model.safetensors: damaged safetensors file (header too large); download or export it again",
    ),
    (
        "missing tensor",
        |d| change_tensors(d, |t| drop(t.remove("model.layers.1.mlp.up_proj.weight"))),
        "{}: tensor `model.layers.1.mlp.up_proj.weight` is missing from the safetensors files",
    ),
    (
        "untied without head",
        |d| change_tensors(d, |t| drop(t.remove("lm_head.weight"))),
        "{}: tensor `lm_head.weight` is missing from the safetensors files",
    ),
    (
        "unknown tensor",
        |d| change_tensors(d, |t| drop(t.insert("lora_A".into(), (safetensors::Dtype::F32, vec![1], vec![0; 4])))),
        "{}/model.safetensors: tensor `lora_A` is not part of a llama model of this config.json",
    ),
    (
        "shape",
        |d| change_tensors(d, |t| t.get_mut("model.norm.weight").unwrap().1 = vec![4, 8]),
        "{}/model.safetensors: tensor `model.norm.weight` has shape [4, 8], but config.json makes it [32]",
    ),
    (
        "dtype",
        |d| change_tensors(d, |t| t.get_mut("model.norm.weight").unwrap().0 = safetensors::Dtype::I32),
        "{}/model.safetensors: tensor `model.norm.weight` has dtype I32; supported: F32, F16, BF16",
    ),
    (
        "not a number",
        |d| {
            change_tensors(d, |t| {
                t.get_mut("model.norm.weight").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes())
            })
        },
        "{}: tensor `model.norm.weight` holds NaN or infinity; the checkpoint is damaged",
    ),
    (
        "tied but different",
        |d| config(d, "tie_word_embeddings", json!(true)),
        "{}/model.safetensors: `lm_head.weight` differs from `model.embed_tokens.weight`, but config.json ties them; set `tie_word_embeddings` to false if the head is its own",
    ),
    (
        "shard missing",
        |d| {
            shard(d);
            std::fs::remove_file(d.join("model-00002-of-00002.safetensors")).unwrap()
        },
        "{}/model-00002-of-00002.safetensors: cannot open: No such file or directory (os error 2)",
    ),
    (
        "index outside",
        |d| {
            shard(d);
            edit_json(&d.join("model.safetensors.index.json"), |i| i["weight_map"] = json!({"a": "../x"}))
        },
        "{}/model.safetensors.index.json: `weight_map` gives \"../x\" for `a`, expected a file name",
    ),
    (
        "index empty",
        |d| {
            shard(d);
            edit_json(&d.join("model.safetensors.index.json"), |i| i["weight_map"] = json!({}))
        },
        "{}/model.safetensors.index.json: no `weight_map`",
    ),
];

#[test]
fn bad_directories_give_one_exact_line() {
    let be = cpu32();
    for (what, damage, want) in BAD {
        let dir = copy("llama");
        damage(dir.path());
        let error = match ModelDir::open(dir.path()).and_then(|d| Model::load(&be, &d, 64)) {
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
        if let Err(e) = ModelDir::open(dir.path()).and_then(|d| Model::load(&be, &d, 64)) {
            assert!(!e.to_string().contains('\n'), "case {i}: {e}");
        }
    }
}
