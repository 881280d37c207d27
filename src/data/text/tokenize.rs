//! A model's tokenizer: text to ids exactly as `transformers`' `tokenizer(text)` and TRL 1.16 give them.
//!
//! Every completion must be tokenised together with its prompt, because tokens merge across the boundary. Done plainly
//! that reads the prompt K + 1 times. [`TextTokenizer::encode_family`] reads it once where that is provably the same: for
//! the pre-tokenizers listed in `cuts`, a space between two ASCII letters always ends one piece and begins the next,
//! whatever stands further left or right, so the text may be cut there. Elsewhere every text is tokenised whole.

use super::cuts;
use super::template::ChatTemplate;
use crate::error::{Error, Result};
use crate::guard::guarded;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// Which chat template a tokenizer gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TemplateChoice {
    /// The model's own: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`.
    #[default]
    Auto,
    /// None: conversations are refused.
    None,
    /// This file's text.
    File(PathBuf),
}

/// What a tokenizer folder does not say, or should not decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerOptions {
    /// EOS text in place of the configuration's.
    pub eos_token: Option<String>,
    /// Chat template.
    pub chat_template: TemplateChoice,
}

/// A special token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Special {
    /// Its text.
    pub text: String,
    /// Its id.
    pub id: u32,
}

/// A tokenizer with what its configuration adds: EOS, BOS, chat template.
pub struct TextTokenizer {
    inner: Tokenizer,
    /// Where it was read from, for messages.
    pub path: PathBuf,
    /// End of sequence; plain responses end with it.
    pub eos: Option<Special>,
    /// Beginning of sequence.
    pub bos: Option<Special>,
    /// The chat template, if there is one.
    pub template: Option<ChatTemplate>,
    /// One more than the greatest id.
    pub vocab_size: u32,
    /// SHA-256 of `tokenizer.json`'s bytes.
    pub sha256: [u8; 32],
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    cuttable: bool,
    json: Vec<u8>,
    config: Value,
}

impl TextTokenizer {
    /// Loads from a model directory (`tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja`) or from a tokenizer file. A file called `tokenizer.json` brings its folder's configuration;
    /// any other name stands alone. Errors name the file.
    pub fn load(model: &Path, options: &TokenizerOptions) -> Result<Self> {
        let (path, dir) = if model.is_dir() {
            (model.join("tokenizer.json"), Some(model))
        } else if model.file_name().is_some_and(|n| n == "tokenizer.json") {
            (model.to_owned(), model.parent())
        } else {
            (model.to_owned(), None)
        };
        if model.is_dir() && !path.is_file() {
            let hint = if model.join("tokenizer.model").is_file() {
                "it has only a SentencePiece tokenizer.model; convert it once with transformers (AutoTokenizer, save_pretrained)"
            } else {
                "a Hugging Face model directory has one"
            };
            return Err(Error::file(model, format!("no tokenizer.json here: {hint}")));
        }
        let json = std::fs::read(&path).map_err(Error::io(&path, "read the tokenizer"))?;
        let config = config(dir)?;
        let mut this = Self::from_json(&path, json, config, options.eos_token.as_deref())?;
        this.template = this.find_template(dir, &options.chat_template)?;
        Ok(this)
    }

