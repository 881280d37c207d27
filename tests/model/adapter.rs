//! Adapters beside a model's weights, against PEFT and torch in float64 (`scripts/make_adapter_golden.py`) and against
//! finite differences; and what is refused of their files.

use crate::model_common;

use fusedpo::backend::*;
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use fusedpo::model::sample::normal;
use fusedpo::model::{AdapterInit, AdapterShape, Keep, Model, ModelConfig, ModelDir, export, merge};
use model_common::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const MODELS: [&str; 4] = ["llama", "llama3-tied", "qwen2", "qwen3"];
const KINDS: [&str; 2] = ["all", "some-rslora"];
const SIGMOID: LossSpec = LossSpec::of(LossType::Sigmoid).beta(0.1);

fn json_file(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(project("tests/golden").join(name)).unwrap()).unwrap()
}
fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}
fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}
fn base(name: &str) -> ModelDir {
    ModelDir::open(&project(&format!("tests/golden/{name}"))).unwrap()
}
fn adapter(name: &str, kind: &str) -> PathBuf {
    project(&format!("tests/golden/adapters/{name}-{kind}"))
}

/// The golden's rows, with the log-probs of the base that `want` has.
fn batches(want: &Value) -> Vec<MicroBatch> {
    let golden = json_file("golden.json");
    let mut reference = floats(&want["ref_logps"]).into_iter();
    let rows = golden["rows"].as_array().unwrap().iter();
    let mut groups: Vec<Group> = rows
        .map(|r| {
            let responses: Vec<Vec<u32>> = r["responses_ids"].as_array().unwrap().iter().map(ids).collect();
            let ref_logps = responses.iter().map(|_| reference.next().unwrap()).collect();
            Group { prompt: ids(&r["prompt_ids"]), responses, ref_logps, pairs: Vec::new() }
        })
        .collect();
    for p in golden["pairs"].as_array().unwrap() {
        let p = ids(p);
        groups[p[0] as usize].pairs.push((p[1] as usize, p[2] as usize, 1.0));
    }
    vec![pack(&groups[..4], 3), pack(&groups[4..], 5)]
}

fn close(what: &str, got: f64, want: f64, tol: f64) {
    assert!((got - want).abs() <= tol * (1.0 + want.abs()), "{what}: {got}, PEFT {want}");
}

/// With `dropping` the passes that train drop what PEFT's have dropped.
fn against_peft<B: Backend>(be: &B, tol: f64, dropping: bool) {
    let golden = json_file(if dropping { "dropout.json" } else { "adapters.json" });
    for (name, kind) in MODELS.iter().flat_map(|n| KINDS.map(|k| (*n, k))) {
        let want = &golden["adapters"][format!("{name}-{kind}")];
        if want.is_null() && dropping {
            continue;
        }
        let dropout = golden["p"].as_f64();
        let dir = base(name).with_adapter_dropping(&adapter(name, kind), dropout).unwrap();
        let m = Model::load(be, &dir, 64).unwrap();
        assert!(m.table.specs.iter().all(|s| s.trains == s.name.contains(".lora_")), "{name}");
        let mut batches = batches(want);
        let mut scores: Vec<f64> = Vec::new();
        scores.extend(score(be, &m, &batches).iter().map(|r| r.iter().sum::<f64>()));
        let all = floats(&want["logps"]);
        assert_eq!(scores.len(), all.len());
        let differ = scores.iter().zip(&all).filter(|(a, b)| (*a - *b).abs() > 1e-3).count();
        match dropping {
            true => assert!(differ > all.len() / 2, "{name}: what does not train drops nothing"),
            false => scores.iter().zip(&all).for_each(|(a, b)| close(&format!("{name} {kind}"), *a, *b, tol)),
        }
        if dropping {
            let [seed, step] = ["seed", "step"].map(|key| golden[key].as_u64().unwrap());
            batches.iter_mut().for_each(|b| b.draw_from(dropout::of_step(seed, step)));
        }
        for keep in [Keep::Layers, Keep::Outputs, Keep::Inputs] {
            let got = train_keeping(be, &m, &batches, &SIGMOID, 1.0 / 8.0, keep);
            got.logps.iter().zip(&all).for_each(|(a, b)| close(&format!("{name} {kind}"), *a, *b, tol));
            got.pair_losses.iter().zip(floats(&want["losses"])).for_each(|(a, b)| close(name, *a, b, tol));
            let tensors = want["gradients"].as_object().unwrap();
            assert_eq!(tensors.len(), m.table.specs.iter().filter(|s| s.trains).count());
            for (tensor, want) in tensors {
                let of = &got.grads[m.table.spec(tensor).unwrap().grad.clone()];
                let what = format!("{name} {kind} {keep:?} {tensor}");
                close(&what, norm(of), want["norm"].as_f64().unwrap(), tol);
                of.iter().zip(floats(&want["first8"])).for_each(|(a, b)| close(&what, *a, b, tol));
            }
        }
    }
}

