//! What stands behind a path that the user named.

use crate::error::{Error, Result};
use crate::files::paths::folder_of;
use std::path::{Path, PathBuf};

/// As many as Linux follows.
const MOST_LINKS: usize = 40;

/// What stands behind a path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// This, which is no link. It may not exist.
    Path(PathBuf),
    /// A file that this process has open already: `/dev/stdout`, `/dev/fd/3`, `/proc/self/fd/3`.
    Descriptor,
}

/// Follows the links at the end of `path`: to replace what they name, and not them.
pub(crate) fn behind(path: &Path) -> Result<Behind> {
    let mut at = path.to_owned();
    for _ in 0..=MOST_LINKS {
        // No link, or nothing.
        let Ok(to) = std::fs::read_link(&at) else { return Ok(Behind::Path(at)) };
        let folder = folder_of(&at);
        // Such a link names its file in words (`pipe:[77]`) that are no path.
        if folder.canonicalize().is_ok_and(|f| f.starts_with("/proc") && f.ends_with("fd")) {
            return Ok(Behind::Descriptor);
        }
        at = folder.join(to);
    }
    Err(Error::file(path, "is a link that leads to itself; name a file"))
}
