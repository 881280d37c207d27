//! Which cell a name is, and what the cell gets on the way into a scope: Jinja2's tracking of names.

use super::ast::*;
use super::walk::children;
use indexmap::{IndexMap, IndexSet};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// A cell: its function, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ident {
    /// The function.
    pub func: u16,
    /// The place.
    pub at: u16,
}

/// Cells of every function, by level of the scope and name: scopes side by side share theirs, as in Python.
pub type Cells = Rc<RefCell<Vec<IndexMap<(u16, Arc<str>), ()>>>>;

/// Names copied for the branches of `if`s, at most.
pub const MAX_COPIES: u64 = 20_000_000;

/// What a cell gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// It is a parameter.
    Param,
    /// The variable of this name.
    Resolve(Arc<str>),
    /// What the outer cell holds.
    Alias(Ident),
    /// Nothing.
    Missing,
}

/// The names of one scope.
#[derive(Clone)]
pub struct Symbols {
    level: u16,
    func: u16,
    cells: Cells,
    /// Names copied so far, in the whole template; past [`MAX_COPIES`] nothing more is read.
    copies: Rc<Cell<u64>>,
    parent: Option<Rc<Symbols>>,
    refs: IndexMap<Arc<str>, Ident>,
    stores: IndexSet<Arc<str>>,
    /// What each cell gets, in order.
    pub loads: IndexMap<Ident, Action>,
}

impl Symbols {
    /// The outermost scope.
    pub fn root(cells: Cells, copies: Rc<Cell<u64>>) -> Self {
        Self {
            copies,
            level: 0,
            func: 0,
            cells,
            parent: None,
            refs: IndexMap::new(),
            stores: IndexSet::new(),
            loads: IndexMap::new(),
        }
    }

    /// A scope inside of `parent`, in function `func`.
    pub fn inside(parent: &Rc<Symbols>, func: u16) -> Self {
        let mut this = Self::root(parent.cells.clone(), parent.copies.clone());
        this.level = parent.level + 1;
        this.func = func;
        this.parent = Some(parent.clone());
        this
    }

    fn define(&mut self, name: &Arc<str>, action: Action) -> Ident {
        let mut cells = self.cells.borrow_mut();
        let at = cells[usize::from(self.func)].insert_full((self.level, name.clone()), ()).0;
        let ident = Ident { func: self.func, at: u16::try_from(at).unwrap_or(u16::MAX) };
        self.refs.insert(name.clone(), ident);
        self.loads.insert(ident, action);
        ident
    }

    /// The cell of `name`, where it is known.
    pub fn find(&self, name: &str) -> Option<Ident> {
        self.refs.get(name).copied().or_else(|| self.parent.as_ref()?.find(name))
    }

    /// Whether the cell holds a parameter.
    pub fn is_param(&self, ident: Ident) -> bool {
        match self.loads.get(&ident) {
            Some(action) => *action == Action::Param,
            None => self.parent.as_ref().is_some_and(|p| p.is_param(ident)),
        }
    }

    /// `name` is given a value here.
    pub fn store(&mut self, name: &Arc<str>) {
        self.stores.insert(name.clone());
        if self.refs.contains_key(name) {
            return;
        }
        let outer = self.parent.as_ref().and_then(|p| p.find(name));
        self.define(name, outer.map_or(Action::Missing, Action::Alias));
    }

    /// `name` is a parameter here.
    pub fn declare(&mut self, name: &Arc<str>) -> Ident {
        self.stores.insert(name.clone());
        self.define(name, Action::Param)
    }

    /// `name` is read here.
    pub fn load(&mut self, name: &Arc<str>) {
        if self.find(name).is_none() {
            self.define(name, Action::Resolve(name.clone()));
        }
    }

    /// Takes over what the branches of an `if` do.
    fn branches(&mut self, branches: [Symbols; 3]) {
        let stores: Vec<Arc<str>> =
            branches.iter().flat_map(|b| b.stores.iter().cloned()).filter(|name| !self.stores.contains(name)).collect();
        for branch in branches {
            self.refs.extend(branch.refs);
            self.loads.extend(branch.loads);
            self.stores.extend(branch.stores);
        }
        for name in stores {
            let Some(target) = self.find(&name) else { continue };
            let outer = self.parent.as_ref().and_then(|p| p.find(&name));
            self.loads.insert(target, outer.map_or(Action::Resolve(name), Action::Alias));
        }
    }

    /// Reads `body` as statements of this scope, not of those inside.
    pub fn body(&mut self, body: &[Stmt]) {
        body.iter().for_each(|stmt| self.stmt(stmt));
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Data(_) | Stmt::Break | Stmt::Continue => {}
            Stmt::Print(value, _) => self.expr(value),
            Stmt::For(f) => self.expr(&f.iter),
            Stmt::If(branch) => self.branch(branch),
            Stmt::Set(target, value, _) => {
                self.expr(value);
                self.target(target);
            }
            Stmt::SetBlock(target, ..) => self.target(target),
            Stmt::With(values, ..) => values.iter().for_each(|(_, value)| self.expr(value)),
            Stmt::Macro(name, ..) => self.store(&name.text),
            Stmt::Call(_, call, _) => call.iter().for_each(|c| self.expr(c)),
            Stmt::Filter(filter, ..) => self.expr(filter),
            Stmt::Load(_, what, names, _) => {
                self.expr(what);
                names.iter().for_each(|name| self.store(&name.text));
            }
        }
    }

    fn branch(&mut self, branch: &If) {
        self.expr(&branch.test);
        self.copies.set(self.copies.get() + 3 * self.loads.len() as u64);
        if self.copies.get() > MAX_COPIES {
            return;
        }
        let side = |read: &dyn Fn(&mut Symbols)| {
            let mut copy = self.clone();
            read(&mut copy);
            copy
        };
        let body = side(&|s| s.body(&branch.body));
        let elifs = side(&|s| branch.elifs.iter().for_each(|b| s.branch(b)));
        let else_ = side(&|s| s.body(&branch.else_));
        self.branches([body, elifs, else_]);
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => self.store(&name.text),
            Target::Attr(name, _) => self.load(&name.text),
            Target::Tuple(targets) => targets.iter().for_each(|t| self.target(t)),
        }
    }

    /// The names of `target` are parameters here.
    pub fn params(&mut self, target: &Target) {
        match target {
            Target::Name(name) => {
                self.declare(&name.text);
            }
            Target::Attr(name, _) => self.load(&name.text),
            Target::Tuple(targets) => targets.iter().for_each(|t| self.params(t)),
        }
    }

    /// Reads an expression of this scope.
    pub fn expr(&mut self, expr: &Expr) {
        if let Expr::Name(name, _) = expr {
            return self.load(&name.text);
        }
        children(expr, &mut |child| self.expr(child));
    }
}
