//! The file of a recipe: a table a stage.

use crate::choice;
use crate::choice::Choice;
use crate::error::{Error, Result};
use crate::files::parse_toml;
use std::path::Path;
use toml::{Table, Value};

choice! {
    /// The stages, in the order in which they are taken.
    pub enum Kind: default Pack {
        /// Rows to shards.
        Pack = "pack",
        /// Fine-tuning on completions.
        Sft = "sft",
        /// The reference's log-probs.
        Reference = "reference",
        /// Preference optimisation.
        Dpo = "dpo",
        /// Measures of the result.
        Eval = "eval",
        /// A page about the runs.
        Report = "report",
        /// An adapter merged into its base.
        Export = "export",
        /// The result in four bits.
        Quantize = "quantize",
    }
}

impl Kind {
    /// The command that does it.
    pub fn command(self) -> &'static str {
        match self {
            Self::Export => "merge",
            other => other.name(),
        }
    }
}

/// A stage as it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Which.
    pub kind: Kind,
    /// Options of its command, by key; what they leave out may come from the stages before.
    pub options: Table,
}

/// The stages of a recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// In their order.
    pub stages: Vec<Stage>,
}

/// What a recipe says itself, and why nobody else does.
const OWN: [(&str, &str); 6] = [
    ("out", "a recipe names the folders of its stages"),
    ("resume", "a recipe's stages go on by themselves"),
    ("allow_other_numerics", "a stage's hash is of one way to compute"),
    ("config", "options of a recipe stand in it, so that its hashes are of all of them"),
    ("overwrite", "nothing of a recipe is replaced"),
    ("json", "a recipe keeps what its stages print"),
];

impl Recipe {
    /// Reads the text of `path`. Errors: no TOML, a stage that there is not, none at all, or an option that is the recipe's own.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        Self::of(parse_toml(path, text)?).map_err(|why| Error::file(path, why))
    }

    fn of(mut table: Table) -> Result<Self, String> {
        let mut stages = Vec::new();
        for kind in Kind::ALL.iter().copied() {
            match table.remove(kind.name()) {
                None => {}
                Some(Value::Table(options)) => {
                    if let Some((key, why)) = OWN.iter().find(|(key, _)| options.contains_key(*key)) {
                        return Err(format!("[{kind}]: `{key}`: {why}; leave it out"));
                    }
                    stages.push(Stage { kind, options });
                }
                Some(other) => return Err(format!("`{kind}` is {other}, not the table [{kind}]")),
            }
        }
        let names: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
        if let Some(key) = table.keys().next() {
            return Err(format!("`{key}` is none of the stages of a recipe: {}", names.join(", ")));
        }
        match stages.is_empty() {
            true => Err(format!("has no stage: give some of {}", names.join(", "))),
            false => Ok(Self { stages }),
        }
    }

    /// Options of a stage, if it is one of this recipe.
    pub fn stage(&self, kind: Kind) -> Option<&Table> {
        self.stages.iter().find(|s| s.kind == kind).map(|s| &s.options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Recipe, String> {
        Recipe::parse(Path::new("r.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn stages_come_in_their_order() {
        let recipe = of("[dpo]\nbeta = 0.2\n[pack]\ninput = 'x'\n[eval]\n").unwrap();
        assert_eq!(recipe.stages.iter().map(|s| s.kind).collect::<Vec<_>>(), [Kind::Pack, Kind::Dpo, Kind::Eval]);
        assert_eq!(recipe.stage(Kind::Dpo).unwrap()["beta"].as_float(), Some(0.2));
        assert!(recipe.stage(Kind::Sft).is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, want) in [
            ("[dpo", "line 1: "),
            ("", "has no stage"),
            ("[dop]\n", "`dop` is none of the stages"),
            ("dpo = 1", "not the table [dpo]"),
            ("[dpo]\nout = 'x'", "[dpo]: `out`: a recipe names"),
            ("[pack]\njson = true", "[pack]: `json`: "),
        ] {
            let why = of(text).unwrap_err();
            assert!(why.contains(want) && why.starts_with("r.toml: "), "{text}: {why}");
        }
    }
}
