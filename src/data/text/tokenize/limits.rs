//! What a tokenizer description may ask for.
//!
//! A `tokenizer.json` comes from strangers, and the library that reads it takes it at its word: a normalizer may make a
//! text a million times as long, a table may give itself a length that nobody has memory for. That is refused here, before
//! it is built.

use super::patience::{Clock, Step, steps as unrolled};
use serde_json::Value;
use tokenizers::{NormalizedString, NormalizerWrapper};

/// Steps of one kind.
const MOST_STEPS: usize = 256;
/// Times that one step may lengthen a text. The longest replacement of a real table has 33 bytes.
const MOST_GROWTH: f64 = 1024.0;
/// Bytes of a text's pieces that are normalized to see how long it becomes, and bytes that one may become.
const PIECE: (usize, usize) = (64, 16 << 10);
/// Bytes of a normalized text.
const MOST_NORMALIZED: usize = 256 << 20;
/// Pieces of a post-processor's template, and tokens that it may add.
pub(super) const MOST_AROUND: usize = 1024;

/// How much longer a normalizer makes texts.
pub(super) struct Growth {
    /// The most bytes that it makes of one.
    factor: f64,
    /// Its steps, by themselves, to see what they really do; where the factor alone says nothing.
    normalizer: Option<Vec<Step<NormalizerWrapper>>>,
}

/// Refuses what cannot be bounded. The error is what is refused, and why.
pub(super) fn check(description: &Value) -> Result<Growth, String> {
    let factor = product("normalizer", &description["normalizer"])?;
    let normalizer = match factor > 4.0 {
        true => Some(unrolled(&description["normalizer"]).map_err(|e| format!("normalizer: {e}"))?),
        false => None,
    };
    steps("pre_tokenizer", &description["pre_tokenizer"], &mut |s| match (kind(s), s["length"].as_u64()) {
        ("FixedLength", Some(0)) => Err("pre_tokenizer: pieces of length 0".into()),
        _ => Ok(()),
    })?;
    let decoded = product("decoder", &description["decoder"])?;
    if decoded > MOST_GROWTH {
        return Err(format!("its decoder can make a text {decoded:.0} times as long: not supported"));
    }
    steps("post_processor", &description["post_processor"], &mut |s| {
        let single = s["single"].as_array().map_or(&[][..], Vec::as_slice);
        let texts = single.iter().filter(|p| p["Sequence"].is_object()).count();
        match kind(s) {
            "TemplateProcessing" if single.len() > MOST_AROUND => {
                Err(format!("post_processor: a template of {} parts, at most {MOST_AROUND}", single.len()))
            }
            "TemplateProcessing" if texts > 1 => Err("post_processor: a template that repeats the text".into()),
            _ => Ok(()),
        }
    })?;
    Ok(Growth { factor, normalizer })
}

/// All steps together; infinite, or a huge number, where nothing bounds them.
fn product(what: &str, value: &Value) -> Result<f64, String> {
    let mut product = 1.0;
    steps(what, value, &mut |s| {
        let growth = growth(s)?;
        if growth > MOST_GROWTH {
            let most = MOST_GROWTH;
            return Err(format!("{what}: a {} that makes a text {growth:.0} times as long, at most {most}", kind(s)));
        }
        product *= growth;
        Ok(())
    })?;
    Ok(product)
}

/// Visits every step of a sequence of sequences.
fn steps(what: &str, value: &Value, visit: &mut dyn FnMut(&Value) -> Result<(), String>) -> Result<(), String> {
    let (mut left, mut seen) = (vec![value], 0);
    while let Some(step) = left.pop() {
        seen += 1;
        if seen > MOST_STEPS {
            return Err(format!("{what}: more than {MOST_STEPS} steps: not supported"));
        }
        let inner =
            ["normalizers", "pretokenizers", "decoders", "processors"].into_iter().find_map(|n| step[n].as_array());
        match inner {
            Some(inner) => left.extend(inner),
            None => visit(step)?,
        }
    }
    Ok(())
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or_default()
}

/// The most bytes that one step makes of one byte.
fn growth(step: &Value) -> Result<f64, String> {
    let len = |name: &str| step[name].as_str().map_or(0, str::len) as f64;
    Ok(match kind(step) {
        "Prepend" => 1.0 + len("prepend"),
        "Replace" => match step["pattern"]["String"].as_str() {
            Some(pattern) if !pattern.is_empty() => (len("content") / pattern.len() as f64).max(1.0),
            // A pattern may match before every character.
            _ => 1.0 + len("content"),
        },
        "Precompiled" => precompiled(step["precompiled_charsmap"].as_str().unwrap_or_default())?,
        // The longest compatibility decomposition has 18 characters, 33 bytes, of 3.
        "NFKC" | "NFKD" | "BertNormalizer" | "Nmt" => 11.0,
        "NFC" | "NFD" | "Lowercase" | "ByteLevel" => 3.0,
        "Metaspace" => 4.0,
        _ => 1.0,
    })
}

/// The longest replacement of a SentencePiece table: `u32` length of a trie, the trie, the replacements, zero-terminated.
fn precompiled(text: &str) -> Result<f64, String> {
    let bad = |why: &str| format!("normalizer: damaged `precompiled_charsmap`: {why}");
    let bytes = base64(text).ok_or_else(|| bad("not base64"))?;
    let trie = bytes.first_chunk::<4>().map(|n| u32::from_le_bytes(*n) as usize).ok_or_else(|| bad("too short"))?;
    if trie < 4 || trie % 4 != 0 || trie > bytes.len() - 4 {
        return Err(bad("its trie is longer than the table"));
    }
    let longest = bytes[4 + trie..].split(|b| *b == 0).map(<[u8]>::len).max().unwrap_or(0);
    Ok((longest as f64).max(1.0))
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | u32::from(digit(c)?);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

impl Growth {
    /// Whether `text` stays at a size that can be worked on.
    pub fn fits(&self, text: &str) -> Result<(), String> {
        if text.len() as f64 * self.factor <= MOST_NORMALIZED as f64 {
            return Ok(());
        }
        let Some(normalizer) = &self.normalizer else { return Ok(()) };
        let (mut left, mut total, clock) = (text, 0, Clock::start(text.len()));
        while !left.is_empty() {
            let mut at = left.len().min(PIECE.0);
            while !left.is_char_boundary(at) {
                at -= 1;
            }
            let (piece, rest) = left.split_at(at);
            left = rest;
            total += normalized_len(normalizer, piece, &clock)?;
            if total > MOST_NORMALIZED {
                let most = MOST_NORMALIZED >> 20;
                return Err(format!("its normalizer makes more than {most} MiB of a text of {} bytes", text.len()));
            }
        }
        Ok(())
    }
}

/// Bytes of a short text once normalized, step by step, so that no step begins with more than it may.
fn normalized_len(steps: &[Step<NormalizerWrapper>], piece: &str, clock: &Clock) -> Result<usize, String> {
    let mut text = NormalizedString::from(piece);
    for step in steps {
        step.normalize(&mut text, clock).map_err(|e| e.to_string())?;
        if text.get().len() > PIECE.1 {
            return Err(format!("its normalizer makes more than {} KiB of {} bytes", PIECE.1 >> 10, piece.len()));
        }
    }
    Ok(text.get().len())
}
