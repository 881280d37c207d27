//! The one door that files come in by. Whoever names a file may be a stranger, and so may be whoever made the folder that
//! it lies in: what is opened here is a regular file, and opening never waits.
//!
//! - [`open`], [`read`], [`read_text`]: what the user named. It may be a link, to wherever.
//! - [`Inside`]: what lies in a folder that came from elsewhere. There a link could lead to a file that is nobody's business
//!   and would be copied into a result; so it must lead to a file of the same folder, or of the hub cache's `blobs`.
//!   Those of a repository may be links into the cache's own, which all repositories share.

use crate::error::{Error, Result};
use std::ffi::OsStr;
use std::fs::{File, FileType, Metadata};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Longest JSON file of a model: its configuration, the index of its weights. The largest known have 10 MB.
pub const MOST_JSON: u64 = 64 << 20;
/// Longest file of a tokenizer. The largest known have 35 MB.
pub const MOST_TOKENIZER: u64 = 128 << 20;
/// Longest file that a person writes: a configuration, a chat template.
pub const MOST_TEXT: u64 = 1 << 20;

/// Opens a file that the user named, for reading.
///
/// # Errors
/// [`Error::File`] for what is no regular file (a pipe, a device, a folder) and for a link that leads nowhere;
/// [`Error::Io`] where the system refuses.
pub fn open(path: &Path) -> Result<File> {
    regular(path, path).map(|(file, _)| file)
}

/// The content of a file that the user named. Errors: as of [`open`], and a file of more than `most` bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, meta) = regular(path, path)?;
    content(path, &file, &meta, most)
}

/// [`read`], as text. Errors: as of [`read`], and what is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    text(path, read(path, most)?)
}

/// A folder that came from elsewhere, such as a model's: its files are opened where they are its own.
#[derive(Clone, Debug)]
pub struct Inside {
    dir: PathBuf,
    /// Where its files may lie, without links.
    roots: Vec<PathBuf>,
}

impl Inside {
    /// Of the folder `dir`, which may be a link itself: the user named it.
    pub fn new(dir: &Path) -> Result<Self> {
        let real = dir.canonicalize().map_err(Error::io(dir, "open"))?;
        let repository = hub_repository(&real);
        let blobs = repository.map(|repository| repository.join("blobs"));
        let shared = repository.and_then(shared_blobs);
        let roots = std::iter::once(real).chain(blobs).chain(shared).collect();
        Ok(Self { dir: dir.to_owned(), roots })
    }

    /// Where the file called `name` is, for messages.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether anything is called `name`, a link that leads nowhere included.
    pub fn has(&self, name: impl AsRef<Path>) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// Opens the file called `name`; `None` where there is nothing of that name.
    ///
    /// # Errors
    /// As of [`open`], and [`Error::File`] for a link that leads out of the folder.
    pub fn open(&self, name: impl AsRef<Path>) -> Result<Option<File>> {
        Ok(self.regular(&self.path(name))?.map(|(file, _)| file))
    }

    /// The content of the file called `name`; `None` where there is nothing of that name. Errors: as of [`Inside::open`],
    /// and a file of more than `most` bytes.
    pub fn read(&self, name: impl AsRef<Path>, most: u64) -> Result<Option<Vec<u8>>> {
        let path = self.path(name);
        let read = |(file, meta)| content(&path, &file, &meta, most);
        self.regular(&path)?.map(read).transpose()
    }

    /// [`Inside::read`], as text. Errors: as of [`Inside::read`], and what is not UTF-8.
    pub fn read_text(&self, name: impl AsRef<Path>, most: u64) -> Result<Option<String>> {
        let path = self.path(name.as_ref());
        self.read(name, most)?.map(|bytes| text(&path, bytes)).transpose()
    }

    /// Names of what lies in the folder called `name`, in order; none where there is no such folder.
    pub fn names(&self, name: impl AsRef<Path>) -> Result<Vec<String>> {
        let path = self.path(name);
        let entries = match path.read_dir() {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
            entries => entries.map_err(Error::io(&path, "list"))?,
        };
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            Ok(entry.map_err(Error::io(&path, "list"))?.file_name().to_string_lossy().into_owned())
        };
        let mut names: Vec<String> = entries.map(name).collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    }

    /// What it is that a file is missing which must be there.
    pub fn missing(&self, name: impl AsRef<Path>) -> Error {
        Error::io(self.path(name), "open")(std::io::Error::from_raw_os_error(libc::ENOENT))
    }

    fn regular(&self, path: &Path) -> Result<Option<(File, Metadata)>> {
        match path.symlink_metadata() {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(Error::io(path, "open")(e)),
            Ok(_) => {}
        }
        let real = path.canonicalize().map_err(|e| unreachable_file(path, e))?;
        if !self.roots.iter().any(|root| real.starts_with(root)) {
            let why = format!(
                "is a link that leads out of its folder, to {}: such links are not followed, as they could copy any file \
                 into a result; put the file itself there",
                real.display()
            );
            return Err(Error::file(path, why));
        }
        regular(path, &real).map(Some)
    }
}

