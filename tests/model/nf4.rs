//! NF4 against bitsandbytes, to the byte: `tests/golden/nf4` (`scripts/make_nf4_golden.py`), and the library itself where
//! `FUSEDPO_PYTHON` has it.

use crate::model_common;

use fusedpo::backend::{Backend, Device, Float};
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::sample::{normal, uniform};
use fusedpo::model::{GenerateOptions, Keep, Model, ModelConfig, ModelDir, Quantized, SaveDtype, export, generate};
use fusedpo::quant::{Absmax, Dynamic, Nf4Tensor, Precision, state};
use model_common::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::collections::BTreeMap;

/// A tensor's numbers.
fn values(t: &TensorView) -> Vec<f32> {
    let two = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match t.dtype() {
        Dtype::F32 => t.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::BF16 => t.data().chunks(2).map(|b| half::bf16::from_bits(two(b)).to_f32()).collect(),
        Dtype::F16 => t.data().chunks(2).map(|b| half::f16::from_bits(two(b)).to_f32()).collect(),
        other => panic!("{other:?}"),
    }
}

fn precision(dtype: Dtype) -> Precision {
    match dtype {
        Dtype::F32 => Precision::F32,
        Dtype::BF16 => Precision::Bf16,
        Dtype::F16 => Precision::F16,
        other => panic!("{other:?}"),
    }
}

fn bytes<T: bytemuck::Pod>(x: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(x).to_vec()
}

/// What we make of `input`, by bitsandbytes' names.
fn ours(input: &TensorView, dynamic: &Dynamic, double: bool) -> BTreeMap<String, Vec<u8>> {
    let (dtype, numbers) = (precision(input.dtype()), values(input));
    let tensor = Nf4Tensor::quantize(&numbers, input.shape(), dtype, double.then_some(dynamic)).unwrap();
    let mut all = BTreeMap::from([
        ("weight".to_owned(), tensor.codes.clone()),
        ("weight.quant_state.bitsandbytes__nf4".into(), state::text(&tensor).into_bytes()),
        ("weight.quant_map".into(), bytes(&fusedpo::quant::nf4::CODE)),
    ]);
    match &tensor.absmax {
        Absmax::Plain(absmax) => _ = all.insert("weight.absmax".into(), bytes(absmax)),
        Absmax::Nested { codes, absmax, map, .. } => {
            all.insert("weight.absmax".into(), codes.clone());
            all.insert("weight.nested_absmax".into(), bytes(absmax));
            all.insert("weight.nested_quant_map".into(), bytes(&map[..]));
        }
    }
    let back = tensor.values(0..tensor.len());
    let stored = match dtype {
        Precision::F32 => bytes(&back),
        Precision::Bf16 => bytes(&back.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect::<Vec<_>>()),
        Precision::F16 => bytes(&back.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect::<Vec<_>>()),
    };
    all.insert("back".into(), stored);
    all
}

/// Compares what `theirs` says of every tensor in `inputs`; how many tensors that were.
fn compare<'a>(inputs: impl Iterator<Item = (String, TensorView<'a>)>, theirs: &SafeTensors) -> usize {
    let (dynamic, mut seen) = (Dynamic::new(), 0);
    for (name, input) in inputs {
        for (kind, double) in [("plain", false), ("double", true)] {
            let mut ours = ours(&input, &dynamic, double);
            let prefix = format!("{name}.{kind}.");
            for key in theirs.names().into_iter().filter(|n| n.starts_with(&prefix)) {
                let (short, want) = (&key[prefix.len()..], theirs.tensor(key).unwrap());
                let got = ours.remove(short).unwrap_or_else(|| panic!("{key}: we have none"));
                let differ = got.iter().zip(want.data()).filter(|(a, b)| a != b).count();
                let first = got.iter().zip(want.data()).position(|(a, b)| a != b).unwrap_or(0) / 4 * 4;
                let [a, b] = [&got[..], want.data()].map(|x| &x[first..x.len().min(first + 4)]);
                let same = got.len() == want.data().len() && differ == 0;
                assert!(same, "{key}: {differ} of {} bytes differ: at {first} {a:x?}, not {b:x?}", got.len());
                seen += 1;
            }
            ours.retain(|k, _| !k.ends_with("_map"));
            assert!(ours.is_empty(), "{prefix}: they have no {:?}", ours.keys());
        }
    }
    seen
}

