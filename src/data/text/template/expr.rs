//! Expressions of a template, as Jinja2's parser reads them.

use super::ast::*;
use super::fault::{Fault, Res, raise};
use super::token::Token;

/// Deepest nesting of brackets: Jinja2's own parser meets Python's limit at about seventy.
const MAX_BRACKETS: u32 = 100;
/// Deepest tree of one tag's expressions: Jinja2's compiler meets Python's limit below three hundred.
const MAX_HEIGHT: u32 = 500;

/// A reader of tokens.
pub struct Expressions {
    tokens: Vec<(Token, u32)>,
    at: usize,
    depth: u32,
}

impl Expressions {
    /// A reader of `tokens`, which end with [`Token::End`]. Errors: an expression would make too deep a tree.
    pub fn new(tokens: Vec<(Token, u32)>) -> Res<Self> {
        // Operators between two commas or brackets nest at most so deep, upon what the brackets between them hold.
        let mut open: Vec<[u32; 3]> = vec![[0; 3]];
        for (token, line) in &tokens {
            let Some([whole, run, inner]) = open.last_mut() else { break };
            match token {
                Token::Op(",") | Token::BlockEnd | Token::VariableEnd => {
                    *whole = (*whole).max(*run + *inner);
                    (*run, *inner) = (0, 0);
                }
                Token::Op("(" | "[" | "{") => {
                    *run += 1;
                    open.push([0; 3]);
                }
                Token::Op(")" | "]" | "}") => {
                    let height = (*whole).max(*run + *inner);
                    open.pop();
                    if let Some(outer) = open.last_mut() {
                        outer[2] = outer[2].max(height);
                    }
                }
                Token::Op("~" | ":") => {}
                Token::Op(_) => *run += 1,
                Token::Name(name) => *run += u32::from(matches!(name.as_str(), "if" | "or" | "and" | "not" | "is")),
                _ => {}
            }
            if open.last().is_some_and(|[_, run, inner]| run + inner > MAX_HEIGHT) {
                return Err(Fault::limit(format!("an expression is too long: over {MAX_HEIGHT} operators")).at(*line));
            }
        }
        Ok(Self { tokens, at: 0, depth: 0 })
    }

    /// The token that comes next.
    pub fn current(&self) -> &Token {
        &self.tokens[self.at].0
    }

