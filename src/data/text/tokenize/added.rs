//! The tokens that a folder's files add to its vocabulary, in the order and with the flags that `transformers` 5 gives them.
//!
//! They stand in up to four places. `added_tokens_decoder` of `tokenizer_config.json`, where it is there, replaces
//! `special_tokens_map.json`, `added_tokens.json` and the list in `tokenizer.json`; otherwise the map overrides
//! the configuration, and both lists count. What is added is the ids' order of the lists, then the named special tokens
//! (`bos_token`, ..., and every other `*_token`), then `extra_special_tokens`. A text that the vocabulary has keeps its id,
//! others get the next ones: the ids that the files write beside them decide only the order.

use super::class::{Class, truthy};
use super::files::Files;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tokenizers::AddedToken;

/// The names that every tokenizer has, in transformers' order.
pub(super) const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token as a file writes it: bare, or with its flags.
#[derive(Clone, Debug)]
enum Token {
    Text(String),
    Flagged(Flagged),
}

/// `normalized` that is not said is the opposite of `special`.
#[derive(Clone, Debug)]
struct Flagged {
    token: AddedToken,
    normalized: Option<bool>,
}

impl Flagged {
    fn resolved(mut self) -> AddedToken {
        self.token.normalized = self.normalized.unwrap_or(!self.token.special);
        self.token
    }

    fn json(&self) -> Value {
        let mut value = json!(self.token);
        match self.normalized {
            Some(normalized) => value["normalized"] = normalized.into(),
            None => drop(value.as_object_mut().and_then(|map| map.shift_remove("normalized"))),
        }
        value
    }
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Text(text) => text,
            Token::Flagged(f) => &f.token.content,
        }
    }

    fn is(&self, other: &Token) -> bool {
        match (self, other) {
            (Token::Text(a), Token::Text(b)) => a == b,
            (Token::Flagged(a), Token::Flagged(b)) => a.clone().resolved() == b.clone().resolved(),
            _ => false,
        }
    }

    /// As `tokenizer_config.json` writes it.
    fn json(&self) -> Value {
        match self {
            Token::Text(text) => text.as_str().into(),
            Token::Flagged(f) => {
                let mut value = f.json();
                value["__type"] = "AddedToken".into();
                value
            }
        }
    }

    /// A string, or an object with `content` and flags. The error is what is wrong with it.
    fn of(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Ok(Token::Text(text.clone())),
            Value::Object(map) if map.contains_key("content") => Ok(Token::Flagged(flagged(map)?)),
            other => Err(format!("{other} is no token: a text, or an object with `content`")),
        }
    }
}

fn flagged(map: &Map<String, Value>) -> Result<Flagged, String> {
    let flag = |name: &str| match map.get(name) {
        None => Ok(None),
        Some(Value::Bool(b)) => Ok(Some(*b)),
        Some(other) => Err(format!("`{name}` is {other}, expected true or false")),
    };
    let content = match map.get("content") {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => return Err(format!("`content` is {other}, expected a text")),
    };
    let normalized = flag("normalized")?;
    let token = AddedToken::from(content, flag("special")?.unwrap_or(false))
        .single_word(flag("single_word")?.unwrap_or(false))
        .lstrip(flag("lstrip")?.unwrap_or(false))
        .rstrip(flag("rstrip")?.unwrap_or(false));
    Ok(Flagged { token, normalized })
}

/// What the files say beside `tokenizer.json`'s own tokenizer.
pub(super) struct Additions {
    /// To add, in this order.
    pub tokens: Vec<AddedToken>,
    /// Text of every named special token, in transformers' order: what a chat template sees.
    pub named: Vec<(String, String)>,
    /// A `tokenizer_config.json` that says all this by itself.
    pub config: Map<String, Value>,
    /// Special tokens in the text are tokenised as text.
    pub split_special: bool,
    /// Whether the EOS that was asked for stands in none of the lists, so that only the vocabulary can have it.
    pub eos_is_new: bool,
}

