//! Reference log-probs that belong to two numbers instead of one response: a data set's, in memory and in their file.

use super::key::RefKey;
use super::keyed_file::{self, Entry, Header};
use super::names::{folder, named};
use crate::data::shard::{Dataset, Shard};
use crate::error::{Error, Result};
use crate::files::{AtomicFile, MadeFolders, sweep_files};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the values of a [`Keyed`] sidecar are, and what their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// (response, m): sum over the response's first m predictions, for LD-DPO.
    Heads,
    /// (group, response): sum over the response after that group's prompt, which is not its own, for KTO.
    Mismatched,
}

impl Kept {
    /// Every kind.
    pub const ALL: [Kept; 2] = [Kept::Heads, Kept::Mismatched];

    /// What it is called in names of files.
    pub const fn name(self) -> &'static str {
        match self {
            Kept::Heads => "heads",
            Kept::Mismatched => "mismatched",
        }
    }
}

/// A data set's values of one kind, in memory: about 60 bytes each. Their file `NAME.pref.KIND-HASH` is named after the first
/// shard, and is one for all of them: a key may join what lies in two.
#[derive(Debug)]
pub struct Keyed {
    path: PathBuf,
    header: Header,
    values: BTreeMap<[u64; 2], f64>,
    found: u64,
    notes: Vec<String>,
    dirty: bool,
    /// The first value that cannot be stored, and its key.
    unusable: Option<([u64; 2], f64)>,
    /// When the last flush ended, and how long it took.
    flushed: (Instant, Duration),
}

impl Keyed {
    /// Opens the sidecar of `data` for `kept` under `key`, beside the shards or in the folder `cache`, and creates an empty one
    /// where there is none: that it can write is known before hours are spent on values.
    ///
    /// Errors: [`Error::File`] for a damaged file or one whose header has another key, with the reason; [`Error::Io`] where the
    /// folder cannot be read or written; [`Error::Usage`] for a fingerprint that is too long.
    pub fn open(data: &Dataset, cache: Option<&Path>, key: &RefKey, kept: Kept) -> Result<Self> {
        let mut made = cache.map(MadeFolders::make).transpose()?;
        let header = Header::new(data, key, kept.name())?;
        let path = path_of(data, cache, &header, kept)?;
        let folder = folder(&path);
        sweep_files(folder);
        let there = path.try_exists().map_err(Error::io(&path, "open"))?;
        let entries = if there { read(&path, &header)? } else { Vec::new() };
        let mut this = Keyed {
            found: entries.len() as u64,
            values: entries.into_iter().map(|e| (e.key, e.value)).collect(),
            notes: Vec::new(),
            dirty: !there,
            unusable: None,
            flushed: (Instant::now(), Duration::ZERO),
            path,
            header,
        };
        if !there {
            this.note_others(data, kept)?;
            this.write().map_err(|e| read_only(e, cache))?;
        }
        if let Some(made) = &mut made {
            made.keep();
        }
        Ok(this)
    }

    /// The value of (`a`, `b`).
    pub fn get(&self, a: u64, b: u64) -> Option<f64> {
        self.values.get(&[a, b]).copied()
    }

    /// Whether (`a`, `b`) has a value.
    pub fn has(&self, a: u64, b: u64) -> bool {
        self.values.contains_key(&[a, b])
    }

    /// Stores a value, in memory until [`Keyed::flush`]. One that is not finite is not kept, and makes the next flush fail.
    pub fn set(&mut self, a: u64, b: u64, value: f64) {
        if !value.is_finite() {
            self.unusable.get_or_insert(([a, b], value));
            return;
        }
        self.values.insert([a, b], value);
        self.dirty = true;
    }

    /// Values that it has.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Values that were found when the file was opened: nobody here computed them.
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Why sidecars that lie beside are not the ones to read: a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Makes what was set survive the process. Rewrites the file: 24 bytes a value, so not after every step.
    ///
    /// Errors: [`Error::Io`], the file being as after the last flush; [`Error::Training`] once a value that is not finite was
    /// set (everything else is written all the same).
    pub fn flush(&mut self) -> Result<()> {
        let begun = Instant::now();
        if self.dirty {
            self.write()?;
        }
        self.flushed = (Instant::now(), begun.elapsed());
        match self.unusable {
            None => Ok(()),
            Some(([a, b], value)) => Err(Error::Training(format!(
                "({a}, {b}) of the data has the reference log-probability {value}: the reference model's weights are not usable"
            ))),
        }
    }

