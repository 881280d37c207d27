//! `--input -`: rows from standard input, of every kind that a file may be. They are laid down first, as Parquet is read from its
//! end and what a text is shows in its first bytes.

use crate::error::{Error, Result};
use crate::files::{ScratchFolder, scratch_folder};
use std::path::{Path, PathBuf};

/// What errors call it.
const STDIN: &str = "standard input";

/// Input files, `-` among them at most once.
pub struct Inputs {
    /// Files to read.
    pub paths: Vec<PathBuf>,
    /// Gone with this.
    laid: Option<(ScratchFolder, PathBuf)>,
}

impl Inputs {
    /// Reads standard input to its end where `named` has it. Errors: it is named twice, empty, or the disk for temporary files is
    /// full.
    pub fn of(named: &[PathBuf]) -> Result<Self> {
        let stdin = |path: &&PathBuf| *path == Path::new("-");
        let mut paths = named.to_vec();
        match named.iter().filter(stdin).count() {
            0 => return Ok(Self { paths, laid: None }),
            1 => {}
            _ => return Err(Error::usage("`input` -: standard input is there once; name it once")),
        }
        let folder = scratch_folder()?;
        let path = folder.fill("stdin", std::io::stdin().lock(), Path::new(STDIN))?;
        paths.iter_mut().filter(|p| *p == Path::new("-")).for_each(|p| p.clone_from(&path));
        Ok(Self { paths, laid: Some((folder, path)) })
    }

    /// `e` about standard input, where it is about what was laid down of it.
    pub fn named(&self, e: Error) -> Error {
        let Some((_, laid)) = &self.laid else { return e };
        match e {
            Error::File { path, why } if path == *laid => Error::file(STDIN, why),
            Error::Io { path, doing, source } if path == *laid => Error::Io { path: STDIN.into(), doing, source },
            e => e,
        }
    }
}
