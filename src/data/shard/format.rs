//! The bytes of a preference shard: header, records, and every check that needs no section.
//!
//! `docs/shard-format.md` is the specification; `scripts/shards.py` reads and writes the same bytes.

use bytemuck::{Pod, Zeroable};

/// First bytes of a shard. Not text, and damaged by any line-ending conversion.
pub const MAGIC: [u8; 8] = *b"\x89PREF\r\n\x1a";
/// Version of the format.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = 384;
/// Leading header bytes that the content identity covers: everything up to the hash itself.
pub const IDENTITY_LEN: usize = 144;
/// `eos_id` of a tokenizer without one.
pub const NO_EOS: u32 = u32::MAX;
/// Names of the sections in file order. Tokens come first, so that they can be written before the others are known.
pub const SECTIONS: [&str; 4] = ["tokens", "groups", "responses", "pairs"];
/// Index of each section.
pub const TOKENS: usize = 0;
/// See [`TOKENS`].
pub const GROUPS: usize = 1;
/// See [`TOKENS`].
pub const RESPONSES: usize = 2;
/// See [`TOKENS`].
pub const PAIRS: usize = 3;

/// How the shard was made. A data set is made one way: all its shards agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Token ids are below this; at least 1.
    pub vocab_size: u32,
    /// The token that ends a response.
    pub eos_id: Option<u32>,
    /// How a beginning-of-sequence token was treated; a code of the packer, 0 where there is none.
    pub bos_rule: u32,
    /// SHA-256 of `tokenizer.json`'s bytes where they decide the ids, else the tokenizer's identity by meaning (see
    /// [`TextTokenizer::sha256`](crate::data::text::TextTokenizer)); zero where the rows came tokenised elsewhere.
    pub tokenizer_sha256: [u8; 32],
    /// SHA-256 of the chat template; zero: none was used.
    pub template_sha256: [u8; 32],
    /// Longest prompt and response that were kept, in tokens; 0: no limit.
    pub max_length: u32,
    /// What happened to longer rows; a code of the packer, 0: nothing was cut.
    pub truncation: u32,
    /// Where a prompt ends and a response begins; a code of the packer, 0: the rows came cut.
    pub boundary: u32,
}

impl Meta {
    /// Bytes of a token on disk: 2 where every id below `vocab_size` fits in 16 bits, else 4.
    pub fn token_width(&self) -> u32 {
        if self.vocab_size <= 1 << 16 { 2 } else { 4 }
    }

    /// The first reason why a header cannot hold this.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.vocab_size == 0 {
            return Err("vocab_size is 0".into());
        }
        match self.eos_id {
            Some(e) if e >= self.vocab_size => Err(format!("eos_id {e} is not below vocab_size {}", self.vocab_size)),
            _ => Ok(()),
        }
    }

    /// The first field in which `other` differs, with both values.
    pub(crate) fn difference(&self, other: &Meta) -> Option<String> {
        let say = |name: &str, a: String, b: String| (a != b).then(|| format!("{name} is {b}, not {a}"));
        say("tokenizer_sha256", hex(&self.tokenizer_sha256), hex(&other.tokenizer_sha256))
            .or_else(|| say("vocab_size", self.vocab_size.to_string(), other.vocab_size.to_string()))
            .or_else(|| say("eos_id", format!("{:?}", self.eos_id), format!("{:?}", other.eos_id)))
            .or_else(|| say("template_sha256", hex(&self.template_sha256), hex(&other.template_sha256)))
            .or_else(|| say("bos_rule", self.bos_rule.to_string(), other.bos_rule.to_string()))
            .or_else(|| say("max_length", self.max_length.to_string(), other.max_length.to_string()))
            .or_else(|| say("truncation", self.truncation.to_string(), other.truncation.to_string()))
            .or_else(|| say("boundary", self.boundary.to_string(), other.boundary.to_string()))
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Where a section lies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SectionEntry {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// CRC-32 of those bytes.
    pub crc32: u32,
    /// Zero.
    pub reserved: u32,
}

/// The header as it lies in the file; little-endian, no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// [`HEADER_LEN`].
    pub header_len: u32,
    /// Bytes of a token: [`Meta::token_width`].
    pub token_width: u32,
    /// [`Meta::vocab_size`].
    pub vocab_size: u32,
    /// [`Meta::eos_id`], or [`NO_EOS`].
    pub eos_id: u32,
    /// [`Meta::bos_rule`].
    pub bos_rule: u32,
    /// [`Meta::max_length`].
    pub max_length: u32,
    /// [`Meta::truncation`].
    pub truncation: u32,
    /// [`Meta::boundary`].
    pub boundary: u32,
    /// Number of sections: 4.
    pub num_sections: u32,
    /// Groups.
    pub num_groups: u64,
    /// Responses.
    pub num_responses: u64,
    /// Pairs.
    pub num_pairs: u64,
    /// Tokens.
    pub num_tokens: u64,
    /// [`Meta::tokenizer_sha256`].
    pub tokenizer_sha256: [u8; 32],
    /// [`Meta::template_sha256`].
    pub template_sha256: [u8; 32],
    /// SHA-256 of the sections in file order, then of the first [`IDENTITY_LEN`] header bytes: the shard's identity.
    pub content_sha256: [u8; 32],
    /// The sections, in the order of [`SECTIONS`].
    pub sections: [SectionEntry; 4],
    /// Zero.
    pub reserved: [u32; 27],
    /// CRC-32 of all header bytes before it.
    pub header_crc32: u32,
}

