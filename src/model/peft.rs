//! Adapters in the form of PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Which layers have an adapter is read from the tensors, and must be the same in every layer; the configuration must say the
//! rank that they have. What this program does not compute is refused by the name that PEFT has for it.

use super::adapter::{AdapterInit, AdapterShape, AdapterWeights, MODULES, Values, targets};
use super::config::ModelConfig;
use super::json::parse_json;
use super::params::{ParamSpec, ParamTable, is_adapter};
use super::source::{SourceFile, decode};
use crate::error::{Error, Result};
use crate::files::{Inside, MOST_JSON};
use crate::hub::Repo;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Name of an adapter's configuration.
pub const CONFIG: &str = "adapter_config.json";
/// Name of an adapter's weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the name of a parameter.
pub const PREFIX: &str = "base_model.model.";

/// What must be absent, null, false or empty, and what it would be.
const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "DoRA's magnitudes"),
    ("use_qalora", "QALoRA's adapters"),
    ("rank_pattern", "ranks that differ from module to module"),
    ("alpha_pattern", "scales that differ from module to module"),
    ("modules_to_save", "whole modules beside the adapter"),
    ("lora_bias", "a bias of the adapter"),
    ("fan_in_fan_out", "transposed weights"),
    ("layers_to_transform", "adapters in some layers only"),
    ("layer_replication", "repeated layers"),
    ("target_parameters", "adapters of single parameters"),
    ("trainable_token_indices", "trained tokens"),
    ("alora_invocation_tokens", "adapters that begin at a token"),
    ("arrow_config", "Arrow's routed adapters"),
    ("kasa_config", "KaSA's adapters"),
    ("monteclora_config", "MonteCLoRA's adapters"),
    ("velora_config", "VeLoRA's adapters"),
    ("use_bdlora", "block-diagonal adapters"),
    ("megatron_config", "Megatron's layers"),
];

/// Ways to begin that leave the base as it is.
const PLAIN_INIT: &[&str] = &["gaussian", "eva", "orthogonal"];

/// Which model an adapter is beside, as it is written down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// A folder, or a name on the hub.
    pub name: String,
    /// The commit there.
    pub revision: Option<String>,
}

impl Base {
    /// The model in the folder `path`: the hub's name for it, where it came from there, as PEFT then finds it on every machine.
    pub fn of(path: &Path) -> Result<Self> {
        if let Some(repo) = Repo::of_snapshot(path) {
            return Ok(Self { name: repo.id, revision: repo.revision });
        }
        let name = std::path::absolute(path).map_err(Error::io(path, "find"))?.to_string_lossy().into_owned();
        Ok(Self { name, revision: None })
    }
}

/// `adapter_config.json`, as PEFT writes it: keys sorted.
pub fn config_text(shape: &AdapterShape, base: &Base) -> String {
    let whole = shape.alpha.fract() == 0.0 && shape.alpha < 1e15;
    let alpha = if whole { json!(shape.alpha as i64) } else { json!(shape.alpha) };
    let all = json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base.name,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": shape.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": shape.r,
        "rank_pattern": {},
        "revision": base.revision,
        "target_modules": shape.target_names().collect::<Vec<_>>(),
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": shape.rslora,
    });
    format!("{all:#}\n")
}

