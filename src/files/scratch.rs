//! What nobody else sees: files without a name, gone with the process.

use crate::error::{Error, Result};
use crate::files::leftover;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A new file without a name on the disk of `folder`.
pub fn scratch_file(folder: &Path) -> Result<File> {
    tempfile::tempfile_in(folder).map_err(Error::io(folder, "create a temporary file in"))
}

/// A folder of [`scratch_folder`]; gone when dropped.
#[derive(Debug)]
pub struct ScratchFolder {
    folder: tempfile::TempDir,
    /// Says that it is a living process's.
    _held: Option<File>,
}

impl ScratchFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in it with all that comes `from` something that is read once; errors name that `whose`.
    pub fn fill(&self, name: &str, mut from: impl Read, whose: &Path) -> Result<PathBuf> {
        let path = self.path().join(name);
        let mut file = File::create_new(&path).map_err(Error::io(&path, "create"))?;
        let mut piece = vec![0; 1 << 18];
        loop {
            match from.read(&mut piece) {
                Ok(0) => return Ok(path),
                Ok(n) => file.write_all(&piece[..n]).map_err(Error::io(&path, "write"))?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(whose, "read")(e)),
            }
        }
    }
}

/// A new folder among the system's temporary ones, gone when dropped. Those of dead processes go now.
pub fn scratch_folder() -> Result<ScratchFolder> {
    let temporary = std::env::temp_dir();
    leftover::sweep_scratch(&temporary);
    let made = tempfile::Builder::new().prefix(&leftover::scratch_prefix()).tempdir_in(&temporary);
    let folder = made.map_err(Error::io(temporary, "make a folder in"))?;
    let _held = leftover::hold(folder.path());
    Ok(ScratchFolder { folder, _held })
}

/// Records that come in any order and are read back in that of their keys. They lie on the disk: a record takes the memory
/// of its key and 16 bytes.
#[derive(Debug)]
pub struct Spool<K> {
    file: BufWriter<File>,
    path: PathBuf,
    index: Vec<(K, u64, usize)>,
    end: u64,
}

impl<K: Ord> Spool<K> {
    /// An empty one, on the disk of `folder`; errors name `path`, which it is for.
    pub fn new(folder: &Path, path: &Path) -> Result<Self> {
        let file = BufWriter::with_capacity(1 << 18, scratch_file(folder)?);
        Ok(Self { file, path: path.to_owned(), index: Vec::new(), end: 0 })
    }

    /// Records so far.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Adds a record.
    pub fn put(&mut self, key: K, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path, "write"))?;
        self.index.push((key, self.end, bytes.len()));
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Hands every record to `to` in the order of the keys; equal ones in the order in which they came.
    pub fn drain(mut self, mut to: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.index.sort_by(|a, b| a.0.cmp(&b.0));
        let mut file = self.file.into_inner().map_err(|e| Error::io(&self.path, "write")(e.into_error()))?;
        let mut bytes = Vec::new();
        for (_, start, len) in &self.index {
            bytes.resize(*len, 0);
            let read = file.seek(SeekFrom::Start(*start)).and_then(|_| file.read_exact(&mut bytes));
            read.map_err(Error::io(&self.path, "read back"))?;
            to(&bytes)?;
        }
        Ok(())
    }
}
