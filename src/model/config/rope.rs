//! The rotary embedding that transformers 5.23 makes of `rope_scaling`, `rope_parameters` and the fields beside them.

use super::super::json::Fields;
use super::super::rope::{Rope, RopeScaling};
use crate::error::Result;
use serde_json::{Map, Value};

/// The kinds, for messages.
const KINDS: &str = "default, linear, dynamic, yarn, longrope, llama3, proportional";

/// Base where config.json names none; the same in every family that loads.
const THETA: f64 = 10000.0;

/// What is known of the model when its rotary embedding is made.
pub(super) struct Known {
    /// Width of a head.
    pub head_dim: usize,
    /// `max_position_embeddings`.
    pub positions: usize,
}

/// The object that counts, and its name: `rope_scaling` (transformers 4) where it says anything, else `rope_parameters`
/// (transformers 5), never parts of both.
fn object<'a>(f: &Fields<'a>) -> Result<(&'static str, Option<&'a Map<String, Value>>)> {
    // `rope_parameters` has to be an object even where it does not count.
    let new = f.object("rope_parameters")?;
    // Python's `or`: nothing, none of any kind.
    let empty = |v: &Value| match v {
        Value::Array(v) => v.is_empty(),
        Value::String(v) => v.is_empty(),
        Value::Number(v) => v.as_f64() == Some(0.0),
        Value::Object(v) => v.is_empty(),
        v => v == &Value::Bool(false),
    };
    if f.get("rope_scaling").is_some_and(|v| !empty(v)) {
        return Ok(("rope_scaling", f.object("rope_scaling")?));
    }
    Ok(("rope_parameters", new))
}

/// The kind, or that there is none to stretch.
fn kind<'a>(r: &Fields<'a>) -> Result<&'a str> {
    // `type` is what transformers called it before 4.45; where both stand, it is not read.
    let key = if r.has("rope_type") { "rope_type" } else { "type" };
    match r.raw(key) {
        Some(Value::String(kind)) => Ok(kind),
        Some(other) => Err(r.bad(format!("`{key}` is {other}, expected one of {KINDS}"))),
        None => match r.keys().find(|k| !matches!(*k, "rope_theta" | "partial_rotary_factor")) {
            None => Ok("default"),
            Some(key) => Err(r.bad(format!(
                "has `{key}` but no `rope_type`, without which transformers ignores it; expected one of {KINDS}"
            ))),
        },
    }
}

/// The rotary embedding of a model.
pub(super) fn resolve(f: &Fields, known: &Known) -> Result<Rope> {
    let (name, map) = object(f)?;
    let nothing = Map::new();
    let r = f.inside(name, map.unwrap_or(&nothing));
    // Where the object names no base, the one at top level counts; null is none in neither place.
    let theta = match (r.has("rope_theta"), f.has("rope_theta")) {
        (true, _) => r.positive("rope_theta")?,
        (false, true) => f.positive("rope_theta")?,
        (false, false) => THETA,
    };
    let kind = kind(&r)?;
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: r.positive("factor")? },
        "dynamic" => dynamic(&r, known)?,
        "yarn" => yarn(f, &r, known)?,
        "longrope" => longrope(f, &r, known)?,
        "llama3" => llama3(f, &r, known)?,
        "proportional" => proportional(f, &r)?,
        other => return Err(r.bad(format!("is of type `{other}`, which is not supported; supported: {KINDS}"))),
    };
    if !matches!(kind, "default" | "proportional") {
        whole_heads(f, &r, known)?;
    }
    let rope = Rope { theta, scaling };
    finite(&r, &rope, known)?;
    Ok(rope)
}

/// The part of a head that turns. (With the default kind these families turn all of it, whatever the field says.)
fn turning_part(f: &Fields, r: &Fields) -> Result<f64> {
    match (r.has("partial_rotary_factor"), f.get("partial_rotary_factor")) {
        (true, _) => r.positive("partial_rotary_factor"),
        (false, Some(_)) => f.positive("partial_rotary_factor"),
        (false, None) => Ok(1.0),
    }
}

fn whole_heads(f: &Fields, r: &Fields, known: &Known) -> Result<()> {
    let part = turning_part(f, r)?;
    match (known.head_dim as f64 * part) as usize == known.head_dim {
        true => Ok(()),
        false => Err(f.bad("`partial_rotary_factor` other than 1 is not supported")),
    }
}

