//! JSON texts with other numbers and strings in them than JSON's readers take, or keep.

use std::borrow::Cow;

/// `text` with what `instead` says in place of its numbers, and of what looks like Python's. It is given the text from one
/// on, never within a string, and answers how many bytes that is and what stands there instead.
pub(super) fn rewritten(text: &str, mut instead: impl FnMut(&str) -> (usize, Option<String>)) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let (mut out, mut done, mut at) = (String::new(), 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = behind_string(bytes, at + 1),
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                let (len, other) = instead(&text[at..]);
                if let Some(other) = other {
                    out += &text[done..at];
                    out += &other;
                    done = at + len;
                }
                at += len;
            }
            _ => at += 1,
        }
    }
    if done == 0 { Cow::Borrowed(text) } else { Cow::Owned(out + &text[done..]) }
}

/// `text` with what `instead` says in place of its strings. It is given a string as it stands, with its quotes, and whether it
/// is the key of an object.
pub(super) fn restrung(text: &str, mut instead: impl FnMut(&str, bool) -> Option<String>) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let (mut out, mut done, mut at) = (String::new(), 0, 0);
    while let Some(begin) = memchr::memchr(b'"', &bytes[at..]).map(|found| at + found) {
        at = behind_string(bytes, begin + 1);
        let is_key = text[at..].trim_start().starts_with(':');
        if let Some(other) = instead(&text[begin..at], is_key) {
            out += &text[done..begin];
            out += &other;
            done = at;
        }
    }
    if done == 0 { Cow::Borrowed(text) } else { Cow::Owned(out + &text[done..]) }
}

/// Halves of surrogate pairs without their other half, as the text of a JSON string has them: their place, and their escape.
pub(super) fn half_pairs(string: &str) -> impl Iterator<Item = (usize, &str)> {
    let unit = |at: usize| u32::from_str_radix(string.get(at..)?.strip_prefix("\\u")?.get(..4)?, 16).ok();
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(found) = memchr::memchr(b'\\', &string.as_bytes()[at..]) {
            let begin = at + found;
            let (len, half) = match unit(begin) {
                Some(0xd800..=0xdbff) if matches!(unit(begin + 6), Some(0xdc00..=0xdfff)) => (12, false),
                Some(0xd800..=0xdfff) => (6, true),
                Some(_) => (6, false),
                // What is escaped is one character, of any length, or missing.
                None => (1 + string[begin + 1..].chars().next().map_or(0, char::len_utf8), false),
            };
            at = begin + len;
            if half {
                return Some((begin, &string[begin..at]));
            }
        }
        None
    })
}

/// Where the string ends that has begun before `at`: behind its quote, or at the end of a text that is cut short.
fn behind_string(bytes: &[u8], mut at: usize) -> usize {
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// Bytes of the number, or what looks like one, that `text` begins with; at least 1.
pub(super) fn number_len(text: &str) -> usize {
    text.bytes().position(|c| !b"+-.0123456789eE".contains(&c)).unwrap_or(text.len()).max(1)
}
