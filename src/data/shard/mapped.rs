//! A preference shard, mapped into memory and read in place.
//!
//! [`Shard::open`] reads and checks the header alone: its cost does not grow with the shard. [`Shard::verify`] reads
//! everything. Between the two a damaged shard can give wrong values or a panic on a range that is not there, never a
//! read outside the map: training verifies first, and [`Shard::check_group`] checks one group's records alone.
//!
//! **Do not modify or truncate a shard while a program reads it.** Its bytes are mapped: writes show through, and a
//! page that a truncation took away kills the process (`SIGBUS`). [`Shard::check_unchanged`] asks the file system for
//! the length and the time of modification, which catches this before the pages are touched, where it is called.

use super::format::{
    DESIRABLE, GROUPS, GroupRecord, HAS_LABEL, HAS_SCORE, HEADER_LEN, Header, PAIRS, PairRecord, RESPONSES,
    ResponseRecord, TOKENS,
};
use crate::error::{Error, Result};
use crate::files::{self, Map};
use bytemuck::Zeroable;
use std::fs::{File, Metadata};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Token ids as they lie in the shard.
#[derive(Clone, Copy, Debug)]
pub enum Tokens<'a> {
    /// Vocabularies of up to 65,536 ids.
    U16(&'a [u16]),
    /// Larger ones.
    U32(&'a [u32]),
}

impl<'a> Tokens<'a> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match self {
            Tokens::U16(t) => t.len(),
            Tokens::U32(t) => t.len(),
        }
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Token `i`. Panics unless `i < len()`.
    pub fn get(&self, i: usize) -> u32 {
        match self {
            Tokens::U16(t) => t[i].into(),
            Tokens::U32(t) => t[i],
        }
    }
    /// The tokens in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        let tokens = *self;
        (0..tokens.len()).map(move |i| tokens.get(i))
    }
    /// Appends the tokens to `out`.
    pub fn extend_into(&self, out: &mut Vec<u32>) {
        match self {
            Tokens::U16(t) => out.extend(t.iter().map(|&t| u32::from(t))),
            Tokens::U32(t) => out.extend_from_slice(t),
        }
    }
    /// The tokens as a vector.
    pub fn to_vec(&self) -> Vec<u32> {
        let mut out = Vec::with_capacity(self.len());
        self.extend_into(&mut out);
        out
    }
    /// Tokens `range`. Panics where it is not inside.
    pub fn slice(&self, range: Range<usize>) -> Tokens<'a> {
        match self {
            Tokens::U16(t) => Tokens::U16(&t[range]),
            Tokens::U32(t) => Tokens::U32(&t[range]),
        }
    }
}

/// An open shard.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    header: Header,
    file: File,
    map: Map,
    modified: Option<SystemTime>,
}

impl Shard {
    /// Opens the shard at `path` and checks its header, the file's length and the padding; reads no section.
    ///
    /// Errors: [`Error::File`] naming the first thing wrong; [`Error::Io`] where the file cannot be read.
    pub fn open(path: &Path) -> Result<Shard> {
        let file = files::open(path)?;
        let stat = file.metadata().map_err(Error::io(path, "read the length of"))?;
        let header = read_header(path, &file, &stat)?;
        // Sound while nobody changes the file: the documented rule of this module. What can be checked is: a regular file,
        // as long as its header says (`Header::check` above).
        let map = Map::new(path, &file)?;
        let shard = Shard { path: path.to_owned(), header, file, map, modified: stat.modified().ok() };
        // The length may have changed since it was checked; the ranges of the views below rely on it.
        if shard.map.len() as u64 != header.file_len() {
            return Err(shard.changed());
        }
        let tokens = header.sections[TOKENS];
        let pad = (tokens.offset + tokens.length) as usize..header.sections[GROUPS].offset as usize;
        if shard.map[pad].iter().any(|&b| b != 0) {
            return Err(Error::file(path, "the padding after its tokens is not zero: pack or copy the file again"));
        }
        Ok(shard)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Its header.
    pub fn header(&self) -> &Header {
        &self.header
    }
    /// SHA-256 that names its content.
    pub fn content_sha256(&self) -> [u8; 32] {
        self.header.content_sha256
    }

    /// Fails where the file changed its length or its time of modification since it was opened. One system call.
    pub fn check_unchanged(&self) -> Result<()> {
        let stat = self.file.metadata().map_err(Error::io(&self.path, "read the length of"))?;
        if stat.len() != self.header.file_len() || stat.modified().ok() != self.modified {
            return Err(self.changed());
        }
        Ok(())
    }

    fn changed(&self) -> Error {
        Error::file(&self.path, "was changed while in use: leave shards alone during a run, and start it again")
    }

    /// The bytes of section `s` ([`TOKENS`], ...).
    pub(crate) fn section(&self, s: usize) -> &[u8] {
        let at = self.header.sections[s];
        &self.map[at.offset as usize..(at.offset + at.length) as usize]
    }

    /// Gives the memory of bytes `range` of section `s` back to the system; read again, they come from its cache.
    pub(crate) fn release(&self, s: usize, range: Range<usize>) {
        let at = self.header.sections[s];
        let byte = |i: usize| at.offset as usize + i.min(at.length as usize);
        self.map.release(byte(range.start)..byte(range.end));
    }

    /// Gives the memory of the records of groups `range` back: what has been surveyed once need not stay.
    pub(crate) fn release_groups(&self, range: Range<usize>) {
        let groups = self.groups();
        let all = [self.header.num_responses, self.header.num_pairs];
        let start = |g: usize| groups.get(g).map_or(all, |g| [g.first_response, g.first_pair]);
        let (from, to) = (start(range.start), start(range.end));
        let bytes = |section: usize, from: u64, to: u64, record: usize| {
            // Damaged records say anything.
            let byte = |i: u64| usize::try_from(i).unwrap_or(usize::MAX).saturating_mul(record);
            self.release(section, byte(from).min(byte(to))..byte(to));
        };
        bytes(RESPONSES, from[0], to[0], size_of::<ResponseRecord>());
        bytes(PAIRS, from[1], to[1], size_of::<PairRecord>());
        bytes(GROUPS, range.start as u64, range.end as u64, size_of::<GroupRecord>());
    }

    // The casts cannot fail: lengths are multiples of the record by `Header::check`, the map starts at a page and every
    // section at a multiple of 8.

    /// The group table.
    pub fn groups(&self) -> &[GroupRecord] {
        bytemuck::cast_slice(self.section(GROUPS))
    }
    /// The response table.
    pub fn responses(&self) -> &[ResponseRecord] {
        bytemuck::cast_slice(self.section(RESPONSES))
    }
    /// The pair table. Its records hold local indices.
    pub fn pairs(&self) -> &[PairRecord] {
        bytemuck::cast_slice(self.section(PAIRS))
    }
    /// All tokens.
    pub fn tokens(&self) -> Tokens<'_> {
        match self.header.token_width {
            2 => Tokens::U16(bytemuck::cast_slice(self.section(TOKENS))),
            _ => Tokens::U32(bytemuck::cast_slice(self.section(TOKENS))),
        }
    }

