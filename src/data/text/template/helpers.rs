//! Jinja2's global functions and the objects that they make.

use super::args::int;
use super::convert::dict_of;
use super::fault::{Fault, Res, raise};
use super::iter::members;
use super::repr::{repr, text};
use super::strftime::strftime;
use super::value::{Args, Key, Machine, Object, Value};
use super::views::Range;
use indexmap::IndexMap;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

/// Names of the global functions.
pub const GLOBALS: [&str; 8] =
    ["range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now"];

/// The most members of a range: what the sandbox allows.
const MAX_RANGE: u64 = 100_000;

/// A global function.
pub struct Global(pub &'static str);

impl Object for Global {
    fn type_name(&self) -> &'static str {
        match self.0 {
            "dict" => "TemplateDict",
            "cycler" | "joiner" | "namespace" => "type",
            _ => "function",
        }
    }

    fn attr(&self, _: &dyn Machine, name: &str) -> Res<Option<Value>> {
        match (self.0, name) {
            ("dict", "fromkeys") => Value::object(Global("dict.fromkeys")).map(Some),
            ("dict", _) => Ok(None),
            ("cycler" | "joiner" | "namespace", _) => {
                Err(Fault::refused(format!("the attribute {name} of {}", self.0)))
            }
            _ => Ok(None),
        }
    }

    fn callable(&self) -> bool {
        true
    }

    fn call(&self, m: &dyn Machine, args: Args) -> Res<Value> {
        match self.0 {
            "range" => range(args),
            "dict" => dict_of(m, args),
            "dict.fromkeys" => from_keys(m, args),
            "cycler" => Value::object(Cycler::new(args)?),
            "joiner" => {
                let [sep] = args.bind("joiner", ["sep"], 0)?;
                let sep = sep.unwrap_or_else(|| Value::str(", "));
                Value::object(Joiner { sep, used: Cell::new(false) })
            }
            "raise_exception" => {
                let [message] = args.bind("raise_exception", ["message"], 1)?;
                raise(text(m, &message.unwrap_or(Value::None))?)
            }
            "strftime_now" => {
                let [format] = args.bind("strftime_now", ["format"], 1)?;
                match format {
                    Some(Value::Str(format)) => strftime(&format, SystemTime::now()).map(Value::str),
                    _ => raise("TypeError: strftime() argument 1 must be str"),
                }
            }
            other => Err(Fault::refused(format!("the function {other}()"))),
        }
    }
}

fn range(args: Args) -> Res<Value> {
    let [a, b, c] = args.places("range", 1)?;
    let exact = |v: &Value| match v {
        Value::Big(_) => Err(Fault::refused("a range beyond 64 bits")),
        v => int("range", v),
    };
    let first = exact(&a.unwrap_or(Value::None))?;
    let (start, stop) = match b {
        Some(b) => (first, exact(&b)?),
        None => (0, first),
    };
    let step = c.map_or(Ok(1), |c| exact(&c))?;
    if step == 0 {
        return raise("ValueError: range() arg 3 must not be zero");
    }
    let span = if step > 0 { i128::from(stop) - i128::from(start) } else { i128::from(start) - i128::from(stop) };
    let len = if span <= 0 { 0 } else { (span as u128 - 1) / u128::from(step.unsigned_abs()) + 1 };
    if len > u128::from(MAX_RANGE) {
        return raise(format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."));
    }
    Value::object(Range { start, stop, step, len: len as usize })
}

/// `dict.fromkeys(keys, value)`
pub fn from_keys(m: &dyn Machine, args: Args) -> Res<Value> {
    let [keys, value] = args.places("fromkeys", 1)?;
    let value = value.unwrap_or(Value::None);
    let keys = members(m, &keys.unwrap_or(Value::None))?;
    let pairs: IndexMap<Key, Value> =
        keys.into_iter().map(|k| Ok((Key::new(k)?, value.clone()))).collect::<Res<_>>()?;
    Value::dict(pairs)
}

/// `cycler(...)`
struct Cycler {
    items: Rc<super::value::Items>,
    at: Rc<Cell<usize>>,
}

/// `cycler.next` and `cycler.reset`
struct Turn {
    cycler: Cycler,
    resets: bool,
}

impl Cycler {
    fn new(args: Args) -> Res<Self> {
        if let Some((name, _)) = args.kw.first() {
            return raise(format!("TypeError: cycler() got an unexpected keyword argument '{name}'"));
        }
        if args.pos.is_empty() {
            return raise("at least one item has to be provided");
        }
        Ok(Self { items: Rc::new(super::value::Items::new(args.pos)?), at: Rc::default() })
    }

    fn turn(&self, resets: bool) -> Res<Option<Value>> {
        let cycler = Cycler { items: self.items.clone(), at: self.at.clone() };
        Value::object(Turn { cycler, resets }).map(Some)
    }
}

impl Object for Cycler {
    fn type_name(&self) -> &'static str {
        "Cycler"
    }

    fn attr(&self, _: &dyn Machine, name: &str) -> Res<Option<Value>> {
        match name {
            "current" => Ok(Some(self.items.items[self.at.get()].clone())),
            "items" => Ok(Some(Value::Tuple(self.items.clone()))),
            "pos" => Ok(Some(Value::Int(self.at.get() as i64))),
            "next" => self.turn(false),
            "reset" => self.turn(true),
            _ => Ok(None),
        }
    }

    fn depth(&self) -> u32 {
        self.items.depth + 1
    }
}

