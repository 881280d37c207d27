//! What of a recipe can be known to be in vain before its first stage, with models and options alone.

use super::words::plain;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::files::paths::is_same;
use crate::model::ModelDir;
use crate::recipe::{CACHE, Kind, Recipe};
use crate::train::group::take;
use crate::train::options::{LossOptions, ReferenceOptions, Stage};
use crate::train::trained::Trained;
use std::path::Path;
use toml::{Table, Value};

fn text<'a>(table: &'a Table, key: &str) -> Option<&'a str> {
    table.get(key).and_then(Value::as_str)
}

/// Refuses the stage `reference`, as it is `given`, where `dpo` reads nothing of what it computes; without a model of its own `dpo` starts from
/// what stages before it `trained`. What is wrong with `dpo` itself is for its own stage to say.
pub(super) fn refuse_unread(recipe: &Recipe, given: &Table, trained: Option<&str>) -> Result<()> {
    let Some(dpo) = recipe.stage(Kind::Dpo) else { return Ok(()) };
    let refuse = |why: String| Err(Error::usage(format!("[reference]: no run reads it: {why}; leave it out")));
    // Of a measure that has this very reference, it is read there.
    let measured = recipe.stage(Kind::Eval).and_then(|eval| text(eval, "ref_model"));
    let own = ["ref_model", "model"].iter().find_map(|key| text(dpo, key)).or(trained);
    let own = text(given, "model").or(own);
    if measured.zip(own).is_some_and(|(of, own)| is_named(of, own)) {
        return Ok(());
    }
    let mut table = dpo.clone();
    let loss = take::<LossOptions>(&mut table).ok().and_then(|mut loss| loss.resolve().ok());
    if let Some(loss) = loss.filter(|loss| !loss.reference()) {
        return refuse(format!("the {} loss of [{}] has no reference", loss.name(), Stage::Dpo));
    }
    let of_dpo = take::<ReferenceOptions>(&mut table).unwrap_or_default();
    if of_dpo.sync_ref_model {
        return refuse("that of [dpo] follows the policy (`sync_ref_model`)".to_owned());
    }
    // What it takes from dpo is dpo's.
    for key in ["data", CACHE] {
        let (own, of_run) = (text(given, key), text(dpo, key));
        if own.is_some() && own != of_run && !own.zip(of_run).is_some_and(|(own, of_run)| is_named(own, of_run)) {
            return refuse(format!("its `{key}` is not that of [dpo]"));
        }
    }
    let Some(model) = text(given, "model") else { return Ok(()) };
    let (reads, key) = match text(dpo, "ref_model") {
        Some(of) => (Some(of), "ref_model"),
        None => (text(dpo, "model").or(trained), "model"),
    };
    // Of a name of the hub nobody knows what it is.
    let is_known = |of: &str| Path::new(of).is_dir() || Some(of) == trained;
    match reads {
        Some(reads) if is_known(model) && is_known(reads) && !is_named(model, reads) => {
            refuse(format!("its `model` is {model}, and that of [dpo] (`{key}`) is {reads}"))
        }
        _ => Ok(()),
    }
}

/// Whether both are written the same, or are the same folder here.
fn is_named(a: &str, b: &str) -> bool {
    plain(a) == plain(b) || is_same(Path::new(a), Path::new(b))
}

/// Refuses a `train` that no parameter of the model `model` has a match for, where that is here to be looked at.
pub(super) fn refuse_untrained(kind: Kind, given: &Table, model: Option<&str>) -> Result<()> {
    let (Some(train), Some(model)) = (text(given, "train"), model.map(Path::new)) else { return Ok(()) };
    if !model.is_dir() || train == "adapters" {
        return Ok(());
    }
    Trained::of(Some(train))?.check(&ModelDir::shape(model, None)?).map_err(|e| match e {
        Error::Usage(why) => Error::usage(format!("[{}]: {why}", kind.name())),
        e => e,
    })
}