#[test]
fn values_and_gradients_are_pefts() {
    // Norms and rotary tables of transformers are f32 in an f64 model too.
    against_peft(&cpu64(), 1e-5, false);
    against_peft(&cpu32(), 1e-4, false);
}

/// With PEFT's own dropout in the place of ours: masks that the script drew as they are drawn here.
#[test]
fn values_and_gradients_under_dropout_are_pefts() {
    against_peft(&cpu64(), 1e-5, true);
    against_peft(&cpu32(), 1e-4, true);
}

/// What a row drops is its own: the same packed otherwise, and whatever is kept; and a share of 0 is no dropout.
#[test]
fn what_is_dropped_does_not_depend_on_how_it_is_computed() {
    let be = cpu32();
    let dir = |p| base("qwen3").with_adapter_dropping(&adapter("qwen3", "all"), Some(p)).unwrap();
    let [m, plain] = [0.4, 0.0].map(|p| Model::load(&be, &dir(p), 64).unwrap());
    let mut batches = batches(&json_file("adapters.json")["adapters"]["qwen3-all"]);
    let step = |m: &Model<_>, batches: &[MicroBatch], keep| train_keeping(&be, m, batches, &SIGMOID, 0.2, keep);
    let [quiet, without] = [&m, &plain].map(|m| step(m, &batches, Keep::Layers));
    batches.iter_mut().for_each(|b| b.draw_from(dropout::of_step(1, 1)));
    let [dropped, zero] = [&m, &plain].map(|m| step(m, &batches, Keep::Layers));
    assert!(quiet.logps == without.logps && quiet.grads == without.grads, "no draws, no dropout");
    assert!(zero.logps == without.logps && zero.grads == without.grads, "a share of 0");
    assert!(dropped.logps != without.logps);
    for keep in [Keep::Outputs, Keep::Inputs] {
        let got = step(&m, &batches, keep);
        assert!(got.logps == dropped.logps && got.grads == dropped.grads, "{keep:?}");
    }
    // Together in one micro-batch, and each group in its own.
    let row = |tokens: &[u32]| Group {
        prompt: tokens.to_vec(),
        responses: vec![vec![3, 4, 5], vec![6]],
        ..Default::default()
    };
    let groups = [row(&[7, 8]), row(&[]), row(&[9])];
    let at = |groups: &[Group], ids: std::ops::Range<u64>| {
        let mut b = fusedpo::batch::Builder::default();
        for (id, g) in ids.zip(groups) {
            b.group(id, g.prompt.iter().copied()).unwrap();
            (0..).zip(&g.responses).for_each(|(i, r)| b.response(2 * id + i, r.iter().copied()).unwrap());
            b.pair(0, 1, 1.0, id).unwrap();
        }
        let mut b = b.finish(32).unwrap();
        b.draw_from(dropout::of_step(1, 2));
        b
    };
    let together = step(&m, &[at(&groups, 0..3)], Keep::Layers).logps;
    let apart: Vec<MicroBatch> = (0..3).map(|i| at(&groups[i..=i], i as u64..i as u64 + 1)).collect();
    assert_eq!(step(&m, &apart, Keep::Layers).logps, together);
    let again: Vec<MicroBatch> = (0..3).map(|i| at(&groups[i..=i], i as u64 + 1..i as u64 + 2)).collect();
    let again = step(&m, &again, Keep::Layers).logps;
    // All but the token that nothing predicts.
    assert_eq!(again.iter().zip(&together).filter(|(a, b)| a == b).count(), 1, "other ids, other draws");
    // A workspace that keeps nothing has no room to drop in.
    let mut ws = workspace(&be, &m, &apart, false);
    let e = ws.load_batch(&be, &apart[0]).unwrap_err().to_string();
    assert!(e.contains("adapters drop nothing"), "{e}");
}

