//! Ranges, views of dicts, and iterators.

use super::fault::{Fault, Res};
use super::repr::write_repr;
use super::value::{Dict, Key, Machine, Object, Value, equal};
use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

/// `range(start, stop, step)`
pub struct Range {
    /// First.
    pub start: i64,
    /// Bound.
    pub stop: i64,
    /// From one to the next.
    pub step: i64,
    /// How many.
    pub len: usize,
}

impl Range {
    fn at(&self, at: usize) -> Value {
        Value::Int(self.start + at as i64 * self.step)
    }
}

impl Object for Range {
    fn type_name(&self) -> &'static str {
        "range"
    }

    fn attr(&self, _: &dyn Machine, name: &str) -> Res<Option<Value>> {
        match name {
            "start" => Ok(Some(Value::Int(self.start))),
            "stop" => Ok(Some(Value::Int(self.stop))),
            "step" => Ok(Some(Value::Int(self.step))),
            "count" | "index" => Err(Fault::refused(format!("the method {name}() of range"))),
            _ => Ok(None),
        }
    }

    fn item(&self, _: &dyn Machine, key: &Value) -> Res<Option<Value>> {
        let len = self.len as i64;
        let at = key.as_index().map(|at| if at < 0 { at.saturating_add(len) } else { at });
        Ok(at.filter(|at| (0..len).contains(at)).map(|at| self.at(at as usize)))
    }

    fn is_sized(&self) -> bool {
        true
    }

    fn member(&self, at: usize) -> Res<Option<Value>> {
        Ok((at < self.len).then(|| self.at(at)))
    }

    fn len(&self, _: &dyn Machine) -> Res<Option<usize>> {
        Ok(Some(self.len))
    }

    fn slice(&self, start: i64, stop: i64, step: i64) -> Option<Value> {
        let at = |n: i64| self.start.checked_add(n.checked_mul(self.step)?);
        let (from, to, every) = (at(start)?, at(stop)?, self.step.checked_mul(step)?);
        let span = if step > 0 { stop - start } else { start - stop };
        let len = if span <= 0 { 0 } else { (span - 1) / step.saturating_abs() + 1 };
        Value::object(Range { start: from, stop: to, step: every, len: len as usize }).ok()
    }

    fn repr(&self, _: &dyn Machine) -> Res<String> {
        Ok(match self.step {
            1 => format!("range({}, {})", self.start, self.stop),
            step => format!("range({}, {}, {step})", self.start, self.stop),
        })
    }

    fn same(&self, other: &dyn Object) -> Option<bool> {
        let other = (other as &dyn Any).downcast_ref::<Self>()?;
        let alike = match self.len {
            0 => true,
            1 => self.start == other.start,
            _ => self.start == other.start && self.step == other.step,
        };
        Some(self.len == other.len && alike)
    }
}

/// What a view of a dict shows.
#[derive(Clone, Copy, PartialEq)]
pub enum Shows {
    /// `keys()`
    Keys,
    /// `values()`
    Values,
    /// `items()`
    Items,
}

/// `dict.keys()`, `dict.values()`, `dict.items()`
pub struct View {
    /// The dict.
    pub dict: Rc<Dict>,
    /// Which.
    pub shows: Shows,
}

impl View {
    fn one(&self, (key, value): (&Key, &Value)) -> Res<Value> {
        match self.shows {
            Shows::Keys => Ok(key.0.clone()),
            Shows::Values => Ok(value.clone()),
            Shows::Items => Value::tuple(vec![key.0.clone(), value.clone()]),
        }
    }

    fn list(&self) -> Res<Vec<Value>> {
        self.dict.map.iter().map(|pair| self.one(pair)).collect()
    }
}

impl Object for View {
    fn type_name(&self) -> &'static str {
        match self.shows {
            Shows::Keys => "dict_keys",
            Shows::Values => "dict_values",
            Shows::Items => "dict_items",
        }
    }

    fn attr(&self, _: &dyn Machine, name: &str) -> Res<Option<Value>> {
        match name {
            "mapping" | "isdisjoint" => Err(Fault::refused(format!("the attribute {name} of a view of a dict"))),
            _ => Ok(None),
        }
    }

    fn is_sized(&self) -> bool {
        true
    }

    fn member(&self, at: usize) -> Res<Option<Value>> {
        self.dict.map.get_index(at).map(|pair| self.one(pair)).transpose()
    }

    fn len(&self, _: &dyn Machine) -> Res<Option<usize>> {
        Ok(Some(self.dict.map.len()))
    }

    fn repr(&self, m: &dyn Machine) -> Res<String> {
        let mut out = format!("{}(", self.type_name());
        write_repr(m, &Value::list(self.list()?)?, &mut out)?;
        Ok(out + ")")
    }

    fn same(&self, other: &dyn Object) -> Option<bool> {
        let other = (other as &dyn Any).downcast_ref::<Self>()?;
        if self.shows == Shows::Values || self.shows != other.shows {
            return None;
        }
        // Too many to compare each with each.
        if self.dict.map.len().max(other.dict.map.len()) > 1000 {
            return Some(false);
        }
        let (a, b) = (self.list().ok()?, other.list().ok()?);
        Some(a.len() == b.len() && a.iter().all(|a| b.iter().any(|b| equal(a, b))))
    }

    fn depth(&self) -> u32 {
        self.dict.depth + 1
    }
}

/// What gives the next member.
type Step = Box<dyn FnMut(&dyn Machine) -> Res<Option<Value>>>;

/// An iterator: a generator of Jinja2's filters, or what `reversed` gives.
pub struct Lazy {
    name: &'static str,
    depth: u32,
    step: RefCell<Option<Step>>,
}

impl Lazy {
    /// A generator over `source`, which `step` goes through.
    pub fn generator(source: &Value, step: Step) -> Res<Value> {
        let depth = source.depth() + 1;
        Value::object(Self { name: "generator", depth, step: RefCell::new(Some(step)) })
    }

    /// An iterator over `members`.
    pub fn over(name: &'static str, members: Vec<Value>) -> Res<Value> {
        let depth = members.iter().map(Value::depth).max().unwrap_or(0);
        let mut members = members.into_iter();
        let step: Step = Box::new(move |_| Ok(members.next()));
        Value::object(Self { name, depth, step: RefCell::new(Some(step)) })
    }
}

impl Object for Lazy {
    fn type_name(&self) -> &'static str {
        self.name
    }

    fn attr(&self, _: &dyn Machine, name: &str) -> Res<Option<Value>> {
        match name {
            "send" | "throw" | "close" => Err(Fault::refused(format!("the method {name}() of a generator"))),
            _ if name.starts_with("gi_") => Err(Fault::refused(format!("the attribute {name} of a generator"))),
            _ => Ok(None),
        }
    }

    fn is_iterator(&self) -> bool {
        true
    }

    fn next(&self, m: &dyn Machine) -> Res<Option<Value>> {
        // Taken while it runs: it may be asked to feed itself.
        let Some(mut step) = self.step.borrow_mut().take() else { return Ok(None) };
        let next = step(m)?;
        if next.is_some() {
            *self.step.borrow_mut() = Some(step);
        }
        Ok(next)
    }

    fn depth(&self) -> u32 {
        self.depth
    }
}
