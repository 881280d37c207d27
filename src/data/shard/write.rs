//! Writing a shard: tokens stream into a temporary sibling, the tables into unnamed temporary files, and `finish` puts
//! them together, so memory does not grow with the shard. The file appears under its name whole or not at all, and its
//! bytes depend on nothing but the groups and [`Meta`].

use super::format::{
    DESIRABLE, GroupRecord, HAS_LABEL, HAS_SCORE, HEADER_LEN, Header, IDENTITY_LEN, Meta, PairRecord, ResponseRecord,
    TOKENS, token_padding,
};
use super::mapped::pair_violation;
use crate::error::{Error, Result};
use crate::files::{AtomicFile, scratch_file};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A group to write.
#[derive(Clone, Debug)]
pub struct NewGroup<'a> {
    /// Prompt; may be empty.
    pub prompt: &'a [u32],
    /// At least one.
    pub responses: Vec<NewResponse<'a>>,
    /// Preferences among them; may be empty.
    pub pairs: Vec<NewPair>,
}

/// A response to write.
#[derive(Clone, Debug)]
pub struct NewResponse<'a> {
    /// At least one token.
    pub tokens: &'a [u32],
    /// Finite.
    pub score: Option<f32>,
    /// For a response judged by itself: whether it is desirable.
    pub label: Option<bool>,
    /// 0-based input row.
    pub row: u64,
    /// Place in that row: 0 chosen, 1 rejected, or the index in `responses`.
    pub index: u32,
}

/// A preference to write.
#[derive(Clone, Copy, Debug)]
pub struct NewPair {
    /// Index in the group of the preferred response.
    pub chosen: u32,
    /// Index in the group of the other.
    pub rejected: u32,
    /// Finite, greater than 0.
    pub weight: f32,
}

/// What [`ShardWriter::finish`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSummary {
    /// The file.
    pub path: PathBuf,
    /// Groups.
    pub groups: u64,
    /// Responses.
    pub responses: u64,
    /// Pairs.
    pub pairs: u64,
    /// Tokens of prompts (each once) and responses.
    pub tokens: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Its identity.
    pub content_sha256: [u8; 32],
}

/// Writes one shard. Dropped before `finish`, it leaves nothing behind.
#[derive(Debug)]
pub struct ShardWriter {
    path: PathBuf,
    meta: Meta,
    tokens: Sink<AtomicFile>,
    sha: Sha256,
    tables: [Sink<File>; 3],
    counts: [u64; 4],
    failed: bool,
}

/// A buffered file with the checksum of what went into it.
#[derive(Debug)]
struct Sink<W: Write> {
    to: BufWriter<W>,
    crc: crc32fast::Hasher,
}

impl<W: Write> Sink<W> {
    fn new(file: W) -> Self {
        Sink { to: BufWriter::with_capacity(1 << 18, file), crc: crc32fast::Hasher::new() }
    }
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.crc.update(bytes);
        self.to.write_all(bytes)
    }
}

impl ShardWriter {
    /// Starts the shard that [`ShardWriter::finish`] will put at `path`, replacing what is there.
    ///
    /// Errors: [`Error::Usage`] for a `meta` that cannot be; [`Error::Io`] where the folder cannot be written.
    pub fn create(path: &Path, meta: &Meta) -> Result<Self> {
        meta.check().map_err(|why| Error::usage(format!("{}: cannot write a shard: {why}", path.display())))?;
        let mut tokens = Sink::new(AtomicFile::create(path)?);
        tokens.to.write_all(&[0; HEADER_LEN]).map_err(Error::io(path, "write"))?;
        let spool = || Ok(Sink::new(scratch_file(tokens.to.get_ref().folder())?));
        let tables = [spool()?, spool()?, spool()?];
        Ok(ShardWriter {
            path: path.to_owned(),
            meta: meta.clone(),
            tokens,
            sha: Sha256::new(),
            tables,
            counts: [0; 4],
            failed: false,
        })
    }

    /// Appends a group.
    ///
    /// Errors: [`Error::Usage`] for a group that a shard cannot represent (the writer stays usable, nothing was
    /// written); [`Error::Io`] after which only dropping the writer is of use.
    pub fn push(&mut self, g: &NewGroup) -> Result<()> {
        if self.failed {
            return Err(self.broken());
        }
        self.check(g).map_err(|why| self.refused(g.responses.first().map(|r| r.row), &why))?;
        self.put(g)
    }

    fn refused(&self, row: Option<u64>, why: &str) -> Error {
        let row = row.map_or(String::new(), |row| format!(" (input row {row})"));
        Error::usage(format!("{}: group {}{row} cannot be stored: {why}", self.path.display(), self.counts[1]))
    }

