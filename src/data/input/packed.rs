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
    what: &'static str,
    inner: R,
    /// Why it cannot be read on: a reader that failed once may say next that it is at its end.
    broken: Option<String>,
}

impl<R> Unpacked<R> {
    pub fn new(what: &'static str, inner: R) -> Self {
        Self { what, inner, broken: None }
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let why = match self.broken.clone() {
            Some(why) => why,
            None => match self.inner.read(buf) {
                Err(e) if e.kind() != std::io::ErrorKind::Interrupted => e.to_string(),
                read => return read,
            },
        };
        self.broken = Some(why.clone());
        Err(std::io::Error::other(BadStream { what: self.what, why }))
    }
}
