//! Data: opening and planning ten million pairs, building batches, verifying, flushing a sidecar.
//!
//! `cargo bench --bench data`. The large folder is sparse: it takes no disk space, and shows that opening reads headers.

use bytemuck::Zeroable;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fusedpo::data::plan::{Objective, PlanOptions, Planner, draw, permutation};
use fusedpo::data::shard::format::{HEADER_LEN, Header, MAGIC, Meta, SectionEntry, VERSION, layout};
use fusedpo::data::shard::{Dataset, NewGroup, NewPair, NewResponse, ShardWriter, Split};
use fusedpo::data::sidecar::{RefKey, Sidecars};
use std::hint::black_box;
use std::io::Write;
use std::path::Path;

fn meta() -> Meta {
    Meta {
        vocab_size: 49152,
        eos_id: Some(2),
        bos_rule: 0,
        tokenizer_sha256: [7; 32],
        template_sha256: [0; 32],
        max_length: 1024,
        truncation: 1,
        boundary: 1,
    }
}

/// A shard of `pairs` pairs and 600 tokens for each, all holes but for its header.
fn sparse(path: &Path, pairs: u64) {
    let counts = [600 * pairs, pairs, 2 * pairs, pairs];
    let sections = layout(2, counts).unwrap();
    let mut h = Header {
        magic: MAGIC,
        version: VERSION,
        header_len: HEADER_LEN as u32,
        token_width: 2,
        vocab_size: 49152,
        num_sections: 4,
        num_tokens: counts[0],
        num_groups: counts[1],
        num_responses: counts[2],
        num_pairs: counts[3],
        sections: sections.map(|(offset, length)| SectionEntry { offset, length, crc32: 0, reserved: 0 }),
        ..Header::zeroed()
    };
    h.seal();
    let mut f = std::fs::File::create(path).unwrap();
    f.write_all(bytemuck::bytes_of(&h)).unwrap();
    f.set_len(sections[3].0 + sections[3].1).unwrap();
}

/// A real shard of `pairs` pairs with HH's lengths: prompts around 150, responses around 70.
fn real(path: &Path, pairs: u64) {
    let mut w = ShardWriter::create(path, &meta()).unwrap();
    let tokens: Vec<u32> = (0..400).map(|i| draw(1, 0, i) as u32 % 49152).collect();
    for row in 0..pairs {
        let len = |k: u64, lo: usize, hi: usize| lo + draw(2, k, row) as usize % (hi - lo);
        let response = |index: u32, n| NewResponse { tokens: &tokens[n..2 * n], score: None, label: None, row, index };
        w.push(&NewGroup {
            prompt: &tokens[..len(0, 20, 280)],
            responses: vec![response(0, len(1, 10, 130)), response(1, len(2, 10, 130))],
            pairs: vec![NewPair { chosen: 0, rejected: 1, weight: 1.0 }],
        })
        .unwrap();
    }
    w.finish().unwrap();
}

fn options() -> PlanOptions {
    PlanOptions { objective: Objective::Preference, batch_size: 64, token_budget: Some(4096), seed: 42, shuffle: true }
}

fn open(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    (0..10).for_each(|i| sparse(&dir.path().join(format!("train-{i:05}.pref")), 1_000_000));
    c.bench_function("open 10 shards, 10 million pairs", |b| {
        b.iter(|| {
            let data = Dataset::open(black_box(dir.path()), Split::Train).unwrap();
            assert_eq!(data.num_pairs(), 10_000_000);
        })
    });
    let one = tempfile::tempdir().unwrap();
    sparse(&one.path().join("train-00000.pref"), 10_000_000);
    c.bench_function("open 1 shard, 10 million pairs", |b| {
        b.iter(|| Dataset::open(black_box(one.path()), Split::Train).unwrap())
    });
    c.bench_function("shuffle 10 million groups", |b| b.iter(|| permutation(black_box(10_000_000), 42, 0)));
}

fn plan(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    real(&dir.path().join("train-00000.pref"), 200_000);
    let data = Dataset::open(dir.path(), Split::Train).unwrap();
    let mut g = c.benchmark_group("200,000 pairs");
    g.throughput(Throughput::Bytes(std::fs::metadata(data.shards()[0].path()).unwrap().len()));
    g.bench_function("verify", |b| b.iter(|| data.verify().unwrap()));
    g.throughput(Throughput::Elements(data.num_groups()));
    g.bench_function("survey (elements: groups)", |b| b.iter(|| Planner::new(&data, &options()).unwrap()));

    let planner = Planner::new(&data, &options()).unwrap();
    let (used, slots) = (0..50)
        .flat_map(|s| planner.step(0, s).unwrap())
        .fold((0, 0), |(u, s), mb| (u + mb.used() as u64, s + mb.slots() as u64));
    println!("fill of 64-pair steps in 4096 slots: {:.4}", used as f64 / slots as f64);
    g.throughput(Throughput::Elements(used / 50));
    let mut step = 0;
    g.bench_function("step of 64 pairs (elements: tokens)", |b| {
        b.iter(|| {
            step = (step + 1) % planner.steps_in_epoch(0);
            planner.step(0, step).unwrap()
        })
    });

    // What each of several ranks does for the same step: the outlines of all, the tokens of its own.
    let lanes = Planner::new(&data, &options()).unwrap().in_lanes(8);
    for ranks in [1, 2, 4, 8] {
        g.bench_function(format!("step of 64 pairs, by one of {ranks} (elements: tokens of all)"), |b| {
            b.iter(|| {
                step = (step + 1) % lanes.steps_in_epoch(0);
                let outlines = lanes.outlines(0, step).unwrap();
                let mine = 0..outlines.partition_point(|of| of.lane() < 8 / ranks);
                lanes.batches(outlines, mine).unwrap()
            })
        });
    }

    let key = RefKey { model_sha256: [3; 32], fingerprint: "bench".into() };
    let mut s = Sidecars::open(&data, None, &key).unwrap();
    g.throughput(Throughput::Elements(data.num_responses()));
    g.bench_function("flush (elements: responses)", |b| {
        b.iter(|| {
            s.set(7, -1.0);
            s.flush().unwrap();
        })
    });
    g.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = open, plan }
criterion_main!(benches);