    /// Flushes if the last time is `every` ago, and 50 times as long as that flush took. Returns whether it did. Errors: as
    /// [`Keyed::flush`].
    pub fn flush_if_due(&mut self, every: Duration) -> Result<bool> {
        let (at, cost) = self.flushed;
        let due = at.elapsed() >= every.max(50 * cost);
        if due {
            self.flush()?;
        }
        Ok(due)
    }

    fn write(&mut self) -> Result<()> {
        let entries: Vec<Entry> = self.values.iter().map(|(key, value)| Entry { key: *key, value: *value }).collect();
        let to = AtomicFile::create(&self.path)?;
        keyed_file::write(&self.header, &entries, to.file()).map_err(Error::io(&self.path, "write"))?;
        to.commit()?;
        self.dirty = false;
        Ok(())
    }

    /// Tells why others of the same name and kind do not serve. They are left alone, and none of this is an error.
    fn note_others(&mut self, data: &Dataset, kept: Kept) -> Result<()> {
        for other in named(folder(&self.path), &prefix(first(data)?, kept))? {
            if let Ok(Some(why)) = keyed_file::read_header(&other).map(|h| self.header.difference(&h)) {
                self.notes.push(format!("{}: not used: {why}", other.display()));
            }
        }
        Ok(())
    }
}

/// Where the sidecar of `data` for `kept` under `key` is.
pub fn keyed_path(data: &Dataset, cache: Option<&Path>, key: &RefKey, kept: Kept) -> Result<PathBuf> {
    path_of(data, cache, &Header::new(data, key, kept.name())?, kept)
}

fn path_of(data: &Dataset, cache: Option<&Path>, header: &Header, kept: Kept) -> Result<PathBuf> {
    let shard = first(data)?;
    let mut name = prefix(shard, kept);
    name.push(header.hash());
    Ok(cache.or(shard.path().parent()).unwrap_or(Path::new("")).join(name))
}

fn first(data: &Dataset) -> Result<&Shard> {
    data.shards().first().ok_or_else(|| Error::file(data.folder(), "has no shards"))
}

fn prefix(shard: &Shard, kept: Kept) -> OsString {
    let mut name = shard.path().file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-", kept.name()));
    name
}

fn read(path: &Path, want: &Header) -> Result<Vec<Entry>> {
    let (header, entries) = keyed_file::read(path)?;
    match want.difference(&header) {
        None => Ok(entries),
        Some(why) => Err(Error::file(path, format!("{why}: delete it, and the reference pass makes it again"))),
    }
}

fn read_only(e: Error, cache: Option<&Path>) -> Error {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    match e {
        Error::Io { path, doing, source }
            if cache.is_none() && matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem) =>
        {
            let folder = folder(&path).display();
            let why = format!("cannot {doing}: {source}: the folder {folder} is read-only, give `options.cache` DIR");
            Error::file(&path, why)
        }
        e => e,
    }
}

/// The keyed sidecars of `data` in their folder: path, and whether [`Keyed::open`] under `key` would read it, or (in a `cache`)
/// it is another data set's.
pub(super) fn kept_and_not(data: &Dataset, cache: Option<&Path>, key: &RefKey) -> Result<Vec<(PathBuf, bool)>> {
    let mut all = Vec::new();
    let Some(shard) = data.shards().first() else { return Ok(all) };
    for kept in Kept::ALL {
        let want = Header::new(data, key, kept.name())?;
        let own = path_of(data, cache, &want, kept)?;
        for other in named(folder(&own), &prefix(shard, kept))? {
            let header = keyed_file::read_header(&other);
            let foreign = cache.is_some() && header.as_ref().is_ok_and(|h| !want.is_of_same_data(h));
            let stays = foreign || header.is_ok_and(|h| want.difference(&h).is_none());
            all.push((other, stays));
        }
    }
    Ok(all)
}
