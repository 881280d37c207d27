//! Attributes and members as Jinja2's immutable sandbox gives them.

use super::fault::{Fault, Res, raise};
use super::ops::item;
use super::value::{Args, Machine, Object, Value};

/// Methods of `str`.
const STR: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
/// What Markup has beyond `str`.
const MARKUP: &[&str] = &["striptags", "unescape", "escape"];
/// Methods of `list` that change nothing, and those that the sandbox hides.
const LIST: &[&str] = &["copy", "count", "index"];
const LIST_HIDDEN: &[&str] = &["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];
/// Methods of `dict`.
const DICT: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];
const DICT_HIDDEN: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
/// Attributes of numbers.
const INT: &[&str] = &[
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "denominator",
    "from_bytes",
    "imag",
    "numerator",
    "real",
    "to_bytes",
];
const FLOAT: &[&str] = &["as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"];
/// Names with underscores that every dict has.
const DUNDER: &[&str] = &[
    "class",
    "class_getitem",
    "contains",
    "delattr",
    "delitem",
    "dir",
    "doc",
    "eq",
    "format",
    "ge",
    "getattribute",
    "getitem",
    "getstate",
    "gt",
    "hash",
    "init",
    "init_subclass",
    "ior",
    "iter",
    "le",
    "len",
    "lt",
    "ne",
    "new",
    "or",
    "reduce",
    "reduce_ex",
    "repr",
    "reversed",
    "ror",
    "setattr",
    "setitem",
    "sizeof",
    "str",
    "subclasshook",
];

/// A method with the value that it belongs to.
struct Method {
    receiver: Value,
    name: &'static str,
}

impl Object for Method {
    fn type_name(&self) -> &'static str {
        "builtin_function_or_method"
    }

    fn call(&self, m: &dyn Machine, args: Args) -> Res<Value> {
        m.method(&self.receiver, self.name, args)
    }

    fn callable(&self) -> bool {
        true
    }

    fn depth(&self) -> u32 {
        self.receiver.depth() + 1
    }
}

/// The method's own name, where `value`'s type has it and it can be called.
pub fn method_name(value: &Value, name: &str) -> Option<&'static str> {
    let of: &[&str] = match value {
        Value::Str(_) => STR,
        Value::List(_) => LIST,
        Value::Tuple(_) => &["count", "index"],
        Value::Dict(_) => DICT,
        Value::Bool(_) | Value::Int(_) | Value::Big(_) => INT,
        Value::Float(_) => FLOAT,
        _ => &[],
    };
    let markup = matches!(value, Value::Str(s) if s.safe).then_some(MARKUP).unwrap_or_default();
    of.iter().chain(markup).find(|n| **n == name).copied()
}

fn hidden(value: &Value, name: &str) -> bool {
    match value {
        Value::List(_) => LIST_HIDDEN.contains(&name),
        Value::Dict(_) => DICT_HIDDEN.contains(&name),
        _ => false,
    }
}

/// `getattr(obj, name)`; `None` where there is none. What the sandbox hides is undefined.
pub fn attribute(m: &dyn Machine, obj: &Value, name: &str) -> Res<Option<Value>> {
    let dunder = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"));
    let unsafe_ = || {
        let kind = obj.type_name();
        Value::undefined(format!("access to attribute '{name}' of '{kind}' object is unsafe."))
    };
    if let Value::Undefined(what) = obj {
        return match dunder {
            Some(known) if DUNDER.contains(&known) => Ok(Some(unsafe_())),
            Some(_) => Ok(None),
            None if name.starts_with("_undefined_") => Ok(Some(unsafe_())),
            None => raise(&**what),
        };
    }
    if dunder.is_some_and(|known| DUNDER.contains(&known)) || hidden(obj, name) {
        return Ok(Some(unsafe_()));
    }
    if name.starts_with('_') {
        return Ok(None);
    }
    if let Value::Object(object) = obj {
        return object.attr(m, name);
    }
    if let Value::Tuple(items) = obj
        && items.group
    {
        match name {
            "grouper" => return Ok(items.items.first().cloned()),
            "list" => return Ok(items.items.get(1).cloned()),
            _ => {}
        }
    }
    let Some(name) = method_name(obj, name) else { return Ok(None) };
    number(obj, name)?.map_or_else(|| Value::object(Method { receiver: obj.clone(), name }).map(Some), |v| Ok(Some(v)))
}

/// Attributes of numbers that are no methods.
fn number(obj: &Value, name: &str) -> Res<Option<Value>> {
    Ok(match (obj, name) {
        (Value::Str(_) | Value::List(_) | Value::Dict(_) | Value::Tuple(_), _) => None,
        (Value::Float(_), "real") => Some(obj.clone()),
        (Value::Float(_), "imag") => Some(Value::Float(0.0)),
        (_, "real" | "numerator") => obj.as_int().map(Value::int),
        (_, "imag") => Some(Value::Int(0)),
        (_, "denominator") => Some(Value::Int(1)),
        _ => None,
    })
}

fn missing(obj: &Value, name: &Value) -> Value {
    let kind = obj.type_name();
    Value::undefined(match name {
        Value::Str(name) => format!("'{kind} object' has no attribute '{}'", name.text),
        _ => format!("{kind} object has no such element"),
    })
}

/// `obj.name`: the attribute, else the member.
pub fn get_attr(m: &dyn Machine, obj: &Value, name: &str) -> Res<Value> {
    if let Some(value) = attribute(m, obj, name)? {
        return Ok(value);
    }
    // Most of all a message's field: without a key of its own.
    if let Value::Dict(dict) = obj {
        return Ok(dict.get(name).cloned().unwrap_or_else(|| missing(obj, &Value::str(name))));
    }
    let key = Value::str(name);
    Ok(item(m, obj, &key)?.unwrap_or_else(|| missing(obj, &key)))
}

/// `obj[key]`: the member, else the attribute.
pub fn get_item(m: &dyn Machine, obj: &Value, key: &Value) -> Res<Value> {
    if let Some(value) = item(m, obj, key)? {
        return Ok(value);
    }
    if let Value::Str(name) = key
        && let Some(value) = attribute(m, obj, name)?
    {
        return Ok(value);
    }
    Ok(missing(obj, key))
}

/// `callable(value)`
pub fn callable(value: &Value) -> bool {
    match value {
        Value::Undefined(_) => true,
        Value::Object(object) => object.callable(),
        _ => false,
    }
}

/// A method that Python has and this program does not.
pub fn refuse_method(value: &Value, name: &str) -> Fault {
    Fault::refused(format!("the method {name}() of {}", value.type_name()))
}
