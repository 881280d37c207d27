//! The text of pairs, and the list of rows that `pack` leaves out.

use super::pairs::SeenPair;
use crate::data::pack::{ExcludedRow, row_sha256};
use crate::data::shard::{Dataset, tokenizer_beside};
use crate::data::text::TextTokenizer;
use crate::error::Result;
use serde::Serialize;
use std::collections::BTreeMap;

/// A pair for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// Index of the pair in the training split.
    pub pair: u64,
    /// 0-based input row.
    pub row: u64,
    /// The step that saw it.
    pub step: u32,
    /// How much likelier than under the reference its chosen response was than its rejected one, nats.
    pub gain: f64,
    /// Its loss.
    pub loss: f32,
    /// Change of the chosen response's log-prob against the reference, nats.
    pub change_chosen: f64,
    /// And of the rejected one's.
    pub change_rejected: f64,
    /// Tokens of chosen and rejected.
    pub tokens: [u32; 2],
    /// Text of the prompt; without a tokenizer beside the shards its ids.
    pub prompt: String,
    /// Of the chosen response.
    pub chosen: String,
    /// Of the rejected one.
    pub rejected: String,
}

/// Makes texts of the pairs of a data set.
pub struct Texts<'a> {
    data: &'a Dataset,
    tok: Option<TextTokenizer>,
}

impl<'a> Texts<'a> {
    /// With the tokenizer that lies beside the shards, where one does. Errors: it is another than theirs.
    pub fn of(data: &'a Dataset) -> Result<Self> {
        Ok(Self { data, tok: tokenizer_beside(data)? })
    }

    /// `p` with its texts.
    pub fn example(&self, p: &SeenPair) -> Result<Example> {
        let group = self.data.group(p.group);
        let text = |ids: &[u32]| match &self.tok {
            Some(tok) => tok.decode(ids, false),
            None => Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
        };
        let [chosen, rejected] = p.responses.map(|r| group.response(r).tokens.to_vec());
        Ok(Example {
            pair: p.record.pair,
            row: p.row,
            step: p.record.step,
            gain: p.gain(),
            loss: p.record.loss,
            change_chosen: p.change_chosen(),
            change_rejected: p.change_rejected(),
            tokens: p.lens,
            prompt: text(&group.prompt().to_vec())?,
            chosen: text(&chosen)?,
            rejected: text(&rejected)?,
        })
    }
}

/// The rows of `pairs` as a list for `pack`: each once, ascending, with `why`.
pub fn rows_to_exclude<'p>(
    pairs: impl IntoIterator<Item = &'p SeenPair>,
    data: &Dataset,
    why: &str,
) -> Vec<ExcludedRow> {
    let rows: BTreeMap<u64, u64> = pairs.into_iter().map(|p| (p.row, p.group)).collect();
    let row = |(row, group): (u64, u64)| {
        let group = data.group(group);
        let of_row: Vec<Vec<u32>> = group.responses().filter(|r| r.row == row).map(|r| r.tokens.to_vec()).collect();
        let sha256 = row_sha256(&group.prompt().to_vec(), of_row.iter().map(Vec::as_slice));
        ExcludedRow { row, sha256, why: why.into() }
    };
    rows.into_iter().map(row).collect()
}
