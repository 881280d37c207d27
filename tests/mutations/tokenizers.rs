//! Tokenizers put together at random, of every part that the format has, with odd arguments.

use super::Rng;
use serde_json::{Value, json};

/// Expressions for what splits and replaces, slow and wrong ones among them.
const PATTERNS: [&str; 14] = [
    "a",
    "",
    "\\s+",
    "(a|a)*b",
    "(\\s+)+$",
    "\\s+(?!\\S)|\\s+",
    "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+",
    "(?<=w)3",
    "(.)\\1",
    "^|$",
    "(?:",
    "[",
    "\\p{Nonsense}",
    "(?:(?:(?:(?:a{100}){100}){100}){100})",
];
const TEXTS: [&str; 8] = ["", "a", " ", "\u{2581}", "w3 w4", "\u{1f600}", "</s>", "aaaaaaaaaaaaaaaa"];

fn pattern(rng: &mut Rng) -> Value {
    match rng.below(3) {
        0 => json!({"String": rng.pick(&TEXTS)}),
        _ => json!({"Regex": rng.pick(&PATTERNS)}),
    }
}

fn flag(rng: &mut Rng) -> bool {
    rng.below(2) == 0
}

fn normalizer(rng: &mut Rng, depth: usize) -> Value {
    match rng.below(if depth > 0 { 12 } else { 10 }) {
        0 => {
            json!({"type": *rng.pick(&["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt", "StripAccents", "ByteLevel"])})
        }
        1 | 2 => json!({"type": "Replace", "pattern": pattern(rng), "content": *rng.pick(&TEXTS)}),
        3 => json!({"type": "Prepend", "prepend": *rng.pick(&TEXTS)}),
        4 => json!({"type": "Strip", "strip_left": flag(rng), "strip_right": flag(rng)}),
        5 => {
            json!({"type": "BertNormalizer", "clean_text": flag(rng), "handle_chinese_chars": flag(rng), "strip_accents": null, "lowercase": flag(rng)})
        }
        6 | 7 => {
            let map: Vec<u8> = (0..rng.below(200)).map(|_| rng.next() as u8).collect();
            let chars = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let text: String = map.iter().map(|b| chars[*b as usize % 64] as char).collect();
            // A length of its tree that is small, so that more than the first four bytes are read.
            let text = if flag(rng) { format!("CAAA{}", &text[..text.len() / 4 * 4]) } else { text };
            json!({"type": "Precompiled", "precompiled_charsmap": text})
        }
        8 => json!({"type": "Nonsense"}),
        9 => Value::Null,
        _ => {
            json!({"type": "Sequence", "normalizers": (0..rng.below(6)).map(|_| normalizer(rng, depth - 1)).collect::<Vec<_>>()})
        }
    }
}

fn pre_tokenizer(rng: &mut Rng, depth: usize) -> Value {
    let behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"];
    match rng.below(if depth > 0 { 11 } else { 9 }) {
        0 => json!({"type": *rng.pick(&["Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts"])}),
        1 => {
            json!({"type": "ByteLevel", "add_prefix_space": flag(rng), "trim_offsets": flag(rng), "use_regex": flag(rng)})
        }
        2 => {
            json!({"type": "Metaspace", "replacement": *rng.pick(&["\u{2581}", "a", "ab"]), "prepend_scheme": *rng.pick(&["always", "never", "first"]), "split": flag(rng)})
        }
        3..=5 => {
            json!({"type": "Split", "pattern": pattern(rng), "behavior": *rng.pick(&behaviors), "invert": flag(rng)})
        }
        6 => json!({"type": "Punctuation", "behavior": *rng.pick(&behaviors)}),
        7 => match flag(rng) {
            true => json!({"type": "Digits", "individual_digits": flag(rng)}),
            false => json!({"type": "FixedLength", "length": *rng.pick(&[0u64, 1, 5, u64::MAX])}),
        },
        8 => json!({"type": "CharDelimiterSplit", "delimiter": *rng.pick(&[" ", "a", ""])}),
        _ => {
            json!({"type": "Sequence", "pretokenizers": (0..rng.below(6)).map(|_| pre_tokenizer(rng, depth - 1)).collect::<Vec<_>>()})
        }
    }
}

fn post_processor(rng: &mut Rng, depth: usize) -> Value {
    let pair = json!(["</s>", *rng.pick(&[2u64, 96, 4_000_000_000])]);
    match rng.below(if depth > 0 { 6 } else { 5 }) {
        0 => Value::Null,
        1 => {
            json!({"type": *rng.pick(&["BertProcessing", "RobertaProcessing"]), "sep": pair, "cls": ["<s>", 1], "trim_offsets": true, "add_prefix_space": false})
        }
        2 => json!({"type": "ByteLevel", "add_prefix_space": flag(rng), "trim_offsets": flag(rng), "use_regex": true}),
        3 | 4 => {
            let piece = |rng: &mut Rng| match rng.below(3) {
                0 => json!({"Sequence": {"id": *rng.pick(&["A", "B"]), "type_id": 0}}),
                _ => json!({"SpecialToken": {"id": *rng.pick(&["<s>", "</s>", "<none>"]), "type_id": 0}}),
            };
            let single: Vec<Value> = (0..rng.below(5)).map(|_| piece(rng)).collect();
            let token = |id: &str, ids: Value| json!({"id": id, "ids": ids, "tokens": [id]});
            json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens":
                {"<s>": token("<s>", json!([1])), "</s>": token("</s>", rng.pick(&[json!([2]), json!([]), json!([2, 2]), json!([4_000_000_000u64])]).clone())}})
        }
        _ => {
            json!({"type": "Sequence", "processors": (0..rng.below(4)).map(|_| post_processor(rng, depth - 1)).collect::<Vec<_>>()})
        }
    }
}

