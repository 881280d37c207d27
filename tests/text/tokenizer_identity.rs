//! Identity of tokenizers by meaning: what changes an id changes it, what changes none does not.

use crate::pack_common;

use fusedpo::data::text::{TextTokenizer, TokenizerOptions};
use pack_common::{Random, tiny_model};
use serde_json::{Map, Value, json};
use std::path::Path;

fn load(dir: &Path) -> Option<TextTokenizer> {
    TextTokenizer::load(dir, &TokenizerOptions::default()).ok()
}

/// Tokenizers of every model, small enough to be read at a glance.
fn descriptions() -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Value =
        serde_json::from_slice(&std::fs::read(tiny_model(dir.path(), true).join("tokenizer.json")).unwrap()).unwrap();
    let token = |id: u32, content: &str, normalized: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": normalized, "special": true});
    let words =
        ["<unk>", "</s>", "the", "in", "on", "a", "b", "the-in", "re", "##re", "##on", "##in", "##a", "##b", "##the"];
    let vocab: Map<String, Value> = words.iter().enumerate().map(|(i, w)| ((*w).into(), i.into())).collect();
    let around = |model: Value, pre: Value| {
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [token(0, "<unk>", false), token(1, "</s>", true)],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
            "pre_tokenizer": pre, "post_processor": null, "decoder": null, "model": model})
    };
    let pieces: Vec<Value> = ["<unk>", "</s>", "▁", "▁the", "in", "on", "a", "b", "re", "t", "h", "e", "th"]
        .iter()
        .enumerate()
        .map(|(i, p)| json!([p, -(i as f64) / 3.0]))
        .collect();
    vec![
        bytes,
        around(json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}), json!({"type": "Whitespace"})),
        around(
            json!({"type": "WordPiece", "vocab": vocab, "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}),
            json!({"type": "BertPreTokenizer"}),
        ),
        around(
            json!({"type": "Unigram", "vocab": pieces, "unk_id": 0, "byte_fallback": false}),
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        ),
    ]
}

const TEXTS: [&str; 14] = [
    "the in on",
    " on",
    "The IN",
    "a</s>b",
    "don't in-on",
    "the  the",
    "reon",
    "thein",
    "é e\u{301}",
    "</s> </s>",
    "in.on,",
    "<unk>",
    "a b a b",
    "\n\nthe\tin",
];

fn ids(tok: &TextTokenizer) -> Vec<Option<Vec<u32>>> {
    TEXTS.iter().map(|t| tok.encode(t).ok()).collect()
}

fn write(dir: &Path, value: &Value) {
    std::fs::write(dir.join("tokenizer.json"), value.to_string()).unwrap();
}

/// A random place in the description, not too deep in the vocabulary.
fn place<'a>(value: &'a mut Value, random: &mut Random) -> &'a mut Value {
    let inner = match value {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    };
    if inner == 0 || random.below(4) == 0 {
        return value;
    }
    let i = random.below(inner);
    let next = match value {
        Value::Object(map) => map.values_mut().nth(i),
        Value::Array(list) => list.get_mut(i),
        _ => None,
    };
    place(next.unwrap(), random)
}

