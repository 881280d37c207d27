//! A file whole or not at all.

use crate::error::{Error, Result};
use crate::files::leftover;
use crate::files::paths::{folder_of, sync_folder};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file being written under a temporary name beside its place. Dropped, it is gone; committed, it has its name.
///
/// Not buffered: wrap it in a `BufWriter` for small writes.
#[derive(Debug)]
pub struct AtomicFile {
    temp: NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// The temporary sibling of `path`, whose folder must exist. `path` itself is touched by a commit alone.
    pub fn create(path: &Path) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        let prefix = leftover::file_prefix();
        builder.prefix(&prefix).suffix(leftover::FILE_SUFFIX);
        // Less the umask, as for any new file; the crate's own default keeps others out.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temp = builder.tempfile_in(folder_of(path)).map_err(Error::io(path, "create"))?;
        // Says that it is a living process's; where there are no locks, its number does.
        let _ = temp.as_file().try_lock();
        Ok(Self { temp, path: path.to_owned() })
    }

    /// The place that it will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of that place.
    pub fn folder(&self) -> &Path {
        folder_of(&self.path)
    }

    /// The file as it is now.
    pub fn file(&self) -> &File {
        self.temp.as_file()
    }

    /// Makes it durable and gives it its name, in place of a file (or a link) that had it: readers see the old or the new.
    pub fn commit(self) -> Result<()> {
        self.file().sync_all().map_err(Error::io(&self.path, "write"))?;
        self.temp.persist(&self.path).map_err(|e| Error::io(&self.path, "write")(e.error))?;
        sync_folder(folder_of(&self.path))
    }

    /// [`AtomicFile::commit`], but where anything has the name already that is an error of kind `AlreadyExists`, and the
    /// other stays.
    pub fn commit_new(self) -> Result<()> {
        self.file().sync_all().map_err(Error::io(&self.path, "write"))?;
        self.temp.persist_noclobber(&self.path).map_err(|e| Error::io(&self.path, "create")(e.error))?;
        sync_folder(folder_of(&self.path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.temp.as_file_mut().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.temp.as_file_mut().seek(to)
    }
}

/// Writes a whole file, in place of one that may be there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    filled(path, bytes)?.commit()
}

/// Writes a whole file under a name that nothing may have.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    filled(path, bytes)?.commit_new()
}

fn filled(path: &Path, bytes: &[u8]) -> Result<AtomicFile> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(Error::io(path, "write"))?;
    Ok(file)
}