#[test]
fn as_bitsandbytes_to_the_byte() {
    let file = std::fs::read(project("tests/golden/nf4/cases.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&file).unwrap();
    let inputs = all.iter().filter_map(|(n, t)| Some((n.strip_suffix(".input")?.to_owned(), t)));
    assert!(compare(inputs, &all) > 200);
}

#[test]
fn as_the_bitsandbytes_that_is_installed() {
    let Some(python) = std::env::var_os("FUSEDPO_PYTHON") else {
        return println!("skipped: as_the_bitsandbytes_that_is_installed (FUSEDPO_PYTHON is not set)");
    };
    let probe = std::process::Command::new(&python).args(["-c", "import bitsandbytes"]).output().unwrap();
    if !probe.status.success() {
        return println!("skipped: as_the_bitsandbytes_that_is_installed (no bitsandbytes in FUSEDPO_PYTHON)");
    }
    let seed = std::env::var("FUSEDPO_TEST_SEED").ok().and_then(|s| s.parse().ok());
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = seed.unwrap_or(since.as_secs());
    println!("seed {seed}");
    let mut kept: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for t in 0..60u64 {
        let u = |i| uniform(seed, 1000 + t, i);
        let [rows, columns] = [1 + (u(0) * 60.0) as usize, 1 + (u(1) * 200.0) as usize];
        let [rows, columns] = if t == 0 { [1200, 2048] } else { [rows, columns] };
        // From numbers that no f32 is small enough for to those that hardly fit one.
        let scale = 10f64.powf(u(2) * 80.0 - 44.0);
        let spread = u(3) * 3.0;
        let number = |i: u64| {
            let x = normal(seed, t, i) * scale * 10f64.powf(spread * (uniform(seed, 500 + t, i / 64) - 0.5));
            if uniform(seed, 700 + t, i / 40) < 0.1 { 0.0 } else { x.clamp(-1e36, 1e36) as f32 }
        };
        let numbers: Vec<f32> = (0..(rows * columns) as u64).map(number).collect();
        let (dtype, data) = match t % 3 {
            0 => (Dtype::F32, bytes(&numbers)),
            1 => (
                Dtype::BF16,
                bytes(&numbers.iter().map(|x| half::bf16::from_f64((*x).into()).to_bits()).collect::<Vec<_>>()),
            ),
            _ => {
                let fit = |x: &f32| half::f16::from_f32((x / scale as f32).to_f64().clamp(-6e4, 6e4) as f32).to_bits();
                (Dtype::F16, bytes(&numbers.iter().map(fit).collect::<Vec<_>>()))
            }
        };
        kept.push((format!("t{t}"), dtype, vec![rows, columns], data));
    }
    let folder = tempfile::tempdir().unwrap();
    let [inputs, out] = ["inputs", "out"].map(|n| folder.path().join(format!("{n}.safetensors")));
    let views = || kept.iter().map(|(n, d, s, b)| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views(), None, &inputs).unwrap();
    let script = project("scripts/make_nf4_golden.py");
    let ran =
        std::process::Command::new(&python).arg(script).arg("--inputs").arg(&inputs).arg("--out").arg(&out).output();
    let ran = ran.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let theirs = std::fs::read(&out).unwrap();
    assert!(compare(views(), &SafeTensors::deserialize(&theirs).unwrap()) >= 60 * 11);
}

pub const DOUBLE: [bool; 2] = [false, true];

pub fn base(name: &str) -> ModelDir {
    ModelDir::open(&project(&format!("tests/golden/{name}"))).unwrap()
}

pub fn json_file(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(project("tests/golden").join(name)).unwrap()).unwrap()
}

/// The golden's rows; every third token of them is a pair's.
pub fn batches() -> Vec<MicroBatch> {
    let ids = |v: &Value| -> Vec<u32> { v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect() };
    let golden = json_file("golden.json");
    let rows = golden["rows"].as_array().unwrap().iter();
    let groups: Vec<Group> = rows
        .map(|r| {
            let responses: Vec<Vec<u32>> = r["responses_ids"].as_array().unwrap().iter().map(ids).collect();
            let pairs = if responses.len() > 1 { vec![(0, 1, 1.0)] } else { Vec::new() };
            Group { prompt: ids(&r["prompt_ids"]), responses, ref_logps: Vec::new(), pairs }
        })
        .collect();
    vec![pack(&groups[..3], 2), pack(&groups[3..], 7)]
}

/// A directory of dense weights: those that `dir`'s linear layers have in four bits.
pub fn dense(dir: &ModelDir, how: Quantized, to: &std::path::Path) -> ModelDir {
    let be = cpu32();
    let m = Model::load(&be, dir, 1).unwrap();
    let mut values: Vec<f32> = read(&be, &m.weights, m.table.len).into_iter().map(|x| x as f32).collect();
    let dynamic = Dynamic::new();
    for spec in m.table.specs.iter().filter(|s| s.name.contains("_proj.weight")) {
        let numbers = &values[spec.at.clone()];
        let double = how.double.then_some(&dynamic);
        let tensor = Nf4Tensor::quantize(numbers, &spec.shape, Precision::F32, double).unwrap();
        values[spec.at.clone()].copy_from_slice(&tensor.values(0..spec.at.len()));
    }
    let made = Model::from_f32(&be, dir.config().clone(), values, 1).unwrap();
    export(&be, &made, None, None, to, SaveDtype::F32).unwrap();
    ModelDir::open(to).unwrap()
}

/// Everything that is computed is what a model with those numbers as dense weights computes, to the bit: log-probs, gradients
/// of an adapter with each way of keeping activations, generated tokens.
fn as_dense_weights<B: Backend>(be: &B) {
    let batches = batches();
    for (name, double) in [("llama", false), ("llama3-tied", true), ("qwen2", true), ("qwen3", false)] {
        let (how, folder) = (Quantized { double }, tempfile::tempdir().unwrap());
        let (plain, other) = (base(name), dense(&base(name), how, folder.path()));
        let held = plain.quantized(how).unwrap();
        let load = |dir: &ModelDir| Model::load(be, dir, 64).unwrap();
        let logps = score(be, &load(&held), &batches);
        assert!(logps == score(be, &load(&other), &batches) && logps != score(be, &load(&plain), &batches), "{name}");
        let adapter = project(&format!("tests/golden/adapters/{name}-all"));
        let [held, other] = [held, other].map(|dir| load(&dir.with_adapter(&adapter).unwrap()));
        let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
        for keep in [Keep::Layers, Keep::Outputs, Keep::Inputs] {
            let of = |m| train_keeping(be, m, &batches, &spec, 0.5, keep);
            let (a, b) = (of(&held), of(&other));
            assert!(a.grads == b.grads && a.pair_losses == b.pair_losses, "{name} {keep:?}");
            assert!(a.grads.iter().any(|g| *g != 0.0), "{name}");
        }
        for pack_weights in [true, false] {
            let options = GenerateOptions {
                max_new_tokens: 9,
                temperature: 0.0,
                top_p: 1.0,
                num_return_sequences: 2,
                seed: 1,
                eos_token_ids: Vec::new(),
                cache_bytes: 1 << 20,
                pack_weights,
            };
            let of = |m: &Model<B>| generate(be, m, &[vec![1, 5, 9], vec![4]], &options).unwrap();
            assert_eq!(of(&held), of(&other), "{name}");
        }
    }
}

#[test]
fn four_bits_are_the_dense_weights_that_they_stand_for() {
    as_dense_weights(&cpu32());
    as_dense_weights(&cpu64());
}

/// What is not there takes no memory: embedding, head and norms in the arena, 4.5 bits and less for the rest.
#[test]
fn four_bits_take_four_bits() {
    let be = cpu32();
    for (double, most) in [(false, 4.6), (true, 4.25)] {
        let dir = base("qwen2").quantized(Quantized { double }).unwrap();
        let m = Model::load(&be, &dir, 8).unwrap();
        let dense = Model::load(&be, &base("qwen2"), 8).unwrap();
        assert_eq!(m.table.num_parameters(), dense.table.num_parameters());
        assert!(m.table.specs.iter().all(|s| !s.name.contains("_proj.weight")) && m.table.nf4.len() == 14);
        let counting = be.counting();
        // At a size at which what is beside them, and alignment, is little.
        let config = ModelConfig {
            hidden_size: 2048,
            intermediate_size: 8192,
            num_attention_heads: 16,
            num_key_value_heads: 8,
            head_dim: 128,
            ..dir.config().clone()
        };
        let big = Model::counted(&counting, &config, 8).unwrap();
        let table = counting.memory_table();
        let bytes =
            |all: &[&str]| table.iter().filter(|(n, _)| all.contains(&n.as_str())).map(|(_, b)| b).sum::<usize>();
        let bits = bytes(&["weights in 4 bits", "magnitudes of weights"]) as f64 * 8.0;
        let held: usize = big.table.nf4.iter().map(|p| p.len).sum();
        assert!(bits / (held as f64) < most && bits / (held as f64) > 4.1, "{}", bits / held as f64);
        assert!(bytes(&["weights"]) == 4 * big.table.len && big.table.len < 20 * 2048 * 97);
    }
}

/// Tensors of a file, by name.
pub fn tensors(path: &std::path::Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let file = std::fs::read(path).unwrap();
    let all = SafeTensors::deserialize(&file).unwrap();
    all.iter().map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}
/// A folder with a copy of a model whose files may be changed.
pub fn copy(name: &str, to: &std::path::Path) -> std::path::PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(project(&format!("tests/golden/{name}"))).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(to.join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
    to.to_owned()
}