    fn broken(&self) -> Error {
        Error::file(&self.path, "was not written because of an earlier error: free some space and run again")
    }

    fn check(&self, g: &NewGroup) -> Result<(), String> {
        let count = u32::try_from(g.responses.len()).map_err(|_| "more than 2^32 - 1 responses")?;
        u32::try_from(g.pairs.len()).map_err(|_| "more than 2^32 - 1 pairs")?;
        let total = g.prompt.len() + g.responses.iter().map(|r| r.tokens.len()).sum::<usize>();
        u32::try_from(total).map_err(|_| "more than 2^32 - 1 tokens")?;
        if count == 0 {
            return Err("it has no response".into());
        }
        self.known(g.prompt).map_err(|t| self.outside("its prompt", t))?;
        g.responses.iter().enumerate().try_for_each(|(i, r)| self.check_response(i, r))?;
        let record = |p: &NewPair| PairRecord { chosen: p.chosen, rejected: p.rejected, weight: p.weight };
        let pair = |(i, p)| pair_violation(&record(p), count).map(|w| format!("pair {i}: {w}"));
        g.pairs.iter().enumerate().find_map(pair).map_or(Ok(()), Err)
    }

    /// The first token that the vocabulary does not have.
    fn known(&self, tokens: &[u32]) -> Result<(), u32> {
        tokens.iter().copied().find(|&t| t >= self.meta.vocab_size).map_or(Ok(()), Err)
    }

    fn outside(&self, what: &str, token: u32) -> String {
        format!("{what} has token id {token}, the vocabulary ends at {}", self.meta.vocab_size)
    }

    fn check_response(&self, i: usize, r: &NewResponse) -> Result<(), String> {
        if r.tokens.is_empty() {
            return Err(format!("response {i} is empty; drop it while packing"));
        }
        self.known(r.tokens).map_err(|t| self.outside(&format!("response {i}"), t))?;
        match r.score.is_some_and(|s| !s.is_finite()) {
            true => Err(format!("response {i} has score {:?}, not a finite number", r.score)),
            false => Ok(()),
        }
    }

    /// Begins a group that is written piece by piece: for one that need not fit in memory.
    ///
    /// Errors: as [`ShardWriter::push`]. What was written of a group is not taken back: after an error, or where
    /// [`OpenGroup::finish`] was not called, only dropping the writer is of use.
    pub fn group(&mut self, prompt: &[u32], row: u64) -> Result<OpenGroup<'_>> {
        if self.failed {
            return Err(self.broken());
        }
        self.failed = true;
        let [token_start, _, first_response, first_pair] = self.counts;
        let record = GroupRecord { token_start, first_response, first_pair, ..Default::default() };
        let mut group = OpenGroup { to: self, record, row };
        group.check(group.to.known(prompt).map_err(|t| group.to.outside("its prompt", t)))?;
        group.record.prompt_len = group.more_tokens(prompt)?;
        Ok(group)
    }

    fn put(&mut self, g: &NewGroup) -> Result<()> {
        let mut group = self.group(g.prompt, g.responses.first().map_or(0, |r| r.row))?;
        g.responses.iter().try_for_each(|r| group.response(r))?;
        g.pairs.iter().try_for_each(|p| group.pair(p))?;
        group.finish()
    }

    fn put_tokens(&mut self, tokens: &[u32]) -> std::io::Result<()> {
        let mut narrow = [0u16; 1024];
        for part in tokens.chunks(narrow.len()) {
            let bytes: &[u8] = if self.meta.token_width() == 2 {
                // `check` saw every id below the vocabulary's size, which is at most 2^16.
                part.iter().zip(&mut narrow).for_each(|(&t, n)| *n = t as u16);
                bytemuck::cast_slice(&narrow[..part.len()])
            } else {
                bytemuck::cast_slice(part)
            };
            self.sha.update(bytes);
            self.tokens.put(bytes)?;
        }
        Ok(())
    }

    /// Completes the shard: tables, checksums and header, then `fsync` and the rename.
    ///
    /// Errors: [`Error::Io`], with nothing left behind and what was at the path untouched.
    pub fn finish(self) -> Result<ShardSummary> {
        if self.failed {
            return Err(self.broken());
        }
        let path = self.path.clone();
        let (temp, header) = self.assemble().map_err(Error::io(&path, "write"))?;
        temp.commit()?;
        let [tokens, groups, responses, pairs] = header.counts();
        let (bytes, content_sha256) = (header.file_len(), header.content_sha256);
        Ok(ShardSummary { path, groups, responses, pairs, tokens, bytes, content_sha256 })
    }

    fn assemble(mut self) -> std::io::Result<(AtomicFile, Header)> {
        let too_big = || std::io::Error::new(std::io::ErrorKind::FileTooLarge, "the shard's size overflows 64 bits");
        let mut header = Header::new(&self.meta, self.counts).ok_or_else(too_big)?;
        header.sections[TOKENS].crc32 = self.tokens.crc.finalize();
        let mut out = self.tokens.to;
        out.write_all(&[0; 8][..token_padding(header.sections[TOKENS].length) as usize])?;
        for (entry, table) in header.sections[1..].iter_mut().zip(self.tables) {
            entry.crc32 = table.crc.finalize();
            let mut spool = table.to.into_inner().map_err(|e| e.into_error())?;
            spool.seek(SeekFrom::Start(0))?;
            let mut block = vec![0; 1 << 18];
            loop {
                let n = spool.read(&mut block)?;
                if n == 0 {
                    break;
                }
                self.sha.update(&block[..n]);
                out.write_all(&block[..n])?;
            }
        }
        self.sha.update(&bytemuck::bytes_of(&header)[..IDENTITY_LEN]);
        header.content_sha256 = self.sha.finalize().into();
        header.seal();
        let mut temp = out.into_inner().map_err(|e| e.into_error())?;
        temp.seek(SeekFrom::Start(0))?;
        temp.write_all(bytemuck::bytes_of(&header))?;
        Ok((temp, header))
    }
}