/// An adapter on every subset of modules that a packed product can have, and some others: its gradients are slopes.
#[test]
fn gradients_match_finite_differences_for_any_targets() {
    let be = cpu64();
    for bits in [
        0b0000001u32,
        0b0000010,
        0b0000100,
        0b0000101,
        0b0001000,
        0b0010000,
        0b0100000,
        0b1000000,
        0b1111111,
        0b0110110,
    ] {
        let name = MODELS[bits as usize % 4];
        let shape = AdapterShape {
            r: 1 + bits as usize % 3,
            alpha: 3.0,
            rslora: bits % 2 == 0,
            targets: std::array::from_fn(|i| bits >> i & 1 == 1),
            // Of some: what is dropped stays the same where the weights move.
            dropout: if bits.count_ones() > 1 || bits == 8 { 0.4 } else { 0.0 },
        };
        let config = ModelConfig { adapter: Some(shape), ..base(name).config().clone() };
        let n = fusedpo::model::ParamTable::new(&config).unwrap().len;
        let values = (0..n as u64).map(|i| 0.2 * normal(7, 1, i) as f32).collect();
        let mut m = Model::from_f32(&be, config, values, 64).unwrap();
        let mut batches = batches(&json_file("adapters.json")["adapters"][format!("{name}-all")]);
        batches.iter_mut().for_each(|b| b.draw_from(dropout::of_step(5, 1)));
        let (w, grads) = (read(&be, &m.weights, n), train(&be, &m, &batches, &SIGMOID, 0.2).grads);
        let specs: Vec<_> = m.table.specs.iter().filter(|s| s.trains).cloned().collect();
        assert_eq!(specs.len() as u32, 2 * 2 * bits.count_ones());
        for (stream, spec) in specs.iter().enumerate() {
            let direction: Vec<f64> = (0..spec.at.len() as u64).map(|i| normal(3, stream as u64, i)).collect();
            let got: f64 = grads[spec.grad.clone()].iter().zip(&direction).map(|(g, d)| g * d).sum();
            let mut at = |e: f64| {
                let mut moved = w.clone();
                moved[spec.at.clone()].iter_mut().zip(&direction).for_each(|(w, d)| *w += e * d);
                be.upload(be.view_mut(&mut m.weights, 0..n), &moved).unwrap();
                let losses = train(&be, &m, &batches, &SIGMOID, 0.2).pair_losses;
                0.2 * losses.iter().sum::<f64>()
            };
            let mut slope = |e: f64| (at(e) - at(-e)) / (2.0 * e);
            let want = (4.0 * slope(5e-4) - slope(1e-3)) / 3.0;
            assert!((got - want).abs() <= 1e-7 * (1.0 + want.abs()), "{bits:b} {}: {got}, slope {want}", spec.name);
        }
    }
}

/// A new adapter changes no bit; the same seed gives the same one.
#[test]
fn a_new_adapter_changes_nothing() {
    let be = cpu32();
    for name in MODELS {
        let dir = base(name);
        let new = |seed| dir.with_new_adapter(AdapterShape::new(5, 10.0).unwrap(), AdapterInit::Kaiming, seed).unwrap();
        let batches = batches(&json_file("adapters.json")["adapters"][format!("{name}-all")]);
        let [plain, adapted] = [&dir, &new(1)].map(|d| Model::load(&be, d, 64).unwrap());
        let [a, b] = [&plain, &adapted].map(|m| score(&be, m, &batches));
        assert!(a.iter().flatten().map(|x| x.to_bits()).eq(b.iter().flatten().map(|x| x.to_bits())), "{name}");
        assert_eq!(new(1).identity().unwrap(), new(1).identity().unwrap());
        assert_ne!(new(1).identity().unwrap(), new(2).identity().unwrap());
        assert!(new(1).computes_as(&dir) && !new(1).is(&dir));
        let a = adapted.table.specs.iter().find(|s| s.name.ends_with("down_proj.lora_A.weight")).unwrap();
        let drawn = &read(&be, &adapted.weights, adapted.table.len)[a.at.clone()];
        let bound = 1.0 / (a.shape[1] as f64).sqrt();
        let mean = drawn.iter().map(|x| x.abs()).sum::<f64>() / drawn.len() as f64;
        assert!(drawn.iter().all(|x| x.abs() <= bound) && (0.4..0.6).contains(&(mean / bound)), "{mean} {bound}");
    }
}

