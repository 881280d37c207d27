//! What a template's source is cut into.

use num_bigint::BigInt;

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// Text outside of tags.
    Data(String),
    /// `{{`
    VariableBegin,
    /// `}}`
    VariableEnd,
    /// `{%`
    BlockBegin,
    /// `%}`
    BlockEnd,
    /// An identifier or keyword.
    Name(String),
    /// A string literal's value.
    Str(String),
    /// An integer literal's value.
    Int(BigInt),
    /// A float literal's value.
    Float(f64),
    /// An operator or bracket.
    Op(&'static str),
    /// The end.
    End,
}
