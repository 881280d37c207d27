//! Damaged files of every kind: no panic, no abort, no huge allocation, no error of several lines, and nothing accepted
//! that was damaged.
//!
//! `FUSEDPO_MUTATIONS=N` tries N inputs instead of a few thousand; `FUSEDPO_MUTATE_FROM=I` starts at input I. Input I is
//! the same on every machine.

mod mutations;

use fusedpo::commands::train::resolve;
use fusedpo::data::pack::pack;
use fusedpo::data::plan::{Objective, PlanOptions, Planner};
use fusedpo::data::shard::format::{HEADER_LEN, Header};
use fusedpo::data::shard::{Dataset, InspectOptions, Split, inspect};
use fusedpo::data::sidecar::{self, Sidecars};
use fusedpo::data::text::{TextTokenizer, TokenizerOptions};
use fusedpo::error::Error;
use fusedpo::model::{Model, ModelDir};
use fusedpo::train::options::Stage;
use mutations::bench::{Bench, TEMPLATE, golden, key, lines};
use mutations::{LARGEST, Rng, Watched, bytes, json_value};
use serde_json::Value;
use sha2::Digest;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Inputs of an ordinary run.
const ORDINARY: u64 = 3000;
/// Inputs that once went wrong: a panic in the tokenizers crate, a `{%}` in a chat template.
const ONCE_WRONG: [u64; 2] = [32981, 37062];
/// Larger than anything these small files can need.
const HUGE: usize = 256 << 20;
/// Longer than any of them takes, on a busy machine too.
const SLOW: Duration = Duration::from_secs(30);

/// Whether a mutated input was refused or read; an error message otherwise.
type Verdict = Result<bool, String>;

fn refused(e: &Error) -> Verdict {
    let text = e.to_string();
    match text.contains('\n') || text.is_empty() {
        true => Err(format!("not one line: {text:?}")),
        false => Ok(false),
    }
}

/// Any bytes under a good shard's name: refused, or what was there before.
fn shard(b: &Bench, rng: &mut Rng) -> Verdict {
    let good = rng.pick(&b.shards);
    let bad = bytes(rng, good, HEADER_LEN);
    b.write("s.pref", &bad);
    let opened = Dataset::open(&b.path("s.pref"), Split::Train);
    // `inspect` reads records without verifying them.
    let shown = inspect(&b.path("s.pref"), &InspectOptions { show: 3, verify: false });
    if let (Ok(_), Err(e)) = (&opened, &shown) {
        refused(e)?;
    }
    match opened.and_then(|d| d.verify()) {
        Err(e) => refused(&e),
        Ok(()) if bad == *good => Ok(true),
        Ok(()) => Err("a damaged shard was accepted".into()),
    }
}

/// Damage by someone who repairs every checksum: refused, or records that every later step can rely on.
fn forged_shard(b: &Bench, rng: &mut Rng) -> Verdict {
    let good = rng.pick(&b.shards);
    let mut bad = bytes(rng, good, HEADER_LEN);
    if bad.len() < HEADER_LEN {
        return shard(b, rng);
    }
    let mut header: Header = bytemuck::pod_read_unaligned(&bad[..HEADER_LEN]);
    let mut sha = sha2::Sha256::new();
    for s in &mut header.sections {
        let end = s.offset.checked_add(s.length).and_then(|e| usize::try_from(e).ok());
        if let Some(part) = end.and_then(|e| bad.get(s.offset as usize..e)) {
            s.crc32 = crc32fast::hash(part);
            sha.update(part);
        }
    }
    sha.update(&bytemuck::bytes_of(&header)[..fusedpo::data::shard::format::IDENTITY_LEN]);
    header.content_sha256 = sha.finalize().into();
    header.seal();
    bad[..HEADER_LEN].copy_from_slice(bytemuck::bytes_of(&header));
    b.write("s.pref", &bad);
    let data = match Dataset::open(&b.path("s.pref"), Split::Train).and_then(|d| d.verify().map(|()| d)) {
        Err(e) => return refused(&e),
        Ok(data) => data,
    };
    plan_all(&data)?;
    Ok(true)
}

