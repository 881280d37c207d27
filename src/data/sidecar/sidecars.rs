//! A data set's sidecars in memory, and where their files are.

use super::file::{self, Header};
use super::key::RefKey;
use super::keyed::Keyed;
use crate::data::shard::format::hex;
use crate::data::shard::{Dataset, Shard};
use crate::error::{Error, Result};
use crate::files::{AtomicFile, MadeFolders, sweep_files};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The sidecars of a data set, in memory: 8 bytes a response and a bit.
#[derive(Debug)]
pub struct Sidecars {
    files: Vec<Sidecar>,
    /// First response id of each, and one past the last.
    starts: Vec<u64>,
    missing: u64,
    /// Values that the files had.
    found: u64,
    notes: Vec<String>,
    /// The first value that cannot be stored: response and value.
    unusable: Option<(u64, f64)>,
    /// When the last flush ended, and how long it took.
    flushed: (Instant, Duration),
    /// Sums over the first tokens of responses, where somebody reads them.
    heads: Option<Keyed>,
    /// Of a run that reads judgements.
    mismatched: Option<Keyed>,
}

/// One shard's values.
#[derive(Debug)]
struct Sidecar {
    path: PathBuf,
    header: Header,
    /// 0 where not filled.
    values: Vec<f64>,
    /// Bit `i % 64` of word `i / 64`.
    filled: Vec<u64>,
    dirty: bool,
}

impl Sidecars {
    /// Opens the sidecars of `data` under `key`, beside the shards or in the folder `cache`, and creates empty ones
    /// where there are none: that it can write is known before hours are spent on values.
    ///
    /// Errors: [`Error::File`] for a damaged file or one whose header has another key, with the reason; [`Error::Io`]
    /// where the folder cannot be read or written; [`Error::Usage`] for a fingerprint that is too long.
    pub fn open(data: &Dataset, cache: Option<&Path>, key: &RefKey) -> Result<Self> {
        // With no file in it, it goes again.
        let mut made = cache.map(MadeFolders::make).transpose()?;
        let (mut files, mut notes) = (Vec::new(), Vec::new());
        let folders = data.shards().iter().map(|shard| folder(shard, cache));
        folders.collect::<std::collections::BTreeSet<_>>().into_iter().for_each(sweep_files);
        for shard in data.shards() {
            files.push(open_one(shard, cache, key, &mut notes)?);
        }
        if let Some(made) = &mut made {
            made.keep();
        }
        let missing = files.iter().map(Sidecar::missing).sum();
        let found = data.num_responses() - missing;
        let starts = data.response_starts().collect();
        Ok(Sidecars {
            files,
            starts,
            missing,
            found,
            notes,
            unusable: None,
            flushed: (Instant::now(), Duration::ZERO),
            heads: None,
            mismatched: None,
        })
    }

    /// Lends them [`Kept::Heads`](super::Kept::Heads) of the same data and key, to be found here.
    pub fn with_heads(&mut self, heads: Keyed) {
        self.heads = Some(heads);
    }

    /// The log-probability of the first `tokens` predictions of response `response_id`; `None` where it is not known.
    pub fn head(&self, response_id: u64, tokens: u64) -> Option<f64> {
        self.heads.as_ref()?.get(response_id, tokens)
    }

    /// The log-probability of response `response_id` of the data set; `None` where it is not filled, or not there.
    pub fn get(&self, response_id: u64) -> Option<f64> {
        let (file, i) = self.locate(response_id)?;
        let f = &self.files[file];
        (f.filled[i / 64] >> (i % 64) & 1 == 1).then(|| f.values[i])
    }

    /// Stores a value, in memory until [`Sidecars::flush`]. Panics unless there is such a response.
    /// A value that is not finite stays unfilled and makes the next flush fail.
    pub fn set(&mut self, response_id: u64, logp: f64) {
        let (file, i) = self.locate(response_id).expect("a response of the data set");
        if !logp.is_finite() {
            self.unusable.get_or_insert((response_id, logp));
            return;
        }
        let f = &mut self.files[file];
        let bit = 1 << (i % 64);
        if f.filled[i / 64] & bit == 0 {
            f.filled[i / 64] |= bit;
            self.missing -= 1;
        }
        f.values[i] = logp;
        f.dirty = true;
    }

    /// The log-probability of response `response` beside the prompt of `group`, which it does not answer.
    pub fn mismatched(&self, group: u64, response: u64) -> Option<f64> {
        self.mismatched.as_ref()?.get(group, response)
    }

    /// Takes the values of mismatched rows along.
    pub fn with_mismatched(&mut self, rows: Keyed) {
        self.mismatched = Some(rows);
    }

    /// Responses without a value.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Values that were found when the files were opened: nobody here computed them.
    pub fn found(&self) -> u64 {
        self.found + [&self.heads, &self.mismatched].into_iter().flatten().map(Keyed::found).sum::<u64>()
    }

    /// Whether response `response_id` has a value.
    pub fn has(&self, response_id: u64) -> bool {
        self.get(response_id).is_some()
    }

