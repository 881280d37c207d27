//! The one error type of the library. Every variant prints as one line, whatever it quotes: what, where, what to do.

use std::fmt::{self, Display, Write};
use std::path::{Path, PathBuf};

/// What can go wrong; see each variant for what its line says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer handed to an op has the wrong number of elements. Raised before anything is computed or launched.
    Shape {
        /// The op.
        op: &'static str,
        /// The argument.
        name: &'static str,
        /// Elements it has.
        got: usize,
        /// Elements it must have.
        want: usize,
        /// The product that gives `want`, in words.
        shape: String,
    },
    /// A file whose content cannot be used: damaged, of another kind, or inconsistent with another file.
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// The operating system refused to read or write.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// `open`, `read`, `write`, ...
        doing: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An option, or a combination of options, that cannot be honoured.
    Usage(String),
    /// A kernel that could not be launched.
    Launch {
        /// Its exported name.
        kernel: &'static str,
        /// The reason.
        why: String,
    },
    /// A device that is missing, too old, out of memory or lost.
    Device(String),
    /// Training cannot go on: non-finite values, or the step-0 proof failed.
    Training(String),
    /// Somebody who follows the work ended it in order, by [`Flow::Stop`](crate::observe::Flow::Stop) or
    /// [`Flow::Pause`](crate::observe::Flow::Pause), before it had its result. What is kept of it, and how it goes on.
    Stopped(String),
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = OneLine(f);
        match self {
            Error::Shape { op, name, got, want, shape } => {
                write!(f, "{op}: `{name}` has {got} elements, expected {want} = {shape}")
            }
            Error::File { path, why } => write!(f, "{}: {why}", path.display()),
            Error::Io { path, doing, source } => write!(f, "{}: cannot {doing}: {source}", path.display()),
            Error::Launch { kernel, why } => write!(f, "kernel `{kernel}`: {why}"),
            Error::Usage(why) | Error::Device(why) | Error::Training(why) | Error::Stopped(why) => f.write_str(why),
        }
    }
}

/// Keeps what is written in one line: a path, a column or a token may have line ends in its name.
struct OneLine<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(['\n', '\r']) {
            let inside = piece.trim_end_matches(['\n', '\r']);
            self.0.write_str(inside)?;
            self.0.write_str(match piece[inside.len()..].chars().next() {
                Some('\n') => "\\n",
                Some(_) => "\\r",
                None => "",
            })?;
        }
        Ok(())
    }
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::File`] about `path`.
    pub fn file(path: impl AsRef<Path>, why: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_owned(), why: why.into() }
    }

    /// For `map_err`: an [`Error::Io`] about `path`.
    pub fn io(path: impl AsRef<Path>, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { path, doing, source: plain(source) }
    }

    /// The same, but of an [`Error::Io`] what was to be done: `read the tokenizer` says more than `open`.
    pub fn doing(self, doing: &'static str) -> Self {
        match self {
            Error::Io { path, source, .. } => Error::Io { path, doing, source },
            e => e,
        }
    }

    /// An [`Error::Usage`].
    pub fn usage(why: impl Into<String>) -> Self {
        Error::Usage(why.into())
    }

    /// An [`Error::Stopped`].
    pub fn stopped(why: impl Into<String>) -> Self {
        Error::Stopped(why.into())
    }

    /// The process exit code: 2 for what the user can mend (options, files, paths, permissions, a full disk), 1 for the
    /// rest (failing hardware, non-finite training, bugs). What was stopped ends as Ctrl-C ends a program, by 130, unless
    /// whoever heard the signal knows another.
    pub fn exit_code(&self) -> u8 {
        use std::io::ErrorKind::*;
        match self {
            Error::Usage(_) | Error::File { .. } => 2,
            Error::Stopped(_) => 130,
            Error::Io { source, .. } => match source.kind() {
                NotFound | PermissionDenied | AlreadyExists | NotADirectory | IsADirectory | DirectoryNotEmpty
                | ReadOnlyFilesystem | StorageFull | QuotaExceeded | FileTooLarge | InvalidInput | InvalidData
                | InvalidFilename | CrossesDevices => 2,
                _ => 1,
            },
            _ => 1,
        }
    }
}

/// The system's own error, where `tempfile` wrapped it in one that names a temporary path: it means nothing to a user.
fn plain(e: std::io::Error) -> std::io::Error {
    let text = e.to_string();
    let code = text.split_once("(os error ").and_then(|(_, rest)| rest.split_once(") at path")?.0.parse().ok());
    code.map_or(e, std::io::Error::from_raw_os_error)
}

/// Checks that `name` has as many elements as the product of `dims`; overflow counts as a mismatch.
pub fn expect_len(op: &'static str, name: &'static str, got: usize, dims: &[(&str, usize)]) -> Result<()> {
    let want = dims.iter().try_fold(1usize, |n, (_, d)| n.checked_mul(*d));
    if want == Some(got) {
        return Ok(());
    }
    let shape = dims.iter().map(|(n, d)| format!("{n}={d}")).collect::<Vec<_>>().join(" * ");
    Err(Error::Shape { op, name, got, want: want.unwrap_or(usize::MAX), shape })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_it_quotes_it_is_one_line() {
        let io = || std::io::Error::other("no\nroom");
        for (e, want) in [
            (Error::file("a\nb", "column `c\r\n\nd\r`"), r"a\nb: column `c\r\n\nd\r`"),
            (Error::io("a\n", "read")(io()), r"a\n: cannot read: no\nroom"),
            (Error::usage("\n"), r"\n"),
            (Error::Training("as it is".into()), "as it is"),
            (Error::Launch { kernel: "k", why: "x\ny".into() }, r"kernel `k`: x\ny"),
        ] {
            assert_eq!(e.to_string(), want);
        }
    }
}
