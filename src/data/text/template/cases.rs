//! Python's upper, lower and title case, and its questions about characters.

use super::fault::{Fault, Res};
use super::unicode as uni;

/// Each character in lower case, with the final sigma where the whole text asks for it.
fn lower_each(text: &str) -> impl Iterator<Item = (char, String)> {
    let lower = text.to_lowercase();
    let mut rest = lower.chars().collect::<Vec<_>>().into_iter();
    text.chars().map(move |c| (c, rest.by_ref().take(c.to_lowercase().count()).collect()))
}

fn is_title(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | 'ᾈ'..='ᾏ' | 'ᾘ'..='ᾟ' | 'ᾨ'..='ᾯ' | 'ᾼ' | 'ῌ' | 'ῼ')
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

/// `str.capitalize`
pub fn capitalize(text: &str) -> String {
    lower_each(text).enumerate().map(|(i, (c, lower))| if i == 0 { uni::title(c) } else { lower }).collect()
}

/// `str.title`
pub fn title(text: &str) -> String {
    let mut after_cased = false;
    lower_each(text)
        .map(|(c, lower)| {
            let out = if after_cased { lower } else { uni::title(c) };
            after_cased = is_cased(c);
            out
        })
        .collect()
}

/// `str.swapcase`
pub fn swapcase(text: &str) -> String {
    lower_each(text)
        .map(|(c, lower)| match () {
            () if c.is_uppercase() => lower,
            () if c.is_lowercase() => c.to_uppercase().collect(),
            () => c.to_string(),
        })
        .collect()
}

/// `str.isalpha` and its like; `None` where there is no such method.
pub fn question(name: &str, text: &str) -> Option<Res<bool>> {
    let all = |is: &dyn Fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    Some(Ok(match name {
        "isalnum" => all(&uni::is_alnum),
        "isalpha" => all(&uni::is_alpha),
        "isascii" => text.is_ascii(),
        "isdecimal" => all(&|c| uni::decimal(c).is_some()),
        "isdigit" => all(&uni::is_digit),
        "isnumeric" => all(&uni::is_numeric),
        "isspace" => all(&uni::is_space),
        "isprintable" => text.chars().all(uni::is_printable),
        "islower" => text.chars().any(|c| c.is_lowercase()) && !text.chars().any(|c| c.is_uppercase() || is_title(c)),
        "isupper" => text.chars().any(|c| c.is_uppercase()) && !text.chars().any(|c| c.is_lowercase() || is_title(c)),
        "istitle" => is_titled(text),
        "isidentifier" if !text.is_ascii() => return Some(Err(Fault::refused("isidentifier() beyond ASCII"))),
        "isidentifier" => {
            all(&|c| c == '_' || c.is_ascii_alphanumeric()) && !text.starts_with(|c: char| c.is_ascii_digit())
        }
        _ => return None,
    }))
}

fn is_titled(text: &str) -> bool {
    let (mut any, mut after_cased) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() || is_title(c) {
            if after_cased {
                return false;
            }
            (any, after_cased) = (true, true);
        } else if c.is_lowercase() {
            if !after_cased {
                return false;
            }
            any = true;
        } else {
            after_cased = false;
        }
    }
    any
}
