//! Terms of an expression: literals, names, brackets, and what follows them: members, items, calls, filters and tests.

use super::ast::{CallArgs, Expr, Lit};
use super::expr::{Expressions, named, named_name};
use super::fault::{Res, raise, room_for_named};
use super::token::Token;
use std::sync::Arc;

impl Expressions {
    pub(super) fn primary(&mut self) -> Res<Expr> {
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

    pub(super) fn postfix(&mut self, mut node: Expr) -> Res<Expr> {
        loop {
            node = match self.current() {
                Token::Op(".") => self.member(node)?,
                Token::Op("[") => self.subscript(node)?,
                Token::Op("(") => self.call(node)?,
                _ => return Ok(node),
            };
        }
    }

    pub(super) fn filter_or_test(&mut self, mut node: Expr) -> Res<Expr> {
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
                room_for_named(out.kw.len())?;
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
