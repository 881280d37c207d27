//! An output folder that appears whole or not at all: made beside its place under another name, then renamed.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// A folder being filled; removed on drop unless committed.
#[derive(Debug)]
pub struct OutputFolder {
    temp: PathBuf,
    out: PathBuf,
    done: bool,
}

impl OutputFolder {
    /// Makes the temporary sibling of `out`. Errors: `out` exists and is not an empty folder, unless `overwrite` and it is
    /// a folder of shards.
    pub fn create(out: &Path, overwrite: bool) -> Result<Self> {
        match std::fs::read_dir(out) {
            Ok(entries) => {
                let names: Vec<_> = entries.filter_map(|e| e.ok()).map(|e| e.file_name()).collect();
                let shards = names.iter().any(|n| Path::new(n).extension().is_some_and(|e| e == "pref"));
                if !names.is_empty() && !overwrite {
                    return Err(Error::file(
                        out,
                        "exists and is not empty; give another --out, or --overwrite to replace it",
                    ));
                }
                if !names.is_empty() && !shards {
                    return Err(Error::file(
                        out,
                        "is not a folder of shards, --overwrite leaves it alone; give another --out",
                    ));
                }
            }
            Err(_) if out.exists() => return Err(Error::file(out, "exists and is not a folder; give another --out")),
            Err(_) => {}
        }
        let name = out.file_name().ok_or_else(|| Error::file(out, "cannot be an output folder; give it a name"))?;
        let parent = match out.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).map_err(Error::io(parent, "create the folder"))?;
        for attempt in 0.. {
            let temp = parent.join(format!(".{}.{}-{attempt}.tmp", name.to_string_lossy(), std::process::id()));
            match std::fs::create_dir(&temp) {
                Ok(()) => return Ok(Self { temp, out: out.to_owned(), done: false }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(e) => return Err(Error::io(parent, "create a folder in")(e)),
            }
        }
        unreachable!("the loop returns")
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.temp
    }

    /// Puts the folder in its place, in place of an older one.
    pub fn commit(mut self) -> Result<()> {
        let mut old = None;
        if self.out.exists() {
            let aside = self.temp.with_extension("old");
            std::fs::rename(&self.out, &aside).map_err(Error::io(&self.out, "replace"))?;
            old = Some(aside);
        }
        if let Err(e) = std::fs::rename(&self.temp, &self.out) {
            if let Some(aside) = old {
                let _ = std::fs::rename(aside, &self.out); // put the old one back; the error below is the one to report
            }
            return Err(Error::io(&self.out, "create")(e));
        }
        self.done = true;
        match old {
            Some(aside) => std::fs::remove_dir_all(&aside).map_err(Error::io(&aside, "remove")),
            None => Ok(()),
        }
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_dir_all(&self.temp);
        }
    }
}