    /// Its line.
    pub fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    /// The token after it.
    pub(super) fn look(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    /// Takes the next token.
    pub fn advance(&mut self) -> Token {
        let last = self.tokens.len() - 1;
        if self.at == last {
            return Token::End;
        }
        self.at += 1;
        std::mem::replace(&mut self.tokens[self.at - 1].0, Token::End)
    }

    /// Takes `token`.
    pub fn expect(&mut self, token: &Token) -> Res<()> {
        if self.current() != token {
            return raise(format!("expected {}, got {}", named(token), named(self.current())));
        }
        self.advance();
        Ok(())
    }

    /// Takes the operator `op`.
    pub fn expect_op(&mut self, op: &'static str) -> Res<()> {
        self.expect(&Token::Op(op))
    }

    /// Takes the word `name`.
    pub fn expect_name(&mut self, name: &str) -> Res<()> {
        self.expect(&Token::Name(name.to_owned()))
    }

    /// Whether `op` comes next.
    pub fn is_op(&self, op: &str) -> bool {
        matches!(self.current(), Token::Op(o) if *o == op)
    }

    /// Whether the word `name` comes next.
    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.current(), Token::Name(n) if n == name)
    }

    /// Takes `op` where it comes next.
    pub fn skip_op(&mut self, op: &str) -> bool {
        let is = self.is_op(op);
        if is {
            self.advance();
        }
        is
    }

    /// Takes `name` where it comes next.
    pub fn skip_name(&mut self, name: &str) -> bool {
        let is = self.is_name(name);
        if is {
            self.advance();
        }
        is
    }

    /// Takes a word.
    pub(super) fn word(&mut self) -> Res<String> {
        match self.advance() {
            Token::Name(name) => Ok(name),
            other => raise(format!("expected a name, got {}", named(&other))),
        }
    }

    /// A name to assign to.
    pub fn target_name(&mut self) -> Res<Name> {
        assignable(self.word()?)
    }

    /// What is assigned to: a name, names, or an attribute of a namespace where `attrs`.
    pub fn target(&mut self, ends: &[&str], attrs: bool) -> Res<Target> {
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            if !targets.is_empty() {
                self.expect_op(",")?;
            }
            if self.tuple_ends(ends) {
                break;
            }
            targets.push(self.one_target(attrs)?);
            if !self.is_op(",") {
                break;
            }
            tuple = true;
        }
        match targets.pop() {
            Some(only) if !tuple => Ok(only),
            Some(last) => {
                targets.push(last);
                Ok(Target::Tuple(targets))
            }
            None => raise(format!("Expected an expression, got {}", named(self.current()))),
        }
    }

    fn one_target(&mut self, attrs: bool) -> Res<Target> {
        if self.skip_op("(") {
            let inner = match self.is_op(")") {
                true => Target::Tuple(Vec::new()),
                // In brackets Jinja2 reads whole expressions; of those only names can be assigned to.
                false => self.nested(|this| this.target(&[], false))?,
            };
            self.expect_op(")")?;
            return Ok(inner);
        }
        let Token::Name(_) = self.current() else {
            return raise(format!("can't assign to {}", named(self.current())));
        };
        let name = self.word()?;
        if attrs && !literal_name(&name) && self.skip_op(".") {
            let attr = self.word()?;
            return Ok(Target::Attr(named_name(name), attr.into()));
        }
        assignable(name).map(Target::Name)
    }

    fn tuple_ends(&self, ends: &[&str]) -> bool {
        matches!(self.current(), Token::VariableEnd | Token::BlockEnd | Token::Op(")"))
            || ends.iter().any(|end| self.is_name(end))
    }

    /// An expression, or a tuple of several.
    pub fn tuple(&mut self, conditional: bool, ends: &[&str]) -> Res<Expr> {
        self.tuple_in(conditional, ends, false)
    }

    /// [`Expressions::tuple`]; in `brackets` it may be empty.
    pub(super) fn tuple_in(&mut self, conditional: bool, ends: &[&str], brackets: bool) -> Res<Expr> {
        let mut items = Vec::new();
        let mut tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if self.tuple_ends(ends) {
                break;
            }
            items.push(self.expression(conditional)?);
            if !self.is_op(",") {
                break;
            }
            tuple = true;
        }
        if !tuple {
            if let Some(only) = items.pop() {
                return Ok(only);
            }
            if !brackets {
                return raise(format!("Expected an expression, got {}", named(self.current())));
            }
        }
        Ok(Expr::Tuple(items))
    }

    /// `read`, one level deeper. Errors: too deep.
    pub(super) fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        self.depth += 1;
        if self.depth > MAX_BRACKETS {
            return Err(Fault::limit(format!("an expression nests deeper than {MAX_BRACKETS}")));
        }
        let out = read(self);
        self.depth -= 1;
        out
    }
}

fn literal_name(name: &str) -> bool {
    matches!(name, "true" | "false" | "none" | "True" | "False" | "None")
}

pub(super) fn named_name(text: String) -> Name {
    Name { text: text.into(), slot: Slot::default(), param: false }
}

fn assignable(name: String) -> Res<Name> {
    if literal_name(&name) { raise(format!("can't assign to '{name}'")) } else { Ok(named_name(name)) }
}

/// A token, for messages.
pub(super) fn named(token: &Token) -> String {
    match token {
        Token::Data(_) => "text".into(),
        Token::VariableBegin => "{{".into(),
        Token::VariableEnd => "}}".into(),
        Token::BlockBegin => "{%".into(),
        Token::BlockEnd => "%}".into(),
        Token::Name(name) => format!("`{name}`"),
        Token::Str(_) => "a string".into(),
        Token::Int(_) | Token::Float(_) => "a number".into(),
        Token::Op(op) => format!("`{op}`"),
        Token::End => "the end of the template".into(),
    }
}
