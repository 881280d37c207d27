//! The one place that prints. Much of what is printed was written by strangers: names of tensors and columns, messages of a
//! template, what a model generates. A terminal would obey the control characters in it, and a reader would be deceived by
//! text that turns its direction; so they are made visible here, whoever prints.
//!
//! [`note!`](crate::note) is a line on stderr, [`warn!`](crate::warn!) one that even a quiet program says, [`say!`](crate::say!) one on
//! stdout; [`result`] is what a model wrote, which goes into a pipe as it is. How much stderr gets is the program's [`Level`]; the
//! log of a run ([`log_to`]) gets all of it, with the time.

use crate::choice;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// Longest line on stderr, in characters: a message that quotes a file may be as long as the file.
const LONGEST_NOTE: usize = 4000;

/// Lines that are kept for a log that may yet be opened.
const HELD: usize = 1000;

choice! {
    /// How much is said on stderr.
    pub enum Level: default Info {
        /// Errors alone.
        Error = "error",
        /// Warnings too.
        Warning = "warning" | "warn",
        /// Progress and notes too.
        Info = "info",
    }
}

/// Of stderr; everything until it is set.
static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// The log of a run.
static LOG: Mutex<Log> = Mutex::new(Log::Held(Vec::new()));

enum Log {
    /// None yet; what was said so far.
    Held(Vec<String>),
    Open(File),
    /// It could not be written to.
    Lost,
}

/// Says no more on stderr than `level` from here on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Whether stderr gets what is of `level`.
pub fn shows(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Writes all that was said, and all that will be, into `file`.
pub fn log_to(file: File) {
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let before = std::mem::replace(&mut *log, Log::Open(file));
    if let Log::Held(lines) = before {
        lines.iter().for_each(|line| put(&mut log, line));
    }
}

/// A line of the log that nobody hears otherwise.
pub fn log(text: &str) {
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    for line in shortened(&plain(text)).lines().filter(|line| !line.is_empty()) {
        let stamped = format!("{now} {line}\n");
        match &mut *log {
            Log::Held(lines) if lines.len() < HELD => lines.push(stamped),
            log => put(log, &stamped),
        }
    }
}

/// A full disk takes the log, not the run.
fn put(log: &mut Log, line: &str) {
    if let Log::Open(file) = log
        && let Err(e) = file.write_all(line.as_bytes())
    {
        *log = Log::Lost;
        let _ =
            writeln!(std::io::stderr(), "warning: the run's log cannot be written ({e}); the run goes on without it");
    }
}

/// A line on stderr. Unlike `eprintln!` it cannot fail: a log that is full or whose reader left never ends a run.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => { $crate::say::note(&format!($($text)*)) };
}

/// A warning on stderr; see [`note!`](crate::note).
#[macro_export]
macro_rules! warn {
    ($($text:tt)*) => { $crate::say::at($crate::say::Level::Warning, &format!("warning: {}", format_args!($($text)*))) };
}

/// A line on stdout. Panics where it cannot be written, as `println!` does.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::say::say(&format!($($text)*)) };
}

/// See [`note!`](crate::note).
pub fn note(text: &str) {
    at(Level::Info, text);
}

