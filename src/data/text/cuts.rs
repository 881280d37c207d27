//! Where a text may be cut so that tokenising the parts gives the ids of the whole.
//!
//! Claim: with no normalizer (or NFC), pre-tokenizers from the list below and no added token that spans or strips
//! spaces, `ids(t) = ids(t[..p]) ++ ids(t[p..])` wherever `t[p]` is a space between two ASCII letters. Reasons:
//! - No pattern looks behind or anchors, so what is matched from `p` on depends on `t[p..]` alone.
//! - No pattern has an alternative in which a letter is followed by a space, so a match that holds `t[p-1]` ends there,
//!   and it ends there just the same where the text ends at `p`: a match begins at `p`. It is never the whitespace
//!   alternatives' decision, because the character before the space is a letter.
//! - `Digits` cuts around digits only; `ByteLevel` without its pattern cuts nowhere; a model sees one piece at a time.
//! - NFC never composes across a space, and a composed letter is a letter.
//!
//! `tests/pack/pack.rs` checks the claim on random texts.

use serde_json::Value;

/// Split patterns for which the claim holds; `ByteLevel`'s own is GPT-2's. Each looks at a character few times, however long the
/// text is.
pub(super) const PATTERNS: [&str; 6] = [
    // GPT-2
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    // Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Qwen2, Qwen2.5, Qwen3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // GPT-4 (cl100k)
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    // Mistral (Tekken)
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // StarCoder 2 and others: digits one by one inside GPT-2's
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
];

/// Whether the claim holds for the tokenizer that this `tokenizer.json` describes.
pub fn proven(tokenizer: &Value) -> bool {
    let mut splits = false;
    let pre_tokenizers = tokenizer["pre_tokenizer"]["pretokenizers"].as_array();
    let one = std::slice::from_ref(&tokenizer["pre_tokenizer"]);
    for pre in pre_tokenizers.map_or(one, Vec::as_slice) {
        let known = match pre["type"].as_str() {
            Some("Digits") => true,
            Some("ByteLevel") => {
                let pattern = pre["use_regex"].as_bool().unwrap_or(true);
                splits |= pattern;
                pre["add_prefix_space"] == false
            }
            Some("Split") => {
                splits = true;
                let whole = pre["behavior"] == "Isolated" && pre["invert"] == false;
                let complement = pre["behavior"] == "Removed" && pre["invert"] == true;
                (whole || complement) && pre["pattern"]["Regex"].as_str().is_some_and(|p| PATTERNS.contains(&p))
            }
            _ => false,
        };
        if !known {
            return false;
        }
    }
    let plain = tokenizer["normalizer"].is_null() || tokenizer["normalizer"]["type"] == "NFC";
    let added = tokenizer["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    splits && plain && added.iter().all(harmless)
}

fn harmless(token: &Value) -> bool {
    let off = |flag: &str| token[flag] != true;
    off("lstrip") && off("rstrip") && off("single_word") && token["content"].as_str().is_some_and(|c| !spans_a_cut(c))
}

/// Whether an added token's text could hold the letter and the space of a cut.
pub fn spans_a_cut(content: &str) -> bool {
    content.as_bytes().windows(2).any(|w| w[0].is_ascii_alphabetic() && w[1] == b' ')
}

/// The last cut inside the texts' common prefix, both letters included; `None` where there is none.
pub fn last_common_cut(texts: &[String]) -> Option<usize> {
    let (first, rest) = texts.split_first()?;
    let bytes = first.as_bytes();
    let common = rest.iter().map(|t| common_prefix(bytes, t.as_bytes())).min().unwrap_or(0);
    let cut = |p: &usize| bytes[*p] == b' ' && bytes[p - 1].is_ascii_alphabetic() && bytes[p + 1].is_ascii_alphabetic();
    (1..common.saturating_sub(1)).rev().find(cut)
}

/// Elements that `a` and `b` begin with in common.
pub fn common_prefix<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}
