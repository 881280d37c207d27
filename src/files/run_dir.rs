//! The folder of a run.

use crate::error::{Error, Result};
use crate::files::atomic::write_new;
use crate::files::folder::{MadeFolders, refuse_occupied};
use crate::files::lock;
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";

/// A new folder that a run fills: `config.toml`, `metrics.jsonl`, and in the end the model. One process at a time has it.
///
/// Dropped before its first line of metrics is written, it takes its files away again: a run that could not begin leaves nothing,
/// and the same command can be given again.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Open, and locked, as long as the run lives.
    metrics: File,
    begun: bool,
    // Dropped after `drop` has removed what lies in them.
    made: MadeFolders,
}

impl RunDir {
    /// Makes `path`, which must not exist or be empty, and writes `config.toml`.
    pub fn create(path: &Path, config: &str) -> Result<Self> {
        Self::refuse_taken(path)?;
        let made = MadeFolders::make(path)?;
        let metrics = new_file(&path.join(METRICS))?;
        // From here on its drop takes away what was made.
        let this = Self { path: path.to_owned(), metrics, begun: false, made };
        lock::take_new(&this.metrics, &path.join(METRICS))?;
        write_new(&path.join(CONFIG), config.as_bytes())?;
        Ok(this)
    }

    /// Refuses a folder that a run cannot fill, and says so where another is at it: before the work, not after it.
    pub fn refuse_taken(path: &Path) -> Result<()> {
        match lock::taken(&path.join(METRICS)) {
            true => Err(Error::file(path, "another run is writing to it; name a new folder")),
            false => refuse_occupied(path),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line to `metrics.jsonl`.
    pub fn log(&mut self, row: &Map<String, Value>) -> Result<()> {
        let line = serde_json::to_string(row).expect("a map of plain values") + "\n";
        self.metrics.write_all(line.as_bytes()).map_err(Error::io(self.path.join(METRICS), "write"))?;
        self.begun = true;
        self.made.keep();
        Ok(())
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.begun {
            // The error that ends the run is the one to report, whatever happens here.
            for name in [METRICS, CONFIG] {
                let _ = fs::remove_file(self.path.join(name));
            }
        }
    }
}

/// A file of a run: never one that is there, and never through a link.
fn new_file(path: &Path) -> Result<File> {
    File::options().append(true).create_new(true).open(path).map_err(Error::io(path, "create"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever can write to the folder could plant one after it was seen to be empty.
    #[test]
    #[cfg(unix)]
    fn a_planted_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, planted) = (dir.path().join("victim"), dir.path().join(METRICS));
        fs::write(&victim, "mine").unwrap();
        for target in [victim.as_path(), &dir.path().join("new")] {
            std::os::unix::fs::symlink(target, &planted).unwrap();
            let e = new_file(&planted).unwrap_err().to_string();
            assert!(e.contains("metrics.jsonl: cannot create: File exists"), "{e}");
            let e = write_new(&planted, b"x").unwrap_err().to_string();
            assert!(e.contains("metrics.jsonl: cannot create: File exists"), "{e}");
            assert!(planted.is_symlink() && !dir.path().join("new").exists());
            fs::remove_file(&planted).unwrap();
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
    }
}