/// The adapter in `folder`, for a base of configuration `base`.
///
/// Errors: [`Error::File`], one line: files that are missing or damaged; what is not supported, by name; an adapter of another
/// base, a rank that disagrees with its tensors, tensors too many or too few.
pub(super) fn read(folder: &Inside, base: &ModelConfig) -> Result<AdapterWeights> {
    let path = folder.path(CONFIG);
    let Some(bytes) = folder.read(CONFIG, MOST_JSON)? else {
        let dir: PathBuf = folder.path("").components().collect();
        return Err(Error::file(
            dir,
            format!("is no adapter: it has no {CONFIG}; give a folder that PEFT or a run saved"),
        ));
    };
    let config = parse_json(&path, &bytes)?;
    let (shape, named) = shape(&path, &config)?;
    if !folder.has(WEIGHTS) && folder.has("adapter_model.bin") {
        let why = format!("is not there, and adapter_model.bin is not read: save the adapter as {WEIGHTS}");
        return Err(Error::file(folder.path(WEIGHTS), why));
    }
    let file = SourceFile::open(folder, WEIGHTS)?;
    let shape = AdapterShape { targets: found(&folder.path(WEIGHTS), &file, named)?, ..shape };
    let table = ParamTable::new(&ModelConfig { adapter: Some(shape), ..base.clone() })?;
    let values = values(&folder.path(WEIGHTS), &file, &table, &shape)?;
    Ok(AdapterWeights { shape, values, path: Some(folder.path("").components().collect()) })
}

/// Rank, scale, and the modules that are named, where they are.
fn shape(path: &Path, c: &Map<String, Value>) -> Result<(AdapterShape, Option<[bool; 7]>)> {
    let bad = |why: String| Error::file(path, why);
    match c.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => {
            let other = other.unwrap_or("not given");
            return Err(bad(format!("`peft_type` is {other}: LORA alone is supported")));
        }
    }
    let nothing = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    };
    for (key, what) in REFUSED {
        if let Some(value) = c.get(*key).filter(|v| !nothing(v)) {
            return Err(bad(format!("`{key}` is {value}: {what} are not supported")));
        }
    }
    if let Some(bias) = c.get("bias").and_then(Value::as_str).filter(|b| *b != "none") {
        return Err(bad(format!("`bias` is {bias}: trained biases beside an adapter are not supported")));
    }
    // Those change the base's weights too, and the files do not say how.
    let init = c.get("init_lora_weights").and_then(Value::as_str).filter(|i| !PLAIN_INIT.contains(i));
    if let Some(init) = init {
        let why = format!(
            "`init_lora_weights` is {init}: it changes the base's weights; convert it to a plain adapter with PEFT"
        );
        return Err(bad(why));
    }
    let r = c.get("r").and_then(Value::as_u64).ok_or_else(|| bad("`r` must be a whole number above 0".into()))?;
    let alpha =
        c.get("lora_alpha").and_then(Value::as_f64).ok_or_else(|| bad("`lora_alpha` must be a number".into()))?;
    let rslora = c.get("use_rslora").and_then(Value::as_bool).unwrap_or_default();
    let dropout = match c.get("lora_dropout") {
        None | Some(Value::Null) => Some(0.0),
        Some(given) => given.as_f64().filter(|p| (0.0..=1.0).contains(p)),
    };
    let dropout = dropout.ok_or_else(|| bad("`lora_dropout` must be a number from 0 to 1".into()))?;
    let named = match c.get("target_modules") {
        Some(Value::Array(names)) if !names.is_empty() => {
            let names = names.iter().map(|n| n.as_str().unwrap_or_default());
            let last = names.map(|n| n.rsplit_once('.').map_or(n, |(_, last)| last));
            let refuse = |name| {
                bad(format!(
                    "`target_modules` has {name}: the linear layers of a block alone can have an adapter ({})",
                    all_names()
                ))
            };
            Some(targets(last).map_err(refuse)?)
        }
        _ => None,
    };
    let shape = AdapterShape { r: r as usize, alpha, rslora, targets: named.unwrap_or([true; 7]), dropout };
    shape.check().map_err(|e| bad(e.to_string()))?;
    Ok((shape, named))
}

fn all_names() -> String {
    MODULES.map(|(name, _)| name).join(", ")
}

