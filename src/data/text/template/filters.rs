//! Jinja2's filters that give their value at once.

use super::args::{given, int};
use super::attr::{attribute, get_attr, get_item};
use super::convert::{Failed, parse_int, to_int, to_number};
use super::fault::{Fault, Res, raise};
use super::iter::{Iter, len, members};
use super::number::Op;
use super::ops::{binary, escape, order, sort};
use super::percent::percent;
use super::repr::{repr, text};
use super::unicode::is_digit;
use super::value::{Args, Items, Key, Machine, Str, Value, equal};
use std::cmp::Ordering;
use std::rc::Rc;

/// Applies filter `name`, one that the other files lack.
pub fn call(m: &dyn Machine, name: &str, args: Args) -> Res<Value> {
    match name {
        "abs" => abs(args),
        "attr" => attr(m, args),
        "count" | "length" => length(m, args),
        "d" | "default" => default(m, args),
        "dictsort" => dictsort(m, args),
        "first" => first(m, args),
        "float" | "int" => number(name, args),
        "format" => format(m, args),
        "groupby" => groupby(m, args),
        "join" => join(m, args),
        "last" => last(m, args),
        "list" => args.bind("list", ["value"], 1).and_then(|[v]| Value::list(members(m, &v.unwrap_or(Value::None))?)),
        "max" | "min" => extreme(m, name == "max", args),
        "pprint" => pprint(m, args),
        "random" | "urlize" => Err(Fault::refused(format!("the filter {name}"))),
        "sort" => sorted(m, args),
        "sum" => sum(m, args),
        _ => raise(format!("No filter named '{name}'")),
    }
}

/// `soft_str(value)`: a text as it is, everything else as `str` gives it.
pub fn soft(m: &dyn Machine, value: &Value) -> Res<Str> {
    match value {
        Value::Str(s) => Ok(s.clone()),
        _ => text(m, value).map(Str::plain),
    }
}

/// Steps to an attribute such as `a.b.0`.
pub fn path(m: &dyn Machine, attribute: &Value) -> Res<Vec<Value>> {
    let part = |part: &str| match !part.is_empty() && part.chars().all(is_digit) {
        true => parse_int(part, 10).map_err(|_| Fault::raised("ValueError: invalid literal for int()")),
        false => Ok(Value::str(part)),
    };
    m.budget().steps(1)?;
    match attribute {
        Value::None => Ok(Vec::new()),
        Value::Str(s) => s.split('.').map(part).collect(),
        other => Ok(vec![other.clone()]),
    }
}

/// What stands at the end of `path`; `default` in place of what is undefined.
pub fn follow(m: &dyn Machine, value: &Value, path: &[Value], default: Option<&Value>) -> Res<Value> {
    let mut here = value.clone();
    for part in path {
        here = get_item(m, &here, part)?;
        if let Some(default) = default.filter(|_| here.is_undefined()) {
            here = default.clone();
        }
    }
    Ok(here)
}

/// `value` in lower case, where it is a text and case does not count.
pub fn folded(value: Value, sensitive: bool) -> Value {
    match &value {
        Value::Str(s) if !sensitive => Value::marked(s.to_lowercase(), s.safe),
        _ => value,
    }
}

/// A parameter that is true or false.
pub fn flag(m: &dyn Machine, value: &Option<Value>, otherwise: bool) -> Res<bool> {
    value.as_ref().map_or(Ok(otherwise), |v| v.truth(m))
}

fn abs(args: Args) -> Res<Value> {
    let [value] = args.places::<1>("abs", 1)?;
    match value.unwrap_or(Value::None) {
        Value::Float(x) => Ok(Value::Float(x.abs())),
        value => match value.as_int() {
            Some(n) if n < 0.into() => Ok(Value::int(-n)),
            Some(n) => Ok(Value::int(n)),
            None => raise(format!("TypeError: bad operand type for abs(): '{}'", value.type_name())),
        },
    }
}

