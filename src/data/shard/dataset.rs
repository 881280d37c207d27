//! A data set: the shards of a folder, read as one sequence of groups.

use super::format::{DESIRABLE, GroupRecord, HAS_LABEL, HAS_SCORE, Meta, ResponseRecord};
use super::mapped::{Shard, Tokens};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Groups that a pass over the records reads before it gives their memory back.
const GROUPS_AT_ONCE: u64 = 1 << 14;

/// Which shards of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// `train-*.pref`.
    Train,
    /// `eval-*.pref`.
    Eval,
}

impl Split {
    /// What the names of its shards begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Split::Train => "train-",
            Split::Eval => "eval-",
        }
    }
}

/// Shards that were made the same way, in the order of their names. Ids count on from shard to shard.
#[derive(Debug)]
pub struct Dataset {
    shards: Vec<Shard>,
    /// Ids of the first group, response and pair of each shard, and past the last.
    starts: Vec<[u64; 3]>,
    num_tokens: u64,
    meta: Meta,
    folder: PathBuf,
    /// See [`Dataset::longest_row`].
    longest_row: OnceLock<usize>,
}

impl Dataset {
    /// Opens the shards of `split` in the folder `dir`; a `.pref` file is a data set of its own, whatever its name.
    ///
    /// Reads the headers alone. Errors: [`Error::File`] for a missing folder, none or damaged shards, and shards that
    /// were not made the same way; [`Error::Io`] where something cannot be read.
    pub fn open(dir: &Path, split: Split) -> Result<Dataset> {
        let paths = if dir.is_file() { vec![dir.to_owned()] } else { shard_paths(dir, split)? };
        if paths.is_empty() {
            let other = if has_any(dir) { "; it has shards of another split" } else { "" };
            let why = format!("has no shard {}*.pref{other}: give a folder that `fusedpo pack` wrote", split.prefix());
            return Err(Error::file(dir, why));
        }
        let folder = if dir.is_file() { dir.parent().unwrap_or(Path::new("")).to_owned() } else { dir.to_owned() };
        let shards = paths.iter().map(|p| Shard::open(p)).collect::<Result<Vec<_>>>()?;
        let meta = shards[0].header().meta();
        for s in &shards[1..] {
            if let Some(what) = meta.difference(&s.header().meta()) {
                let first = shards[0].path().display();
                let why = format!("does not belong with {first}: its {what}: pack the whole data set in one run");
                return Err(Error::file(s.path(), why));
            }
        }
        let mut starts = vec![[0u64; 3]];
        let mut num_tokens = 0u64;
        for s in &shards {
            let h = s.header();
            let mut next: [u64; 3] = starts.last().copied().unwrap_or_default();
            for (n, count) in next.iter_mut().zip([h.num_groups, h.num_responses, h.num_pairs]) {
                // A count is below the length of a file that exists, so a sum cannot overflow before 2^20 shards; a
                // sparse file could lie, so it is checked.
                *n = n.checked_add(count).ok_or_else(|| Error::file(s.path(), "the data set is too large"))?;
            }
            num_tokens = num_tokens
                .checked_add(h.num_tokens)
                .ok_or_else(|| Error::file(s.path(), "the data set is too large"))?;
            starts.push(next);
        }
        Ok(Dataset { shards, starts, num_tokens, meta, folder, longest_row: OnceLock::new() })
    }

    /// Whether `dir` holds a shard of `split`. A `.pref` file is of [`Split::Eval`] if its name begins with `eval-`,
    /// and else of [`Split::Train`].
    pub fn has_split(dir: &Path, split: Split) -> bool {
        if dir.is_file() {
            let eval = dir.file_name().is_some_and(|n| n.to_string_lossy().starts_with(Split::Eval.prefix()));
            return eval == (split == Split::Eval);
        }
        shard_paths(dir, split).is_ok_and(|p| !p.is_empty())
    }

    /// Reads everything: every checksum, every record, every token id. Parallel.
    ///
    /// Errors: [`Error::File`] naming the shard, the part of it and the first thing wrong.
    pub fn verify(&self) -> Result<()> {
        // The first failing shard by name, whichever thread finds its fault first.
        let all: Vec<Result<()>> = self.shards.par_iter().map(Shard::verify).collect();
        all.into_iter().collect()
    }

