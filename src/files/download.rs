//! What comes from elsewhere in pieces: kept where it ended when that was half way, and under its name when it is whole.

use crate::error::{Error, Result};
use crate::files::folder::make_folder;
use crate::files::lock::{self, Held};
use crate::files::open::read_at;
use crate::files::paths::{folder_of, sync_folder};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// How often somebody who waits for a lock looks again.
const LOOK: Duration = Duration::from_millis(50);
const PIECE: usize = 1 << 20;

/// A file that is coming. Unlike of others, what came stays when the process ends: the next goes on from there.
#[derive(Debug)]
pub struct Partial {
    file: File,
    temp: PathBuf,
    path: PathBuf,
    len: u64,
}

impl Partial {
    /// What of `path` came into `temp`, a sibling, so far. Their folder must exist.
    pub fn open(temp: &Path, path: &Path) -> Result<Self> {
        let file = own(File::options().read(true).append(true).create(true), temp)?;
        let len = file.metadata().map_err(Error::io(temp, "open"))?.len();
        Ok(Self { file, temp: temp.to_owned(), path: path.to_owned(), len })
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing came yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Hands what came so far to `to`, in order.
    pub fn read_back(&self, mut to: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut buf = vec![0; PIECE];
        let mut at = 0;
        while at < self.len {
            let n = (self.len - at).min(PIECE as u64) as usize;
            read_at(&self.temp, &self.file, &mut buf[..n], at)?;
            to(&buf[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    /// Adds to it.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.temp, "write"))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Begins again.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::io(&self.temp, "write"))?;
        self.len = 0;
        Ok(())
    }

    /// It is whole: makes it durable and gives it its name, in place of what had it.
    pub fn commit(self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.temp, "write"))?;
        fs::rename(&self.temp, &self.path).map_err(Error::io(&self.path, "write"))?;
        sync_folder(folder_of(&self.path))
    }

    /// Takes it away.
    pub fn discard(self) -> Result<()> {
        fs::remove_file(&self.temp).map_err(Error::io(&self.temp, "remove"))
    }
}

/// The right to make something that other processes may want to make too; theirs when dropped. The file of the lock stays.
#[derive(Debug)]
pub struct Turn {
    _held: Held,
}

impl Turn {
    /// Waits until no other process has the lock `path`, which is made with its folder where it is missing. `waiting` is called
    /// between looks, and may end it.
    pub fn wait(path: &Path, mut waiting: impl FnMut() -> Result<()>) -> Result<Self> {
        make_folder(folder_of(path))?;
        let file = own(File::options().read(true).write(true).create(true), path)?;
        while !lock::take(&file, path)? {
            waiting()?;
            std::thread::sleep(LOOK);
        }
        Ok(Self { _held: Held(file) })
    }
}

/// Opens or makes a file that is nobody else's: not what a link leads to.
fn own(options: &mut OpenOptions, path: &Path) -> Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| match e.raw_os_error() {
        Some(libc::ELOOP) => Error::file(path, "is a link, where a file is to be written; take it away"),
        _ => Error::io(path, "open")(e),
    })?;
    match file.metadata().map_err(Error::io(path, "open"))?.is_file() {
        true => Ok(file),
        false => Err(Error::file(path, "is not a regular file; take it away")),
    }
}

/// Makes `at`, whose folders are made too, another name of the file `to`: a link by the way from one to the other, so that the
/// folder that holds both may be moved; where there are no links, a copy. What was called `at` is replaced.
pub fn link(to: &Path, at: &Path) -> Result<()> {
    let folder = folder_of(at);
    make_folder(folder)?;
    let name = at.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let temp = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let _ = fs::remove_file(&temp);
    let made = match symlink(&way(folder, to), &temp) {
        Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            fs::copy(to, &temp).map(drop)
        }
        made => made,
    };
    let placed = made.and_then(|()| fs::rename(&temp, at));
    if placed.is_err() {
        let _ = fs::remove_file(&temp);
    }
    placed.map_err(Error::io(at, "write"))
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// The way from `folder` to `to`.
fn way(folder: &Path, to: &Path) -> PathBuf {
    let (Ok(folder), Ok(absolute)) = (std::path::absolute(folder), std::path::absolute(to)) else {
        return to.to_owned();
    };
    let same = folder.components().zip(absolute.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(same).map(|_| Component::ParentDir);
    up.chain(absolute.components().skip(same)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_goes_up_and_down() {
        for (folder, to, want) in [
            ("/c/m/snapshots/abc", "/c/m/blobs/x", "../../blobs/x"),
            ("/c/m/snapshots/abc/sub", "/c/m/blobs/x", "../../../blobs/x"),
            ("/c", "/c/x", "x"),
        ] {
            assert_eq!(way(Path::new(folder), Path::new(to)), Path::new(want));
        }
    }

    #[test]
    fn what_came_is_there_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let [temp, path] = ["x.incomplete", "x"].map(|name| dir.path().join(name));
        let mut partial = Partial::open(&temp, &path).unwrap();
        partial.put(b"abc").unwrap();
        drop(partial);
        let mut partial = Partial::open(&temp, &path).unwrap();
        let mut seen = Vec::new();
        partial
            .read_back(|bytes| {
                seen.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        assert_eq!((partial.len(), &seen[..]), (3, &b"abc"[..]));
        partial.put(b"de").unwrap();
        partial.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abcde");
        assert!(!temp.exists());
        let mut partial = Partial::open(&temp, &path).unwrap();
        partial.put(b"zz").unwrap();
        partial.restart().unwrap();
        partial.put(b"y").unwrap();
        partial.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"y");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&path, &temp).unwrap();
            assert!(Partial::open(&temp, &path).unwrap_err().to_string().contains("is a link"));
        }
    }

    #[test]
    fn a_turn_is_one_process_s() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks/x.lock");
        let turn = Turn::wait(&path, || Ok(())).unwrap();
        let mut looks = 0;
        let waiting = || {
            looks += 1;
            if looks == 2 { Err(Error::stopped("enough")) } else { Ok(()) }
        };
        assert_eq!(Turn::wait(&path, waiting).unwrap_err().to_string(), "enough");
        drop(turn);
        Turn::wait(&path, || unreachable!()).unwrap();
    }

    #[test]
    fn a_link_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("snapshots/a/f");
        for name in ["one", "two"] {
            let blob = dir.path().join("blobs").join(name);
            make_folder(folder_of(&blob)).unwrap();
            fs::write(&blob, name).unwrap();
            link(&blob, &at).unwrap();
            assert_eq!(fs::read_to_string(&at).unwrap(), name);
        }
        assert_eq!(fs::read_dir(folder_of(&at)).unwrap().count(), 1);
        #[cfg(unix)]
        assert_eq!(fs::read_link(&at).unwrap(), Path::new("../../blobs/two"));
    }
}
