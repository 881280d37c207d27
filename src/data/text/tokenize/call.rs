//! The one place where the tokenizers library is called.

use super::limits::Growth;
use crate::error::{Error, Result};
use crate::guard::guarded;
use std::path::Path;

/// Runs a call into the library for the tokenizer in `path`: it panics on some descriptions and on some texts (a regular
/// expression that gives up, an id that is not there), and that is an error like any other. `doing`: what it cannot do.
pub(super) fn whole<T>(path: &Path, doing: &str, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match guarded(call) {
        Some(Ok(done)) => Ok(done),
        Some(Err(e)) => Err(Error::file(path, format!("cannot {doing}: {}", one_line(&e.to_string())))),
        None => Err(Error::file(
            path,
            format!(
                "cannot {doing}: the tokenizers library gives up (a pattern that backtracks too far, or a damaged table)"
            ),
        )),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Refuses a text that the normalizer of the tokenizer in `path` makes too long.
pub(super) fn fits(path: &Path, growth: &Growth, text: &str) -> Result<()> {
    let fits = whole(path, "normalize", || Ok(growth.fits(text)))?;
    fits.map_err(|why| Error::file(path, format!("cannot tokenise: {why}")))
}
