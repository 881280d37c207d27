//! What each stage takes from the stages before it, and the hash and place of its result.

use super::known;
use super::words;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::recipe::{
    CACHE, Entry, Inputs, Kind, Recipe, Stage, content_sha256, data_sha256, model_sha256, stage_sha256,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Bytes of a hash in a result's name.
const SHORT: usize = 12;

/// What the reference's pass shares with the run that reads it, and `eval` with the run whose result it measures, where they say nothing
/// else; how the base is held only with a model that is that run's.
const OF_COMPUTING: [&str; 4] = ["device", "dtype", "logits_dtype", "token_budget"];

/// How a base is held.
const OF_BASE: [&str; 2] = ["quantize", "double_quant"];

/// A stage with all that it needs.
pub(super) struct Link {
    /// As it decides the hash: with what it borrows from other tables.
    pub stage: Stage,
    pub sha256: String,
    pub result: PathBuf,
    /// The command line, without the program.
    pub words: Vec<String>,
    pub inputs: Inputs,
    pub reads: Vec<Kind>,
}

impl Link {
    /// Its result's, beside the manifest.
    pub fn name(&self) -> String {
        self.result.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Its line of the manifest, once its result is there, with `outputs`.
    pub fn entry(&self, outputs: Inputs) -> Entry {
        Entry {
            stage: self.stage.kind,
            sha256: self.sha256.clone(),
            result: self.name(),
            command: ["fusedpo".to_owned()].into_iter().chain(self.words.iter().cloned()).collect(),
            inputs: self.inputs.clone(),
            reads: self.reads.clone(),
            outputs,
        }
    }

    /// Shards, weights and measures; what else lies there has times in it.
    pub fn outputs(&self) -> Result<Inputs> {
        let mut all = Inputs::new();
        if self.stage.kind == Kind::Eval {
            all.insert(String::new(), content_sha256(&self.result)?);
        }
        if !self.result.is_dir() {
            return Ok(all);
        }
        for entry in std::fs::read_dir(&self.result).map_err(Error::io(&self.result, "read"))?.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let kept = path.extension().is_some_and(|e| e == "pref" || e == "safetensors");
            if kept && path.is_file() {
                all.insert(name, content_sha256(&path)?);
            }
        }
        Ok(all)
    }
}

/// What earlier stages made.
#[derive(Default)]
struct Made {
    hashes: BTreeMap<&'static str, String>,
    results: BTreeMap<&'static str, PathBuf>,
    /// What was read from outside.
    hashed: Inputs,
    /// The model that was trained last: folder, adapter, and its stage.
    trained: Option<(Value, Option<Value>, Kind)>,
    /// A model that was there before, and that the one which was trained last has the shape of.
    shape: Option<String>,
}

/// A stage while it is put together: what decides it by itself, and what comes from stages before.
struct Parts {
    given: Table,
    linked: Table,
    reads: Vec<Kind>,
}

impl Parts {
    fn has(&self, key: &str) -> bool {
        self.given.contains_key(key) || self.linked.contains_key(key)
    }

    /// Takes an option that a table of another stage has.
    fn borrow(&mut self, from: Option<&Table>, key: &str, own: &str) {
        if let (Some(value), false) = (from.and_then(|t| t.get(key)), self.has(own)) {
            self.given.insert(own.to_owned(), value.clone());
        }
    }

    fn data(&mut self, made: &Made) {
        if let (Some(path), false) = (made.results.get(Kind::Pack.name()), self.has("data")) {
            self.linked.insert("data".into(), text(path));
            self.reads.push(Kind::Pack);
        }
    }

    /// How the base of what was trained before is held, where that is the model.
    fn of_base(&mut self, recipe: &Recipe, made: &Made) {
        if let (Some((_, _, kind)), false) = (&made.trained, self.has("model")) {
            OF_BASE.iter().for_each(|key| self.borrow(recipe.stage(*kind), key, key));
        }
    }

    /// The model that was trained before, with its adapter.
    fn model(&mut self, made: &Made) {
        let Some((model, adapter, kind)) = &made.trained else { return };
        if self.has("model") {
            return;
        }
        self.linked.insert("model".into(), model.clone());
        if let (Some(adapter), false) = (adapter, self.has("adapter")) {
            self.linked.insert("adapter".into(), adapter.clone());
        }
        self.reads.push(*kind);
    }
}

fn text(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

/// The stages of `recipe` in `out`, each checked. Errors, in the words of [`Error::Usage`]: an option that its command refuses, what
/// no stage gives, an input that cannot be read.
pub(super) fn links(recipe: &Recipe, out: &Path) -> Result<Vec<Link>> {
    if out.to_str().is_none() {
        return Err(Error::file(out, "the folder's name is no UTF-8; give another"));
    }
    let mut made = Made::default();
    recipe.stages.iter().map(|stage| link(recipe, stage, out, &mut made)).collect()
}

fn link(recipe: &Recipe, stage: &Stage, out: &Path, made: &mut Made) -> Result<Link> {
    let kind = stage.kind;
    let mut parts = Parts { given: stage.options.clone(), linked: Table::new(), reads: Vec::new() };
    wire(recipe, kind, made, &mut parts)?;
    words::refuse_missing(kind, &parts.given)?;
    let decides = Stage { kind, options: words::plain_paths(kind, &parts.given) };
    let inputs = inputs(&parts.given, &mut made.hashed)?;
    let named = inputs.iter().map(|(name, sum)| (words::plain(name), sum.clone())).collect();
    let before: Vec<String> = parts.reads.iter().filter_map(|of| made.hashes.get(of.name()).cloned()).collect();
    let sha256 = stage_sha256(env!("CARGO_PKG_VERSION"), &decides, &named, &before);
    let end = match kind {
        Kind::Reference => ".txt",
        Kind::Eval => ".json",
        Kind::Report => ".html",
        _ => "",
    };
    let result = out.join(format!("{kind}-{}{end}", &sha256[..SHORT]));
    let mut all = parts.given.clone();
    all.extend(parts.linked);
    match kind {
        Kind::Reference => {}
        Kind::Eval => drop(all.insert("json".into(), true.into())),
        _ => drop(all.insert("out".into(), text(&result))),
    }
    let mut words = vec![kind.command().to_owned()];
    words.extend(words::of(kind, &all, &runs(kind, made))?);
    if matches!(kind, Kind::Sft | Kind::Dpo) {
        let named = parts.given.get("model").and_then(Value::as_str).map(str::to_owned);
        made.shape = named.or(made.shape.take());
        known::refuse_untrained(kind, &parts.given, made.shape.as_deref())?;
        words.extend(["--resume=auto".to_owned()]);
        let adapter = all.contains_key("lora_r") || all.contains_key("adapter");
        let model = if adapter { all["model"].clone() } else { text(&result) };
        made.trained = Some((model, adapter.then(|| text(&result)), kind));
    }
    made.hashes.insert(kind.name(), sha256.clone());
    made.results.insert(kind.name(), result.clone());
    Ok(Link { stage: decides, sha256, result, words, inputs, reads: parts.reads })
}

/// What a stage takes from others where it says nothing itself.
fn wire(recipe: &Recipe, kind: Kind, made: &Made, parts: &mut Parts) -> Result<()> {
    let (sft, dpo) = (recipe.stage(Kind::Sft), recipe.stage(Kind::Dpo));
    match kind {
        Kind::Pack => {
            parts.borrow(sft, "model", "tokenizer");
            parts.borrow(dpo, "model", "tokenizer");
        }
        Kind::Sft => parts.data(made),
        Kind::Reference => {
            let started = made.trained.as_ref().and_then(|(model, ..)| model.as_str());
            known::refuse_unread(recipe, &parts.given, started)?;
            reference(dpo, made, parts);
        }
        Kind::Dpo => {
            parts.model(made);
            parts.data(made);
        }
        Kind::Eval => eval(recipe, made, parts),
        Kind::Export => {
            let has_adapter = made.trained.as_ref().is_some_and(|(_, adapter, _)| adapter.is_some());
            if !parts.has("adapter") && !has_adapter {
                let why = "[export]: no stage trains an adapter (`lora_r`), and the folder of any other run is a Hugging Face \
                           directory by itself; leave it out";
                return Err(Error::usage(why));
            }
            parts.of_base(recipe, made);
            parts.model(made);
        }
        Kind::Quantize => quantize(recipe, made, parts)?,
        Kind::Report => {
            parts.reads.extend([Kind::Sft, Kind::Dpo].into_iter().filter(|of| made.results.contains_key(of.name())));
            if parts.reads.is_empty() {
                return Err(Error::usage("[report]: no stage before it is a run (`sft` or `dpo`); leave it out"));
            }
        }
    }
    Ok(())
}

/// What `dpo` starts from, and how it computes.
fn reference(dpo: Option<&Table>, made: &Made, parts: &mut Parts) {
    parts.borrow(dpo, "cache", "cache");
    parts.borrow(dpo, "data", "data");
    if !parts.has("model") {
        parts.borrow(dpo, "ref_model", "model");
        // Else it is what dpo starts from.
        if !parts.has("model") {
            parts.borrow(dpo, "model", "model");
            parts.borrow(dpo, "adapter", "adapter");
            parts.model(made);
        }
        OF_BASE.iter().for_each(|key| parts.borrow(dpo, key, key));
    }
    OF_COMPUTING.iter().for_each(|key| parts.borrow(dpo, key, key));
    parts.data(made);
}

/// The run whose result it measures, and how that computed.
fn eval(recipe: &Recipe, made: &Made, parts: &mut Parts) {
    let of = made.trained.as_ref().and_then(|(.., kind)| recipe.stage(*kind));
    ["data", "cache"].iter().chain(&OF_COMPUTING).for_each(|key| parts.borrow(of, key, key));
    // Of an adapter it is written nowhere else.
    if !parts.has("model") {
        parts.borrow(of, "ref_model", "ref_model");
    }
    parts.of_base(recipe, made);
    parts.model(made);
    parts.data(made);
}

/// The merged model, or the one that was trained.
fn quantize(recipe: &Recipe, made: &Made, parts: &mut Parts) -> Result<()> {
    if parts.has("model") {
        return Ok(());
    }
    let Some((_, adapter, kind)) = &made.trained else { return Ok(()) };
    parts.borrow(recipe.stage(*kind), "double_quant", "double_quant");
    match made.results.get(Kind::Export.name()) {
        Some(merged) => {
            parts.linked.insert("model".into(), text(merged));
            parts.reads.push(Kind::Export);
        }
        None if adapter.is_some() => {
            let why = "[quantize]: what was trained is an adapter; give [export] too, which merges it into its base";
            return Err(Error::usage(why));
        }
        None => parts.model(made),
    }
    Ok(())
}

/// The folders that a report is about.
fn runs(kind: Kind, made: &Made) -> Vec<String> {
    let runs = [Kind::Sft, Kind::Dpo].into_iter().filter_map(|of| made.results.get(of.name()));
    let runs = runs.map(|path| path.to_string_lossy().into_owned());
    if kind == Kind::Report { runs.collect() } else { Vec::new() }
}

/// The content of all files and folders that `options` name; each is read once, and is in `hashed` from then on.
fn inputs(options: &Table, hashed: &mut Inputs) -> Result<Inputs> {
    let mut all = Inputs::new();
    for (key, value) in options.iter().filter(|(key, _)| *key != CACHE) {
        for name in words::paths(key, value) {
            let path = Path::new(name);
            if !(path.is_file() || path.is_dir()) || all.contains_key(name) {
                continue;
            }
            let sum = match hashed.get(name) {
                Some(sum) => sum.clone(),
                None if words::MODELS.contains(&key.as_str()) => model_sha256(path)?,
                None if ["data", "eval_data"].contains(&key.as_str()) => data_sha256(path)?,
                None => content_sha256(path)?,
            };
            hashed.insert(name.to_owned(), sum.clone());
            all.insert(name.to_owned(), sum);
        }
    }
    Ok(all)
}
