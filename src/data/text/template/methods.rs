//! Methods of Python's values.

use super::args::int;
use super::attr::refuse_method;
use super::fault::{Fault, Res, raise};
use super::fields::format_text;
use super::helpers::from_keys;
use super::number::as_float;
use super::strings;
use super::value::{Args, Dict, Items, Key, Machine, Value, equal};
use super::views::{Shows, View};
use std::rc::Rc;

/// Calls method `name` of `receiver`, which has one of that name.
pub fn call(m: &dyn Machine, receiver: &Value, name: &str, args: Args) -> Res<Value> {
    match receiver {
        Value::Str(s) => match name {
            "format" => format_text(m, s, args, false),
            "format_map" => format_text(m, s, args, true),
            _ => strings::call(m, s, name, args).unwrap_or_else(|| Err(refuse_method(receiver, name))),
        },
        Value::List(items) | Value::Tuple(items) => sequence(m, receiver, items, name, args),
        Value::Dict(dict) => dict_method(m, dict, name, args),
        _ => number(receiver, name, args),
    }
}

fn sequence(m: &dyn Machine, receiver: &Value, items: &Rc<Items>, name: &str, args: Args) -> Res<Value> {
    match name {
        "copy" => {
            args.places::<0>(name, 0)?;
            Value::list(items.items.clone())
        }
        "count" => {
            let [value] = args.places::<1>(name, 1)?;
            let value = value.unwrap_or(Value::None);
            m.budget().steps(items.size)?;
            Ok(Value::Int(items.items.iter().filter(|v| equal(v, &value)).count() as i64))
        }
        "index" => {
            let [value, start, stop] = args.places(name, 1)?;
            let value = value.unwrap_or(Value::None);
            let len = items.items.len() as i64;
            let bound = |v: Option<Value>, otherwise| {
                let at = v.map_or(Ok(otherwise), |v| int(name, &v))?;
                Ok::<_, Fault>(if at < 0 { at.saturating_add(len).max(0) } else { at.min(len) } as usize)
            };
            let (start, stop) = (bound(start, 0)?, bound(stop, len)?);
            m.budget().steps(items.size)?;
            let found = items.items.iter().enumerate().take(stop).skip(start).find(|(_, v)| equal(v, &value));
            match found {
                Some((at, _)) => Ok(Value::Int(at as i64)),
                None => raise(format!("ValueError: value is not in {}", receiver.type_name())),
            }
        }
        _ => Err(refuse_method(receiver, name)),
    }
}

fn dict_method(m: &dyn Machine, dict: &Rc<Dict>, name: &str, args: Args) -> Res<Value> {
    let shows = match name {
        "get" => {
            let [key, default] = args.places(name, 1)?;
            let key = key.unwrap_or(Value::None);
            m.budget().steps(key.size() - 1)?;
            let found = match key {
                Value::Str(key) => dict.map.get(&*key.text),
                key => dict.map.get(&Key::new(key)?),
            };
            return Ok(found.cloned().or(default).unwrap_or(Value::None));
        }
        "fromkeys" => return from_keys(m, args),
        "copy" => {
            args.places::<0>(name, 0)?;
            m.budget().items(dict.map.len())?;
            let map = dict.map.iter().map(|(k, v)| (Key(k.0.clone()), v.clone())).collect();
            return Value::dict(map);
        }
        "keys" => Shows::Keys,
        "values" => Shows::Values,
        _ => Shows::Items,
    };
    args.places::<0>(name, 0)?;
    Value::object(View { dict: dict.clone(), shows })
}

fn number(receiver: &Value, name: &str, args: Args) -> Res<Value> {
    match (receiver, name) {
        (Value::Float(x), "is_integer") => {
            args.places::<0>(name, 0)?;
            Ok(Value::Bool(x.is_finite() && x.fract() == 0.0))
        }
        (Value::Float(_), "conjugate") => {
            args.places::<0>(name, 0)?;
            Ok(receiver.clone())
        }
        (_, "bit_length") if as_float(receiver).is_some() => {
            args.places::<0>(name, 0)?;
            Ok(Value::Int(receiver.as_int().map_or(0, |n| n.bits()) as i64))
        }
        (_, "conjugate") => {
            args.places::<0>(name, 0)?;
            Ok(Value::int(receiver.as_int().unwrap_or_default()))
        }
        _ => Err(refuse_method(receiver, name)),
    }
}
