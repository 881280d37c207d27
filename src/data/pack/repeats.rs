//! Pairs that were there before, in the same or the opposite direction, in a memory that does not grow with them.

use super::record::Print;
use crate::error::Result;
use crate::files::{PARTS, Parts};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::{Path, PathBuf};

/// Hashes what is a hash already: by its first eight bytes.
#[derive(Default)]
pub(super) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    }
    fn write_u64(&mut self, x: u64) {
        self.0 = x;
    }
    fn write_usize(&mut self, _: usize) {} // the length of a print
}

/// A map by hashes.
pub(super) type ByHash<K, V> = HashMap<K, V, BuildHasherDefault<Hashed>>;

/// Bytes of memory that an entry of [`Repeats`] takes: the map grows by doubling.
const ENTRY: usize = 40;

/// A direction was seen.
const SEEN: [u32; 2] = [1, 2];
/// To be counted; else it was, and only says what was seen.
const COUNTED: u32 = 4;

/// Pairs that repeat an earlier one, and pairs whose reverse was there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub duplicate: u64,
    pub contradictory: u64,
}

impl Counts {
    /// Counts a pair of which `seen` was there before, and notes it there.
    fn pair(&mut self, seen: &mut u32, reversed: bool) {
        self.duplicate += u64::from(*seen & SEEN[usize::from(reversed)] != 0);
        self.contradictory += u64::from(*seen & SEEN[usize::from(!reversed)] != 0);
        *seen |= SEEN[usize::from(reversed)];
    }
}

/// Pairs so far.
pub(super) struct Repeats {
    counts: Counts,
    seen: ByHash<u64, u32>,
    /// Entries that `seen` may have.
    limit: usize,
    /// Pairs beyond: the hash and what is to be done with it.
    parts: Option<Parts>,
    folder: PathBuf,
    bytes: usize,
}

impl Repeats {
    /// None yet; `bytes` of memory, the rest on the disk of `folder`.
    pub fn new(folder: &Path, bytes: usize) -> Self {
        let (counts, seen) = Default::default();
        Self { counts, seen, limit: bytes / ENTRY, parts: None, folder: folder.to_owned(), bytes }
    }

    /// A pair of two responses of a group, each by its print.
    pub fn add(&mut self, group: &Print, chosen: &Print, rejected: &Print) -> Result<()> {
        let reversed = chosen > rejected;
        let (a, b) = if reversed { (rejected, chosen) } else { (chosen, rejected) };
        let digest = Sha256::new().chain_update(group).chain_update(a).chain_update(b).finalize();
        let hash = u64::from_le_bytes(std::array::from_fn(|i| digest[i]));
        if self.parts.is_none() {
            let seen = self.seen.len();
            match self.seen.entry(hash) {
                std::collections::hash_map::Entry::Vacant(_) if seen >= self.limit => self.spill()?,
                entry => {
                    self.counts.pair(entry.or_default(), reversed);
                    return Ok(());
                }
            }
        }
        self.write(hash, COUNTED | u32::from(reversed))
    }

    /// From memory to the disk.
    fn spill(&mut self) -> Result<()> {
        self.parts = Some(Parts::new(&self.folder, 3, self.bytes / 8)?);
        std::mem::take(&mut self.seen).into_iter().try_for_each(|(hash, seen)| self.write(hash, seen))
    }

    fn write(&mut self, hash: u64, what: u32) -> Result<()> {
        let Some(parts) = &mut self.parts else { return Ok(()) };
        // Other bits than those that the map goes by.
        parts.push((hash >> 32) as usize % PARTS, &[hash as u32, (hash >> 32) as u32, what])
    }

    /// The counts; `told` is asked now and then whether to go on.
    pub fn finish(mut self, told: &mut dyn FnMut() -> Result<()>) -> Result<Counts> {
        let Some(mut parts) = self.parts.take() else { return Ok(self.counts) };
        parts.seal()?;
        for part in 0..PARTS {
            told()?;
            self.seen.clear();
            let mut items = parts.read(part);
            while let Some(item) = items.next()? {
                let seen = self.seen.entry(u64::from(item[0]) | u64::from(item[1]) << 32).or_default();
                match item[2] & COUNTED {
                    0 => *seen |= item[2],
                    _ => self.counts.pair(seen, item[2] & 1 != 0),
                }
            }
        }
        Ok(self.counts)
    }
}