/// A group that is being written: its responses, and pairs of those that are there already.
#[derive(Debug)]
pub struct OpenGroup<'a> {
    to: &'a mut ShardWriter,
    record: GroupRecord,
    /// Input row, for messages.
    row: u64,
}

impl OpenGroup<'_> {
    /// Adds a response; its index in the group is the number of those before.
    pub fn response(&mut self, r: &NewResponse) -> Result<()> {
        self.check(self.to.check_response(self.record.num_responses as usize, r))?;
        let label = r.label.map_or(0, |l| HAS_LABEL | if l { DESIRABLE } else { 0 });
        let token_start = self.record.token_start + u64::from(self.record.num_tokens);
        let record = ResponseRecord {
            token_start,
            row: r.row,
            num_tokens: self.more_tokens(r.tokens)?,
            index: r.index,
            score: r.score.unwrap_or(0.0),
            flags: label | if r.score.is_some() { HAS_SCORE } else { 0 },
        };
        self.record.num_responses = self.one_more(self.record.num_responses, "responses")?;
        self.to.tables[1].put(bytemuck::bytes_of(&record)).map_err(Error::io(&self.to.path, "write"))
    }

    /// Adds a preference among the responses that are there.
    pub fn pair(&mut self, p: &NewPair) -> Result<()> {
        let record = PairRecord { chosen: p.chosen, rejected: p.rejected, weight: p.weight };
        let violation = pair_violation(&record, self.record.num_responses);
        self.check(violation.map_or(Ok(()), |w| Err(format!("pair {}: {w}", self.record.num_pairs))))?;
        self.record.num_pairs = self.one_more(self.record.num_pairs, "pairs")?;
        self.to.tables[2].put(bytemuck::bytes_of(&record)).map_err(Error::io(&self.to.path, "write"))
    }

    /// The group is complete.
    pub fn finish(self) -> Result<()> {
        let Self { to, record: r, row } = self;
        if r.num_responses == 0 {
            return Err(to.refused(Some(row), "it has no response"));
        }
        to.tables[0].put(bytemuck::bytes_of(&r)).map_err(Error::io(&to.path, "write"))?;
        let more = [u64::from(r.num_tokens), 1, r.num_responses.into(), r.num_pairs.into()];
        to.counts.iter_mut().zip(more).for_each(|(n, more)| *n += more);
        to.failed = false;
        Ok(())
    }

    fn check(&self, r: Result<(), String>) -> Result<()> {
        r.map_err(|why| self.to.refused(Some(self.row), &why))
    }

    fn one_more(&self, n: u32, what: &str) -> Result<u32> {
        n.checked_add(1).ok_or_else(|| self.to.refused(Some(self.row), &format!("more than 2^32 - 1 {what}")))
    }

    /// Writes tokens; how many.
    fn more_tokens(&mut self, tokens: &[u32]) -> Result<u32> {
        let n = u32::try_from(tokens.len()).ok();
        let sum = n.and_then(|n| self.record.num_tokens.checked_add(n));
        let (Some(n), Some(sum)) = (n, sum) else {
            return self.check(Err("more than 2^32 - 1 tokens".into())).map(|()| 0);
        };
        self.record.num_tokens = sum;
        self.to.put_tokens(tokens).map_err(Error::io(&self.to.path, "write"))?;
        Ok(n)
    }
}
