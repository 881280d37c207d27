//! A flat YAML mapping as a table of options: keys with scalars, or lists of scalars. No anchors, no tags, no second document: a
//! configuration needs none of them, and what they can grow into fills a memory.

use crate::guard::guarded;
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::collections::HashSet;
use toml::{Table, Value};

/// A value, and the line of its key.
type Entry = (String, Option<Value>, usize);

/// The entries of `text`, in order; `None` where a value is null. Errors: what it is not, with the line.
pub fn entries(text: &str) -> Result<Vec<Entry>, String> {
    guarded(|| parsed(text)).unwrap_or_else(|| Err("is not YAML that can be read".to_owned()))
}

/// Where the reading is.
enum At {
    /// Before the mapping.
    Outside,
    /// A key comes, or the end.
    Key,
    /// The value of the last key comes.
    Value,
    /// The items of the last key's list come.
    List(Vec<Value>),
    /// Behind the mapping.
    Done,
}

fn parsed(text: &str) -> Result<Vec<Entry>, String> {
    let (mut all, mut at): (Vec<Entry>, At) = (Vec::new(), At::Outside);
    let mut known = HashSet::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| format!("line {}: {}", e.marker().line(), e.info()))?;
        let line = span.start.line();
        let refuse = |why: &str| Err(format!("line {line}: {why}"));
        at = match (at, event) {
            (at, Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd) => at,
            (At::Outside, Event::DocumentStart(_)) => At::Outside,
            (At::Done, Event::DocumentStart(_)) => return refuse("a second document; a configuration is one"),
            (_, Event::Alias(_)) => return refuse("an alias (`*name`); write the value itself"),
            (_, Event::Scalar(_, _, anchor, _) | Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _))
                if anchor > 0 =>
            {
                return refuse("an anchor (`&name`); leave it out");
            }
            (
                _,
                Event::Scalar(_, _, _, Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)),
            ) => {
                return refuse("a tag (`!name`); leave it out");
            }
            (At::Outside, Event::MappingStart(..)) => At::Key,
            // Comments alone.
            (At::Outside, Event::Scalar(text, ScalarStyle::Plain, ..)) if text.is_empty() || *text == *"~" => At::Done,
            (At::Outside, _) => return refuse("is no mapping of keys and values"),
            (At::Key, Event::Scalar(key, ..)) => {
                if !known.insert(key.to_string()) {
                    return refuse(&format!("`{key}` stands there twice"));
                }
                all.push((key.into_owned(), None, line));
                At::Value
            }
            (At::Key, Event::MappingEnd) => At::Done,
            (At::Value, Event::Scalar(text, style, ..)) => {
                set(&mut all, scalar(&text, style, span)?);
                At::Key
            }
            (At::Value, Event::SequenceStart(..)) => At::List(Vec::new()),
            (At::List(mut items), Event::Scalar(text, style, ..)) => {
                items.extend(scalar(&text, style, span)?);
                At::List(items)
            }
            (At::List(items), Event::SequenceEnd) => {
                set(&mut all, Some(Value::Array(items)));
                At::Key
            }
            _ => return refuse("a value is a number, a text, true, false, or a list of them"),
        };
    }
    Ok(all)
}

fn set(all: &mut [Entry], value: Option<Value>) {
    if let Some((_, last, _)) = all.last_mut() {
        *last = value;
    }
}

