//! Compressed text, and errors that say what it was.

use std::io::Read;

/// A compressed stream that cannot be read to its end.
#[derive(Debug, thiserror::Error)]
#[error("damaged {what} stream ({why})")]
pub(super) struct BadStream {
    /// The compression's name.
    pub what: &'static str,
    /// What its reader says.
    pub why: String,
}

/// Text that comes out of a compressed stream.
pub(super) struct Unpacked<R> {
    /// The compression's name.
    pub what: &'static str,
    /// Its reader.
    pub inner: R,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.inner.read(buf).map_err(|e| match e.kind() {
            std::io::ErrorKind::Interrupted => e,
            _ => std::io::Error::other(BadStream { what: self.what, why: e.to_string() }),
        })
    }
}
