//! Expressions of a template, as Jinja2's parser reads them.

use super::ast::*;
use super::fault::{Fault, Res, raise};
use super::number::Op;
use super::token::Token;
use super::walk::children;
use std::sync::Arc;

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

    fn look(&self) -> &Token {
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

    fn word(&mut self) -> Res<String> {
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
            self.deeper()?;
            let inner = match self.is_op(")") {
                true => Target::Tuple(Vec::new()),
                // In brackets Jinja2 reads whole expressions; of those only names can be assigned to.
                false => self.target(&[], false)?,
            };
            self.depth -= 1;
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

    fn tuple_in(&mut self, conditional: bool, ends: &[&str], brackets: bool) -> Res<Expr> {
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

    fn deeper(&mut self) -> Res<()> {
        self.depth += 1;
        if self.depth > MAX_BRACKETS {
            return Err(Fault::limit(format!("an expression nests deeper than {MAX_BRACKETS}")));
        }
        Ok(())
    }

    /// An expression; `a if b else c` too where `conditional`.
    pub fn expression(&mut self, conditional: bool) -> Res<Expr> {
        self.deeper()?;
        let out = if conditional { self.condition() } else { self.or() };
        self.depth -= 1;
        out
    }

    fn condition(&mut self) -> Res<Expr> {
        let line = self.line();
        let mut value = self.or()?;
        while self.skip_name("if") {
            let test = self.or()?;
            let other = match self.skip_name("else") {
                true => {
                    self.deeper()?;
                    let other = self.condition()?;
                    self.depth -= 1;
                    Some(Box::new(other))
                }
                false => None,
            };
            value = Expr::Cond(Box::new([test, value]), other, line);
        }
        Ok(value)
    }

    fn or(&mut self) -> Res<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            left = Expr::Logic(false, Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Res<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            left = Expr::Logic(true, Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Res<Expr> {
        if !self.skip_name("not") {
            return self.compare();
        }
        self.deeper()?;
        let inner = self.not()?;
        self.depth -= 1;
        Ok(Expr::Not(Box::new(inner)))
    }

    fn compare(&mut self) -> Res<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let cmp = match self.current() {
                Token::Op("==") => Cmp::Eq,
                Token::Op("!=") => Cmp::Ne,
                Token::Op("<") => Cmp::Lt,
                Token::Op("<=") => Cmp::Le,
                Token::Op(">") => Cmp::Gt,
                Token::Op(">=") => Cmp::Ge,
                Token::Name(name) if name == "in" => Cmp::In,
                Token::Name(name) if name == "not" && matches!(self.look(), Token::Name(n) if n == "in") => {
                    self.advance();
                    Cmp::NotIn
                }
                _ => break,
            };
            self.advance();
            rest.push((cmp, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest, line) })
    }

    fn sum(&mut self) -> Res<Expr> {
        let mut left = self.concat()?;
        loop {
            let op = match self.current() {
                Token::Op("+") => Op::Add,
                Token::Op("-") => Op::Sub,
                _ => return Ok(left),
            };
            let line = self.line();
            self.advance();
            left = Expr::Binary(op, Box::new(left), Box::new(self.concat()?), line);
        }
    }

    fn concat(&mut self) -> Res<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts, line))
    }

    fn product(&mut self) -> Res<Expr> {
        let mut left = self.power()?;
        loop {
            let op = match self.current() {
                Token::Op("*") => Op::Mul,
                Token::Op("/") => Op::Div,
                Token::Op("//") => Op::FloorDiv,
                Token::Op("%") => Op::Mod,
                _ => return Ok(left),
            };
            let line = self.line();
            self.advance();
            left = Expr::Binary(op, Box::new(left), Box::new(self.power()?), line);
        }
    }

    fn power(&mut self) -> Res<Expr> {
        let mut left = self.unary(true)?;
        while self.is_op("**") {
            let line = self.line();
            self.advance();
            let right = self.unary(true)?;
            let op = if constant(&left) && !constant(&right) { Op::ConstPow } else { Op::Pow };
            left = Expr::Binary(op, Box::new(left), Box::new(right), line);
        }
        Ok(left)
    }

    fn unary(&mut self, filters: bool) -> Res<Expr> {
        let line = self.line();
        let node = match self.current() {
            Token::Op(sign @ ("-" | "+")) => {
                let minus = *sign == "-";
                self.advance();
                self.deeper()?;
                let inner = self.unary(false)?;
                self.depth -= 1;
                Expr::Sign(minus, Box::new(inner), line)
            }
            _ => self.primary()?,
        };
        let node = self.postfix(node)?;
        if filters { self.filter_or_test(node) } else { Ok(node) }
    }

    fn primary(&mut self) -> Res<Expr> {
        let line = self.line();
        Ok(match self.advance() {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Expr::Lit(Lit::Bool(true)),
                "false" | "False" => Expr::Lit(Lit::Bool(false)),
                "none" | "None" => Expr::Lit(Lit::None),
                _ => Expr::Name(named_name(name), line),
            },
            Token::Str(mut text) => {
                while let Token::Str(_) = self.current() {
                    if let Token::Str(more) = self.advance() {
                        text.push_str(&more);
                    }
                }
                Expr::Lit(Lit::Str(text.into()))
            }
            Token::Int(n) => Expr::Lit(Lit::Int(n)),
            Token::Float(x) => Expr::Lit(Lit::Float(x)),
            Token::Op("(") => {
                let inner = self.tuple_in(true, &[], true)?;
                self.expect_op(")")?;
                inner
            }
            Token::Op("[") => {
                let mut items = Vec::new();
                while !self.is_op("]") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.is_op("]") {
                            break;
                        }
                    }
                    items.push(self.expression(true)?);
                }
                self.expect_op("]")?;
                Expr::List(items)
            }
            Token::Op("{") => self.dict()?,
            other => return raise(format!("unexpected {}", named(&other))),
        })
    }

    fn dict(&mut self) -> Res<Expr> {
        let mut items = Vec::new();
        while !self.is_op("}") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op("}") {
                    break;
                }
            }
            let key = self.expression(true)?;
            self.expect_op(":")?;
            items.push((key, self.expression(true)?));
        }
        self.expect_op("}")?;
        Ok(Expr::Dict(items))
    }

    fn postfix(&mut self, mut node: Expr) -> Res<Expr> {
        loop {
            node = match self.current() {
                Token::Op(".") => self.member(node)?,
                Token::Op("[") => self.subscript(node)?,
                Token::Op("(") => self.call(node)?,
                _ => return Ok(node),
            };
        }
    }

    fn filter_or_test(&mut self, mut node: Expr) -> Res<Expr> {
        loop {
            node = match self.current() {
                Token::Op("|") => self.filters(node, false)?,
                Token::Name(name) if name == "is" => self.test(node)?,
                Token::Op("(") => self.call(node)?,
                _ => return Ok(node),
            };
        }
    }

    fn member(&mut self, node: Expr) -> Res<Expr> {
        let line = self.line();
        self.advance();
        match self.advance() {
            Token::Name(name) => Ok(Expr::Attr(Box::new(node), name.into(), line)),
            Token::Int(n) => Ok(Expr::Item(Box::new(node), Box::new(Expr::Lit(Lit::Int(n))), line)),
            _ => raise("expected name or number"),
        }
    }

    fn subscript(&mut self, node: Expr) -> Res<Expr> {
        let line = self.line();
        self.advance();
        let mut args: Vec<Expr> = Vec::new();
        while !self.is_op("]") {
            if !args.is_empty() {
                self.expect_op(",")?;
            }
            let first = if self.is_op(":") { None } else { Some(self.expression(true)?) };
            if !self.is_op(":") {
                args.extend(first);
                continue;
            }
            let parts = self.slice(first)?;
            if !args.is_empty() || !self.is_op("]") {
                return raise("a slice inside a tuple is no Python");
            }
            self.advance();
            return Ok(Expr::Slice(Box::new(node), Box::new(parts), line));
        }
        self.advance();
        let arg = match args.pop() {
            Some(only) if args.is_empty() => only,
            last => Expr::Tuple(args.into_iter().chain(last).collect()),
        };
        Ok(Expr::Item(Box::new(node), Box::new(arg), line))
    }

    /// `:stop:step` behind the start.
    fn slice(&mut self, start: Option<Expr>) -> Res<[Option<Expr>; 3]> {
        self.advance();
        let open = |this: &Self| this.is_op(":") || this.is_op("]") || this.is_op(",");
        let stop = if open(self) { None } else { Some(self.expression(true)?) };
        let step = match self.skip_op(":") {
            true if !(self.is_op("]") || self.is_op(",")) => Some(self.expression(true)?),
            _ => None,
        };
        Ok([start, stop, step])
    }

    fn call_args(&mut self) -> Res<CallArgs> {
        self.advance();
        let mut out = CallArgs::default();
        let mut comma = false;
        let ensure = |ok: bool| if ok { Ok(()) } else { raise("invalid syntax for function call expression") };
        while !self.is_op(")") {
            if comma {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            if self.skip_op("*") {
                ensure(out.dyn_pos.is_none() && out.dyn_kw.is_none())?;
                out.dyn_pos = Some(self.expression(true)?);
            } else if self.skip_op("**") {
                ensure(out.dyn_kw.is_none())?;
                out.dyn_kw = Some(self.expression(true)?);
            } else if matches!((self.current(), self.look()), (Token::Name(_), Token::Op("="))) {
                ensure(out.dyn_kw.is_none())?;
                let name: Arc<str> = self.word()?.into();
                self.advance();
                if out.kw.iter().any(|(given, _)| *given == name) {
                    return raise(format!("keyword argument repeated: {name}"));
                }
                out.kw.push((name, self.expression(true)?));
            } else {
                ensure(out.dyn_pos.is_none() && out.dyn_kw.is_none() && out.kw.is_empty())?;
                out.pos.push(self.expression(true)?);
            }
            comma = true;
        }
        self.expect_op(")")?;
        Ok(out)
    }

    fn call(&mut self, node: Expr) -> Res<Expr> {
        let line = self.line();
        Ok(Expr::Call(Box::new(node), Box::new(self.call_args()?), line))
    }

    fn dotted(&mut self) -> Res<Arc<str>> {
        let mut name = self.word()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.word()?);
        }
        Ok(name.into())
    }

    /// `|name(...)` as often as it comes; the first without its bar where `inline`.
    pub fn filters(&mut self, mut node: Expr, mut inline: bool) -> Res<Expr> {
        while inline || self.is_op("|") {
            if !inline {
                self.advance();
            }
            inline = false;
            let line = self.line();
            let name = self.dotted()?;
            let mut args = if self.is_op("(") { self.call_args()? } else { CallArgs::default() };
            args.pos.insert(0, node);
            node = Expr::Filter(name, Box::new(args), line);
        }
        Ok(node)
    }

    fn test(&mut self, node: Expr) -> Res<Expr> {
        let line = self.line();
        self.advance();
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        let mut args = match self.current() {
            Token::Op("(") => self.call_args()?,
            Token::Name(word) if matches!(word.as_str(), "else" | "or" | "and") => CallArgs::default(),
            Token::Name(word) if word == "is" => return raise("You cannot chain multiple tests with is"),
            Token::Name(_) | Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{") => {
                let arg = self.primary()?;
                CallArgs { pos: vec![self.postfix(arg)?], ..CallArgs::default() }
            }
            _ => CallArgs::default(),
        };
        args.pos.insert(0, node);
        let test = Expr::Test(name, Box::new(args), line);
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }
}

/// Whether Jinja2 folds the expression into a constant.
pub fn constant(expr: &Expr) -> bool {
    let mut whole = match expr {
        Expr::Name(..) | Expr::Call(..) | Expr::Buffer => return false,
        Expr::Filter(name, ..) => {
            !matches!(&**name, "map" | "select" | "reject" | "selectattr" | "rejectattr" | "random")
        }
        _ => true,
    };
    children(expr, &mut |child| whole &= constant(child));
    whole
}

fn literal_name(name: &str) -> bool {
    matches!(name, "true" | "false" | "none" | "True" | "False" | "None")
}

fn named_name(text: String) -> Name {
    Name { text: text.into(), slot: Slot::default(), param: false }
}

fn assignable(name: String) -> Res<Name> {
    if literal_name(&name) { raise(format!("can't assign to '{name}'")) } else { Ok(named_name(name)) }
}

fn named(token: &Token) -> String {
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
