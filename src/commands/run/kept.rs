//! What calls before this one made, by the manifest that they left, and whether it is still that.

use super::chain::Link;
use crate::error::{Error, Result};
use crate::files::{self, MOST_JSON};
use crate::recipe::{Entry, Inputs, Kind, Manifest, Unread};
use crate::warn;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

/// Most bytes of a report that are read.
const MOST_PAGE: u64 = 1 << 30;

/// What of a model's or an adapter's folder says which it is.
const CONFIGS: [&str; 2] = ["config.json", "adapter_config.json"];

/// The hashes that are known of results, and what changed since.
#[derive(Default)]
pub(super) struct Kept {
    /// Of results, by their names, what they held when they were made.
    known: BTreeMap<String, Inputs>,
    /// Results that are to be made again, by their names, and the stage whose result they were made from and is another now.
    stale: BTreeMap<String, Kind>,
}

impl Kept {
    /// As the manifest at `path` says; nothing where there is none, or one that says nothing, which is told. Errors: one that a newer
    /// program wrote, or that cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        if path.symlink_metadata().is_err() {
            return Ok(Self::default());
        }
        let read = match files::read_text(path, MOST_JSON) {
            Ok(text) => Manifest::parse(&text),
            Err(Error::File { why, .. }) => Err(Unread::Garbage(why)),
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::InvalidData => {
                Err(Unread::Garbage(source.to_string()))
            }
            Err(e) => return Err(e),
        };
        match read {
            Ok(manifest) => {
                let stages = manifest.stages.into_iter().map(|entry| (entry.result, entry.outputs));
                Ok(Self { known: manifest.earlier.into_iter().chain(stages).collect(), stale: manifest.stale })
            }
            Err(Unread::Newer(version)) => Err(Error::file(
                path,
                format!(
                    "is a manifest of version {version}, this program reads {}: go on with the program that wrote it, or name a new folder",
                    Manifest::VERSION
                ),
            )),
            Err(Unread::Garbage(why)) => {
                warn!(
                    "{}: cannot be understood ({why}): it is written anew, and what is there is taken as it is",
                    path.display()
                );
                Ok(Self::default())
            }
        }
    }

    /// Why the result of `link`, which holds `outputs`, is not what was made; `None`: it is, as far as anybody knows.
    pub fn damage(&self, link: &Link, outputs: &Inputs) -> Option<String> {
        if let Some(why) = self.staleness(link) {
            return Some(why);
        }
        let known = self.known.get(&link.name());
        let other = known.into_iter().flatten().find(|(name, sum)| outputs.get(*name) != Some(*sum));
        match other {
            Some((name, _)) if name.is_empty() => Some("is not what was written".to_owned()),
            Some((name, _)) if outputs.contains_key(name) => Some(format!("has a {name} that is not what was written")),
            Some((name, _)) => Some(format!("has lost its {name}")),
            None => part(link, outputs),
        }
    }

    /// Why the result of `link`, be it through or half done, is of no use any more.
    pub fn staleness(&self, link: &Link) -> Option<String> {
        let of = self.stale.get(&link.name())?;
        Some(format!("was made from another result of [{of}] than is there now"))
    }

    /// The result of `link` is about to be made; whether it was stale.
    pub fn renew(&mut self, link: &Link) -> bool {
        self.stale.remove(&link.name()).is_some()
    }

    /// Keeps what the result of `link`, one of `links`, holds. Where that is something else than it was, what was made from it is stale:
    /// that of other options too, which may have been.
    pub fn add(&mut self, (link, links): (&Link, &[Link]), outputs: &Inputs) {
        let was = self.known.insert(link.name(), outputs.clone());
        if was.iter().flatten().all(|(name, sum)| outputs.get(name) == Some(sum)) {
            return;
        }
        let kind = link.stage.kind;
        for of in links.iter().filter(|of| of.reads.contains(&kind)) {
            let begins = format!("{}-", of.stage.kind);
            let earlier = self.known.keys().filter(|name| name.starts_with(&begins)).cloned();
            let all: Vec<String> = earlier.chain([of.name()]).collect();
            self.stale.extend(all.into_iter().map(|name| (name, kind)));
        }
    }

    /// What is to be made again, for the manifest: whoever goes on knows it by that.
    pub fn stale(&self) -> BTreeMap<String, Kind> {
        self.stale.clone()
    }

    /// What is known of results that are none of `stages`.
    pub fn earlier(&self, stages: &[Entry]) -> BTreeMap<String, Inputs> {
        let of_none = |(name, _): &(&String, &Inputs)| !stages.iter().any(|entry| entry.result == **name);
        self.known.iter().filter(of_none).map(|(name, outputs)| (name.clone(), outputs.clone())).collect()
    }
}

/// What every result has, whatever is known of it, and this one has not.
fn part(link: &Link, outputs: &Inputs) -> Option<String> {
    let size = |name: &str| link.result.join(name).metadata().map_or(0, |m| m.len());
    let folder = |end: &str, what: &str| match outputs.keys().find(|name| size(name) == 0) {
        Some(name) => Some(format!("has an empty {name}")),
        None if !outputs.keys().any(|name| name.ends_with(end)) => Some(format!("has no {what}")),
        None => None,
    };
    match link.stage.kind {
        Kind::Pack => folder(".pref", "shard"),
        Kind::Sft | Kind::Dpo | Kind::Export | Kind::Quantize => folder(".safetensors", "weights").or_else(|| {
            let none = CONFIGS.iter().all(|name| size(name) == 0);
            none.then(|| format!("has no {}", CONFIGS.join(" or ")))
        }),
        Kind::Reference => (link.result.metadata().map_or(0, |m| m.len()) == 0).then(|| "is empty".to_owned()),
        Kind::Eval => {
            let text = files::read_text(&link.result, MOST_JSON).unwrap_or_default();
            let whole = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            (!whole).then(|| "is no JSON".to_owned())
        }
        Kind::Report => {
            let page = files::read(&link.result, MOST_PAGE).unwrap_or_default();
            (!page.trim_ascii_end().ends_with(b"</html>")).then(|| "is no whole page".to_owned())
        }
    }
}
