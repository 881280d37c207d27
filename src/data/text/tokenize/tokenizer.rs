//! A tokenizer as it was read.

use super::added::Additions;
use super::call::{fits, whole};
use super::class::Class;
use super::files::{Files, Get};
use super::find_template::find_template;
use super::identity::Meaning;
use super::limits::{self, Growth};
use super::mistral;
use super::options::TokenizerOptions;
use super::patience::Patience;
use crate::data::text::cuts;
use crate::data::text::template::ChatTemplate;
use crate::error::{Error, Result};
use crate::files::Inside;
use crate::guard::guarded;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenizers::{AddedToken, NormalizedString, Normalizer, PreTokenizerWrapper, Tokenizer};

/// Key of `tokenizer_config.json` for what a model's training prompts were: `plain` text or `chat`, through the template.
pub const PROMPTS_KEY: &str = "fusedpo_prompts";

/// A special token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Special {
    /// Its text.
    pub text: String,
    /// Its id.
    pub id: u32,
}

/// Which tokenizer a folder has: what data and model are matched by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizerIdentity {
    /// What shards made with it carry: [`TextTokenizer::sha256`].
    pub sha256: [u8; 32],
    /// Identity of what it does with a text: [`TextTokenizer::meaning`].
    pub meaning: [u8; 32],
    /// SHA-256 of the bytes of `tokenizer.json`.
    pub file_sha256: [u8; 32],
    /// Id of its EOS.
    pub eos_id: Option<u32>,
}

impl TokenizerIdentity {
    /// Whether shards that carry `sha256` were made with it, as far as their header alone tells.
    pub fn made(&self, sha256: &[u8; 32]) -> bool {
        [&self.sha256, &self.meaning].contains(&sha256)
    }
}

/// A tokenizer with what its configuration adds: further tokens, EOS, BOS, chat template.
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
    /// What shards carry: SHA-256 of `tokenizer.json`'s bytes where that file decides the ids, as it does for almost every
    /// model; [`TextTokenizer::meaning`] where the other files change how texts are read.
    pub sha256: [u8; 32],
    meaning: [u8; 32],
    pub(super) prefix: Vec<u32>,
    pub(super) suffix: Vec<u32>,
    pub(super) cuttable: bool,
    /// Whether `tokenizer.json` does not know its EOS.
    eos_is_new: bool,
    /// How much longer its normalizer can make a text.
    pub(super) growth: Growth,
    /// What its patterns may cost.
    pub(super) patience: Patience,
    json: Vec<u8>,
    named: Vec<(String, String)>,
    added: BTreeMap<u32, AddedToken>,
    config: Map<String, Value>,
}

impl TextTokenizer {
    /// Loads from a model directory (`tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `added_tokens.json`, `chat_template.jinja`, and `config.json` for the model's type) or from a tokenizer file. A file
    /// called `tokenizer.json` brings its folder's configuration; any other name stands alone. Errors name the file.
    pub fn load(model: &Path, options: &TokenizerOptions) -> Result<Self> {
        Self::found(Files::read(model, None)?, options)
    }

    fn found((files, dir): (Files, Option<Inside>), options: &TokenizerOptions) -> Result<Self> {
        let mut this = Self::build(files, options.eos_token.as_deref())?;
        let config = Value::Object(this.config.clone());
        this.template = find_template(&config, this.named.clone(), dir.as_ref(), &options.chat_template)?;
        Ok(this)
    }

    /// [`TextTokenizer::load`] of the model directory `dir`, whose `config.json` is read already.
    pub fn load_with(dir: &Path, config: &[u8], options: &TokenizerOptions) -> Result<Self> {
        Self::found(Files::read(dir, Some(config))?, options)
    }

    /// Of a folder whose files are read already, without a chat template; `None` where it has no `tokenizer.json`. `dir`: the
    /// folder, for messages; `eos`: EOS text in place of the configuration's.
    pub fn of_files(dir: &Path, get: &Get<'_>, eos: Option<&str>) -> Result<Option<Self>> {
        Files::of(dir, get)?.map(|files| Self::build(files, eos)).transpose()
    }

