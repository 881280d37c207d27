//! Patterns that take for ever.
//!
//! The regular expressions of a tokenizer come from strangers. Oniguruma gives up within one match, after ten million steps
//! back; but a pattern that looks through all that follows, or tries millions of ways, at every character of a text takes
//! hours for a long row, and nobody can stop it. So where a tokenizer has a pattern that is not known to take its time in
//! proportion to the text, each text goes through its patterns once before: beginnings of it, each twice as long as the
//! last, in pieces after which the clock is asked. What takes too long is an error. The common tokenizers have known patterns
//! alone, and lose nothing. A single match of a pattern made for it can still take long.

use crate::data::text::cuts;
use onig::{Regex, Region, SearchOptions};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokenizers::{
    Decoder, DecoderWrapper, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizer, PreTokenizerWrapper, Tokenizer,
};

/// Longest that the patterns may take over a text; and over a further one, once one took longer.
const LONGEST: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));
/// Bytes of the first beginning that is tried.
const BEGINNING: usize = 1024;
/// Characters that are tried at a time.
const WINDOW: usize = 64;

/// What is left of the time for a text.
pub(super) struct Clock {
    begun: Instant,
    longest: Duration,
}

impl Clock {
    /// From now on.
    pub fn start() -> Self {
        Self { begun: Instant::now(), longest: LONGEST.0 }
    }

    /// Refuses where `1 / part` of the time is over.
    fn check(&self, part: u32) -> tokenizers::Result<()> {
        match self.begun.elapsed() * part <= self.longest {
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
        let (mut text, clock) = (NormalizedString::from(text), self.clock());
        self.noted(self.normalizers.iter().try_for_each(|step| step.normalize(&mut text, &clock)))
    }

    fn clock(&self) -> Clock {
        let longest = if self.slow.load(Ordering::Relaxed) { LONGEST.1 } else { LONGEST.0 };
        Clock { longest, ..Clock::start() }
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
        let (added, clock) = (inner.get_added_vocabulary(), self.clock());
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
        let clock = self.clock();
        let mut tokens: Vec<String> = ids.iter().filter_map(|id| inner.id_to_token(*id)).collect();
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
        found(regex, &text[..text.floor_char_boundary(len)], clock)?;
        // What grows with the square takes four times as long for twice the length.
        clock.check(4)?;
        len *= 2;
    }
    found(regex, text, clock)
}

fn found(regex: &Regex, text: &str, clock: &Clock) -> tokenizers::Result<()> {
    let (mut at, mut last, mut region) = (0, None, Region::new());
    while at <= text.len() {
        let end = text.ceil_char_boundary((at + WINDOW).min(text.len()));
        region.clear();
        regex.search_with_options(text, at, end, SearchOptions::SEARCH_OPTION_NONE, Some(&mut region));
        clock.check(1)?;
        match region.pos(0) {
            Some((begin, behind)) if begin == behind && last == Some(behind) => at = next(text, at),
            Some((_, behind)) => (at, last) = (behind, Some(behind)),
            None if end == text.len() => return Ok(()),
            None => at = end,
        }
    }
    Ok(())
}

/// Behind the character at `at`.
fn next(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn split(pattern: &str) -> Patience {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        Patience::of(&json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}})).unwrap()
    }

    fn takes(pattern: &str, text: &str) -> tokenizers::Result<()> {
        let clock = Clock { longest: Duration::from_millis(800), ..Clock::start() };
        crate::guard::guarded(|| tried(&Regex::new(pattern).unwrap(), text, &clock)).expect("no match gives up")
    }

    /// With and without steps back.
    #[test]
    fn what_grows_faster_than_the_text_is_refused() {
        let a = "a".repeat(1 << 20);
        for pattern in ["a*b|a", "(?:a|a){18}b|a", "(?=a*b|a)a", "(?>a*)b|a", "(?=(a*))a", "a*+b|a", "a*b"] {
            let begun = Instant::now();
            let e = takes(pattern, &a).unwrap_err().to_string();
            assert!(e.contains("takes too long"), "{pattern}: {e}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{pattern}: {:?}", begun.elapsed());
        }
    }

    /// The matches are those that the library finds, or a text would be tried as another than it is.
    #[test]
    fn ordinary_patterns_pass() {
        let words = "Some words, and 1234 numbers; it's CamelCase\n\n    x = f(y)\t日本語の文 été \u{1f600}!?\r\n";
        let texts = [words.repeat(50), "a".repeat(9000), " ".repeat(9000), "日".repeat(3000), String::new()];
        for pattern in cuts::PATTERNS.into_iter().chain([r"\s+", r"\w+|\W", "x", "^|$", "", " {2,}"]) {
            for text in &texts {
                let clock = Clock { longest: Duration::from_secs(60), ..Clock::start() };
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
