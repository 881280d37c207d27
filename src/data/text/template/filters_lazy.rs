//! Jinja2's filters that give their members one by one, and `reverse`.

use super::args::{given, int};
use super::fault::{Res, raise};
use super::filters::{flag, folded, follow, path, reversible};
use super::iter::{Iter, members};
use super::value::{Args, Key, Machine, Value, equal};
use super::views::Lazy;
use indexmap::IndexSet;

/// Names of this file's filters.
pub const NAMES: &[&str] =
    &["batch", "items", "map", "reverse", "select", "reject", "selectattr", "rejectattr", "slice", "unique"];

/// Applies filter `name`, one of [`NAMES`].
pub fn call(m: &dyn Machine, name: &str, args: Args) -> Res<Value> {
    match name {
        "batch" => batch(args),
        "items" => items(args),
        "map" => map(args),
        "reverse" => reverse(m, args),
        "select" | "reject" => select(args, name == "select", false),
        "selectattr" | "rejectattr" => select(args, name == "selectattr", true),
        "slice" => slice(args),
        "unique" => unique(m, args),
        _ => raise(format!("No filter named '{name}'")),
    }
}

/// A generator over `source`: nothing is asked of it before its first member is; where `truthy`, then whether it is true,
/// and it ends at once where it is not.
fn over(
    source: Value,
    truthy: bool,
    mut each: impl FnMut(&dyn Machine, &mut Iter) -> Res<Option<Value>> + 'static,
) -> Res<Value> {
    let mut iter: Option<Iter> = None;
    let kept = source.clone();
    Lazy::generator(
        &source,
        Box::new(move |m| {
            if iter.is_none() {
                if truthy && !kept.truth(m)? {
                    return Ok(None);
                }
                iter = Some(Iter::new(&kept)?);
            }
            match &mut iter {
                Some(iter) => each(m, iter),
                None => Ok(None),
            }
        }),
    )
}

fn batch(args: Args) -> Res<Value> {
    let [value, count, fill] = args.bind("batch", ["value", "linecount", "fill_with"], 2)?;
    let count = count.unwrap_or(Value::None);
    let fill = given(&fill).cloned();
    let mut next: Option<Vec<Value>> = Some(Vec::new());
    over(value.unwrap_or(Value::None), false, move |m, iter| {
        let Some(mut row) = next.take() else { return Ok(None) };
        while let Some(item) = iter.next(m)? {
            m.budget().items(1)?;
            if equal(&Value::Int(row.len() as i64), &count) {
                next = Some(vec![item]);
                return Value::list(row).map(Some);
            }
            row.push(item);
        }
        if row.is_empty() {
            return Ok(None);
        }
        if let Some(fill) = &fill {
            let more = match &count {
                Value::Float(x) if (row.len() as f64) < *x => {
                    return raise("TypeError: can't multiply sequence by a float");
                }
                Value::Float(_) => 0,
                count => int("batch", count)?.saturating_sub(row.len() as i64).max(0),
            };
            m.budget().items(usize::try_from(more).unwrap_or(usize::MAX))?;
            row.extend(std::iter::repeat_n(fill.clone(), more as usize));
        }
        Value::list(row).map(Some)
    })
}

fn slice(args: Args) -> Res<Value> {
    let [value, slices, fill] = args.bind("slice", ["value", "slices", "fill_with"], 2)?;
    let slices = slices.unwrap_or(Value::None);
    let fill = given(&fill).cloned();
    let source = value.unwrap_or(Value::None);
    let kept = source.clone();
    let mut state: Option<(Vec<Value>, usize)> = None;
    Lazy::generator(
        &source,
        Box::new(move |m| {
            if state.is_none() {
                state = Some((members(m, &kept)?, 0));
            }
            let Some((all, at)) = &mut state else { return Ok(None) };
            let count = match &slices {
                Value::Undefined(what) => return raise(&**what),
                slices => int("slice", slices)?,
            };
            if count == 0 {
                return raise("ZeroDivisionError: integer division or modulo by zero");
            }
            let Some(count) = usize::try_from(count).ok().filter(|count| at < &mut count.clone()) else {
                return Ok(None);
            };
            m.budget().items(1)?;
            let (each, extra) = (all.len() / count, all.len() % count);
            let number = *at;
            *at += 1;
            let start = number * each + number.min(extra);
            let end = start + each + usize::from(number < extra);
            let mut row = all[start..end].to_vec();
            row.extend(fill.clone().filter(|_| number >= extra));
            Value::list(row).map(Some)
        }),
    )
}

fn items(args: Args) -> Res<Value> {
    let [value] = args.bind("items", ["value"], 1)?;
    let value = value.unwrap_or(Value::None);
    let kept = value.clone();
    let mut at = 0;
    Lazy::generator(
        &value,
        Box::new(move |m| {
            m.budget().steps(1)?;
            match &kept {
                Value::Undefined(_) => Ok(None),
                Value::Dict(dict) => {
                    at += 1;
                    let pair = |(k, v): (&Key, &Value)| Value::tuple(vec![k.0.clone(), v.clone()]);
                    dict.map.get_index(at - 1).map(pair).transpose()
                }
                _ => raise("TypeError: Can only get item pairs from a mapping."),
            }
        }),
    )
}