/// A line on stderr, where so much is said, and in the log.
pub fn at(level: Level, text: &str) {
    log(text);
    if shows(level) {
        let line = shortened(&plain(text)).into_owned() + "\n";
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// See [`say!`](crate::say!).
pub fn say(text: &str) {
    log(text);
    println!("{}", plain(text));
}

/// Lines on stdout, a terminal, in the place of the last `above` lines there.
pub fn redraw(text: &str, above: usize) {
    let up = if above > 0 { format!("\x1b[{above}A\x1b[J") } else { String::new() };
    println!("{up}{}", plain(text));
}

/// Lines on stdout, a terminal, on a screen with nothing else.
pub fn draw_anew(text: &str) {
    println!("\x1b[H\x1b[J{}", plain(text));
}

/// A line that a model or its tokenizer made: made visible on a terminal, and elsewhere as it is.
pub fn result(text: &str) {
    match std::io::stdout().is_terminal() {
        true => say(text),
        false => println!("{text}"),
    }
}

/// [`result`] of a JSON value, which is JSON on a terminal too.
pub fn json(value: &serde_json::Value) {
    json_text(&value.to_string());
}

/// [`json`] of a value's text.
pub fn json_text(text: &str) {
    match std::io::stdout().is_terminal() {
        true => {
            println!("{}", visible(text, |c, out| c.encode_utf16(&mut [0; 2]).iter().for_each(|u| put16(*u, out))))
        }
        false => println!("{text}"),
    }
}

fn put16(unit: u16, out: &mut String) {
    let _ = write!(out, "\\u{unit:04x}");
}

/// `text` with everything made visible that a terminal obeys or that changes how the rest looks; line ends and tabs stay.
pub fn plain(text: &str) -> Cow<'_, str> {
    visible(text, |c, out| out.extend(c.escape_default()))
}

/// [`plain`] in one line: for text that must not look like a second one.
pub fn one_line(text: &str) -> String {
    let mut out = String::new();
    for c in plain(text).chars() {
        if matches!(c, '\n' | '\t') { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

fn visible(text: &str, escape: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.chars().any(deceives) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if deceives(c) { escape(c, &mut out) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Control characters but line end and tab, what changes the direction of text, and what takes no room: separators of lines,
/// invisible operators, tags. Joiners stay: scripts and emoji are written with them.
fn deceives(c: char) -> bool {
    let control = c.is_control() && c != '\n' && c != '\t';
    let hidden = matches!(c, '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
    control || hidden
}

/// `text` without the end of lines longer than [`LONGEST_NOTE`].
fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST_NOTE {
        return Cow::Borrowed(text);
    }
    let short = |line: &str| match line.char_indices().nth(LONGEST_NOTE) {
        Some((at, _)) => format!("{}... ({} more characters)", &line[..at], line[at..].chars().count()),
        None => line.to_owned(),
    };
    Cow::Owned(text.split('\n').map(short).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deceives_is_made_visible() {
        for (text, want) in [
            ("plain, with\ta tab\nand a line; déjà vu, 日本語, \u{1f469}\u{200d}\u{1f467}, नि\u{200d}", None),
            ("\u{1b}[2Jcleared\u{7}", Some("\\u{1b}[2Jcleared\\u{7}")),
            ("\u{1b}]0;title\u{9c}", Some("\\u{1b}]0;title\\u{9c}")),
            ("a\rb\u{8}c\u{7f}d\u{85}", Some("a\\rb\\u{8}c\\u{7f}d\\u{85}")),
            ("\u{202e}txt.exe\u{202c}\u{2066}\u{200f}", Some("\\u{202e}txt.exe\\u{202c}\\u{2066}\\u{200f}")),
            ("\u{feff}\u{e0041}\u{2028}\u{2060}", Some("\\u{feff}\\u{e0041}\\u{2028}\\u{2060}")),
        ] {
            assert_eq!(plain(text), want.unwrap_or(text));
            assert_eq!(plain(&plain(text)), plain(text), "once is enough");
        }
        assert_eq!(one_line("a\nfusedpo: fine\t\u{1b}"), "a\\nfusedpo: fine\\t\\u{1b}");
        let as_json = |c: char, out: &mut String| c.encode_utf16(&mut [0; 2]).iter().for_each(|u| put16(*u, out));
        let seen = |text: &str| visible(text, as_json).into_owned();
        let value = serde_json::json!("\u{202e}\u{e0041}x\u{7f}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&seen(&value.to_string())).unwrap(), value);
        assert_eq!(seen(&value.to_string()), "\"\\u202e\\udb40\\udc41x\\u007f\"");
    }

    #[test]
    fn a_message_is_not_as_long_as_the_file_that_it_quotes() {
        let text = "é".repeat(LONGEST_NOTE + 7) + "\nend";
        assert_eq!(shortened(&text), format!("{}... (7 more characters)\nend", "é".repeat(LONGEST_NOTE)));
        let text = "é".repeat(LONGEST_NOTE);
        assert_eq!(shortened(&text), text);
    }
}
