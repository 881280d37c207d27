//! Rows that are left out by name: a list that says of each which row it is, and what its tokens are, so that a list of other rows
//! is refused.

use crate::error::{Error, Result};
use crate::files;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest list that is read: more than 10 million rows.
const MOST_BYTES: u64 = 1 << 30;

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExcludedRow {
    /// 0-based input row, over all input files, as `inspect` shows it.
    pub row: u64,
    /// [`row_sha256`] of its tokens.
    pub sha256: String,
    /// Why, for people.
    #[serde(default)]
    pub why: String,
}

/// What a row's tokens are, as they were packed: 32 hexadecimal digits of SHA-256 over the prompt and each of its responses, as
/// 32-bit numbers, the length before each.
pub fn row_sha256<'t>(prompt: &'t [u32], responses: impl IntoIterator<Item = &'t [u32]>) -> String {
    let mut sha = Sha256::new();
    for tokens in std::iter::once(prompt).chain(responses) {
        sha.update((tokens.len() as u64).to_le_bytes());
        sha.update(bytemuck::cast_slice::<u32, u8>(tokens));
    }
    sha.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect()
}

/// The rows that are left out.
#[derive(Debug, Default)]
pub(super) struct Excluded {
    path: PathBuf,
    /// Those that were not met yet.
    rows: BTreeMap<u64, String>,
}

impl Excluded {
    /// Reads the list at `path`. Errors: a line that is none of its rows, a row that stands twice with other tokens. A list of nothing is one:
    /// `analyze` may find no row to leave out.
    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read_text(path, MOST_BYTES)?;
        let mut rows = BTreeMap::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let refuse = |why: &str| Err(Error::file(path, format!("line {}: {why}", i + 1)));
            let Ok(of) = serde_json::from_str::<ExcludedRow>(line) else {
                return refuse(
                    "is no row to leave out (an object with `row` and `sha256`); give a list that `fusedpo analyze` wrote",
                );
            };
            match rows.insert(of.row, of.sha256.clone()) {
                Some(other) if other != of.sha256 => {
                    return refuse("names a row that an earlier line has with other tokens");
                }
                _ => {}
            }
        }
        Ok(Self { path: path.to_owned(), rows })
    }

    /// Whether no row is left to be left out; of a fresh list: none is named.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether input row `row` is left out, whose tokens `prompt` and `responses` are. Errors: the list is of a row with others.
    pub fn takes<'t>(
        &mut self,
        row: u64,
        prompt: &'t [u32],
        responses: impl IntoIterator<Item = &'t [u32]>,
    ) -> Result<bool> {
        let Some(want) = self.rows.get(&row) else { return Ok(false) };
        if *want != row_sha256(prompt, responses) {
            let why = format!(
                "was made of other rows, or of rows packed another way: the tokens of row {row} are not those of the list; give the rows, \
                 the tokenizer and the options that the analysed data were packed with"
            );
            return Err(Error::file(&self.path, why));
        }
        self.rows.remove(&row);
        Ok(true)
    }

    /// Errors: rows of the list that were not there to be left out; `read` is how many rows there were.
    pub fn finish(&self, read: u64) -> Result<()> {
        let Some(row) = self.rows.keys().next() else { return Ok(()) };
        let why = match *row < read {
            true => format!(
                "names row {row}, which is not packed anyway: the list is of other rows, or of rows packed another way"
            ),
            false => format!("names row {row}, and there are {read}, counted from 0: the list is of other rows"),
        };
        Err(Error::file(&self.path, why))
    }
}