fn attr(m: &dyn Machine, args: Args) -> Res<Value> {
    let [obj, name] = args.bind("attr", ["obj", "name"], 2)?;
    let obj = obj.unwrap_or(Value::None);
    let Some(Value::Str(name)) = name else { return raise("TypeError: attribute name must be string") };
    match attribute(m, &obj, &name)? {
        Some(_) => get_attr(m, &obj, &name),
        None => Ok(Value::undefined(format!("'{} object' has no attribute '{}'", obj.type_name(), name.text))),
    }
}

fn length(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value] = args.places::<1>("len", 1)?;
    let value = value.unwrap_or(Value::None);
    match len(m, &value)? {
        Some(n) => Ok(Value::Int(n as i64)),
        None => raise(format!("TypeError: object of type '{}' has no len()", value.type_name())),
    }
}

fn default(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, other, boolean] = args.bind("default", ["value", "default_value", "boolean"], 1)?;
    let value = value.unwrap_or(Value::None);
    if value.is_undefined() || flag(m, &boolean, false)? && !value.truth(m)? {
        return Ok(other.unwrap_or_else(|| Value::str("")));
    }
    Ok(value)
}

fn dictsort(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, sensitive, by, reverse] = args.bind("dictsort", ["value", "case_sensitive", "by", "reverse"], 1)?;
    let by_value = match by {
        None => false,
        Some(by) if equal(&by, &Value::str("key")) => false,
        Some(by) if equal(&by, &Value::str("value")) => true,
        Some(_) => return raise("You can only sort by either \"key\" or \"value\""),
    };
    let value = value.unwrap_or(Value::None);
    let Value::Dict(dict) = &value else {
        return raise(match &value {
            Value::Undefined(what) => what.to_string(),
            other => format!("AttributeError: '{}' object has no attribute 'items'", other.type_name()),
        });
    };
    let sensitive = flag(m, &sensitive, false)?;
    let mut keyed = Vec::with_capacity(dict.map.len());
    for (k, v) in &dict.map {
        let pair = Value::tuple(vec![k.0.clone(), v.clone()])?;
        keyed.push((folded(if by_value { v } else { &k.0 }.clone(), sensitive), pair));
    }
    let sorted = sort(m, keyed, flag(m, &reverse, false)?)?;
    Value::list(sorted.into_iter().map(|(_, pair)| pair).collect())
}