    fn build(files: Files, eos: Option<&str>) -> Result<Self> {
        let path = files.path.clone();
        let bad = |why: String| Error::file(&path, why);
        let file: Value = serde_json::from_slice(&files.json).map_err(|e| bad(format!("not a tokenizer.json: {e}")))?;
        let class = Class::of(&files);
        let growth = whole(&path, "read its normalizer", || Ok(limits::check(&file)))?.map_err(bad)?;
        // Added tokens are normalized where they are read.
        let listed_texts = file["added_tokens"].as_array().into_iter().flatten().filter_map(|t| t["content"].as_str());
        // What cannot be read here cannot be read below.
        let patience = guarded(|| Patience::of(&file).unwrap_or_default()).unwrap_or_default();
        let normalizes = |text: &str| {
            fits(&path, &growth, text)?;
            whole(&path, "normalize its added tokens", || patience.normalizes(text))
        };
        listed_texts.chain(PROBES).try_for_each(normalizes)?;
        let by_file = read(&path, &files.json)?;
        let before = plainly(&files, &by_file, eos);
        let mut additions = Additions::read(&files, &file, &class, eos)?;
        additions.tokens.iter().try_for_each(|t| normalizes(&t.content))?;
        let eos_is_new = additions.text("eos_token").is_some_and(|eos| by_file.token_to_id(eos).is_none());
        let (inner, mut description, mut alone) = match class.rebuilt(&files, &file)? {
            Some(rebuilt) => (read(&path, rebuilt.to_string().as_bytes())?, rebuilt, Some((by_file, file))),
            None => (by_file, file, None),
        };
        let mut inner = extended(&path, inner, &additions, eos)?;
        if let Some(pre_tokenizer) = mistral::mended(&files, &description["pre_tokenizer"], inner.get_vocab_size(true))?
        {
            alone = Some(alone.map_or_else(|| Ok((read(&path, &files.json)?, description.clone())), Ok)?);
            let parsed: PreTokenizerWrapper =
                whole(&path, "mend its pattern", || Ok(serde_json::from_value(pre_tokenizer.clone())?))?;
            inner.with_pre_tokenizer(Some(parsed));
            description["pre_tokenizer"] = pre_tokenizer;
            mistral::note(&mut additions.config);
        }
        let patience = whole(&path, "read its patterns", || Patience::of(&description))?;
        let added: BTreeMap<u32, AddedToken> = inner.get_added_tokens_decoder().into_iter().collect();
        description["added_tokens"] = added.iter().map(|(id, token)| listed(*id, token)).collect();
        let (prefix, suffix) = around(&path, &mut inner, &patience)?;
        let split_special = additions.split_special;
        let meaning = Meaning {
            inner: &inner,
            description: &description,
            added: &added,
            around: (&prefix, &suffix),
            split_special,
        };
        let meaning = meaning.sha256().map_err(bad)?;
        // Whether whoever reads `tokenizer.json` alone gives the same ids.
        let decides = match alone {
            None => !split_special && same_tokens(&before, &added),
            Some((mut inner, description)) => {
                let patience = Patience::of(&description).unwrap_or_default();
                let (prefix, suffix) = around(&path, &mut inner, &patience)?;
                let (inner, description, added) = (&inner, &description, &before);
                let alone = Meaning { inner, description, added, around: (&prefix, &suffix), split_special: false };
                alone.sha256().map_err(bad)? == meaning
            }
        };
        let special = |key: &str| match additions.text(key) {
            None => Ok(None),
            Some(text) => match inner.token_to_id(text) {
                Some(id) => Ok(Some(Special { text: text.to_owned(), id })),
                None => Err(not_in_vocabulary(&path, key, text)),
            },
        };
        let (eos, bos) = (special("eos_token")?, special("bos_token")?);
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id.saturating_add(1));
        Ok(Self {
            sha256: if decides { Sha256::digest(&files.json).into() } else { meaning },
            meaning,
            cuttable: cuts::proven(&description) && !split_special,
            config: additions.config,
            named: additions.named,
            template: None,
            path: path.clone(),
            inner,
            eos,
            bos,
            vocab_size,
            prefix,
            suffix,
            eos_is_new,
            growth,
            patience,
            json: files.json,
            added,
        })
    }

    /// Identity of what it does with a text, whoever wrote its files: two tokenizers with the same one give the same ids.
    pub fn meaning(&self) -> [u8; 32] {
        self.meaning
    }

    /// What data and model are matched by.
    pub fn identity(&self) -> TokenizerIdentity {
        TokenizerIdentity {
            sha256: self.sha256,
            meaning: self.meaning,
            file_sha256: Sha256::digest(&self.json).into(),
            eos_id: self.eos.as_ref().map(|eos| eos.id),
        }
    }

    /// Whether `id` is a special token (BOS, EOS, chat markers).
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).is_some_and(|t| t.special)
    }

    /// The token of an id, as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Ids that [`TextTokenizer::encode`] puts before every text (BOS, or nothing).
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// The bytes of `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// What the prompts were that the model was trained on, where its files say so: `plain` or `chat`.
    pub fn prompts(&self) -> Option<&str> {
        self.config.get(PROMPTS_KEY)?.as_str()
    }

    /// What a reader should know about this tokenizer: a flag that asks for BOS and is not obeyed, an end token that no
    /// vocabulary has.
    pub fn warnings(&self) -> Vec<String> {
        let adds = self.bos.as_ref().is_some_and(|bos| self.prefix.contains(&bos.id));
        let asks = self.config.get("add_bos_token") == Some(&true.into()) && self.bos.is_some();
        let mut warnings = Vec::new();
        if asks && !adds {
            warnings.push(
                "tokenizer_config.json has add_bos_token, but tokenizer.json has no post_processor that adds it: plain text \
                 gets no BOS, as in transformers 5"
                    .to_owned(),
            );
        }
        if let Some(eos) = self.eos.as_ref().filter(|_| self.eos_is_new) {
            warnings.push(format!(
                "the end token `{}` is not in tokenizer.json: as in transformers it gets a new id, {}, for which a model has \
                 no trained row",
                eos.text.escape_debug(),
                eos.id
            ));
        }
        warnings
    }

    /// A `tokenizer_config.json` that says what this tokenizer was used with, EOS, added tokens and template included, so
    /// that a folder with it and [`TextTokenizer::json`] is this tokenizer.
    pub fn config_json(&self) -> Value {
        let mut config = self.config.clone();
        config.shift_remove("chat_template");
        if let Some(template) = &self.template {
            config.insert("chat_template".into(), template.to_json());
        }
        config.into()
    }
}