/// What is written is read again, to the bit; merged and unmerged differ by rounding.
#[test]
fn written_read_and_merged() {
    let be = cpu32();
    for (name, kind) in MODELS.iter().flat_map(|n| KINDS.map(|k| (*n, k))) {
        let tmp = tempfile::TempDir::new().unwrap();
        let dir = base(name).with_adapter(&adapter(name, kind)).unwrap();
        let m = Model::load(&be, &dir, 64).unwrap();
        export(&be, &m, None, None, tmp.path(), fusedpo::model::SaveDtype::Source).unwrap();
        let again = base(name).with_adapter(tmp.path()).unwrap();
        assert_eq!(again.identity().unwrap(), dir.identity().unwrap(), "{name} {kind}");
        assert!(!tmp.path().join("config.json").exists() && tmp.path().join("tokenizer.json").exists());
        let config: Value =
            serde_json::from_slice(&std::fs::read(tmp.path().join("adapter_config.json")).unwrap()).unwrap();
        let theirs: Value =
            serde_json::from_slice(&std::fs::read(adapter(name, kind).join("adapter_config.json")).unwrap()).unwrap();
        for key in ["r", "lora_alpha", "use_rslora", "bias", "peft_type", "task_type", "rank_pattern", "use_dora"] {
            assert_eq!(config[key], theirs[key], "{key}");
        }
        let batches = batches(&json_file("adapters.json")["adapters"][format!("{name}-{kind}")]);
        let merged = merge::merged(&be, &dir, 64).unwrap();
        let [a, b] = [&m, &merged].map(|m| score(&be, m, &batches).concat());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 2e-5), "{name} {kind}");
        assert!(a != score(&be, &Model::load(&be, &base(name), 64).unwrap(), &batches).concat());
    }
}

/// PEFT loads what we write and computes the same; it merges to the same too.
#[test]
fn peft_reads_what_is_written() {
    let Some(python) = std::env::var_os("FUSEDPO_PYTHON") else {
        return println!("skipped: peft_reads_what_is_written (FUSEDPO_PYTHON is not set)");
    };
    let has = std::process::Command::new(&python).args(["-c", "import peft, torch, transformers"]).output().unwrap();
    if !has.status.success() {
        return println!("skipped: peft_reads_what_is_written (no peft)");
    }
    let be = cpu32();
    for (name, rslora) in [("llama", false), ("qwen2", true)] {
        let tmp = tempfile::TempDir::new().unwrap();
        let shape = AdapterShape {
            r: 5,
            alpha: 7.5,
            rslora,
            targets: [true, false, true, true, false, true, true],
            dropout: 0.0,
        };
        let config = ModelConfig { adapter: Some(shape), ..base(name).config().clone() };
        // B is not zero, or nothing would be seen.
        let dir = base(name).with_new_adapter(shape, AdapterInit::Gaussian, 3).unwrap();
        let mut m = Model::load(&be, &dir, 64).unwrap();
        let mut w: Vec<f32> = read(&be, &m.weights, m.table.len).iter().map(|x| *x as f32).collect();
        for spec in m.table.specs.iter().filter(|s| s.name.ends_with("lora_B.weight")) {
            w[spec.at.clone()].iter_mut().enumerate().for_each(|(i, w)| *w = 0.2 * normal(5, 2, i as u64) as f32);
        }
        be.upload(be.view_mut(&mut m.weights, 0..w.len()), &w).unwrap();
        assert_eq!(m.config, config);
        export(&be, &m, None, None, tmp.path(), fusedpo::model::SaveDtype::Source).unwrap();
        let script = r#"
import json, sys, torch, peft, transformers
base, adapter, golden = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager")
model = peft.PeftModel.from_pretrained(model, adapter).double().eval()
out = []
with torch.no_grad():
    for row in json.load(open(golden))["rows"]:
        for r in row["responses_ids"]:
            ids, p = torch.tensor([row["prompt_ids"] + r]), len(row["prompt_ids"])
            table = model(input_ids=ids).logits.log_softmax(-1)[0]
            out.append(sum(table[i - 1, ids[0, i]].item() for i in range(max(p, 1), ids.shape[1])))
print(json.dumps(out))
"#;
        let golden = project("tests/golden/golden.json");
        let args = [project(&format!("tests/golden/{name}")), tmp.path().to_owned(), golden];
        let ran = std::process::Command::new(&python).args(["-c", script]).args(args).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let text = String::from_utf8(ran.stdout).unwrap();
        let want = floats(&serde_json::from_str(text.lines().last().unwrap()).unwrap());
        let batches = batches(&json_file("adapters.json")["adapters"][format!("{name}-all")]);
        let got: Vec<f64> = score(&be, &m, &batches).iter().map(|r| r.iter().sum()).collect();
        assert_eq!(got.len(), want.len());
        got.iter().zip(&want).for_each(|(a, b)| assert!((a - b).abs() <= 1e-3, "{name}: {a}, PEFT {b}"));
        println!(
            "{name}: largest difference from PEFT {:e}",
            got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        );
    }
}

/// Name, shape, bytes.
type Tensor = (String, Vec<usize>, Vec<u8>);

/// Changes the tensors of an adapter.
type Change<'a> = &'a dyn Fn(&mut Vec<Tensor>);

