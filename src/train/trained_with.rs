//! What the data know reaches the model: the end token and the chat template that they were packed with, and whether their
//! prompts were plain text.

use crate::data::shard::Dataset;
use crate::data::text::{PROMPTS_KEY, TextTokenizer, TokenizerOptions};
use crate::error::{Error, Result};
use crate::files::{self, MOST_JSON};
use crate::model::ModelDir;
use crate::observe::{Event, Observe};
use serde_json::{Map, Value, json};
use std::path::Path;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// What the files of a trained model say differently from those of the model that it was made from.
#[derive(Debug, Default)]
pub struct TrainedWith {
    /// Text of the end token, where the model's tokenizer names another.
    eos_text: Option<String>,
    /// The end token of the data, where the model does not stop at it.
    eos_id: Option<u32>,
    /// The chat template as `tokenizer_config.json` has it, and the one that is meant where none is named, where the model's
    /// is another.
    template: Option<(Value, String)>,
    /// `plain` or `chat`, as `pack` wrote it beside the shards.
    prompts: Option<String>,
}

impl TrainedWith {
    /// Of `data` for `model`, whose tokenizer made them. Warns where a template that the data were rendered with cannot be
    /// found. Errors: what lies beside the shards cannot be read.
    pub fn of(model: &ModelDir, data: &Dataset, observe: &mut dyn Observe) -> Result<Self> {
        let Some(bare) = model.tokenizer(None)? else { return Ok(Self::default()) };
        let meta = data.meta();
        let eos_text = match meta.eos_id.filter(|eos| bare.eos.as_ref().map(|e| e.id) != Some(*eos)) {
            Some(eos) => bare.token(eos),
            None => None,
        };
        let stops = |eos: &u32| model.config().eos_token_ids.contains(eos);
        let prompts = beside(data)?.get(PROMPTS_KEY).and_then(Value::as_str).map(str::to_owned);
        let template = if meta.template_sha256 == [0; 32] { None } else { template(model, data, observe)? };
        let in_range = |eos: &u32| (*eos as usize) < model.config().vocab_size;
        Ok(Self { eos_text, eos_id: meta.eos_id.filter(|e| !stops(e) && in_range(e)), template, prompts })
    }

    /// Brings the files of the model that was saved in `out` up to date.
    pub fn write(&self, out: &Path) -> Result<()> {
        if self.eos_text.is_some() || self.template.is_some() || self.prompts.is_some() {
            self.write_tokenizer(out)?;
        }
        let Some(eos) = self.eos_id else { return Ok(()) };
        for name in ["config.json", "generation_config.json"] {
            let path = out.join(name);
            // An adapter's folder has no model's configuration.
            if name == "config.json" && !path.exists() {
                continue;
            }
            let mut config = object(&path)?
                .unwrap_or_else(|| json!({"_from_model_config": true}).as_object().cloned().unwrap_or_default());
            let mut ids = match config.get("eos_token_id") {
                None | Some(Value::Null) => Vec::new(),
                Some(Value::Array(ids)) => ids.clone(),
                Some(id) => vec![id.clone()],
            };
            ids.insert(0, eos.into());
            let ids = if ids.len() == 1 { ids.remove(0) } else { Value::Array(ids) };
            config.insert("eos_token_id".into(), ids);
            write(&path, config)?;
        }
        Ok(())
    }

    fn write_tokenizer(&self, out: &Path) -> Result<()> {
        let path = out.join(TOKENIZER_CONFIG);
        let mut config = object(&path)?.unwrap_or_default();
        if let Some(eos) = &self.eos_text {
            config.insert("eos_token".into(), eos.as_str().into());
            // Where it is there, it is asked first.
            let map_path = out.join("special_tokens_map.json");
            if let Some(mut map) = object(&map_path)?.filter(|map| map.contains_key("eos_token")) {
                map.insert("eos_token".into(), eos.as_str().into());
                write(&map_path, map)?;
            }
        }
        if let Some((template, source)) = &self.template {
            let jinja = out.join(TEMPLATE);
            match config.get_mut("chat_template") {
                _ if template.is_array() && !jinja.exists() => {
                    config.insert("chat_template".into(), template.clone());
                }
                // Named templates: the others stay. A file beside them would take their place.
                Some(Value::Array(named)) if !jinja.exists() => {
                    named.retain(|t| t["name"] != "default");
                    named.insert(0, json!({"name": "default", "template": source}));
                }
                _ => {
                    files::write(&jinja, source.as_bytes())?;
                    config.insert("chat_template".into(), template.clone());
                }
            }
        }
        if let Some(prompts) = &self.prompts {
            config.insert(PROMPTS_KEY.into(), prompts.as_str().into());
        }
        write(&path, config)
    }
}

/// The template that the data were rendered with, unless the model has it already.
fn template(model: &ModelDir, data: &Dataset, observe: &mut dyn Observe) -> Result<Option<(Value, String)>> {
    let wanted = data.meta().template_sha256;
    let options = TokenizerOptions::default();
    let of = |folder: &Path| TextTokenizer::load(folder, &options).ok().and_then(|t| t.template);
    if model.load_tokenizer(&options).ok().and_then(|t| t.template).is_some_and(|own| own.sha256() == wanted) {
        return Ok(None);
    }
    match of(data.folder()).filter(|theirs| theirs.sha256() == wanted) {
        Some(theirs) => Ok(Some((theirs.to_json(), theirs.source().to_owned()))),
        None => {
            let why = format!(
                "{} has no longer the chat template that its rows were rendered with: the trained model will have the starting model's",
                data.folder().display()
            );
            observe.tell(&Event::Warning(&why)).map(|()| None)
        }
    }
}

/// `tokenizer_config.json` beside the shards; empty where there is none.
fn beside(data: &Dataset) -> Result<Map<String, Value>> {
    Ok(object(&data.folder().join(TOKENIZER_CONFIG))?.unwrap_or_default())
}

fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = files::read(path, MOST_JSON)?;
    match serde_json::from_slice(&text) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(Error::file(path, "must be a JSON object")),
        Err(e) => Err(Error::file(path, format!("malformed JSON: {e}"))),
    }
}

fn write(path: &Path, map: Map<String, Value>) -> Result<()> {
    files::write(path, format!("{:#}\n", Value::Object(map)).as_bytes())
}
