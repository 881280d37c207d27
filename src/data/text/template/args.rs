//! Arguments of a call, given to parameters as Python gives them.

use super::fault::{Res, raise};
use super::value::{Args, Value};

impl Args {
    /// Arguments by place only.
    pub fn of(pos: Vec<Value>) -> Self {
        Self { pos, kw: Vec::new() }
    }

    /// What each parameter gets; the first `required` must get something.
    pub fn bind<const N: usize>(self, func: &str, names: [&str; N], required: usize) -> Res<[Option<Value>; N]> {
        let mut out = [const { None }; N];
        if self.pos.len() > N {
            return raise(format!("TypeError: {func}() takes at most {N} arguments ({} given)", self.pos.len()));
        }
        for (slot, value) in out.iter_mut().zip(self.pos) {
            *slot = Some(value);
        }
        for (name, value) in self.kw {
            let Some(at) = names.iter().position(|n| **n == *name) else {
                return raise(format!("TypeError: {func}() got an unexpected keyword argument '{name}'"));
            };
            if out[at].is_some() {
                return raise(format!("TypeError: {func}() got multiple values for argument '{name}'"));
            }
            out[at] = Some(value);
        }
        match out.iter().take(required).position(Option::is_none) {
            Some(at) => raise(format!("TypeError: {func}() missing a required argument: '{}'", names[at])),
            None => Ok(out),
        }
    }

    /// Arguments by place, between `min` and `N` of them.
    pub fn places<const N: usize>(self, func: &str, min: usize) -> Res<[Option<Value>; N]> {
        if let Some((name, _)) = self.kw.first() {
            return raise(format!("TypeError: {func}() takes no keyword arguments (got '{name}')"));
        }
        if self.pos.len() < min || self.pos.len() > N {
            return raise(format!("TypeError: {func}() takes {min} to {N} arguments ({} given)", self.pos.len()));
        }
        let mut out = [const { None }; N];
        for (slot, value) in out.iter_mut().zip(self.pos) {
            *slot = Some(value);
        }
        Ok(out)
    }
}

/// A parameter that takes an int.
pub fn int(func: &str, value: &Value) -> Res<i64> {
    match value.as_index() {
        Some(n) => Ok(n),
        None => raise(format!("TypeError: {func}: '{}' object cannot be interpreted as an integer", value.type_name())),
    }
}

/// A parameter that takes a text.
pub fn text<'a>(func: &str, value: &'a Value) -> Res<&'a super::value::Str> {
    match value.as_str() {
        Some(s) => Ok(s),
        None => raise(format!("TypeError: {func}: argument must be str, not {}", value.type_name())),
    }
}

/// Whether an optional parameter was given and is not `None`.
pub fn given(value: &Option<Value>) -> Option<&Value> {
    value.as_ref().filter(|v| !matches!(v, Value::None))
}
