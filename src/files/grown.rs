//! A file that only grows, and what it held at some time.

use crate::error::{Error, Result};
use std::cell::RefCell;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// What a file that grows held at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMark {
    /// Bytes.
    pub bytes: u64,
    /// Their CRC-32.
    pub crc32: u32,
}

/// A file that is added to and cut, and never replaced.
#[derive(Debug)]
pub(super) struct Grown {
    path: PathBuf,
    /// Opened to be appended to.
    pub file: File,
    /// Length and CRC-32.
    written: RefCell<(u64, crc32fast::Hasher)>,
}

impl Grown {
    /// A new one: never one that is there, and never through a link.
    pub fn create(path: &Path) -> Result<Self> {
        let file =
            File::options().read(true).append(true).create_new(true).open(path).map_err(Error::io(path, "create"))?;
        Ok(Self::of(path, file))
    }

    /// One that is there, of which nothing is known yet: it is cut before it is added to. Errors: it cannot be written to.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::options().read(true).append(true).open(path).map_err(Error::io(path, "open"))?;
        Ok(Self::of(path, file))
    }

    fn of(path: &Path, file: File) -> Self {
        Self { path: path.to_owned(), file, written: RefCell::new((0, crc32fast::Hasher::new())) }
    }

    /// Adds `bytes` at its end.
    pub fn append(&self, bytes: &[u8]) -> Result<()> {
        (&self.file).write_all(bytes).map_err(Error::io(&self.path, "write"))?;
        let (len, crc) = &mut *self.written.borrow_mut();
        *len += bytes.len() as u64;
        crc.update(bytes);
        Ok(())
    }

    /// Makes it survive the machine.
    pub fn keep(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path, "write"))
    }

    /// What it holds.
    pub fn mark(&self) -> FileMark {
        let (bytes, crc) = &*self.written.borrow();
        FileMark { bytes: *bytes, crc32: crc.clone().finalize() }
    }

    /// Cuts what came after the first `bytes`. Errors: there are fewer.
    pub fn cut(&self, bytes: u64) -> Result<()> {
        let crc =
            crc_of_first(&self.path, bytes)?.ok_or_else(|| Error::file(&self.path, "was cut short while in use"))?;
        self.file.set_len(bytes).and_then(|()| self.file.sync_all()).map_err(Error::io(&self.path, "cut"))?;
        *self.written.borrow_mut() = (bytes, crc);
        Ok(())
    }
}

/// Whether the file at `path` still begins with what it held at `mark`.
pub(super) fn begins_with(path: &Path, mark: FileMark) -> Result<bool> {
    Ok(crc_of_first(path, mark.bytes)?.is_some_and(|crc| crc.finalize() == mark.crc32))
}

/// `None` where there are fewer bytes.
fn crc_of_first(path: &Path, bytes: u64) -> Result<Option<crc32fast::Hasher>> {
    let mut from = BufReader::new(File::open(path).map_err(Error::io(path, "read"))?.take(bytes));
    let (mut crc, mut seen, mut piece) = (crc32fast::Hasher::new(), 0, vec![0; 1 << 16]);
    loop {
        match from.read(&mut piece).map_err(Error::io(path, "read"))? {
            0 => return Ok((seen == bytes).then_some(crc)),
            n => {
                crc.update(&piece[..n]);
                seen += n as u64;
            }
        }
    }
}
