//! Damaged runs: checkpoints, forged ones too, and the files beside them that a run goes on from.

use super::bench::Bench;
use super::{Rng, Verdict, bytes, json_value, refused};
use fusedpo::Result;
use fusedpo::error::Error;
use fusedpo::observe::{Event, Flow, Observe, Silent};
use fusedpo::train::checkpoint::{Manifest, Saved};
use fusedpo::train::choices::Resume;
use fusedpo::train::options::{DataOptions, FileOptions, ReferenceOptions, SaveOptions, Stage, TrainOptions};
use fusedpo::train::run::train;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

type Files = BTreeMap<String, Vec<u8>>;

/// A run that an error ended after its third step, with a checkpoint after the second.
pub struct Run {
    files: Files,
    /// The weights that it would have come to.
    peace: Vec<u8>,
}

const CHECKPOINT: &str = "run/checkpoint-2";
const WEIGHTS: &str = "model.safetensors";

/// Ends a run at its third step.
struct Crash;

impl Observe for Crash {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        match event {
            Event::Step { step: 3, .. } => Err(Error::Training("crash".into())),
            _ => Ok(Flow::On),
        }
    }
}

fn options(b: &Bench, out: &str, resume: Option<Resume>) -> TrainOptions {
    let o = TrainOptions {
        files: FileOptions { model: b.path("m"), data: b.path("good"), out: b.path(out) },
        reference: ReferenceOptions { cache: Some(b.path("cache")), ..Default::default() },
        data: DataOptions { batch_size: 2, max_steps: Some(4), token_budget: Some(64), ..Default::default() },
        save: SaveOptions { save_steps: Some(2), ..Default::default() },
        ..Default::default()
    };
    let mut o = o.resolve(Stage::Dpo).unwrap();
    o.resume.resume = resume;
    o
}

impl Run {
    /// Needs the bench's model and shards as they were made.
    pub fn new(b: &Bench) -> Run {
        let crashed = train(&b.be, &options(b, "run", None), &mut Crash).map(|_| ()).unwrap_err();
        assert_eq!(crashed.to_string(), "crash");
        let files = tree(&b.path("run"));
        train(&b.be, &options(b, "run", Some(Resume::Auto)), &mut Silent).unwrap();
        Run { files, peace: std::fs::read(b.path("run").join(WEIGHTS)).unwrap() }
    }

    fn put(&self, b: &Bench) {
        let _ = std::fs::remove_dir_all(b.path("run"));
        let _ = std::fs::remove_dir_all(b.path("elsewhere"));
        std::fs::create_dir_all(b.path(CHECKPOINT)).unwrap();
        self.files.iter().for_each(|(name, content)| b.write(&format!("run/{name}"), content));
    }

    fn of_checkpoint(&self, name: &str) -> &[u8] {
        &self.files[&format!("checkpoint-2/{name}")]
    }
}

fn tree(dir: &Path) -> Files {
    let mut all = Files::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => all.extend(tree(&entry.path()).into_iter().map(|(inner, c)| (format!("{name}/{inner}"), c))),
            false => drop(all.insert(name, std::fs::read(entry.path()).unwrap())),
        }
    }
    all
}

/// Bytes of a file, or values where it is JSON.
fn damaged(rng: &mut Rng, good: &[u8]) -> Vec<u8> {
    match serde_json::from_slice(good) {
        Ok(value) if rng.below(2) == 0 => json_value(rng, &value).to_string().into_bytes(),
        _ => bytes(rng, good, 400),
    }
}

/// Goes on, in the run's folder or in another; where that can be done, gives the weights it came to, if any.
fn go_on(b: &Bench, rng: &mut Rng) -> Result<Option<Vec<u8>>> {
    let (out, resume) = match rng.below(3) {
        0 => ("elsewhere", Resume::Path(b.path(CHECKPOINT))),
        1 => ("run", Resume::Path(b.path(CHECKPOINT))),
        _ => ("run", Resume::Auto),
    };
    train(&b.be, &options(b, out, Some(resume)), &mut Silent)?;
    Ok(std::fs::read(b.path(out).join(WEIGHTS)).ok())
}

/// Any change of a checkpoint: refused, with the run as it was, or without effect.
pub fn checkpoint(b: &Bench, rng: &mut Rng) -> Verdict {
    let run = b.run();
    run.put(b);
    for _ in 0..1 + rng.below(2) {
        let names: Vec<&String> = run.files.keys().filter(|n| n.starts_with("checkpoint-2/")).collect();
        let manifest = "checkpoint-2/trainer_state.json".to_owned();
        let name = if rng.below(3) == 0 { &manifest } else { *rng.pick(&names) };
        match rng.below(8) {
            0 => drop(std::fs::remove_file(b.path("run").join(name))),
            _ => b.write(&format!("run/{name}"), damaged(rng, &run.files[name])),
        }
    }
    let before = tree(&b.path("run"));
    match go_on(b, rng) {
        Err(e) if tree(&b.path("run")) != before || b.path("elsewhere").exists() => {
            Err(format!("a checkpoint was refused, and something changed: {e}"))
        }
        Err(e) => refused(&e),
        Ok(Some(weights)) if weights == run.peace => Ok(true),
        Ok(_) => Err("a damaged checkpoint was gone on from".into()),
    }
}

