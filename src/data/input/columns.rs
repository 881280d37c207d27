//! A row's columns on their way to be understood.

use super::fields::names;
use super::json_row::kind;
use super::python_json;
use super::row::Turn;
use serde_json::{Map, Value};

/// A row's columns: those that hold something. What a shape takes is gone; the rest plays no part.
pub(super) struct Columns {
    map: Map<String, Value>,
    /// Whether every turn of the assistant's is to be learned.
    pub every_turn: bool,
    /// Turns to be learned beside the first, where the row teaches turns at all.
    pub further: Option<Vec<Turn>>,
}

impl Columns {
    /// A null column is an absent one: tables of several shapes fill up with nulls.
    pub fn new(mut fields: Map<String, Value>) -> Self {
        fields.retain(|_, value| !value.is_null());
        Self { map: fields, every_turn: false, further: None }
    }

    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }
    pub fn has_all(&self, names: &[&str]) -> bool {
        names.iter().all(|n| self.has(n))
    }
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }
    pub fn names(&self) -> String {
        names(&self.map)
    }
    pub fn drop(&mut self, name: &str) {
        self.map.shift_remove(name);
    }

    /// Takes a column out. Errors: it holds what no JSON value stands for.
    pub fn take(&mut self, name: &str) -> Result<Option<Value>, String> {
        match self.map.shift_remove(name) {
            Some(value) => match python_json::what_it_was(&value) {
                Some(what) => Err(format!("`{name}` holds {what}, which means nothing here")),
                None => Ok(Some(value)),
            },
            None => Ok(None),
        }
    }

    /// Takes a column that is there.
    pub fn need(&mut self, name: &str) -> Result<Value, String> {
        Ok(self.take(name)?.unwrap_or_default())
    }

    /// Takes a column of text, if it is there.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.take(name)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("`{name}` must be a string, found {}", kind(&other))),
        }
    }

    /// Names of what nobody took.
    pub fn rest(self) -> Vec<String> {
        self.map.into_iter().map(|(name, _)| name).collect()
    }
}
