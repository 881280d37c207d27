//! Expressions of a template, evaluated as Python evaluates what Jinja2 makes of them.

use super::ast::*;
use super::attr::{get_attr, get_item, method_name};
use super::fault::{Fault, Kind, Res, raise, room_for_named};
use super::iter::members;
use super::number::Op;
use super::ops::{binary, contains, order, same, slice};
use super::percent::percent;
use super::repr::write_text;
use super::run::{Env, Run};
use super::value::{Args, Key, Machine, Value};
use super::walk::constant;
use indexmap::IndexMap;
use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

/// The value of `expr`.
pub fn eval(run: &Run, env: &Rc<Env>, expr: &Expr) -> Res<Value> {
    run.budget().steps(1)?;
    match expr {
        Expr::Lit(lit) => Ok(literal(lit)),
        Expr::Name(name, line) => load(env, name).map_err(|f| f.at(*line)),
        _ => {
            run.budget().enter()?;
            let out = compound(run, env, expr);
            run.budget().leave();
            out
        }
    }
}

/// What a name holds.
pub fn load(env: &Rc<Env>, name: &Name) -> Res<Value> {
    match env.get(name.slot) {
        Value::Missing if name.param => {
            Err(Fault::refused(format!("reading `{}` after its scope has ended", name.text)))
        }
        Value::Missing => Ok(Value::undefined(format!("'{}' is undefined", name.text))),
        value => Ok(value),
    }
}

fn literal(lit: &Lit) -> Value {
    match lit {
        Lit::None => Value::None,
        Lit::Bool(b) => Value::Bool(*b),
        Lit::Int(n) => Value::int(n.clone()),
        Lit::Float(x) => Value::Float(*x),
        Lit::Str(s) => Value::str(s.clone()),
    }
}

fn all(run: &Run, env: &Rc<Env>, items: &[Expr]) -> Res<Vec<Value>> {
    run.budget().items(items.len())?;
    items.iter().map(|item| eval(run, env, item)).collect()
}

fn compound(run: &Run, env: &Rc<Env>, expr: &Expr) -> Res<Value> {
    match expr {
        Expr::Lit(_) | Expr::Name(..) => eval(run, env, expr),
        Expr::List(items) => Value::list(all(run, env, items)?),
        Expr::Tuple(items) => Value::tuple(all(run, env, items)?),
        Expr::Dict(items) => dict(run, env, items),
        Expr::Binary(op, a, b, line) => {
            let (a, b) = (eval(run, env, a)?, eval(run, env, b)?);
            match (op, &a) {
                (Op::Mod, Value::Str(format)) => percent(run, format, &b),
                _ => binary(run, *op, &a, &b),
            }
            .map_err(|f| f.at(*line))
        }
        Expr::Sign(minus, a, line) => super::number::signed(*minus, &eval(run, env, a)?).map_err(|f| f.at(*line)),
        Expr::Logic(and, a, b) => {
            let a = eval(run, env, a)?;
            if a.truth(run)? == *and { eval(run, env, b) } else { Ok(a) }
        }
        Expr::Not(a) => Ok(Value::Bool(!eval(run, env, a)?.truth(run)?)),
        Expr::Compare(first, rest, line) => compare(run, env, first, rest).map_err(|f| f.at(*line)),
        Expr::Concat(parts, line) => concat(run, env, parts).map_err(|f| f.at(*line)),
        Expr::Attr(a, name, line) => get_attr(run, &eval(run, env, a)?, name).map_err(|f| f.at(*line)),
        Expr::Item(a, key, line) => {
            let (a, key) = (eval(run, env, a)?, eval(run, env, key)?);
            get_item(run, &a, &key).map_err(|f| f.at(*line))
        }
        Expr::Slice(a, parts, line) => sliced(run, env, a, parts).map_err(|f| {
            // Folded where it prints, it is undefined; elsewhere it is an error.
            let folded = f.kind == Kind::Raised && constant(expr);
            if folded { Fault::refused("a slice of a constant that cannot be sliced").at(*line) } else { f.at(*line) }
        }),
        Expr::Filter(name, args, line) => {
            let args = arguments(run, env, args)?;
            run.filter(name, args).map_err(|f| f.at(*line))
        }
        Expr::Test(name, args, line) => {
            let args = arguments(run, env, args)?;
            run.test(name, args).map(Value::Bool).map_err(|f| f.at(*line))
        }
        Expr::Call(callee, args, line) => call(run, env, callee, args, None).map_err(|f| f.at(*line)),
        Expr::Cond(both, other, line) => {
            let [test, value] = &**both;
            match (eval(run, env, test)?.truth(run)?, other) {
                (true, _) => eval(run, env, value),
                (false, Some(other)) => eval(run, env, other),
                (false, None) => Ok(Value::undefined(format!(
                    "the inline if-expression on line {line} evaluated to false and no else section was defined."
                ))),
            }
        }
        Expr::Buffer => match run.buffers.borrow().last() {
            Some(text) => Ok(Value::Str(text.clone())),
            None => raise("a filter without its block"),
        },
    }
}

