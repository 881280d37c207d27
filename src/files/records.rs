//! Records of 32-bit words in a scratch file, written behind one another and read from any of them on. The first word of a
//! record is its length in words, itself included.

use crate::error::{Error, Result};
use crate::files::scratch::scratch_file;
use std::fs::File;
use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Words written, or read, at a time: 256 KiB.
pub(crate) const BLOCK: usize = 1 << 16;

/// A scratch file that grows at its end.
#[derive(Debug)]
pub(crate) struct Words {
    file: File,
    folder: PathBuf,
    /// Not yet written.
    tail: Vec<u32>,
    /// Words, `tail` included.
    len: u64,
}

impl Words {
    /// An empty one on the disk of `folder`.
    pub fn new(folder: &Path) -> Result<Self> {
        Ok(Self { file: scratch_file(folder)?, folder: folder.to_owned(), tail: Vec::new(), len: 0 })
    }

    /// Words so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Appends `words`, in one piece or not: what lies in the file is a sequence.
    pub fn push(&mut self, words: &[u32]) -> Result<()> {
        self.tail.extend_from_slice(words);
        self.len += words.len() as u64;
        if self.tail.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    /// Hands everything to the system; asked for before anything is read.
    pub fn flush(&mut self) -> Result<()> {
        let start = 4 * (self.len - self.tail.len() as u64);
        let bytes = bytemuck::cast_slice(&self.tail);
        let written = self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| no_room(&self.folder, start, e))?;
        self.tail.clear();
        Ok(())
    }

    /// Reads `out.len()` words from word `at` on.
    pub fn read(&self, at: u64, out: &mut [u32]) -> Result<()> {
        let mut file = &self.file;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        let read = file.seek(SeekFrom::Start(4 * at)).and_then(|_| file.read_exact(bytes));
        read.map_err(Error::io(&self.folder, "read a temporary file in"))
    }

    /// The records of `range` of words, in order, `buffer` words at a time.
    pub fn records(&self, range: std::ops::Range<u64>, buffer: usize) -> Records<'_> {
        Records { words: self, at: range.start, end: range.end, buffer: buffer.max(1), held: Vec::new(), next: 0 }
    }
}

/// What to do about a disk that is full of temporary files.
fn no_room(folder: &Path, bytes: u64, e: std::io::Error) -> Error {
    if !matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
        return Error::io(folder, "write a temporary file in")(e);
    }
    let why = format!(
        "cannot write a temporary file in it after {} MiB: {e}; free some space, or give an `options.out` on a larger disk",
        bytes >> 20
    );
    Error::file(folder, why)
}

/// Reads records one after the other.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    words: &'a Words,
    /// The next word that is not in `held`.
    at: u64,
    end: u64,
    buffer: usize,
    held: Vec<u32>,
    /// Where in `held` the next record begins.
    next: usize,
}

impl Records<'_> {
    /// The next record.
    pub fn next(&mut self) -> Result<Option<&[u32]>> {
        if self.next == self.held.len() && self.at == self.end {
            return Ok(None);
        }
        self.hold(1)?;
        let len = self.held[self.next] as usize;
        self.hold(len)?;
        self.next += len;
        Ok(Some(&self.held[self.next - len..self.next]))
    }

    /// Makes `n` words from `next` on be there.
    fn hold(&mut self, n: usize) -> Result<()> {
        let there = self.held.len() - self.next;
        if there >= n {
            return Ok(());
        }
        self.held.copy_within(self.next.., 0);
        self.next = 0;
        let more = (self.buffer.max(n - there) as u64).min(self.end - self.at) as usize;
        self.held.resize(there + more, 0);
        self.words.read(self.at, &mut self.held[there..])?;
        self.at += more as u64;
        Ok(())
    }
}

/// Records in the order in which they came: in memory up to a limit, the rest in a scratch file.
#[derive(Debug)]
pub struct Log {
    memory: Vec<u32>,
    limit: usize,
    folder: PathBuf,
    rest: Option<Words>,
}

impl Log {
    /// An empty one that keeps `limit` words in memory; its file lies on the disk of `folder`.
    pub fn new(folder: &Path, limit: usize) -> Self {
        Self { memory: Vec::new(), limit, folder: folder.to_owned(), rest: None }
    }

    /// Where the next record will begin.
    pub fn end(&self) -> u64 {
        self.memory.len() as u64 + self.rest.as_ref().map_or(0, Words::len)
    }

    /// Appends a record.
    pub fn push(&mut self, record: &[u32]) -> Result<()> {
        if self.rest.is_none() && self.memory.len() + record.len() <= self.limit {
            self.memory.extend_from_slice(record);
            return Ok(());
        }
        match &mut self.rest {
            Some(rest) => rest.push(record),
            none => none.insert(Words::new(&self.folder)?).push(record),
        }
    }

    /// Call once all records are in, before they are read.
    pub fn seal(&mut self) -> Result<()> {
        self.rest.as_mut().map_or(Ok(()), Words::flush)
    }

    /// The records from `start` on, which is the beginning of one or the end.
    pub fn read(&self, start: u64) -> LogReader<'_> {
        let held = self.memory.len() as u64;
        let memory = &self.memory[start.min(held) as usize..];
        let rest = self.rest.as_ref().map(|rest| rest.records(start.saturating_sub(held)..rest.len(), BLOCK));
        LogReader { memory, rest }
    }
}

/// Reads a [`Log`].
#[derive(Debug)]
pub struct LogReader<'a> {
    memory: &'a [u32],
    rest: Option<Records<'a>>,
}

impl LogReader<'_> {
    /// The next record.
    #[allow(clippy::should_implement_trait)] // lends what it returns
    pub fn next(&mut self) -> Result<Option<&[u32]>> {
        if let Some(&len) = self.memory.first() {
            let record;
            (record, self.memory) = self.memory.split_at(len as usize);
            return Ok(Some(record));
        }
        self.rest.as_mut().map_or(Ok(None), Records::next)
    }
}
