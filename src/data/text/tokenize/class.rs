//! Which of its tokenizer classes `transformers` 5 takes for a folder, and what that class makes of `tokenizer.json`.
//!
//! Most folders are read as they stand. A few classes take only vocabulary, merges and post-processor from
//! `tokenizer.json` and bring normalizer, pre-tokenizer and decoder themselves: the text is then split by the class's
//! rules, whatever the file says. Those of the families that we load are built here in the same way; the others are
//! refused by name.

use super::files::Files;
use crate::error::Result;
use serde_json::{Map, Value, json};

/// How a folder's tokenizer is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `tokenizer.json` as it stands.
    Plain,
    /// SentencePiece BPE with byte fallback, spaces as `▁`.
    Llama,
    /// Byte-level BPE, GPT-2's pattern.
    Gpt2,
    /// [`Class::Gpt2`] over NFC; no post-processor.
    GptNeoX,
    /// Byte-level BPE, Qwen2's pattern, over NFC.
    Qwen2,
    /// A class with rules that are not known here.
    Other(String),
}

/// Classes of transformers 5.23 that build their own tokenizer, or need no `tokenizer.json` at all; `Fast` left off.
const OTHERS: &str = "Albert Bart Barthez Bert BigBird Blenderbot CLIP Camembert CodeGen CodeLlama Cohere Cpm \
    DPRContextEncoder DPRQuestionEncoder DPRReader Deberta DebertaV2 DistilBert Esmc Funnel Gemma Herbert LED Lasr \
    LayoutLMv2 LayoutLMv3 LayoutXLM Luke Lxmert MBart50 MBart MLuke MPNet MarkupLM MobileBert Mvp Nllb Nougat OpenAIGPT \
    Pegasus Qwen3_5 Reformer RemBert RoFormer Roberta SeamlessM4T Siglip2 Splinter SqueezeBert T5 Tipsv2 Udop VideoPrism \
    Whisper XGLM XLMRoberta XLNet Bartpho BertGeneration BertJapanese Bertweet BioGpt BlenderbotSmall ByT5 CTRL Canine \
    Clvp CpmAnt Dia Esm FSMT FastSpeech2Conformer Flaubert GPTNeoXJapanese GPTSw3 M2M100 Marian Mgpstr MyT5 PLBart \
    Perceiver Phobert Pop2Piano ProphetNet Rag RoCBert Siglip Speech2Text SpeechT5 Tapas Vits Wav2Vec2CTC \
    Wav2Vec2PhonemeCTC XLM";

