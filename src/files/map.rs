//! Files read where they lie, as memory.

use crate::error::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

/// The bytes of a file, read from it as they are first looked at.
///
/// That nobody truncates or changes the file meanwhile cannot be checked; it is the documented rule of what reads shards
/// and weights so. A read beyond a new end is a signal that ends the process.
#[derive(Debug)]
pub struct Map(Mmap);

impl Map {
    /// Maps `file`, which was opened at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] where the system refuses.
    pub fn new(path: &Path, file: &File) -> Result<Map> {
        // SAFETY: the mapping is only read; that nobody changes the file is the rule above.
        let map = unsafe { Mmap::map(file) };
        map.map(Map).map_err(Error::io(path, "map"))
    }

    /// Gives the pages under `range` back to the system; read again, they come from its cache.
    #[cfg(unix)]
    pub fn release(&self, range: Range<usize>) {
        // SAFETY: a shared mapping of a file that is never written through: dropped pages read the same again. A failure
        // leaves them where they are, which costs memory alone.
        let _ = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
    /// Gives the pages under `range` back to the system, where that can be asked for.
    #[cfg(not(unix))]
    pub fn release(&self, _: Range<usize>) {}
}

impl Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
