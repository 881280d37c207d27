//! A row of ids on its way from admission to the shards, as words: what [`Log`](crate::files::Log) and
//! [`Sorter`](crate::files::Sorter) hold.
//!
//! | words | what |
//! |---|---|
//! | 1 | length of the record in words |
//! | 1 | flags |
//! | 2, 2, 2 | its number, the number of the first one of its group, and the input row |
//! | 1, 1, 1 | tokens of the prompt, responses, pairs |
//! | 4 | the prompt's key, where it plays a part |
//! | 4 each | responses: place in the row, tokens, score, what it has |
//! | 3 each | pairs: chosen and rejected among the row's responses, weight |
//! | | tokens of the prompt and of each response, two a word where all are below 2^16, each from a new word on |

use crate::data::shard::NewResponse;
use crate::data::text::TokenRow;
use crate::error::{Error, Result};
use crate::files::Key;

/// First 128 bits of a SHA-256.
pub(super) type Print = [u8; 16];

/// Words before the key.
const HEAD: usize = 11;
const FLAGS: usize = 1;
const NUMBER: usize = 2;
const FIRST: usize = 4;
const ROW: usize = 6;
const PROMPT: usize = 8;
const RESPONSES: usize = 9;
const PAIRS: usize = 10;

/// Two tokens a word.
const NARROW: u32 = 1;
/// With a key.
const KEYED: u32 = 2;

const HAS_SCORE: u32 = 1;
const HAS_LABEL: u32 = 2;
const DESIRABLE: u32 = 4;

/// Where a row of ids stands among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// How many came before.
    pub number: u64,
    /// The number of the first one of its group, where that is known and another.
    pub late: Option<u64>,
    /// The input row, which may give several rows of ids.
    pub row: u64,
}

