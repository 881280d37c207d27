//! Records sorted by a key, in memory or, where there are more than it may take, in runs on the disk that are merged.

use crate::error::Result;
use crate::files::records::{BLOCK, Records, Words};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};

/// What records are sorted by.
pub type Key = (u64, u64);

/// Words that a run's buffer has at least.
const LEAST: usize = 1 << 10;

/// Records (see [`Log`](super::Log)) that come in any order and are read back in that of their keys; equal ones in the order in
/// which they came.
#[derive(Debug)]
pub struct Sorter {
    key: fn(&[u32]) -> Key,
    limit: usize,
    folder: PathBuf,
    held: Vec<u32>,
    /// Keys of the records of `held` and where they begin.
    index: Vec<(Key, usize)>,
    runs: Vec<std::ops::Range<u64>>,
    file: Option<Words>,
}

impl Sorter {
    /// An empty one that sorts `limit` words in memory, by what `key` says of a record; its file lies on the disk of `folder`.
    pub fn new(folder: &Path, limit: usize, key: fn(&[u32]) -> Key) -> Self {
        let (held, index, runs) = Default::default();
        Self { key, limit, folder: folder.to_owned(), held, index, runs, file: None }
    }

    /// Adds a record.
    pub fn push(&mut self, record: &[u32]) -> Result<()> {
        // A key takes six words' room.
        if !self.index.is_empty() && self.held.len() + record.len() + 6 * self.index.len() > self.limit {
            self.run()?;
        }
        self.index.push(((self.key)(record), self.held.len()));
        self.held.extend_from_slice(record);
        Ok(())
    }

    /// Sorts what is in memory and writes it as a run.
    fn run(&mut self) -> Result<()> {
        self.index.sort();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(Words::new(&self.folder)?),
        };
        let start = file.len();
        for &(_, at) in &self.index {
            file.push(&self.held[at..][..self.held[at] as usize])?;
        }
        self.runs.push(start..file.len());
        self.held.clear();
        self.index.clear();
        Ok(())
    }

    /// Call once all records are in, before they are read.
    pub fn seal(&mut self) -> Result<()> {
        if self.runs.is_empty() {
            self.index.sort();
            return Ok(());
        }
        self.run()?;
        (self.held, self.index) = Default::default();
        self.file.as_mut().map_or(Ok(()), Words::flush)
    }

    /// The records in order.
    pub fn read(&self) -> Result<Sorted<'_>> {
        let buffer = (self.limit / self.runs.len().max(1)).clamp(LEAST, BLOCK);
        let runs = self.runs.iter().filter_map(|range| Some(self.file.as_ref()?.records(range.clone(), buffer)));
        let mut sorted = Sorted { sorter: self, index: &self.index, runs: Vec::new(), heap: BinaryHeap::new() };
        for (i, records) in runs.enumerate() {
            let mut run = Run { records, record: Vec::new() };
            sorted.heap.extend(run.advance(self.key)?.map(|key| Reverse((key, i))));
            sorted.runs.push(run);
        }
        Ok(sorted)
    }
}

/// Reads a [`Sorter`].
#[derive(Debug)]
pub struct Sorted<'a> {
    sorter: &'a Sorter,
    /// Of the records in memory that are left.
    index: &'a [(Key, usize)],
    runs: Vec<Run<'a>>,
    /// Keys of the runs' records; earlier runs first, as their records came earlier.
    heap: BinaryHeap<Reverse<(Key, usize)>>,
}

#[derive(Debug)]
struct Run<'a> {
    records: Records<'a>,
    record: Vec<u32>,
}

impl Run<'_> {
    /// Goes to the next record; its key.
    fn advance(&mut self, key: fn(&[u32]) -> Key) -> Result<Option<Key>> {
        self.record.clear();
        self.record.extend_from_slice(self.records.next()?.unwrap_or_default());
        Ok((!self.record.is_empty()).then(|| key(&self.record)))
    }
}

impl Sorted<'_> {
    /// The next record's key.
    pub fn peek(&self) -> Option<Key> {
        self.heap.peek().map(|top| top.0.0).or(self.index.first().map(|first| first.0))
    }

    /// Appends the next record to `out`; false at the end.
    pub fn next(&mut self, out: &mut Vec<u32>) -> Result<bool> {
        if let Some(Reverse((_, i))) = self.heap.pop() {
            let run = &mut self.runs[i];
            out.extend_from_slice(&run.record);
            self.heap.extend(run.advance(self.sorter.key)?.map(|key| Reverse((key, i))));
            return Ok(true);
        }
        let Some((&(_, at), rest)) = self.index.split_first() else { return Ok(false) };
        let held = &self.sorter.held;
        out.extend_from_slice(&held[at..][..held[at] as usize]);
        self.index = rest;
        Ok(true)
    }
}
