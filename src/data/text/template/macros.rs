//! Macros, and the bodies of `call` blocks.

use super::ast::Macro;
use super::eval::eval;
use super::fault::{Res, raise};
use super::run::{Env, Run};
use super::value::{Args, Key, Machine, Object, Value};
use std::rc::Rc;
use std::sync::Arc;

/// Runs the body of a macro whose parameters are set.
pub type Body = fn(&Run, &Rc<Env>, &Macro) -> Res<String>;

/// A macro with the cells around it.
pub struct Made {
    /// As written.
    pub node: Arc<Macro>,
    /// The cells around it.
    pub env: Rc<Env>,
    /// How its body runs.
    pub body: Body,
}

impl Made {
    fn invoke(&self, run: &Run, args: Args) -> Res<String> {
        let node = &*self.node;
        let [caller, kwargs, varargs] = node.special;
        let name = node.name.as_deref().unwrap_or("None");
        let env = Env::new(node.cells, Some(self.env.clone()));
        run.budget().items(node.cells)?;
        let Args { pos, mut kw } = args;
        let count = node.args.len();
        run.budget().steps((count * kw.len()) as u64 / 16)?;
        let mut pos = pos.into_iter();
        let mut explicit = false;
        for (i, arg) in node.args.iter().enumerate() {
            let value = match pos.next() {
                Some(value) => value,
                None => match kw.iter().position(|(k, _)| *k == arg.text) {
                    Some(at) => kw.remove(at).1,
                    None => Value::Missing,
                },
            };
            explicit |= &*arg.text == "caller";
            env.set(arg.slot, value);
            let _ = i;
        }
        if let Some(slot) = caller.filter(|_| !explicit) {
            let value = match kw.iter().position(|(k, _)| &**k == "caller") {
                Some(at) => kw.remove(at).1,
                None => Value::None,
            };
            env.set(slot, if matches!(value, Value::None) { Value::undefined("No caller defined") } else { value });
        }
        match (kwargs, kw.first()) {
            (Some(slot), _) => {
                env.set(slot, Value::dict(kw.into_iter().map(|(k, v)| (Key(Value::str(k)), v)).collect())?);
            }
            (None, Some((key, _))) => {
                return raise(format!("TypeError: macro '{name}' takes no keyword argument '{key}'"));
            }
            (None, None) => {}
        }
        let rest: Vec<Value> = pos.collect();
        match varargs {
            Some(slot) => env.set(slot, Value::tuple(rest)?),
            None if !rest.is_empty() => {
                return raise(format!("TypeError: macro '{name}' takes not more than {count} argument(s)"));
            }
            None => {}
        }
        (self.body)(run, &env, node)
    }

    fn special(&self, which: usize) -> bool {
        self.node.special[which].is_some()
    }
}

/// Gives parameters without a value their default.
pub fn defaults(run: &Run, env: &Rc<Env>, node: &Macro) -> Res<()> {
    let first = node.args.len() - node.defaults.len();
    for (i, arg) in node.args.iter().enumerate() {
        if !matches!(env.get(arg.slot), Value::Missing) {
            continue;
        }
        let value = match i.checked_sub(first) {
            Some(at) => eval(run, env, &node.defaults[at])?,
            None => Value::undefined(format!("parameter '{}' was not provided", arg.text)),
        };
        env.set(arg.slot, value);
    }
    Ok(())
}

impl Object for Made {
    fn type_name(&self) -> &'static str {
        "Macro"
    }

    fn attr(&self, _: &dyn Machine, name: &str) -> Res<Option<Value>> {
        Ok(Some(match name {
            "name" => self.node.name.as_ref().map_or(Value::None, |name| Value::str(name.clone())),
            "arguments" => Value::tuple(self.node.args.iter().map(|arg| Value::str(arg.text.clone())).collect())?,
            "catch_kwargs" => Value::Bool(self.special(1)),
            "catch_varargs" => Value::Bool(self.special(2)),
            "explicit_caller" => Value::Bool(self.node.args.iter().any(|arg| &*arg.text == "caller")),
            "caller" => Value::Bool(self.special(0)),
            _ => return Ok(None),
        }))
    }

    fn callable(&self) -> bool {
        true
    }

    fn call(&self, m: &dyn Machine, args: Args) -> Res<Value> {
        match m.as_any().downcast_ref::<Run>() {
            Some(run) => self.invoke(run, args).map(Value::str),
            None => raise("a macro outside of its template"),
        }
    }

    fn repr(&self, _: &dyn Machine) -> Res<String> {
        Ok(match &self.node.name {
            Some(name) => format!("<Macro '{name}'>"),
            None => "<Macro anonymous>".into(),
        })
    }
}
