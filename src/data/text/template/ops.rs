//! Python's operators on any values: order, membership, members, slices, sums.

use super::fault::{Fault, Res, raise};
use super::iter::{Iter, chars};
use super::number::{Op, arithmetic};
use super::value::{Key, Machine, Str, Value, equal, order_numbers};
use std::cmp::Ordering;
use std::rc::Rc;

/// `a op b` of everything but `str % args`.
pub fn binary(m: &dyn Machine, op: Op, a: &Value, b: &Value) -> Res<Value> {
    if let Some(number) = arithmetic(op, a, b) {
        return number;
    }
    match (op, a, b) {
        (_, Value::Undefined(what), _) | (_, _, Value::Undefined(what)) => raise(&**what),
        (Op::Add, Value::Str(a), Value::Str(b)) => {
            let safe = a.safe || b.safe;
            let (a, b) = if safe { (escape(m, a)?, escape(m, b)?) } else { (a.clone(), b.clone()) };
            m.budget().text(a.len() + b.len())?;
            Ok(Value::marked([&*a.text, &*b.text].concat(), safe))
        }
        (Op::Add, Value::List(left), Value::List(right)) | (Op::Add, Value::Tuple(left), Value::Tuple(right)) => {
            m.budget().items(left.items.len() + right.items.len())?;
            sequence_like(a, left.items.iter().chain(&right.items).cloned().collect())
        }
        (Op::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_), _) if b.as_index().is_some() => repeat(m, a, b),
        (Op::Mul, _, Value::Str(_) | Value::List(_) | Value::Tuple(_)) if a.as_index().is_some() => repeat(m, b, a),
        _ => raise(format!(
            "TypeError: unsupported operand type(s) for {}: '{}' and '{}'",
            op.sign(),
            a.type_name(),
            b.type_name()
        )),
    }
}

fn sequence_like(like: &Value, items: Vec<Value>) -> Res<Value> {
    if matches!(like, Value::Tuple(_)) { Value::tuple(items) } else { Value::list(items) }
}

fn repeat(m: &dyn Machine, value: &Value, times: &Value) -> Res<Value> {
    let times = usize::try_from(times.as_index().unwrap_or(0).max(0)).unwrap_or(usize::MAX);
    match value {
        Value::Str(s) => {
            m.budget().text(s.len().saturating_mul(times))?;
            Ok(Value::marked(s.repeat(if s.is_empty() { 0 } else { times }), s.safe))
        }
        Value::List(items) | Value::Tuple(items) => {
            let total = items.items.len().saturating_mul(times);
            m.budget().items(total)?;
            sequence_like(value, items.items.iter().cycle().take(total).cloned().collect())
        }
        _ => raise("not a sequence"),
    }
}

