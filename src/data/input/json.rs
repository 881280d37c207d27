//! JSONL and JSON arrays, streamed: an element is cut out by counting brackets and parsed later, on another core.

use super::fields::{FieldMap, used};
use super::packed::BadStream;
use super::raw::{Place, RawBody, RawRow, RowIter};
use super::reading::Gauge;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

/// Rows of a JSON text: an array if its first character is `[`, the array in `{"name": [...]}` where nothing else is in it
/// and `name` is no field of a row, otherwise one object a line. Blank lines are no rows.
pub fn open(path: &Path, mut text: Box<dyn BufRead + Send>, map: &FieldMap, mut gauge: Gauge) -> Result<RowIter> {
    let named_json = path.to_string_lossy().trim_end_matches(".gz").trim_end_matches(".zst").ends_with(".json");
    let path = Arc::new(path.to_owned());
    let mut line = 1;
    loop {
        let head = text.fill_buf().map_err(|e| read_error(&path, line, e))?;
        let blank = head.iter().take_while(|b| b.is_ascii_whitespace()).count();
        line += newlines(&head[..blank]);
        let rest = &head[blank..];
        let (used, wrapped) = match rest.first() {
            None if blank > 0 => {
                text.consume(blank);
                gauge.passed(blank as u64, &Place { path: path.clone(), line, unit: "line" })?;
                continue;
            }
            Some(b'[') => (1, None),
            Some(b'{') => match wrapper(rest, named_json, map) {
                Some((used, name)) => (used, Some(name)),
                None if of_several_lines(rest) => {
                    let why =
                        "an object of several lines; JSONL has one whole object a line, and `jq -c .` writes it so";
                    return Err(Place { path, line, unit: "line" }.error(why));
                }
                None => (0, None),
            },
            _ => (0, None),
        };
        line += newlines(&rest[..used]);
        text.consume(blank + used);
        return Ok(if used > 0 {
            Box::new(ArrayRows { text, path, line, state: ArrayState::First, wrapped, gauge })
        } else {
            Box::new(LineRows { text, path, line: line - 1, done: false, gauge })
        });
    }
}

/// Whether a file's name says JSON or JSONL, perhaps packed.
pub fn named(path: &Path) -> bool {
    let name = path.to_string_lossy().to_ascii_lowercase();
    let name = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    [".json", ".jsonl", ".ndjson"].iter().any(|end| name.ends_with(end))
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|b| **b == b'\n').count() as u64
}

/// Where the elements begin in `{"name": [{`, and the name, if the object holds nothing else as far as `head` tells. A whole
/// line with more in it is a row of JSONL; a line without an end in sight is one too, unless the file's name says JSON.
fn wrapper(head: &[u8], named_json: bool, map: &FieldMap) -> Option<(usize, String)> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) => std::str::from_utf8(&head[..e.valid_up_to()]).ok()?,
    };
    let inside = text[1..].trim_start();
    let mut names = serde_json::Deserializer::from_str(inside).into_iter::<String>();
    let name = names.next()?.ok()?;
    let list = inside[names.byte_offset()..].trim_start().strip_prefix(':')?.trim_start().strip_prefix('[')?;
    if used(&name, map) || !list.trim_start().starts_with(['{', ']']) {
        return None;
    }
    let (line, ends) = text.split_once('\n').map_or((text, false), |(line, _)| (line, true));
    let alone = match serde_json::from_str::<Map<String, Value>>(line) {
        Ok(whole) => whole.len() == 1,
        Err(_) => {
            if ends {
                of_several_lines(head)
            } else {
                named_json
            }
        }
    };
    alone.then(|| (text.len() - list.len(), name))
}

/// Whether the first line ends in the middle of an object as no row that was cut does.
fn of_several_lines(head: &[u8]) -> bool {
    let Some(end) = head.iter().position(|b| *b == b'\n') else { return false };
    matches!(head[..end].trim_ascii_end().last(), Some(b'{' | b'[' | b','))
}

fn read_error(path: &Path, line: u64, source: std::io::Error) -> Error {
    match source.get_ref().and_then(|e| e.downcast_ref::<BadStream>()) {
        Some(BadStream { what, why }) => {
            Error::file(path, format!("damaged {what} stream near line {line} ({why}); fetch the file again"))
        }
        None => Error::io(path, "read")(source),
    }
}

struct LineRows {
    text: Box<dyn BufRead + Send>,
    path: Arc<std::path::PathBuf>,
    line: u64,
    done: bool,
    gauge: Gauge,
}

impl Iterator for LineRows {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            let mut bytes = Vec::with_capacity(1024);
            self.line += 1;
            // One byte more than allowed tells a row that is too long.
            let most = self.gauge.room().saturating_add(1);
            match (&mut self.text).take(most).read_until(b'\n', &mut bytes) {
                Ok(0) => self.done = true,
                Ok(_) if bytes.iter().all(u8::is_ascii_whitespace) && bytes.ends_with(b"\n") => {
                    let place = Place { path: self.path.clone(), line: self.line, unit: "line" };
                    if let Err(e) = self.gauge.passed(bytes.len() as u64, &place) {
                        self.done = true;
                        return Some(Err(e));
                    }
                }
                Ok(_) => {
                    let place = Place { path: self.path.clone(), line: self.line, unit: "line" };
                    if let Err(e) = self.gauge.row(bytes.len() as u64, &place) {
                        self.done = true;
                        return Some(Err(e));
                    }
                    bytes.truncate(bytes.trim_ascii_end().len());
                    if bytes.is_empty() {
                        continue;
                    }
                    return Some(Ok(RawRow { place, size: bytes.len(), body: RawBody::Json(bytes) }));
                }
                Err(e) => {
                    self.done = true;
                    return Some(Err(read_error(&self.path, self.line, e)));
                }
            }
        }
        None
    }
}

