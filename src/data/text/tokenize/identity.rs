//! What a tokenizer is, in 32 bytes: the same for two descriptions of the same tokenizer, whoever wrote them.
//!
//! It covers all that decides ids: the model (vocabulary by id, merges in order), normalizer, pre-tokenizer, added tokens
//! with their flags, and what stands before and after a text. It leaves out what does not: spacing and order of keys,
//! fields at their defaults, the two notations of merges, steps that do nothing, decoder, truncation and padding, and which
//! tokens are called special (unless special tokens are split as text).

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, Tokenizer};

/// What a tokenizer is made of: read, and what its files add.
pub(super) struct Meaning<'a> {
    pub inner: &'a Tokenizer,
    /// The JSON that `inner` was read from.
    pub description: &'a Value,
    pub added: &'a BTreeMap<u32, AddedToken>,
    /// Ids before and after every text.
    pub around: (&'a [u32], &'a [u32]),
    pub split_special: bool,
}

impl Meaning<'_> {
    /// The identity. The error says what cannot be written down.
    pub fn sha256(&self) -> Result<[u8; 32], String> {
        let mut all = Sha256::new();
        let fail = |e: serde_json::Error| e.to_string();
        let normalizer = serde_json::to_value(self.inner.get_normalizer()).map_err(fail)?;
        let pre_tokenizer = serde_json::to_value(self.inner.get_pre_tokenizer()).map_err(fail)?;
        let added: Vec<Value> = self
            .added
            .iter()
            .map(|(id, t)| {
                // Passed over where special tokens are split; a token stays special whatever is added later.
                let split = self.split_special && self.inner.get_added_vocabulary().is_special_token(&t.content);
                json!([id, t.content, t.single_word, t.lstrip, t.rstrip, t.normalized, split])
            })
            .collect();
        let head = json!({
            "normalizer": step(normalizer), "pre_tokenizer": step(pre_tokenizer), "added": added,
            "prefix": self.around.0, "suffix": self.around.1, "split_special": self.split_special, "model": self.fields()?,
        });
        put(&mut all, sorted(head).to_string().as_bytes());
        let model = &self.description["model"];
        vocabulary(&mut all, &model["vocab"])?;
        for merge in model["merges"].as_array().into_iter().flatten() {
            let two = match merge {
                Value::String(text) => text.split_once(' '),
                pair => pair[0].as_str().zip(pair[1].as_str()),
            };
            let (a, b) = two.ok_or_else(|| format!("{merge} is no merge"))?;
            put(&mut all, a.as_bytes());
            put(&mut all, b.as_bytes());
        }
        Ok(all.finalize().into())
    }

    /// The model's fields with every default filled in, without its vocabulary.
    fn fields(&self) -> Result<Value, String> {
        // Vocabulary and merges are most of the file: they are not copied.
        let given = self.description["model"].as_object().into_iter().flatten();
        let given = given.filter(|(k, _)| !matches!(k.as_str(), "vocab" | "merges"));
        let mut model: Map<String, Value> = given.map(|(k, v)| (k.clone(), v.clone())).collect();
        let name = match self.inner.get_model() {
            ModelWrapper::BPE(_) => {
                model.insert("merges".into(), json!([]));
                "BPE"
            }
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "WordLevel",
            ModelWrapper::Unigram(_) => {
                model.retain(|k, _| matches!(k.as_str(), "unk_id" | "byte_fallback"));
                model.entry("unk_id").or_insert(Value::Null);
                model.entry("byte_fallback").or_insert(Value::Bool(false));
                model.insert("type".into(), "Unigram".into());
                return Ok(model.into());
            }
        };
        model.insert("vocab".into(), json!({}));
        model.insert("type".into(), name.into());
        let filled: ModelWrapper = serde_json::from_value(model.into()).map_err(|e| e.to_string())?;
        let mut filled = serde_json::to_value(filled).map_err(|e| e.to_string())?;
        if let Value::Object(fields) = &mut filled {
            fields.retain(|k, v| {
                let nothing = v.is_null() || (k == "dropout" && v.as_f64() == Some(0.0));
                let no_mark = matches!(k.as_str(), "continuing_subword_prefix" | "end_of_word_suffix") && v == "";
                !(nothing || k == "vocab" || k == "merges" || (no_mark && name == "BPE"))
            });
        }
        Ok(filled)
    }
}

/// One more part of what is hashed: its length, then itself.
fn put(all: &mut Sha256, part: &[u8]) {
    all.update((part.len() as u64).to_le_bytes());
    all.update(part);
}

/// Texts by id, or pieces with their scores.
fn vocabulary(all: &mut Sha256, vocab: &Value) -> Result<(), String> {
    match vocab {
        Value::Object(map) => {
            let mut entries: Vec<(u64, &str)> = Vec::with_capacity(map.len());
            for (text, id) in map {
                entries.push((id.as_u64().ok_or_else(|| format!("{id} is no token id"))?, text));
            }
            entries.sort_unstable();
            all.update((entries.len() as u64).to_le_bytes());
            for (id, text) in entries {
                all.update(id.to_le_bytes());
                put(all, text.as_bytes());
            }
        }
        Value::Array(pieces) => {
            all.update((pieces.len() as u64).to_le_bytes());
            for piece in pieces {
                let (text, score) = (piece[0].as_str(), piece[1].as_f64());
                let (text, score) = text.zip(score).ok_or_else(|| format!("{piece} is no piece with a score"))?;
                put(all, text.as_bytes());
                all.update(score.to_bits().to_le_bytes());
            }
        }
        _ => return Err("its model has no vocabulary".into()),
    }
    Ok(())
}

/// A normalizer or pre-tokenizer without what does nothing: sequences in one, and fields that offsets alone depend on.
fn step(value: Value) -> Value {
    let mut steps = Vec::new();
    flatten(value, &mut steps);
    match steps.len() {
        0 => Value::Null,
        1 => steps.remove(0),
        _ => steps.into(),
    }
}

fn flatten(value: Value, out: &mut Vec<Value>) {
    let Value::Object(mut map) = value else { return };
    match map.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            for name in ["normalizers", "pretokenizers"] {
                if let Some(Value::Array(steps)) = map.shift_remove(name) {
                    steps.into_iter().for_each(|s| flatten(s, out));
                }
            }
            return;
        }
        Some("Strip")
            if map.get("strip_left") == Some(&false.into()) && map.get("strip_right") == Some(&false.into()) =>
        {
            return;
        }
        Some("ByteLevel") => {
            map.shift_remove("trim_offsets");
        }
        _ => {}
    }
    out.push(map.into());
}

/// Objects by key, all the way down.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let by_key: BTreeMap<_, _> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(by_key.into_iter().collect())
        }
        Value::Array(list) => list.into_iter().map(sorted).collect(),
        other => other,
    }
}
