//! A folder whole or not at all: made beside its place under another name, then renamed.

use crate::error::{Error, Result};
use crate::files::leftover::{hold, sweep_folders};
use crate::files::links::{Behind, behind};
use crate::files::paths::{folder_of, sync_folder};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder being filled; removed on drop unless committed, with the folders that were made for it.
#[derive(Debug)]
pub struct AtomicFolder {
    temp: PathBuf,
    out: PathBuf,
    overwrite: bool,
    done: bool,
    /// Says that it is a living process's.
    _held: Option<fs::File>,
    // Dropped after `drop` has removed what lies in them.
    made: MadeFolders,
}

impl AtomicFolder {
    /// Makes the temporary sibling of `out`; of the folder behind it, where `out` is a link. Errors: `out` is a file, or a
    /// folder that holds anything, unless `overwrite`.
    pub fn create(out: &Path, overwrite: bool) -> Result<Self> {
        if let Ok(Behind::Path(real)) = behind(&out.components().collect::<PathBuf>())
            && let Some(name) = real.file_name()
        {
            sweep_folders(folder_of(&real), &name.to_string_lossy());
        }
        match fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
            Ok(true) if !overwrite => {
                let why = "exists and is not empty; give another `options.out`, or `options.overwrite` to replace it";
                return Err(Error::file(out, why));
            }
            Err(_) if out.exists() => {
                return Err(Error::file(out, "exists and is not a folder; give another `options.out`"));
            }
            _ => {}
        }
        // Without a slash at the end, which would make a link the folder that it names.
        let Behind::Path(out) = behind(&out.components().collect::<PathBuf>())? else {
            return Err(Error::file(out, "exists and is not a folder; give another `options.out`"));
        };
        let name = out.file_name().ok_or_else(|| Error::file(&out, "cannot be an output folder; give it a name"))?;
        let parent = folder_of(&out);
        let made = MadeFolders::make(parent)?;
        for attempt in 0.. {
            let temp = parent.join(format!(".{}.{}-{attempt}.tmp", name.to_string_lossy(), std::process::id()));
            match fs::create_dir(&temp) {
                Ok(()) => {
                    let _held = hold(&temp);
                    return Ok(Self { temp, out, overwrite, done: false, _held, made });
                }
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

    /// Puts the file `name` of the folder that is to be replaced into this one too: another name of the same bytes where the
    /// disk can do that, else a copy.
    pub fn carry(&self, name: &str) -> Result<()> {
        let (from, to) = (self.out.join(name), self.temp.join(name));
        match fs::hard_link(&from, &to) {
            Ok(()) => Ok(()),
            Err(_) => fs::copy(&from, &to).map(drop).map_err(Error::io(&from, "copy")),
        }
    }

    /// An error about a file in it under the name that the file would have had: nobody knows the other.
    pub fn as_named(&self, e: Error) -> Error {
        // By its parts: joined to nothing, a path gets a slash at its end.
        let named = |path: PathBuf| match path.strip_prefix(&self.temp) {
            Ok(rest) => self.out.iter().chain(rest).collect(),
            Err(_) => path,
        };
        match e {
            Error::Io { path, doing, source } => Error::Io { path: named(path), doing, source },
            Error::File { path, why } => Error::File { path: named(path), why },
            e => e,
        }
    }

    /// Puts the folder in its place, in place of an older one. Errors: what is there came meanwhile.
    pub fn commit(mut self) -> Result<()> {
        sync_folder(&self.temp)?;
        let mut old = None;
        if self.overwrite && self.out.exists() {
            let aside = self.temp.with_extension("old");
            fs::rename(&self.out, &aside).map_err(Error::io(&self.out, "replace"))?;
            old = Some(aside);
        }
        // Takes the place of nothing, or of an empty folder.
        if let Err(e) = fs::rename(&self.temp, &self.out) {
            if let Some(aside) = old {
                let _ = fs::rename(aside, &self.out); // put the old one back; the error below is the one to report
            }
            return Err(Error::io(&self.out, "create")(e));
        }
        self.done = true;
        self.made.keep();
        sync_folder(folder_of(&self.out))?;
        match old {
            Some(aside) => fs::remove_dir_all(&aside).map_err(Error::io(&aside, "remove")),
            None => Ok(()),
        }
    }
}

impl Drop for AtomicFolder {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.temp);
        }
    }
}

/// Folders that did not exist before. On drop those that are empty go again, unless they are to stay.
#[derive(Debug)]
pub struct MadeFolders {
    /// The deepest first.
    made: Vec<PathBuf>,
}

impl MadeFolders {
    /// Makes `path` and the folders that it lies in.
    pub fn make(path: &Path) -> Result<Self> {
        let missing = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        let made = missing.map(Path::to_owned).collect();
        fs::create_dir_all(path).map_err(Error::io(path, "create the folder"))?;
        Ok(Self { made })
    }

    /// None: what is there stays.
    pub(crate) fn none() -> Self {
        Self { made: Vec::new() }
    }

    /// They stay from now on.
    pub fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for path in &self.made {
            // One that holds something is not empty, and stays.
            let _ = fs::remove_dir(path);
        }
    }
}

/// Makes `path` and the folders that it lies in, where they are missing; they stay.
pub fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io(path, "create"))
}

/// Takes a file away.
pub fn remove_file(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(Error::io(path, "remove"))
}

/// Refuses a file, or a folder that holds anything: said before the work, not after it.
pub fn refuse_occupied(path: &Path) -> Result<()> {
    let why = match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            Some(_) => "the output folder exists and is not empty; name a new one or remove it",
            None => return Ok(()),
        },
        Err(_) if path.is_file() => "is a file; name a new folder",
        Err(_) if path.is_dir() => "exists and cannot be read; name a new folder",
        Err(_) if path.exists() => "is no folder; name a new one",
        Err(_) if path.is_symlink() => "is a link that leads nowhere; name a new folder",
        Err(_) => return Ok(()),
    };
    Err(Error::file(path, why))
}
