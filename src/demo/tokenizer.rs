//! A word-level `tokenizer.json` for the demo's language: one token a word, BOS in front, spacing restored on decoding.

use crate::error::{Error, Result};
use crate::files;
use serde_json::{Value, json};
use std::path::Path;

/// For words that the grammar does not have.
pub const UNK: &str = "<unk>";
/// Beginning of sequence.
pub const BOS: &str = "<s>";
/// End of sequence.
pub const EOS: &str = "</s>";

/// Ids of [`UNK`], [`BOS`] and [`EOS`], in this order.
pub const SPECIAL: [&str; 3] = [UNK, BOS, EOS];

/// `tokenizer.json` for `words`, which get the ids after the special tokens'.
///
/// Text is cut at white space and punctuation. The decoder is WordPiece's: a space between tokens, none before `.` and `,`.
pub fn tokenizer_json(words: &[String]) -> Value {
    let all = SPECIAL.iter().copied().chain(words.iter().map(String::as_str));
    let vocab: serde_json::Map<_, _> = all.enumerate().map(|(id, w)| (w.to_owned(), json!(id))).collect();
    let added: Vec<_> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, text)| {
            json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "WhitespaceSplit" },
            { "type": "Punctuation", "behavior": "Isolated" },
        ] },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": BOS, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [
                { "SpecialToken": { "id": BOS, "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 0 } },
            ],
            "special_tokens": { BOS: { "id": BOS, "ids": [1], "tokens": [BOS] } },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": UNK },
    })
}

/// Writes `tokenizer.json` and `tokenizer_config.json` into `dir`.
pub fn write(dir: &Path, words: &[String]) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir, "create the folder"))?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": false,
    });
    for (name, value) in [("tokenizer.json", tokenizer_json(words)), ("tokenizer_config.json", config)] {
        let text = serde_json::to_string_pretty(&value).expect("plain values") + "\n";
        files::write(&dir.join(name), text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::grammar::{Draws, Grammar};
    use crate::demo::words::join;
    use tokenizers::Tokenizer;

    #[test]
    fn words_become_one_token_each_and_come_back() {
        let g = Grammar::reviews();
        let words = g.vocabulary();
        let tok = Tokenizer::from_bytes(tokenizer_json(&words).to_string()).unwrap();
        assert_eq!(tok.get_vocab_size(true), words.len() + SPECIAL.len());
        for i in 0..300 {
            let review = g.generate(&mut Draws::new(3, i));
            let text = join(&review.words);
            let ids = tok.encode(text.as_str(), true).unwrap().get_ids().to_vec();
            assert_eq!(ids.len(), review.words.len() + 1, "{text}");
            assert_eq!(ids[0], 1);
            assert!(ids[1..].iter().all(|id| *id as usize >= SPECIAL.len()), "{text}");
            assert_eq!(tok.decode(&ids, true).unwrap(), text);
        }
        let ids = tok.encode("The film was xylophonic.</s>", true).unwrap().get_ids().to_vec();
        assert_eq!((ids[4], ids.len(), ids[6]), (0, 7, 2));
    }
}