/// Markup of a text: as it is where it is Markup, else with HTML's signs escaped.
pub fn escape(m: &dyn Machine, text: &Str) -> Res<Str> {
    if text.safe {
        return Ok(text.clone());
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    m.budget().text(out.len())?;
    Ok(Str { text: out.into(), safe: true })
}

/// `a < b` and the like: how `a` stands to `b`.
pub fn order(sign: &str, a: &Value, b: &Value) -> Res<Ordering> {
    use Value::*;
    match (a, b) {
        (Undefined(what), _) | (_, Undefined(what)) => raise(&**what),
        (Bool(_) | Int(_) | Big(_) | Float(_), Bool(_) | Int(_) | Big(_) | Float(_)) => {
            order_numbers(a, b).ok_or_else(|| Fault::refused("an order with NaN"))
        }
        (Str(a), Str(b)) => Ok(a.text.cmp(&b.text)),
        (List(a), List(b)) | (Tuple(a), Tuple(b)) => match a.items.iter().zip(&b.items).find(|(a, b)| !equal(a, b)) {
            Some((a, b)) => order(sign, a, b),
            Option::None => Ok(a.items.len().cmp(&b.items.len())),
        },
        (Object(a), Object(b)) if a.type_name() == b.type_name() && a.type_name().starts_with("dict_") => {
            Err(Fault::refused("an order of dict views"))
        }
        _ => raise(format!(
            "TypeError: '{sign}' not supported between instances of '{}' and '{}'",
            a.type_name(),
            b.type_name()
        )),
    }
}

/// `a == b`, and what it takes.
pub fn same(m: &dyn Machine, a: &Value, b: &Value) -> Res<bool> {
    m.budget().steps(a.size().min(b.size()) / 4)?;
    Ok(equal(a, b))
}

/// `item in container`
pub fn contains(m: &dyn Machine, container: &Value, item: &Value) -> Res<bool> {
    match (container, item) {
        (Value::Str(text), Value::Str(part)) => {
            m.budget().steps(text.len() as u64 / 64)?;
            Ok(text.contains(&*part.text))
        }
        (Value::Str(_), _) => {
            raise(format!("TypeError: 'in <string>' requires string as left operand, not {}", item.type_name()))
        }
        (Value::Dict(dict), Value::Str(key)) => {
            m.budget().steps(key.len() as u64 / 256)?;
            Ok(dict.map.contains_key(&*key.text))
        }
        (Value::Dict(dict), _) => {
            m.budget().steps(item.size())?;
            Ok(dict.map.contains_key(&Key::new(item.clone())?))
        }
        _ => {
            let Some(mut iter) = Iter::of(container) else {
                return raise(format!("TypeError: argument of type '{}' is not iterable", container.type_name()));
            };
            while let Some(member) = iter.next(m)? {
                if same(m, &member, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// `obj[key]`; `None` where Python raises a `TypeError` or a `LookupError`.
pub fn item(m: &dyn Machine, obj: &Value, key: &Value) -> Res<Option<Value>> {
    let long = if let Value::Str(text) = obj { text.len() as u64 / 4096 } else { key.size() - 1 };
    m.budget().steps(long)?;
    let place = |len: usize| {
        let at = key.as_index()?;
        usize::try_from(if at < 0 { at + len as i64 } else { at }).ok().filter(|at| *at < len)
    };
    Ok(match obj {
        Value::Undefined(what) => return raise(&**what),
        Value::Str(s) if s.is_ascii() => place(s.len()).map(|at| Value::marked(&s.text[at..=at], s.safe)),
        Value::Str(s) => place(chars(s)).and_then(|at| {
            m.budget().steps(at as u64 / 64).ok()?;
            s.chars().nth(at).map(|c| Value::marked(c.to_string(), s.safe))
        }),
        Value::List(items) | Value::Tuple(items) => place(items.items.len()).map(|at| items.items[at].clone()),
        Value::Dict(dict) => match key {
            Value::Str(key) => dict.map.get(&*key.text).cloned(),
            _ => Key::new(key.clone()).ok().and_then(|key| dict.map.get(&key).cloned()),
        },
        Value::Object(object) => object.item(m, key)?,
        _ => None,
    })
}

/// First place, places and step that `[start:stop:step]` takes of `len` members.
fn slice_of(len: usize, parts: [&Value; 3]) -> Res<(i64, i64, i64)> {
    let (start, stop, step) = bounds(len, parts)?;
    let span = if step > 0 { stop - start } else { start - stop };
    let count = if span <= 0 { 0 } else { (span - 1) / step.saturating_abs() + 1 };
    Ok((start, count, step))
}

/// `[start:stop:step]` of `len` members, cut off as Python cuts it.
fn bounds(len: usize, parts: [&Value; 3]) -> Res<(i64, i64, i64)> {
    let [start, stop, step] = parts;
    let part = |value: &Value| match value {
        Value::None => Ok(None),
        _ => match value.as_index() {
            Some(at) => Ok(Some(at)),
            None => raise("TypeError: slice indices must be integers or None or have an __index__ method"),
        },
    };
    let len = len as i64;
    let step = part(step)?.unwrap_or(1);
    if step == 0 {
        return raise("ValueError: slice step cannot be zero");
    }
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |at: Option<i64>, otherwise: i64| {
        at.map_or(otherwise, |at| if at < 0 { at.saturating_add(len).max(low) } else { at.min(high) })
    };
    let start = bound(part(start)?, if step > 0 { low } else { high });
    let stop = bound(part(stop)?, if step > 0 { high } else { low });
    Ok((start, stop, step))
}

/// Members of `all` that a slice takes.
fn taken<T: Clone>(all: &[T], (start, count, step): (i64, i64, i64)) -> impl Iterator<Item = T> {
    (0..count).map(move |i| all[(start + i * step) as usize].clone())
}

/// `obj[start:stop:step]`
pub fn slice(m: &dyn Machine, obj: &Value, parts: [&Value; 3]) -> Res<Value> {
    match obj {
        Value::Undefined(what) => raise(&**what),
        Value::Str(s) if s.is_ascii() => {
            let places = slice_of(s.len(), parts)?;
            m.budget().text(places.1 as usize)?;
            let (start, count, step) = places;
            if step == 1 {
                return Ok(Value::marked(&s.text[start as usize..(start + count) as usize], s.safe));
            }
            let text: String = taken(s.as_bytes(), places).map(char::from).collect();
            Ok(Value::marked(text, s.safe))
        }
        Value::Str(s) => {
            m.budget().text(s.len().saturating_mul(4))?;
            let all: Vec<char> = s.chars().collect();
            let text: String = taken(&all, slice_of(all.len(), parts)?).collect();
            Ok(Value::marked(text, s.safe))
        }
        Value::List(items) | Value::Tuple(items) => {
            let places = slice_of(items.items.len(), parts)?;
            m.budget().items(places.1 as usize)?;
            sequence_like(obj, taken(&items.items, places).collect())
        }
        Value::Object(object) if obj.type_name() == "range" => {
            let (start, stop, step) = bounds(object.len(m)?.unwrap_or(0), parts)?;
            object.slice(start, stop, step).ok_or_else(|| Fault::refused("such a slice of a range"))
        }
        _ => raise(format!("TypeError: '{}' object is not subscriptable", obj.type_name())),
    }
}

/// `sorted(items, key)`: stable; keys stand before their members.
pub fn sort(m: &dyn Machine, keyed: Vec<(Value, Value)>, reverse: bool) -> Res<Vec<(Value, Value)>> {
    let len = keyed.len();
    if len < 2 {
        return Ok(keyed);
    }
    m.budget().steps(keyed.iter().map(|(key, _)| key.size()).sum())?;
    let mut left = keyed;
    let right = sort(m, left.split_off(len / 2), reverse)?;
    let left = sort(m, left, reverse)?;
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    let mut out = Vec::with_capacity(len);
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        // Sorted backwards Python keeps the order of equals too.
        let after = if reverse { Ordering::Less } else { Ordering::Greater };
        out.extend(if order("<", &a.0, &b.0)? == after { right.next() } else { left.next() });
    }
    out.extend(left);
    out.extend(right);
    Ok(out)
}

/// Whether `a is b`. Errors: it depends on how CPython keeps texts and numbers.
pub fn identical(a: &Value, b: &Value) -> Res<bool> {
    match (a, b) {
        (Value::None, Value::None) => Ok(true),
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Int(a), Value::Int(b)) if a == b && (-5..=256).contains(a) => Ok(true),
        (Value::List(a), Value::List(b)) => Ok(Rc::ptr_eq(a, b)),
        (Value::Dict(a), Value::Dict(b)) => Ok(Rc::ptr_eq(a, b)),
        (Value::Object(a), Value::Object(b)) => Ok(Rc::ptr_eq(a, b)),
        _ if std::mem::discriminant(a) != std::mem::discriminant(b) || !equal(a, b) => Ok(false),
        _ => Err(Fault::refused(format!("asking whether two equal values of type {} are the same", a.type_name()))),
    }
}
