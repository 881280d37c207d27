//! The bytes of a sidecar: a header, then blocks of values, their bitmap and a checksum.

use super::key::RefKey;
use crate::data::shard::Shard;
use crate::data::shard::format::hex;
use crate::error::{Error, Result};
use crate::files;
use bytemuck::{Pod, Zeroable};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

const MAGIC: [u8; 8] = *b"\x89REFL\r\n\x1a";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 384;
/// Longest fingerprint.
const FINGERPRINT: usize = 256;
/// Responses a block. 64 KiB of values: a block is cheap to check and its checksum costs nothing.
const BLOCK: usize = 8192;

/// The header as it lies in the file; little-endian, no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Header {
    magic: [u8; 8],
    version: u32,
    header_len: u32,
    num_responses: u64,
    num_filled: u64,
    block: u32,
    fingerprint_len: u32,
    shard_sha256: [u8; 32],
    model_sha256: [u8; 32],
    fingerprint: [u8; FINGERPRINT],
    reserved: [u32; 5],
    header_crc32: u32,
}
const _: () = assert!(size_of::<Header>() == HEADER_LEN);

impl Header {
    /// The header of an empty sidecar of `shard`.
    pub fn new(shard: &Shard, key: &RefKey) -> Result<Header> {
        let text = key.fingerprint.as_bytes();
        if text.len() > FINGERPRINT {
            return Err(Error::usage(format!(
                "a numerics fingerprint of {} bytes; a sidecar holds {FINGERPRINT}: shorten it",
                text.len()
            )));
        }
        let mut fingerprint = [0; FINGERPRINT];
        fingerprint[..text.len()].copy_from_slice(text);
        Ok(Header {
            magic: MAGIC,
            version: VERSION,
            header_len: HEADER_LEN as u32,
            num_responses: shard.header().num_responses,
            block: BLOCK as u32,
            fingerprint_len: text.len() as u32,
            shard_sha256: shard.content_sha256(),
            model_sha256: key.model_sha256,
            fingerprint,
            ..Header::zeroed()
        })
    }

    /// Why a sidecar with header `other` is not for this key: the first of shard, model and fingerprint that differs.
    pub fn difference(&self, other: &Header) -> Option<String> {
        let short = |sha: &[u8; 32]| hex(&sha[..8]);
        if self.shard_sha256 != other.shard_sha256 || self.num_responses != other.num_responses {
            let (a, b) = (short(&other.shard_sha256), short(&self.shard_sha256));
            return Some(format!("it was made for another content of the shard ({a}..., now {b}...)"));
        }
        if self.model_sha256 != other.model_sha256 {
            let (a, b) = (short(&other.model_sha256), short(&self.model_sha256));
            return Some(format!("it was made by another model ({a}..., now {b}...)"));
        }
        (self.text() != other.text())
            .then(|| format!("it was computed another way (`{}`, now `{}`)", other.text(), self.text()))
    }

    /// Whether both are of the same content of a shard.
    pub fn is_of_same_shard(&self, other: &Header) -> bool {
        self.shard_sha256 == other.shard_sha256 && self.num_responses == other.num_responses
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.fingerprint[..FINGERPRINT.min(self.fingerprint_len as usize)]).into_owned()
    }

    fn crc(&self) -> u32 {
        crc32fast::hash(&bytemuck::bytes_of(self)[..HEADER_LEN - 4])
    }

    fn check(&self, file_len: u64) -> Result<(), String> {
        if self.magic != MAGIC {
            return Err("is not a reference sidecar (its first bytes differ)".into());
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
            && self.reserved == [0; 5]
            && self.num_filled <= self.num_responses
            && tail.is_some_and(|t| t.iter().all(|&b| b == 0));
        if !sound {
            return Err("the header is inconsistent".into());
        }
        match blocks_len(self.num_responses) {
            Some(want) if want == file_len => Ok(()),
            Some(want) => Err(format!("is {file_len} bytes long, its header asks for {want}")),
            None => Err("the header's count overflows 64 bits".into()),
        }
    }
}