/// One prompt with its responses and pairs: their first indices and counts. Groups tile the other sections in order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GroupRecord {
    /// First token of the prompt; the responses follow without a gap.
    pub token_start: u64,
    /// First response.
    pub first_response: u64,
    /// First pair.
    pub first_pair: u64,
    /// Tokens of the prompt and all responses.
    pub num_tokens: u32,
    /// Tokens of the prompt; may be 0.
    pub prompt_len: u32,
    /// Responses; at least 1.
    pub num_responses: u32,
    /// Pairs; may be 0.
    pub num_pairs: u32,
}

/// [`ResponseRecord::flags`]: `score` is meaningful.
pub const HAS_SCORE: u32 = 1;
/// [`ResponseRecord::flags`]: the response was judged by itself.
pub const HAS_LABEL: u32 = 2;
/// [`ResponseRecord::flags`]: it was judged desirable; only with [`HAS_LABEL`].
pub const DESIRABLE: u32 = 4;

/// One response.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct ResponseRecord {
    /// First token.
    pub token_start: u64,
    /// 0-based input row it came from.
    pub row: u64,
    /// Tokens; at least 1.
    pub num_tokens: u32,
    /// Place in that row: 0 chosen, 1 rejected, or the index in `responses`.
    pub index: u32,
    /// Score; finite, and 0 unless [`HAS_SCORE`].
    pub score: f32,
    /// [`HAS_SCORE`], [`HAS_LABEL`], [`DESIRABLE`].
    pub flags: u32,
}

/// One preference between two responses of a group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct PairRecord {
    /// Index in the group of the preferred response.
    pub chosen: u32,
    /// Index in the group of the other.
    pub rejected: u32,
    /// Weight of the pair in the mean; finite, greater than 0.
    pub weight: f32,
}

const _: () = assert!(cfg!(target_endian = "little"), "shards are little-endian and mapped as they are");
const _: () =
    assert!(size_of::<Header>() == HEADER_LEN && std::mem::offset_of!(Header, content_sha256) == IDENTITY_LEN);
const _: () =
    assert!(size_of::<GroupRecord>() == 40 && size_of::<ResponseRecord>() == 32 && size_of::<PairRecord>() == 12);

/// Zero bytes after the tokens, so that the groups start at a multiple of 8.
pub fn token_padding(token_bytes: u64) -> u64 {
    token_bytes.wrapping_neg() % 8
}

/// Offset and length of each section, from the counts; `None` where they overflow.
pub fn layout(token_width: u32, counts: [u64; 4]) -> Option<[(u64, u64); 4]> {
    let width = [u64::from(token_width), 40, 32, 12];
    let mut at = HEADER_LEN as u64;
    let mut out = [(0, 0); 4];
    for s in 0..4 {
        let len = counts[s].checked_mul(width[s])?;
        out[s] = (at, len);
        at = at.checked_add(len)?;
        if s == TOKENS {
            at = at.checked_add(token_padding(len))?;
        }
    }
    Some(out)
}

