//! From files to tokenised rows: read on one thread, tokenised on every core, in the input's order.

use super::options::PackOptions;
use crate::data::input::{self, Place, RawRow, Reading, parse};
use crate::data::text::{Refusal, TextTokenizer, TokenRow, tokenise};
use crate::error::Result;
use rayon::prelude::*;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender};

/// A row on its way: where it stands, what it became, and its ignored columns.
pub(super) type Outcome = (Place, Result<TokenRow, Refusal>, Vec<String>);

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

fn one_row(o: &PackOptions, tok: &TextTokenizer, raw: RawRow) -> Result<Outcome> {
    let place = raw.place.clone();
    let mut row = parse(raw.fields()?, &o.map).map_err(|why| place.error(why))?;
    let ignored = std::mem::take(&mut row.ignored);
    let tokens = tokenise(row, tok, o.prompt_boundary);
    if let Err(Refusal::Error(why)) = &tokens {
        return Err(place.error(why));
    }
    Ok((place, tokens, ignored))
}
