//! Groups: rows with the same prompt ids, in the order in which they first appear, in a memory that does not grow with them.
//!
//! Rows lie in a [`Log`] in the order in which they came, which is the order of the groups that they begin. A row whose group
//! began earlier goes to a [`Sorter`] instead, by group; at the end both are read side by side. Which group a row belongs to
//! says a map of the prompts' prints. Once that is full, rows go to the log as they are and their prints to [`Parts`]:
//! part by part it then turns out which of those rows are late, and they move on to the sorter.

use super::families::Families;
use super::record::{self, Place, Print, Record};
use super::repeats::{ByHash, Counts, Repeats};
use crate::data::text::TokenRow;
use crate::error::Result;
use crate::files::{Log, LogReader, PARTS, PartReader, Parts, Sorted, Sorter};
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};

/// Bytes that rows may take in memory: 512 MiB.
pub const IN_MEMORY: usize = 1 << 29;

/// Bytes of memory that an entry of the map of prints takes: the map grows by doubling.
const ENTRY: usize = 64;

/// Records between two questions whether to go on.
const ASK_EVERY: u64 = 1 << 14;

/// Is asked now and then whether to go on.
pub(super) type Told<'a> = dyn FnMut() -> Result<()> + 'a;

/// The first 128 bits of SHA-256: two sequences of tokens are the same where these are.
pub(super) fn print(tokens: &[u32]) -> Print {
    let digest = Sha256::digest(bytemuck::cast_slice::<u32, u8>(tokens));
    std::array::from_fn(|i| digest[i])
}

/// Rows of ids so far, numbered as they came.
pub(super) struct Groups {
    added: u64,
    /// Rows in the order in which they came, but those of which it is known that they are late.
    rows: Log,
    /// Rows of groups that began before.
    late: Sorter,
    /// Number of the first row of each group, by the prompt's print.
    first: ByHash<Print, u64>,
    /// Entries that `first` may have.
    limit: usize,
    /// Once `first` was full: prints and rows, those of the map before the others.
    open: Option<Open>,
    /// The late ones among the rows that lie in `rows`.
    skip: Log,
    repeats: Repeats,
    counts: Counts,
    /// Whether keys play a part.
    keyed: bool,
    record: Vec<u32>,
    folder: PathBuf,
    bytes: usize,
}

/// Rows whose groups are not known yet.
struct Open {
    prints: Parts,
    /// Where they begin in the log.
    start: u64,
}

/// An item of [`Open`] says a group that is known.
const KNOWN: u32 = 1;

