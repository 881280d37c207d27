//! What is wrong with weights in four bits, in their files and in config.json, is refused in one line.

use crate::model_common;
use crate::nf4::{base, copy, json_file, tensors};

use fusedpo::model::{Model, ModelConfig, ModelDir, Quantized, SaveDtype, export, export_nf4};
use model_common::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;
type Change = Box<dyn Fn(&mut Tensors)>;

#[test]
fn what_is_wrong_with_four_bits_is_one_line() {
    let q = "model.layers.1.mlp.up_proj.weight";
    let set = |name: &str, dtype, shape: &[usize], bytes: usize| {
        let (name, shape) = (format!("{q}{name}"), shape.to_vec());
        move |t: &mut Tensors| _ = t.insert(name.clone(), (dtype, shape.clone(), vec![0; bytes]))
    };
    let state = |with: &str| {
        let (name, text) = (format!("{q}.quant_state.bitsandbytes__nf4"), with.as_bytes().to_vec());
        move |t: &mut Tensors| _ = t.insert(name.clone(), (Dtype::U8, vec![text.len()], text.clone()))
    };
    let without = |name: &str| {
        let name = format!("{q}{name}");
        move |t: &mut Tensors| _ = t.remove(&name)
    };
    let good = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [36, 32]}"#;
    let cases: Vec<(Change, String)> = vec![
        (
            Box::new(without(".quant_state.bitsandbytes__nf4")),
            format!(
                "`{q}` has no state (`{q}.quant_state.bitsandbytes__nf4`): save the model again with bitsandbytes, or use the one that is not quantized"
            ),
        ),
        (Box::new(without(".absmax")), format!("`{q}.absmax` is missing from the safetensors files")),
        (Box::new(without("")), format!("`{q}` is missing from the safetensors files")),
        (
            Box::new(set("", Dtype::U8, &[575, 1], 575)),
            format!("`{q}` has 575 bytes of codes, but config.json makes it [36, 32], which takes 576"),
        ),
        (
            Box::new(set("", Dtype::BF16, &[36, 32], 2304)),
            format!(
                "`{q}` has dtype BF16 and is not in NF4, and config.json does not say that it stays as it is (`llm_int8_skip_modules`): save the model again, or use the one that is not quantized"
            ),
        ),
        (
            Box::new(set(".absmax", Dtype::F32, &[17], 68)),
            format!("`{q}.absmax` has 17 elements, and the shape of its weight makes it 18"),
        ),
        (Box::new(set(".absmax", Dtype::U8, &[18], 18)), format!("`{q}.absmax` has dtype U8, expected F32")),
        (Box::new(set(".quant_map", Dtype::F32, &[16], 64)), format!("`{q}.quant_map` has other values than NF4's")),
        (
            Box::new(set(".quant_map", Dtype::F32, &[0], 0)),
            format!("`{q}.quant_map` has 0 elements, and the shape of its weight makes it 16"),
        ),
        (
            Box::new(set(".nested_absmax", Dtype::F32, &[1], 4)),
            format!("`{q}` has magnitudes of another kind than config.json says (`bnb_4bit_use_double_quant`)"),
        ),
        (
            Box::new(state("{")),
            format!("`{q}.quant_state.bitsandbytes__nf4` is not JSON: EOF while parsing an object at line 1 column 1"),
        ),
        (
            Box::new(state(&good.replace("nf4", "fp4"))),
            format!("`{q}.quant_state.bitsandbytes__nf4` `quant_type` is \"fp4\", and \"nf4\" alone is supported"),
        ),
        (
            Box::new(state(&good.replace("64", "128"))),
            format!("`{q}.quant_state.bitsandbytes__nf4` `blocksize` is 128, and 64 alone is supported"),
        ),
        (
            Box::new(state(&good.replace("[36, 32]", "[32, 36]"))),
            format!("`{q}` has shape [32, 36], but config.json makes it [36, 32]"),
        ),
        (
            Box::new(state(&good.replace("[36, 32]", "[18446744073709551615, 2]"))),
            format!("`{q}` has shape [18446744073709551615, 2], but config.json makes it [36, 32]"),
        ),
        (
            Box::new(state(&good.replace("float32", "int8"))),
            format!("`{q}.quant_state.bitsandbytes__nf4` `dtype` is \"int8\"; supported: float32, bfloat16, float16"),
        ),
    ];
    let be = cpu32();
    for (change, why) in cases {
        let folder = tempfile::tempdir().unwrap();
        let dir = copy("nf4/qwen2-plain", &folder.path().join("m"));
        let mut all = tensors(&dir.join("model.safetensors"));
        change(&mut all);
        let views = all.iter().map(|(n, (d, s, b))| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
        let e = match Model::load(&be, &ModelDir::open(&dir).unwrap(), 8) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("taken: {why}"),
        };
        assert_eq!(e, format!("{}: tensor {why}", dir.display()));
    }
    // NaN is found where it is read.
    let folder = tempfile::tempdir().unwrap();
    let dir = copy("nf4/qwen2-plain", &folder.path().join("m"));
    let mut all = tensors(&dir.join("model.safetensors"));
    all.get_mut(&format!("{q}.absmax")).unwrap().2[60..64].copy_from_slice(&f32::NAN.to_le_bytes());
    let views = all.iter().map(|(n, (d, s, b))| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    let Err(e) = Model::load(&be, &ModelDir::open(&dir).unwrap(), 8) else { panic!("NaN was taken") };
    assert!(e.to_string().ends_with("`absmax` holds NaN or infinity; the checkpoint is damaged"), "{e}");
}

