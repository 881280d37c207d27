//! Files of a repository, brought into the cache.

use super::http::{Answer, Failure, stopped};
use super::listing::{Entry, Listing};
use super::name::{Fetched, Kind, Repo};
use super::shared::Hub;
use super::url::quoted;
use crate::error::{Error, Result};
use crate::files::{self, Partial, Turn};
use crate::observe::{Event, Flow, Observe};
use crate::units;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

const PIECE: usize = 1 << 18;
const MIB: u64 = 1 << 20;
/// Less is there before it could be shown.
const WORTH: u64 = 4 * MIB;
/// Of what is missing.
const UNASKED: &str = "the hub cannot be asked: download it when there is a network, and without HF_HUB_OFFLINE";

/// A repository at one commit.
pub struct Opened<'h> {
    hub: &'h Hub,
    repo: Repo,
    listing: Listing,
    /// Whether what is missing may be asked for.
    online: bool,
}

/// What is told of a download.
struct Told {
    all: u64,
    done: u64,
    new: u64,
    begun: Instant,
}

/// The hash that the hub lists, of what came so far.
enum Sum {
    Sha256(Sha256),
    /// As git names a content.
    Sha1(Sha1),
}

impl Sum {
    fn of(entry: &Entry, size: u64) -> Self {
        match entry.sha256 {
            Some(_) => Sum::Sha256(Sha256::new()),
            None => Sum::Sha1(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        match self {
            Sum::Sha256(sum) => sum.update(bytes),
            Sum::Sha1(sum) => sum.update(bytes),
        }
    }

    fn end(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Sum::Sha256(sum) => hex(&sum.finalize()),
            Sum::Sha1(sum) => hex(&sum.finalize()),
        }
    }
}

impl<'h> Opened<'h> {
    pub(super) fn new(hub: &'h Hub, repo: &Repo, listing: Listing, online: bool) -> Self {
        Self { hub, repo: repo.clone(), listing, online: online && !hub.offline }
    }

    /// Its name with the commit.
    pub fn repo(&self) -> Repo {
        self.repo.at(&self.listing.commit)
    }

    /// The files below its path, by their ways from there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.listing.files.iter().filter_map(|f| below(&f.path, &self.repo.path))
    }

    /// Whether it has the file `name` below its path.
    pub fn has(&self, name: &str) -> bool {
        self.names().any(|n| n == name)
    }

    /// The folder that its path is in the cache, with what was fetched.
    pub fn folder(&self) -> PathBuf {
        let snapshot = self.hub.cache.snapshot(&self.repo, &self.listing.commit);
        if self.repo.path.is_empty() { snapshot } else { snapshot.join(&self.repo.path) }
    }

    /// What it is called, and where it lies.
    pub fn fetched(&self) -> Fetched {
        Fetched { named: self.repo().name(), path: self.folder() }
    }

    /// An error about it.
    pub fn error(&self, why: impl Into<String>) -> Error {
        Error::file(self.repo.name(), why)
    }

    /// Brings the files `names` below its path here, those that are not here yet. What came is kept when it ends half way.
    ///
    /// Errors: [`Error::File`] for what it does not have, what the hub does not give, and what is not here when nobody can be
    /// asked; [`Error::Io`] for a network that fails and for content that is not what the hub lists; [`Error::Stopped`].
    pub fn fetch(&self, names: &[&str], observe: &mut dyn Observe) -> Result<()> {
        let missing: Vec<&Entry> = names.iter().map(|name| self.entry(name)).collect::<Result<Vec<_>>>()?;
        let missing: Vec<&Entry> = missing.into_iter().filter(|entry| !self.is_here(entry)).collect();
        if !missing.is_empty() {
            self.download(&missing, observe)?;
        }
        if self.online {
            let cache = &self.hub.cache;
            // In a cache that is complete and cannot be written to there is nothing to say.
            let kept = cache
                .keep_tree(&self.repo, &self.listing)
                .and_then(|()| cache.keep_reference(&self.repo, &self.listing.commit));
            if !missing.is_empty() {
                kept.map_err(|e| cache.unwritable(e))?;
            }
        }
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let found = self.listing.files.iter().find(|f| below(&f.path, &self.repo.path) == Some(name));
        found.ok_or_else(|| self.lacks(name))
    }

    /// Whether [`Opened::names`] are all; else only those that are in the cache.
    pub fn is_whole(&self) -> bool {
        self.listing.whole
    }

    /// The error of a file `name` that it does not have.
    pub fn lacks(&self, name: &str) -> Error {
        match self.listing.whole {
            true => self.error(format!("has no file `{name}`")),
            false => self.error(format!("is in the cache without {name}, and {UNASKED}")),
        }
    }