/// Writes `row` into `out`, in place of what is there; without its prompt where it is late.
pub(super) fn write(
    out: &mut Vec<u32>,
    (row, at): (&TokenRow, Place),
    key: Option<Print>,
    (pairs, weight): (&[(u32, u32)], f32),
) -> Result<()> {
    let size =
        |n: usize| u32::try_from(n).map_err(|_| Error::usage(format!("input row {} is too large to pack", at.row)));
    let prompt: &[u32] = if at.late.is_some() { &[] } else { &row.prompt };
    let narrow = |tokens: &[u32]| tokens.iter().all(|t| *t <= u32::from(u16::MAX));
    let narrow = narrow(prompt) && row.responses.iter().all(|r| narrow(&r.tokens));
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    out.clear();
    out.extend([0, flag(narrow, NARROW) | flag(key.is_some(), KEYED)]);
    out.extend([at.number, at.late.unwrap_or(at.number), at.row].into_iter().flat_map(halves));
    out.extend([size(prompt.len())?, size(row.responses.len())?, size(pairs.len())?]);
    if let Some(key) = key {
        out.extend_from_slice(&bytemuck::cast::<Print, [u32; 4]>(key));
    }
    for r in &row.responses {
        let label = r.label.map_or(0, |l| HAS_LABEL | flag(l, DESIRABLE));
        let has = flag(r.score.is_some(), HAS_SCORE) | label;
        out.extend([r.index, size(r.tokens.len())?, r.score.unwrap_or(0.0).to_bits(), has]);
    }
    out.extend(pairs.iter().flat_map(|&(chosen, rejected)| [chosen, rejected, weight.to_bits()]));
    for tokens in std::iter::once(prompt).chain(row.responses.iter().map(|r| r.tokens.as_slice())) {
        match narrow {
            true => out.extend(tokens.chunks(2).map(|t| t[0] | t.get(1).copied().unwrap_or(0) << 16)),
            false => out.extend_from_slice(tokens),
        }
    }
    out[0] = size(out.len())?;
    Ok(())
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// The order in which rows that did not begin their group are read: by group, then as they came.
pub(super) fn by_group(record: &[u32]) -> Key {
    let row = Record(record);
    (row.long(FIRST), row.number())
}

/// A written row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a>(pub &'a [u32]);

impl<'a> Record<'a> {
    fn long(&self, at: usize) -> u64 {
        u64::from(self.0[at]) | u64::from(self.0[at + 1]) << 32
    }
    /// The input row.
    pub fn row(&self) -> u64 {
        self.long(ROW)
    }
    /// How many came before.
    pub fn number(&self) -> u64 {
        self.long(NUMBER)
    }
    /// The prompt's identity, for the split.
    pub fn key(&self) -> Option<Print> {
        let words: [u32; 4] = self.0[HEAD..self.responses_at()].try_into().ok()?;
        Some(bytemuck::cast(words))
    }
    /// Responses.
    pub fn num_responses(&self) -> usize {
        self.0[RESPONSES] as usize
    }
    /// Pairs: chosen and rejected among the row's responses, and the weight.
    pub fn pairs(&self) -> impl Iterator<Item = (u32, u32, f32)> + use<'a> {
        let at = self.pairs_at();
        let pairs = self.0[at..at + 3 * self.0[PAIRS] as usize].chunks_exact(3);
        pairs.map(|p| (p[0], p[1], f32::from_bits(p[2])))
    }
    /// Tokens of response `i`.
    pub fn response_len(&self, i: usize) -> usize {
        self.0[self.responses_at() + 4 * i + 1] as usize
    }

    /// Reads the tokens: those of the prompt, then those of each response, behind one another in `out`.
    pub fn tokens(&self, out: &mut Vec<u32>) {
        out.clear();
        let mut at = self.tokens_at();
        let lengths = (0..self.num_responses()).map(|i| self.response_len(i));
        for len in std::iter::once(self.0[PROMPT] as usize).chain(lengths) {
            let words = self.words(len);
            let from = &self.0[at..at + words];
            match self.0[FLAGS] & NARROW {
                0 => out.extend_from_slice(from),
                _ => {
                    let end = out.len() + len;
                    out.extend(from.iter().flat_map(|w| [w & 0xffff, w >> 16]));
                    out.truncate(end);
                }
            }
            at += words;
        }
    }

    /// Tokens of the prompt that is written here.
    pub fn prompt_len(&self) -> usize {
        self.0[PROMPT] as usize
    }

    /// Response `i`, whose tokens are `tokens`.
    pub fn response<'t>(&self, i: usize, tokens: &'t [u32]) -> NewResponse<'t> {
        let at = self.responses_at() + 4 * i;
        let [index, _, score, has] = self.0[at..at + 4] else { unreachable!("four words a response") };
        NewResponse {
            tokens,
            score: (has & HAS_SCORE != 0).then_some(f32::from_bits(score)),
            label: (has & HAS_LABEL != 0).then_some(has & DESIRABLE != 0),
            row: self.row(),
            index,
        }
    }

    /// Writes the row into `out` as one of the group that number `first` began.
    pub fn move_to(&self, first: u64, out: &mut Vec<u32>) {
        let tokens = self.tokens_at();
        let prompt = self.words(self.prompt_len());
        out.clear();
        out.extend_from_slice(&self.0[..tokens]);
        out.extend_from_slice(&self.0[tokens + prompt..]);
        out[0] = (self.0.len() - prompt) as u32;
        out[FIRST..FIRST + 2].copy_from_slice(&halves(first));
        out[PROMPT] = 0;
    }

    fn words(&self, tokens: usize) -> usize {
        if self.0[FLAGS] & NARROW != 0 { tokens.div_ceil(2) } else { tokens }
    }
    fn responses_at(&self) -> usize {
        HEAD + if self.0[FLAGS] & KEYED != 0 { 4 } else { 0 }
    }
    fn pairs_at(&self) -> usize {
        self.responses_at() + 4 * self.num_responses()
    }
    fn tokens_at(&self) -> usize {
        self.pairs_at() + 3 * self.0[PAIRS] as usize
    }
}
