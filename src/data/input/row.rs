//! A row, understood.

use serde_json::{Map, Value};

/// A text or a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Text {
    /// As it stands; EOS is appended to a response.
    Plain(String),
    /// Messages with `role` and `content`, for the chat template.
    Chat(Vec<Value>),
}

/// A row's prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Given.
    Text(Text),
    /// To be found as what chosen and rejected have in common.
    Implicit,
    /// There is none (`text` rows).
    None,
    /// Given, tokenised.
    Ids(Vec<u32>),
}

/// Why a response cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The empty string, no messages, messages without content, or no token.
    Empty,
    /// Neither a string nor a list of messages.
    NotText,
}

/// A response's content.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// To be tokenised.
    Text(Text),
    /// Tokenised.
    Ids(Vec<u32>),
    /// To be dropped and counted.
    Unusable(Unusable),
}

/// One response of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Place in the row: 0 chosen, 1 rejected, or the index in `responses`.
    pub index: u32,
    /// Content.
    pub body: Body,
    /// Score relative to the row's other responses.
    pub score: Option<f32>,
    /// Unpaired label: desirable or not.
    pub label: Option<bool>,
}

/// Which pairs a row makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pairs {
    /// Response 0 is preferred to response 1.
    Given {
        /// Weight of the pair.
        weight: f32,
    },
    /// A higher score is preferred to a lower one.
    FromScores {
        /// Weight of every pair of the row.
        weight: f32,
    },
    /// None.
    None,
}

/// A row, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the shape, for the report.
    pub shape: &'static str,
    /// Prompt.
    pub prompt: Prompt,
    /// Responses, in the row's order.
    pub responses: Vec<Response>,
    /// Pairs.
    pub pairs: Pairs,
    /// JSON schemas of tools, for the template.
    pub tools: Option<Value>,
    /// Further template variables.
    pub template_kwargs: Map<String, Value>,
    /// Columns that play no part.
    pub ignored: Vec<String>,
}
