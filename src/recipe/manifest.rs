//! `manifest.json`: what each stage was made from, and by which command.

use super::file::Kind;
use super::hash::Inputs;
use serde::Serialize;

/// All of a recipe's stages.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
}

/// A stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// The file's content.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain values") + "\n"
    }
}