/// `value` and the rest of the arguments. Jinja2 asks whether `value` is true before it takes the rest apart.
fn split(mut args: Args, name: &str) -> Res<(Value, Args)> {
    let at = args.kw.iter().position(|(k, _)| &**k == "value");
    match (args.pos.is_empty(), at) {
        (false, Some(_)) => raise(format!("TypeError: {name} got multiple values for argument 'value'")),
        (false, None) => Ok((args.pos.remove(0), args)),
        (true, Some(at)) => Ok((args.kw.remove(at).1, args)),
        (true, None) => raise(format!("TypeError: {name} is missing its value")),
    }
}

/// What `map` does with each member.
enum Each {
    Attribute(Vec<Value>, Option<Value>),
    Filter(Value, Args),
}

fn map(args: Args) -> Res<Value> {
    let (value, args) = split(args, "map")?;
    let mut args = Some(args);
    let mut each = None;
    over(value, true, move |m, iter| {
        if let Some(args) = args.take() {
            each = Some(prepared(m, args)?);
        }
        let Some(item) = iter.next(m)? else { return Ok(None) };
        match &each {
            Some(Each::Attribute(path, default)) => follow(m, &item, path, default.as_ref()).map(Some),
            Some(Each::Filter(Value::Str(name), args)) => {
                let mut args = args.clone();
                args.pos.insert(0, item);
                m.filter(name, args).map(Some)
            }
            _ => raise("No filter named so"),
        }
    })
}

fn prepared(m: &dyn Machine, mut args: Args) -> Res<Each> {
    let taken = |args: &mut Args, name: &str| {
        let at = args.kw.iter().position(|(k, _)| &**k == name)?;
        Some(args.kw.remove(at).1)
    };
    if args.pos.is_empty()
        && let Some(attribute) = taken(&mut args, "attribute")
    {
        let default = taken(&mut args, "default");
        if let Some((name, _)) = args.kw.first() {
            return raise(format!("Unexpected keyword argument '{name}'"));
        }
        return Ok(Each::Attribute(path(m, &attribute)?, given(&default).cloned()));
    }
    if args.pos.is_empty() {
        return raise("map requires a filter argument");
    }
    Ok(Each::Filter(args.pos.remove(0), args))
}

fn select(args: Args, keeps: bool, by_attribute: bool) -> Res<Value> {
    let (value, args) = split(args, "select")?;
    let mut args = Some(args);
    let mut test: (Vec<Value>, Option<Value>, Args) = Default::default();
    over(value, true, move |m, iter| {
        if let Some(mut args) = args.take() {
            if by_attribute {
                if args.pos.is_empty() {
                    return raise("Missing parameter for attribute name");
                }
                test.0 = path(m, &args.pos.remove(0))?;
            }
            test.1 = (!args.pos.is_empty()).then(|| args.pos.remove(0));
            test.2 = args;
        }
        let (path, name, args) = &test;
        while let Some(item) = iter.next(m)? {
            let asked = follow(m, &item, path, None)?;
            let holds = match name {
                None => asked.truth(m)?,
                Some(Value::Str(name)) => {
                    let mut args = args.clone();
                    args.pos.insert(0, asked);
                    m.test(name, args)?
                }
                Some(_) => return raise("No test named so"),
            };
            if holds == keeps {
                return Ok(Some(item));
            }
        }
        Ok(None)
    })
}

fn reverse(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value] = args.bind("reverse", ["value"], 1)?;
    let value = value.unwrap_or(Value::None);
    if let Value::Str(s) = &value {
        m.budget().text(s.len())?;
        return Ok(Value::marked(s.chars().rev().collect::<String>(), s.safe));
    }
    let lazy = reversible(&value);
    if Iter::of(&value).is_none() {
        return raise("argument must be iterable");
    }
    let mut all = members(m, &value)?;
    all.reverse();
    if lazy { Lazy::over("reversed", all) } else { Value::list(all) }
}

fn unique(m: &dyn Machine, args: Args) -> Res<Value> {
    let [value, sensitive, attribute] = args.bind("unique", ["value", "case_sensitive", "attribute"], 1)?;
    let sensitive = flag(m, &sensitive, false)?;
    let attribute = given(&attribute).cloned().unwrap_or(Value::None);
    let mut seen: IndexSet<Key> = IndexSet::new();
    over(value.unwrap_or(Value::None), false, move |m, iter| {
        let path = path(m, &attribute)?;
        while let Some(item) = iter.next(m)? {
            let key = folded(follow(m, &item, &path, None)?, sensitive);
            m.budget().steps(key.size())?;
            m.budget().items(1)?;
            let key = Key::new(key)?;
            if seen.insert(key) {
                return Ok(Some(item));
            }
        }
        Ok(None)
    })
}
