//! The folder of a path, and the one rule of durability.

use crate::error::{Error, Result};
use std::fs::File;
use std::path::Path;

/// Where `path` lies: `.` for a bare name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether both name the same file or folder, by whatever way.
pub(crate) fn is_same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Makes the names in `folder` survive the machine. Called after every rename into it, the files' own bytes being on the
/// disk already.
///
/// Errors: [`Error::Io`] for a disk that is broken or full. A file system that cannot do it (some network ones) is no
/// error: there the rename is in order with the file's data all the same.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match File::open(folder).and_then(|d| d.sync_all()) {
        Err(e) if matches!(e.kind(), StorageFull | QuotaExceeded) || e.raw_os_error() == Some(libc::EIO) => {
            Err(Error::io(folder, "write")(e))
        }
        _ => Ok(()),
    }
}
