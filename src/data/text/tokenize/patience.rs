//! Patterns that take for ever.
//!
//! The regular expressions of a tokenizer come from strangers. Oniguruma gives up within one match, after ten million steps
//! back; but a pattern that looks through all that follows, or tries millions of ways, at every character of a text takes
//! hours for a long row, and nobody can stop it. So where a tokenizer has a pattern that is not known to take its time in
//! proportion to the text, each text goes through its patterns once before: first beginnings of it, each twice as long as the
//! last, so that what grows faster than the text is seen before it takes long. What would is an error. The common tokenizers have known patterns
//! alone, and lose nothing. A single match of a pattern made for it can still take long.

use crate::data::text::cuts;
use onig::Regex;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokenizers::{
    Decoder, DecoderWrapper, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizer, PreTokenizerWrapper, Tokenizer,
};

/// Longest that the patterns may take over a short text; and over a further one, once one took longer.
const LONGEST: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));
/// Bytes of the first beginning that is tried.
const BEGINNING: usize = 1024;
/// More, for each of its bytes: what ordinary patterns take on a busy machine.
const BYTE: Duration = Duration::from_nanos(250);

/// The time for a text.
pub(super) struct Clock {
    begun: Instant,
    longest: Duration,
}

impl Clock {
    /// From now on, for a text of `len` bytes.
    pub fn start(len: usize) -> Self {
        Self::of(LONGEST.0, len)
    }

    fn of(longest: Duration, len: usize) -> Self {
        Self { begun: Instant::now(), longest: longest + BYTE * u32::try_from(len).unwrap_or(u32::MAX) }
    }

    /// Refuses where the time is over `more` from now.
    fn check(&self, more: Duration) -> tokenizers::Result<()> {
        match self.begun.elapsed() + more <= self.longest {
            true => Ok(()),
            false => Err("its pattern takes too long for this text; shorten the row, or use another tokenizer".into()),
        }
    }
}

/// A step of a sequence, and its pattern where that is not a known one.
pub(super) struct Step<T> {
    step: T,
    regex: Option<Regex>,
}

impl Step<NormalizerWrapper> {
    /// Normalizes `text`, if `clock` allows it.
    pub fn normalize(&self, text: &mut NormalizedString, clock: &Clock) -> tokenizers::Result<()> {
        self.regex.as_ref().map_or(Ok(()), |regex| tried(regex, text.get(), clock))?;
        self.step.normalize(text)
    }
}

/// The steps of a tokenizer, of each kind that has an unknown pattern.
#[derive(Default)]
pub(super) struct Patience {
    normalizers: Vec<Step<NormalizerWrapper>>,
    pre_tokenizers: Vec<Step<PreTokenizerWrapper>>,
    decoders: Vec<Step<DecoderWrapper>>,
    /// Whether a text took too long: others will, too.
    slow: AtomicBool,
}

impl Patience {
    /// With the tokenizer of this description. Errors: a step that the library does not read.
    pub fn of(description: &Value) -> tokenizers::Result<Self> {
        Ok(Self {
            normalizers: unknown(steps(&description["normalizer"])?),
            pre_tokenizers: unknown(steps(&description["pre_tokenizer"])?),
            decoders: unknown(steps(&description["decoder"])?),
            slow: AtomicBool::new(false),
        })
    }

    /// Whether `text` can be normalized within the bound, as added tokens are where they are read.
    pub fn normalizes(&self, text: &str) -> tokenizers::Result<()> {
        let (mut text, clock) = (NormalizedString::from(text), self.clock(text.len()));
        self.noted(self.normalizers.iter().try_for_each(|step| step.normalize(&mut text, &clock)))
    }

    fn clock(&self, len: usize) -> Clock {
        Clock::of(if self.slow.load(Ordering::Relaxed) { LONGEST.1 } else { LONGEST.0 }, len)
    }

    fn noted<T>(&self, done: tokenizers::Result<T>) -> tokenizers::Result<T> {
        done.inspect_err(|_| self.slow.store(true, Ordering::Relaxed))
    }

    /// Whether `inner` can tokenise `text` within the bound.
    pub fn encodes(&self, inner: &Tokenizer, text: &str) -> tokenizers::Result<()> {
        if self.normalizers.is_empty() && self.pre_tokenizers.is_empty() {
            return Ok(());
        }
        self.noted(self.splits(inner, text))
    }

    fn splits(&self, inner: &Tokenizer, text: &str) -> tokenizers::Result<()> {
        let (added, clock) = (inner.get_added_vocabulary(), self.clock(text.len()));
        let watched = Watched { steps: &self.normalizers, clock: &clock, error: Mutex::new(None) };
        let mut pieces = match (self.normalizers.is_empty(), inner.get_normalizer()) {
            (true, own) => added.extract_and_normalize(own, text),
            (false, _) => added.extract_and_normalize(Some(&watched), text),
        };
        if let Some(e) = watched.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(e);
        }
        for (i, Step { step, regex }) in self.pre_tokenizers.iter().enumerate() {
            if let Some(regex) = regex {
                let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
                for (piece, _, _) in splits.iter().filter(|(_, _, tokens)| tokens.is_none()) {
                    tried(regex, piece, &clock)?;
                }
            }
            // What the last one makes of it, nobody here looks at.
            if i + 1 < self.pre_tokenizers.len() {
                step.pre_tokenize(&mut pieces)?;
            }
        }
        Ok(())
    }

    /// Whether `inner` can decode `ids` within the bound.
    pub fn decodes(&self, inner: &Tokenizer, ids: &[u32]) -> tokenizers::Result<()> {
        if self.decoders.is_empty() {
            return Ok(());
        }
        self.noted(self.joins(inner, ids))
    }

    fn joins(&self, inner: &Tokenizer, ids: &[u32]) -> tokenizers::Result<()> {
        let mut tokens: Vec<String> = ids.iter().filter_map(|id| inner.id_to_token(*id)).collect();
        let clock = self.clock(tokens.iter().map(String::len).sum());
        for Step { step, regex } in &self.decoders {
            if let Some(regex) = regex {
                tokens.iter().try_for_each(|token| tried(regex, token, &clock))?;
            }
            tokens = step.decode_chain(tokens)?;
        }
        Ok(())
    }
}

