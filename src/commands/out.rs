//! `--out FILE`: what a command writes for the user, there or on stdout.

use super::effect;
use crate::error::{Error, Result};
use crate::files::{Spool, Target};
use crate::note;
use crate::say;
use std::io::{BufWriter, Stdout, Write};
use std::path::Path;

/// What errors call it.
pub const STDOUT: &str = "standard output";

/// Where a command's result goes.
pub enum Out {
    /// `-`, or any name of the file that stdout is.
    Stdout(BufWriter<Stdout>),
    /// Any other.
    File(Target),
}

impl Out {
    /// Opens it before the work, so that what cannot be written to is known. Errors: as of [`Target::open`]; nothing on stdout can be
    /// replaced.
    pub fn open(path: &Path, overwrite: bool) -> Result<Self> {
        if path == Path::new("-") || is_stdout(path) {
            if overwrite {
                return effect::refuse(
                    "overwrite",
                    "nothing is written but to stdout; give `out` FILE, or leave it out",
                );
            }
            return Ok(Self::Stdout(BufWriter::with_capacity(1 << 16, std::io::stdout())));
        }
        Ok(Self::File(Target::open(path, overwrite)?))
    }

    /// For lines that come in another order than they are to have: on the disk that they will go to, where there is one.
    pub fn spool<K: Ord>(&self, path: &Path) -> Result<Spool<K>> {
        let folder = match self {
            Self::File(target) => target.folder(),
            Self::Stdout(_) => None,
        };
        let temporary = std::env::temp_dir();
        folder.map_or_else(|| Spool::new(&temporary, &temporary), |folder| Spool::new(folder, path))
    }

    /// Adds to the result.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Stdout(to) => to.write_all(bytes).map_err(Error::io(STDOUT, "write")),
            Self::File(target) => target.put(bytes),
        }
    }

    /// Completes the result and says so with the place: on stdout, or on stderr where the result has stdout.
    pub fn finish(self, said: &str) -> Result<()> {
        match self {
            Self::Stdout(mut to) => {
                to.flush().map_err(Error::io(STDOUT, "write"))?;
                note!("{said}");
            }
            Self::File(target) => {
                let said = format!("{said}: {}", target.path().display());
                target.commit()?;
                say!("{said}");
            }
        }
        Ok(())
    }
}

/// Refuses `-` where a folder is written: a pipe holds none, and a folder of that name is what nobody wants.
pub fn refuse_stdout(folder: &Path) -> Result<()> {
    match folder == Path::new("-") {
        true => Err(Error::usage("`out` -: a folder is written, which standard output cannot hold; name a folder")),
        false => Ok(()),
    }
}

/// Whether stdout is open on that very file, as `/dev/stdout` is.
#[cfg(unix)]
fn is_stdout(path: &Path) -> bool {
    use std::os::{fd::AsFd, unix::fs::MetadataExt};
    let stdout = std::io::stdout().as_fd().try_clone_to_owned().map(std::fs::File::from);
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    let stdout = stdout.and_then(|f| f.metadata()).map(id);
    std::fs::metadata(path).map(id).is_ok_and(|file| stdout.is_ok_and(|stdout| file == stdout))
}

#[cfg(not(unix))]
fn is_stdout(_: &Path) -> bool {
    false
}
