//! Why a template gives no text, and how much work and memory one rendering may take.

use std::cell::Cell;
use std::fmt;

/// Why a template gave no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// One line.
    pub what: String,
    /// Line of the template, 0 where it is not known.
    pub line: u32,
    /// Which kind.
    pub kind: Kind,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The template is wrong, or raises: it fails in `transformers` too.
    Raised,
    /// `transformers` may render it; here it is refused by name.
    Refused,
    /// More work, memory or depth than a rendering may take.
    Limit,
}

/// A result inside the template language.
pub type Res<T> = Result<T, Fault>;

impl Fault {
    /// What Python or Jinja2 would raise.
    pub fn raised(what: impl Into<String>) -> Self {
        Self { what: what.into(), line: 0, kind: Kind::Raised }
    }

    /// What Python renders and this program does not; `what` names the construct.
    pub fn refused(what: impl fmt::Display) -> Self {
        Self { what: format!("{what} is not supported in chat templates here"), line: 0, kind: Kind::Refused }
    }

    /// A bound was met.
    pub fn limit(what: impl Into<String>) -> Self {
        Self { what: what.into(), line: 0, kind: Kind::Limit }
    }

    /// With the line, where none is known yet.
    pub fn at(mut self, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.what.split_whitespace().collect::<Vec<_>>().join(" ");
        match self.line {
            0 => f.write_str(&what),
            line => write!(f, "{what} (line {line})"),
        }
    }
}

/// Shorthand for a fault that Python raises.
pub fn raise<T>(what: impl Into<String>) -> Res<T> {
    Err(Fault::raised(what))
}

/// Steps of one rendering: a second or two.
pub const MAX_STEPS: u64 = 20_000_000;
/// Bytes of text and lists that one rendering may make, all together.
pub const MAX_BYTES: u64 = 1 << 30;
/// Bytes of one text.
pub const MAX_TEXT: usize = 64 << 20;
/// Members of one list.
pub const MAX_ITEMS: usize = 1 << 20;
/// Members of one value, counted in each place where they stand; 64 bytes of text are as one.
pub const MAX_TREE: u64 = 8 << 20;
/// How deep values may nest.
pub const MAX_NEST: u32 = 400;
/// How deep expressions, statements and calls may nest while running.
pub const MAX_DEPTH: u32 = 1000;

/// What one rendering has left.
pub struct Budget {
    steps: Cell<u64>,
    bytes: Cell<u64>,
    depth: Cell<u32>,
}

impl Budget {
    /// A full budget.
    pub fn full() -> Self {
        Self { steps: Cell::new(MAX_STEPS), bytes: Cell::new(MAX_BYTES), depth: Cell::new(0) }
    }

    /// Takes `n` steps.
    pub fn steps(&self, n: u64) -> Res<()> {
        let left = self.steps.get();
        if n > left {
            return Err(Fault::limit(format!("the template does not end within {MAX_STEPS} steps")));
        }
        self.steps.set(left - n);
        Ok(())
    }

    /// Takes `n` bytes of new text; before the text is made.
    pub fn text(&self, n: usize) -> Res<()> {
        if n > MAX_TEXT {
            return Err(Fault::limit(format!("the template makes a text of over {} MiB", MAX_TEXT >> 20)));
        }
        self.bytes(n)
    }

    /// Takes `more` bytes behind a text of `len`; before they are made.
    pub fn grow(&self, len: usize, more: usize) -> Res<()> {
        if len.saturating_add(more) > MAX_TEXT {
            return self.text(usize::MAX);
        }
        self.bytes(more)
    }

    /// Takes room for a list of `n` members; before the list is made.
    pub fn items(&self, n: usize) -> Res<()> {
        if n > MAX_ITEMS {
            return Err(Fault::limit(format!("the template makes a list of over {MAX_ITEMS} members")));
        }
        self.bytes(n.saturating_mul(32))
    }

    fn bytes(&self, n: usize) -> Res<()> {
        let left = self.bytes.get();
        if n as u64 > left {
            return Err(Fault::limit(format!("the template makes more than {} MiB of values", MAX_BYTES >> 20)));
        }
        self.bytes.set(left - n as u64);
        self.steps(n as u64 / 256)
    }

    /// One level deeper; [`Budget::leave`] undoes it.
    pub fn enter(&self) -> Res<()> {
        if self.depth.get() >= MAX_DEPTH {
            return Err(Fault::limit("maximum recursion depth exceeded"));
        }
        self.depth.set(self.depth.get() + 1);
        Ok(())
    }

    /// One level up.
    pub fn leave(&self) {
        self.depth.set(self.depth.get() - 1);
    }
}

/// Keyword arguments of a call, and parameters of a macro: each is compared with all the others.
const MOST_NAMED: usize = 1000;

/// Refuses one more than [`MOST_NAMED`].
pub(super) fn room_for_named(have: usize) -> Res<()> {
    match have < MOST_NAMED {
        true => Ok(()),
        false => Err(Fault::limit(format!("more than {MOST_NAMED} named arguments"))),
    }
}
