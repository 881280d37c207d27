//! Prompts, and what models made of them: texts with their known reward.

use super::grammar::{Draws, Grammar};
use super::words::{join, split};
use crate::data::text::{TextTokenizer, TokenizerOptions};
use crate::error::{Error, Result};
use crate::model::Generated;
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::Path;

/// Words of a review that a prompt shows: some end in the opening, some after an opinion.
const PROMPT_WORDS: RangeInclusive<usize> = 2..=10;
/// Words of the review that a prompt leaves to the model, at least.
const LEFT_WORDS: usize = 5;

/// Beginnings of reviews, `n` different ones.
pub fn prompts(grammar: &Grammar, n: usize, seed: u64) -> Vec<String> {
    let mut seen = HashSet::new();
    // Reviews of other streams than those that the model is trained on.
    let streams = (1u64 << 32)..;
    let texts = streams.map(|stream| {
        let mut draws = Draws::new(seed, stream);
        let words = draws.pick(*PROMPT_WORDS.start()..PROMPT_WORDS.end() + 1);
        let review = grammar.generate(&mut draws).words;
        join(&review[..words.min(review.len().saturating_sub(LEFT_WORDS))])
    });
    texts.filter(|text| !text.is_empty() && seen.insert(text.clone())).take(n).collect()
}

/// A prompt with one continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The continuation, with the space before it, if any.
    pub response: String,
    /// Prompt and continuation, as words.
    pub words: Vec<String>,
    /// Whether the model ended it.
    pub finished: bool,
    /// Reward of the whole text, in [-1, 1].
    pub reward: f64,
    /// Whether the whole text is a review of the grammar, ended by the model.
    pub well_formed: bool,
}

/// Turns generated tokens into judged texts.
pub struct Judge<'a> {
    grammar: &'a Grammar,
    /// The demo's tokenizer.
    pub tokenizer: TextTokenizer,
    eos: u32,
}

impl<'a> Judge<'a> {
    /// With the tokenizer in `model`.
    pub fn new(grammar: &'a Grammar, model: &Path) -> Result<Self> {
        let tokenizer = TextTokenizer::load(model, &TokenizerOptions::default())?;
        let eos = tokenizer.eos.as_ref().ok_or_else(|| Error::file(model, "the tokenizer names no EOS token"))?.id;
        Ok(Self { grammar, tokenizer, eos })
    }

    /// Judges one continuation of `prompt`, whose ids are `ids` (BOS in front).
    pub fn judge(&self, prompt: &str, ids: &[u32], generated: &Generated) -> Result<Sample> {
        let written = generated.tokens.strip_suffix(&[self.eos]).unwrap_or(&generated.tokens);
        let bos = self.tokenizer.prefix().len();
        // Special tokens stay visible: a text with one in its middle is not well-formed.
        let text = self.tokenizer.decode(&[&ids[bos..], written].concat(), false)?;
        let response = text
            .strip_prefix(prompt)
            .ok_or_else(|| Error::Training(format!("`{text}` does not begin with its prompt `{prompt}`")))?;
        let words = split(&text);
        Ok(Sample {
            response: response.to_owned(),
            finished: generated.finished,
            reward: self.grammar.reward(&words),
            well_formed: generated.finished && self.grammar.derives(&words),
            words,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::tokenizer;

    #[test]
    fn prompts_differ_and_begin_reviews() {
        let g = Grammar::reviews();
        let all = prompts(&g, 800, 1);
        assert_eq!(all.len(), 800);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 800);
        assert!(all.iter().all(|p| (1..=10).contains(&split(p).len())));
        let neutral = all.iter().filter(|p| g.opinions(&split(p)).is_empty()).count();
        assert!((400..800).contains(&neutral), "{neutral} of 800 prompts without an opinion");
    }

    #[test]
    fn samples_are_judged_as_whole_texts() {
        let g = Grammar::reviews();
        let dir = tempfile::tempdir().unwrap();
        tokenizer::write(dir.path(), &g.vocabulary()).unwrap();
        let judge = Judge::new(&g, dir.path()).unwrap();
        let prompt = "our room was on the third floor. the pool was";
        let ids = judge.tokenizer.encode(prompt).unwrap();
        let sample = |text: &str, finished: bool| {
            let tokens = judge.tokenizer.encode_bare(text).unwrap();
            judge.judge(prompt, &ids, &Generated { tokens, logps: Vec::new(), finished }).unwrap()
        };
        let good = sample("superb. four stars.</s>", true);
        assert_eq!(good.response, " superb. four stars.");
        assert!(good.well_formed && (good.reward - 5.0 / 6.0).abs() < 1e-12, "{good:?}");
        assert!(!sample("superb. four stars.", false).well_formed, "cut off");
        assert!(!sample("superb. <unk> four stars.</s>", true).well_formed);
        assert!(!sample("superb superb superb.</s>", true).well_formed);
        assert_eq!(sample(", pool", false).response, ", pool");
    }
}
