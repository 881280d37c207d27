//! A model of the hub's: which of its files are wanted, brought into the cache.

use super::config::{CONFIG, GENERATION};
use super::dir::{NAMED_TEMPLATES, SIDE_FILES};
use super::source::{INDEX, SINGLE, shards_of};
use super::{json::parse_json, peft};
use crate::error::Result;
use crate::files::{Inside, MOST_JSON};
use crate::hub::{Fetched, Hub, Opened, Repo};
use crate::observe::Observe;

/// How a run of this program calls its options: `eval` looks into it.
const RUN: &str = "config.toml";

/// What of a model is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Its shape.
    Config,
    /// Its tokenizer and chat templates.
    Tokenizer,
    /// All that [`ModelDir`](super::ModelDir) opens.
    Model,
    /// An adapter in PEFT's form, with a tokenizer where it has one.
    Adapter,
}

/// Brings what is wanted of the model `repo` here. Weights come as safetensors alone: nothing else is ever downloaded.
///
/// Errors: as of [`Hub::open`] and [`Opened::fetch`], and a repository that is no model.
pub fn fetch(hub: &Hub, repo: &Repo, part: Wanted, observe: &mut dyn Observe) -> Result<Fetched> {
    let opened = hub.open(repo, observe)?;
    let mut names: Vec<&str> = opened.names().filter(|name| is_wanted(name, part)).collect();
    if part == Wanted::Model && opened.has(SINGLE) {
        names.push(SINGLE);
    } else if part == Wanted::Model && opened.has(INDEX) {
        names.push(INDEX);
    }
    check(&opened, part)?;
    opened.fetch(&names, observe)?;
    if part == Wanted::Model && !opened.has(SINGLE) && opened.has(INDEX) {
        let folder = Inside::new(&opened.folder())?;
        let path = folder.path(INDEX);
        let bytes = folder.read(INDEX, MOST_JSON)?.ok_or_else(|| folder.missing(INDEX))?;
        let (shards, _) = shards_of(&path, parse_json(&path, &bytes)?)?;
        let shards: Vec<&str> = shards.iter().map(String::as_str).collect();
        opened.fetch(&shards, observe)?;
    }
    Ok(opened.fetched())
}

/// Whether a file that is called so in a model's or an adapter's directory may be read of it: configuration, weights, tokenizer,
/// templates. What else lies there, such as a run's records, is no part of the model.
pub fn is_part(name: &str) -> bool {
    let weights = name.ends_with(".safetensors") && !name.contains('/');
    weights || name == INDEX || is_wanted(name, Wanted::Model) || is_wanted(name, Wanted::Adapter)
}

fn is_wanted(name: &str, part: Wanted) -> bool {
    let config = [CONFIG, GENERATION, RUN].contains(&name);
    let template = name.strip_prefix(NAMED_TEMPLATES).and_then(|n| n.strip_prefix('/'));
    let template = template.is_some_and(|n| n.ends_with(".jinja") && !n.contains('/'));
    let tokenizer = template || SIDE_FILES.contains(&name);
    match part {
        Wanted::Config => config || name == peft::CONFIG,
        // How a tokenizer is read depends on the model's configuration.
        Wanted::Tokenizer => tokenizer || name == CONFIG,
        Wanted::Model => config || tokenizer || name == peft::CONFIG,
        Wanted::Adapter => config || tokenizer || [peft::CONFIG, peft::WEIGHTS].contains(&name),
    }
}

/// Refuses what has not what is wanted before anything of it is downloaded. An adapter in a model's place is told apart where
/// it is opened.
fn check(opened: &Opened<'_>, part: Wanted) -> Result<()> {
    let lacks = |name: &str, what: &str, hint: &str| {
        if !opened.is_whole() {
            return Err(opened.lacks(name));
        }
        let mut some: Vec<&str> = opened.names().take(5).collect();
        if some.is_empty() {
            some.push("nothing");
        }
        Err(opened.error(format!("has no {name}, and is no {what}{hint}: it holds {}", some.join(", "))))
    };
    let is_adapter = opened.has(peft::CONFIG);
    match part {
        Wanted::Config | Wanted::Model if !opened.has(CONFIG) && !is_adapter => lacks(CONFIG, "model directory", ""),
        Wanted::Model if !is_adapter && !opened.has(SINGLE) && !opened.has(INDEX) => lacks(
            SINGLE,
            "model that can be read",
            " (weights are read as safetensors alone; transformers saves a model so)",
        ),
        Wanted::Tokenizer if !opened.has("tokenizer.json") => lacks("tokenizer.json", "tokenizer that can be read", ""),
        Wanted::Adapter if !is_adapter => lacks(peft::CONFIG, "adapter", ""),
        Wanted::Adapter if !opened.has(peft::WEIGHTS) => lacks(peft::WEIGHTS, "adapter that can be read", ""),
        _ => Ok(()),
    }
}