/// Of a folder in the hub's cache, `models--.../snapshots/REVISION` or one in it: the folder of its repository.
fn hub_repository(real: &Path) -> Option<&Path> {
    let snapshots = real.ancestors().skip(1).find(|a| a.file_name() == Some(OsStr::new("snapshots")))?;
    snapshots.parent()
}

/// What several repositories of the hub's cache have in common lies in a folder of the cache; its marker says so.
fn shared_blobs(repository: &Path) -> Option<PathBuf> {
    let blobs = repository.parent()?.join("blobs");
    let own = blobs.symlink_metadata().is_ok_and(|m| m.is_dir());
    (own && blobs.join(".huggingface-shared-blobs").is_file()).then_some(blobs)
}

/// Opens `real`, which is called `path`.
fn regular(path: &Path, real: &Path) -> Result<(File, Metadata)> {
    // Asked before it is opened, as opening a device can do something by itself; and after it, as it may be another by then.
    let before = real.metadata().map_err(|e| unreachable_file(path, e))?;
    refuse_special(path, before.file_type())?;
    let mut options = File::options();
    options.read(true);
    // A pipe without a writer would wait for one.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(real).map_err(|e| unreachable_file(path, e))?;
    let meta = file.metadata().map_err(Error::io(path, "open"))?;
    refuse_special(path, meta.file_type())?;
    Ok((file, meta))
}

/// Why a path leads to no file.
fn unreachable_file(path: &Path, e: std::io::Error) -> Error {
    if e.raw_os_error() == Some(libc::ELOOP) {
        return Error::file(path, "is a link that leads to itself; put a file there");
    }
    if e.kind() == ErrorKind::NotFound && path.is_symlink() {
        return Error::file(path, "is a link that leads nowhere; put a file there");
    }
    Error::io(path, "open")(e)
}

fn refuse_special(path: &Path, kind: FileType) -> Result<()> {
    match kind.is_file() {
        true => Ok(()),
        false => Err(Error::file(path, format!("is {}, not a regular file; name a file", special(kind)))),
    }
}

fn special(kind: FileType) -> &'static str {
    if kind.is_dir() {
        return "a folder";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    "a device"
}

fn content(path: &Path, file: &File, meta: &Metadata, most: u64) -> Result<Vec<u8>> {
    let long = || Error::file(path, format!("has more than {} MiB; no file of its kind is that long", most >> 20));
    if meta.len() > most {
        return Err(long());
    }
    // A length is not to be trusted: files in /proc have none, and a file may grow.
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(most + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > most { Err(long()) } else { Ok(bytes) }
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    // In the words of the standard library.
    let e = |_| std::io::Error::new(ErrorKind::InvalidData, "stream did not contain valid UTF-8");
    String::from_utf8(bytes).map_err(e).map_err(Error::io(path, "read"))
}

/// Reads `buf.len()` bytes from `at` on of `file`, which was opened at `path`. Several threads may read one file.
///
/// Unlike a look into a [`Map`](crate::files::Map) this cannot harm the process: a file that was cut short since is an
/// [`Error::File`].
pub fn read_at(path: &Path, file: &File, buf: &mut [u8], at: u64) -> Result<()> {
    exact(file, buf, at).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => cut_short(path),
        _ => Error::io(path, "read")(e),
    })
}

#[cfg(unix)]
fn exact(file: &File, buf: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, at)
}

#[cfg(not(unix))]
fn exact(file: &File, buf: &mut [u8], at: u64) -> std::io::Result<()> {
    // A handle of its own, for a place of its own.
    let mut file = file.try_clone()?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(at))?;
    file.read_exact(buf)
}

/// What a file is that ends before the place where it had bytes when it was opened.
pub fn cut_short(path: &Path) -> Error {
    Error::file(path, "was cut short while in use: leave a model's files alone during a run, and start it again")
}
