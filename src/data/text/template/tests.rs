//! Jinja2's tests: `is defined` and its like.

use super::attr::callable;
use super::cases;
use super::fault::{Res, raise};
use super::iter::{Iter, len};
use super::number::Op;
use super::ops::{binary, contains, identical, order};
use super::percent::percent;
use super::repr::text;
use super::value::{Args, Machine, Value, equal};
use std::cmp::Ordering;

/// Names of the tests.
pub const NAMES: &[&str] = &[
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "sameas",
    "iterable",
    "callable",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Names of the filters.
pub const FILTERS: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

/// Asks test `name` of the first of `args`.
pub fn ask(m: &dyn Machine, name: &str, args: Args) -> Res<bool> {
    let parameters: &[&str] = match name {
        "divisibleby" => &["value", "num"],
        "in" => &["value", "seq"],
        "sameas" => &["value", "other"],
        "==" | "eq" | "equalto" | "!=" | "ne" | ">" | "gt" | "greaterthan" | "ge" | ">=" | "<" | "lt" | "lessthan"
        | "<=" | "le" => return compare(m, name, args),
        "callable" => return args.places::<1>(name, 1).map(|[v]| callable(&v.unwrap_or(Value::None))),
        _ => &["value"],
    };
    let [value, other] = match parameters.len() {
        1 => args.bind(name, ["value"], 1).map(|[v]| [v, None])?,
        _ => args.bind(name, ["value", parameters[1]], 2)?,
    };
    let (value, other) = (value.unwrap_or(Value::None), other.unwrap_or(Value::None));
    let remainder = |by: i64| modulo(m, &value, &Value::Int(by));
    Ok(match name {
        "odd" => equal(&remainder(2)?, &Value::Int(1)),
        "even" => equal(&remainder(2)?, &Value::Int(0)),
        "divisibleby" => equal(&modulo(m, &value, &other)?, &Value::Int(0)),
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "filter" => known(FILTERS, &value)?,
        "test" => known(NAMES, &value)?,
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_) | Value::Big(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_)),
        "lower" => cases::question("islower", &text(m, &value)?).unwrap_or(Ok(false))?,
        "upper" => cases::question("isupper", &text(m, &value)?).unwrap_or(Ok(false))?,
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => match &value {
            Value::Object(object) => object.type_name() == "range",
            _ => len(m, &value)?.is_some(),
        },
        "iterable" => Iter::of(&value).is_some(),
        "escaped" => matches!(&value, Value::Str(s) if s.safe),
        "in" => contains(m, &other, &value)?,
        "sameas" => identical(&value, &other)?,
        _ => return raise(format!("No test named '{name}'")),
    })
}

fn modulo(m: &dyn Machine, value: &Value, by: &Value) -> Res<Value> {
    match value {
        Value::Str(s) => percent(m, s, by),
        _ => binary(m, Op::Mod, value, by),
    }
}

fn known(names: &[&str], value: &Value) -> Res<bool> {
    match value {
        Value::Str(name) => Ok(names.contains(&&*name.text)),
        Value::List(_) | Value::Dict(_) => raise(format!("TypeError: unhashable type: '{}'", value.type_name())),
        _ => Ok(false),
    }
}

fn compare(m: &dyn Machine, name: &str, args: Args) -> Res<bool> {
    let [a, b] = args.places(name, 2)?;
    let (a, b) = (a.unwrap_or(Value::None), b.unwrap_or(Value::None));
    m.budget().steps(a.size().min(b.size()) / 4)?;
    Ok(match name {
        "==" | "eq" | "equalto" => equal(&a, &b),
        "!=" | "ne" => !equal(&a, &b),
        ">" | "gt" | "greaterthan" => order(">", &a, &b)? == Ordering::Greater,
        "ge" | ">=" => order(">=", &a, &b)? != Ordering::Less,
        "<" | "lt" | "lessthan" => order("<", &a, &b)? == Ordering::Less,
        _ => order("<=", &a, &b)? != Ordering::Greater,
    })
}
