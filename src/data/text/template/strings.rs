//! Methods of Python's `str`.

use super::args::{given, int, text as text_arg};
use super::cases;
use super::fault::{Fault, Res, raise};
use super::iter::{Iter, chars};
use super::ops::escape;
use super::unicode::{casefold, is_space};
use super::value::{Args, Machine, Str, Value};

/// Calls method `name` of `s`; `None` where this file has none of that name.
pub fn call(m: &dyn Machine, s: &Str, name: &str, args: Args) -> Option<Res<Value>> {
    if let Some(answer) = cases::question(name, s) {
        return Some(args.places::<0>(name, 0).and_then(|_| answer.map(Value::Bool)));
    }
    let out = match name {
        "upper" | "lower" | "capitalize" | "title" | "swapcase" | "casefold" => changed(m, s, name, args),
        "strip" | "lstrip" | "rstrip" => strip(s, name, args),
        "split" | "rsplit" => split(m, s, name == "rsplit", args),
        "splitlines" => lines_of(m, s, args),
        "partition" | "rpartition" => partition(s, name == "rpartition", args),
        "startswith" | "endswith" => affix(s, name == "startswith", args),
        "find" | "rfind" | "index" | "rindex" | "count" => search(m, s, name, args),
        "replace" => replace(m, s, args),
        "join" => join(m, s, args),
        "removeprefix" | "removesuffix" => remove(s, name == "removeprefix", args),
        "center" | "ljust" | "rjust" => justify(m, s, name, args),
        "zfill" => zfill(m, s, args),
        "expandtabs" => expandtabs(m, s, args),
        _ => return None,
    };
    Some(out)
}

fn changed(m: &dyn Machine, s: &Str, name: &str, args: Args) -> Res<Value> {
    args.places::<0>(name, 0)?;
    m.budget().text(s.len())?;
    let out = match name {
        "upper" => s.to_uppercase(),
        "lower" => s.to_lowercase(),
        "capitalize" => cases::capitalize(s),
        "title" => cases::title(s),
        "swapcase" => cases::swapcase(s),
        _ => casefold(s),
    };
    Ok(Value::marked(out, s.safe))
}

/// The method of a text that is Markup: Python escapes what it is given.
fn plain_only(s: &Str, name: &str) -> Res<()> {
    if s.safe { Err(Fault::refused(format!("{name}() of an escaped text"))) } else { Ok(()) }
}

fn strip(s: &Str, name: &str, args: Args) -> Res<Value> {
    let [set] = args.places(name, 0)?;
    let set = given(&set).map(|v| text_arg(name, v)).transpose()?;
    Ok(Value::marked(stripped(s, name, set.map(|s| &**s)), s.safe))
}

/// `text.strip(set)`, `lstrip` or `rstrip`.
pub fn stripped<'a>(text: &'a str, name: &str, set: Option<&str>) -> &'a str {
    let is = |c: char| set.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(is) };
    if name == "lstrip" { text } else { text.trim_end_matches(is) }
}

fn split(m: &dyn Machine, s: &Str, right: bool, args: Args) -> Res<Value> {
    let [sep, most] = args.bind("split", ["sep", "maxsplit"], 0)?;
    plain_only(s, "split")?;
    let most = most.map_or(Ok(-1), |n| int("split", &n))?;
    let most = usize::try_from(most).unwrap_or(usize::MAX - 1);
    m.budget().items(16)?;
    let mut parts: Vec<&str> = match given(&sep) {
        None => split_space(s, right, most),
        Some(sep) => {
            let sep = text_arg("split", sep)?;
            if sep.is_empty() {
                return raise("ValueError: empty separator");
            }
            match right {
                true => s.rsplitn(most + 1, &*sep.text).collect(),
                false => s.splitn(most + 1, &*sep.text).collect(),
            }
        }
    };
    if right {
        parts.reverse();
    }
    m.budget().items(parts.len())?;
    m.budget().text(s.len())?;
    Value::list(parts.into_iter().map(Value::str).collect())
}

/// Words between white space; what is left after `most` keeps the white space of its far end.
fn split_space(text: &str, right: bool, most: usize) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        rest = if right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            return out;
        }
        let cut = match (out.len() < most, right) {
            (false, _) => None,
            (true, false) => rest.find(is_space),
            (true, true) => rest.char_indices().rev().find(|(_, c)| is_space(*c)).map(|(at, c)| at + c.len_utf8()),
        };
        let Some(cut) = cut else {
            out.push(rest);
            return out;
        };
        let (head, tail) = rest.split_at(cut);
        out.push(if right { tail } else { head });
        rest = if right { head } else { tail };
    }
}