/// Normalizers one by one, each pattern tried before it is used. The library passes over errors here, so one is kept.
struct Watched<'a> {
    steps: &'a [Step<NormalizerWrapper>],
    clock: &'a Clock,
    error: Mutex<Option<tokenizers::Error>>,
}

impl Normalizer for Watched<'_> {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if error.is_none() {
            *error = self.steps.iter().try_for_each(|step| step.normalize(text, self.clock)).err();
        }
        Ok(())
    }
}

/// `steps` up to the last with an unknown pattern.
fn unknown<T>(mut steps: Vec<Step<T>>) -> Vec<Step<T>> {
    steps.truncate(steps.iter().rposition(|s| s.regex.is_some()).map_or(0, |last| last + 1));
    steps
}

/// The steps of a description, sequences of sequences unrolled.
pub(super) fn steps<T: serde::de::DeserializeOwned>(description: &Value) -> tokenizers::Result<Vec<Step<T>>> {
    let (mut out, mut left) = (Vec::new(), vec![description]);
    while let Some(step) = left.pop() {
        let inner = ["normalizers", "pretokenizers", "decoders"].into_iter().find_map(|n| step[n].as_array());
        match inner {
            Some(inner) => left.extend(inner.iter().rev()),
            None if step.is_null() => {}
            None => {
                let pattern = step["pattern"]["Regex"].as_str().filter(|p| !cuts::PATTERNS.contains(p));
                let regex = pattern.map(Regex::new).transpose()?;
                out.push(Step { step: serde_json::from_value(step.clone())?, regex });
            }
        }
    }
    Ok(out)
}

/// Finds all that the library would find in `text`, if `clock` allows it: in beginnings of it, then in all.
fn tried(regex: &Regex, text: &str, clock: &Clock) -> tokenizers::Result<()> {
    let mut len = BEGINNING;
    while len < text.len() {
        let begun = Instant::now();
        found(regex, &text[..text.floor_char_boundary(len)], clock)?;
        // What grows with the square takes four times as long for twice the length.
        clock.check(begun.elapsed() * 4)?;
        len *= 2;
    }
    found(regex, text, clock)
}

fn found(regex: &Regex, text: &str, clock: &Clock) -> tokenizers::Result<()> {
    regex.find_iter(text).try_for_each(|_| clock.check(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn split(pattern: &str) -> Patience {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        Patience::of(&json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}})).unwrap()
    }

    /// With and without steps back, and without any match.
    #[test]
    fn what_grows_faster_than_the_text_is_refused() {
        let a = "a".repeat(1 << 20);
        for pattern in ["a*b|a", "(?:a|a){16}b|a", "(?=a*b|a)a", "(?>a*)b|a", "(?=(a*))a", "a*+b|a", "a*?b|a", "a+c?b"]
        {
            let (regex, clock) = (Regex::new(pattern).unwrap(), Clock::of(Duration::from_secs(1), 0));
            let e = tried(&regex, &a, &clock).unwrap_err().to_string();
            assert!(e.contains("takes too long"), "{pattern}: {e}");
            assert!(clock.begun.elapsed() < Duration::from_secs(30), "{pattern}: {:?}", clock.begun.elapsed());
        }
    }

    /// However they are taken, a text of a megabyte is far from its time.
    #[test]
    fn what_grows_with_the_text_is_not() {
        let words = "Some words, and 1234 numbers; it's CamelCase\n\n    x = f(y)\t日本語の文 été \u{1f600}!?\r\n";
        let texts =
            [words.repeat(10_000), "a".repeat(1 << 20), " ".repeat(1 << 20), "日".repeat(1 << 18), String::new()];
        for pattern in cuts::PATTERNS.into_iter().chain([r"\s+", r"\w+|\W", "x", "^|$", "", " {2,}"]) {
            for text in &texts {
                let clock = Clock::of(Duration::from_secs(60), 0);
                tried(&Regex::new(pattern).unwrap(), text, &clock).unwrap_or_else(|e| panic!("{pattern}: {e}"));
            }
        }
    }

    #[test]
    fn known_patterns_are_not_tried() {
        assert!(cuts::PATTERNS.into_iter().all(|p| split(p).pre_tokenizers.is_empty()));
        assert_eq!(split("a*b|a").pre_tokenizers.len(), 1);
        let replaces = |pattern: Value| json!({"type": "Replace", "pattern": pattern, "content": "x"});
        let both = json!([{"type": "NFC"}, replaces(json!({"Regex": "a*b|a"}))]);
        let patience = Patience::of(&json!({"normalizer": {"type": "Sequence", "normalizers": both}})).unwrap();
        assert_eq!((patience.normalizers.len(), patience.decoders.len()), (2, 0));
        let plain = Patience::of(&json!({"normalizer": replaces(json!({"String": "a"}))})).unwrap();
        assert!(plain.normalizers.is_empty());
    }
}
