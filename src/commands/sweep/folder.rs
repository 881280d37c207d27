//! The folder of a sweep: whose it is, and what it ends with.

use crate::error::{Error, Result};
use crate::files::{self, Claim, MOST_TEXT};
use crate::sweep::{Results, Spec, svg};
use std::path::{Path, PathBuf};

/// A copy of the file that asked for it, which is locked as long as a sweep is at work.
const SPEC: &str = "sweep.toml";

/// A sweep's folder, taken.
pub struct Folder {
    path: PathBuf,
    _claim: Claim,
}

impl Folder {
    /// Takes `path`: a new folder, or that of a sweep of the same file. Errors: another sweep is at work in it, or made it.
    pub fn open(path: &Path, spec: &Spec, text: &str) -> Result<Self> {
        let own = path.join(SPEC);
        let Some(claim) = files::own_folder(path, SPEC, text.as_bytes())? else {
            return Err(Error::file(path, "another sweep is at work in it; wait for it, or name a new folder"));
        };
        let was = files::read_text(&own, MOST_TEXT)?;
        if was.parse::<toml::Table>().ok().as_ref() != Some(&spec.table) {
            let why = "is of another sweep than the file that was given; name a new folder, or give this file to go on";
            return Err(Error::file(own, why));
        }
        Ok(Self { path: path.to_owned(), _claim: claim })
    }

    /// The folder itself.
    pub fn own(&self) -> &Path {
        &self.path
    }

    /// Of a run, or of what belongs to the sweep.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes table and picture.
    pub fn write(&self, results: &Results) -> Result<()> {
        files::write(&self.path("sweep.json"), results.json().as_bytes())?;
        files::write(&self.path("sweep.csv"), results.csv().as_bytes())?;
        match svg(results) {
            Some(svg) => files::write(&self.path("frontier.svg"), svg.as_bytes()),
            None => Ok(()),
        }
    }
}
