//! Operators of an expression, from the loosest to those that bind tightest.

use super::ast::{Cmp, Expr};
use super::expr::Expressions;
use super::fault::Res;
use super::number::Op;
use super::token::Token;
use super::walk::constant;

impl Expressions {
    /// An expression; `a if b else c` too where `conditional`.
    pub fn expression(&mut self, conditional: bool) -> Res<Expr> {
        self.nested(|this| if conditional { this.condition() } else { this.or() })
    }

    fn condition(&mut self) -> Res<Expr> {
        let line = self.line();
        let mut value = self.or()?;
        while self.skip_name("if") {
            let test = self.or()?;
            let other = match self.skip_name("else") {
                true => Some(Box::new(self.nested(Self::condition)?)),
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
        Ok(Expr::Not(Box::new(self.nested(Self::not)?)))
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
                Expr::Sign(minus, Box::new(self.nested(|this| this.unary(false))?), line)
            }
            _ => self.primary()?,
        };
        let node = self.postfix(node)?;
        if filters { self.filter_or_test(node) } else { Ok(node) }
    }
}
