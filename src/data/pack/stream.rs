//! From files to tokenised rows: read on one thread, tokenised on every core, in the input's order.

use super::options::{AssistantTurns, PackOptions};
use crate::data::input::{self, Place, RawRow, Reading, parse, parse_turns};
use crate::data::text::{Refusal, TextTokenizer, TokenRow, tokenise, wrap};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender};

/// A row on its way.
pub(super) struct Outcome {
    /// Where it stands.
    pub place: Place,
    /// [`RawRow::sha256`].
    pub sha256: [u8; 32],
    /// What it became: one row of ids, or one for each turn that it teaches.
    pub rows: Result<Vec<TokenRow>, Unpacked>,
    /// Columns that played no part.
    pub ignored: Vec<String>,
    /// Whether its plain prompt became a user's turn.
    pub wrapped: bool,
}

/// Why a row became nothing.
pub(super) enum Unpacked {
    /// No common marker under the last-turn rule.
    NoLastTurn,
    /// It cannot be used; the error names file and line.
    Bad(Error),
}

/// Rows a batch holds at most, and the bytes at which it is full.
const BATCH: (usize, usize) = (1024, 4 << 20);

/// Reads the files one after the other and sends their rows in batches, up to the first error.
pub(super) fn read_all(inputs: &[PathBuf], how: &Reading, to: &SyncSender<Result<Vec<RawRow>>>) {
    let mut batch = Vec::new();
    let mut size = 0;
    for path in inputs {
        let rows = match input::open(path, how.clone()) {
            Ok(rows) => rows,
            Err(e) => {
                let _ = to.send(Ok(batch)).and_then(|()| to.send(Err(e)));
                return;
            }
        };
        for row in rows {
            match row {
                Ok(row) => {
                    size += row.size;
                    batch.push(row);
                }
                Err(e) => {
                    let _ = to.send(Ok(batch)).and_then(|()| to.send(Err(e)));
                    return;
                }
            }
            if batch.len() >= BATCH.0 || size >= BATCH.1 {
                size = 0;
                // A closed channel: the other side met an error, which it reports itself.
                if to.send(Ok(std::mem::take(&mut batch))).is_err() {
                    return;
                }
            }
        }
    }
    let _ = to.send(Ok(batch));
}

/// Tokenises batches on every core, in order, until the input ends or the receiver gives up.
pub(super) fn tokenise_all(
    o: &PackOptions,
    tok: &TextTokenizer,
    from: Receiver<Result<Vec<RawRow>>>,
    to: SyncSender<Result<Vec<Outcome>>>,
) {
    for batch in from {
        let batch = batch.and_then(|rows| {
            rows.into_par_iter().map(|row| one_row(o, tok, row)).collect::<Vec<_>>().into_iter().collect()
        });
        if to.send(batch).is_err() {
            return;
        }
    }
}

/// A row as ids. The error is one that ends the pack.
fn one_row(o: &PackOptions, tok: &TextTokenizer, raw: RawRow) -> Result<Outcome> {
    let (place, sha256) = (raw.place.clone(), raw.sha256());
    let bad = |e: Error| {
        Ok(Outcome { place: place.clone(), sha256, rows: Err(Unpacked::Bad(e)), ignored: Vec::new(), wrapped: false })
    };
    let fields = match raw.fields() {
        Ok(fields) => fields,
        Err(e) => return bad(e),
    };
    let parsed = match o.assistant_turns {
        AssistantTurns::Last => parse(fields, &o.map).map(|row| Some(vec![row])),
        AssistantTurns::All => parse_turns(fields, &o.map),
    };
    let mut rows = match parsed {
        Ok(Some(rows)) => rows,
        Ok(None) => {
            return Err(place.error(
                "`options.assistant_turns` all is for demonstrations, and this row compares or judges responses; pack such \
                 rows by themselves, without it",
            ));
        }
        Err(why) => return bad(place.error(why)),
    };
    let ignored = std::mem::take(&mut rows[0].ignored);
    let (mut ids, mut wrapped) = (Vec::with_capacity(rows.len()), false);
    for mut row in rows {
        if o.wrap_prompts {
            match wrap(&mut row) {
                Ok(is) => wrapped |= is,
                Err(why) => return bad(place.error(why)),
            }
        }
        match tokenise(row, tok, o.prompt_boundary) {
            Ok(row) => ids.push(row),
            Err(Refusal::NoLastTurn) => {
                return Ok(Outcome { place, sha256, rows: Err(Unpacked::NoLastTurn), ignored, wrapped });
            }
            Err(Refusal::Error(why)) => return bad(place.error(why)),
            Err(Refusal::Setup(why)) => return Err(place.error(why)),
        }
    }
    Ok(Outcome { place, sha256, rows: Ok(ids), ignored, wrapped })
}
