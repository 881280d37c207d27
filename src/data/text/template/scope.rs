//! Gives every name of a template its cell, and refuses what Jinja2 or Python refuse to compile.

use super::ast::*;
use super::fault::{Fault, Res, raise};
use super::symbols::{Action, Cells, Ident, MAX_COPIES, Symbols};
use super::walk::{children_mut, stores_loop, undeclared};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// What Python takes of loops, each inside of the other, in one function.
const MAX_LOOPS: u32 = 20;

/// A whole template.
pub struct Template {
    /// The statements.
    pub root: Scoped,
    /// Cells of the outermost function.
    pub cells: usize,
}

/// Whether there is a filter (true) or a test (false) of a name.
pub type Known<'a> = &'a dyn Fn(bool, &str) -> bool;

/// Resolves the names of `body`.
pub fn resolve(mut body: Body, known: Known) -> Res<Template> {
    let cells: Cells = Rc::new(RefCell::new(vec![Default::default()]));
    let copies = Rc::new(Cell::new(0));
    let mut symbols = Symbols::root(cells.clone(), copies.clone());
    if !undeclared(&body, &["self"]).is_empty() {
        return Err(Fault::refused("the variable `self`"));
    }
    symbols.body(&body);
    let mut resolver = Resolver { cells, parents: vec![None], known };
    let frame = Frame { symbols: Rc::new(symbols), func: 0, soft: false, loops: 0 };
    let done = resolver.body(&mut body, &frame);
    if copies.get() > MAX_COPIES {
        return Err(Fault::limit("too many names and conditions"));
    }
    done?;
    let root = Scoped { enter: resolver.enter(&frame), body, leave: Vec::new() };
    Ok(Template { root, cells: resolver.count(0) })
}

struct Resolver<'a> {
    cells: Cells,
    /// The function in which each one stands.
    parents: Vec<Option<u16>>,
    known: Known<'a>,
}

#[derive(Clone)]
struct Frame {
    symbols: Rc<Symbols>,
    func: u16,
    /// Inside of a condition: a filter that is not there fails only when it is reached.
    soft: bool,
    /// Loops around, in this function.
    loops: u32,
}

impl Frame {
    fn soft(&self) -> Self {
        Self { soft: true, ..self.clone() }
    }
}