impl Groups {
    /// None yet; temporary files go to the disk of `folder` where `bytes` of memory are not enough. `keyed`: the groups will
    /// be split by the keys of their prompts.
    pub fn new(folder: &Path, bytes: usize, keyed: bool) -> Self {
        Self {
            added: 0,
            rows: Log::new(folder, bytes / 2 / 4),
            late: Sorter::new(folder, bytes / 4 / 4, record::by_group),
            first: ByHash::default(),
            limit: bytes / 8 / ENTRY,
            open: None,
            skip: Log::new(folder, bytes / 64 / 4),
            repeats: Repeats::new(folder, bytes / 8),
            counts: Counts::default(),
            keyed,
            record: Vec::new(),
            folder: folder.to_owned(),
            bytes,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.end() == 0
    }

    /// Adds a row of ids that input row `from` gave, with its pairs of responses and their weight.
    pub fn add(&mut self, row: &TokenRow, from: u64, pairs: &[(u32, u32)], weight: f32) -> Result<()> {
        let number = self.added;
        self.added += 1;
        // An empty prompt shares nothing; its rows are told apart by what they say.
        let (group, late) = match row.has_prompt {
            true => {
                let group = print(&row.prompt);
                (group, self.group(group, number)?)
            }
            false => {
                let mut group = [0; 16];
                group[..8].copy_from_slice(&number.to_le_bytes());
                (group, None)
            }
        };
        if !pairs.is_empty() {
            let prints: Vec<Print> = row.responses.iter().map(|r| print(&r.tokens)).collect();
            for &(chosen, rejected) in pairs {
                self.repeats.add(&group, &prints[chosen as usize], &prints[rejected as usize])?;
            }
        }
        let key = |row: &TokenRow| if row.has_prompt { row.prompt_key } else { print(&row.responses[0].tokens) };
        let key = self.keyed.then(|| key(row));
        record::write(&mut self.record, (row, Place { number, late, row: from }), key, (pairs, weight))?;
        match late {
            Some(_) => self.late.push(&self.record),
            None => self.rows.push(&self.record),
        }
    }

    /// The number of the row that began the group of a prompt in row `number`; none where it is that one, or not known yet.
    fn group(&mut self, print: Print, number: u64) -> Result<Option<u64>> {
        if let Some(open) = &mut self.open {
            open.push(print, number, 0)?;
            return Ok(None);
        }
        let known = self.first.len();
        match self.first.entry(print) {
            std::collections::hash_map::Entry::Occupied(first) => Ok(Some(*first.get())),
            std::collections::hash_map::Entry::Vacant(entry) if known < self.limit => {
                entry.insert(number);
                Ok(None)
            }
            _ => {
                let prints = Parts::new(&self.folder, 7, self.bytes / 16)?;
                let mut open = Open { prints, start: self.rows.end() };
                std::mem::take(&mut self.first).into_iter().try_for_each(|(p, row)| open.push(p, row, KNOWN))?;
                open.push(print, number, 0)?;
                self.open = Some(open);
                Ok(None)
            }
        }
    }

    /// Call once all rows are in, before they are read: finds the group of every row.
    pub fn seal(&mut self, told: &mut Told<'_>) -> Result<()> {
        self.first = ByHash::default();
        self.rows.seal()?;
        let repeats = std::mem::replace(&mut self.repeats, Repeats::new(&self.folder, 0));
        self.counts = repeats.finish(told)?;
        if let Some(mut open) = self.open.take() {
            open.prints.seal()?;
            let late = self.find_late(&open, told)?;
            drop(open.prints);
            self.move_late(&late, open.start, told)?;
        }
        self.skip.seal()?;
        self.late.seal()
    }

    /// Late rows among the open ones, with the rows that began their groups; ascending in each part.
    fn find_late(&self, open: &Open, told: &mut Told<'_>) -> Result<Parts> {
        let mut late = Parts::new(&self.folder, 4, self.bytes / 16)?;
        let mut first: ByHash<Print, u64> = ByHash::default();
        for part in 0..PARTS {
            told()?;
            first.clear();
            let mut items = open.prints.read(part);
            while let Some(item) = items.next()? {
                let print: [u32; 4] = [item[0], item[1], item[2], item[3]];
                let began = *first.entry(bytemuck::cast(print)).or_insert(long(item[4], item[5]));
                if item[6] != KNOWN && began != long(item[4], item[5]) {
                    late.push(part, &[item[4], item[5], began as u32, (began >> 32) as u32])?;
                }
            }
        }
        late.seal()?;
        Ok(late)
    }

    /// Copies the late rows, of which there are some from `start` on in the log, to where late rows belong.
    fn move_late(&mut self, late: &Parts, start: u64, told: &mut Told<'_>) -> Result<()> {
        let mut late = Late::new(late)?;
        let mut rows = self.rows.read(start);
        let mut n = 0;
        while let Some((row, first)) = late.next()? {
            let record = loop {
                ask(&mut n, told)?;
                match rows.next()? {
                    Some(r) if Record(r).number() == row => break Record(r),
                    Some(_) => {}
                    None => unreachable!("a late row is in the log"),
                }
            };
            record.move_to(first, &mut self.record);
            self.late.push(&self.record)?;
            self.skip.push(&[3, row as u32, (row >> 32) as u32])?;
        }
        Ok(())
    }

    /// Pairs that repeat others, once sealed.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Families of the keys; empty where keys play no part.
    pub fn families(&self, told: &mut Told<'_>) -> Result<Families> {
        let mut families = Families::default();
        if !self.keyed {
            return Ok(families);
        }
        let (mut groups, mut record) = (self.read()?, Vec::new());
        let mut n = 0;
        while groups.next(&mut record)? {
            ask(&mut n, told)?;
            let Some(key) = Record(&record).key() else { continue };
            while groups.next_of_group(&mut record)? {
                ask(&mut n, told)?;
                Record(&record).key().into_iter().for_each(|other| families.join(key, other));
            }
        }
        Ok(families)
    }

    /// The groups in order, row by row.
    pub fn read(&self) -> Result<GroupReader<'_>> {
        let mut skip = self.skip.read(0);
        let next_skipped = next_skipped(&mut skip)?;
        Ok(GroupReader { rows: self.rows.read(0), late: self.late.read()?, skip, next_skipped, first: 0 })
    }
}

