//! `pack` against the `tokenizers` crate alone, on the same text with every core.
//!
//! Alone: `encode_batch_fast` of every prompt, chosen and rejected text once, already in memory. `pack`: from the file to
//! synced shards by TRL's boundary rule, which needs prompt, prompt + chosen and prompt + rejected. Throughput is text: the
//! bytes of those three columns. The text is synthetic dialogue, so that the bench runs anywhere; with FUSEDPO_TEST_DATA it
//! is hh-harmless four times over, and the tokenizer SmolLM2's.

#[path = "../tests/pack_common/mod.rs"]
mod pack_common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fusedpo::data::pack::{PackOptions, pack};
use fusedpo::data::text::trl_prompt_len;
use pack_common::{Random, read_gz, tiny_model};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Rows as prompt, chosen and rejected; the model; its EOS.
fn material(dir: &Path) -> (Vec<[String; 3]>, PathBuf, String) {
    if let Some(data) = std::env::var_os("FUSEDPO_TEST_DATA").map(PathBuf::from) {
        let text = read_gz(&data.join("data/hh-harmless/test.jsonl.gz"));
        let split = |line: &str| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let (c, r) = (row["chosen"].as_str().unwrap(), row["rejected"].as_str().unwrap());
            let at = trl_prompt_len(c, r);
            [c[..at].to_owned(), c[at..].to_owned(), r[at..].to_owned()]
        };
        return (text.lines().map(split).collect(), data.join("data/tokenizers/smollm2.json"), "<|im_end|>".into());
    }
    let mut random = Random(7);
    let mut words = |n: usize| {
        let word = |_| ["the", "rain", "in", "another", "town", "held", "on"][random.below(7)];
        (0..n).map(word).collect::<Vec<_>>().join(" ")
    };
    let mut row =
        |_| [format!("Human: {}\n\nAssistant:", words(100)), format!(" {}", words(30)), format!(" {}", words(30))];
    ((0..3000).map(&mut row).collect(), tiny_model(dir, false), "</s>".into())
}

fn packing(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let (rows, model, eos) = material(dir.path());
    let rows: Vec<[String; 3]> = rows.iter().cycle().take(4 * rows.len()).cloned().collect();
    let input = dir.path().join("rows.jsonl");
    let line =
        |[p, c, r]: &[String; 3]| serde_json::json!({"prompt": p, "chosen": c, "rejected": r}).to_string() + "\n";
    std::fs::write(&input, rows.iter().map(line).collect::<String>()).unwrap();
    let file = if model.is_dir() { model.join("tokenizer.json") } else { model.clone() };
    let tokenizer = tokenizers::Tokenizer::from_file(file).unwrap();
    let texts: Vec<&str> = rows.iter().flatten().map(String::as_str).collect();

    let mut group = c.benchmark_group("pack");
    group.sample_size(10).measurement_time(Duration::from_secs(20));
    group.throughput(Throughput::Bytes(texts.iter().map(|t| t.len() as u64).sum()));
    group.bench_function("tokenizers crate alone", |b| {
        b.iter(|| tokenizer.encode_batch_fast(texts.clone(), false).unwrap())
    });
    let mut o = PackOptions::new(&model, vec![input], dir.path().join("out"));
    o.tokenizer_options.eos_token = Some(eos);
    o.overwrite = true;
    group.bench_function("pack", |b| b.iter(|| pack(&o, &mut |_| Ok(())).unwrap()));
    o.memory = 1 << 20;
    group.bench_function("pack, rows in temporary files", |b| b.iter(|| pack(&o, &mut |_| Ok(())).unwrap()));
    group.finish();
}

criterion_group!(benches, packing);
criterion_main!(benches);
