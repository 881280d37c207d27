//! NF4 against bitsandbytes, to the byte: `tests/golden/nf4` (`scripts/make_nf4_golden.py`), and the library itself where
//! `FUSEDPO_PYTHON` has it.

use crate::model_common;

use fusedpo::backend::Float;
use fusedpo::model::sample::{normal, uniform};
use fusedpo::quant::{Absmax, Dynamic, Nf4Tensor, Precision, state};
use model_common::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
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