    fn from_json(path: &Path, json: Vec<u8>, config: Value, eos: Option<&str>) -> Result<Self> {
        // The crate panics on some damaged descriptions.
        let mut inner = guarded(|| Tokenizer::from_bytes(&json))
            .ok_or_else(|| Error::file(path, "not a tokenizer.json: it cannot be decoded"))?
            .map_err(|e| Error::file(path, format!("not a tokenizer.json: {e}")))?;
        let description: Value = serde_json::from_slice(&json).map_err(|e| Error::file(path, e.to_string()))?;
        if description["model"]["dropout"].as_f64().is_some_and(|p| p > 0.0) {
            return Err(Error::file(path, "BPE dropout makes tokenising random; set `model.dropout` to null"));
        }
        // transformers truncates and pads only when asked to.
        inner.with_truncation(None).map_err(|e| Error::file(path, e.to_string()))?;
        inner.with_padding(None);
        let specials = ["bos_token", "eos_token", "unk_token", "pad_token"];
        let texts: Vec<String> =
            specials.iter().filter_map(|k| special_text(&config[*k])).chain(eos.map(str::to_owned)).collect();
        // A special token that the vocabulary has but `added_tokens` lacks must still be matched whole.
        let missing: Vec<_> = texts
            .iter()
            .filter(|t| inner.token_to_id(t).is_some() && !inner.get_added_vocabulary().is_special_token(t))
            .map(|t| tokenizers::AddedToken::from(t.as_str(), true))
            .collect();
        let added_here = !missing.is_empty();
        inner.add_special_tokens(missing).map_err(|e| Error::file(path, e.to_string()))?;
        let special = |key: &str, text: Option<String>| match text {
            None => Ok(None),
            Some(text) => match inner.token_to_id(&text) {
                Some(id) => Ok(Some(Special { text, id })),
                None => Err(Error::file(
                    path,
                    format!(
                        "{key} `{text}` is not in the vocabulary; name one that is (`options.eos_token`, tokenizer_config.json)"
                    ),
                )),
            },
        };
        let eos = special("eos_token", eos.map(str::to_owned).or_else(|| special_text(&config["eos_token"])))?;
        let bos = special("bos_token", special_text(&config["bos_token"]))?;
        let (prefix, suffix) = around(path, &mut inner)?;
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id.saturating_add(1));
        let cuttable = cuts::proven(&description) && (!added_here || texts.iter().all(|t| !cuts::spans_a_cut(t)));
        let sha256 = Sha256::digest(&json).into();
        let path = path.to_owned();
        Ok(Self { inner, path, eos, bos, template: None, vocab_size, sha256, prefix, suffix, cuttable, json, config })
    }

    fn find_template(&self, dir: Option<&Path>, choice: &TemplateChoice) -> Result<Option<ChatTemplate>> {
        let read = |file: &Path| std::fs::read_to_string(file).map_err(Error::io(file, "read the chat template"));
        let (source, origin) = match choice {
            TemplateChoice::None => return Ok(None),
            TemplateChoice::File(file) => (read(file)?, file.clone()),
            TemplateChoice::Auto => {
                let file = dir.map(|d| d.join("chat_template.jinja")).filter(|f| f.is_file());
                match (file, dir) {
                    (Some(file), _) => (read(&file)?, file),
                    (None, Some(dir)) => match config_template(&self.config) {
                        Some(source) => (source, dir.join("tokenizer_config.json")),
                        None => return Ok(None),
                    },
                    (None, None) => return Ok(None),
                }
            }
        };
        let tokens = self.special_texts();
        ChatTemplate::new(source, tokens, &origin).map(Some)
    }

    /// Every `*_token` string of the configuration, as the chat template sees them.
    fn special_texts(&self) -> Vec<(String, String)> {
        let mut tokens: Vec<(String, String)> = self
            .config
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(k, _)| k.ends_with("_token"))
            .filter_map(|(k, v)| Some((k.clone(), special_text(v)?)))
            .filter(|(k, _)| k != "eos_token")
            .collect();
        tokens.extend(self.eos.iter().map(|eos| ("eos_token".to_owned(), eos.text.clone())));
        tokens
    }

    /// `tokenizer(text)`: ids with what the post-processor adds around them (BOS for Llama).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.prefix.clone();
        self.encode_into(text, &mut ids)?;
        ids.extend_from_slice(&self.suffix);
        Ok(ids)
    }

    /// Ids of `text` alone: what a rendered chat template needs, which brings its own special tokens.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::file(&self.path, format!("cannot tokenise: {e}")))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// Ids of several texts, each exactly as [`TextTokenizer::encode`] (or `encode_bare`, where `special` is false) gives
    /// them alone; what they have in common is tokenised once where the tokenizer allows it.
    pub fn encode_family(&self, texts: &[String], special: bool) -> Result<Vec<Vec<u32>>> {
        let (before, after): (&[u32], &[u32]) = if special { (&self.prefix, &self.suffix) } else { (&[], &[]) };
        let cut = if self.cuttable { cuts::last_common_cut(texts) } else { None };
        let mut head = before.to_vec();
        if let (Some(at), Some(first)) = (cut, texts.first()) {
            self.encode_into(&first[..at], &mut head)?;
        }
        let one = |text: &String| {
            let mut ids = Vec::with_capacity(head.len() + (text.len() - cut.unwrap_or(0)) / 3 + after.len());
            ids.extend_from_slice(&head);
            self.encode_into(&text[cut.unwrap_or(0)..], &mut ids)?;
            ids.extend_from_slice(after);
            Ok(ids)
        };
        texts.iter().map(one).collect()
    }

    /// Text of `ids`.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner.decode(ids, skip_special_tokens).map_err(|e| Error::file(&self.path, format!("cannot decode: {e}")))
    }

    /// `ids` as text pieces, one per token; a token that ends inside a character gets an empty piece and the character
    /// stands with the token that completes it.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>> {
        let mut stream = self.inner.decode_stream(false);
        let step = |id: &u32| stream.step(*id).map(Option::unwrap_or_default);
        ids.iter()
            .map(step)
            .collect::<Result<_, _>>()
            .map_err(|e| Error::file(&self.path, format!("cannot decode: {e}")))
    }

    /// Whether `id` is a special token (BOS, EOS, chat markers).
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// Ids that [`TextTokenizer::encode`] puts before every text (BOS, or nothing).
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// The bytes of `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// What a reader should know about this tokenizer: a flag that asks for BOS and is not obeyed.
    pub fn warning(&self) -> Option<String> {
        let adds = self.bos.as_ref().is_some_and(|bos| self.prefix.contains(&bos.id));
        let asks = self.config["add_bos_token"] == true && self.bos.is_some();
        (asks && !adds).then(|| {
            "tokenizer_config.json has add_bos_token, but tokenizer.json has no post_processor that adds it: plain text gets \
             no BOS, as in transformers 5"
                .to_owned()
        })
    }

    /// A `tokenizer_config.json` that says what this tokenizer was used with, EOS and template included.
    pub fn config_json(&self) -> Value {
        let mut config = self.config.as_object().cloned().unwrap_or_default();
        if let Some(eos) = &self.eos {
            config.insert("eos_token".into(), eos.text.clone().into());
        }
        match &self.template {
            Some(template) => config.insert("chat_template".into(), template.source().into()),
            None => config.shift_remove("chat_template"),
        };
        config.into()
    }
}

