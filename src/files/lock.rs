//! Who writes a file: a lock that the system frees when its process ends, however it ends.

use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

/// A file that this process has, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Claim {
    _file: File,
}

impl Claim {
    /// Takes the file at `path`, which is there; `None` where another process has it.
    pub fn take(path: &Path) -> Result<Option<Self>> {
        if !std::fs::symlink_metadata(path).is_ok_and(|m| m.is_file()) {
            return Err(Error::file(path, "is not a regular file"));
        }
        // For writing: some network file systems lock nothing else.
        let file = File::options().append(true).open(path).map_err(Error::io(path, "open"))?;
        Ok(take(&file, path)?.then_some(Self { _file: file }))
    }
}

/// How long a lock is asked for: whoever looks whether a file is [`taken`] has it for a moment, and so has a process that was begun
/// while it was held, until it is another program.
const PATIENCE: Duration = Duration::from_millis(250);

/// Takes `file`, which was opened at `path`, until it is closed; false where another process has it.
///
/// A file system without locks (some network ones) is no error: there everybody may take it, and [`taken`] never says yes.
pub(crate) fn take(file: &File, path: &Path) -> Result<bool> {
    let until = Instant::now() + PATIENCE;
    let mut tried = file.try_lock();
    while matches!(tried, Err(TryLockError::WouldBlock)) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
        tried = file.try_lock();
    }
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e))
            if e.kind() == std::io::ErrorKind::Unsupported || e.raw_os_error() == Some(libc::ENOLCK) =>
        {
            Ok(true)
        }
        Err(TryLockError::Error(e)) => Err(Error::io(path, "lock")(e)),
    }
}

/// Whether `path` is a file that a living process has taken.
pub(crate) fn taken(path: &Path) -> bool {
    // Opened only if it is a file: opening a pipe waits for its other end.
    let file = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_file());
    // For writing: some network file systems lock nothing else.
    file && File::options()
        .append(true)
        .open(path)
        .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}