    /// Fails where a shard changed since it was opened. One system call a shard: cheap enough for every step.
    pub fn check_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::check_unchanged)
    }

    /// How the shards were made.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }
    /// Where the shards lie, with the tokenizer that `pack` put beside them.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// The shards.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }
    /// Groups.
    pub fn num_groups(&self) -> u64 {
        self.totals()[0]
    }
    /// Responses.
    pub fn num_responses(&self) -> u64 {
        self.totals()[1]
    }
    /// Pairs.
    pub fn num_pairs(&self) -> u64 {
        self.totals()[2]
    }
    /// Tokens, each prompt once.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Tokens of the longest prompt with one of its responses: the positions that a model must have. One parallel pass over
    /// the records, the first time. Panics as [`Dataset::group`].
    pub fn longest_row(&self) -> usize {
        let row = |id: u64| {
            let g = self.group(id);
            g.prompt().len() + g.responses().map(|r| r.tokens.len()).max().unwrap_or(0)
        };
        let block = |block: u64| {
            let ids = block * GROUPS_AT_ONCE..self.num_groups().min((block + 1) * GROUPS_AT_ONCE);
            let longest = ids.clone().map(row).max().unwrap_or(0);
            self.release(ids);
            longest
        };
        let blocks = self.num_groups().div_ceil(GROUPS_AT_ONCE);
        *self.longest_row.get_or_init(|| (0..blocks).into_par_iter().map(block).max().unwrap_or(0))
    }

    /// Gives the memory of the records of groups `ids` back to the system; read again, they come from its cache.
    pub(crate) fn release(&self, ids: std::ops::Range<u64>) {
        for (shard, starts) in self.shards.iter().zip(self.starts.windows(2)) {
            let local = |id: u64| (id.clamp(starts[0][0], starts[1][0]) - starts[0][0]) as usize;
            if local(ids.start) < local(ids.end) {
                shard.release_groups(local(ids.start)..local(ids.end));
            }
        }
    }

    /// The largest token id, and the input row of its first response or, for a prompt's, of the group's. One parallel pass
    /// over the tokens, each time. Panics as [`Dataset::group`].
    pub fn largest_token(&self) -> Option<(u32, u64)> {
        let of = |id: u64| {
            let g = self.group(id);
            let row = g.responses().next().map_or(0, |r| r.row);
            let prompt = g.prompt().to_vec().into_iter().max().map(|token| (token, row));
            g.responses()
                .filter_map(|r| Some((r.tokens.to_vec().into_iter().max()?, r.row)))
                .chain(prompt)
                .max_by_key(|m| m.0)
        };
        (0..self.num_groups())
            .into_par_iter()
            .filter_map(of)
            .max_by_key(|(token, row)| (*token, std::cmp::Reverse(*row)))
    }

    fn totals(&self) -> [u64; 3] {
        self.starts.last().copied().unwrap_or_default()
    }

    /// First response id of each shard, and one past the last of all.
    pub(crate) fn response_starts(&self) -> impl Iterator<Item = u64> + '_ {
        self.starts.iter().map(|s| s[1])
    }

    /// The 0-based input row of response `id`, for messages.
    pub fn response_row(&self, id: u64) -> Option<u64> {
        let s = self.starts.partition_point(|s| s[1] <= id).checked_sub(1)?;
        let record = self.shards.get(s)?.responses().get((id - self.starts[s][1]) as usize)?;
        Some(record.row)
    }

    /// Whether a response was judged by itself, desirable or not.
    pub fn has_labels(&self) -> bool {
        self.shards.iter().any(|s| s.responses().iter().any(|r| r.flags & HAS_LABEL != 0))
    }

    /// The group that response `id` is in. Panics unless there is such a response.
    pub fn group_of_response(&self, id: u64) -> u64 {
        let s = self.starts.partition_point(|s| s[1] <= id) - 1;
        let groups = self.shards[s].groups();
        let local = groups.partition_point(|g| g.first_response <= id - self.starts[s][1]) - 1;
        self.starts[s][0] + local as u64
    }

    /// Group `id`. Panics unless `id < num_groups()`, or on the records of a damaged shard: for data that
    /// [`Dataset::verify`] passed, or whose group [`Dataset::try_group`] did.
    pub fn group(&self, id: u64) -> Group<'_> {
        let s = self.locate(id);
        let start = self.starts[s];
        let shard = &self.shards[s];
        let record = shard.groups()[(id - start[0]) as usize];
        Group { id, shard, record, first: start }
    }

    /// Group `id` after a check of its records: for data that was not verified.
    ///
    /// Errors: [`Error::File`] for damage, [`Error::Usage`] where there is no such group.
    pub fn try_group(&self, id: u64) -> Result<Group<'_>> {
        if id >= self.num_groups() {
            return Err(Error::usage(format!("there is no group {id}: the data have {}", self.num_groups())));
        }
        let s = self.locate(id);
        self.shards[s].check_group((id - self.starts[s][0]) as usize)?;
        Ok(self.group(id))
    }

    fn locate(&self, group: u64) -> usize {
        // Shards may be empty: the last one that starts at or before `group`.
        self.starts.partition_point(|s| s[0] <= group) - 1
    }
}

