//! Files that are named as sidecars.

use crate::error::{Error, Result};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The folder of a file; the present one where its path names none.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Files in `folder` that are named `prefix` and a hash, in order; none where there is no such folder.
pub(super) fn named(folder: &Path, prefix: &OsStr) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    if !folder.exists() {
        return Ok(all);
    }
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let path = entry.map_err(Error::io(folder, "list"))?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let hash = name.strip_prefix(prefix.as_encoded_bytes());
        if hash.is_some_and(|h| h.len() == 16 && h.iter().all(u8::is_ascii_hexdigit)) && path.is_file() {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}