/// `tokenizer_config.json` over `special_tokens_map.json`; an empty object where there is neither.
fn config(dir: Option<&Path>) -> Result<Value> {
    let mut merged = serde_json::Map::new();
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some(file) = dir.map(|d| d.join(name)).filter(|f| f.is_file()) else { continue };
        let text = std::fs::read_to_string(&file).map_err(Error::io(&file, "read"))?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => merged.extend(map.into_iter().filter(|(_, v)| !v.is_null())),
            Ok(_) => return Err(Error::file(file, "must be a JSON object")),
            Err(e) => return Err(Error::file(file, format!("malformed JSON: {e}"))),
        }
    }
    Ok(merged.into())
}

/// A special token's text: a string, or an object with `content`.
fn special_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// The template of `tokenizer_config.json`: a string, or the one named `default` in a list.
fn config_template(config: &Value) -> Option<String> {
    match &config["chat_template"] {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => {
            let pick =
                named.iter().find(|t| t["name"] == "default").or(if named.len() == 1 { named.first() } else { None });
            pick.and_then(|t| t["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    }
}

/// What the tokenizer puts before and after a text: its file's post-processor decides alone, as in transformers 5, which
/// ignores `add_bos_token` where there is a `tokenizer.json`. Leaves `inner` without a post-processor.
fn around(path: &Path, inner: &mut Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let encode = |text: &str, special: bool| {
        inner.encode_fast(text, special).map(|e| e.get_ids().to_vec()).map_err(|e| Error::file(path, e.to_string()))
    };
    let (with, without) = (encode("a", true)?, encode("a", false)?);
    let at = (0..=with.len().saturating_sub(without.len())).find(|i| with[*i..].starts_with(&without)).unwrap_or(0);
    let (prefix, rest) = with.split_at(at.min(with.len()));
    let suffix = rest.get(without.len()..).unwrap_or_default().to_vec();
    for probe in ["a", "two words", ""] {
        let want = [prefix, &encode(probe, false)?, &suffix].concat();
        if encode(probe, true)? != want {
            return Err(Error::file(
                path,
                "its post_processor does more than add tokens before and after; not supported",
            ));
        }
    }
    let prefix = prefix.to_vec();
    inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
    Ok((prefix, suffix))
}
