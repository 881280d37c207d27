//! NF4 against bitsandbytes, to the byte: `tests/golden/nf4` (`scripts/make_nf4_golden.py`), and the library itself where
//! `FUSEDPO_PYTHON` has it.

use crate::model_common;

use fusedpo::backend::{Backend, Device, Float};
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::sample::{normal, uniform};
use fusedpo::model::{
    GenerateOptions, Keep, Model, ModelConfig, ModelDir, Quantized, SaveDtype, export, export_nf4, generate, merge,
};
use fusedpo::quant::{Absmax, Dynamic, Nf4Tensor, Precision, state};
use model_common::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
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

const DOUBLE: [bool; 2] = [false, true];

fn base(name: &str) -> ModelDir {
    ModelDir::open(&project(&format!("tests/golden/{name}"))).unwrap()
}

fn json_file(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(project("tests/golden").join(name)).unwrap()).unwrap()
}

/// The golden's rows; every third token of them is a pair's.
fn batches() -> Vec<MicroBatch> {
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
fn dense(dir: &ModelDir, how: Quantized, to: &std::path::Path) -> ModelDir {
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
fn tensors(path: &std::path::Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let file = std::fs::read(path).unwrap();
    let all = SafeTensors::deserialize(&file).unwrap();
    all.iter().map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

/// Directories that transformers wrote with bitsandbytes: what it computes with them, and what we write of the same weights.
#[test]
fn directories_of_transformers() {
    let (be, batches) = (cpu32(), batches());
    let said = json_file("nf4/models.json");
    for (from, name, double, save) in
        [("qwen2", "qwen2-plain", false, SaveDtype::F32), ("llama3-tied", "llama3-tied-double", true, SaveDtype::Bf16)]
    {
        let theirs = base(&format!("nf4/{name}"));
        assert_eq!(theirs.config().quantized, Some(Quantized { double }));
        let logps: Vec<f64> =
            score(&be, &Model::load(&be, &theirs, 64).unwrap(), &batches).iter().map(|r| r.iter().sum()).collect();
        let want: Vec<f64> = said[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert_eq!(logps.len(), want.len());
        for (got, want) in logps.iter().zip(&want) {
            // In f32 both, and embedding, head and norms in theirs as they were before they were saved.
            let most = if save == SaveDtype::F32 { 2e-5 } else { 2e-2 };
            assert!((got - want).abs() <= most * (1.0 + want.abs()), "{name}: {got} {want}");
        }
        // The same weights, as transformers had them in memory.
        let folder = tempfile::tempdir().unwrap();
        let [plain, ours] = ["plain", "ours"].map(|n| folder.path().join(n));
        export(&be, &Model::load(&be, &base(from), 1).unwrap(), None, None, &plain, save).unwrap();
        let plain = ModelDir::open(&plain).unwrap();
        let held = plain.quantized(Quantized { double }).unwrap();
        let report = export_nf4(&held, &ours).unwrap();
        let theirs_at = project(&format!("tests/golden/nf4/{name}/model.safetensors"));
        let [a, b] = [&ours.join("model.safetensors"), &theirs_at].map(|p| tensors(p));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (key, of) in &a {
            assert!(of == &b[key], "{name}: {key}: {:?} {:?}, not {:?} {:?}", of.0, of.1, b[key].0, b[key].1);
        }
        let bytes = std::fs::metadata(ours.join("model.safetensors")).unwrap().len();
        assert_eq!(
            (report.bytes, report.quantized + report.others),
            (bytes, Model::load(&be, &held, 1).unwrap().table.num_parameters() as u64)
        );
        let said = |dir: &std::path::Path| -> Value {
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
        };
        let [mut a, mut b] =
            [&ours, &project(&format!("tests/golden/nf4/{name}"))].map(|d| said(d)["quantization_config"].clone());
        for of in [&mut a, &mut b] {
            of.as_object_mut().unwrap().remove("bnb_4bit_compute_dtype");
        }
        assert_eq!(a, b);
        // Read again it is what was held, and so is what is theirs.
        let again = ModelDir::open(&ours).unwrap();
        let of = |dir: &ModelDir| score(&be, &Model::load(&be, dir, 64).unwrap(), &batches);
        assert!(of(&again) == of(&held) && of(&theirs) == of(&held), "{name}");
        assert!(
            again.identity().unwrap() != plain.identity().unwrap()
                && held.identity().unwrap() != plain.identity().unwrap()
        );
        // Dense, it is the same once more, whatever way it is written.
        let dense = folder.path().join("dense");
        let model = Model::load(&be, &again.dequantized(), 64).unwrap();
        export(&be, &model, None, None, &dense, SaveDtype::Source).unwrap();
        let dense = ModelDir::open(&dense).unwrap();
        assert!(dense.config().quantized.is_none() && of(&dense) == of(&held), "{name}");
    }
}

/// What we write, transformers loads with bitsandbytes, and it has the numbers that we compute with.
#[test]
fn transformers_loads_what_is_written() {
    let Some(python) = std::env::var_os("FUSEDPO_PYTHON") else {
        return println!("skipped: transformers_loads_what_is_written (FUSEDPO_PYTHON is not set)");
    };
    let probe = "import bitsandbytes, transformers, accelerate";
    if !std::process::Command::new(&python).args(["-c", probe]).output().unwrap().status.success() {
        return println!("skipped: transformers_loads_what_is_written (FUSEDPO_PYTHON lacks a package)");
    }
    let (be, batches) = (cpu32(), batches());
    for (name, double) in [("llama", true), ("qwen3", false)] {
        let folder = tempfile::tempdir().unwrap();
        let held = base(name).quantized(Quantized { double }).unwrap();
        export_nf4(&held, &folder.path().join("q")).unwrap();
        let mut run = std::process::Command::new(&python);
        run.arg(project("scripts/make_nf4_golden.py")).current_dir(project(""));
        let ran = run.arg("--load").arg(folder.path().join("q")).args(["--base", name]).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let want: Vec<f64> = serde_json::from_slice(&ran.stdout).unwrap();
        let got = score(&be, &Model::load(&be, &held, 64).unwrap(), &batches);
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().map(|r| r.iter().sum::<f64>()).zip(want) {
            assert!((got - want).abs() <= 2e-5 * (1.0 + want.abs()), "{name}: {got}, transformers {want}");
        }
    }
}

/// An adapter is merged into the numbers that four bits stand for: those of a directory, or those that were asked for.
#[test]
fn merged_into_what_four_bits_stand_for() {
    let (be, batches) = (cpu32(), batches());
    for double in DOUBLE {
        let (how, folder) = (Quantized { double }, tempfile::tempdir().unwrap());
        let adapter = project("tests/golden/adapters/qwen2-all");
        let held = base("qwen2").quantized(how).unwrap();
        let stored = folder.path().join("stored");
        export_nf4(&held, &stored).unwrap();
        let other = dense(&base("qwen2"), how, &folder.path().join("dense"));
        let of = |dir: &ModelDir| {
            let merged = merge::merged(&be, &dir.with_adapter(&adapter).unwrap(), 64).unwrap();
            score(&be, &merged, &batches)
        };
        let want = of(&other);
        assert!(of(&held) == want && of(&ModelDir::open(&stored).unwrap()) == want && of(&base("qwen2")) != want);
    }
}

/// A folder with a copy of a model whose files may be changed.
fn copy(name: &str, to: &std::path::Path) -> std::path::PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(project(&format!("tests/golden/{name}"))).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(to.join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
    to.to_owned()
}

/// Directories of transformers in which some linear layers stay as they are, by every way to name them: parts of a product, whole
/// products, of some layers or all. What transformers computes with them; an adapter beside them, merged and not; as they were packed for
/// generation; and what is said of files that are not what config.json says.
#[test]
fn some_modules_stay_as_they_are() {
    let (be, batches) = (cpu32(), batches());
    let said = json_file("nf4/models.json");
    for (from, name, most) in [("qwen2", "qwen2-skip", 2e-5), ("llama3-tied", "llama3-tied-skip", 2e-2)] {
        let dir = base(&format!("nf4/{name}"));
        let m = Model::load(&be, &dir, 64).unwrap();
        let held: Vec<&str> = m.table.nf4.iter().map(|p| p.name.as_str()).collect();
        let dense = m.table.specs.iter().filter(|s| s.name.ends_with("proj.weight")).count();
        assert!(held.len() + dense == 14 && held.len() > 4 && dense > 2, "{name}: {held:?}");
        let logps = |m: &Model<_>| -> Vec<f64> { score(&be, m, &batches).iter().map(|r| r.iter().sum()).collect() };
        let want = said[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
        for (got, want) in logps(&m).iter().zip(want) {
            assert!((got - want).abs() <= most * (1.0 + want.abs()), "{name}: {got} {want}");
        }
        // As the numbers that they stand for, to the bit; and what stays as it is is the base's own.
        let numbers = Model::load(&be, &dir.dequantized(), 64).unwrap();
        assert!(logps(&numbers) == logps(&m), "{name}");
        let values = |m: &Model<_>, name: &str| {
            let spec = m.table.spec(name).unwrap();
            read(&be, &m.weights, m.table.len)[spec.at.clone()].to_vec()
        };
        let original = Model::load(&be, &base(from), 64).unwrap();
        for spec in m.table.specs.iter().filter(|s| s.name.ends_with("proj.weight")) {
            let (got, want) = (values(&m, &spec.name), values(&original, &spec.name));
            let same = |(a, b): (&f64, &f64)| a == b || name.starts_with("llama3") && (a - b).abs() <= b.abs() / 256.0;
            assert!(got.iter().zip(&want).all(same), "{name}: {}", spec.name);
        }
        let adapter = project(&format!("tests/golden/adapters/{from}-all"));
        let [with, numbers] = [&dir, &dir.dequantized()].map(|d| d.with_adapter(&adapter).unwrap());
        let [with_model, numbers] = [&with, &numbers].map(|d| Model::load(&be, d, 64).unwrap());
        let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
        let steps = [&with_model, &numbers].map(|m| train_keeping(&be, m, &batches, &spec, 0.1, Keep::Inputs));
        assert!(steps[0].logps == steps[1].logps && steps[0].grads == steps[1].grads, "{name}");
        let merged = merge::merged(&be, &with, 64).unwrap();
        let unmerged = logps(&with_model);
        assert!(logps(&merged).iter().zip(&unmerged).all(|(a, b)| (a - b).abs() <= 1e-3 * (1.0 + b.abs())), "{name}");
        let prompts = [vec![3, 4, 5], vec![7]];
        let options = GenerateOptions {
            max_new_tokens: 4,
            temperature: 0.0,
            top_p: 1.0,
            num_return_sequences: 1,
            seed: 1,
            eos_token_ids: Vec::new(),
            cache_bytes: 1 << 20,
            pack_weights: true,
        };
        let texts = [true, false].map(|pack_weights| {
            generate(&be, &m, &prompts, &GenerateOptions { pack_weights, ..options.clone() }).unwrap()
        });
        assert_eq!(texts[0], texts[1]);
    }
    // config.json says something else than the files.
    let folder = tempfile::tempdir().unwrap();
    for (i, (skip, want)) in [
        (json!(["lm_head", "q_proj"]), "tensor `model.layers.0.self_attn.q_proj.weight` is in NF4, and config.json says that it stays as it is (`llm_int8_skip_modules`): take what names model.layers.0.self_attn.q_proj out there"),
        (json!(["lm_head"]), "tensor `model.layers.0.self_attn.k_proj.weight` has dtype F32 and is not in NF4, and config.json does not say"),
        (json!("lm_head"), "`llm_int8_skip_modules` is \"lm_head\", expected names of modules"),
        (json!(["lm_head", 3]), "expected names of modules"),
        (json!(["("]), "`llm_int8_skip_modules` has (: unclosed group"),
    ]
    .into_iter()
    .enumerate()
    {
        let to = copy("nf4/qwen2-skip", &folder.path().join(i.to_string()));
        let mut config: Value = serde_json::from_slice(&std::fs::read(to.join("config.json")).unwrap()).unwrap();
        config["quantization_config"]["llm_int8_skip_modules"] = skip;
        std::fs::write(to.join("config.json"), config.to_string()).unwrap();
        let e = ModelDir::open(&to).and_then(|dir| Model::load(&be, &dir, 64)).err().unwrap().to_string();
        assert!(e.contains(want) && e.lines().count() == 1, "{e}");
    }
}

/// A directory cut into files wherever it was: a weight in one, what belongs to it in the other, as transformers may. Merged, it is
/// what the whole one is; a size in the index that is no number of its own is no reason to end otherwise.
#[test]
fn cut_between_a_weight_and_what_belongs_to_it() {
    let (be, folder) = (cpu32(), tempfile::tempdir().unwrap());
    let whole = copy("nf4/qwen2-plain", &folder.path().join("whole"));
    let cut = copy("nf4/qwen2-plain", &folder.path().join("cut"));
    let bytes = std::fs::read(cut.join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let second =
        |name: &str| name.ends_with(".absmax") || name.ends_with(".quant_map") || name.ends_with("norm.weight");
    for (i, file) in files.iter().enumerate() {
        let some = all.tensors().into_iter().filter(|(name, _)| second(name) == (i == 1));
        std::fs::write(cut.join(file), safetensors::serialize(some, None).unwrap()).unwrap();
    }
    std::fs::remove_file(cut.join("model.safetensors")).unwrap();
    let map: serde_json::Map<String, Value> =
        all.names().into_iter().map(|name| (name.to_owned(), json!(files[usize::from(second(name))]))).collect();
    let index = json!({ "metadata": "none", "weight_map": map });
    std::fs::write(cut.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let batches = batches();
    let of = |dir: &std::path::Path| {
        let dir = ModelDir::open(dir).unwrap();
        let merged = merge::merged(&be, &dir.with_adapter(&project("tests/golden/adapters/qwen2-all")).unwrap(), 64);
        let (merged, out) = (merged.unwrap(), tempfile::tempdir().unwrap());
        export(&be, &merged, None, None, out.path(), SaveDtype::Source).unwrap();
        let again = Model::load(&be, &ModelDir::open(out.path()).unwrap(), 64).unwrap();
        score(&be, &again, &batches)
    };
    assert!(of(&cut) == of(&whole));
}

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