impl Resolver<'_> {
    fn count(&self, func: u16) -> usize {
        self.cells.borrow()[usize::from(func)].len()
    }

    fn function(&mut self, outer: u16) -> Res<u16> {
        self.parents.push(Some(outer));
        self.cells.borrow_mut().push(Default::default());
        u16::try_from(self.parents.len() - 1).map_err(|_| Fault::limit("the template has too many macros and loops"))
    }

    /// The cell as seen from function `func`.
    fn slot(&self, ident: Ident, func: u16) -> Slot {
        let mut up = 0;
        let mut here = func;
        while here != ident.func {
            let Some(outer) = self.parents[usize::from(here)] else { break };
            here = outer;
            up += 1;
        }
        Slot { up, at: ident.at }
    }

    fn enter(&self, frame: &Frame) -> Vec<Load> {
        let of = |(ident, action): (&Ident, &Action)| {
            let slot = self.slot(*ident, frame.func);
            match action {
                Action::Param => None,
                Action::Resolve(name) => Some(Load::Resolve(slot, name.clone())),
                Action::Alias(outer) => Some(Load::Alias(slot, self.slot(*outer, frame.func))),
                Action::Missing => Some(Load::Missing(slot)),
            }
        };
        frame.symbols.loads.iter().filter_map(of).collect()
    }

    fn leave(&self, frame: &Frame) -> Vec<Slot> {
        frame.symbols.loads.keys().map(|ident| self.slot(*ident, frame.func)).collect()
    }

    fn name(&self, name: &mut Name, frame: &Frame) -> Res<()> {
        let Some(ident) = frame.symbols.find(&name.text) else {
            return raise(format!("the name `{}` is unknown to its scope", name.text));
        };
        if ident.at == u16::MAX {
            return Err(Fault::limit("the template has too many names"));
        }
        name.slot = self.slot(ident, frame.func);
        name.param = frame.symbols.is_param(ident);
        Ok(())
    }

    fn target(&self, target: &mut Target, frame: &Frame) -> Res<()> {
        match target {
            Target::Name(name) | Target::Attr(name, _) => self.name(name, frame),
            Target::Tuple(targets) => targets.iter_mut().try_for_each(|t| self.target(t, frame)),
        }
    }

    fn body(&mut self, body: &mut Body, frame: &Frame) -> Res<()> {
        body.iter_mut().try_for_each(|stmt| self.stmt(stmt, frame))
    }

    /// A scope in `frame`'s function, whose names `read` finds.
    fn inner(&self, frame: &Frame, read: impl FnOnce(&mut Symbols)) -> Frame {
        let mut symbols = Symbols::inside(&frame.symbols, frame.func);
        read(&mut symbols);
        Frame { symbols: Rc::new(symbols), func: frame.func, soft: false, loops: frame.loops }
    }

    fn scoped(&mut self, scoped: &mut Scoped, inner: &Frame) -> Res<()> {
        self.body(&mut scoped.body, inner)?;
        scoped.enter = self.enter(inner);
        scoped.leave = self.leave(inner);
        Ok(())
    }

    fn stmt(&mut self, stmt: &mut Stmt, frame: &Frame) -> Res<()> {
        match stmt {
            Stmt::Data(_) => Ok(()),
            Stmt::Print(value, line) => self.expr(value, frame).map_err(|f| f.at(*line)),
            Stmt::For(f) => {
                let line = f.line;
                let Some(f) = Arc::get_mut(f) else { return raise("a loop is shared") };
                self.for_loop(f, frame).map_err(|f| f.at(line))
            }
            Stmt::If(branch) => self.branch(branch, &frame.soft()),
            Stmt::Set(target, value, line) => {
                self.expr(value, frame).map_err(|f| f.at(*line))?;
                self.target(target, frame)
            }
            Stmt::SetBlock(target, filter, scoped, line) => {
                let inner = self.inner(frame, |s| s.body(&scoped.body));
                self.scoped(scoped, &inner)?;
                filter.iter_mut().try_for_each(|e| self.expr(e, &inner)).map_err(|f| f.at(*line))?;
                self.target(target, frame)
            }
            Stmt::With(values, scoped, line) => {
                let inner = self.inner(frame, |s| {
                    values.iter().for_each(|(target, _)| s.params(target));
                    s.body(&scoped.body);
                });
                for (target, value) in values.iter_mut() {
                    self.expr(value, frame).map_err(|f| f.at(*line))?;
                    self.target(target, &inner)?;
                }
                self.scoped(scoped, &inner)
            }
            Stmt::Macro(name, made, line) => {
                self.macro_of(made, frame).map_err(|f| f.at(*line))?;
                self.name(name, frame)
            }
            Stmt::Call(made, call, line) => {
                self.macro_of(made, frame).map_err(|f| f.at(*line))?;
                call.iter_mut().try_for_each(|c| self.expr(c, frame)).map_err(|f| f.at(*line))
            }
            Stmt::Filter(filter, scoped, line) => {
                let inner = self.inner(frame, |s| {
                    s.body(&scoped.body);
                    s.expr(filter);
                });
                self.scoped(scoped, &inner)?;
                self.expr(filter, &inner).map_err(|f| f.at(*line))
            }
            Stmt::Break | Stmt::Continue if frame.loops == 0 => raise("'break' or 'continue' outside of a loop"),
            Stmt::Break | Stmt::Continue => Ok(()),
            Stmt::Load(_, what, names, line) => {
                self.expr(what, frame).map_err(|f| f.at(*line))?;
                names.iter_mut().try_for_each(|name| self.name(name, frame))
            }
        }
    }

    fn branch(&mut self, branch: &mut If, frame: &Frame) -> Res<()> {
        self.expr(&mut branch.test, frame).map_err(|f| f.at(branch.line))?;
        self.body(&mut branch.body, frame)?;
        for other in &mut branch.elifs {
            self.branch(other, frame)?;
        }
        self.body(&mut branch.else_, frame)
    }

    fn for_loop(&mut self, f: &mut For, frame: &Frame) -> Res<()> {
        let func = if f.recursive { self.function(frame.func)? } else { frame.func };
        let mut symbols = Symbols::inside(&frame.symbols, func);
        let extended = f.recursive || !undeclared(&f.body.body, &["loop"]).is_empty();
        let loop_ident = extended.then(|| symbols.declare(&"loop".into()));
        symbols.params(&f.target);
        symbols.body(&f.body.body);
        let loops = 1 + if f.recursive { 0 } else { frame.loops };
        if loops > MAX_LOOPS {
            return raise("too many statically nested blocks");
        }
        let inner = Frame { symbols: Rc::new(symbols), func, soft: false, loops };
        if let Some(test) = &mut f.test {
            self.loop_test(test, frame)?;
        }
        if stores_loop(f) {
            return raise("Can't assign to special loop variable in for-loop target");
        }
        self.target(&mut f.target, &inner)?;
        self.expr(&mut f.iter, frame)?;
        self.scoped(&mut f.body, &inner)?;
        f.loop_cell = loop_ident.map(|ident| self.slot(ident, func));
        if let Some(other) = &mut f.else_ {
            let mut symbols = Symbols::inside(&frame.symbols, func);
            symbols.body(&other.body);
            let loops = if f.recursive { 0 } else { frame.loops };
            let inner = Frame { symbols: Rc::new(symbols), func, soft: false, loops };
            self.scoped(other, &inner)?;
        }
        f.cells = if f.recursive { self.count(func) } else { 0 };
        Ok(())
    }

    fn loop_test(&mut self, test: &mut LoopTest, frame: &Frame) -> Res<()> {
        let func = self.function(frame.func)?;
        let mut symbols = Symbols::inside(&frame.symbols, func);
        symbols.params(&test.target);
        symbols.expr(&test.test);
        let inner = Frame { symbols: Rc::new(symbols), func, soft: false, loops: 0 };
        self.target(&mut test.target, &inner)?;
        self.expr(&mut test.test, &inner)?;
        test.enter = self.enter(&inner);
        test.cells = self.count(func);
        Ok(())
    }

    fn macro_of(&mut self, made: &mut Arc<Macro>, frame: &Frame) -> Res<()> {
        let Some(made) = Arc::get_mut(made) else { return raise("a macro is shared") };
        let func = self.function(frame.func)?;
        let mut symbols = Symbols::inside(&frame.symbols, func);
        for arg in &made.args {
            symbols.declare(&arg.text);
        }
        made.defaults.iter().for_each(|e| symbols.expr(e));
        symbols.body(&made.body.body);
        let special = undeclared(&made.body.body, &["caller", "kwargs", "varargs"]);
        let explicit = made.args.iter().position(|arg| &*arg.text == "caller");
        let mut idents = [None; 3];
        for (name, ident) in ["caller", "kwargs", "varargs"].into_iter().zip(&mut idents) {
            let argument = made.args.iter().any(|arg| &*arg.text == name);
            if special.contains(&name) && !argument {
                *ident = Some(symbols.declare(&name.into()));
            }
        }
        if let Some(at) = explicit.filter(|_| special.contains(&"caller"))
            && made.args.len() - at > made.defaults.len()
        {
            return raise("the special \"caller\" argument must be omitted or be given a default");
        }
        let inner = Frame { symbols: Rc::new(symbols), func, soft: false, loops: 0 };
        made.special = idents.map(|ident| ident.map(|ident| self.slot(ident, func)));
        made.args.iter_mut().try_for_each(|arg| self.name(arg, &inner))?;
        made.defaults.iter_mut().try_for_each(|e| self.expr(e, &inner))?;
        self.scoped(&mut made.body, &inner)?;
        made.cells = self.count(func);
        Ok(())
    }

    fn expr(&self, expr: &mut Expr, frame: &Frame) -> Res<()> {
        match expr {
            Expr::Name(name, line) => return self.name(name, frame).map_err(|f| f.at(*line)),
            Expr::Filter(name, _, line) | Expr::Test(name, _, line) => {
                // As `expr` still tells which of the two it is.
                let (name, line) = (name.clone(), *line);
                let filter = matches!(expr, Expr::Filter(..));
                if !frame.soft && !(self.known)(filter, &name) {
                    let what = if filter { "filter" } else { "test" };
                    return Err(Fault::raised(format!("No {what} named '{name}'")).at(line));
                }
            }
            _ => {}
        }
        let soft;
        let frame = match expr {
            Expr::Cond(..) => {
                soft = frame.soft();
                &soft
            }
            _ => frame,
        };
        let mut done = Ok(());
        children_mut(expr, &mut |child| {
            if done.is_ok() {
                done = self.expr(child, frame);
            }
        });
        done
    }
}