    /// Checks the records of group `g` (below `num_groups`): all but the values of its tokens.
    ///
    /// Errors: [`Error::File`] naming the group and the first thing wrong.
    pub fn check_group(&self, g: usize) -> Result<()> {
        self.group_violation(g).map_or(Ok(()), |why| {
            Err(Error::file(&self.path, format!("group {g} is damaged: {why}: pack or copy the file again")))
        })
    }

    fn group_violation(&self, g: usize) -> Option<String> {
        let groups = self.groups();
        let r = groups[g];
        let start = [r.token_start, r.first_response, r.first_pair];
        let counts = [r.num_tokens, r.num_responses, r.num_pairs].map(u64::from);
        let mut end = [0; 3];
        for i in 0..3 {
            end[i] = match start[i].checked_add(counts[i]) {
                Some(e) => e,
                None => return Some(format!("its {} overflow 64 bits", ["tokens", "responses", "pairs"][i])),
            };
        }
        let all = [self.header.num_tokens, self.header.num_responses, self.header.num_pairs];
        let next = groups.get(g + 1).map_or(all, |n| [n.token_start, n.first_response, n.first_pair]);
        for (i, name) in ["tokens", "responses", "pairs"].into_iter().enumerate() {
            if (g == 0 && start[i] != 0) || end[i] != next[i] || end[i] > all[i] {
                return Some(format!("its {name} {}..{} leave a hole or overlap", start[i], end[i]));
            }
        }
        if r.num_responses == 0 {
            return Some("it has no response".into());
        }
        let responses = &self.responses()[start[1] as usize..end[1] as usize];
        response_violation(&r, responses).or_else(|| {
            let pairs = &self.pairs()[start[2] as usize..end[2] as usize];
            pairs
                .iter()
                .enumerate()
                .find_map(|(i, p)| pair_violation(p, r.num_responses).map(|w| format!("pair {i}: {w}")))
        })
    }
}

fn read_header(path: &Path, mut file: &File, stat: &Metadata) -> Result<Header> {
    if stat.len() < HEADER_LEN as u64 {
        let why = format!(
            "is not a preference shard: {} bytes, a header alone has {HEADER_LEN}: copy it again or pack the data again",
            stat.len()
        );
        return Err(Error::file(path, why));
    }
    // Read, not mapped: a file that shrinks now gives an error.
    let mut header = Header::zeroed();
    file.read_exact(bytemuck::bytes_of_mut(&mut header)).map_err(Error::io(path, "read"))?;
    header.check(stat.len()).map_err(|why| Error::file(path, why))?;
    Ok(header)
}

fn response_violation(g: &GroupRecord, responses: &[ResponseRecord]) -> Option<String> {
    let mut at = g.token_start + u64::from(g.prompt_len);
    for (i, r) in responses.iter().enumerate() {
        if r.token_start != at {
            return Some(format!("response {i} starts at token {}, not {at}", r.token_start));
        }
        if r.num_tokens == 0 {
            return Some(format!("response {i} is empty"));
        }
        at += u64::from(r.num_tokens);
        let flags = r.flags;
        if flags & !(HAS_SCORE | HAS_LABEL | DESIRABLE) != 0 || flags & (HAS_LABEL | DESIRABLE) == DESIRABLE {
            return Some(format!("response {i} has flags {flags:#x}"));
        }
        if !r.score.is_finite() || (flags & HAS_SCORE == 0 && r.score.to_bits() != 0) {
            return Some(format!("response {i} has score {}", r.score));
        }
    }
    let end = g.token_start + u64::from(g.num_tokens);
    (at != end).then(|| format!("its responses end at token {at}, not {end}"))
}

/// What is wrong with a pair of a group with `responses` responses.
pub(crate) fn pair_violation(p: &PairRecord, responses: u32) -> Option<String> {
    if p.chosen >= responses || p.rejected >= responses {
        return Some(format!("({}, {}) is outside of its group's {responses} responses", p.chosen, p.rejected));
    }
    if p.chosen == p.rejected {
        return Some(format!("chosen and rejected are both response {}", p.chosen));
    }
    (!(p.weight.is_finite() && p.weight > 0.0)).then(|| format!("weight {} is not a positive number", p.weight))
}
