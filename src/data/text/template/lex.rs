//! A template's source as tokens, cut where Jinja2 3.1 cuts it with `trim_blocks` and `lstrip_blocks`.

use super::fault::{Fault, Res, raise};
use super::literal;
use super::token::Token;
use super::unicode::{is_alnum, is_plain_letter, is_space};

/// Operators, longer ones first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// The tokens of `source`, each with its line, ending with [`Token::End`].
pub fn tokens(source: &str) -> Res<Vec<(Token, u32)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, pos: 0, line: 1, line_starting: true, out: Vec::new() };
    while lexer.pos < source.len() {
        lexer.root().map_err(|fault| fault.at(lexer.line))?;
    }
    let line = lexer.line;
    lexer.out.push((Token::End, line));
    Ok(lexer.out)
}

struct Lexer<'a> {
    source: &'a str,
    pos: usize,
    line: u32,
    /// Whether what was read last ends a line.
    line_starting: bool,
    out: Vec<(Token, u32)>,
}

/// What opens a tag.
#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Raw,
    Block,
    Comment,
    Variable,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.pos..]
    }

    fn push(&mut self, token: Token) {
        self.out.push((token, self.line));
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Data(text.to_owned()));
        }
    }

    /// Takes `len` bytes, which count for lines.
    fn take(&mut self, len: usize) {
        let taken = &self.source[self.pos..self.pos + len];
        self.line += taken.matches('\n').count() as u32;
        self.line_starting = taken.ends_with('\n');
        self.pos += len;
    }

    /// Text up to the next tag, and the tag.
    fn root(&mut self) -> Res<()> {
        let rest = self.rest();
        let Some((at, tag, len, sign)) = next_tag(rest) else {
            self.data(rest);
            self.take(rest.len());
            return Ok(());
        };
        self.data(strip(&rest[..at], sign, tag != Tag::Variable, self.line_starting));
        self.take(at);
        match tag {
            Tag::Raw => {
                self.take(len);
                return self.raw();
            }
            Tag::Comment => {
                self.take(len);
                return self.comment();
            }
            Tag::Block => self.push(Token::BlockBegin),
            Tag::Variable => self.push(Token::VariableBegin),
        }
        self.take(len);
        self.inside(tag == Tag::Block)
    }

    fn comment(&mut self) -> Res<()> {
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(());
        }
        let Some(at) = rest.find("#}") else { return raise("Missing end of comment tag") };
        let sign = rest[..at].chars().next_back();
        self.take(at);
        self.close("#}", true, sign);
        Ok(())
    }

    fn raw(&mut self) -> Res<()> {
        let rest = self.rest();
        let ends = rest.match_indices("{%").find_map(|(at, _)| {
            let (len, before, after) = end_of_raw(&rest[at..])?;
            Some((at, len, before, after))
        });
        let Some((at, len, before, after)) = ends else {
            return if rest.is_empty() { Ok(()) } else { raise("Missing end of raw directive") };
        };
        self.data(strip(&rest[..at], before, true, self.line_starting));
        self.take(at + len - 2);
        self.close("%}", true, after);
        Ok(())
    }

    /// The tokens of a tag and its end.
    fn inside(&mut self, block: bool) -> Res<()> {
        let end = if block { "%}" } else { "}}" };
        let mut open: Vec<&str> = Vec::new();
        loop {
            let rest = self.rest();
            let Some(c) = rest.chars().next() else { return Ok(()) };
            let signed = rest.strip_prefix('-').or_else(|| rest.strip_prefix('+').filter(|_| block));
            let closes = rest.starts_with(end) || signed.is_some_and(|r| r.starts_with(end));
            if open.is_empty() && closes {
                self.push(if block { Token::BlockEnd } else { Token::VariableEnd });
                if !rest.starts_with(end) {
                    self.take(1);
                }
                self.close(end, block, Some(c));
                return Ok(());
            }
            if is_space(c) {
                self.take(rest.len() - rest.trim_start_matches(is_space).len());
                continue;
            }
            let (token, len) = self.token(rest, c)?;
            if let Token::Op(op) = token {
                balance(op, &mut open)?;
            }
            self.push(token);
            self.take(len);
        }
    }

    /// Takes what closes a tag and the white space that goes with it.
    fn close(&mut self, end: &str, trims: bool, sign: Option<char>) {
        let after = &self.rest()[end.len()..];
        let more = match sign {
            Some('-') => after.len() - after.trim_start_matches(is_space).len(),
            Some('+') => 0,
            _ => usize::from(trims && after.starts_with('\n')),
        };
        self.take(end.len() + more);
    }

    fn token(&self, rest: &str, c: char) -> Res<(Token, usize)> {
        let after_dot = self.source[..self.pos].ends_with('.');
        if c.is_ascii_digit() {
            return literal::number(rest, after_dot);
        }
        let word =
            |c: char| c == '_' || is_alnum(c) || c == '·' || (!c.is_ascii() && !is_space(c) && c.is_alphanumeric());
        if word(c) {
            let len = rest.find(|c| !word(c)).unwrap_or(rest.len());
            let name = &rest[..len];
            if !name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric() || is_plain_letter(c)) {
                return Err(Fault::refused(format!("the name `{name}`")));
            }
            return Ok((Token::Name(name.to_owned()), len));
        }
        if (c == '\'' || c == '"')
            && let Some((value, len)) = literal::string(rest, c)?
        {
            return Ok((Token::Str(value), len));
        }
        match OPERATORS.into_iter().find(|op| rest.starts_with(op)) {
            Some(op) => Ok((Token::Op(op), op.len())),
            None if !c.is_ascii() => Err(Fault::refused(format!("the character {c:?} in a tag"))),
            None => raise(format!("unexpected char {c:?}")),
        }
    }
}