/// Paths of the shards of `split`, by name.
fn shard_paths(dir: &Path, split: Split) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Err(Error::file(dir, "does not exist: give a folder that `fusedpo pack` wrote"));
    }
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let path = entry.map_err(Error::io(dir, "list"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(split.prefix()) && name.ends_with(".pref") {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

fn has_any(dir: &Path) -> bool {
    [Split::Train, Split::Eval].into_iter().any(|s| Dataset::has_split(dir, s))
}

/// A group of a [`Dataset`].
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// Its index in the data set.
    pub id: u64,
    shard: &'a Shard,
    record: GroupRecord,
    /// First group, response and pair id of the shard.
    first: [u64; 3],
}

/// A response of a [`Group`].
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Its index in the data set.
    pub id: u64,
    /// At least one token.
    pub tokens: Tokens<'a>,
    /// Score relative to the other responses.
    pub score: Option<f32>,
    /// For a response judged by itself: whether it is desirable.
    pub label: Option<bool>,
    /// 0-based input row.
    pub row: u64,
    /// Place in that row: 0 chosen, 1 rejected, or the index in `responses`.
    pub index: u32,
}

/// A preference of a [`Group`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Its index in the data set.
    pub id: u64,
    /// Index in the group of the preferred response.
    pub chosen: usize,
    /// Index in the group of the other.
    pub rejected: usize,
    /// Weight in the mean.
    pub weight: f32,
}

impl<'a> Group<'a> {
    /// The shard it is in.
    pub fn shard(&self) -> &'a Shard {
        self.shard
    }
    /// Its record.
    pub fn record(&self) -> &GroupRecord {
        &self.record
    }
    /// The prompt; may be empty.
    pub fn prompt(&self) -> Tokens<'a> {
        let at = self.record.token_start as usize;
        self.shard.tokens().slice(at..at + self.record.prompt_len as usize)
    }
    /// Number of responses; at least 1.
    pub fn num_responses(&self) -> usize {
        self.record.num_responses as usize
    }
    /// Number of pairs.
    pub fn num_pairs(&self) -> usize {
        self.record.num_pairs as usize
    }
    /// The records of its responses.
    pub fn response_records(&self) -> &'a [ResponseRecord] {
        let at = self.record.first_response as usize;
        &self.shard.responses()[at..at + self.num_responses()]
    }
    /// Index of response `i` in the data set.
    pub fn response_id(&self, i: usize) -> u64 {
        self.first[1] + self.record.first_response + i as u64
    }
    /// Response `i`. Panics unless `i < num_responses()`.
    pub fn response(&self, i: usize) -> Response<'a> {
        let r = self.response_records()[i];
        let at = r.token_start as usize;
        Response {
            id: self.response_id(i),
            tokens: self.shard.tokens().slice(at..at + r.num_tokens as usize),
            score: (r.flags & HAS_SCORE != 0).then_some(r.score),
            label: (r.flags & HAS_LABEL != 0).then_some(r.flags & DESIRABLE != 0),
            row: r.row,
            index: r.index,
        }
    }
    /// All responses in order.
    pub fn responses(&self) -> impl ExactSizeIterator<Item = Response<'a>> + use<'a> {
        let group = *self;
        (0..group.num_responses()).map(move |i| group.response(i))
    }
    /// Pair `i`. Panics unless `i < num_pairs()`.
    pub fn pair(&self, i: usize) -> Pair {
        let p = self.shard.pairs()[self.record.first_pair as usize..][..self.num_pairs()][i];
        Pair {
            id: self.first[2] + self.record.first_pair + i as u64,
            chosen: p.chosen as usize,
            rejected: p.rejected as usize,
            weight: p.weight,
        }
    }
    /// The pairs in order.
    pub fn pairs(&self) -> impl ExactSizeIterator<Item = Pair> + use<'a> {
        let group = *self;
        (0..group.num_pairs()).map(move |i| group.pair(i))
    }
    /// The response with the data-set-wide index `id`. Panics where it is another group's.
    pub fn response_by_id(&self, id: u64) -> Response<'a> {
        self.response((id - self.first[1] - self.record.first_response) as usize)
    }
}
