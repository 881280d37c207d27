//! The files of a tokenizer folder, as they were read.

use crate::error::{Error, Result};
use crate::files::{self, Inside, MOST_JSON, MOST_TOKENIZER};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

const TOKENIZER: &str = "tokenizer.json";

/// The content of a folder's file, if there is one of that name.
pub type Get<'a> = dyn Fn(&str) -> Result<Option<Vec<u8>>> + 'a;

/// A `tokenizer.json` and what stands beside it.
pub(super) struct Files {
    /// `tokenizer.json`, or the tokenizer file of another name.
    pub path: PathBuf,
    /// Bytes of `path`.
    pub json: Vec<u8>,
    /// `tokenizer_config.json`; empty where there is none.
    pub config: Map<String, Value>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<Map<String, Value>>,
    /// `added_tokens.json`: text to id.
    pub added_tokens: Option<Map<String, Value>>,
    /// `config.json` of the model, which decides with `tokenizer_config.json` how transformers reads the tokenizer.
    pub model: Map<String, Value>,
}

impl Files {
    /// Of a model directory, or of a tokenizer file: one called `tokenizer.json` brings its folder's configuration; any
    /// other name stands alone. `config`: the content of `config.json`, where it is read already. Errors name the file.
    pub fn read(model: &Path, config: Option<&[u8]>) -> Result<(Self, Option<Inside>)> {
        let (path, dir) = if model.is_dir() {
            (model.join(TOKENIZER), Some(model))
        } else if model.file_name().is_some_and(|n| n == TOKENIZER) {
            (model.to_owned(), Some(model.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))))
        } else {
            (model.to_owned(), None)
        };
        let dir = dir.map(Inside::new).transpose()?;
        let json = match &dir {
            Some(dir) if model.is_dir() => dir.read(TOKENIZER, MOST_TOKENIZER)?.ok_or_else(|| missing(model, dir))?,
            // Named by the user, it may be a link to wherever.
            _ => files::read(model, MOST_TOKENIZER).map_err(|e| e.doing("read the tokenizer"))?,
        };
        let beside = |name: &str| match (config, &dir) {
            (Some(config), _) if name == "config.json" => Ok(Some(config.to_owned())),
            (_, Some(dir)) => dir.read(name, MOST_JSON),
            (_, None) => Ok(None),
        };
        Ok((Self::beside(path, json, &beside)?, dir))
    }

    /// Of a folder whose files are read already; `None` where it has no `tokenizer.json`.
    pub fn of(dir: &Path, get: &Get<'_>) -> Result<Option<Self>> {
        let Some(json) = get(TOKENIZER)? else { return Ok(None) };
        Self::beside(dir.join(TOKENIZER), json, get).map(Some)
    }

    fn beside(path: PathBuf, json: Vec<u8>, get: &Get<'_>) -> Result<Self> {
        let object = |name: &str| get(name)?.map(|text| object(&path.with_file_name(name), &text)).transpose();
        let config = object("tokenizer_config.json")?.unwrap_or_default();
        let others = config.get("fast_tokenizer_files").and_then(Value::as_array);
        if let Some(other) = others.into_iter().flatten().filter_map(Value::as_str).find(|n| *n != TOKENIZER) {
            let why = format!("`fast_tokenizer_files` names {other}: versioned tokenizer files are not supported");
            return Err(Error::file(path.with_file_name("tokenizer_config.json"), why));
        }
        Ok(Self {
            json,
            config,
            special_tokens_map: object("special_tokens_map.json")?,
            added_tokens: object("added_tokens.json")?,
            model: object("config.json")?.unwrap_or_default(),
            path,
        })
    }

    /// An error about a file beside `tokenizer.json`.
    pub fn bad(&self, name: &str, why: impl Into<String>) -> Error {
        Error::file(self.path.with_file_name(name), why)
    }
}

/// A folder without a tokenizer, and what to do about it.
fn missing(model: &Path, dir: &Inside) -> Error {
    let hint = if dir.has("tokenizer.model") {
        "it has only a SentencePiece tokenizer.model; convert it once with transformers (AutoTokenizer, save_pretrained)"
    } else {
        "a Hugging Face model directory has one"
    };
    Error::file(model, format!("no tokenizer.json here: {hint}"))
}

/// The object that a file holds.
fn object(file: &Path, text: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::file(file, "must be a JSON object")),
        Err(e) => Err(Error::file(file, format!("malformed JSON: {e}"))),
    }
}