fn first(m: &dyn Machine, args: Args) -> Res<Value> {
    let [seq] = args.bind("first", ["seq"], 1)?;
    let next = Iter::new(&seq.unwrap_or(Value::None))?.next(m)?;
    Ok(next.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
}

/// Whether `reversed` takes it.
pub fn reversible(value: &Value) -> bool {
    match value {
        Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Undefined(_) => true,
        Value::Object(object) => object.is_sized(),
        _ => false,
    }
}

fn last(m: &dyn Machine, args: Args) -> Res<Value> {
    let [seq] = args.bind("last", ["seq"], 1)?;
    let seq = seq.unwrap_or(Value::None);
    if !reversible(&seq) {
        return raise(format!("TypeError: '{}' object is not reversible", seq.type_name()));
    }
    let last = match &seq {
        Value::Str(s) => s.chars().next_back().map(|c| Value::str(c.to_string())),
        _ => members(m, &seq)?.pop(),
    };
    Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
}

fn number(name: &str, args: Args) -> Res<Value> {
    let (value, otherwise, base) = match name {
        "int" => {
            let [value, default, base] = args.bind(name, ["value", "default", "base"], 1)?;
            (value, default.unwrap_or(Value::Int(0)), base.unwrap_or(Value::Int(10)))
        }
        _ => {
            let [value, default] = args.bind(name, ["value", "default"], 1)?;
            (value, default.unwrap_or(Value::Float(0.0)), Value::None)
        }
    };
    let value = value.unwrap_or(Value::None);
    let overflow = || raise("OverflowError: cannot convert to a number");
    if name == "float" {
        return match to_number(&value) {
            Ok(x) => Ok(Value::Float(x)),
            Err(Failed::Caught) => Ok(otherwise),
            Err(Failed::Overflow) => overflow(),
            Err(Failed::Fault(fault)) => Err(fault),
        };
    }
    let direct = match &value {
        Value::Str(s) => base.as_index().map_or(Err(Failed::Caught), |base| parse_int(s, base)),
        _ => to_int(&value),
    };
    match direct {
        Ok(n) => Ok(n),
        Err(Failed::Overflow) => overflow(),
        Err(Failed::Fault(fault)) => Err(fault),
        // "42.23" is 42.
        Err(Failed::Caught) => match to_number(&value).and_then(|x| to_int(&Value::Float(x))) {
            Ok(n) => Ok(n),
            Err(Failed::Fault(fault)) => Err(fault),
            Err(_) => Ok(otherwise),
        },
    }
}

fn format(m: &dyn Machine, mut args: Args) -> Res<Value> {
    if args.pos.is_empty() {
        return raise("TypeError: format is missing its value");
    }
    let format = soft(m, &args.pos.remove(0))?;
    if !args.pos.is_empty() && !args.kw.is_empty() {
        return raise("can't handle positional and keyword arguments at the same time");
    }
    let values = match args.kw.is_empty() {
        true => Value::tuple(args.pos)?,
        false => Value::dict(args.kw.into_iter().map(|(k, v)| (Key(Value::str(k)), v)).collect())?,
    };
    percent(m, &format, &values)
}

fn groupby(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, attribute, default, sensitive] =
        args.bind("groupby", ["value", "attribute", "default", "case_sensitive"], 2)?;
    let path = path(m, &attribute.unwrap_or(Value::None))?;
    let sensitive = flag(m, &sensitive, false)?;
    let mut keyed = Vec::new();
    for item in members(m, &value.unwrap_or(Value::None))? {
        keyed.push((folded(follow(m, &item, &path, given(&default))?, sensitive), item));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in sort(m, keyed, false)? {
        match groups.last_mut() {
            Some((last, items)) if equal(last, &key) => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let group = |(key, items): (Value, Vec<Value>)| {
        let key = if sensitive { key } else { follow(m, &items[0], &path, given(&default))? };
        let items = Items::new(vec![key, Value::list(items)?])?;
        Ok(Value::Tuple(Rc::new(Items { group: true, ..items })))
    };
    Value::list(groups.into_iter().map(group).collect::<Res<_>>()?)
}

fn join(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, d, attribute] = args.bind("join", ["value", "d", "attribute"], 1)?;
    let path = path(m, given(&attribute).unwrap_or(&Value::None))?;
    let d = d.map_or(Ok(String::new()), |d| text(m, &d))?;
    let mut iter = Iter::new(&value.unwrap_or(Value::None))?;
    let (mut out, mut first) = (String::new(), true);
    while let Some(item) = iter.next(m)? {
        if !std::mem::take(&mut first) {
            m.budget().grow(out.len(), d.len())?;
            out.push_str(&d);
        }
        super::repr::write_text(m, &follow(m, &item, &path, None)?, &mut out)?;
    }
    Ok(Value::str(out))
}

fn extreme(m: &dyn Machine, max: bool, args: Args) -> Res<Value> {
    let [value, sensitive, attribute] = args.bind("max", ["value", "case_sensitive", "attribute"], 1)?;
    let path = path(m, given(&attribute).unwrap_or(&Value::None))?;
    let sensitive = flag(m, &sensitive, false)?;
    let mut iter = Iter::new(&value.unwrap_or(Value::None))?;
    let mut best: Option<(Value, Value)> = None;
    while let Some(item) = iter.next(m)? {
        let key = folded(follow(m, &item, &path, None)?, sensitive);
        m.budget().steps(key.size())?;
        let better = match &best {
            None => true,
            Some((top, _)) => {
                let sign = if max { ">" } else { "<" };
                order(sign, &key, top)? == if max { Ordering::Greater } else { Ordering::Less }
            }
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
}

/// Python's `pprint.pformat` of what stands in one line: `repr` with the keys of dicts in order.
fn pprint(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value] = args.bind("pprint", ["value"], 1)?;
    fn ordered(m: &dyn Machine, value: &Value) -> Res<Value> {
        m.budget().steps(1)?;
        match value {
            Value::List(items) => Value::list(items.items.iter().map(|v| ordered(m, v)).collect::<Res<_>>()?),
            Value::Tuple(items) => Value::tuple(items.items.iter().map(|v| ordered(m, v)).collect::<Res<_>>()?),
            Value::Dict(dict) => {
                if dict.map.len() > 1 && !dict.map.keys().all(|k| matches!(k.0, Value::Str(_))) {
                    return Err(Fault::refused("pprint of a dict whose keys are no texts"));
                }
                let pairs = dict.map.iter().map(|(k, v)| Ok((k.0.clone(), ordered(m, v)?))).collect::<Res<_>>()?;
                let pairs = sort(m, pairs, false)?;
                Value::dict(pairs.into_iter().map(|(k, v)| (Key(k), v)).collect())
            }
            Value::Object(_) => Err(Fault::refused("pprint of an object")),
            other => Ok(other.clone()),
        }
    }
    let line = repr(m, &ordered(m, &value.unwrap_or(Value::None))?)?;
    match super::iter::chars(&line) <= 80 {
        true => Ok(Value::str(line)),
        false => Err(Fault::refused("pprint of more than one line")),
    }
}

fn sorted(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, reverse, sensitive, attribute] =
        args.bind("sort", ["value", "reverse", "case_sensitive", "attribute"], 1)?;
    let sensitive = flag(m, &sensitive, false)?;
    let paths: Vec<Vec<Value>> = match &attribute {
        Some(Value::Str(all)) => all.split(',').map(|one| path(m, &Value::str(one))).collect::<Res<_>>()?,
        other => vec![path(m, given(other).unwrap_or(&Value::None))?],
    };
    let mut keyed = Vec::new();
    for item in members(m, &value.unwrap_or(Value::None))? {
        let mut keys = Vec::with_capacity(paths.len());
        for path in &paths {
            keys.push(folded(follow(m, &item, path, None)?, sensitive));
        }
        keyed.push((Value::list(keys)?, item));
    }
    let reverse = reverse.map_or(Ok(0), |r| int("sort", &r))? != 0;
    Value::list(sort(m, keyed, reverse)?.into_iter().map(|(_, item)| item).collect())
}

fn sum(m: &dyn Machine, args: Args) -> Res<Value> {
    let [iterable, attribute, start] = args.bind("sum", ["iterable", "attribute", "start"], 1)?;
    let path = path(m, given(&attribute).unwrap_or(&Value::None))?;
    let mut total = start.unwrap_or(Value::Int(0));
    if matches!(total, Value::Str(_)) {
        return raise("TypeError: sum() can't sum strings [use ''.join(seq) instead]");
    }
    let mut iter = Iter::new(&iterable.unwrap_or(Value::None))?;
    let mut floats = 0;
    // Python sums floats plainly up to 3.11, with Neumaier's correction from 3.12 on.
    let mut lost = 0.0;
    while let Some(item) = iter.next(m)? {
        let item = follow(m, &item, &path, None)?;
        let next = binary(m, Op::Add, &total, &item)?;
        if let (Value::Float(sum), Ok(a), Ok(b)) = (&next, to_number(&total), to_number(&item)) {
            floats += 1;
            lost += if a.abs() >= b.abs() { (a - sum) + b } else { (b - sum) + a };
        }
        total = next;
    }
    match &total {
        Value::Float(x) if floats > 1 && x + lost != *x => Err(Fault::refused("a sum of floats that is rounded")),
        _ => Ok(total),
    }
}

/// Markup of any value.
pub fn escaped(m: &dyn Machine, value: &Value) -> Res<Str> {
    escape(m, &soft(m, value)?)
}
