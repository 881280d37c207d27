//! The bytes of a keyed sidecar: a header, then blocks of entries, each with a checksum.

use super::key::RefKey;
use crate::data::shard::Dataset;
use crate::data::shard::format::hex;
use crate::error::{Error, Result};
use crate::files;
use bytemuck::{Pod, Zeroable};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

const MAGIC: [u8; 8] = *b"\x89REFK\r\n\x1a";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 384;
/// Longest fingerprint.
const FINGERPRINT: usize = 256;
/// Longest name of what is kept.
const KIND: usize = 16;
/// Entries a block: 96 KiB.
const BLOCK: usize = 4096;
/// What ends each line about a file that is of no use.
const INSTEAD: &str = "delete it, and the reference pass makes it again";

/// A value and what it is found by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct Entry {
    pub key: [u64; 2],
    pub value: f64,
}

/// The header as it lies in the file; little-endian, no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Header {
    magic: [u8; 8],
    version: u32,
    header_len: u32,
    entries: u64,
    kind: [u8; KIND],
    data_sha256: [u8; 32],
    model_sha256: [u8; 32],
    block: u32,
    fingerprint_len: u32,
    fingerprint: [u8; FINGERPRINT],
    reserved: [u32; 3],
    header_crc32: u32,
}
const _: () = assert!(size_of::<Header>() == HEADER_LEN);

impl Header {
    /// The header of an empty sidecar of `data`, for values that are called `kind`.
    pub fn new(data: &Dataset, key: &RefKey, kind: &str) -> Result<Header> {
        let text = key.fingerprint.as_bytes();
        if text.len() > FINGERPRINT || kind.len() > KIND {
            return Err(Error::usage(format!(
                "a numerics fingerprint of {} bytes; a sidecar holds {FINGERPRINT}: shorten it",
                text.len()
            )));
        }
        let mut this = Header {
            magic: MAGIC,
            version: VERSION,
            header_len: HEADER_LEN as u32,
            data_sha256: identity(data),
            model_sha256: key.model_sha256,
            block: BLOCK as u32,
            fingerprint_len: text.len() as u32,
            ..Header::zeroed()
        };
        this.kind[..kind.len()].copy_from_slice(kind.as_bytes());
        this.fingerprint[..text.len()].copy_from_slice(text);
        Ok(this)
    }

    /// Why a sidecar with header `other` is not for this key: the first of kind, data, model and fingerprint that differs.
    pub fn difference(&self, other: &Header) -> Option<String> {
        let short = |sha: &[u8; 32]| hex(&sha[..8]);
        if self.kind != other.kind {
            return Some("it holds other values than its name says".into());
        }
        if !self.is_of_same_data(other) {
            let (a, b) = (short(&other.data_sha256), short(&self.data_sha256));
            return Some(format!("it was made for other shards ({a}..., now {b}...)"));
        }
        if self.model_sha256 != other.model_sha256 {
            let (a, b) = (short(&other.model_sha256), short(&self.model_sha256));
            return Some(format!("it was made by another model ({a}..., now {b}...)"));
        }
        (self.text() != other.text())
            .then(|| format!("it was computed another way (`{}`, now `{}`)", other.text(), self.text()))
    }

    /// Whether both are of the same shards.
    pub fn is_of_same_data(&self, other: &Header) -> bool {
        self.data_sha256 == other.data_sha256
    }

