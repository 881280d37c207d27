//! A file that the user named for a result.

use crate::error::{Error, Result};
use crate::files::atomic::AtomicFile;
use crate::files::leftover::sweep_files;
use crate::files::links::{Behind, behind};
use crate::files::paths::folder_of;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const BUFFER: usize = 1 << 18;

/// Where a result goes. It is opened before the work that makes the result, so that what cannot be written to is known.
///
/// A new file, and one that may be overwritten, appear whole or not at all. Behind a link they do so where the link leads,
/// and the link stays. A device, a pipe and a file that this process has open already (`/dev/fd/3`) are written to as the
/// result comes, and are never replaced.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    overwrite: bool,
    to: To,
}

#[derive(Debug)]
enum To {
    File(BufWriter<AtomicFile>),
    Stream(BufWriter<File>),
}

impl Target {
    /// Opens `path`; a pipe when there is a reader. Errors: a folder, a file that is there unless `overwrite`, a path that
    /// no file can be written to.
    pub fn open(path: &Path, overwrite: bool) -> Result<Self> {
        let open = |to| Self { path: path.to_owned(), overwrite, to };
        let stream = |file: std::io::Result<File>| {
            let file = file.map_err(Error::io(path, "open"))?;
            Ok(open(To::Stream(BufWriter::with_capacity(BUFFER, file))))
        };
        let at = match behind(path)? {
            Behind::Path(at) => at,
            // After what is in it already, as if it were written to directly.
            Behind::Descriptor => return stream(File::options().append(true).open(path)),
        };
        if path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(Error::file(path, "is a folder; name a file"));
        }
        let folder = folder_of(&at);
        if folder.exists() && !folder.is_dir() {
            return Err(Error::file(path, format!("{} is no folder; name another", folder.display())));
        }
        if !folder.is_dir() {
            return Err(Error::file(path, format!("its folder {} does not exist; make it first", folder.display())));
        }
        match fs::symlink_metadata(&at) {
            #[cfg(unix)]
            Ok(m) if std::os::unix::fs::FileTypeExt::is_socket(&m.file_type()) => {
                return Err(Error::file(path, "is a socket; name a file"));
            }
            Ok(m) if !m.is_file() => return stream(File::options().write(true).open(&at)),
            Ok(_) if !overwrite => return Err(exists(path)),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(path, "open")(e)),
            _ => {}
        }
        sweep_files(folder);
        let file = AtomicFile::create(&at)?;
        Ok(open(To::File(BufWriter::with_capacity(BUFFER, file))))
    }

    /// As named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder on the disk that the result goes to, where it goes to one.
    pub fn folder(&self) -> Option<&Path> {
        match &self.to {
            To::File(file) => Some(file.get_ref().folder()),
            To::Stream(_) => None,
        }
    }

    /// Adds to the result.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.to {
            To::File(to) => to.write_all(bytes),
            To::Stream(to) => to.write_all(bytes),
        };
        written.map_err(Error::io(&self.path, "write"))
    }

    /// The result is complete. Errors: as of [`Target::open`], for what came since.
    pub fn commit(self) -> Result<()> {
        let failed = Error::io(&self.path, "write");
        let file = match self.to {
            To::Stream(mut to) => return to.flush().map_err(failed),
            To::File(to) => to.into_inner().map_err(|e| failed(e.into_error()))?,
        };
        let there = fs::symlink_metadata(file.path());
        match self.overwrite {
            true if there.is_ok_and(|m| !m.is_file()) => {
                Err(Error::file(&self.path, "was a file or nothing before, and is neither now; name another"))
            }
            true => file.commit(),
            false => file.commit_new().map_err(|e| match e {
                Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => exists(&self.path),
                e => e,
            }),
        }
    }
}

fn exists(path: &Path) -> Error {
    Error::file(path, "exists; name another file, or `options.overwrite` to replace it")
}