/// Every step of every objective.
fn plan_all(data: &Dataset) -> Result<(), String> {
    for objective in [Objective::Preference, Objective::Sft, Objective::Score] {
        let o = PlanOptions { objective, batch_size: 2, token_budget: None, seed: 1, shuffle: true };
        match Planner::new(data, &o) {
            Err(e) => drop(refused(&e)?),
            Ok(plan) => (0..plan.steps_in_epoch(0)).for_each(|s| drop(plan.step(0, s).unwrap())),
        }
    }
    Ok(())
}

/// A sidecar with other bytes: refused, told to be another's, or what was there before.
fn reference(b: &Bench, rng: &mut Rng) -> Verdict {
    let data = Dataset::open(&b.path("d"), Split::Train).map_err(|e| e.to_string())?;
    let bad = bytes(rng, &b.sidecar, HEADER_LEN);
    std::fs::write(sidecar::path(&data.shards()[0], None, &key()), &bad).unwrap();
    match Sidecars::open(&data, None, &key()) {
        Err(e) => refused(&e),
        Ok(_) if bad == b.sidecar => Ok(true),
        Ok(_) => Err("a damaged sidecar was accepted".into()),
    }
}

/// Weights have no checksums: what must hold is that what loads has every tensor in its shape, and finite.
fn weights(b: &Bench, rng: &mut Rng) -> Verdict {
    let good = std::fs::read(golden().join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let bad = if rng.below(2) == 0 {
        bytes(rng, &good, header)
    } else {
        // A header that is JSON again, with its length.
        let json: Value = serde_json::from_slice(&good[8..header]).unwrap();
        let text = json_value(rng, &json).to_string();
        [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &good[header..]].concat()
    };
    b.write("m/model.safetensors", &bad);
    load(b)
}

fn load(b: &Bench) -> Verdict {
    match ModelDir::open(&b.path("m")).and_then(|d| Model::load(&b.be, &d, 64)) {
        Err(e) => refused(&e),
        Ok(m) if m.weights.iter().all(|w| w.is_finite()) => Ok(true),
        Ok(_) => Err("weights that are not finite were accepted".into()),
    }
}

/// Bytes or values of a JSON file of the model.
fn mutate_json(b: &Bench, rng: &mut Rng, name: &str) {
    let good = std::fs::read(golden().join(name)).unwrap();
    let bad = match rng.below(3) {
        0 => bytes(rng, &good, good.len()),
        _ => json_value(rng, &serde_json::from_slice(&good).unwrap()).to_string().into_bytes(),
    };
    b.write(&format!("m/{name}"), bad);
}

fn config(b: &Bench, rng: &mut Rng) -> Verdict {
    mutate_json(b, rng, "config.json");
    load(b)
}

fn tokenizer(b: &Bench, rng: &mut Rng) -> Verdict {
    let name = if rng.below(4) == 0 { "tokenizer_config.json" } else { "tokenizer.json" };
    mutate_json(b, rng, name);
    let tok = match TextTokenizer::load(&b.path("m"), &TokenizerOptions::default()) {
        Err(e) => return refused(&e),
        Ok(tok) => tok,
    };
    let ids = match tok.encode("w3 w4 nothing </s> \u{1f600}") {
        Err(e) => return refused(&e),
        Ok(ids) => ids,
    };
    for ids in [&ids[..], &[0, 96, 97, u32::MAX]] {
        for e in [tok.decode(ids, false).err(), tok.pieces(ids).err()].into_iter().flatten() {
            refused(&e)?;
        }
    }
    Ok(true)
}

/// Rows as JSONL, as one array, gzipped, or as Parquet: refused with a line, or packed into shards that hold.
fn input(b: &Bench, rng: &mut Rng) -> Verdict {
    use std::io::Write;
    let mut rows = vec![b.rows[rng.below(b.rows.len())].clone(), b.rows[0].clone()];
    let text = match rng.below(3) {
        0 => bytes(rng, lines(&rows).as_bytes(), 200),
        _ => {
            rows[0] = json_value(rng, &rows[0]);
            lines(&rows).into_bytes()
        }
    };
    let content = match rng.below(6) {
        0 => bytes(rng, &b.parquet, b.parquet.len()),
        1 => bytes(rng, format!("[{},{}]", rows[0], rows[1]).as_bytes(), 200),
        2 => {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(&text).unwrap();
            let gz = gz.finish().unwrap();
            if rng.below(2) == 0 { gz } else { bytes(rng, &gz, 20) }
        }
        _ => text,
    };
    if rng.below(8) == 0 {
        b.write("m/chat_template.jinja", bytes(rng, TEMPLATE.as_bytes(), TEMPLATE.len()));
    }
    b.write("rows.jsonl", content);
    let _ = std::fs::remove_dir_all(b.path("out"));
    let packed = pack(&b.options("rows.jsonl", "out"), &mut |_| Ok(()));
    if let Err(e) = packed {
        let left = b.path("out").exists();
        return if left { Err("a refused input left a folder".into()) } else { refused(&e) };
    }
    let data = Dataset::open(&b.path("out"), Split::Train).map_err(|e| e.to_string())?;
    data.verify().map_err(|e| format!("packed, but {e}"))?;
    plan_all(&data)?;
    inspect(&b.path("out"), &InspectOptions { show: 9, verify: true }).map_err(|e| format!("packed, but {e}"))?;
    Ok(true)
}

/// A run's configuration: refused, or a configuration that resolves within its ranges.
fn run_config(b: &Bench, rng: &mut Rng) -> Verdict {
    let good = "model = \"m\"\ndata = \"d\"\nbeta = 0.1\nloss_type = \"sigmoid\"\nlearning_rate = 1e-6\nseed = 42\n\
        lr_scheduler_type = \"linear\"\nwarmup_ratio = 0.1\nbatch_size = 8\nmax_steps = 10\nnum_train_epochs = 1.5\n\
        dtype = \"auto\"\nsave_dtype = \"source\"\nadam_beta2 = 0.999\neval_steps = 0\n";
    b.write("c.toml", bytes(rng, good.as_bytes(), good.len()));
    let typed = toml::Table::from_iter([("out".to_owned(), b.path("r").to_str().unwrap().into())]);
    let resolved = resolve(Stage::Dpo, Some(&b.path("c.toml")), typed);
    match resolved {
        Err(e) => refused(&e),
        Ok(c)
            if c.schedule.learning_rate.is_finite()
                && c.loss.beta.is_some_and(|b| b > 0.0)
                && c.data.batch_size > 0 =>
        {
            Ok(true)
        }
        Ok(c) => Err(format!("accepted: {c:?}")),
    }
}

type Target = (&'static str, fn(&Bench, &mut Rng) -> Verdict);
const TARGETS: [Target; 8] = [
    ("shard", shard),
    ("shard with repaired checksums", forged_shard),
    ("sidecar", reference),
    ("safetensors", weights),
    ("config.json", config),
    ("tokenizer", tokenizer),
    ("rows", input),
    ("--config", run_config),
];

/// One input; what is wrong with how it was taken.
fn one(b: &Bench, i: u64) -> Verdict {
    let (name, target) = TARGETS[(i % TARGETS.len() as u64) as usize];
    LARGEST.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    let verdict = catch_unwind(AssertUnwindSafe(|| target(b, &mut Rng::new(i))));
    let verdict = verdict.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("?")))
    });
    let (largest, took) = (LARGEST.load(Ordering::Relaxed), begun.elapsed());
    if matches!(name, "safetensors" | "config.json" | "tokenizer" | "rows") {
        b.restore_model();
    }
    match verdict {
        Ok(_) if largest > HUGE => Err(format!("asked for {largest} bytes at once")),
        Ok(_) if took > SLOW => Err(format!("took {took:?}")),
        verdict => verdict,
    }
}

#[test]
fn damaged_files_are_refused_in_one_line() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect(name));
    let n = number("FUSEDPO_MUTATIONS").unwrap_or(ORDINARY);
    let from = number("FUSEDPO_MUTATE_FROM").unwrap_or(0);
    let b = Bench::new();
    let mut read = [0u64; TARGETS.len()];
    let mut wrong = Vec::new();
    let begun = Instant::now();
    for i in ONCE_WRONG.into_iter().chain(from..from + n) {
        let t = (i % TARGETS.len() as u64) as usize;
        match one(&b, i) {
            Ok(accepted) => read[t] += u64::from(accepted),
            Err(why) => wrong.push(format!("input {i} ({}): {why}", TARGETS[t].0)),
        }
        if wrong.len() >= 20 {
            break;
        }
    }
    for ((name, _), read) in TARGETS.iter().zip(read) {
        println!("{name}: {read} of {} inputs could be read", n / TARGETS.len() as u64);
    }
    println!("{n} inputs in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