/// Lines as `str.splitlines` cuts them, each with its end.
pub fn lines(text: &str) -> Vec<(&str, &str)> {
    let is_end = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let at = rest.find(is_end).unwrap_or(rest.len());
        let end = match rest[at..].chars().next() {
            Some('\r') if rest[at + 1..].starts_with('\n') => 2,
            Some(c) => c.len_utf8(),
            None => 0,
        };
        out.push((&rest[..at], &rest[at..at + end]));
        rest = &rest[at + end..];
    }
    out
}

fn lines_of(m: &dyn Machine, s: &Str, args: Args) -> Res<Value> {
    let [keep] = args.bind("splitlines", ["keepends"], 0)?;
    let keep = keep.map_or(Ok(false), |k| k.truth(m))?;
    let lines = lines(s);
    m.budget().items(lines.len())?;
    m.budget().text(s.len())?;
    let line = |(line, end): (&str, &str)| match keep {
        true => Value::marked([line, end].concat(), s.safe),
        false => Value::marked(line, s.safe),
    };
    Value::list(lines.into_iter().map(line).collect())
}

fn partition(s: &Str, right: bool, args: Args) -> Res<Value> {
    let [sep] = args.places::<1>("partition", 1)?;
    plain_only(s, "partition")?;
    let sep = sep.unwrap_or(Value::None);
    let sep = text_arg("partition", &sep)?;
    if sep.is_empty() {
        return raise("ValueError: empty separator");
    }
    let found = if right { s.rsplit_once(&*sep.text) } else { s.split_once(&*sep.text) };
    let parts = match (found, right) {
        (Some((a, b)), _) => [a, &sep.text, b],
        (None, false) => [&*s.text, "", ""],
        (None, true) => ["", "", &*s.text],
    };
    Value::tuple(parts.into_iter().map(Value::str).collect())
}

/// The part of `s` from code point `start` to `end`, as Python cuts it, and how many code points stand before;
/// `None` where `start` is behind `end`.
fn part<'a>(s: &'a str, name: &str, start: &Option<Value>, end: &Option<Value>) -> Res<Option<(&'a str, usize)>> {
    if given(start).is_none() && given(end).is_none() {
        return Ok(Some((s, 0)));
    }
    let len = chars(s) as i64;
    let bound = |value: &Option<Value>, otherwise: i64| match given(value) {
        None => Ok(otherwise),
        Some(v) => int(name, v).map(|n| if n < 0 { n.saturating_add(len).max(0) } else { n }),
    };
    let (start, end) = (bound(start, 0)?, bound(end, len)?.min(len));
    if start > end {
        return Ok(None);
    }
    let byte = |at: i64| s.char_indices().nth(at as usize).map_or(s.len(), |(byte, _)| byte);
    Ok(Some((&s[byte(start)..byte(end)], start as usize)))
}

