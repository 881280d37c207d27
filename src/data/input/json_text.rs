//! JSON texts with other numbers in them than JSON's readers take, or keep.

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