    fn place(&self, entry: &Entry) -> PathBuf {
        self.hub.cache.snapshot(&self.repo, &self.listing.commit).join(&entry.path)
    }

    fn is_here(&self, entry: &Entry) -> bool {
        is_whole(&self.place(entry), entry)
    }

    fn download(&self, missing: &[&Entry], observe: &mut dyn Observe) -> Result<()> {
        let all: u64 = missing.iter().filter_map(|e| e.size).sum();
        if !self.online {
            let names: Vec<&str> = missing.iter().map(|e| e.path.as_str()).collect();
            return Err(self.error(format!("is in the cache without {}, and {UNASKED}", some(&names))));
        }
        let files = if missing.len() == 1 { "1 file".to_owned() } else { format!("{} files", missing.len()) };
        let (size, host) = (units::bytes(all as usize), self.hub.client.host());
        observe.tell(&Event::Note(&format!("{}: {files}, {size}, from {host}", self.repo().name().display())))?;
        let shown = all >= WORTH;
        if shown {
            observe.tell(&Event::Begin { task: "download", total: all.div_ceil(MIB), keeps: false })?;
        }
        let mut told = Told { all, done: 0, new: 0, begun: Instant::now() };
        for entry in missing {
            self.bring(entry, &mut told, observe).map_err(|e| self.hub.cache.unwritable(e))?;
        }
        if shown { observe.tell(&Event::End) } else { Ok(()) }
    }

    /// Brings one file, unless another process did meanwhile.
    fn bring(&self, entry: &Entry, told: &mut Told, observe: &mut dyn Observe) -> Result<()> {
        let cache = &self.hub.cache;
        let hash = entry.hash().ok_or_else(|| self.error(format!("lists `{}` without a hash", entry.path)))?;
        let blob = cache.blob(&self.repo, hash);
        let mut said = false;
        let _turn = Turn::wait(&cache.lock(&self.repo, hash), || {
            if !std::mem::replace(&mut said, true) {
                observe.tell(&Event::Note(&format!("{}: another process downloads it; waiting", entry.path)))?;
            }
            match observe.on(&Event::Tick)? {
                Flow::On => Ok(()),
                _ => Err(stopped()),
            }
        })?;
        if !is_whole(&blob, entry) {
            files::make_folder(blob.parent().unwrap_or(&blob))?;
            self.content(entry, (&blob, hash), told, observe)?;
        }
        told.done += entry.size.unwrap_or(0);
        told.tell(entry, 0, observe)?;
        files::link(&blob, &self.place(entry))
    }

    /// Downloads a content, from where it ended the last time.
    fn content(
        &self,
        entry: &Entry,
        (blob, hash): (&Path, &str),
        told: &mut Told,
        observe: &mut dyn Observe,
    ) -> Result<()> {
        let size = entry.size.unwrap_or(0);
        let mut partial = Partial::open(&blob.with_file_name(format!("{hash}.incomplete")), blob)?;
        if partial.len() > size {
            partial.restart()?;
        }
        let resumed = !partial.is_empty();
        let mut sum = Sum::of(entry, size);
        partial.read_back(|bytes| {
            sum.add(bytes);
            Ok(())
        })?;
        if let Err(e) = self.rest(entry, &mut partial, &mut sum, told, observe) {
            if partial.is_empty() {
                partial.discard()?;
            }
            return Err(e);
        }
        let is = sum.end();
        if is == hash {
            return partial.commit();
        }
        if resumed {
            // What was there before may have been the fault.
            partial.restart()?;
            let mut sum = Sum::of(entry, size);
            self.rest(entry, &mut partial, &mut sum, told, observe)?;
            if sum.end() == hash {
                return partial.commit();
            }
        }
        partial.discard()?;
        Err(self
            .broken(entry, format!("what came has the hash {is}, and the hub lists {hash}; nothing of it was kept")))
    }

    fn broken(&self, entry: &Entry, why: String) -> Error {
        Error::io(self.repo.name().join(&entry.path), "download")(std::io::Error::other(why))
    }

