//! The bytes of a ledger: a header, then records of one size, in the order of the steps.

use crate::data::shard::Dataset;
use bytemuck::{Pod, Zeroable};
use sha2::{Digest, Sha256};

const MAGIC: [u8; 8] = *b"\x89LEDG\r\n\x1a";
/// The version that this program writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = 128;
/// Bytes of a record.
pub const RECORD_LEN: usize = 64;
/// [`Header::flags`]: the loss reads a reference.
const REFERENCE: u32 = 1;

/// The header as it lies in the file; little-endian, no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Header {
    magic: [u8; 8],
    version: u32,
    header_len: u32,
    record_len: u32,
    flags: u32,
    /// Pairs of the training split.
    pub num_pairs: u64,
    /// SHA-256 over the `content_sha256` of the training split's shards, in order: as `run.json`'s `sha256.data`.
    pub data_sha256: [u8; 32],
    reserved: [u32; 15],
    header_crc32: u32,
}
const _: () = assert!(size_of::<Header>() == HEADER_LEN);

/// Whether the loss reads a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HasReference {
    /// It does.
    Yes,
    /// It does not: the reference's log-probs in the records are 0.
    No,
}

/// What a pair was to a step, before the step's update.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct PairRecord {
    /// Index of the pair in the training split.
    pub pair: u64,
    /// The step, from 1.
    pub step: u32,
    /// Its epoch, from 0.
    pub epoch: u32,
    /// Log-probability of the chosen response under the policy: a sum over its scored tokens, nats.
    pub chosen: f64,
    /// Of the rejected one.
    pub rejected: f64,
    /// Of the chosen one under the reference; 0 where the loss has none.
    pub ref_chosen: f64,
    /// Of the rejected one.
    pub ref_rejected: f64,
    /// Reward of chosen less that of rejected, as in `rewards/margins`.
    pub margin: f32,
    /// The loss as it would be in a step of this pair alone, of weight 1.
    pub loss: f32,
    /// Its derivative by [`PairRecord::chosen`].
    pub coef_chosen: f32,
    /// And by [`PairRecord::rejected`].
    pub coef_rejected: f32,
}
const _: () = assert!(size_of::<PairRecord>() == RECORD_LEN);

impl PairRecord {
    /// How much likelier than under the reference the chosen response became than the rejected one, nats.
    pub fn gain(&self) -> f64 {
        (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)
    }
}

impl Header {
    /// Of a run on the pairs of `data`.
    pub fn of(data: &Dataset, reference: HasReference) -> Self {
        let mut this = Self {
            magic: MAGIC,
            version: VERSION,
            header_len: HEADER_LEN as u32,
            record_len: RECORD_LEN as u32,
            flags: if reference == HasReference::Yes { REFERENCE } else { 0 },
            num_pairs: data.num_pairs(),
            data_sha256: content(data),
            ..Self::zeroed()
        };
        this.header_crc32 = this.crc();
        this
    }

    /// Whether the loss reads a reference.
    pub fn reference(&self) -> HasReference {
        if self.flags & REFERENCE != 0 { HasReference::Yes } else { HasReference::No }
    }

    /// Whether it is of the pairs of `data`.
    pub fn is_of(&self, data: &Dataset) -> bool {
        self.num_pairs == data.num_pairs() && self.data_sha256 == content(data)
    }

    fn crc(&self) -> u32 {
        crc32fast::hash(&bytemuck::bytes_of(self)[..HEADER_LEN - 4])
    }

    /// What is wrong with it, and what to do.
    pub(super) fn check(&self) -> Result<(), String> {
        let again = "without it the run is as it was, and has no ledger";
        if self.magic != MAGIC {
            return Err(format!("is no ledger of pairs (its first bytes differ): take it away; {again}"));
        }
        if self.version != VERSION {
            return Err(format!(
                "is a ledger of version {}, this program reads {VERSION}: use the program that wrote it, or a newer one",
                self.version
            ));
        }
        let sound = self.header_len as usize == HEADER_LEN
            && self.record_len as usize == RECORD_LEN
            && self.flags <= REFERENCE
            && self.reserved == [0; 15];
        match self.header_crc32 == self.crc() && sound {
            true => Ok(()),
            false => Err(format!("has a damaged header: take it away; {again}")),
        }
    }
}

/// As [`data_sha256`](crate::train::checkpoint::data_sha256), in bytes.
fn content(data: &Dataset) -> [u8; 32] {
    let mut sha = Sha256::new();
    data.shards().iter().for_each(|s| sha.update(s.content_sha256()));
    sha.finalize().into()
}