fn decoder(rng: &mut Rng, depth: usize) -> Value {
    match rng.below(if depth > 0 { 11 } else { 9 }) {
        0 => Value::Null,
        1 => json!({"type": *rng.pick(&["ByteLevel", "ByteFallback", "Fuse"])}),
        2 | 3 => json!({"type": "Replace", "pattern": pattern(rng), "content": *rng.pick(&TEXTS)}),
        4 | 5 => {
            json!({"type": "Strip", "content": *rng.pick(&[" ", "a", "w"]), "start": *rng.pick(&[0u64, 1, 100, u64::MAX]), "stop": *rng.pick(&[0u64, 1, 100])})
        }
        6 => json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true}),
        7 => json!({"type": "BPEDecoder", "suffix": *rng.pick(&TEXTS)}),
        8 => match flag(rng) {
            true => json!({"type": "WordPiece", "prefix": *rng.pick(&TEXTS), "cleanup": flag(rng)}),
            false => {
                json!({"type": "CTC", "pad_token": *rng.pick(&TEXTS), "word_delimiter_token": *rng.pick(&TEXTS), "cleanup": flag(rng)})
            }
        },
        _ => {
            json!({"type": "Sequence", "decoders": (0..rng.below(6)).map(|_| decoder(rng, depth - 1)).collect::<Vec<_>>()})
        }
    }
}

/// A model of one of the kinds, whose vocabulary has the words of the data and some more.
fn model(rng: &mut Rng, words: &Value) -> Value {
    let mut vocab = words.clone();
    for (i, piece) in ["a", "w", "3", "w3", "\u{2581}", "\u{120}", "</w>", "##a", ""].into_iter().enumerate() {
        if vocab.get(piece).is_none() && rng.below(3) > 0 {
            vocab[piece] = json!(*rng.pick(&[97 + i as u64, 97 + i as u64, 3, 4_000_000_000]));
        }
    }
    match rng.below(5) {
        0 => json!({"type": "WordLevel", "vocab": vocab, "unk_token": *rng.pick(&["<unk>", "<none>"])}),
        1 => {
            json!({"type": "WordPiece", "vocab": vocab, "unk_token": *rng.pick(&["<unk>", "<none>"]), "continuing_subword_prefix": *rng.pick(&["##", ""]), "max_input_chars_per_word": *rng.pick(&[0u64, 100, u64::MAX])})
        }
        2 => {
            let pieces: Vec<Value> =
                vocab.as_object().unwrap().keys().map(|k| json!([k, *rng.pick(&[-1.5, 0.0, -1e300, 3.0])])).collect();
            json!({"type": "Unigram", "unk_id": rng.pick(&[json!(0), json!(null), json!(1_000_000)]), "vocab": pieces, "byte_fallback": flag(rng)})
        }
        _ => {
            json!({"type": "BPE", "dropout": rng.pick(&[json!(null), json!(null), json!(0.5), json!(2.0)]), "unk_token": rng.pick(&[json!("<unk>"), json!(null), json!("<none>")]),
            "continuing_subword_prefix": rng.pick(&[json!(null), json!(""), json!("##")]), "end_of_word_suffix": rng.pick(&[json!(null), json!("</w>")]), "fuse_unk": flag(rng), "byte_fallback": flag(rng),
            "ignore_merges": flag(rng), "vocab": vocab, "merges": rng.pick(&[json!([]), json!(["w 3"]), json!([["w", "3"]]), json!(["w  3"]), json!([["x", "y"]])])})
        }
    }
}

/// A tokenizer.json with the words of `good`.
pub fn tokenizer(rng: &mut Rng, good: &Value) -> Value {
    let mut out = good.clone();
    if rng.below(2) == 0 {
        out["model"] = model(rng, &good["model"]["vocab"]);
    }
    for (name, part) in [
        ("normalizer", normalizer as fn(&mut Rng, usize) -> Value),
        ("pre_tokenizer", pre_tokenizer),
        ("post_processor", post_processor),
        ("decoder", decoder),
    ] {
        if rng.below(2) == 0 {
            out[name] = part(rng, 2);
        }
    }
    if rng.below(4) == 0 {
        out["truncation"] = json!({"direction": "Right", "max_length": *rng.pick(&[0u64, 3, u64::MAX]), "strategy": "LongestFirst", "stride": *rng.pick(&[0u64, 5])});
    }
    if rng.below(4) == 0 {
        out["padding"] = json!({"strategy": rng.pick(&[json!("BatchLongest"), json!({"Fixed": 1u64 << 40}), json!({"Fixed": 9})]), "direction": "Left", "pad_to_multiple_of": rng.pick(&[json!(null), json!(0), json!(8)]), "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    }
    out
}