impl Additions {
    /// Text of a named special token.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(n, _)| n == name).map(|(_, text)| text.as_str())
    }

    /// Of `files`, whose `tokenizer.json` is `description` and is read as `class`; `eos` in place of the configuration's.
    pub fn read(files: &Files, description: &Value, class: &Class, eos: Option<&str>) -> Result<Self> {
        let mut said = Said::of(files, eos);
        let listed = said.listed(files, description)?;
        let named = said.named(files, description, class, &listed)?;
        let extra = said.extra(files)?;
        // What the tokenizer has before: nothing where the class builds it anew.
        let has: Vec<&str> = match class {
            Class::Plain => description["added_tokens"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|t| t["content"].as_str())
                .collect(),
            _ => Vec::new(),
        };
        let known: Vec<String> =
            has.iter().map(|t| (*t).to_owned()).chain(listed.values().map(|t| t.token.content.clone())).collect();
        let config = said.config(class, &listed, &named, &extra);
        let mut tokens: Vec<Token> = listed.into_values().map(Token::Flagged).collect();
        let eos_at = named.iter().position(|(name, _)| name == "eos_token");
        let mut eos_is_new = eos.is_some();
        for (i, token) in named.iter().map(|(_, t)| t).chain(&extra).enumerate() {
            if Some(i) != eos_at && eos.is_some_and(|eos| eos == token.text()) {
                eos_is_new = false;
            }
            if !known.iter().any(|t| t == token.text()) && !tokens.iter().any(|t| t.is(token)) {
                tokens.push(token.clone());
            }
        }
        eos_is_new &= !eos.is_some_and(|eos| known.iter().any(|t| t == eos));
        let is_named = |text: &str| named.iter().any(|(_, t)| t.text() == text);
        let mut tokens: Vec<AddedToken> = tokens
            .into_iter()
            .map(|token| match token {
                Token::Text(text) => AddedToken::from(text, true),
                Token::Flagged(mut f) => {
                    f.token.special |= is_named(&f.token.content);
                    f.resolved()
                }
            })
            .collect();
        if *class == Class::Qwen2 {
            // The class adds all of them once more, without flags.
            let mut seen: Vec<&str> = Vec::new();
            for text in named.iter().map(|(_, t)| t).chain(&extra).map(Token::text) {
                if !seen.contains(&text) {
                    seen.push(text);
                    tokens.push(AddedToken::from(text, true));
                }
            }
        }
        Ok(Self {
            tokens,
            named: named.into_iter().map(|(name, t)| (name, t.text().to_owned())).collect(),
            config,
            split_special: said.map.get("split_special_tokens").is_some_and(truthy),
            eos_is_new,
        })
    }
}

/// `tokenizer_config.json` with what overrides it.
struct Said {
    map: Map<String, Value>,
    /// Named tokens beside [`NAMED`].
    specific: Map<String, Value>,
    eos: bool,
}

const CONFIG: &str = "tokenizer_config.json";

impl Said {
    fn of(files: &Files, eos: Option<&str>) -> Self {
        let mut map = files.config.clone();
        if let Some(eos) = eos {
            map.insert("eos_token".into(), eos.into());
        }
        if !map.get("extra_special_tokens").is_some_and(truthy)
            && let Some(additional) = map.shift_remove("additional_special_tokens")
        {
            map.insert("extra_special_tokens".into(), additional);
        }
        let is_specific =
            |(k, v): (&String, &Value)| k.ends_with("_token") && !NAMED.contains(&k.as_str()) && v.is_string();
        let names: Vec<String> = map.iter().filter(|e| is_specific(*e)).map(|(k, _)| k.clone()).collect();
        let mut specific: Map<String, Value> =
            names.into_iter().filter_map(|k| map.shift_remove(&k).map(|v| (k, v))).collect();
        if let Some(Value::Object(extra)) = map.get("extra_special_tokens").cloned() {
            specific.extend(extra);
            map.shift_remove("extra_special_tokens");
        }
        if specific.is_empty()
            && let Some(Value::Object(own)) = map.get("model_specific_special_tokens")
        {
            specific = own.clone();
        }
        Self { map, specific, eos: eos.is_some() }
    }

    /// The lists of added tokens, by id; merges `special_tokens_map.json` where it counts.
    fn listed(&mut self, files: &Files, description: &Value) -> Result<BTreeMap<i64, Flagged>> {
        let mut listed = BTreeMap::new();
        if let Some(decoder) = self.map.get("added_tokens_decoder") {
            let bad = |why: String| files.bad(CONFIG, format!("`added_tokens_decoder`: {why}"));
            let Value::Object(decoder) = decoder else { return Err(bad("expected an object of ids".into())) };
            for (id, token) in decoder {
                let id = id.trim().parse().map_err(|_| bad(format!("`{}` is no token id", id.escape_debug())))?;
                let Value::Object(token) = token else { return Err(bad(format!("{token} is no token"))) };
                listed.insert(id, flagged(token).map_err(bad)?);
            }
            return Ok(listed);
        }
        self.merge_map(files)?;
        if let Some(added) = &files.added_tokens {
            let special = self.special_texts(files);
            for (text, id) in added {
                let id = id.as_i64().ok_or_else(|| files.bad("added_tokens.json", format!("{id} is no token id")))?;
                let token = AddedToken::from(text.as_str(), special.contains(text));
                listed.insert(id, Flagged { normalized: Some(token.normalized), token });
            }
        }
        for token in description["added_tokens"].as_array().into_iter().flatten() {
            if let (Some(id), Value::Object(map)) = (token["id"].as_i64(), token) {
                listed.insert(id, flagged(map).map_err(|why| files.bad("tokenizer.json", why))?);
            }
        }
        Ok(listed)
    }

