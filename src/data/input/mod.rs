//! Input files: JSONL, JSON arrays, either gzipped, and Parquet, told apart by their content.
//!
//! A reader ([`open()`]) hands out rows as they stand in the file ([`RawRow`]), so that the costly part (parsing, templates,
//! tokenising) can run on every core; [`parse()`] then says what a row means.

mod dialogue;
mod fields;
mod json;
mod open;
mod parquet;
mod parse;
mod raw;
mod reading;
mod row;

pub use fields::FieldMap;
pub use open::open;
pub use parse::parse;
pub use raw::{Place, RawBody, RawRow, RowIter};
pub use reading::{FREE, Limits, Reading};
pub use row::{Body, Pairs, Prompt, Response, Row, Text, Unusable};
