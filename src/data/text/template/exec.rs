//! Statements of a template.

use super::ast::*;
use super::eval::{arguments, call, eval};
use super::fault::{Fault, Res, raise};
use super::helpers::Namespace;
use super::iter::{Iter, members};
use super::loops::{Loop, Recursion};
use super::macros::{Made, defaults};
use super::repr::write_text;
use super::run::{Env, Run};
use super::value::{Machine, Str, Value};
use super::views::Lazy;
use std::rc::Rc;
use std::sync::Arc;

/// How a body ended.
#[derive(Clone, Copy, PartialEq)]
pub enum Flow {
    /// At its end.
    On,
    /// `break`
    Break,
    /// `continue`
    Continue,
}

/// The text of a whole template.
pub fn render(run: &Run, root: &Scoped, cells: usize) -> Res<String> {
    let env = Env::new(cells, None);
    // The outermost cells may hold macros that hold them.
    run.keep(&env)?;
    enter(run, &env, &root.enter);
    let mut out = String::new();
    body(run, &env, &root.body, &mut out)?;
    Ok(out)
}

fn enter(run: &Run, env: &Env, loads: &[Load]) {
    for load in loads {
        match load {
            Load::Resolve(slot, name) => env.set(*slot, run.resolve(name)),
            Load::Alias(slot, outer) => env.set(*slot, env.get(*outer)),
            Load::Missing(slot) => env.set(*slot, Value::Missing),
        }
    }
}

fn leave(env: &Env, cells: &[Slot]) {
    cells.iter().for_each(|slot| env.set(*slot, Value::Missing));
}

fn body(run: &Run, env: &Rc<Env>, body: &[Stmt], out: &mut String) -> Res<Flow> {
    for stmt in body {
        let flow = statement(run, env, stmt, out)?;
        if flow != Flow::On {
            return Ok(flow);
        }
    }
    Ok(Flow::On)
}

/// A body in its scope; left behind only at its end, as in Python.
fn scoped(run: &Run, env: &Rc<Env>, scope: &Scoped, out: &mut String) -> Res<Flow> {
    enter(run, env, &scope.enter);
    let flow = body(run, env, &scope.body, out)?;
    if flow == Flow::On {
        leave(env, &scope.leave);
    }
    Ok(flow)
}

fn print(run: &Run, env: &Rc<Env>, value: &Expr, out: &mut String) -> Res<()> {
    let value = eval(run, env, value)?;
    write_text(run, &value, out)
}

fn statement(run: &Run, env: &Rc<Env>, stmt: &Stmt, out: &mut String) -> Res<Flow> {
    run.budget().steps(1)?;
    match stmt {
        Stmt::Data(text) => {
            run.budget().grow(out.len(), text.len())?;
            out.push_str(text);
        }
        Stmt::Print(value, line) => print(run, env, value, out).map_err(|f| f.at(*line))?,
        Stmt::If(branch) => return condition(run, env, branch, out),
        Stmt::For(node) => return for_loop(run, env, node, out).map_err(|f| f.at(node.line)),
        Stmt::Set(target, value, line) => set(run, env, target, value).map_err(|f| f.at(*line))?,
        Stmt::SetBlock(target, filter, scope, line) => {
            let flow = set_block(run, env, target, filter.as_ref(), scope).map_err(|f| f.at(*line))?;
            return Ok(flow);
        }
        Stmt::With(values, scope, line) => {
            enter(run, env, &scope.enter);
            for (target, value) in values {
                let value = eval(run, env, value).map_err(|f| f.at(*line))?;
                assign(run, env, target, value).map_err(|f| f.at(*line))?;
            }
            let flow = body(run, env, &scope.body, out)?;
            if flow == Flow::On {
                leave(env, &scope.leave);
            }
            return Ok(flow);
        }
        Stmt::Macro(name, node, _) => {
            let made = macro_of(run, env, node)?;
            env.set(name.slot, made);
        }
        Stmt::Call(node, callee, line) => call_block(run, env, node, callee.as_ref(), out).map_err(|f| f.at(*line))?,
        Stmt::Filter(filter, scope, line) => {
            enter(run, env, &scope.enter);
            let mut text = String::new();
            let flow = body(run, env, &scope.body, &mut text)?;
            if flow != Flow::On {
                return Ok(flow);
            }
            let value = on_buffer(run, env, filter, text).map_err(|f| f.at(*line))?;
            // What the filter gives is joined with what stands around: only a text can be.
            match &value {
                Value::Str(_) => write_text(run, &value, out)?,
                other => {
                    let kind = other.type_name();
                    return Err(Fault::raised(format!("TypeError: expected str instance, {kind} found")).at(*line));
                }
            }
            leave(env, &scope.leave);
        }
        Stmt::Break => return Ok(Flow::Break),
        Stmt::Continue => return Ok(Flow::Continue),
        Stmt::Load(tag, what, _, line) => {
            eval(run, env, what).map_err(|f| f.at(*line))?;
            let fault = match tag.contains("missing") {
                true => Fault::refused(format!("the tag {{% {tag} %}}")),
                false => Fault::raised(format!("TypeError: no loader for this environment specified ({tag})")),
            };
            return Err(fault.at(*line));
        }
    }
    Ok(Flow::On)
}

