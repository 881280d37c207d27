//! What decides a stage, as one hash: the program's version, the command with its options, the content of every file that they
//! name, and the hashes of the stages that it reads.

use super::file::Stage;
use crate::data::shard::format::hex;
use crate::error::{Error, Result};
use crate::files;
use crate::model::wanted::is_part;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use toml::Value;

/// Files and folders that a stage reads, by their paths, and the SHA-256 of their content.
pub type Inputs = BTreeMap<String, String>;

/// SHA-256 of a file's bytes; of a folder, of the names and hashes of all files below it.
pub fn content_sha256(path: &Path) -> Result<String> {
    content_of(path, &|_| true)
}

/// SHA-256 of the folder of a model or of an adapter: of what is read of it. What a run, or somebody, wrote beside decides nothing.
pub fn model_sha256(path: &Path) -> Result<String> {
    content_of(path, &is_part)
}

/// SHA-256 of a folder of shards. What pack said of them decides nothing.
pub fn data_sha256(path: &Path) -> Result<String> {
    content_of(path, &|name| name.ends_with(".pref"))
}

/// By the names of files, as they lie in the folder.
fn content_of(path: &Path, counts: &dyn Fn(&str) -> bool) -> Result<String> {
    if !path.is_dir() {
        return file_sha256(path);
    }
    let mut all = Vec::new();
    walk(path, &mut all)?;
    let name = |file: &Path| file.strip_prefix(path).unwrap_or(file).to_string_lossy().into_owned();
    let mut all: Vec<(String, PathBuf)> = all.into_iter().map(|file| (name(&file), file)).collect();
    all.retain(|(name, _)| counts(name));
    all.sort();
    let mut hash = Sha256::new();
    for (name, file) in &all {
        hash.update(format!("{}\0{name}\0{}\n", name.len(), file_sha256(file)?));
    }
    Ok(hex(&hash.finalize()))
}

fn walk(folder: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        // What stages write beside the shards that they read: no sidecar decides a result, and its name says what it is of.
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.contains(".pref.ref-") || (name.starts_with(".tmp-") && name.ends_with(".part")) {
            continue;
        }
        // A link to a folder may lead round in a circle.
        match path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            true => walk(&path, all)?,
            false if path.is_file() => all.push(path),
            false => {}
        }
    }
    Ok(())
}

fn file_sha256(path: &Path) -> Result<String> {
    let mut file = files::open(path).map_err(|e| e.doing("read"))?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece).map_err(Error::io(path, "read"))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&piece[..n]),
        }
    }
}

/// Where sidecars lie decides nothing.
pub const CACHE: &str = "cache";

/// The hash of a stage: `version` of the program, its options, its `inputs`, and the hashes of the stages `before` that it reads.
pub fn stage_sha256(version: &str, stage: &Stage, inputs: &Inputs, before: &[String]) -> String {
    let mut hash = Sha256::new();
    let deciding = stage.options.iter().filter(|(key, _)| *key != CACHE);
    let options: Vec<String> = deciding.map(|(key, value)| format!("{key} = {}", canonical(value))).collect();
    let inputs = inputs.values().cloned().collect::<Vec<_>>();
    for part in [&[version.to_owned(), stage.kind.to_string()][..], &options, &inputs, before] {
        hash.update((part.len() as u64).to_le_bytes());
        for text in part {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
    }
    hex(&hash.finalize())
}

/// Its value, in one form.
fn canonical(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("[{}]", list.iter().map(canonical).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Kind;

    #[test]
    fn every_part_decides() {
        let options = |text: &str| text.parse::<toml::Table>().unwrap();
        let stage = Stage { kind: Kind::Dpo, options: options("beta = 0.1\nmodel = 'm'") };
        let inputs: Inputs = [("m".to_owned(), "aa".to_owned())].into();
        let before = vec!["bb".to_owned()];
        let base = stage_sha256("1", &stage, &inputs, &before);
        assert_eq!(base, stage_sha256("1", &stage.clone(), &inputs.clone(), &before));
        let changed = [
            stage_sha256("2", &stage, &inputs, &before),
            stage_sha256("1", &Stage { kind: Kind::Sft, ..stage.clone() }, &inputs, &before),
            stage_sha256(
                "1",
                &Stage { options: options("beta = 0.2\nmodel = 'm'"), ..stage.clone() },
                &inputs,
                &before,
            ),
            stage_sha256("1", &stage, &[("m".to_owned(), "ab".to_owned())].into(), &before),
            stage_sha256("1", &stage, &Inputs::new(), &["aa".to_owned(), "bb".to_owned()]),
            stage_sha256("1", &stage, &inputs, &[]),
        ];
        for (i, one) in changed.iter().enumerate() {
            assert!(*one != base && !changed[..i].contains(one), "{i}");
        }
    }

    #[test]
    fn content_is_names_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str| content_sha256(&dir.path().join(name)).unwrap();
        let write = |name: &str, bytes: &str| files::write(&dir.path().join(name), bytes.as_bytes()).unwrap();
        files::make_folder(&dir.path().join("a/b")).unwrap();
        write("a/b/x", "1");
        let one = of("a");
        // Of a file the sum that others print.
        assert_eq!(of("a/b/x"), "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b");
        write("a/b/x.pref.ref-0", "beside");
        assert_eq!(of("a"), one);
        write("a/b/x", "2");
        let two = of("a");
        write("a/b/x", "1");
        assert_eq!(of("a"), one);
        write("a/y", "");
        assert!(two != one && of("a") != one);
        assert!(content_sha256(&dir.path().join("none")).is_err());
        // Of a model, what is read of it.
        write("a/model.safetensors", "w");
        let (model, all) = (model_sha256(&dir.path().join("a")).unwrap(), of("a"));
        files::make_folder(&dir.path().join("a/checkpoint-3")).unwrap();
        ["a/run.json", "a/eval.json", "a/checkpoint-3/model.safetensors"].iter().for_each(|name| write(name, "x"));
        assert!(model_sha256(&dir.path().join("a")).unwrap() == model && of("a") != all);
        // Of data, the shards.
        write("a/b/train-00000.pref", "d");
        let data = data_sha256(&dir.path().join("a/b")).unwrap();
        write("a/b/report.json", "times");
        assert_eq!(data_sha256(&dir.path().join("a/b")).unwrap(), data);
        write("a/b/train-00000.pref", "e");
        assert_ne!(data_sha256(&dir.path().join("a/b")).unwrap(), data);
        for name in ["config.json", "tokenizer.json", "adapter_config.json", "model-00001-of-00002.safetensors"] {
            let before = model_sha256(&dir.path().join("a")).unwrap();
            write(&format!("a/{name}"), "x");
            assert_ne!(model_sha256(&dir.path().join("a")).unwrap(), before, "{name}");
        }
    }
}
