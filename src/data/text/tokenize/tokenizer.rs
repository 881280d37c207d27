//! A tokenizer as it was read.

use super::files::{config, special_text};
use super::find_template::find_template;
use super::options::TokenizerOptions;
use crate::data::text::cuts;
use crate::data::text::template::ChatTemplate;
use crate::error::{Error, Result};
use crate::files::{self, Inside, MOST_TOKENIZER};
use crate::guard::guarded;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

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
    pub(super) inner: Tokenizer,
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
    pub(super) prefix: Vec<u32>,
    pub(super) suffix: Vec<u32>,
    pub(super) cuttable: bool,
    json: Vec<u8>,
    config: Value,
}

impl TextTokenizer {
    /// Loads from a model directory (`tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja`) or from a tokenizer file. A file called `tokenizer.json` brings its folder's configuration;
    /// any other name stands alone. Errors name the file.
    pub fn load(model: &Path, options: &TokenizerOptions) -> Result<Self> {
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
        let config = config(dir.as_ref())?;
        let mut this = Self::from_json(&path, json, config, options.eos_token.as_deref())?;
        this.template = find_template(&this.config, this.special_texts(), dir.as_ref(), &options.chat_template)?;
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
        // Names of a model's own, such as `image_token`.
        let own = self.config["extra_special_tokens"].as_object().into_iter().flatten();
        tokens.extend(own.filter_map(|(k, v)| Some((k.clone(), special_text(v)?))));
        tokens.extend(self.eos.iter().map(|eos| ("eos_token".to_owned(), eos.text.clone())));
        tokens
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
            Some(template) => config.insert("chat_template".into(), template.to_json()),
            None => config.shift_remove("chat_template"),
        };
        config.into()
    }
}

const TOKENIZER: &str = "tokenizer.json";

/// A folder without a tokenizer, and what to do about it.
fn missing(model: &Path, dir: &Inside) -> Error {
    let hint = if dir.has("tokenizer.model") {
        "it has only a SentencePiece tokenizer.model; convert it once with transformers (AutoTokenizer, save_pretrained)"
    } else {
        "a Hugging Face model directory has one"
    };
    Error::file(model, format!("no tokenizer.json here: {hint}"))
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
