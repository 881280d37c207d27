//! `fix_mistral_regex`: some of Mistral's tokenizers were published with a wrong pattern, and transformers puts the right one in
//! its place where `tokenizer_config.json` asks for that.

use super::class::truthy;
use super::files::Files;
use crate::error::Result;
use serde_json::{Map, Value, json};

/// What asks for it.
const FLAG: &str = "fix_mistral_regex";
/// What says that it was done, where no `config.json` stands beside: in folders of shards.
const DONE: &str = "fusedpo_mistral_regex";
/// Smaller vocabularies are not Mistral's.
const MORE_THAN: usize = 100_000;
const TYPES: [&str; 5] = ["mistral", "mistral3", "voxtral", "ministral", "pixtral"];
/// Mistral's pattern.
const PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenizer that transformers 5.23 puts in the place of `own`, in a tokenizer of `tokens` tokens, added ones
/// included; `None` where it leaves it. Errors: what transformers would not load.
pub(super) fn mended(files: &Files, own: &Value, tokens: usize) -> Result<Option<Value>> {
    if tokens <= MORE_THAN || own.is_null() || !(asked(&files.config, FLAG) && applies(files)? || done(files)) {
        return Ok(None);
    }
    let split = json!({"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false});
    let steps = match (own["type"].as_str(), own["pretokenizers"].as_array()) {
        (Some("Sequence"), Some(steps)) => {
            if steps.is_empty() {
                let why = format!("its pre_tokenizer is a Sequence of nothing, in which `{FLAG}` has nothing to mend");
                return Err(files.bad("tokenizer.json", why));
            }
            std::iter::once(&split).chain(&steps[1..]).cloned().collect()
        }
        (Some("Metaspace"), _) => {
            let bytes =
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
            vec![split, bytes]
        }
        _ => vec![split, own.clone()],
    };
    Ok(Some(json!({"type": "Sequence", "pretokenizers": steps})))
}

/// Notes in a `tokenizer_config.json` for a folder of shards that it was done.
pub(super) fn note(config: &mut Map<String, Value>) {
    config.insert(DONE.into(), true.into());
}

fn asked(config: &Map<String, Value>, key: &str) -> bool {
    config.get(key).is_some_and(truthy)
}

fn done(files: &Files) -> bool {
    files.model.is_empty() && files.config.get(DONE) == Some(&true.into())
}

/// Whether the model beside is one of Mistral's, written by a version of transformers that did not know better.
fn applies(files: &Files) -> Result<bool> {
    if files.model.is_empty() {
        return Ok(false);
    }
    let version = files.model.get("transformers_version").filter(|v| truthy(v));
    if let Some(version) = version {
        let known = version.as_str().and_then(before_5);
        let bad = || files.bad("config.json", format!("`transformers_version` is {version}, which is no version"));
        if !known.ok_or_else(bad)? {
            return Ok(false);
        }
    }
    Ok(match files.model.get("model_type") {
        None | Some(Value::Null) => true,
        Some(model_type) => model_type.as_str().is_some_and(|t| TYPES.contains(&t)),
    })
}

/// Whether a version, as Python's packages have them, is one before 5.0.0; `None` where it is none.
fn before_5(version: &str) -> Option<bool> {
    let version = version.trim().to_ascii_lowercase();
    let version = version.strip_prefix('v').unwrap_or(&version);
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    let (release, rest) = version.split_at(end);
    let numbers =
        release.trim_end_matches('.').split('.').map(|n| n.parse::<u64>().ok()).collect::<Option<Vec<_>>>()?;
    let rest = rest.trim_start_matches(['-', '_', '.']);
    let early = ["a", "b", "c", "rc", "alpha", "beta", "pre", "preview", "dev"];
    let word = rest.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    let is_5 = numbers[0] == 5 && numbers[1..].iter().all(|n| *n == 0);
    match word {
        "" if rest.is_empty() || rest.starts_with('+') => Some(numbers[0] < 5),
        "post" | "rev" | "r" => Some(numbers[0] < 5),
        _ if early.contains(&word) => Some(numbers[0] < 5 || is_5),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_order() {
        for before in
            ["4", "4.57.1", "4.57.0.dev0", "v4.2", "5.0.0rc1", "5.0.0.dev0", "5.0.0-beta2", "5rc0", "0.1+cu12"]
        {
            assert_eq!(before_5(before), Some(true), "{before}");
        }
        for later in ["5.0.0", "5", "5.1.0", "5.0.1rc1", "5.23.0", "10.0", "5.0.0.post1", "5.0.0+local"] {
            assert_eq!(before_5(later), Some(false), "{later}");
        }
        for none in ["abc", "", "4.x", "..", "-1", "4.5 or so"] {
            assert_eq!(before_5(none), None, "{none}");
        }
    }
}