impl Open {
    fn push(&mut self, print: Print, row: u64, known: u32) -> Result<()> {
        let [a, b, c, d]: [u32; 4] = bytemuck::cast(print);
        // Another byte than those that the map goes by.
        self.prints.push(usize::from(print[15]) % PARTS, &[a, b, c, d, row as u32, (row >> 32) as u32, known])
    }
}

fn long(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn ask(n: &mut u64, told: &mut Told<'_>) -> Result<()> {
    *n += 1;
    if n.is_multiple_of(ASK_EVERY) { told() } else { Ok(()) }
}

/// Late rows of all parts, ascending.
struct Late<'a> {
    parts: Vec<PartReader<'a>>,
    /// Row, the row that began its group, the part.
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
}

impl<'a> Late<'a> {
    fn new(late: &'a Parts) -> Result<Self> {
        let parts = (0..PARTS).map(|part| late.read(part)).collect();
        let mut this = Self { parts, heap: BinaryHeap::new() };
        (0..PARTS).try_for_each(|part| this.advance(part))?;
        Ok(this)
    }

    fn advance(&mut self, part: usize) -> Result<()> {
        let item = self.parts[part].next()?;
        self.heap.extend(item.map(|i| Reverse((long(i[0], i[1]), long(i[2], i[3]), part))));
        Ok(())
    }

    fn next(&mut self) -> Result<Option<(u64, u64)>> {
        let Some(Reverse((row, first, part))) = self.heap.pop() else { return Ok(None) };
        self.advance(part)?;
        Ok(Some((row, first)))
    }
}

/// Reads groups in the order in which they began.
pub(super) struct GroupReader<'a> {
    rows: LogReader<'a>,
    late: Sorted<'a>,
    skip: LogReader<'a>,
    next_skipped: Option<u64>,
    /// The row that began the group at hand.
    first: u64,
}

fn next_skipped(skip: &mut LogReader<'_>) -> Result<Option<u64>> {
    Ok(skip.next()?.map(|r| long(r[1], r[2])))
}

impl GroupReader<'_> {
    /// The first row of the next group; false at the end. All rows of the group before must have been read.
    pub fn next(&mut self, record: &mut Vec<u32>) -> Result<bool> {
        while let Some(found) = self.rows.next()? {
            let row = Record(found).number();
            if Some(row) == self.next_skipped {
                self.next_skipped = next_skipped(&mut self.skip)?;
                continue;
            }
            self.first = row;
            record.clear();
            record.extend_from_slice(found);
            return Ok(true);
        }
        Ok(false)
    }

    /// The next row of the group at hand; false where there is none.
    pub fn next_of_group(&mut self, record: &mut Vec<u32>) -> Result<bool> {
        if self.late.peek().is_none_or(|(first, _)| first != self.first) {
            return Ok(false);
        }
        record.clear();
        self.late.next(record)
    }
}
