//! Groups under construction: rows with the same prompt ids, in the order in which they first appear.
//!
//! A row may join a group that began long before, so tokens must be kept until the end: up to [`IN_MEMORY`] of them in
//! memory, the rest in a temporary file. What stays in memory beside them is about 100 bytes a response.

use crate::data::text::TokenResponse;
use crate::error::{Error, Result};
use crate::files::scratch_file;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Tokens held in memory before the rest goes to a file: 256 MiB.
pub const IN_MEMORY: usize = 1 << 26;

/// No further element in a list.
const END: u32 = u32::MAX;

/// Append-only token store.
struct Spill {
    memory: Vec<u32>,
    limit: usize,
    dir: PathBuf,
    file: Option<BufWriter<File>>,
    len: u64,
}

impl Spill {
    fn push(&mut self, tokens: &[u32]) -> Result<u64> {
        let at = self.len;
        self.len += tokens.len() as u64;
        if self.file.is_none() && self.memory.len() + tokens.len() <= self.limit {
            self.memory.extend_from_slice(tokens);
            return Ok(at);
        }
        if self.file.is_none() {
            self.file = Some(BufWriter::with_capacity(1 << 20, scratch_file(&self.dir)?));
        }
        let bytes: &[u8] = bytemuck::cast_slice(tokens);
        let file = self.file.as_mut().expect("just created");
        file.write_all(bytes).map_err(Error::io(&self.dir, "write a temporary file in"))?;
        Ok(at)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), |f| f.flush().map_err(Error::io(&self.dir, "write a temporary file in")))
    }

    fn read(&mut self, at: u64, len: u32, out: &mut Vec<u32>) -> Result<()> {
        let held = self.memory.len() as u64;
        match &mut self.file {
            Some(file) if at >= held => {
                let start = out.len();
                out.resize(start + len as usize, 0);
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut out[start..]);
                let file = file.get_mut();
                let read = file.seek(SeekFrom::Start(4 * (at - held))).and_then(|_| file.read_exact(bytes));
                read.map_err(Error::io(&self.dir, "read a temporary file in"))
            }
            _ => {
                out.extend_from_slice(&self.memory[at as usize..at as usize + len as usize]);
                Ok(())
            }
        }
    }
}

struct GroupRecord {
    prompt: (u64, u32),
    responses: (u32, u32),
    num_responses: u32,
    pairs: (u32, u32),
    num_pairs: u32,
    parent: u32,
    key: [u8; 16],
}

struct ResponseRecord {
    tokens: (u64, u32),
    row: u64,
    index: u32,
    score: Option<f32>,
    label: Option<bool>,
    next: u32,
}

struct PairRecord {
    chosen: u32,
    rejected: u32,
    weight: f32,
    next: u32,
}

/// A response as it goes into a shard; `tokens` is a range of [`GroupData::tokens`].
#[derive(Clone, Debug)]
pub struct ResponseData {
    /// Where its tokens are.
    pub tokens: std::ops::Range<usize>,
    /// 0-based input row.
    pub row: u64,
    /// Place in that row.
    pub index: u32,
    /// Score.
    pub score: Option<f32>,
    /// Label.
    pub label: Option<bool>,
}

/// A finished group, read back.
#[derive(Clone, Debug, Default)]
pub struct GroupData {
    /// Prompt, then the responses.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Responses in input order.
    pub responses: Vec<ResponseData>,
    /// Chosen and rejected (indices of `responses`) and weight.
    pub pairs: Vec<(u32, u32, f32)>,
}

/// Groups, responses and pairs so far.
pub struct Groups {
    by_prompt: HashMap<[u8; 16], u32>,
    by_key: HashMap<[u8; 16], u32>,
    groups: Vec<GroupRecord>,
    responses: Vec<ResponseRecord>,
    pairs: Vec<PairRecord>,
    seen_pairs: HashSet<u64>,
    spill: Spill,
}

/// What a new pair repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairNovelty {
    /// The same pair is there.
    pub duplicate: bool,
    /// The reverse of the pair is there.
    pub contradictory: bool,
}

/// The first 128 bits of SHA-256: two prompts are the same where these are.
pub fn fingerprint(tokens: &[u32]) -> [u8; 16] {
    let digest = Sha256::digest(bytemuck::cast_slice::<u32, u8>(tokens));
    std::array::from_fn(|i| digest[i])
}

