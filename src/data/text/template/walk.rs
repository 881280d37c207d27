//! Which special names a part of a template reads before it gives them a value of its own: Jinja2 makes `loop`, `caller`,
//! `varargs` and `kwargs` for those that do. It looks through scopes, in the order of its own nodes.

use super::ast::*;

/// Of `names`, those that `body` reads.
pub fn undeclared(body: &[Stmt], names: &[&'static str]) -> Vec<&'static str> {
    let mut walk = Walk { names: names.to_vec(), found: Vec::new(), stored: None };
    body.iter().for_each(|stmt| walk.stmt(stmt));
    walk.found
}

/// Whether a loop gives a value to the name `loop`, in its target or below.
pub fn stores_loop(for_: &For) -> bool {
    let mut walk = Walk { names: Vec::new(), found: Vec::new(), stored: Some(false) };
    walk.for_loop(for_);
    walk.stored == Some(true)
}

struct Walk {
    names: Vec<&'static str>,
    found: Vec<&'static str>,
    /// Whether `loop` was stored, where that is asked.
    stored: Option<bool>,
}

impl Walk {
    fn read(&mut self, name: &str) {
        if let Some(at) = self.names.iter().position(|n| *n == name)
            && !self.found.contains(&self.names[at])
        {
            self.found.push(self.names[at]);
        }
    }

    fn given(&mut self, name: &str, stored: bool) {
        self.names.retain(|n| *n != name || self.found.contains(n));
        if stored && name == "loop" && self.stored.is_some() {
            self.stored = Some(true);
        }
    }

    fn target(&mut self, target: &Target, stored: bool) {
        match target {
            Target::Name(name) => self.given(&name.text, stored),
            Target::Attr(..) => {}
            Target::Tuple(targets) => targets.iter().for_each(|t| self.target(t, stored)),
        }
    }

    fn body(&mut self, body: &[Stmt]) {
        body.iter().for_each(|stmt| self.stmt(stmt));
    }

    fn for_loop(&mut self, f: &For) {
        self.target(&f.target, true);
        self.expr(&f.iter);
        self.body(&f.body.body);
        f.else_.iter().for_each(|e| self.body(&e.body));
        f.test.iter().for_each(|t| self.expr(&t.test));
    }

    fn branch(&mut self, branch: &If) {
        self.expr(&branch.test);
        self.body(&branch.body);
        branch.elifs.iter().for_each(|b| self.branch(b));
        self.body(&branch.else_);
    }

    fn macro_of(&mut self, made: &Macro) {
        made.args.iter().for_each(|arg| self.given(&arg.text, false));
        made.defaults.iter().for_each(|e| self.expr(e));
        self.body(&made.body.body);
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Data(_) | Stmt::Break | Stmt::Continue => {}
            Stmt::Print(value, _) | Stmt::Load(_, value, ..) => self.expr(value),
            Stmt::For(f) => self.for_loop(f),
            Stmt::If(branch) => self.branch(branch),
            Stmt::Set(target, value, _) => {
                self.target(target, true);
                self.expr(value);
            }
            Stmt::SetBlock(target, filter, scoped, _) => {
                self.target(target, true);
                filter.iter().for_each(|f| self.expr(f));
                self.body(&scoped.body);
            }
            Stmt::With(values, scoped, _) => {
                values.iter().for_each(|(target, _)| self.target(target, false));
                values.iter().for_each(|(_, value)| self.expr(value));
                self.body(&scoped.body);
            }
            Stmt::Macro(_, made, _) => self.macro_of(made),
            Stmt::Call(made, call, _) => {
                call.iter().for_each(|c| self.expr(c));
                self.macro_of(made);
            }
            Stmt::Filter(filter, scoped, _) => {
                self.body(&scoped.body);
                self.expr(filter);
            }
        }
    }

    fn expr(&mut self, expr: &Expr) {
        if let Expr::Name(name, _) = expr {
            return self.read(&name.text);
        }
        children(expr, &mut |child| self.expr(child));
    }
}

/// Calls `each` with every direct part of an expression, in the order of Jinja2's nodes: to read, or to change it.
macro_rules! children {
    ($(#[$doc:meta])* $name:ident, $each_item:ident, $($mutable:tt)?) => {
        $(#[$doc])*
        pub fn $name(expr: &$($mutable)? Expr, each: &mut dyn FnMut(&$($mutable)? Expr)) {
            match expr {
                Expr::Lit(_) | Expr::Name(..) | Expr::Buffer => {}
                Expr::List(items) | Expr::Tuple(items) | Expr::Concat(items, _) => items.$each_item().for_each(each),
                Expr::Dict(items) => items.$each_item().for_each(|(k, v)| {
                    each(k);
                    each(v);
                }),
                Expr::Binary(_, a, b, _) | Expr::Logic(_, a, b) | Expr::Item(a, b, _) => {
                    each(a);
                    each(b);
                }
                Expr::Sign(_, a, _) | Expr::Not(a) | Expr::Attr(a, ..) => each(a),
                Expr::Compare(first, rest, _) => {
                    each(first);
                    rest.$each_item().for_each(|(_, e)| each(e));
                }
                Expr::Slice(a, parts, _) => {
                    each(a);
                    parts.$each_item().flatten().for_each(each);
                }
                Expr::Filter(_, args, _) | Expr::Test(_, args, _) => children!(@args args, each, $each_item),
                Expr::Call(callee, args, _) => {
                    each(callee);
                    children!(@args args, each, $each_item);
                }
                Expr::Cond(both, other, _) => {
                    both.$each_item().for_each(&mut *each);
                    other.$each_item().for_each(|e| each(e));
                }
            }
        }
    };
    (@args $args:ident, $each:ident, $each_item:ident) => {{
        $args.pos.$each_item().for_each(&mut *$each);
        $args.kw.$each_item().for_each(|(_, e)| $each(e));
        $args.dyn_pos.$each_item().for_each(&mut *$each);
        $args.dyn_kw.$each_item().for_each($each);
    }};
}

children! {
    /// Calls `each` with every direct part of `expr`, in the order of Jinja2's nodes.
    children, iter,
}

children! {
    /// [`children()`], to change them.
    children_mut, iter_mut, mut
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
