//! Reading a whole shard to prove that it is what was written. What was read is given back to the system on the way, so
//! that a large shard takes no more memory than a small one.

use super::format::{IDENTITY_LEN, SECTIONS, TOKENS};
use super::mapped::{Shard, Tokens};
use crate::error::{Error, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Bytes and records per parallel task: large against the cost of a task, small against a cache.
const BLOCK: usize = 1 << 18;
/// Groups whose records are checked at once.
const GROUPS_AT_ONCE: usize = 1 << 12;

impl Shard {
    /// Checks every checksum, record and token id. Parallel; reads the shard twice, once for SHA-256.
    ///
    /// Errors: [`Error::File`] naming the first thing wrong, in the order of checksums, records, tokens, identity.
    pub fn verify(&self) -> Result<()> {
        self.check_unchanged()?;
        let (content, sha) = rayon::join(|| self.verify_content(), || self.content_hash());
        content?;
        if sha != self.content_sha256() {
            let why = "its content is not what its header's SHA-256 names: pack or copy the file again";
            return Err(Error::file(self.path(), why));
        }
        self.check_unchanged()
    }

    fn verify_content(&self) -> Result<()> {
        for (s, name) in SECTIONS.into_iter().enumerate() {
            let blocks = self.section(s).par_chunks(BLOCK).enumerate().map(|(i, block)| {
                let sum = hasher(block);
                self.release(s, i * BLOCK..(i + 1) * BLOCK);
                sum
            });
            let crc = blocks.reduce(crc32fast::Hasher::new, |mut a, b| {
                a.combine(&b);
                a
            });
            if crc.finalize() != self.header().sections[s].crc32 {
                let why = format!("section {name} is damaged (CRC-32 mismatch): pack or copy the file again");
                return Err(Error::file(self.path(), why));
            }
        }
        let groups = self.groups().len();
        let first_bad = (0..groups.div_ceil(GROUPS_AT_ONCE)).into_par_iter().find_map_first(|block| {
            let range = block * GROUPS_AT_ONCE..groups.min((block + 1) * GROUPS_AT_ONCE);
            let bad = range.clone().find_map(|g| self.check_group(g).err());
            self.release_groups(range);
            bad
        });
        if let Some(e) = first_bad {
            return Err(e);
        }
        let [tokens, _, responses, pairs] = self.header().counts();
        if groups == 0 && (tokens, responses, pairs) != (0, 0, 0) {
            let why = "has records that belong to no group: pack the data again";
            return Err(Error::file(self.path(), why));
        }
        self.verify_tokens()
    }

    fn verify_tokens(&self) -> Result<()> {
        let vocab = self.header().vocab_size;
        // Whole blocks first: a maximum is vectorised, a search with its early exit is not.
        let bad = match self.tokens() {
            Tokens::U16(t) => first_from(t, |&t| u32::from(t) >= vocab),
            Tokens::U32(t) => first_from(t, |&t| t >= vocab),
        };
        bad.map_or(Ok(()), |at| {
            let id = self.tokens().get(at);
            let why = format!("token {at} has id {id}, the vocabulary ends at {vocab}: pack the data again");
            Err(Error::file(self.path(), why))
        })
    }

    /// The identity of what the file holds; [`Shard::content_sha256`] is what its header claims.
    pub fn content_hash(&self) -> [u8; 32] {
        let mut sha = Sha256::new();
        for s in TOKENS..SECTIONS.len() {
            for (i, block) in self.section(s).chunks(BLOCK).enumerate() {
                sha.update(block);
                self.release(s, i * BLOCK..(i + 1) * BLOCK);
            }
        }
        sha.update(&bytemuck::bytes_of(self.header())[..IDENTITY_LEN]);
        sha.finalize().into()
    }
}

/// Index of the first token for which `bad` holds.
fn first_from<T: Sync>(tokens: &[T], bad: impl Fn(&T) -> bool + Sync) -> Option<usize> {
    let block = tokens.par_chunks(BLOCK).position_first(|c| c.iter().fold(false, |any, t| any | bad(t)))?;
    let start = block * BLOCK;
    tokens[start..].iter().position(bad).map(|i| start + i)
}

fn hasher(bytes: &[u8]) -> crc32fast::Hasher {
    let mut h = crc32fast::Hasher::new();
    h.update(bytes);
    h
}