fn condition(run: &Run, env: &Rc<Env>, branch: &If, out: &mut String) -> Res<Flow> {
    let mut all = std::iter::once(branch).chain(&branch.elifs);
    let holds = |b: &If| eval(run, env, &b.test).and_then(|v| v.truth(run)).map_err(|f| f.at(b.line));
    for branch in &mut all {
        if holds(branch)? {
            return body(run, env, &branch.body, out);
        }
    }
    body(run, env, &branch.else_, out)
}

/// Gives `value` to `target`.
fn assign(run: &Run, env: &Rc<Env>, target: &Target, value: Value) -> Res<()> {
    match target {
        Target::Name(name) => env.set(name.slot, value),
        Target::Attr(name, attr) => {
            let Value::Object(object) = env.get(name.slot) else {
                return raise("cannot assign attribute on non-namespace object");
            };
            object.set(run, attr, value)?;
        }
        Target::Tuple(targets) => {
            let values = members(run, &value)?;
            if values.len() != targets.len() {
                return raise(format!(
                    "ValueError: wrong number of values to unpack (expected {}, got {})",
                    targets.len(),
                    values.len()
                ));
            }
            for (target, value) in targets.iter().zip(values) {
                assign(run, env, target, value)?;
            }
        }
    }
    Ok(())
}

/// Jinja2 asks whether attributes are those of namespaces before it looks at the value.
fn namespaces(env: &Rc<Env>, target: &Target) -> Res<()> {
    match target {
        Target::Name(_) => Ok(()),
        Target::Attr(name, _) if env.get(name.slot).downcast::<Namespace>().is_some() => Ok(()),
        Target::Attr(..) => raise("cannot assign attribute on non-namespace object"),
        Target::Tuple(targets) => targets.iter().try_for_each(|t| namespaces(env, t)),
    }
}

fn set(run: &Run, env: &Rc<Env>, target: &Target, value: &Expr) -> Res<()> {
    namespaces(env, target)?;
    let value = eval(run, env, value)?;
    assign(run, env, target, value)
}

fn on_buffer(run: &Run, env: &Rc<Env>, filter: &Expr, text: String) -> Res<Value> {
    run.buffers.borrow_mut().push(Str::plain(text));
    let value = eval(run, env, filter);
    run.buffers.borrow_mut().pop();
    value
}

fn set_block(run: &Run, env: &Rc<Env>, target: &Target, filter: Option<&Expr>, scope: &Scoped) -> Res<Flow> {
    enter(run, env, &scope.enter);
    let mut text = String::new();
    let flow = body(run, env, &scope.body, &mut text)?;
    if flow != Flow::On {
        return Ok(flow);
    }
    let value = match filter {
        Some(filter) => on_buffer(run, env, filter, text)?,
        None => Value::str(text),
    };
    if let Target::Attr(name, _) = target
        && matches!(env.get(name.slot), Value::Dict(_))
    {
        return Err(Fault::refused("a set block that changes a dict"));
    }
    assign(run, env, target, value)?;
    leave(env, &scope.leave);
    Ok(Flow::On)
}

fn macro_of(run: &Run, env: &Rc<Env>, node: &Arc<Macro>) -> Res<Value> {
    run.keep(env)?;
    Value::object(Made { node: node.clone(), env: env.clone(), body: macro_body })
}

fn macro_body(run: &Run, env: &Rc<Env>, node: &Macro) -> Res<String> {
    enter(run, env, &node.body.enter);
    defaults(run, env, node)?;
    let mut out = String::new();
    body(run, env, &node.body.body, &mut out)?;
    Ok(out)
}