    /// Why sidecars that lie beside the shards are not the ones to read: a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Makes what was set survive the process (and, where the disk keeps its word, the machine). Rewrites the sidecars
    /// of the shards that changed: 8.13 bytes for each of their responses, so not after every step.
    ///
    /// Errors: [`Error::Io`], the file being as after the last flush; [`Error::Training`] once a value that is not
    /// finite was set (everything else is written all the same).
    pub fn flush(&mut self) -> Result<()> {
        let begun = Instant::now();
        for f in self.files.iter_mut().filter(|f| f.dirty) {
            f.write()?;
        }
        self.flushed = (Instant::now(), begun.elapsed());
        match self.unusable {
            None => Ok(()),
            Some((id, logp)) => Err(Error::Training(format!(
                "response {id} has the reference log-probability {logp}: the reference model's weights are not usable"
            ))),
        }
    }

    /// Flushes if the last time is `every` ago, and 50 times as long as that flush took: large sidecars are written
    /// less often, for 2 % of the time at most. Returns whether it did. Errors: as [`Sidecars::flush`].
    pub fn flush_if_due(&mut self, every: Duration) -> Result<bool> {
        let (at, cost) = self.flushed;
        let due = at.elapsed() >= every.max(50 * cost);
        if due {
            self.flush()?;
        }
        Ok(due)
    }

    fn locate(&self, id: u64) -> Option<(usize, usize)> {
        let file = self.starts.partition_point(|&s| s <= id).checked_sub(1).filter(|&f| f < self.files.len())?;
        Some((file, (id - self.starts[file]) as usize))
    }
}

impl Sidecar {
    fn missing(&self) -> u64 {
        self.values.len() as u64 - self.filled.iter().map(|w| u64::from(w.count_ones())).sum::<u64>()
    }

    fn write(&mut self) -> Result<()> {
        let to = AtomicFile::create(&self.path)?;
        file::write(&self.header, &self.values, &self.filled, to.file()).map_err(Error::io(&self.path, "write"))?;
        to.commit()?;
        self.dirty = false;
        Ok(())
    }
}

/// `NAME.pref`'s sidecar under a key: the first 16 hex digits of SHA-256(shard identity, model identity, fingerprint).
pub fn path(shard: &Shard, cache: Option<&Path>, key: &RefKey) -> PathBuf {
    let mut sha = Sha256::new();
    sha.update(shard.content_sha256());
    sha.update(key.model_sha256);
    sha.update(key.fingerprint.as_bytes());
    let mut name = file_prefix(shard);
    name.push(&hex(&sha.finalize())[..16]);
    let dir = cache.or(shard.path().parent()).unwrap_or(Path::new(""));
    dir.join(name)
}

/// Where a shard's sidecars lie.
fn folder<'a>(shard: &'a Shard, cache: Option<&'a Path>) -> &'a Path {
    cache.or(shard.path().parent()).filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn file_prefix(shard: &Shard) -> OsString {
    let mut name = shard.path().file_name().unwrap_or_default().to_owned();
    name.push(".ref-");
    name
}

fn open_one(shard: &Shard, cache: Option<&Path>, key: &RefKey, notes: &mut Vec<String>) -> Result<Sidecar> {
    let want = Header::new(shard, key)?;
    let path = path(shard, cache, key);
    if path.try_exists().map_err(Error::io(&path, "open"))? {
        let (header, values, filled) = file::read(&path)?;
        if let Some(why) = want.difference(&header) {
            let why = format!("{why}: delete it, and the reference pass makes it again");
            return Err(Error::file(&path, why));
        }
        return Ok(Sidecar { path, header, values, filled, dirty: false });
    }
    note_others(shard, &path, &want, notes);
    let n = shard.header().num_responses;
    let len = usize::try_from(n).map_err(|_| Error::file(&path, "is too large for this machine"))?;
    let mut new =
        Sidecar { path, header: want, values: vec![0.0; len], filled: vec![0; len.div_ceil(64)], dirty: true };
    new.write().map_err(|e| match (e, cache) {
        (Error::Io { path, doing, source }, None) if read_only(&source) => {
            let folder = path.parent().unwrap_or(&path).display();
            Error::file(
                &path,
                format!("cannot {doing}: {source}: the folder {folder} is read-only, give `options.cache` DIR"),
            )
        }
        (e, _) => e,
    })?;
    Ok(new)
}

fn read_only(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
}

/// Tells why other sidecars of the shard do not serve. They are left alone, and none of this is an error.
fn note_others(shard: &Shard, path: &Path, want: &Header, notes: &mut Vec<String>) {
    let prefix = file_prefix(shard);
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut others: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    others.sort();
    for other in others {
        let name = other.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(prefix.as_encoded_bytes()) {
            let why = file::read_header(&other).map(|h| want.difference(&h));
            if let Ok(Some(why)) = why {
                notes.push(format!("{}: not used: {why}", other.display()));
            }
        }
    }
}
