//! Input files: JSONL, JSON arrays, CSV and TSV, any of them in gzip or zstd, and Parquet, told apart by their content.
//!
//! A reader ([`open()`]) hands out rows as they stand in the file ([`RawRow`]), so that the costly part (parsing, templates,
//! tokenising) can run on every core; [`parse()`] then says what a row means.

mod calendar;
mod cells;
mod columns;
mod csv;
mod dialogue;
mod fields;
mod integers;
mod json;
mod json_row;
mod json_text;
mod messages;
mod open;
mod packed;
mod pairs;
mod parquet;
mod parse;
mod prompt;
mod python_json;
mod python_literal;
mod raw;
mod reading;
mod requests;
mod row;
mod turns;
mod values;
mod wild;

pub use cells::Cells;
pub use fields::FieldMap;
pub use integers::{marked_integer, unmarked};
pub use messages::same_turn;
pub use open::open;
pub use parse::{parse, parse_turns};
pub use prompt::parse_prompt;
pub use raw::{Place, RawBody, RawRow, RowIter, RowsHash};
pub use reading::{FREE, Limits, Reading};
pub use row::{Body, Pairs, Prompt, Response, Row, Shape, Text, Unusable};