/// Brackets must close what is open.
fn balance(op: &'static str, open: &mut Vec<&'static str>) -> Res<()> {
    match op {
        "(" => open.push(")"),
        "[" => open.push("]"),
        "{" => open.push("}"),
        ")" | "]" | "}" => match open.pop() {
            Some(expected) if expected == op => {}
            Some(expected) => return raise(format!("unexpected '{op}', expected '{expected}'")),
            None => return raise(format!("unexpected '{op}'")),
        },
        _ => {}
    }
    Ok(())
}

/// Text before a tag without the white space that the tag takes: all of it for `-`; where tags strip, what stands alone
/// before the tag in its line.
fn strip(text: &str, sign: Option<char>, strips: bool, line_starting: bool) -> &str {
    match sign {
        Some('-') => text.trim_end_matches(is_space),
        None if strips => {
            let line = text.rfind('\n').map_or(0, |at| at + 1);
            let blank = text[line..].chars().all(is_space);
            if (line > 0 || line_starting) && blank { &text[..line] } else { text }
        }
        _ => text,
    }
}

fn sign_of(text: &str) -> Option<char> {
    text.chars().next().filter(|c| matches!(c, '-' | '+'))
}

/// The first tag of `text`: where, which, bytes of its opening, sign.
fn next_tag(text: &str) -> Option<(usize, Tag, usize, Option<char>)> {
    let at = text.as_bytes().windows(2).position(|w| w[0] == b'{' && matches!(w[1], b'{' | b'%' | b'#'))?;
    let after = &text[at + 2..];
    let sign = sign_of(after);
    let len = 2 + usize::from(sign.is_some());
    let tag = match text.as_bytes()[at + 1] {
        b'{' => Tag::Variable,
        b'#' => Tag::Comment,
        _ => match start_of_raw(&text[at + len..]) {
            Some(more) => return Some((at, Tag::Raw, len + more, sign)),
            None => Tag::Block,
        },
    };
    Some((at, tag, len, sign))
}

/// Bytes of ` raw %}` and the white space after a `-%}`.
fn start_of_raw(text: &str) -> Option<usize> {
    let rest = text.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    let rest = match rest.strip_prefix("-%}") {
        Some(rest) => rest.trim_start_matches(is_space),
        None => rest.strip_prefix("%}")?,
    };
    Some(text.len() - rest.len())
}

/// Bytes of `{% endraw %}` and its signs.
fn end_of_raw(text: &str) -> Option<(usize, Option<char>, Option<char>)> {
    let after = text.strip_prefix("{%")?;
    let sign = sign_of(after);
    let after = &after[usize::from(sign.is_some())..];
    let rest = after.trim_start_matches(is_space).strip_prefix("endraw")?.trim_start_matches(is_space);
    let last = sign_of(rest);
    let rest = rest[usize::from(last.is_some())..].strip_prefix("%}")?;
    Some((text.len() - rest.len(), sign, last))
}
