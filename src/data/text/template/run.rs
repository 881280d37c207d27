//! What runs a template: its variables, what is left of its budget, and what it may call.

use super::ast::Slot;
use super::attr::callable;
use super::fault::{Budget, Res, raise};
use super::filters;
use super::filters_lazy;
use super::filters_text;
use super::helpers::{GLOBALS, Global, Namespace};
use super::json::tojson;
use super::methods;
use super::tests;
use super::value::{Args, Machine, Str, Value};
use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// The cells of one call of a function: the template itself, a macro, a recursive loop.
pub struct Env {
    cells: RefCell<Vec<Value>>,
    outer: Option<Rc<Env>>,
}

impl Env {
    /// Empty cells inside of `outer`.
    pub fn new(cells: usize, outer: Option<Rc<Env>>) -> Rc<Self> {
        Rc::new(Self { cells: RefCell::new(vec![Value::Missing; cells]), outer })
    }

    fn of(&self, slot: Slot) -> &Env {
        let mut here = self;
        for _ in 0..slot.up {
            let Some(outer) = &here.outer else { break };
            here = outer;
        }
        here
    }

    /// What a cell holds.
    pub fn get(&self, slot: Slot) -> Value {
        self.of(slot).cells.borrow()[usize::from(slot.at)].clone()
    }

    /// Puts `value` into a cell.
    pub fn set(&self, slot: Slot, value: Value) {
        // What was there is dropped outside of the borrow.
        let _before = std::mem::replace(&mut self.of(slot).cells.borrow_mut()[usize::from(slot.at)], value);
    }
}

/// One rendering.
pub struct Run {
    budget: Budget,
    vars: Vec<(Arc<str>, Value)>,
    /// Texts of the blocks that filters stand on, the innermost last.
    pub buffers: RefCell<Vec<Str>>,
    /// Cells that macros keep, and namespaces: both may hold themselves.
    envs: RefCell<Vec<Rc<Env>>>,
    namespaces: RefCell<Vec<Value>>,
}

impl Run {
    /// A rendering with variables `vars`; later ones win.
    pub fn new(vars: Vec<(Arc<str>, Value)>) -> Self {
        Self {
            budget: Budget::full(),
            vars,
            buffers: RefCell::default(),
            envs: RefCell::default(),
            namespaces: RefCell::default(),
        }
    }

    /// The variable or global `name`.
    pub fn resolve(&self, name: &str) -> Value {
        if let Some((_, value)) = self.vars.iter().rev().find(|(n, _)| **n == *name) {
            return value.clone();
        }
        match GLOBALS.iter().find(|global| **global == name) {
            Some(global) => Value::Object(Rc::new(Global(global))),
            None => Value::Missing,
        }
    }

    /// Keeps cells that something refers to until the end.
    pub fn keep(&self, env: &Rc<Env>) -> Res<()> {
        let mut envs = self.envs.borrow_mut();
        if envs.last().is_none_or(|last| !Rc::ptr_eq(last, env)) {
            self.budget.items(env.cells.borrow().len() + 1)?;
            envs.push(env.clone());
        }
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for env in self.envs.take() {
            env.cells.take();
        }
        for namespace in self.namespaces.take() {
            if let Some(namespace) = namespace.downcast::<Namespace>() {
                namespace.clear();
            }
        }
    }
}

impl Machine for Run {
    fn call(&self, callee: &Value, mut args: Args) -> Res<Value> {
        self.budget.steps(1)?;
        // What Jinja2 passes on the way, and takes away again.
        args.kw.retain(|(name, _)| !matches!(&**name, "_loop_vars" | "_block_vars"));
        match callee {
            Value::Undefined(what) => raise(&**what),
            Value::Object(object)
                if (&**object as &dyn Any).downcast_ref().is_some_and(|Global(n)| *n == "namespace") =>
            {
                let made = Value::object(Namespace::new(self, args)?)?;
                self.budget.items(1)?;
                self.namespaces.borrow_mut().push(made.clone());
                Ok(made)
            }
            Value::Object(object) if callable(callee) => {
                self.budget.enter()?;
                let out = object.call(self, args);
                self.budget.leave();
                out
            }
            _ => raise(format!("TypeError: '{}' object is not callable", callee.type_name())),
        }
    }

    fn filter(&self, name: &str, args: Args) -> Res<Value> {
        self.budget.steps(1)?;
        if name == "tojson" {
            return tojson(self, args);
        }
        match name {
            _ if filters_text::NAMES.contains(&name) => filters_text::call(self, name, args),
            _ if filters_lazy::NAMES.contains(&name) => filters_lazy::call(self, name, args),
            _ => filters::call(self, name, args),
        }
    }

    fn test(&self, name: &str, args: Args) -> Res<bool> {
        self.budget.steps(1)?;
        tests::ask(self, name, args)
    }

    fn method(&self, receiver: &Value, name: &str, args: Args) -> Res<Value> {
        self.budget.steps(1)?;
        methods::call(self, receiver, name, args)
    }

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
