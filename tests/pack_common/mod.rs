//! Shared by the tests of `pack`: where the test data are, and a small tokenizer made in code.

#![allow(dead_code)] // each test binary uses its own part

pub mod place;

use std::io::Read;
use std::path::{Path, PathBuf};

/// The folder of real test data, or a line saying that `test` is skipped.
pub fn test_data(test: &str) -> Option<PathBuf> {
    let found = std::env::var_os("FUSEDPO_TEST_DATA").map(PathBuf::from);
    if found.is_none() {
        println!("skipped: {test} (FUSEDPO_TEST_DATA is not set)");
    }
    found
}

/// A gzipped file's text.
pub fn read_gz(path: &Path) -> String {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text
}

/// The byte-level alphabet of GPT-2: every byte as a printable character.
fn byte_char(b: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(b) {
        return b as char;
    }
    let rank = (0..b).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + rank).unwrap()
}

/// Writes a model directory with a byte-level BPE tokenizer: 3 special tokens, 256 bytes and a few merges, enough for
/// tokens to merge across a boundary. `bos` puts `<s>` before every text. Returns the directory.
pub fn tiny_model(dir: &Path, bos: bool) -> PathBuf {
    use serde_json::json;
    let mut vocab = serde_json::Map::new();
    for token in ["<s>", "</s>", "<|turn|>"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    for b in 0..=255u8 {
        vocab.insert(byte_char(b).to_string(), vocab.len().into());
    }
    let merges = [
        "Ġ t", "h e", "Ġt he", "i n", "r e", "o n", "Ġ a", "a n", "Ġ b", "l l", "o u", "Ġa n", "Ċ Ċ", "Ġ Ġ", "' t",
        "e r",
    ];
    for merge in merges {
        vocab.insert(merge.replace(' ', ""), vocab.len().into());
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>"), special(2, "<|turn|>")],
        "pre_tokenizer": byte_level, "post_processor": if bos { template } else { json!(null) }, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges}});
    let model = dir.join(if bos { "tiny-bos" } else { "tiny" });
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template":
        "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}\
         {% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"});
    std::fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
    model
}

/// A small deterministic generator (xorshift), so that tests need no seed file.
pub struct Random(pub u64);

impl Random {
    /// The next number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}