impl Groups {
    /// Empty; temporary files go into `dir`, tokens beyond `in_memory` into them.
    pub fn new(dir: &Path, in_memory: usize) -> Self {
        let spill = Spill { memory: Vec::new(), limit: in_memory, dir: dir.to_owned(), file: None, len: 0 };
        Self {
            by_prompt: HashMap::new(),
            by_key: HashMap::new(),
            groups: Vec::new(),
            responses: Vec::new(),
            pairs: Vec::new(),
            seen_pairs: HashSet::new(),
            spill,
        }
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The group of `prompt`, made where it is new or where `apart` says that it shares nothing. `prompt_key` is the
    /// identity of the prompt as the row gave it: groups with a key in common fall on the same side of a split.
    pub fn group(&mut self, prompt: &[u32], prompt_key: [u8; 16], apart: bool) -> Result<u32> {
        let full = || Error::usage("more than 4 billion groups or responses; pack the input in parts");
        let next = u32::try_from(self.groups.len()).ok().filter(|n| *n != END).ok_or_else(full)?;
        let at = if apart { next } else { *self.by_prompt.entry(fingerprint(prompt)).or_insert(next) };
        if at == next {
            let prompt = (self.spill.push(prompt)?, prompt.len() as u32);
            let (none, key) = ((END, END), prompt_key);
            self.groups.push(GroupRecord {
                prompt,
                responses: none,
                num_responses: 0,
                pairs: none,
                num_pairs: 0,
                parent: at,
                key,
            });
        }
        let other = *self.by_key.entry(prompt_key).or_insert(at);
        self.join(at, other);
        // The same ids under another key: this one may be the family's smallest.
        let root = self.root(at) as usize;
        self.groups[root].key = self.groups[root].key.min(prompt_key);
        Ok(at)
    }

    fn root(&mut self, mut at: u32) -> u32 {
        while self.groups[at as usize].parent != at {
            let parent = self.groups[at as usize].parent;
            self.groups[at as usize].parent = self.groups[parent as usize].parent;
            at = parent;
        }
        at
    }

    /// The root keeps the smallest key, so a family's side of the split does not depend on the rows' order.
    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        if a != b {
            let key = self.groups[a as usize].key.min(self.groups[b as usize].key);
            self.groups[a as usize].parent = b;
            self.groups[b as usize].key = key;
        }
    }

    /// Adds a response to a group; returns its index there.
    pub fn response(&mut self, group: u32, row: u64, r: &TokenResponse) -> Result<u32> {
        let full = || Error::usage("more than 4 billion groups or responses; pack the input in parts");
        let at = u32::try_from(self.responses.len()).ok().filter(|n| *n != END).ok_or_else(full)?;
        let tokens = (self.spill.push(&r.tokens)?, r.tokens.len() as u32);
        self.responses.push(ResponseRecord { tokens, row, index: r.index, score: r.score, label: r.label, next: END });
        let g = &mut self.groups[group as usize];
        match g.responses.1 {
            END => g.responses.0 = at,
            last => self.responses[last as usize].next = at,
        }
        g.responses.1 = at;
        g.num_responses += 1;
        Ok(g.num_responses - 1)
    }

    /// Adds a pair of two responses of a group, by their indices there and their tokens' fingerprints.
    pub fn pair(&mut self, group: u32, pair: (u32, u32, f32), prints: ([u8; 16], [u8; 16])) -> Result<PairNovelty> {
        let full = || Error::usage("more than 4 billion pairs; pack the input in parts");
        let at = u32::try_from(self.pairs.len()).ok().filter(|n| *n != END).ok_or_else(full)?;
        self.pairs.push(PairRecord { chosen: pair.0, rejected: pair.1, weight: pair.2, next: END });
        let g = &mut self.groups[group as usize];
        match g.pairs.1 {
            END => g.pairs.0 = at,
            last => self.pairs[last as usize].next = at,
        }
        g.pairs.1 = at;
        g.num_pairs += 1;
        let print = |a: &[u8; 16], b: &[u8; 16]| {
            let digest = Sha256::new().chain_update(group.to_le_bytes()).chain_update(a).chain_update(b).finalize();
            u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
        };
        let contradictory = self.seen_pairs.contains(&print(&prints.1, &prints.0));
        let duplicate = !self.seen_pairs.insert(print(&prints.0, &prints.1));
        Ok(PairNovelty { duplicate, contradictory })
    }

    /// Call once all rows are in, before [`Groups::read`].
    pub fn seal(&mut self) -> Result<()> {
        self.spill.flush()
    }

    /// Whether group `at` is held out: a function of its family's prompt and `seed` alone.
    pub fn is_eval(&mut self, at: u32, fraction: f64, seed: u64) -> bool {
        let root = self.root(at);
        let digest =
            Sha256::new().chain_update(seed.to_le_bytes()).chain_update(self.groups[root as usize].key).finalize();
        let draw = u64::from_le_bytes(std::array::from_fn(|i| digest[i])) >> 11;
        (draw as f64) / ((1u64 << 53) as f64) < fraction
    }

    /// Reads group `at` into `out`.
    pub fn read(&mut self, at: u32, out: &mut GroupData) -> Result<()> {
        let g = &self.groups[at as usize];
        out.tokens.clear();
        out.responses.clear();
        out.pairs.clear();
        self.spill.read(g.prompt.0, g.prompt.1, &mut out.tokens)?;
        out.prompt_len = out.tokens.len();
        let mut next = g.responses.0;
        while next != END {
            let r = &self.responses[next as usize];
            let start = out.tokens.len();
            self.spill.read(r.tokens.0, r.tokens.1, &mut out.tokens)?;
            let tokens = start..out.tokens.len();
            out.responses.push(ResponseData { tokens, row: r.row, index: r.index, score: r.score, label: r.label });
            next = r.next;
        }
        let mut next = g.pairs.0;
        while next != END {
            let p = &self.pairs[next as usize];
            out.pairs.push((p.chosen, p.rejected, p.weight));
            next = p.next;
        }
        Ok(())
    }
}