/// Qwen2's pattern, wherever its class is named.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Class {
    /// The class that a name in `tokenizer_config.json` or `config.json` means.
    fn named(name: &str) -> Self {
        let base = without_fast(name);
        match base {
            "LlamaTokenizer" => Self::Llama,
            "GPT2Tokenizer" => Self::Gpt2,
            "GPTNeoXTokenizer" => Self::GptNeoX,
            "Qwen2Tokenizer" => Self::Qwen2,
            _ => match base.strip_suffix("Tokenizer") {
                // Its fast class adds nothing to the general one.
                Some("DPRContextEncoder" | "DPRQuestionEncoder" | "DPRReader") if base != name => Self::Plain,
                Some(stem) if OTHERS.split_whitespace().any(|o| o == stem) => Self::Other(name.to_owned()),
                _ => Self::Plain,
            },
        }
    }

    /// What transformers' `AutoTokenizer` chooses: by the model's type, then by the class that a file names.
    pub fn of(files: &Files) -> Self {
        let text = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
        let own = text(&files.config, "tokenizer_class");
        let models = text(&files.model, "tokenizer_class");
        let model_type = text(&files.model, "model_type").unwrap_or_default();
        let remote = match files.config.get("auto_map") {
            None | Some(Value::Null) => false,
            Some(Value::Object(map)) => map.get("AutoTokenizer").is_some_and(|v| !v.is_null()),
            Some(_) => true,
        };
        let registered = match model_type.as_str() {
            "qwen2" | "qwen3" => Some("Qwen2Tokenizer"),
            "mistral" => Some("TokenizersBackend"),
            _ => None,
        };
        // The hub's class is known to be wrong for this type.
        let distrusted = model_type == "qwen2";
        let named = own.as_deref().or(models.as_deref());
        if let (Some(named), false) = (named, remote) {
            let llama_by_bytes = without_fast(named) == "LlamaTokenizer" && has_byte_level(&files.json);
            if llama_by_bytes && !distrusted {
                return Self::Plain;
            }
            if let Some(registered) = registered.filter(|r| *r != without_fast(named)) {
                return match registered {
                    "TokenizersBackend" => Self::Plain,
                    _ => Self::named(if distrusted { registered } else { named }),
                };
            }
        }
        match named.or(registered) {
            Some(name) => Self::named(name),
            None => Self::Plain,
        }
    }

    /// Special tokens that the class sets where `tokenizer_config.json` does not have the key.
    pub fn defaults(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Plain | Self::Other(_) => &[],
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Self::Gpt2 => {
                &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")]
            }
            Self::GptNeoX => &[
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
                ("pad_token", "<|padding|>"),
            ],
            Self::Qwen2 => {
                &[("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")]
            }
        }
    }

    /// The name under which it is found again, without a `config.json`.
    pub fn name(&self) -> &str {
        match self {
            Self::Plain => "PreTrainedTokenizerFast",
            Self::Llama => "LlamaTokenizer",
            Self::Gpt2 => "GPT2Tokenizer",
            Self::GptNeoX => "GPTNeoXTokenizer",
            Self::Qwen2 => "Qwen2Tokenizer",
            Self::Other(name) => name,
        }
    }

    /// Whether the padding section of `tokenizer.json` may name the padding token: not where the class names it.
    pub fn pads_by_file(&self) -> bool {
        matches!(self, Self::Plain | Self::Llama)
    }

    /// The description of the tokenizer that the class builds from that of `tokenizer.json`, without added tokens; `None`
    /// where the file is taken as it stands. Errors: what the class would not take either.
    pub fn rebuilt(&self, files: &Files, description: &Value) -> Result<Option<Value>> {
        let bad = |why: &str| files.bad("tokenizer.json", why.to_owned());
        let prefix_space = match files.config.get("add_prefix_space") {
            None => None,
            Some(Value::Null) if matches!(self, Self::Llama | Self::Qwen2) => None,
            Some(Value::Bool(b)) => Some(*b),
            Some(other) => {
                let why = format!("`add_prefix_space` is {other}, expected true or false");
                return Err(files.bad("tokenizer_config.json", why));
            }
        };
        let byte_level = |space: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": regex});
        let nfc = json!({"type": "NFC"});
        let (normalizer, pre_tokenizer, decoder, fill, post) = match self {
            Self::Plain => return Ok(None),
            Self::Other(name) => {
                let why = format!(
                    "tokenizer_class {name}: transformers builds this tokenizer by rules of its own, which are not supported; where tokenizer.json is right as it stands, set `tokenizer_class` to \"PreTrainedTokenizerFast\""
                );
                return Err(files.bad("tokenizer_config.json", why));
            }
            Self::Llama => {
                let legacy = files.config.get("legacy").is_some_and(truthy);
                let scheme = match (prefix_space.unwrap_or(true), legacy) {
                    (false, _) => "never",
                    (true, true) => "always",
                    (true, false) => "first",
                };
                let mut steps = vec![
                    json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                    json!({"type": "ByteFallback"}),
                    json!({"type": "Fuse"}),
                ];
                if prefix_space.unwrap_or(true) {
                    steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                let pre = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
                (Value::Null, pre, json!({"type": "Sequence", "decoders": steps}), None, true)
            }
            Self::Gpt2 => {
                (Value::Null, byte_level(prefix_space.unwrap_or(false), true), byte_level(true, true), Some(""), true)
            }
            Self::GptNeoX => {
                (nfc, byte_level(prefix_space.unwrap_or(false), true), byte_level(true, true), Some(""), false)
            }
            Self::Qwen2 => {
                let split =
                    json!({"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": false});
                let bytes = byte_level(prefix_space.unwrap_or(false), false);
                let pre = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
                (nfc, pre, byte_level(true, true), Some(""), true)
            }
        };
        let llama = *self == Self::Llama;
        let merges = match &description["model"]["merges"] {
            Value::Null => Value::Array(Vec::new()),
            merges => merges.clone(),
        };
        Ok(Some(json!({
            "version": "1.0", "added_tokens": [],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder,
            "post_processor": if post { description["post_processor"].clone() } else { Value::Null },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": fill, "end_of_word_suffix": fill,
                "fuse_unk": llama, "byte_fallback": llama, "ignore_merges": false,
                "vocab": vocabulary(&description["model"]["vocab"]).ok_or_else(|| bad("its model has no vocabulary"))?,
                "merges": merges,
            },
        })))
    }
}

/// Text to id: as it is, or the places in a list of pieces (and their scores).
fn vocabulary(vocab: &Value) -> Option<Value> {
    match vocab {
        Value::Object(_) => Some(vocab.clone()),
        Value::Array(pieces) => {
            let text = |p: &Value| p.as_str().or_else(|| p.get(0)?.as_str()).map(str::to_owned);
            let numbered = pieces.iter().enumerate().map(|(i, p)| Some((text(p)?, Value::from(i))));
            numbered.collect::<Option<Map<_, _>>>().map(Value::Object)
        }
        _ => None,
    }
}

/// As Python's `bool()`.
pub(super) fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn without_fast(name: &str) -> &str {
    name.strip_suffix("Fast").unwrap_or(name)
}

fn has_byte_level(json: &[u8]) -> bool {
    const WORD: &[u8] = b"\"ByteLevel\"";
    json.windows(WORD.len()).any(|w| w == WORD)
}
