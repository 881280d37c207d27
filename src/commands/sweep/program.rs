//! The scorer's program: where it is, and whether it can be started.

use crate::sweep::Spec;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The file that the program `word` is, by its path or found as the system finds it; `None`: there is none that can be started.
pub(super) fn found(word: &str) -> Option<PathBuf> {
    let starts = |file: &PathBuf| file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if word.contains('/') {
        return Some(PathBuf::from(word)).filter(starts);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(word)).find(starts)
}

/// Refuses a scorer that cannot be started, in words.
pub(super) fn refuse_unstartable(spec: &Spec) -> Result<(), String> {
    let Some(word) = spec.measure.scorer.as_ref().and_then(|words| words.first()) else { return Ok(()) };
    match found(word) {
        Some(_) => Ok(()),
        None if !word.contains('/') => {
            Err(format!("`scorer` {word}: no folder of PATH has such a program; name one that is there"))
        }
        None if Path::new(word).is_file() => {
            Err(format!("`scorer` {word}: is not executable; make it so, or name the program that reads it before it"))
        }
        None => Err(format!("`scorer` {word}: is not there; name a program that is")),
    }
}