    /// Downloads what is missing of it, however often the connection is cut, as long as something comes.
    fn rest(
        &self,
        entry: &Entry,
        partial: &mut Partial,
        sum: &mut Sum,
        told: &mut Told,
        observe: &mut dyn Observe,
    ) -> Result<()> {
        let (client, size) = (&self.hub.client, entry.size.unwrap_or(0));
        let failed = |failure: Failure| failure.into_error(client, &self.repo, Some(&entry.path));
        let (mut tries, mut furthest) = (0, partial.len());
        while partial.len() < size {
            let from = partial.len();
            let mut answer =
                client.get(&self.address(entry), from, observe).map_err(failed).map_err(|e| kept(e, from, size))?;
            if from > 0 && !answer.goes_on_from(from) {
                // It does not know how to go on, and begins again; so do we.
                partial.restart()?;
                *sum = Sum::of(entry, size);
                if answer.status() != 200 {
                    answer = client.get(&self.address(entry), 0, observe).map_err(failed)?;
                }
            }
            self.check_length(entry, partial, &answer)?;
            let Some(why) = self.pour(entry, partial, sum, (&mut answer, &mut *told), observe)? else { continue };
            tries = if partial.len() > furthest { 1 } else { tries + 1 };
            furthest = furthest.max(partial.len());
            let cut = Failure::Network { host: answer.host().to_owned(), why, again: true };
            client.pause(cut, tries, observe).map_err(failed).map_err(|e| kept(e, partial.len(), size))?;
        }
        Ok(())
    }

    /// Refuses an answer that cannot be all that is missing before it is read.
    fn check_length(&self, entry: &Entry, partial: &Partial, answer: &Answer) -> Result<()> {
        let missing = entry.size.unwrap_or(0) - partial.len();
        match answer.length() {
            Some(length) if length != missing => Err(self.broken(
                entry,
                format!(
                    "{} has {length} bytes of it, and {missing} are to come: not the file that the hub lists",
                    answer.host()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Reads an answer to its end; why it ended before.
    fn pour(
        &self,
        entry: &Entry,
        partial: &mut Partial,
        sum: &mut Sum,
        (answer, told): (&mut Answer, &mut Told),
        observe: &mut dyn Observe,
    ) -> Result<Option<String>> {
        let size = entry.size.unwrap_or(0);
        let mut reader = answer.reader();
        let mut buf = vec![0; PIECE];
        loop {
            let n = match reader.read(&mut buf) {
                Ok(0) if partial.len() < size => return Ok(Some("the connection was cut".to_owned())),
                Ok(0) => return Ok(None),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == std::io::ErrorKind::TimedOut => return Ok(Some("it fell silent".to_owned())),
                Err(_) => return Ok(Some("the connection was cut".to_owned())),
            };
            if partial.len() + n as u64 > size {
                return Err(self.broken(entry, format!("more than the {size} bytes came that the hub lists")));
            }
            sum.add(&buf[..n]);
            partial.put(&buf[..n])?;
            told.new += n as u64;
            told.tell(entry, partial.len(), observe)?;
            if partial.len() == size {
                return Ok(None);
            }
        }
    }

    fn address(&self, entry: &Entry) -> String {
        let kind = match self.repo.kind {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        };
        let (endpoint, id) = (self.hub.client.endpoint(), &self.repo.id);
        format!("{endpoint}/{kind}{id}/resolve/{}/{}", self.listing.commit, quoted(&entry.path, true))
    }
}

impl Told {
    fn tell(&self, entry: &Entry, of_this: u64, observe: &mut dyn Observe) -> Result<()> {
        let done = (self.done + of_this).min(self.all) / MIB;
        let rate = self.new as f64 / self.begun.elapsed().as_secs_f64().max(1e-3) / 1e6;
        let beside = format_args!("MiB, {}, {rate:.1} MB/s", entry.path);
        let event = if self.all >= WORTH { Event::Progress { done, beside } } else { Event::Tick };
        match observe.on(&event)? {
            Flow::On => Ok(()),
            _ => Err(stopped()),
        }
    }
}

/// The way from the folder `folder`, which may be the top, to `path`.
fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    if folder.is_empty() { Some(path) } else { path.strip_prefix(folder)?.strip_prefix('/') }
}

/// Whether `path` is a file as long as `entry` is.
fn is_whole(path: &Path, entry: &Entry) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && entry.size.is_none_or(|size| m.len() == size))
}

/// The error of a download that ended half way.
fn kept(e: Error, n: u64, size: u64) -> Error {
    if n == 0 {
        return e;
    }
    let is = format!(
        "{} of {} are kept, and the same command goes on from there",
        units::bytes(n as usize),
        units::bytes(size as usize)
    );
    match e {
        Error::Io { path, doing, source } => {
            Error::Io { path, doing, source: std::io::Error::other(format!("{source}; {is}")) }
        }
        Error::File { path, why } => Error::File { path, why: format!("{why}; {is}") },
        e => e,
    }
}

/// Some names.
fn some(names: &[&str]) -> String {
    match names {
        [a] => (*a).to_owned(),
        [a, b] => format!("{a} and {b}"),
        [a, b, rest @ ..] => format!("{a}, {b} and {} more", rest.len()),
        [] => "nothing".to_owned(),
    }
}