fn edited(from: &Path, edit: impl FnOnce(&Path)) -> tempfile::TempDir {
    let tmp = tempfile::TempDir::new().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(from.join(name), tmp.path().join(name)).unwrap();
    }
    edit(tmp.path());
    tmp
}

#[track_caller]
fn refused(base: &ModelDir, dir: &Path, want: &str) {
    let e = base.with_adapter(dir).unwrap_err().to_string();
    assert!(e.contains(want) && !e.contains('\n'), "{e}, not {want}");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let (base, from) = (base("llama"), adapter("llama", "all"));
    let values = [
        ("use_dora", json!(true)),
        ("rank_pattern", json!({"q_proj": 8})),
        ("alpha_pattern", json!({"q_proj": 8})),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("peft_type", json!("IA3")),
        ("fan_in_fan_out", json!(true)),
        ("layers_to_transform", json!([0])),
        ("init_lora_weights", json!("pissa")),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("r", json!(4)),
        ("r", json!(0)),
        ("r", json!("x")),
        ("lora_alpha", json!(-1)),
        ("lora_alpha", Value::Null),
    ];
    for (key, value) in values {
        let tmp = edited(&from, |dir| {
            let path = dir.join("adapter_config.json");
            let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            config[key] = value.clone();
            std::fs::write(path, config.to_string()).unwrap();
        });
        let want = match key {
            "r" if value == json!(4) => "has rank 3, but adapter_config.json says `r` 4",
            "r" if value == json!(0) => "rank 0 is not from 1",
            "lora_alpha" if value == json!(-1) => "alpha -1 is not a finite number above 0",
            key => &format!("`{key}`"),
        };
        refused(&base, tmp.path(), want);
    }
    refused(&base, Path::new("/nowhere"), "is not a folder");
    refused(&base, &project("tests/golden/llama"), "is no adapter: it has no adapter_config.json");
    refused(
        &base,
        edited(&from, |d| std::fs::write(d.join("adapter_config.json"), "{").unwrap()).path(),
        "adapter_config.json",
    );
}

#[test]
fn tensors_that_do_not_belong() {
    let (llama, from) = (base("llama"), adapter("llama", "all"));
    let bytes = std::fs::read(from.join("adapter_model.safetensors")).unwrap();
    let rewrite = |change: Change<'_>| {
        let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> =
            all.tensors().into_iter().map(|(n, t)| (n, t.shape().to_vec(), t.data().to_vec())).collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(n, s, d)| {
            (n.clone(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, s.clone(), d).unwrap())
        });
        let text = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
        edited(&from, |dir| std::fs::write(dir.join("adapter_model.safetensors"), text).unwrap())
    };
    let at = |t: &[Tensor], part: &str| t.iter().position(|(n, ..)| n.contains(part)).unwrap();
    let cases: [(Change<'_>, &str); 7] = [
        (&|t| drop(t.remove(at(t, "layers.1.mlp.up_proj.lora_B"))), "layers.1.mlp.up_proj.lora_B.weight` is missing"),
        (
            &|t| t.push(("base_model.model.lm_head.lora_A.weight".into(), vec![1, 1], vec![0; 4])),
            "lm_head.lora_A.weight`: not of an adapter",
        ),
        (
            &|t| {
                t.push((
                    "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector".into(),
                    vec![1],
                    vec![0; 4],
                ))
            },
            "DoRA is not supported",
        ),
        (
            &|t| t.push(("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight".into(), vec![1, 1], vec![0; 4])),
            "has no place in the base model",
        ),
        (
            &|t| t.push(("base_model.model.lm_head.weight".into(), vec![1, 1], vec![0; 4])),
            "not of an adapter of a linear layer",
        ),
        (
            &|t| {
                let i = at(t, "q_proj.lora_A");
                t[i].1.reverse()
            },
            "has rank",
        ),
        (
            &|t| {
                let i = at(t, "q_proj.lora_A");
                t[i].2[..4].copy_from_slice(&f32::NAN.to_le_bytes())
            },
            "NaN or infinity",
        ),
    ];
    for (change, want) in cases {
        refused(&llama, rewrite(change).path(), want);
    }
    refused(&base("llama3-tied"), &from, "the adapter is of another base");
    let cut =
        edited(&from, |d| std::fs::write(d.join("adapter_model.safetensors"), &bytes[..bytes.len() - 1]).unwrap());
    refused(&llama, cut.path(), "damaged safetensors file");
    let bin =
        edited(&from, |d| std::fs::rename(d.join("adapter_model.safetensors"), d.join("adapter_model.bin")).unwrap());
    refused(&llama, bin.path(), "adapter_model.bin is not read");
}
