//! A row, understood.

use serde_json::{Map, Value};
use std::fmt;

/// Names of the columns that a row's meaning was read from; `""` fills the places that are not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape(pub [&'static str; 3]);

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().filter(|name| !name.is_empty()).enumerate() {
            f.write_str(if i > 0 { ", " } else { "" })?;
            f.write_str(name)?;
        }
        Ok(())
    }
}

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

impl Response {
    pub(super) fn new(index: usize, body: Body) -> Self {
        Response { index: index as u32, body, score: None, label: None }
    }

    /// Its messages, where it is a conversation.
    pub(super) fn chat(&self) -> Option<&Vec<Value>> {
        if let Body::Text(Text::Chat(messages)) = &self.body { Some(messages) } else { None }
    }
}

/// A turn to be learned beside the row's first.
pub(super) struct Turn {
    pub prompt: Vec<Value>,
    pub response: Response,
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
    /// The columns it was read from, for the report.
    pub shape: Shape,
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

impl Row {
    pub(super) fn new(shape: [&'static str; 3], prompt: Prompt, responses: Vec<Response>, pairs: Pairs) -> Self {
        let (template_kwargs, ignored) = (Map::new(), Vec::new());
        Row { shape: Shape(shape), prompt, responses, pairs, tools: None, template_kwargs, ignored }
    }
}