    /// The configuration alone, without the other lists: read again, it gives the same tokens.
    fn config(
        &self,
        class: &Class,
        listed: &BTreeMap<i64, Flagged>,
        named: &[(String, Token)],
        extra: &[Token],
    ) -> Map<String, Value> {
        let mut config = self.map.clone();
        for gone in [
            "auto_map",
            "init_inputs",
            "extra_special_tokens",
            "additional_special_tokens",
            "model_specific_special_tokens",
        ] {
            config.shift_remove(gone);
        }
        let said = |k: &str| NAMED.contains(&k) && !self.map.contains_key(k);
        for (name, token) in named.iter().filter(|(name, _)| !said(name)) {
            config.insert(name.clone(), token.json());
        }
        // Names that do not end in `_token` are known by this list alone.
        let specific: Map<String, Value> =
            named.iter().filter(|(n, _)| !NAMED.contains(&n.as_str())).map(|(n, t)| (n.clone(), t.json())).collect();
        for name in specific.keys() {
            config.shift_remove(name);
        }
        if !specific.is_empty() {
            config.insert("model_specific_special_tokens".into(), specific.into());
        }
        if !extra.is_empty() {
            config.insert("extra_special_tokens".into(), extra.iter().map(Token::json).collect());
        }
        let listed: Map<String, Value> = listed.iter().map(|(id, f)| (id.to_string(), f.json())).collect();
        config.insert("added_tokens_decoder".into(), listed.into());
        config.insert("tokenizer_class".into(), class.name().into());
        config
    }

    fn merge_map(&mut self, files: &Files) -> Result<()> {
        for (key, value) in files.special_tokens_map.iter().flatten() {
            if self.eos && key == "eos_token" {
                continue;
            }
            let mut value = value.clone();
            match &mut value {
                Value::Object(token) if key != "extra_special_tokens" => {
                    token.insert("special".into(), true.into());
                }
                Value::Array(list) if key == "extra_special_tokens" => {
                    let before = self.map.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
                    let new: Vec<_> = list.drain(..).filter(|t| !before.contains(t)).collect();
                    *list = before.into_iter().chain(new).collect();
                }
                _ => {}
            }
            self.map.insert(key.clone(), value);
        }
        if let Some(Value::Object(extra)) = self.map.get("extra_special_tokens").cloned() {
            self.map.shift_remove("extra_special_tokens");
            self.specific.extend(extra);
        }
        Ok(())
    }

    /// What `added_tokens.json`'s tokens are compared with: a text that the configuration gives flags to is not seen there.
    fn special_texts(&self, files: &Files) -> Vec<String> {
        let mapped = |k: &str| files.special_tokens_map.as_ref().is_some_and(|m| m.contains_key(k));
        let named = NAMED.iter().filter_map(|k| self.map.get(*k).filter(|v| v.is_string() || mapped(k)));
        let extra = self.map.get("extra_special_tokens").and_then(Value::as_array).into_iter().flatten();
        named.chain(extra).filter_map(|v| Token::of(v).ok()).map(|t| t.text().to_owned()).collect()
    }

    fn named(
        &self,
        files: &Files,
        description: &Value,
        class: &Class,
        listed: &BTreeMap<i64, Flagged>,
    ) -> Result<Vec<(String, Token)>> {
        let bad = |key: &str, why: String| -> Error { files.bad(CONFIG, format!("`{key}`: {why}")) };
        let (mut named, pads) = (Vec::new(), class.pads_by_file());
        for key in NAMED {
            let said = match self.map.get(key) {
                None => {
                    let default = class.defaults().iter().find(|(k, _)| *k == key).map(|(_, text)| *text);
                    let padding =
                        if key == "pad_token" && pads { description["padding"]["pad_token"].as_str() } else { None };
                    default.or(padding).map(|text| Token::Text(text.to_owned()))
                }
                Some(Value::Null) => None,
                Some(value) => {
                    let token = Token::of(value).map_err(|why| bad(key, why))?;
                    let flagged = listed.values().rev().find(|f| f.token.content == token.text());
                    Some(flagged.map_or(token, |f| Token::Flagged(f.clone())))
                }
            };
            named.extend(said.map(|token| (key.to_owned(), token)));
        }
        let auto = self.map.iter().filter(|(k, v)| {
            k.ends_with("_token") && !NAMED.contains(&k.as_str()) && (v.is_string() || v.get("content").is_some())
        });
        for (key, value) in auto.chain(&self.specific) {
            let token = Token::of(value).map_err(|why| bad(key, why))?;
            match named.iter_mut().find(|(k, _)| k == key) {
                Some((_, old)) => *old = token,
                None => named.push((key.clone(), token)),
            }
        }
        Ok(named)
    }

    fn extra(&self, files: &Files) -> Result<Vec<Token>> {
        match self.map.get("extra_special_tokens").or_else(|| self.map.get("additional_special_tokens")) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list
                .iter()
                .map(|v| Token::of(v).map_err(|why| files.bad(CONFIG, format!("`extra_special_tokens`: {why}"))))
                .collect(),
            Some(other) => {
                Err(files.bad(CONFIG, format!("`extra_special_tokens` is {other}, expected a list or an object")))
            }
        }
    }
}