/// Bytes of a block of `n` responses: values, bitmap rounded up to 8 bytes, CRC-32, zero.
fn block_len(n: u64) -> u64 {
    n * 8 + n.div_ceil(64) * 8 + 8
}

/// Bytes of a file with `n` responses.
fn blocks_len(n: u64) -> Option<u64> {
    let (whole, rest) = (n / BLOCK as u64, n % BLOCK as u64);
    let tail = if rest > 0 { block_len(rest) } else { 0 };
    whole.checked_mul(block_len(BLOCK as u64))?.checked_add(tail)?.checked_add(HEADER_LEN as u64)
}

/// Writes a whole sidecar: a value a response, and the bitmap of those that are there.
pub(super) fn write(header: &Header, values: &[f64], filled: &[u64], to: &File) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 18, to);
    let mut header = *header;
    header.num_filled = filled.iter().map(|w| u64::from(w.count_ones())).sum();
    header.header_crc32 = header.crc();
    out.write_all(bytemuck::bytes_of(&header))?;
    for (values, filled) in values.chunks(BLOCK).zip(filled.chunks(BLOCK / 64)) {
        let (values, filled): (&[u8], &[u8]) = (bytemuck::cast_slice(values), bytemuck::cast_slice(filled));
        out.write_all(values)?;
        out.write_all(filled)?;
        let crc = [block_crc(values, filled), 0];
        out.write_all(bytemuck::cast_slice(&crc))?;
    }
    out.flush()
}

fn block_crc(values: &[u8], filled: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(values);
    crc.update(filled);
    crc.finalize()
}

/// Reads and checks the header alone.
pub(super) fn read_header(path: &Path) -> Result<Header> {
    open(path).map(|(header, _)| header)
}

fn open(path: &Path) -> Result<(Header, File)> {
    let refuse = |why: String| Error::file(path, format!("{why}: delete it, and the reference pass makes it again"));
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

/// Reads and checks a whole sidecar: header, values, bitmap.
pub(super) fn read(path: &Path) -> Result<(Header, Vec<f64>, Vec<u64>)> {
    let (header, file) = open(path)?;
    // Not more than the file's length says, by `check`.
    let n = header.num_responses as usize;
    let (mut values, mut filled) = (vec![0f64; n], vec![0u64; n.div_ceil(64)]);
    let mut from = BufReader::with_capacity(1 << 18, file);
    for (b, (values, filled)) in values.chunks_mut(BLOCK).zip(filled.chunks_mut(BLOCK / 64)).enumerate() {
        let mut crc = [0u32; 2];
        for part in
            [bytemuck::cast_slice_mut(values), bytemuck::cast_slice_mut(filled), bytemuck::bytes_of_mut(&mut crc)]
        {
            from.read_exact(part).map_err(Error::io(path, "read"))?;
        }
        let right = crc == [block_crc(bytemuck::cast_slice(values), bytemuck::cast_slice(filled)), 0];
        if !right || !canonical(values, filled) {
            let why = format!("block {b} is damaged: delete it, and the reference pass makes it again");
            return Err(Error::file(path, why));
        }
    }
    if filled.iter().map(|w| u64::from(w.count_ones())).sum::<u64>() != header.num_filled {
        let why = "its bitmap does not have as many bits as its header says: delete it, and the reference pass makes it again";
        return Err(Error::file(path, why));
    }
    Ok((header, values, filled))
}

/// Filled values are finite, others +0, and no bit lies past the last value.
fn canonical(values: &[f64], filled: &[u64]) -> bool {
    let bit = |i: usize| filled[i / 64] >> (i % 64) & 1 == 1;
    (values.len()..filled.len() * 64).all(|i| !bit(i))
        && values.iter().enumerate().all(|(i, v)| if bit(i) { v.is_finite() } else { v.to_bits() == 0 })
}