/// A scalar by YAML 1.2's core schema; `None` for null. Quoted, it is a text.
fn scalar(text: &str, style: ScalarStyle, span: Span) -> Result<Option<Value>, String> {
    if !matches!(style, ScalarStyle::Plain) {
        return Ok(Some(Value::String(text.to_owned())));
    }
    let bare = text.trim_start_matches(['+', '-']);
    Ok(Some(match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(None),
        "true" | "True" | "TRUE" => Value::Boolean(true),
        "false" | "False" | "FALSE" => Value::Boolean(false),
        ".nan" | ".NaN" | ".NAN" => Value::Float(f64::NAN),
        _ if matches!(bare, ".inf" | ".Inf" | ".INF") => {
            Value::Float(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY })
        }
        _ if !bare.is_empty() && bare.bytes().all(|c| c.is_ascii_digit()) => match text.parse() {
            Ok(n) => Value::Integer(n),
            Err(_) => return Err(format!("line {}: {text} is beyond 64 bits", span.start.line())),
        },
        // Digits, and no word that Rust takes for a number.
        _ if bare.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            && bare.contains(|c: char| c.is_ascii_digit()) =>
        {
            text.parse().map_or_else(|_| Value::String(text.to_owned()), Value::Float)
        }
        _ => Value::String(text.to_owned()),
    }))
}

/// The entries as a table, what is null left out.
pub fn table(entries: Vec<Entry>) -> Table {
    entries.into_iter().filter_map(|(key, value, _)| Some((key, value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::{entries, table};

    #[test]
    fn scalars_are_what_yaml_1_2_says() {
        let text = "# comment\n---\na: 1e-6\nb: no\nc: [1, x, 2.5]\nd: ~\ne: -.inf\nf: '1'\ng: 1_000\nh: True\ni: |\n  x\nj: -7\n\
                    k: 5.0e-7\nl:\n- q_proj\n- v_proj\nm: all-linear\nn: 2026-01-01\no: .5\np: +3\nq: infinity\nr: \"a # b\" # c\ns: 1.\n";
        let got = table(entries(text).unwrap());
        let want = "a = 1e-6\nb = 'no'\nc = [1, 'x', 2.5]\ne = -inf\nf = '1'\ng = '1_000'\nh = true\ni = \"x\\n\"\nj = -7\n\
                    k = 5.0e-7\nl = ['q_proj', 'v_proj']\nm = 'all-linear'\nn = '2026-01-01'\no = 0.5\np = 3\nq = 'infinity'\n\
                    r = 'a # b'\ns = 1.0\n";
        assert_eq!(got, want.parse().unwrap());
        for empty in ["", "# nothing\n", "---\n", "{}", "~"] {
            assert_eq!(entries(empty), Ok(vec![]), "{empty:?}");
        }
    }

    #[test]
    fn many_keys_take_no_longer_each() {
        let keys = |n: usize| (0..n).map(|i| format!("key{i}: 1\n")).collect::<String>();
        let begun = std::time::Instant::now();
        assert_eq!(entries(&keys(200_000)).map(|all| all.len()), Ok(200_000));
        // 20 s and more where each is compared with all before it.
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
        let twice = keys(1000) + "key7: 2\n";
        assert_eq!(entries(&twice), Err("line 1001: `key7` stands there twice".to_owned()));
    }

    #[test]
    fn what_a_configuration_is_not_is_told_with_its_line() {
        for (text, want) in [
            ("a: 1\nb: 2\na: 3\n", "line 3: `a` stands there twice"),
            ("a: 1\n---\nb: 2\n", "line 2: a second document; a configuration is one"),
            ("a: &x 1\n", "line 1: an anchor (`&name`); leave it out"),
            ("a: [1]\nb: *x\n", "line 2: "),
            ("a: !!python/object:os.system x\n", "line 1: a tag (`!name`); leave it out"),
            ("- a\n", "line 1: is no mapping of keys and values"),
            ("text\n", "line 1: is no mapping of keys and values"),
            ("a:\n  b: 1\n", "line 2: a value is a number, a text, true, false, or a list of them"),
            ("a: [[1]]\n", "line 1: a value is a number"),
            ("a:\n\t- b\n", "line "),
            ("a: 99999999999999999999\n", "line 1: 99999999999999999999 is beyond 64 bits"),
            ("a: \"x\n", "line "),
            ("? [a]\n: 1\n", "line 1: "),
        ] {
            let why = entries(text).unwrap_err();
            assert!(why.starts_with(want), "{text:?}: {why}");
        }
    }
}
