//! Lists, dicts, strings, numbers, `True`, `False` and `None` as Python's `repr` writes them, exactly: what pandas puts into a
//! cell of a CSV file. Anything else (an array of numpy's, which may be cut short with dots) is refused.

use serde_json::{Map, Number, Value};

/// Lists within lists.
const DEPTH: usize = 64;

/// The value of `text`.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut p = Parser { text, at: 0 };
    let value = p.value(0)?;
    p.blank();
    if p.at == text.len() { Ok(value) } else { Err(p.expected("the end")) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn blank(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\n', '\t', '\r']).len();
    }

    fn take(&mut self, what: &str) -> bool {
        let there = self.rest().starts_with(what);
        self.at += if there { what.len() } else { 0 };
        there
    }

    fn expected(&self, what: &str) -> String {
        match self.peek() {
            Some(c) => {
                format!("{what} expected at character {}, found {c:?}", self.text[..self.at].chars().count() + 1)
            }
            None => format!("{what} expected at the end"),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEPTH {
            return Err("lists within lists too deep".into());
        }
        self.blank();
        for (word, value) in [("None", Value::Null), ("True", true.into()), ("False", false.into())] {
            if self.take(word) {
                return Ok(value);
            }
        }
        match self.peek() {
            Some('[') => self.list(depth, "[", "]"),
            Some('(') => self.list(depth, "(", ")"),
            Some('{') => self.dict(depth),
            Some('\'' | '"') => self.string().map(Value::String),
            Some('-' | '0'..='9') => self.number(),
            _ => Err(self.expected("a value")),
        }
    }

    fn list(&mut self, depth: usize, open: &str, close: &str) -> Result<Value, String> {
        self.take(open);
        let mut items = Vec::new();
        loop {
            self.blank();
            if self.take(close) {
                return Ok(items.into());
            }
            items.push(self.value(depth + 1)?);
            self.blank();
            if !self.take(",") && !self.rest().starts_with(close) {
                return Err(self.expected("a comma"));
            }
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Value, String> {
        self.take("{");
        let mut map = Map::new();
        loop {
            self.blank();
            if self.take("}") {
                return Ok(map.into());
            }
            let key = if self.rest().starts_with(['\'', '"']) {
                self.string()?
            } else {
                return Err(self.expected("a key in quotes"));
            };
            self.blank();
            if !self.take(":") {
                return Err(self.expected("a colon"));
            }
            let value = self.value(depth + 1)?;
            map.insert(key, value);
            self.blank();
            if !self.take(",") && !self.rest().starts_with('}') {
                return Err(self.expected("a comma"));
            }
        }
    }

    fn number(&mut self) -> Result<Value, String> {
        let end = self.rest().find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'));
        let text = &self.rest()[..end.unwrap_or(self.rest().len())];
        // Python's numbers are JSON's, but for a whole number that begins with 0.
        let number: Number = serde_json::from_str(text).map_err(|_| self.expected("a number"))?;
        if number.is_f64() && !text.contains(['.', 'e', 'E']) && text != "-0" {
            return Err(format!("{text} has more than 64 bits"));
        }
        self.at += text.len();
        Ok(number.into())
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = self.peek().unwrap_or('\'');
        self.at += 1;
        let mut out = String::new();
        loop {
            let Some(c) = self.peek() else { return Err("a string without an end".into()) };
            self.at += c.len_utf8();
            match c {
                '\\' => out.push(self.escape()?),
                '\n' => return Err("a line's end within a string".into()),
                c if c == quote => return Ok(out),
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let Some(c) = self.peek() else { return Err("a string without an end".into()) };
        self.at += c.len_utf8();
        let digits = match c {
            'n' => return Ok('\n'),
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            '\\' | '\'' | '"' => return Ok(c),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return Err(format!("\\{c} is no escape that Python prints")),
        };
        let hex = self.rest().get(..digits).filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
        let c = hex.and_then(|h| u32::from_str_radix(h, 16).ok()).and_then(char::from_u32);
        self.at += digits;
        c.ok_or_else(|| "an escape that is no character".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_python_prints_is_read_and_nothing_else() {
        for (text, want) in [
            ("[{'role': 'user', 'content': \"it's\"}]", json!([{"role": "user", "content": "it's"}])),
            (
                "{'a': None, 'b': [True, False, -1, 2.5, 1e+16, (1,)]}",
                json!({"a": null, "b": [true, false, -1, 2.5, 1e16, [1]]}),
            ),
            (r"['\n\t\r\\\'\x00\u200b\U0001f642é']", json!(["\n\t\r\\'\0\u{200b}🙂é"])),
            (" [ ] ", json!([])),
            ("[{'a': 1}, {'b': {}}]", json!([{"a": 1}, {"b": {}}])),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
        for text in [
            "[{'a': 1} {'a': 2}]",
            "[1 2 3]",
            "array([1])",
            "[1, ..., 2]",
            "nan",
            "['a",
            "['a' 'b']",
            "{1: 2}",
            "{'a'}",
            "[1]]",
            r"['\ud800']",
            r"['\q']",
            "[01]",
            "['\n']",
            "[123456789012345678901]",
            &"[".repeat(1000),
            "",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