/// A checkpoint by someone who repairs every sum: refused, or gone on from to weights that are numbers.
pub fn forged_checkpoint(b: &Bench, rng: &mut Rng) -> Verdict {
    let run = b.run();
    run.put(b);
    let manifest: Value = serde_json::from_slice(run.of_checkpoint("trainer_state.json")).unwrap();
    let mut saved = manifest["saved"].clone();
    if rng.below(3) == 0 {
        let name = *rng.pick(&[WEIGHTS, "optimizer.safetensors"]);
        b.write(&format!("{CHECKPOINT}/{name}"), forged_tensors(rng, name, run.of_checkpoint(name), &mut saved));
    } else {
        let inside = *rng.pick(&["clock", "clock", "carried", "identity", "sections"]);
        match rng.below(3) {
            0 => saved = json_value(rng, &saved),
            _ => saved[inside] = json_value(rng, &saved[inside]),
        }
        if let (Some(clock), 0) = (saved.get_mut("clock").and_then(Value::as_object_mut), rng.below(2)) {
            let name = *rng.pick(&["step", "epoch", "place", "updates", "tokens", "skipped"]);
            clock.insert(name.to_owned(), json!(*rng.pick(&[0, 1, 2, 3, 4, 5, 1 << 32, u64::MAX - 1, u64::MAX])));
        }
    }
    match serde_json::from_value::<Saved>(saved.clone()) {
        Ok(saved) => b.write(&format!("{CHECKPOINT}/trainer_state.json"), Manifest::new(saved).to_text()),
        Err(_) => b.write(
            &format!("{CHECKPOINT}/trainer_state.json"),
            json!({"format": manifest["format"], "version": 1, "crc32": 0, "saved": saved}).to_string(),
        ),
    }
    let weights = match go_on(b, rng) {
        Err(e) => return refused(&e),
        Ok(weights) => weights.unwrap_or_default(),
    };
    let tensors = safetensors::SafeTensors::deserialize(&weights).map_err(|e| e.to_string())?;
    let finite = |data: &[u8]| data.as_chunks().0.iter().all(|x| f32::from_le_bytes(*x).is_finite());
    match tensors.tensors().iter().all(|(_, t)| finite(t.data())) {
        true => Ok(true),
        false => Err("a model of no numbers was saved".into()),
    }
}

/// The file's tensors with odd numbers in them, whose sums go into `saved`.
fn forged_tensors(rng: &mut Rng, name: &str, good: &[u8], saved: &mut Value) -> Vec<u8> {
    let mut out = good.to_vec();
    let begin = 8 + u64::from_le_bytes(out[..8].try_into().unwrap()) as usize;
    for _ in 0..1 + rng.below(3) {
        let at = begin + rng.below((out.len() - begin) / 4) * 4;
        let odd = *rng.pick(&[f32::NAN, f32::INFINITY, f32::MIN, f32::MAX, 1e30, -1.0, f32::MIN_POSITIVE, 1e-45]);
        out[at..at + 4].copy_from_slice(&odd.to_le_bytes());
    }
    let mut sections: Vec<_> =
        saved["sections"].as_array_mut().unwrap().iter_mut().filter(|s| s["file"] == name).collect();
    let len = (out.len() - begin) / sections.len();
    for (section, data) in sections.iter_mut().zip(out[begin..].chunks(len)) {
        section["crc32"] = json!(crc32fast::hash(data));
    }
    out
}

/// The files beside the checkpoints, where there is one or none: refused, or the run that it was.
pub fn record(b: &Bench, rng: &mut Rng) -> Verdict {
    let run = b.run();
    run.put(b);
    if rng.below(3) == 0 {
        std::fs::remove_dir_all(b.path(CHECKPOINT)).unwrap();
    }
    for name in ["run.json", "config.toml", "metrics.jsonl"] {
        match rng.below(4) {
            0 | 1 => {}
            2 if rng.below(3) == 0 => drop(std::fs::remove_file(b.path("run").join(name))),
            _ => b.write(&format!("run/{name}"), damaged(rng, &run.files[name])),
        }
    }
    match go_on(b, rng) {
        Err(e) => refused(&e),
        // Where the record says that it is finished there is nothing to do.
        Ok(None) => Ok(true),
        Ok(Some(weights)) if weights == run.peace => Ok(true),
        Ok(Some(_)) => Err("a run went on to other weights".into()),
    }
}