fn call_block(run: &Run, env: &Rc<Env>, node: &Arc<Macro>, callee: Option<&Expr>, out: &mut String) -> Res<()> {
    let caller = macro_of(run, env, node)?;
    let value = match callee {
        Some(Expr::Call(callee, args, _)) => call(run, env, callee, args, Some(caller))?,
        Some(_) => return raise("expected call"),
        // `generation` only marks what its body gives.
        None => run.call(&caller, arguments(run, env, &CallArgs::default())?)?,
    };
    match &value {
        Value::Str(_) => write_text(run, &value, out),
        other => raise(format!("TypeError: expected str instance, {} found", other.type_name())),
    }
}

fn for_loop(run: &Run, env: &Rc<Env>, node: &Arc<For>, out: &mut String) -> Res<Flow> {
    let over = eval(run, env, &node.iter)?;
    if node.recursive {
        let text = recursive(run, env, node, over, 0)?;
        run.budget().grow(out.len(), text.len())?;
        out.push_str(&text);
        return Ok(Flow::On);
    }
    iterate(run, env, env, node, over, 0, out)
}

/// One call of a recursive loop; `outer` are the cells around it.
fn recursive(run: &Run, outer: &Rc<Env>, node: &Arc<For>, over: Value, depth0: i64) -> Res<String> {
    let env = Env::new(node.cells, Some(outer.clone()));
    run.keep(&env)?;
    let mut out = String::new();
    iterate(run, &env, outer, node, over, depth0, &mut out)?;
    Ok(out)
}

/// What a loop goes through: a plain iterator, or the loop that its body asks about.
enum Source {
    Plain(Iter),
    Asked(Loop),
}

fn iterate(
    run: &Run,
    env: &Rc<Env>,
    outer: &Rc<Env>,
    node: &Arc<For>,
    over: Value,
    depth0: i64,
    out: &mut String,
) -> Res<Flow> {
    let over = if node.test.is_some() { filtered(outer, node, over)? } else { over };
    let mut source = match node.loop_cell {
        None => Source::Plain(Iter::new(&over)?),
        Some(cell) => {
            let again = || Recursion { again: recursive, env: outer.clone(), node: node.clone() };
            let made = Loop::new(over, node.recursive.then(again), depth0)?;
            env.set(cell, Value::Missing);
            Source::Asked(made)
        }
    };
    let mut untouched = true;
    loop {
        let next = match &mut source {
            Source::Plain(iter) => iter.next(run)?,
            Source::Asked(made) => made.advance(run)?,
        };
        let Some(item) = next else { break };
        assign(run, env, &node.target, item)?;
        if let (Source::Asked(made), Some(cell)) = (&source, node.loop_cell) {
            env.set(cell, Value::object(made.clone())?);
        }
        enter(run, env, &node.body.enter);
        match body(run, env, &node.body.body, out)? {
            Flow::On => untouched = false,
            Flow::Continue => {}
            Flow::Break => break,
        }
    }
    leave(env, &node.body.leave);
    match &node.else_ {
        // Python's own sign: a body that ended early did not set it.
        Some(other) if untouched => scoped(run, env, other, out),
        _ => Ok(Flow::On),
    }
}

/// What the names of `target` hold, as the condition's function hands it on.
fn taken(env: &Rc<Env>, target: &Target) -> Res<Value> {
    match target {
        Target::Name(name) | Target::Attr(name, _) => Ok(env.get(name.slot)),
        Target::Tuple(targets) => Value::tuple(targets.iter().map(|t| taken(env, t)).collect::<Res<_>>()?),
    }
}

/// The members for which the loop's condition holds, asked one by one.
fn filtered(outer: &Rc<Env>, node: &Arc<For>, over: Value) -> Res<Value> {
    let (outer, node) = (outer.clone(), node.clone());
    let kept = over.clone();
    let mut state: Option<(Rc<Env>, Iter)> = None;
    Lazy::generator(
        &over,
        Box::new(move |m| {
            let (Some(run), Some(test)) = (m.as_any().downcast_ref::<Run>(), &node.test) else { return Ok(None) };
            if state.is_none() {
                let env = Env::new(test.cells, Some(outer.clone()));
                enter(run, &env, &test.enter);
                state = Some((env, Iter::new(&kept)?));
            }
            let Some((env, iter)) = &mut state else { return Ok(None) };
            while let Some(item) = iter.next(m)? {
                assign(run, env, &test.target, item)?;
                if eval(run, env, &test.test)?.truth(run)? {
                    return taken(env, &test.target).map(Some);
                }
            }
            Ok(None)
        }),
    )
}