fn not_in_vocabulary(path: &Path, key: &str, text: &str) -> Error {
    let why = format!(
        "{key} `{}` is not in the vocabulary; name one that is (`options.eos_token`, tokenizer_config.json)",
        text.escape_debug()
    );
    Error::file(path, why)
}

/// `inner` with the tokens that its files add.
fn extended(path: &Path, mut inner: Tokenizer, additions: &Additions, eos: Option<&str>) -> Result<Tokenizer> {
    if let Some(eos) = eos.filter(|eos| additions.eos_is_new && inner.token_to_id(eos).is_none()) {
        return Err(not_in_vocabulary(path, "eos_token", eos));
    }
    whole(path, "add the tokens of its configuration", || inner.add_tokens(additions.tokens.clone()))?;
    whole(path, "normalize its added tokens", || Ok(same_once_normalized(&inner)))?.map_or(Ok(()), |(a, b)| {
        let why = format!(
            "added tokens `{}` and `{}` are the same once normalized, and it is left to chance which is found; take one away",
            a.escape_debug(),
            b.escape_debug()
        );
        Err(Error::file(path, why))
    })?;
    inner.set_encode_special_tokens(additions.split_special);
    Ok(inner)
}

/// Two added tokens that are looked for as the same text.
fn same_once_normalized(inner: &Tokenizer) -> Option<(String, String)> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for token in inner.get_added_tokens_decoder().into_values().filter(|t| t.normalized) {
        let mut text = NormalizedString::from(token.content.as_str());
        inner.get_normalizer().map_or(Ok(()), |n| n.normalize(&mut text)).ok()?;
        if let Some(other) = seen.insert(text.get().to_owned(), token.content.clone()) {
            return Some((token.content.clone().min(other.clone()), token.content.max(other)));
        }
    }
    None
}