#[test]
fn what_config_json_says_of_other_kinds_is_refused_by_name() {
    let good = json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
    let change = |key: &str, value: Value| {
        let mut all = good.clone();
        all[key] = value;
        all
    };
    let only = "bitsandbytes with NF4 alone is supported; use the f32, f16 or bf16 model, and `options.quantize`";
    for (config, why) in [
        (json!({}), format!("`quant_method` is not given: {only}")),
        (change("quant_method", json!("gptq")), format!("`quant_method` is gptq: {only}")),
        (change("quant_method", json!("awq")), format!("`quant_method` is awq: {only}")),
        (
            json!({"load_in_8bit": true}),
            "`load_in_8bit`: weights in 8 bits (llm_int8) are not supported; use the f32, f16 or bf16 model".into(),
        ),
        (
            change("_load_in_8bit", json!(true)),
            "`load_in_8bit`: weights in 8 bits (llm_int8) are not supported; use the f32, f16 or bf16 model".into(),
        ),
        (
            change("load_in_4bit", json!(false)),
            "`load_in_4bit` and `load_in_8bit` are not true, so that nothing is quantized; leave it out".into(),
        ),
        (change("load_in_4bit", json!(3)), "`load_in_4bit` is 3, expected true or false".into()),
        (
            change("bnb_4bit_quant_type", json!("fp4")),
            "`bnb_4bit_quant_type` fp4 is not supported; supported: nf4".into(),
        ),
        (
            change("bnb_4bit_quant_type", Value::Null),
            "`bnb_4bit_quant_type` fp4 is not supported; supported: nf4".into(),
        ),
        (
            change("bnb_4bit_quant_storage", json!("bfloat16")),
            "`bnb_4bit_quant_storage` bfloat16 is not supported; supported: uint8".into(),
        ),
    ] {
        let mut all = json_file("qwen2/config.json");
        all["quantization_config"] = config;
        let e = ModelConfig::parse("c".as_ref(), all.as_object().unwrap()).unwrap_err().to_string();
        assert_eq!(e, format!("c: `quantization_config`: {why}"));
    }
    let mut all = json_file("qwen2/config.json");
    all["quantization_config"] = good;
    let config = ModelConfig::parse("c".as_ref(), all.as_object().unwrap()).unwrap();
    assert_eq!(config.quantized, Some(Quantized { double: false }));
    // Of one that is in four bits already none is made.
    let e = base("nf4/qwen2-plain").quantized(Quantized { double: true }).unwrap_err().to_string();
    assert!(e.ends_with("qwen2-plain: its weights are in four bits already (`quantization_config` in config.json): leave `options.quantize` out"), "{e}");
    let (be, folder) = (cpu32(), tempfile::tempdir().unwrap());
    let held = Model::load(&be, &base("nf4/qwen2-plain"), 4).unwrap();
    assert!(
        export(&be, &held, None, None, folder.path(), SaveDtype::F32).unwrap_err().to_string().contains("dequantized")
    );
    for dir in [base("qwen2"), base("nf4/qwen2-plain")] {
        assert!(export_nf4(&dir, folder.path()).is_err());
    }
    // Sizes that nobody can count.
    let huge = ModelConfig { hidden_size: 1 << 31, intermediate_size: 1 << 31, num_hidden_layers: 4096, ..config };
    assert!(fusedpo::model::ParamTable::new(&huge).is_err());
}
