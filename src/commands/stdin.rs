//! `--input -`: rows from standard input, of every kind that a file may be. They are laid down first, as Parquet is read from its
//! end and what a text is shows in its first bytes.

use super::signal;
use crate::error::{Error, Result};
use crate::files::{ScratchFolder, scratch_folder};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// What errors call it.
const STDIN: &str = "standard input";

/// Input files, `-` among them at most once.
pub struct Inputs {
    /// Files to read.
    pub paths: Vec<PathBuf>,
    /// Gone with this.
    laid: Option<(ScratchFolder, PathBuf)>,
}

impl Inputs {
    /// Reads standard input to its end where `named` has it. Errors: it is named twice, empty, or the disk for temporary files is
    /// full; a signal came.
    pub fn of(named: &[PathBuf]) -> Result<Self> {
        let stdin = |path: &&PathBuf| *path == Path::new("-");
        let mut paths = named.to_vec();
        match named.iter().filter(stdin).count() {
            0 => return Ok(Self { paths, laid: None }),
            1 => {}
            _ => return Err(Error::usage("`input` -: standard input is there once; name it once")),
        }
        let folder = scratch_folder()?;
        let filled = folder.fill("stdin", Pieces::of_stdin()?, Path::new(STDIN));
        signal::check()?;
        let path = filled?;
        paths.iter_mut().filter(|p| *p == Path::new("-")).for_each(|p| p.clone_from(&path));
        Ok(Self { paths, laid: Some((folder, path)) })
    }

    /// `e` about standard input, where it is about what was laid down of it.
    pub fn named(&self, e: Error) -> Error {
        let Some((_, laid)) = &self.laid else { return e };
        match e {
            Error::File { path, why } if path == *laid => Error::file(STDIN, why),
            Error::Io { path, doing, source } if path == *laid => Error::Io { path: STDIN.into(), doing, source },
            e => e,
        }
    }
}

/// How long a signal may wait.
const LOOK: Duration = Duration::from_millis(50);

/// Standard input, read by a thread: a signal does not end the wait for a pipe that brings nothing.
struct Pieces {
    from: Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Pieces {
    fn of_stdin() -> Result<Self> {
        let (to, from) = sync_channel(4);
        let read = move || loop {
            let mut piece = vec![0; 1 << 18];
            let got = match io::stdin().lock().read(&mut piece) {
                Ok(0) => return,
                Ok(n) => {
                    piece.truncate(n);
                    Ok(piece)
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
            // Nobody listens any more, or there is nothing more to read.
            let last = got.is_err();
            if to.send(got).is_err() || last {
                return;
            }
        };
        std::thread::Builder::new().name("stdin".into()).spawn(read).map_err(Error::io(STDIN, "start a thread for"))?;
        Ok(Self { from, piece: io::Cursor::default() })
    }
}

impl Read for Pieces {
    /// Errors: also once a signal came.
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.piece.position() == self.piece.get_ref().len() as u64 {
            if signal::stop_requested() {
                return Err(io::Error::other("stopped"));
            }
            match self.from.recv_timeout(LOOK) {
                Ok(piece) => self.piece = io::Cursor::new(piece?),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
        self.piece.read(to)
    }
}
