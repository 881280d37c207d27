//! What a tokenizer folder does not say, or should not decide.

use crate::choice;
use std::path::PathBuf;

choice! {
    /// Chat templates that come with the program, for models that have none.
    pub enum BuiltInTemplate: default Chatml {
        /// `<|im_start|>user`, as Qwen's and many others; turns end with `<|im_end|>`.
        Chatml = "chatml",
        /// `<|user|>`, as Zephyr's and TinyLlama's; turns end with the EOS text.
        Zephyr = "zephyr",
        /// `### Instruction:` and `### Response:`; responses end with the EOS text.
        Alpaca = "alpaca",
    }
}

impl BuiltInTemplate {
    /// Its text, in Jinja.
    pub fn source(self) -> &'static str {
        match self {
            Self::Chatml => include_str!("../template/built_in/chatml.jinja"),
            Self::Zephyr => include_str!("../template/built_in/zephyr.jinja"),
            Self::Alpaca => include_str!("../template/built_in/alpaca.jinja"),
        }
    }
}

/// Which chat template a tokenizer gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TemplateChoice {
    /// The model's own: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`.
    #[default]
    Auto,
    /// None: conversations are refused.
    None,
    /// One that comes with the program.
    BuiltIn(BuiltInTemplate),
    /// This file's text.
    File(PathBuf),
}

/// What a tokenizer folder does not say, or should not decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerOptions {
    /// EOS text in place of the configuration's.
    pub eos_token: Option<String>,
    /// Chat template.
    pub chat_template: TemplateChoice,
}