/// An entry of `tokenizer.json`'s list.
fn listed(id: u32, token: &AddedToken) -> Value {
    let mut value = json!(token);
    value["id"] = id.into();
    value
}

/// A tokenizer from its description, without truncation and padding: transformers does either only when asked to.
fn read(path: &Path, json: &[u8]) -> Result<Tokenizer> {
    // The crate panics on some damaged descriptions.
    let mut inner = guarded(|| Tokenizer::from_bytes(json))
        .ok_or_else(|| Error::file(path, "not a tokenizer.json: it cannot be decoded"))?
        .map_err(|e| Error::file(path, format!("not a tokenizer.json: {e}")))?;
    if let tokenizers::ModelWrapper::BPE(bpe) = inner.get_model()
        && bpe.dropout.is_some_and(|p| p > 0.0)
    {
        return Err(Error::file(path, "BPE dropout makes tokenising random; set `model.dropout` to null"));
    }
    inner.with_truncation(None).map_err(|e| Error::file(path, e.to_string()))?;
    inner.with_padding(None);
    Ok(inner)
}

/// The added tokens as a reader of `tokenizer.json` alone has them, who only makes the named special tokens that the
/// vocabulary has ones that are matched whole.
fn plainly(files: &Files, inner: &Tokenizer, eos: Option<&str>) -> BTreeMap<u32, AddedToken> {
    let mut said = files.special_tokens_map.clone().unwrap_or_default();
    said.extend(files.config.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())));
    let text = |k: &str| said.get(k).and_then(|v| v.as_str().or_else(|| v["content"].as_str()));
    let mut added: BTreeMap<u32, AddedToken> = inner.get_added_tokens_decoder().into_iter().collect();
    for text in ["bos_token", "eos_token", "unk_token", "pad_token"].into_iter().filter_map(text).chain(eos) {
        if let (Some(id), false) = (inner.token_to_id(text), inner.get_added_vocabulary().is_special_token(text)) {
            added.insert(id, AddedToken::from(text, true));
        }
    }
    added
}

/// Whether both lists find the same tokens in a text.
fn same_tokens(a: &BTreeMap<u32, AddedToken>, b: &BTreeMap<u32, AddedToken>) -> bool {
    let same = |a: &AddedToken, b: &AddedToken| {
        let flags = |t: &AddedToken| (t.single_word, t.lstrip, t.rstrip, t.normalized);
        a.content == b.content && flags(a) == flags(b)
    };
    a.len() == b.len() && a.iter().zip(b).all(|((i, a), (j, b))| i == j && same(a, b))
}

/// Texts that most tokenizers have ids for.
const PROBES: [&str; 4] = ["a", "two words", "1", "."];

/// What the tokenizer puts before and after a text: its file's post-processor decides alone, as in transformers 5, which
/// ignores `add_bos_token` where there is a `tokenizer.json`. Leaves `inner` without a post-processor.
fn around(path: &Path, inner: &mut Tokenizer, patience: &Patience) -> Result<(Vec<u32>, Vec<u32>)> {
    let encode = |text: &str, special: bool| {
        whole(path, "tokenise", || patience.encodes(inner, text))?;
        whole(path, "tokenise with its post_processor", || inner.encode_fast(text, special))
            .map(|e| e.get_ids().to_vec())
    };
    // A text that gives ids: where none does, nothing tells before from after.
    let own = inner.get_added_tokens_decoder().into_values().map(|t| t.content);
    let mut probe = "a".to_owned();
    for text in PROBES.into_iter().map(str::to_owned).chain(own) {
        if !encode(&text, false)?.is_empty() {
            probe = text;
            break;
        }
    }
    let (with, without) = (encode(&probe, true)?, encode(&probe, false)?);
    let at = (0..=with.len().saturating_sub(without.len())).find(|i| with[*i..].starts_with(&without)).unwrap_or(0);
    let (prefix, rest) = with.split_at(at.min(with.len()));
    let suffix = rest.get(without.len()..).unwrap_or_default().to_vec();
    if prefix.len() + suffix.len() > limits::MOST_AROUND {
        let why =
            format!("its post_processor adds {} tokens, at most {}", prefix.len() + suffix.len(), limits::MOST_AROUND);
        return Err(Error::file(path, why));
    }
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