/// The modules that have tensors; where the configuration names modules, those.
fn found(path: &Path, file: &SourceFile, named: Option<[bool; 7]>) -> Result<[bool; 7]> {
    let mut found = [false; 7];
    for name in file.meta.offset_keys() {
        let (short, end) = (name.strip_prefix(PREFIX).unwrap_or(&name), "lora_magnitude_vector");
        let refuse = |why: &str| Err(Error::file(path, format!("tensor `{name}`: {why}")));
        if name.contains(end) {
            return refuse("DoRA is not supported");
        }
        let module = MODULES.iter().position(|(_, place)| short.contains(&format!(".{place}.lora_")));
        match module.filter(|_| is_adapter(short) && short.starts_with("model.layers.") && short != name) {
            Some(module) => found[module] = true,
            None => return refuse(&format!("not of an adapter of a linear layer of a block ({})", all_names())),
        }
    }
    match named {
        Some(named) => Ok(named),
        None if found == [false; 7] => Err(Error::file(path, "has no tensors of an adapter")),
        None => Ok(found),
    }
}

/// Every tensor of the adapter, checked against the table.
fn values(path: &Path, file: &SourceFile, table: &ParamTable, shape: &AdapterShape) -> Result<HashMap<String, Values>> {
    let wanted: BTreeMap<&str, &ParamSpec> =
        table.specs.iter().filter(|s| is_adapter(&s.name)).map(|s| (s.name.as_str(), s)).collect();
    let names: HashSet<String> = file.meta.offset_keys().into_iter().collect();
    for name in &names {
        if !wanted.contains_key(name.strip_prefix(PREFIX).unwrap_or(name)) {
            let why = format!(
                "tensor `{name}` has no place in the base model, or its module is not in `target_modules`: the adapter is of another base, or damaged"
            );
            return Err(Error::file(path, why));
        }
    }
    let (mut all, mut bytes) = (HashMap::new(), Vec::new());
    for (name, spec) in wanted {
        let full = format!("{PREFIX}{name}");
        let bad = |why: String| Error::file(path, format!("tensor `{full}` {why}"));
        let info = file.meta.info(&full).ok_or_else(|| bad("is missing".into()))?;
        let rank_at = if name.ends_with("lora_A.weight") { 0 } else { 1 };
        if info.shape.len() == 2 && info.shape[rank_at] != shape.r {
            return Err(bad(format!("has rank {}, but {CONFIG} says `r` {}", info.shape[rank_at], shape.r)));
        }
        if info.shape != spec.shape {
            return Err(bad(format!(
                "has shape {:?}, and the base model takes {:?}: the adapter is of another base",
                info.shape, spec.shape
            )));
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(bad(format!("has dtype {:?}; supported: F32, F16, BF16", info.dtype)));
        }
        let (start, end) = info.data_offsets;
        let mut values: Vec<f32> = Vec::new();
        decode(info.dtype, file.read(info, 0..end - start, &mut bytes)?, &mut values);
        if !values.iter().all(|v| v.is_finite()) {
            return Err(bad("holds NaN or infinity; the adapter is damaged".into()));
        }
        all.insert(name.to_owned(), Values::Read(values));
    }
    Ok(all)
}

/// A new adapter for a base of configuration `base`: A drawn, B zero. The same seed gives the same.
pub(super) fn fresh(base: &ModelConfig, shape: AdapterShape, init: AdapterInit, seed: u64) -> Result<AdapterWeights> {
    shape.check()?;
    let table = ParamTable::new(&ModelConfig { adapter: Some(shape), ..base.clone() })?;
    let mut values = HashMap::new();
    for (stream, spec) in table.specs.iter().filter(|s| is_adapter(&s.name)).enumerate() {
        let drawn = spec.name.ends_with("lora_A.weight");
        let (len, inp, stream) = (spec.at.len(), spec.shape[1], stream as u64);
        let made = if drawn { Values::Drawn { init, len, inp, seed, stream } } else { Values::Zeros(len) };
        values.insert(spec.name.clone(), made);
    }
    Ok(AdapterWeights { shape, values, path: None })
}
