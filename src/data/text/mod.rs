//! Text to token ids: a model's tokenizer, its chat template, and where a row's prompt ends.

mod boundary;
mod cuts;
mod render;
mod template;
mod tokenize;
mod wrap;

pub use boundary::{PromptBoundary, Refusal, TokenResponse, TokenRow, last_turn_prompt_len, tokenise, trl_prompt_len};
pub use render::{encode_prompt, user_turn, visible};
pub use template::{ChatTemplate, Sources};
pub use tokenize::{
    BuiltInTemplate, PROMPTS_KEY, Special, TemplateChoice, TextTokenizer, TokenizerIdentity, TokenizerOptions,
};
pub use wrap::wrap;
