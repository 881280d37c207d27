//! Statements of a template, as Jinja2's parser reads them.

use super::ast::*;
use super::expr::Expressions;
use super::fault::{Fault, Res, raise, room_for_named};
use super::token::Token;
use std::sync::Arc;

/// Deepest nesting of statements: Python itself takes 20 loops in one function.
const MAX_STATEMENTS: u32 = 100;

/// The statements of `tokens`.
pub fn template(tokens: Vec<(Token, u32)>) -> Res<Body> {
    let mut parser = Parser { x: Expressions::new(tokens)?, depth: 0 };
    let body = parser.statements(&[]).map_err(|fault| fault.at(parser.x.line()))?;
    Ok(body)
}

struct Parser {
    x: Expressions,
    depth: u32,
}

impl Parser {
    /// Statements up to a tag of `ends`, whose name is the current token then; to the end where there are none.
    fn statements(&mut self, ends: &[&str]) -> Res<Body> {
        self.depth += 1;
        if self.depth > MAX_STATEMENTS {
            return Err(Fault::limit(format!("statements nest deeper than {MAX_STATEMENTS}")));
        }
        let mut body = Body::new();
        loop {
            let line = self.x.line();
            match self.x.advance() {
                Token::Data(text) => body.push(Stmt::Data(text.into())),
                Token::VariableBegin => {
                    let value = self.x.tuple(true, &[])?;
                    body.push(Stmt::Print(value, line));
                    self.x.expect(&Token::VariableEnd)?;
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.x.is_name(end)) {
                        break;
                    }
                    let line = self.x.line();
                    self.statement(line, &mut body).map_err(|fault| fault.at(line))?;
                    self.x.expect(&Token::BlockEnd)?;
                }
                Token::End if ends.is_empty() => break,
                Token::End => {
                    return raise(format!("Unexpected end of template; looking for {}", ends.join(" or ")));
                }
                other => return raise(format!("unexpected {other:?}")),
            }
        }
        self.depth -= 1;
        Ok(body)
    }

    /// The statements of a tag that is read up to its end; then the end tag's name is current.
    fn block(&mut self, ends: &[&str]) -> Res<Body> {
        self.x.skip_op(":");
        self.x.expect(&Token::BlockEnd)?;
        self.statements(ends)
    }

    /// [`Parser::block`], and past the end tag's name.
    fn whole_block(&mut self, end: &str) -> Res<Body> {
        let body = self.block(&[end])?;
        self.x.advance();
        Ok(body)
    }

    fn scoped(&mut self, end: &str) -> Res<Scoped> {
        Ok(Scoped { body: self.whole_block(end)?, ..Scoped::default() })
    }

    fn statement(&mut self, line: u32, body: &mut Body) -> Res<()> {
        let Token::Name(tag) = self.x.advance() else { return raise("tag name expected") };
        let statement = match tag.as_str() {
            "for" => self.for_loop(line)?,
            "if" => Stmt::If(Box::new(self.condition(line)?)),
            "set" => self.set(line)?,
            "with" => self.with(line)?,
            "macro" => {
                let name = self.x.target_name()?;
                let (args, defaults) = self.signature()?;
                let made = self.macro_of(Some(name.text.clone()), args, defaults, "endmacro")?;
                Stmt::Macro(name, made, line)
            }
            "call" => self.call(line)?,
            "generation" => Stmt::Call(self.macro_of(None, vec![], vec![], "endgeneration")?, None, line),
            "filter" => {
                let filter = self.x.filters(Expr::Buffer, true)?;
                Stmt::Filter(filter, self.scoped("endfilter")?, line)
            }
            "print" => return self.print(line, body),
            "break" => Stmt::Break,
            "continue" => Stmt::Continue,
            "extends" | "include" | "import" | "from" => self.load(&tag, line)?,
            "block" | "autoescape" => return Err(Fault::refused(format!("the tag {{% {tag} %}}"))),
            _ => return raise(format!("Encountered unknown tag '{tag}'")),
        };
        body.push(statement);
        Ok(())
    }

    fn print(&mut self, line: u32, body: &mut Body) -> Res<()> {
        let mut first = true;
        while *self.x.current() != Token::BlockEnd {
            if !first {
                self.x.expect_op(",")?;
            }
            first = false;
            body.push(Stmt::Print(self.x.expression(true)?, line));
        }
        Ok(())
    }

    fn for_loop(&mut self, line: u32) -> Res<Stmt> {
        let target = self.x.target(&["in"], false)?;
        self.x.expect_name("in")?;
        let iter = self.x.tuple(false, &["recursive"])?;
        let test = match self.x.skip_name("if") {
            true => {
                Some(LoopTest { test: self.x.expression(true)?, target: target.clone(), enter: Vec::new(), cells: 0 })
            }
            false => None,
        };
        let recursive = self.x.skip_name("recursive");
        let body = self.block(&["endfor", "else"])?;
        let else_ = match self.x.advance() {
            Token::Name(name) if name == "else" => Some(self.scoped("endfor")?),
            _ => None,
        };
        // Jinja2 sees an empty `else` as none.
        let else_ = else_.filter(|e| !e.body.is_empty());
        let body = Scoped { body, ..Scoped::default() };
        let made = For { target, iter, test, recursive, body, else_, loop_cell: None, cells: 0, line };
        Ok(Stmt::For(Arc::new(made)))
    }

    fn condition(&mut self, line: u32) -> Res<If> {
        let mut first = self.branch(line)?;
        loop {
            let line = self.x.line();
            match self.x.advance() {
                Token::Name(name) if name == "elif" => {
                    let branch = self.branch(line)?;
                    first.elifs.push(branch);
                }
                Token::Name(name) if name == "else" => {
                    first.else_ = self.whole_block("endif")?;
                    return Ok(first);
                }
                _ => return Ok(first),
            }
        }
    }

    fn branch(&mut self, line: u32) -> Res<If> {
        let test = self.x.tuple(false, &[])?;
        let body = self.block(&["elif", "else", "endif"])?;
        Ok(If { test, body, elifs: Vec::new(), else_: Vec::new(), line })
    }

    fn set(&mut self, line: u32) -> Res<Stmt> {
        let target = self.x.target(&[], true)?;
        if self.x.skip_op("=") {
            return Ok(Stmt::Set(target, self.x.tuple(true, &[])?, line));
        }
        let filter = match self.x.is_op("|") {
            true => Some(self.x.filters(Expr::Buffer, false)?),
            false => None,
        };
        Ok(Stmt::SetBlock(target, filter, self.scoped("endset")?, line))
    }

    fn with(&mut self, line: u32) -> Res<Stmt> {
        let mut values = Vec::new();
        while *self.x.current() != Token::BlockEnd {
            if !values.is_empty() {
                self.x.expect_op(",")?;
            }
            let target = self.x.target(&[], false)?;
            self.x.expect_op("=")?;
            values.push((target, self.x.expression(true)?));
        }
        Ok(Stmt::With(values, self.scoped("endwith")?, line))
    }

    fn signature(&mut self) -> Res<(Vec<Name>, Vec<Expr>)> {
        self.x.expect_op("(")?;
        let (mut args, mut defaults): (Vec<Name>, Vec<Expr>) = (Vec::new(), Vec::new());
        while !self.x.is_op(")") {
            if !args.is_empty() {
                self.x.expect_op(",")?;
            }
            room_for_named(args.len())?;
            let name = self.x.target_name()?;
            if args.iter().any(|arg| arg.text == name.text) {
                return raise(format!("duplicate argument '{}' in function definition", name.text));
            }
            if self.x.skip_op("=") {
                defaults.push(self.x.expression(true)?);
            } else if !defaults.is_empty() {
                return raise("non-default argument follows default argument");
            }
            args.push(name);
        }
        self.x.expect_op(")")?;
        Ok((args, defaults))
    }

    fn macro_of(&mut self, name: Option<Arc<str>>, args: Vec<Name>, defaults: Vec<Expr>, end: &str) -> Res<Arc<Macro>> {
        let body = self.scoped(end)?;
        Ok(Arc::new(Macro { name, args, defaults, body, special: [None; 3], cells: 0 }))
    }

    fn call(&mut self, line: u32) -> Res<Stmt> {
        let (args, defaults) = if self.x.is_op("(") { self.signature()? } else { (vec![], vec![]) };
        let call = self.x.expression(true)?;
        let Expr::Call(_, given, _) = &call else { return raise("expected call") };
        if given.kw.iter().any(|(name, _)| &**name == "caller") {
            return raise("keyword argument repeated: caller");
        }
        Ok(Stmt::Call(self.macro_of(None, args, defaults, "endcall")?, Some(call), line))
    }

    /// Tags that load another template, which fail when they are reached: there is nothing to load from.
    fn load(&mut self, tag: &str, line: u32) -> Res<Stmt> {
        let what = self.x.expression(true)?;
        let mut names = Vec::new();
        let missing = tag == "include" && self.x.skip_name("ignore");
        if missing {
            self.x.expect_name("missing")?;
        }
        if tag == "import" {
            self.x.expect_name("as")?;
            names.push(self.x.target_name()?);
        }
        if tag == "from" {
            self.x.expect_name("import")?;
            while !(self.x.is_name("with") || self.x.is_name("without")) {
                let mut name = self.x.target_name()?;
                if name.text.starts_with('_') {
                    return raise("names starting with an underline can not be imported");
                }
                if self.x.skip_name("as") {
                    name = self.x.target_name()?;
                }
                names.push(name);
                if !self.x.skip_op(",") {
                    break;
                }
            }
        }
        if tag != "extends" && (self.x.is_name("with") || self.x.is_name("without")) {
            self.x.advance();
            self.x.expect_name("context")?;
        }
        let name = match tag {
            "extends" => "extends",
            "include" if missing => "include ... ignore missing",
            "include" => "include",
            _ => "import",
        };
        Ok(Stmt::Load(name, what, names, line))
    }
}