fn dict(run: &Run, env: &Rc<Env>, items: &[(Expr, Expr)]) -> Res<Value> {
    run.budget().items(items.len())?;
    let mut map = IndexMap::with_capacity(items.len());
    for (key, value) in items {
        let key = eval(run, env, key)?;
        let value = eval(run, env, value)?;
        run.budget().steps(key.size() - 1)?;
        map.insert(Key::new(key)?, value);
    }
    Value::dict(map)
}

fn compare(run: &Run, env: &Rc<Env>, first: &Expr, rest: &[(Cmp, Expr)]) -> Res<Value> {
    let mut left = eval(run, env, first)?;
    for (cmp, right) in rest {
        let right = eval(run, env, right)?;
        let holds = match cmp {
            Cmp::Eq => same(run, &left, &right)?,
            Cmp::Ne => !same(run, &left, &right)?,
            _ if matches!(cmp, Cmp::In | Cmp::NotIn) => contains(run, &right, &left)? == (*cmp == Cmp::In),
            _ => {
                run.budget().steps(left.size().min(right.size()) / 4)?;
                ordered(*cmp, &left, &right)?
            }
        };
        if !holds {
            return Ok(Value::Bool(false));
        }
        left = right;
    }
    Ok(Value::Bool(true))
}

fn ordered(cmp: Cmp, left: &Value, right: &Value) -> Res<bool> {
    Ok(match cmp {
        Cmp::Lt => order("<", left, right)? == Ordering::Less,
        Cmp::Le => order("<=", left, right)? != Ordering::Greater,
        Cmp::Gt => order(">", left, right)? == Ordering::Greater,
        _ => order(">=", left, right)? != Ordering::Less,
    })
}

fn concat(run: &Run, env: &Rc<Env>, parts: &[Expr]) -> Res<Value> {
    let values = all(run, env, parts)?;
    let mut out = String::new();
    for value in &values {
        write_text(run, value, &mut out)?;
    }
    Ok(Value::str(out))
}

fn sliced(run: &Run, env: &Rc<Env>, a: &Expr, parts: &[Option<Expr>; 3]) -> Res<Value> {
    let a = eval(run, env, a)?;
    let part = |part: &Option<Expr>| part.as_ref().map_or(Ok(Value::None), |e| eval(run, env, e));
    let [start, stop, step] = parts;
    let (start, stop, step) = (part(start)?, part(stop)?, part(step)?);
    slice(run, &a, [&start, &stop, &step])
}

/// Arguments of a call, in Python's order.
pub fn arguments(run: &Run, env: &Rc<Env>, given: &CallArgs) -> Res<Args> {
    let mut args = Args { pos: Vec::with_capacity(given.pos.len() + 1), kw: Vec::with_capacity(given.kw.len()) };
    for one in &given.pos {
        args.pos.push(eval(run, env, one)?);
    }
    if let Some(more) = &given.dyn_pos {
        let more = eval(run, env, more)?;
        args.pos.extend(members(run, &more)?);
    }
    for (name, one) in &given.kw {
        args.kw.push((name.clone(), eval(run, env, one)?));
    }
    if let Some(more) = &given.dyn_kw {
        let more = match eval(run, env, more)? {
            Value::Dict(dict) => dict,
            Value::Undefined(what) => return raise(&*what),
            other => {
                return raise(format!("TypeError: argument after ** must be a mapping, not {}", other.type_name()));
            }
        };
        for (key, value) in &more.map {
            let Value::Str(name) = &key.0 else { return raise("TypeError: keywords must be strings") };
            room_for_named(args.kw.len())?;
            run.budget().steps(args.kw.len() as u64 / 16)?;
            if args.kw.iter().any(|(given, _)| *given == name.text) {
                return raise(format!("TypeError: got multiple values for keyword argument '{}'", name.text));
            }
            args.kw.push((name.text.clone(), value.clone()));
        }
    }
    Ok(args)
}

/// Calls `callee`, with `caller` where a `call` block has one.
pub fn call(run: &Run, env: &Rc<Env>, callee: &Expr, given: &CallArgs, caller: Option<Value>) -> Res<Value> {
    let with = |args: Res<Args>| {
        let mut args = args?;
        if let Some(caller) = caller {
            if args.kw.iter().any(|(name, _)| &**name == "caller") {
                return raise("TypeError: got multiple values for keyword argument 'caller'");
            }
            args.kw.push((Arc::from("caller"), caller));
        }
        Ok(args)
    };
    // A method is called at once, without an object for it.
    if let Expr::Attr(receiver, name, _) = callee {
        let receiver = eval(run, env, receiver)?;
        if let Some(name) = method_name(&receiver, name)
            && !matches!(name, "real" | "imag" | "numerator" | "denominator")
        {
            return run.method(&receiver, name, with(arguments(run, env, given))?);
        }
        let callee = get_attr(run, &receiver, name)?;
        return run.call(&callee, with(arguments(run, env, given))?);
    }
    let callee = eval(run, env, callee)?;
    run.call(&callee, with(arguments(run, env, given))?)
}