/// Positions of the model before it was stretched. The field at top level wins, as in Phi 3.
fn original(f: &Fields, r: &Fields, known: &Known) -> Result<f64> {
    const NAME: &str = "original_max_position_embeddings";
    match (f.has(NAME), r.has(NAME)) {
        (true, _) => f.positive(NAME),
        (false, true) => r.positive(NAME),
        (false, false) => Ok(known.positions as f64),
    }
}

fn dynamic(r: &Fields, known: &Known) -> Result<RopeScaling> {
    if known.head_dim == 2 {
        return Err(r.bad("of type `dynamic` needs heads wider than 2"));
    }
    Ok(RopeScaling::Dynamic { factor: r.positive("factor")?, max_position_embeddings: known.positions as f64 })
}

fn llama3(f: &Fields, r: &Fields, known: &Known) -> Result<RopeScaling> {
    let (low_freq_factor, high_freq_factor) = (r.positive("low_freq_factor")?, r.positive("high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        return Err(r.bad("`high_freq_factor` must be greater than `low_freq_factor`"));
    }
    Ok(RopeScaling::Llama3 {
        factor: r.positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: original(f, r, known)?,
    })
}

/// `factor`, or where it is null or `optional` and left out, how far the positions were stretched.
fn factor(r: &Fields, original: f64, known: &Known, optional: bool) -> Result<f64> {
    match r.raw("factor") {
        Some(Value::Null) => Ok(known.positions as f64 / original),
        None if optional => Ok(known.positions as f64 / original),
        _ => r.positive("factor"),
    }
}

fn yarn(f: &Fields, r: &Fields, known: &Known) -> Result<RopeScaling> {
    let original = original(f, r, known)?;
    let factor = factor(r, original, known, false)?;
    // Python's `or`: 0 is no value either.
    let number = |name: &str| Ok(r.number(name)?.filter(|x| *x != 0.0));
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let attention_factor = match (r.number("attention_factor")?, number("mscale")?, number("mscale_all_dim")?) {
        (Some(given), ..) => given,
        (None, Some(m), Some(all)) => scale(m) / scale(all),
        (None, ..) => scale(1.0),
    };
    let or = |name: &str, default: f64| match number(name)? {
        Some(_) => r.positive(name),
        None => Ok(default),
    };
    let (beta_fast, beta_slow) = (or("beta_fast", 32.0)?, or("beta_slow", 1.0)?);
    // Null is false to Python, though leaving the field out means true.
    let truncate = if r.has("truncate") { r.flag("truncate")? } else { true };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast,
        beta_slow,
        original_max_position_embeddings: original,
        truncate,
    })
}

fn longrope(f: &Fields, r: &Fields, known: &Known) -> Result<RopeScaling> {
    let original = original(f, r, known)?;
    let factor = factor(r, original, known, true)?;
    let attention_factor = match r.number("attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    Ok(RopeScaling::LongRope {
        short_factor: r.positives("short_factor", known.head_dim / 2)?,
        long_factor: r.positives("long_factor", known.head_dim / 2)?,
        attention_factor,
        original_max_position_embeddings: original,
    })
}

fn proportional(f: &Fields, r: &Fields) -> Result<RopeScaling> {
    let factor = if r.has("factor") { r.positive("factor")? } else { 1.0 };
    let part = turning_part(f, r)?;
    match part <= 1.0 {
        true => Ok(RopeScaling::Proportional { factor, part }),
        false => Err(f.bad(format!("`partial_rotary_factor` {part} is more than a head"))),
    }
}

/// Refuses what has no finite angle, at any position and in the narrowest type.
fn finite(r: &Fields, rope: &Rope, known: &Known) -> Result<()> {
    // Heads wider than this are a damaged file's claim, refused for their weights' size.
    if known.head_dim > 1 << 16 {
        return Ok(());
    }
    // YaRN divides by the base's logarithm.
    let logarithm = !matches!(rope.scaling, RopeScaling::Yarn { .. }) || rope.theta != 1.0;
    let fits = |x: f64| (x as f32).is_finite();
    let lengths = [1, known.positions, rope.turning_point().map_or(1, |n| n.saturating_add(1))];
    let angles = |length: usize| {
        rope.frequencies(known.head_dim, length).iter().all(|f| fits(*f) && fits(f * f64::from(i32::MAX)))
    };
    let factor = rope.attention_factor();
    if logarithm && factor > 0.0 && fits(factor) && lengths.into_iter().all(angles) {
        return Ok(());
    }
    Err(r.bad("makes a rotary embedding that is not finite: the numbers are out of range"))
}
