//! Who writes a file: a lock that the system frees when its process ends, however it ends.

use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

/// A file that this process has, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Claim {
    _held: Held,
}

impl Claim {
    /// Takes the file at `path`, which is there; `None` where another process has it.
    pub fn take(path: &Path) -> Result<Option<Self>> {
        if !std::fs::symlink_metadata(path).is_ok_and(|m| m.is_file()) {
            return Err(Error::file(path, "is not a regular file"));
        }
        // For writing: some network file systems lock nothing else.
        let file = File::options().append(true).open(path).map_err(Error::io(path, "open"))?;
        Ok(take(&file, path)?.then_some(Self { _held: Held(file) }))
    }
}

/// A file that was [taken](take), free again when this is dropped: to close it is not enough while a process that was begun
/// meanwhile has it open too, as it does until it is another program.
#[derive(Debug)]
pub(super) struct Held(pub File);

impl Drop for Held {
    fn drop(&mut self) {
        // Where there are no locks there is nothing to free.
        let _ = self.0.unlock();
    }
}

/// How long a lock is asked for: whoever looks whether a file is [`taken`] has it for a moment, and so has a process that was begun
/// by one that was killed while it held it, until it is another program.
const PATIENCE: Duration = Duration::from_millis(250);

/// Takes `file`, which was opened at `path`, until it is closed or [`Held`] lets it go; false where another process has it.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A child has what its parent held when it was begun, until it is another program.
    #[test]
    fn what_is_let_go_is_free_whoever_has_it_open() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let claim = Claim::take(file.path()).unwrap().unwrap();
        let child = claim._held.0.try_clone().unwrap();
        assert!(taken(file.path()));
        drop(claim);
        assert!(!taken(file.path()));
        drop(child);
    }
}