impl Header {
    /// A header for `counts` (in the order of [`SECTIONS`]), without checksums.
    pub(crate) fn new(meta: &Meta, counts: [u64; 4]) -> Option<Header> {
        let at = layout(meta.token_width(), counts)?;
        Some(Header {
            magic: MAGIC,
            version: VERSION,
            header_len: HEADER_LEN as u32,
            token_width: meta.token_width(),
            vocab_size: meta.vocab_size,
            eos_id: meta.eos_id.unwrap_or(NO_EOS),
            bos_rule: meta.bos_rule,
            max_length: meta.max_length,
            truncation: meta.truncation,
            boundary: meta.boundary,
            num_sections: 4,
            num_tokens: counts[TOKENS],
            num_groups: counts[GROUPS],
            num_responses: counts[RESPONSES],
            num_pairs: counts[PAIRS],
            tokenizer_sha256: meta.tokenizer_sha256,
            template_sha256: meta.template_sha256,
            sections: at.map(|(offset, length)| SectionEntry { offset, length, crc32: 0, reserved: 0 }),
            ..Header::zeroed()
        })
    }

    /// Sets the header's own checksum.
    pub fn seal(&mut self) {
        self.header_crc32 = self.crc();
    }

    fn crc(&self) -> u32 {
        crc32fast::hash(&bytemuck::bytes_of(self)[..HEADER_LEN - 4])
    }

    /// What the header says about the making of the shard.
    pub fn meta(&self) -> Meta {
        Meta {
            vocab_size: self.vocab_size,
            eos_id: (self.eos_id != NO_EOS).then_some(self.eos_id),
            bos_rule: self.bos_rule,
            tokenizer_sha256: self.tokenizer_sha256,
            template_sha256: self.template_sha256,
            max_length: self.max_length,
            truncation: self.truncation,
            boundary: self.boundary,
        }
    }

    /// Counts in the order of [`SECTIONS`].
    pub fn counts(&self) -> [u64; 4] {
        [self.num_tokens, self.num_groups, self.num_responses, self.num_pairs]
    }

    /// The first thing wrong with a header that was read from a file of `file_len` bytes.
    pub fn check(&self, file_len: u64) -> Result<(), String> {
        if self.magic != MAGIC {
            return Err(
                "is not a preference shard (its first bytes differ): give a file that `fusedpo pack` wrote".into()
            );
        }
        if self.version != VERSION {
            return Err(format!(
                "is of format version {}, this program reads {VERSION}: pack the data again",
                self.version
            ));
        }
        if self.header_crc32 != self.crc() {
            return Err("the header is damaged (CRC-32 mismatch): pack or copy the file again".into());
        }
        self.check_fields().map_err(|why| format!("{why}: the header is inconsistent, pack the data again"))?;
        self.check_layout(file_len)
    }

    fn check_fields(&self) -> Result<(), String> {
        if self.header_len != HEADER_LEN as u32 {
            return Err(format!("header_len is {}, not {HEADER_LEN}", self.header_len));
        }
        if self.num_sections != 4 {
            return Err(format!("num_sections is {}, not 4", self.num_sections));
        }
        self.meta().check()?;
        if self.token_width != self.meta().token_width() {
            let want = self.meta().token_width();
            return Err(format!("token_width is {}, vocab_size {} asks for {want}", self.token_width, self.vocab_size));
        }
        if self.reserved != [0; 27] || self.sections.iter().any(|s| s.reserved != 0) {
            return Err("reserved bytes are not zero".into());
        }
        if self.num_groups > self.num_responses || self.num_responses > self.num_tokens {
            return Err(format!(
                "{} groups, {} responses and {} tokens cannot be: each group has a response, each response a token",
                self.num_groups, self.num_responses, self.num_tokens
            ));
        }
        Ok(())
    }

    fn check_layout(&self, file_len: u64) -> Result<(), String> {
        let at = layout(self.token_width, self.counts())
            .ok_or("its counts overflow 64 bits: the header is inconsistent, pack the data again")?;
        for (s, (offset, length)) in at.into_iter().enumerate() {
            let got = self.sections[s];
            if (got.offset, got.length) != (offset, length) {
                return Err(format!(
                    "section {} lies at {}+{}, its count asks for {offset}+{length}: the header is inconsistent, pack the data again",
                    SECTIONS[s], got.offset, got.length
                ));
            }
        }
        let want = self.file_len();
        if file_len != want {
            let how = if file_len < want { "cut short" } else { "too long" };
            return Err(format!(
                "is {how}: {file_len} bytes, the header asks for {want}: copy it again or pack the data again"
            ));
        }
        Ok(())
    }

    /// Bytes of the whole file; only after the layout was checked.
    pub(crate) fn file_len(&self) -> u64 {
        self.sections[PAIRS].offset + self.sections[PAIRS].length
    }
}
