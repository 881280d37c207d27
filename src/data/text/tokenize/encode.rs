//! Texts to ids and back.

use super::call::{fits, whole};
use super::tokenizer::TextTokenizer;
use crate::data::text::cuts;
use crate::error::Result;

impl TextTokenizer {
    /// `tokenizer(text)`: ids with what the post-processor adds around them (BOS for Llama).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.prefix.clone();
        self.encode_into(text, &mut ids)?;
        ids.extend_from_slice(&self.suffix);
        Ok(ids)
    }

    /// Ids of `text` alone: what a rendered chat template needs, which brings its own special tokens.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        fits(&self.path, &self.growth, text)?;
        whole(&self.path, "tokenise", || self.patience.encodes(&self.inner, text))?;
        let encoding = whole(&self.path, "tokenise", || self.inner.encode_fast(text, false))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// Ids of several texts, each exactly as [`TextTokenizer::encode`] (or `encode_bare`, where `special` is false) gives
    /// them alone; what they have in common is tokenised once where the tokenizer allows it.
    pub fn encode_family(&self, texts: &[String], special: bool) -> Result<Vec<Vec<u32>>> {
        let (before, after): (&[u32], &[u32]) = if special { (&self.prefix, &self.suffix) } else { (&[], &[]) };
        let cut = if self.cuttable { cuts::last_common_cut(texts) } else { None };
        let mut head = before.to_vec();
        if let (Some(at), Some(first)) = (cut, texts.first()) {
            self.encode_into(&first[..at], &mut head)?;
        }
        let one = |text: &String| {
            let mut ids = Vec::with_capacity(head.len() + (text.len() - cut.unwrap_or(0)) / 3 + after.len());
            ids.extend_from_slice(&head);
            self.encode_into(&text[cut.unwrap_or(0)..], &mut ids)?;
            ids.extend_from_slice(after);
            Ok(ids)
        };
        texts.iter().map(one).collect()
    }

    /// Text of `ids`.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        whole(&self.path, "decode", || self.patience.decodes(&self.inner, ids))?;
        whole(&self.path, "decode", || self.inner.decode(ids, skip_special_tokens))
    }

    /// `ids` as text pieces, one per token; a token that ends inside a character gets an empty piece and the character
    /// stands with the token that completes it. Where a decoder does not write a text from left to right (one that strips,
    /// or tidies spaces), each token is decoded alone.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>> {
        whole(&self.path, "decode", || self.patience.decodes(&self.inner, ids))?;
        let stream = whole(&self.path, "decode", || {
            let mut stream = self.inner.decode_stream(false);
            Ok(ids.iter().map(|id| stream.step(*id).map(Option::unwrap_or_default)).collect::<Result<Vec<_>, _>>())
        })?;
        match stream {
            Ok(pieces) => Ok(pieces),
            Err(_) => ids.iter().map(|id| self.decode(&[*id], false)).collect(),
        }
    }
}
