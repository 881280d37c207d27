//! What a tokenizer folder does not say, or should not decide.

use std::path::PathBuf;

/// Which chat template a tokenizer gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TemplateChoice {
    /// The model's own: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`.
    #[default]
    Auto,
    /// None: conversations are refused.
    None,
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