fn mutate(value: &mut Value, random: &mut Random) {
    let steps = json!([
        null, {"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}, {"type": "Whitespace"}, {"type": "WhitespaceSplit"},
        {"type": "Replace", "pattern": {"String": "in"}, "content": "on"}, {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}, {"type": "BertPreTokenizer"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}, {"type": "Prepend", "prepend": "a"},
    ]);
    let step = steps[random.below(12)].clone();
    match random.below(6) {
        0 => value["normalizer"] = step,
        1 => value["pre_tokenizer"] = step,
        2 => {
            if let Some(tokens) = value["added_tokens"].as_array_mut().filter(|t| !t.is_empty()) {
                let i = random.below(tokens.len());
                let flag = ["lstrip", "rstrip", "single_word", "normalized", "special"][random.below(5)];
                tokens[i][flag] = json!(random.below(2) == 0);
            }
        }
        3 => match &mut value["model"]["vocab"] {
            Value::Object(vocab) => {
                let (i, j) = (random.below(vocab.len()), random.below(vocab.len()));
                let (a, b) = (vocab.values().nth(i).unwrap().clone(), vocab.values().nth(j).unwrap().clone());
                *vocab.iter_mut().nth(i).unwrap().1 = b;
                *vocab.iter_mut().nth(j).unwrap().1 = a;
            }
            Value::Array(pieces) => {
                let i = random.below(pieces.len());
                pieces[i][1] = json!(-(random.below(90) as f64) / 7.0);
            }
            _ => {}
        },
        4 => {
            if let Some(merges) = value["model"]["merges"].as_array_mut().filter(|m| m.len() > 1) {
                let (i, j) = (random.below(merges.len()), random.below(merges.len()));
                if random.below(2) == 0 { merges.swap(i, j) } else { drop(merges.remove(i)) }
            }
        }
        _ => {
            let at = place(value, random);
            *at = match at {
                Value::Bool(b) => json!(!*b),
                Value::Number(n) => json!(n.as_i64().unwrap_or(1) + random.below(3) as i64 - 1),
                Value::String(s) => [format!("{s}a"), "the".into(), String::new()][random.below(3)].clone().into(),
                Value::Null => json!({}),
                _ => Value::Null,
            };
        }
    }
}

/// The same description in other words.
fn reworded(value: &Value, random: &mut Random) -> String {
    let mut value = value.clone();
    if let Some(merges) = value["model"]["merges"].as_array_mut() {
        for merge in merges {
            if let Some((a, b)) = merge.as_str().and_then(|m| m.split_once(' ')) {
                *merge = json!([a, b]);
            }
        }
    }
    if let Value::Object(vocab) = &mut value["model"]["vocab"] {
        let mut entries: Vec<_> = std::mem::take(vocab).into_iter().collect();
        entries.reverse();
        vocab.extend(entries);
    }
    let model = value["model"].as_object_mut().unwrap();
    for default in ["dropout", "byte_fallback", "ignore_merges", "end_of_word_suffix", "continuing_subword_prefix"] {
        if model.get(default).is_some_and(|v| v.is_null() || v == false) {
            model.shift_remove(default);
        }
    }
    if value["post_processor"].is_null() && random.below(2) == 0 {
        value["post_processor"] =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    }
    let wrapped = json!({"type": "Sequence", "normalizers": [value["normalizer"].clone()]});
    if !value["normalizer"].is_null() && random.below(2) == 0 {
        value["normalizer"] = wrapped;
    }
    value["decoder"] = json!({"type": "Fuse"});
    value["padding"] = json!({"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "</s>"});
    let turned: Map<String, Value> = value.as_object().unwrap().clone().into_iter().rev().collect();
    format!("{:#}", Value::Object(turned))
}

#[test]
fn what_changes_an_id_changes_the_identity() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let cases = std::env::var("FUSEDPO_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let (mut other_ids, mut other_identity, mut unusable) = (0, 0, 0);
    for description in descriptions() {
        write(dir.path(), &description);
        let base = load(dir.path()).expect("it is a tokenizer");
        let before = ids(&base);
        for _ in 0..cases {
            let mut changed = description.clone();
            for _ in 0..1 + random.below(2) {
                mutate(&mut changed, &mut random);
            }
            write(dir.path(), &changed);
            let Some(tok) = load(dir.path()) else {
                unusable += 1;
                continue;
            };
            let (differ, known) = (ids(&tok) != before, tok.meaning() == base.meaning());
            assert!(!(differ && known), "other ids under the same identity: {changed}");
            other_ids += usize::from(differ);
            other_identity += usize::from(!known);
        }
    }
    println!(
        "{other_ids} with other ids, {other_identity} with another identity, {unusable} refused, of {}",
        4 * cases
    );
    assert!(other_ids > cases / 2 && other_identity >= other_ids);
}

#[test]
fn other_words_for_the_same_tokenizer_are_the_same_identity() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(7);
    for description in descriptions() {
        write(dir.path(), &description);
        let base = load(dir.path()).unwrap();
        for _ in 0..8 {
            let text = reworded(&description, &mut random);
            std::fs::write(dir.path().join("tokenizer.json"), &text).unwrap();
            let tok = load(dir.path()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(ids(&tok), ids(&base), "{text}");
            assert_eq!(tok.meaning(), base.meaning(), "{text}");
            assert_ne!(tok.sha256, base.sha256, "by bytes it is another");
        }
    }
}
