//! TOML that a person wrote, and where it is wrong.

use crate::error::{Error, Result};
use std::path::Path;
use toml::Table;

/// The table that `text`, of `path`, is. Errors: the line, and what is wrong there.
pub fn parse_toml(path: &Path, text: &str) -> Result<Table> {
    text.parse().map_err(|e: toml::de::Error| {
        let why = e.message().lines().next().unwrap_or("is not valid TOML");
        Error::file(path, format!("line {}: {why}", line_of(text, &e)))
    })
}

/// The line of `text`, from 1, that `e` is about.
pub fn line_of(text: &str, e: &toml::de::Error) -> usize {
    e.span().and_then(|s| text.get(..s.start)).unwrap_or_default().matches('\n').count() + 1
}
