//! The variable `loop`.

use super::ast::For;
use super::fault::{Res, raise};
use super::iter::{Iter, len};
use super::run::{Env, Run};
use super::value::{Args, Machine, Object, Value, equal};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// Runs a recursive loop over a value at a depth.
pub type Again = fn(&Run, &Rc<Env>, &Arc<For>, Value, i64) -> Res<String>;

/// What a recursive loop needs to run once more.
pub struct Recursion {
    /// How.
    pub again: Again,
    /// The cells around it.
    pub env: Rc<Env>,
    /// The loop.
    pub node: Arc<For>,
}

/// Jinja2's `LoopContext`.
#[derive(Clone)]
pub struct Loop(Rc<State>);

struct State {
    source: Value,
    iter: RefCell<Iter>,
    index0: Cell<i64>,
    length: Cell<Option<i64>>,
    after: RefCell<Option<Value>>,
    current: RefCell<Option<Value>>,
    before: RefCell<Option<Value>>,
    changed: RefCell<Option<Value>>,
    recursion: Option<Recursion>,
    depth0: i64,
}

impl Loop {
    /// A loop over `source`.
    pub fn new(source: Value, recursion: Option<Recursion>, depth0: i64) -> Res<Self> {
        let iter = RefCell::new(Iter::new(&source)?);
        Ok(Self(Rc::new(State {
            source,
            iter,
            index0: Cell::new(-1),
            length: Cell::new(None),
            after: RefCell::default(),
            current: RefCell::default(),
            before: RefCell::default(),
            changed: RefCell::default(),
            recursion,
            depth0,
        })))
    }
}

impl Loop {
    /// Goes on; the next member, where there is one.
    pub fn advance(&self, m: &dyn Machine) -> Res<Option<Value>> {
        self.0.advance(m)
    }
}

impl State {
    fn pull(&self, m: &dyn Machine) -> Res<Option<Value>> {
        // Taken while it runs: a condition of the loop may ask the loop.
        let mut iter = self.iter.replace(Iter::Made(Vec::new().into_iter()));
        let next = iter.next(m);
        self.iter.replace(iter);
        next
    }

    fn advance(&self, m: &dyn Machine) -> Res<Option<Value>> {
        let after = self.after.take();
        let next = match after {
            Some(after) => Some(after),
            None => self.pull(m)?,
        };
        if let Some(next) = &next {
            self.index0.set(self.index0.get() + 1);
            self.before.replace(self.current.replace(Some(next.clone())));
        }
        Ok(next)
    }

    fn peek(&self, m: &dyn Machine) -> Res<Option<Value>> {
        if self.after.borrow().is_none() {
            let next = self.pull(m)?;
            self.after.replace(next);
        }
        Ok(self.after.borrow().clone())
    }

    fn length(&self, m: &dyn Machine) -> Res<i64> {
        if let Some(n) = self.length.get() {
            return Ok(n);
        }
        let n = match len(m, &self.source)? {
            Some(n) => n as i64,
            None => {
                let mut rest = Vec::new();
                while let Some(item) = self.pull(m)? {
                    m.budget().items(1)?;
                    rest.push(item);
                }
                let n = rest.len() as i64 + self.index0.get() + 1 + i64::from(self.after.borrow().is_some());
                self.iter.replace(Iter::Made(rest.into_iter()));
                n
            }
        };
        self.length.set(Some(n));
        Ok(n)
    }
}

impl Object for Loop {
    fn type_name(&self) -> &'static str {
        "LoopContext"
    }

    fn attr(&self, m: &dyn Machine, name: &str) -> Res<Option<Value>> {
        let at = self.0.index0.get();
        Ok(Some(match name {
            "index0" => Value::Int(at),
            "index" => Value::Int(at + 1),
            "first" => Value::Bool(at == 0),
            "last" => Value::Bool(self.0.peek(m)?.is_none()),
            "length" => Value::Int(self.0.length(m)?),
            "revindex" => Value::Int(self.0.length(m)? - at),
            "revindex0" => Value::Int(self.0.length(m)? - at - 1),
            "depth0" => Value::Int(self.0.depth0),
            "depth" => Value::Int(self.0.depth0 + 1),
            "previtem" if at == 0 => Value::undefined("there is no previous item"),
            "previtem" => self.0.before.borrow().clone().unwrap_or(Value::Missing),
            "nextitem" => self.0.peek(m)?.unwrap_or_else(|| Value::undefined("there is no next item")),
            "cycle" | "changed" => Value::object(LoopMethod { of: self.clone(), changed: name == "changed" })?,
            _ => return Ok(None),
        }))
    }

    fn len(&self, m: &dyn Machine) -> Res<Option<usize>> {
        Ok(Some(self.0.length(m)?.max(0) as usize))
    }

    fn callable(&self) -> bool {
        true
    }

    fn call(&self, m: &dyn Machine, args: Args) -> Res<Value> {
        let [over] = args.bind("loop", ["iterable"], 1)?;
        let (Some(recursion), Some(run)) = (&self.0.recursion, m.as_any().downcast_ref::<Run>()) else {
            return raise("TypeError: The loop must have the 'recursive' marker to be called recursively.");
        };
        let Recursion { again, env, node } = recursion;
        again(run, env, node, over.unwrap_or(Value::None), self.0.depth0 + 1).map(Value::str)
    }

    fn repr(&self, m: &dyn Machine) -> Res<String> {
        Ok(format!("<LoopContext {}/{}>", self.0.index0.get() + 1, self.0.length(m)?))
    }

    fn depth(&self) -> u32 {
        self.0.source.depth() + 1
    }
}

/// `loop.cycle` and `loop.changed`
struct LoopMethod {
    of: Loop,
    changed: bool,
}

impl Object for LoopMethod {
    fn type_name(&self) -> &'static str {
        "method"
    }

    fn callable(&self) -> bool {
        true
    }

    fn call(&self, _: &dyn Machine, args: Args) -> Res<Value> {
        if let Some((name, _)) = args.kw.first() {
            return raise(format!("TypeError: got an unexpected keyword argument '{name}'"));
        }
        let of = &self.of.0;
        if !self.changed {
            if args.pos.is_empty() {
                return raise("TypeError: no items for cycling given");
            }
            let at = of.index0.get().rem_euclid(args.pos.len() as i64);
            return Ok(args.pos[at as usize].clone());
        }
        let now = Value::tuple(args.pos)?;
        let same = of.changed.borrow().as_ref().is_some_and(|last| equal(last, &now));
        if !same {
            of.changed.replace(Some(now));
        }
        Ok(Value::Bool(!same))
    }

    fn depth(&self) -> u32 {
        self.of.depth() + 1
    }
}