#[derive(Clone, Copy, PartialEq)]
enum ArrayState {
    First,
    Later,
    Done,
}

struct ArrayRows {
    text: Box<dyn BufRead + Send>,
    path: Arc<std::path::PathBuf>,
    line: u64,
    state: ArrayState,
    /// Name of the list in the object around it.
    wrapped: Option<String>,
    gauge: Gauge,
}

impl Iterator for ArrayRows {
    type Item = Result<RawRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == ArrayState::Done {
            return None;
        }
        match self.element() {
            Ok(Some(row)) => {
                self.state = ArrayState::Later;
                Some(Ok(row))
            }
            Ok(None) => {
                self.state = ArrayState::Done;
                None
            }
            Err(e) => {
                self.state = ArrayState::Done;
                Some(Err(e))
            }
        }
    }
}

impl ArrayRows {
    /// The next non-blank byte, not consumed.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let head = self.text.fill_buf().map_err(|e| read_error(&self.path, self.line, e))?;
            if head.is_empty() {
                return Ok(None);
            }
            let blank = head.iter().take_while(|b| b.is_ascii_whitespace()).count();
            self.line += head[..blank].iter().filter(|b| **b == b'\n').count() as u64;
            let found = head.get(blank).copied();
            self.text.consume(blank);
            if found.is_some() {
                return Ok(found);
            }
            self.gauge.passed(blank as u64, &Place { path: self.path.clone(), line: self.line, unit: "line" })?;
        }
    }

    fn bad(&self, why: &str) -> Error {
        Place { path: self.path.clone(), line: self.line, unit: "line" }.error(format!("malformed JSON: {why}"))
    }

    /// The next element, or `None` at the closing bracket.
    fn element(&mut self) -> Result<Option<RawRow>> {
        let cut = "the array is cut short: its closing `]` is missing";
        let mut next = self.peek()?.ok_or_else(|| self.bad(cut))?;
        if next == b']' {
            self.text.consume(1);
            if let Some(name) = self.wrapped.take() {
                if self.peek()? != Some(b'}') {
                    let why = format!(
                        "more in the object beside its list `{}`; take the list out: `jq -c '.[\"{0}\"][]'`",
                        name.escape_debug()
                    );
                    return Err(Place { path: self.path.clone(), line: self.line, unit: "line" }.error(why));
                }
                self.text.consume(1);
            }
            return match self.peek()? {
                None => Ok(None),
                Some(_) => Err(self.bad("text after the array's closing `]`")),
            };
        }
        if self.state == ArrayState::Later {
            if next != b',' {
                return Err(self.bad("a comma or `]` must follow an element of the array"));
            }
            self.text.consume(1);
            next = self.peek()?.ok_or_else(|| self.bad(cut))?;
        }
        let place = Place { path: self.path.clone(), line: self.line, unit: "line" };
        if next != b'{' {
            let why = "an element of the array is not a JSON object";
            return match self.pass_over(next, &place)? {
                true => Ok(Some(RawRow { place, size: why.len(), body: RawBody::Unusable(why.into()) })),
                false => Err(place.error(why)),
            };
        }
        let bytes = self.object(&place)?;
        self.gauge.row(bytes.len() as u64, &place)?;
        Ok(Some(RawRow { place, size: bytes.len(), body: RawBody::Json(bytes) }))
    }

    /// Reads over an element that is a list, a string, a number or a name; false where it is none of them.
    fn pass_over(&mut self, first: u8, place: &Place) -> Result<bool> {
        if first == b'[' {
            return self.object(place).map(|_| true);
        }
        if !first.is_ascii_alphanumeric() && first != b'-' && first != b'"' {
            return Ok(false);
        }
        let (mut passed, mut escaped) = (0, false);
        loop {
            let head = self.text.fill_buf().map_err(|e| read_error(&self.path, self.line, e))?;
            let Some(&byte) = head.first() else { return Ok(first != b'"') };
            let name = first != b'"';
            if name && (matches!(byte, b',' | b']') || byte.is_ascii_whitespace()) {
                return Ok(true);
            }
            self.line += u64::from(byte == b'\n');
            self.text.consume(1);
            if byte == b'"' && !name && !escaped && passed > 0 {
                return Ok(true);
            }
            escaped = byte == b'\\' && !escaped;
            passed += 1;
            if passed > self.gauge.room() {
                return Err(self.gauge.too_long(place));
            }
        }
    }

    /// The bytes of an object up to its closing brace; brackets inside strings do not count.
    fn object(&mut self, place: &Place) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(1024);
        let (mut depth, mut in_string, mut escaped) = (0u32, false, false);
        loop {
            let head = self.text.fill_buf().map_err(|e| read_error(&self.path, self.line, e))?;
            if head.is_empty() {
                return Err(self.bad("the file ends inside an object"));
            }
            let mut used = 0;
            let mut closed = false;
            for &b in head {
                used += 1;
                self.line += u64::from(b == b'\n');
                if in_string {
                    in_string = escaped || b != b'"';
                    escaped = !escaped && b == b'\\';
                    continue;
                }
                match b {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    closed = true;
                    break;
                }
            }
            bytes.extend_from_slice(&head[..used]);
            self.text.consume(used);
            if bytes.len() as u64 > self.gauge.room() {
                return Err(self.gauge.too_long(place));
            }
            if closed {
                return Ok(bytes);
            }
        }
    }
}