fn affix(s: &Str, start: bool, args: Args) -> Res<Value> {
    let name = if start { "startswith" } else { "endswith" };
    let [affix, from, to] = args.places(name, 1)?;
    let affixes: Vec<Value> = match affix {
        Some(Value::Tuple(items)) => items.items.clone(),
        other => other.into_iter().collect(),
    };
    let part = part(s, name, &from, &to)?;
    for affix in affixes {
        let affix = text_arg(name, &affix)?;
        let Some((part, _)) = part else { continue };
        if if start { part.starts_with(&*affix.text) } else { part.ends_with(&*affix.text) } {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn search(m: &dyn Machine, s: &Str, name: &str, args: Args) -> Res<Value> {
    let [sub, start, end] = args.places(name, 1)?;
    let sub = sub.unwrap_or(Value::None);
    let sub = text_arg(name, &sub)?;
    m.budget().steps(s.len() as u64 / 64)?;
    let part = part(s, name, &start, &end)?;
    if name == "count" {
        let count = part.map_or(0, |(part, _)| match sub.is_empty() {
            true => chars(part) + 1,
            false => part.matches(&*sub.text).count(),
        });
        return Ok(Value::Int(count as i64));
    }
    let found = part.and_then(|(part, before)| {
        let at = if name.starts_with('r') { part.rfind(&*sub.text) } else { part.find(&*sub.text) }?;
        Some(before + chars(&part[..at]))
    });
    match found {
        Some(at) => Ok(Value::Int(at as i64)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => raise("ValueError: substring not found"),
    }
}

fn replace(m: &dyn Machine, s: &Str, args: Args) -> Res<Value> {
    let [old, new, count] = args.places("replace", 2)?;
    plain_only(s, "replace")?;
    let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
    let (old, new) = (text_arg("replace", &old)?, text_arg("replace", &new)?);
    let count = count.map_or(Ok(-1), |n| int("replace", &n))?;
    replaced(m, s, old, new, count).map(Value::str)
}

/// `text.replace(old, new, count)`, all of them where `count` is negative.
pub fn replaced(m: &dyn Machine, text: &str, old: &str, new: &str, count: i64) -> Res<String> {
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    let found = text.matches(old).take(most).count();
    m.budget().text(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, most))
}

fn join(m: &dyn Machine, s: &Str, args: Args) -> Res<Value> {
    let [all] = args.places::<1>("join", 1)?;
    let mut iter = match Iter::of(&all.unwrap_or(Value::None)) {
        Some(iter) => iter,
        None => return raise("TypeError: can only join an iterable"),
    };
    let mut out = String::new();
    let mut at = 0;
    while let Some(member) = iter.next(m)? {
        let Value::Str(text) = &member else {
            return raise(format!(
                "TypeError: sequence item {at}: expected str instance, {} found",
                member.type_name()
            ));
        };
        let text = if s.safe { escape(m, text)? } else { text.clone() };
        if at > 0 {
            out.push_str(s);
        }
        m.budget().grow(out.len(), text.len() + s.len())?;
        out.push_str(&text);
        at += 1;
    }
    Ok(Value::marked(out, s.safe))
}

fn remove(s: &Str, prefix: bool, args: Args) -> Res<Value> {
    let name = if prefix { "removeprefix" } else { "removesuffix" };
    let [affix] = args.places::<1>(name, 1)?;
    plain_only(s, name)?;
    let affix = affix.unwrap_or(Value::None);
    let affix = text_arg(name, &affix)?;
    let rest = if prefix { s.strip_prefix(&*affix.text) } else { s.strip_suffix(&*affix.text) };
    Ok(rest.map_or_else(|| Value::Str(s.clone()), Value::str))
}

fn justify(m: &dyn Machine, s: &Str, name: &str, args: Args) -> Res<Value> {
    let [width, fill] = args.places(name, 1)?;
    let width = int(name, &width.unwrap_or(Value::None))?;
    let fill = fill.unwrap_or_else(|| Value::str(" "));
    let fill = text_arg(name, &fill)?;
    let mut one = fill.chars();
    let (Some(fill), None) = (one.next(), one.next()) else {
        return raise("TypeError: The fill character must be exactly one character long");
    };
    justified(m, s, name, width, fill).map(|text| Value::marked(text, s.safe))
}

/// `text.center(width, fill)`, `ljust` or `rjust`.
pub fn justified(m: &dyn Machine, text: &str, name: &str, width: i64, fill: char) -> Res<String> {
    let len = chars(text) as i64;
    let pad = width.saturating_sub(len).max(0);
    m.budget().text(text.len().saturating_add((pad as usize).saturating_mul(fill.len_utf8())))?;
    let left = match name {
        "ljust" => 0,
        "rjust" => pad,
        _ => pad / 2 + (pad & width & 1),
    };
    let fill = |n: i64| std::iter::repeat_n(fill, n as usize);
    Ok(fill(left).chain(text.chars()).chain(fill(pad - left)).collect())
}

fn zfill(m: &dyn Machine, s: &Str, args: Args) -> Res<Value> {
    let [width] = args.places::<1>("zfill", 1)?;
    let width = int("zfill", &width.unwrap_or(Value::None))?;
    let sign = s.chars().next().filter(|c| matches!(c, '+' | '-'));
    let digits = &s.text[usize::from(sign.is_some())..];
    let width = width.saturating_sub(i64::from(sign.is_some()));
    let digits = justified(m, digits, "rjust", width, '0')?;
    Ok(Value::marked(sign.into_iter().chain(digits.chars()).collect::<String>(), s.safe))
}

fn expandtabs(m: &dyn Machine, s: &Str, args: Args) -> Res<Value> {
    let [size] = args.bind("expandtabs", ["tabsize"], 0)?;
    let size = size.map_or(Ok(8), |n| int("expandtabs", &n))?;
    let tabs = s.matches('\t').count();
    m.budget().text(s.len().saturating_add(tabs.saturating_mul(size.max(0) as usize)))?;
    let (mut out, mut column) = (String::new(), 0i64);
    for c in s.chars() {
        match c {
            '\t' if size > 0 => {
                let to_next = size - column % size;
                out.extend(std::iter::repeat_n(' ', to_next as usize));
                column += to_next;
            }
            '\t' => {}
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(Value::marked(out, s.safe))
}
