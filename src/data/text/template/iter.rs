//! Python's iteration.

use super::fault::{Res, raise};
use super::value::{Dict, Items, Machine, Object, Str, Value};
use std::rc::Rc;

/// An iterator over a value.
pub enum Iter {
    /// Members of a list or tuple from a place on.
    Items(Rc<Items>, usize),
    /// Characters of a text from a byte on.
    Chars(Str, usize),
    /// Keys of a dict from a place on.
    Keys(Rc<Dict>, usize),
    /// Members made before, in order.
    Made(std::vec::IntoIter<Value>),
    /// What an iterator gives.
    Object(Rc<dyn Object>),
    /// Members of a sized iterable from a place on.
    Sized(Rc<dyn Object>, usize),
}

impl Iter {
    /// `iter(value)`; `None` where it cannot be iterated.
    pub fn of(value: &Value) -> Option<Iter> {
        match value {
            Value::Missing | Value::Undefined(_) => Some(Iter::Made(Vec::new().into_iter())),
            Value::Str(s) => Some(Iter::Chars(s.clone(), 0)),
            Value::List(items) | Value::Tuple(items) => Some(Iter::Items(items.clone(), 0)),
            Value::Dict(dict) => Some(Iter::Keys(dict.clone(), 0)),
            Value::Object(object) if object.is_iterator() => Some(Iter::Object(object.clone())),
            Value::Object(object) => object.is_sized().then(|| Iter::Sized(object.clone(), 0)),
            Value::None | Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_) => None,
        }
    }

    /// [`Iter::of`], or Python's error.
    pub fn new(value: &Value) -> Res<Iter> {
        match Iter::of(value) {
            Some(iter) => Ok(iter),
            None => raise(format!("TypeError: '{}' object is not iterable", value.type_name())),
        }
    }

    /// The next member.
    pub fn next(&mut self, m: &dyn Machine) -> Res<Option<Value>> {
        m.budget().steps(1)?;
        Ok(match self {
            Iter::Items(items, at) => {
                *at += 1;
                items.items.get(*at - 1).cloned()
            }
            Iter::Chars(text, at) => {
                let c = text.get(*at..).and_then(|rest| rest.chars().next());
                c.map(|c| {
                    let from = *at;
                    *at += c.len_utf8();
                    Value::str(&text.text[from..*at])
                })
            }
            Iter::Keys(dict, at) => {
                *at += 1;
                dict.map.get_index(*at - 1).map(|(key, _)| key.0.clone())
            }
            Iter::Made(members) => members.next(),
            Iter::Sized(object, at) => {
                *at += 1;
                object.member(*at - 1)?
            }
            Iter::Object(object) => {
                m.budget().enter()?;
                let next = object.next(m);
                m.budget().leave();
                next?
            }
        })
    }
}

/// `list(value)`
pub fn members(m: &dyn Machine, value: &Value) -> Res<Vec<Value>> {
    if let Value::List(items) | Value::Tuple(items) = value {
        m.budget().items(items.items.len())?;
        return Ok(items.items.clone());
    }
    let mut iter = Iter::new(value)?;
    let mut out = Vec::new();
    while let Some(item) = iter.next(m)? {
        out.push(item);
        if out.len().is_power_of_two() {
            m.budget().items(out.len())?;
        }
    }
    Ok(out)
}

/// `len(value)`; `None` where it has none.
pub fn len(m: &dyn Machine, value: &Value) -> Res<Option<usize>> {
    Ok(match value {
        Value::Missing | Value::Undefined(_) => Some(0),
        Value::Str(s) => {
            m.budget().steps(s.len() as u64 / 4096)?;
            Some(chars(s))
        }
        Value::List(items) | Value::Tuple(items) => Some(items.items.len()),
        Value::Dict(dict) => Some(dict.map.len()),
        Value::Object(object) => object.len(m)?,
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_) => None,
    })
}

/// Code points of a text.
pub fn chars(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().count() }
}
