//! A template as a tree; names are resolved to cells by `scope`.

use super::number::Op;
use num_bigint::BigInt;
use std::sync::Arc;

/// Statements in order.
pub type Body = Vec<Stmt>;

/// A statement.
pub enum Stmt {
    /// Text outside of tags.
    Data(Arc<str>),
    /// `{{ ... }}`
    Print(Expr, u32),
    /// `{% for %}`
    For(Arc<For>),
    /// `{% if %}`
    If(Box<If>),
    /// `{% set target = value %}`
    Set(Target, Expr, u32),
    /// `{% set target %}...{% endset %}`, with a filter whose innermost input is [`Expr::Buffer`].
    SetBlock(Target, Option<Expr>, Scoped, u32),
    /// `{% with %}`
    With(Vec<(Target, Expr)>, Scoped, u32),
    /// `{% macro %}`
    Macro(Name, Arc<Macro>, u32),
    /// `{% call %}` and, without a call, `{% generation %}`: what is called gets the macro as `caller`.
    Call(Arc<Macro>, Option<Expr>, u32),
    /// `{% filter %}`
    Filter(Expr, Scoped, u32),
    /// `{% break %}`
    Break,
    /// `{% continue %}`
    Continue,
    /// `{% extends %}`, `{% include %}`, `{% import %}`: there is nothing to load from.
    Load(&'static str, Expr, Vec<Name>, u32),
}

/// Statements in a scope of their own.
#[derive(Default)]
pub struct Scoped {
    /// What happens on the way in.
    pub enter: Vec<Load>,
    /// The statements.
    pub body: Body,
    /// Cells that lose their value on the way out.
    pub leave: Vec<Slot>,
}

/// A `for` loop.
pub struct For {
    /// What each member goes to.
    pub target: Target,
    /// Over what.
    pub iter: Expr,
    /// `if` behind it.
    pub test: Option<LoopTest>,
    /// Whether `loop(...)` runs it again.
    pub recursive: bool,
    /// The body.
    pub body: Scoped,
    /// `{% else %}`
    pub else_: Option<Scoped>,
    /// The cell of `loop`, where it is used.
    pub loop_cell: Option<Slot>,
    /// Cells of the loop's own function, where it is recursive.
    pub cells: usize,
    /// Line.
    pub line: u32,
}

/// The condition of a loop: a function of its own in Jinja2.
pub struct LoopTest {
    /// The condition.
    pub test: Expr,
    /// What each member goes to, in the function.
    pub target: Target,
    /// What happens first.
    pub enter: Vec<Load>,
    /// Cells of the function.
    pub cells: usize,
}

/// An `if`, with its `elif`s.
pub struct If {
    /// The condition.
    pub test: Expr,
    /// Where it holds.
    pub body: Body,
    /// The others, in order.
    pub elifs: Vec<If>,
    /// Where none holds.
    pub else_: Body,
    /// Line.
    pub line: u32,
}

/// A macro, or the body of a `call`.
pub struct Macro {
    /// Its name; a `call` has none.
    pub name: Option<Arc<str>>,
    /// Parameters.
    pub args: Vec<Name>,
    /// Values of the last parameters.
    pub defaults: Vec<Expr>,
    /// The statements.
    pub body: Scoped,
    /// Cells of `caller`, `kwargs` and `varargs`, where the body reads them.
    pub special: [Option<Slot>; 3],
    /// Cells of its function.
    pub cells: usize,
}

/// Where a value goes.
#[derive(Clone)]
pub enum Target {
    /// A name.
    Name(Name),
    /// An attribute of a namespace.
    Attr(Name, Arc<str>),
    /// Each member to one.
    Tuple(Vec<Target>),
}

/// A name, and its cell once resolved.
#[derive(Clone)]
pub struct Name {
    /// As written.
    pub text: Arc<str>,
    /// Its cell.
    pub slot: Slot,
    /// Whether it is a parameter, which has a value while its frame lasts.
    pub param: bool,
}

/// A cell: so many functions outward, and its place there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Functions outward.
    pub up: u16,
    /// Its place.
    pub at: u16,
}

/// What a cell gets on the way into a scope.
pub enum Load {
    /// The variable or global of this name.
    Resolve(Slot, Arc<str>),
    /// What the outer cell holds.
    Alias(Slot, Slot),
    /// Nothing.
    Missing(Slot),
}

/// An expression.
pub enum Expr {
    /// A literal.
    Lit(Lit),
    /// A name.
    Name(Name, u32),
    /// `[...]`
    List(Vec<Expr>),
    /// `(...)`
    Tuple(Vec<Expr>),
    /// `{...}`
    Dict(Vec<(Expr, Expr)>),
    /// `a + b` and the like
    Binary(Op, Box<Expr>, Box<Expr>, u32),
    /// `-a` (true), `+a`
    Sign(bool, Box<Expr>, u32),
    /// `a and b` (true), `a or b`
    Logic(bool, Box<Expr>, Box<Expr>),
    /// `not a`
    Not(Box<Expr>),
    /// `a < b <= c`
    Compare(Box<Expr>, Vec<(Cmp, Expr)>, u32),
    /// `a ~ b ~ c`
    Concat(Vec<Expr>, u32),
    /// `a.name`
    Attr(Box<Expr>, Arc<str>, u32),
    /// `a[b]`
    Item(Box<Expr>, Box<Expr>, u32),
    /// `a[b:c:d]`
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>, u32),
    /// `a|name(...)`; the input is the first argument.
    Filter(Arc<str>, Box<CallArgs>, u32),
    /// `a is name(...)`; the input is the first argument.
    Test(Arc<str>, Box<CallArgs>, u32),
    /// `a(...)`
    Call(Box<Expr>, Box<CallArgs>, u32),
    /// `a if test else b`
    Cond(Box<[Expr; 2]>, Option<Box<Expr>>, u32),
    /// The text of the block that a filter stands on.
    Buffer,
}

/// Arguments as written.
#[derive(Default)]
pub struct CallArgs {
    /// By place.
    pub pos: Vec<Expr>,
    /// By name.
    pub kw: Vec<(Arc<str>, Expr)>,
    /// `*args`
    pub dyn_pos: Option<Expr>,
    /// `**kwargs`
    pub dyn_kw: Option<Expr>,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// A literal.
pub enum Lit {
    /// `none`
    None,
    /// `true`, `false`
    Bool(bool),
    /// An integer.
    Int(BigInt),
    /// A float.
    Float(f64),
    /// A string.
    Str(Arc<str>),
}
