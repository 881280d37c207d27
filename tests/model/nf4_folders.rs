//! Directories with weights in four bits, as transformers and bitsandbytes write and read them: `tests/golden`, and the libraries
//! themselves where `FUSEDPO_PYTHON` has them.

use crate::model_common;
use crate::nf4::{DOUBLE, base, batches, copy, dense, json_file, tensors};

use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::{
    GenerateOptions, Keep, Model, ModelDir, Quantized, SaveDtype, export, export_nf4, generate, merge,
};
use model_common::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};

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