impl Object for Turn {
    fn type_name(&self) -> &'static str {
        "method"
    }

    fn callable(&self) -> bool {
        true
    }

    fn call(&self, _: &dyn Machine, args: Args) -> Res<Value> {
        args.places::<0>("next", 0)?;
        let Cycler { items, at } = &self.cycler;
        if self.resets {
            at.set(0);
            return Ok(Value::None);
        }
        let now = items.items[at.get()].clone();
        at.set((at.get() + 1) % items.items.len());
        Ok(now)
    }

    fn depth(&self) -> u32 {
        self.cycler.depth() + 1
    }
}

/// `joiner(...)`
struct Joiner {
    sep: Value,
    used: Cell<bool>,
}

impl Object for Joiner {
    fn type_name(&self) -> &'static str {
        "Joiner"
    }

    fn attr(&self, _: &dyn Machine, name: &str) -> Res<Option<Value>> {
        Ok(match name {
            "sep" => Some(self.sep.clone()),
            "used" => Some(Value::Bool(self.used.get())),
            _ => None,
        })
    }

    fn callable(&self) -> bool {
        true
    }

    fn call(&self, _: &dyn Machine, args: Args) -> Res<Value> {
        args.places::<0>("joiner", 0)?;
        Ok(if self.used.replace(true) { self.sep.clone() } else { Value::str("") })
    }

    fn depth(&self) -> u32 {
        self.sep.depth() + 1
    }
}

/// `namespace(...)`: the one value that a template can change.
#[derive(Default)]
pub struct Namespace {
    attrs: RefCell<IndexMap<Arc<str>, Value>>,
}

impl Namespace {
    /// Of what `dict(...)` takes.
    pub fn new(m: &dyn Machine, args: Args) -> Res<Self> {
        let Value::Dict(dict) = dict_of(m, args)? else { return raise("namespace() makes a dict") };
        let this = Self::default();
        for (key, value) in &dict.map {
            let Value::Str(name) = &key.0 else {
                return Err(Fault::refused("a namespace whose names are no texts"));
            };
            this.set(m, name, value.clone())?;
        }
        Ok(this)
    }

    /// Forgets everything: namespaces can hold each other.
    pub fn clear(&self) -> Vec<Value> {
        self.attrs.take().into_values().collect()
    }
}

impl Object for Namespace {
    fn type_name(&self) -> &'static str {
        "TemplateNamespace"
    }

    fn attr(&self, _: &dyn Machine, name: &str) -> Res<Option<Value>> {
        Ok(self.attrs.borrow().get(name).cloned())
    }

    fn repr(&self, m: &dyn Machine) -> Res<String> {
        let attrs = self.attrs.borrow().clone();
        let mut out = String::from("<Namespace {");
        for (i, (name, value)) in attrs.iter().enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            out.push_str(&super::repr::quoted(name));
            out.push_str(": ");
            out.push_str(&repr(m, value)?);
        }
        Ok(out + "}>")
    }

    fn set(&self, m: &dyn Machine, name: &str, value: Value) -> Res<()> {
        if name.starts_with('_') {
            return raise(format!(
                "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'."
            ));
        }
        m.budget().items(1)?;
        self.attrs.borrow_mut().insert(name.into(), value);
        Ok(())
    }
}