    /// What its file's name ends with: SHA-256 of all that it is kept under, shortened.
    pub fn hash(&self) -> String {
        let mut sha = Sha256::new();
        sha.update(self.data_sha256);
        sha.update(self.model_sha256);
        sha.update(&self.fingerprint[..self.fingerprint_len as usize]);
        hex(&sha.finalize())[..16].to_owned()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.fingerprint[..FINGERPRINT.min(self.fingerprint_len as usize)]).into_owned()
    }

    fn crc(&self) -> u32 {
        crc32fast::hash(&bytemuck::bytes_of(self)[..HEADER_LEN - 4])
    }

    fn check(&self, file_len: u64) -> Result<(), String> {
        if self.magic != MAGIC {
            return Err("is not a keyed reference sidecar (its first bytes differ)".into());
        }
        if self.version != VERSION {
            return Err(format!("is a sidecar of version {}, this program reads {VERSION}", self.version));
        }
        if self.header_crc32 != self.crc() {
            return Err("the header is damaged (CRC-32 mismatch)".into());
        }
        let tail = self.fingerprint.get(self.fingerprint_len as usize..);
        let sound = self.header_len as usize == HEADER_LEN
            && self.block as usize == BLOCK
            && self.reserved == [0; 3]
            && tail.is_some_and(|t| t.iter().all(|&b| b == 0));
        if !sound {
            return Err("the header is inconsistent".into());
        }
        match file_bytes(self.entries) {
            Some(want) if want == file_len => Ok(()),
            Some(want) => Err(format!("is {file_len} bytes long, its header asks for {want}")),
            None => Err("the header's count overflows 64 bits".into()),
        }
    }
}

/// Identity of all shards of `data`, in order: entries name groups and responses by their place in the whole.
fn identity(data: &Dataset) -> [u8; 32] {
    let mut sha = Sha256::new();
    data.shards().iter().for_each(|shard| sha.update(shard.content_sha256()));
    sha.finalize().into()
}

/// Bytes of a file with `n` entries: each block has a CRC-32 and a zero behind it.
fn file_bytes(n: u64) -> Option<u64> {
    let blocks = n.div_ceil(BLOCK as u64);
    let entries = n.checked_mul(size_of::<Entry>() as u64)?;
    entries.checked_add(blocks * 8)?.checked_add(HEADER_LEN as u64)
}

/// Writes a whole sidecar. `entries` are in the order of their keys.
pub(super) fn write(header: &Header, entries: &[Entry], to: &File) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 18, to);
    let mut header = *header;
    header.entries = entries.len() as u64;
    header.header_crc32 = header.crc();
    out.write_all(bytemuck::bytes_of(&header))?;
    for block in entries.chunks(BLOCK) {
        let bytes: &[u8] = bytemuck::cast_slice(block);
        out.write_all(bytes)?;
        out.write_all(bytemuck::cast_slice(&[crc32fast::hash(bytes), 0]))?;
    }
    out.flush()
}

/// Reads and checks the header alone.
pub(super) fn read_header(path: &Path) -> Result<Header> {
    open(path).map(|(header, _)| header)
}

fn open(path: &Path) -> Result<(Header, File)> {
    let refuse = |why: String| Error::file(path, format!("{why}: {INSTEAD}"));
    let mut file = files::open(path)?;
    let len = file.metadata().map_err(Error::io(path, "read the length of"))?.len();
    if len < HEADER_LEN as u64 {
        return Err(refuse(format!("is no reference sidecar: {len} bytes, a header alone has {HEADER_LEN}")));
    }
    let mut header = Header::zeroed();
    file.read_exact(bytemuck::bytes_of_mut(&mut header)).map_err(Error::io(path, "read"))?;
    header.check(len).map_err(refuse)?;
    Ok((header, file))
}

/// Reads and checks a whole sidecar: header, and entries in the order of their keys.
pub(super) fn read(path: &Path) -> Result<(Header, Vec<Entry>)> {
    let (header, file) = open(path)?;
    // Not more than the file's length says, by `check`.
    let mut entries = vec![Entry::zeroed(); header.entries as usize];
    let mut from = BufReader::with_capacity(1 << 18, file);
    for (b, block) in entries.chunks_mut(BLOCK).enumerate() {
        let mut crc = [0u32; 2];
        for part in [bytemuck::cast_slice_mut(&mut *block), bytemuck::bytes_of_mut(&mut crc)] {
            from.read_exact(part).map_err(Error::io(path, "read"))?;
        }
        let right = crc == [crc32fast::hash(bytemuck::cast_slice(block)), 0];
        if !right || block.iter().any(|e| !e.value.is_finite()) {
            return Err(Error::file(path, format!("block {b} is damaged: {INSTEAD}")));
        }
    }
    match entries.is_sorted_by(|a, b| a.key < b.key) {
        true => Ok((header, entries)),
        false => Err(Error::file(path, format!("its entries are not in order: {INSTEAD}"))),
    }
}
