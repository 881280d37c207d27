//! `manifest.json`: what each stage was made from, and by which command.

use super::file::Kind;
use super::hash::Inputs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All of a recipe's stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this file's form.
    pub version: u32,
    /// The program's version.
    pub program: String,
    /// SHA-256 of the recipe's file.
    pub recipe_sha256: String,
    /// Whether every stage is there.
    pub complete: bool,
    /// The stages, in their order, as far as they are there.
    pub stages: Vec<Entry>,
    /// What other results hold that calls before this one made, by their names: [`Entry::outputs`] of what is no stage's now.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub earlier: BTreeMap<String, Inputs>,
    /// Results that are to be made again, by their names: each was made from one of this stage that came out as another since.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stale: BTreeMap<String, Kind>,
}

/// Why there is nothing to read in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It is of this version, which is a newer program's.
    Newer(u64),
    /// It is none: why, in words.
    Garbage(String),
}

/// A stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Which.
    pub stage: Kind,
    /// The hash of all that decides it.
    pub sha256: String,
    /// Its result, beside this file.
    pub result: String,
    /// The command that makes it, where the recipe was started.
    pub command: Vec<String>,
    /// What it reads from outside the recipe, with the SHA-256 of each.
    pub inputs: Inputs,
    /// The stages that it reads.
    pub reads: Vec<Kind>,
    /// SHA-256 of what it made: shards, weights, measures.
    pub outputs: Inputs,
}

impl Manifest {
    /// Of the form that this program writes.
    pub const VERSION: u32 = 1;

    /// Reads the file's content.
    pub fn parse(text: &str) -> Result<Self, Unread> {
        let garbage = |e: serde_json::Error| Unread::Garbage(e.to_string());
        let value: serde_json::Value = serde_json::from_str(text).map_err(garbage)?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            None => Err(Unread::Garbage("it has no `version`".into())),
            Some(version) if version > u64::from(Self::VERSION) => Err(Unread::Newer(version)),
            Some(_) => serde_json::from_value(value).map_err(garbage),
        }
    }

    /// The file's content.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain values") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let outputs = Inputs::from([("model.safetensors".to_owned(), "aa".to_owned())]);
        let entry = Entry {
            stage: Kind::Sft,
            sha256: "bb".into(),
            result: "sft-bb".into(),
            command: vec!["fusedpo".into()],
            inputs: Inputs::new(),
            reads: vec![Kind::Pack],
            outputs: outputs.clone(),
        };
        let mut all = Manifest {
            version: Manifest::VERSION,
            program: "1".into(),
            recipe_sha256: "cc".into(),
            complete: true,
            stages: vec![entry],
            earlier: BTreeMap::new(),
            stale: BTreeMap::new(),
        };
        assert!(!all.json().contains("earlier"));
        assert_eq!(Manifest::parse(&all.json()), Ok(all.clone()));
        all.earlier.insert("sft-dd".into(), outputs);
        all.stale.insert("dpo-ee".into(), Kind::Sft);
        assert_eq!(Manifest::parse(&all.json()), Ok(all.clone()));
        all.version = 99;
        assert_eq!(Manifest::parse(&all.json()), Err(Unread::Newer(99)));
        assert_eq!(Manifest::parse("{\"version\": 2, \"stages\": 3}"), Err(Unread::Newer(2)));
        for text in ["", "{", "[]", "{}", "{\"version\": 1}", "{\"version\": \"1\"}"] {
            assert!(matches!(Manifest::parse(text), Err(Unread::Garbage(why)) if !why.is_empty()), "{text}");
        }
    }
}
