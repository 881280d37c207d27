//! A model's tokenizer: text to ids exactly as `transformers`' `tokenizer(text)` and TRL 1.16 give them.
//!
//! Every completion must be tokenised together with its prompt, because tokens merge across the boundary. Done plainly
//! that reads the prompt K + 1 times. [`TextTokenizer::encode_family`] reads it once where that is provably the same: for
//! the pre-tokenizers listed in `cuts`, a space between two ASCII letters always ends one piece and begins the next,
//! whatever stands further left or right, so the text may be cut there. Elsewhere every text is tokenised whole.

mod added;
mod call;
mod class;
mod encode;
mod files;
mod find_template;
mod identity;
mod limits;
mod mistral;
mod options;
mod patience;
mod tokenizer;

pub use options::{BuiltInTemplate, TemplateChoice, TokenizerOptions};
pub use tokenizer::{PROMPTS_KEY, Special, TextTokenizer, TokenizerIdentity};
