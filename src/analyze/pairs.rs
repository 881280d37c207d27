//! The pairs of an epoch: what the ledger says of each, and where it stands in the data.

use crate::data::shard::Dataset;
use crate::error::{Error, Result};
use crate::train::ledger::{Ledger, PairRecord};

/// A pair as a run saw it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SeenPair {
    /// What it was to the run.
    pub record: PairRecord,
    /// Its group in the training split.
    pub group: u64,
    /// 0-based input row of its chosen response, as `inspect` shows it.
    pub row: u64,
    /// Its responses in the group, chosen and rejected.
    pub responses: [usize; 2],
    /// Their tokens.
    pub lens: [u32; 2],
}

impl SeenPair {
    /// How much likelier than under the reference its chosen response was.
    pub fn change_chosen(&self) -> f64 {
        self.record.chosen - self.record.ref_chosen
    }

    /// And its rejected one.
    pub fn change_rejected(&self) -> f64 {
        self.record.rejected - self.record.ref_rejected
    }

    /// [`PairRecord::gain`].
    pub fn gain(&self) -> f64 {
        self.record.gain()
    }
}

/// The pairs of an epoch, in the order in which the run saw them, but those whose numbers are not finite: those are counted beside.
///
/// Errors: a ledger of other data, an epoch that it has nothing of, and damaged records of the data.
pub fn of_epoch(ledger: &Ledger, data: &Dataset, epoch: u32) -> Result<(Vec<SeenPair>, u64)> {
    if !ledger.header().is_of(data) {
        let why = format!(
            "is of other data than {}: were the rows packed again? Give the shards of that time as `options.data`",
            data.folder().display()
        );
        return Err(Error::file(ledger.path(), why));
    }
    let records = ledger.epoch(epoch);
    let mut at = vec![u32::MAX; data.num_pairs() as usize];
    for (i, r) in records.iter().enumerate() {
        at[r.pair as usize] = u32::try_from(i).unwrap_or(u32::MAX - 1);
    }
    let mut pairs: Vec<(u32, SeenPair)> = Vec::with_capacity(records.len());
    let mut not_finite = 0;
    for id in 0..data.num_groups() {
        let group = data.try_group(id)?;
        for p in group.pairs().filter(|p| at[p.id as usize] != u32::MAX) {
            let record = records[at[p.id as usize] as usize];
            let sums = [record.chosen, record.rejected, record.ref_chosen, record.ref_rejected];
            let finite = sums.iter().all(|x| x.is_finite()) && record.loss.is_finite() && record.margin.is_finite();
            if !finite {
                not_finite += 1;
                continue;
            }
            let of = group.response_records();
            let [chosen, rejected] = [of[p.chosen], of[p.rejected]];
            let pair = SeenPair {
                record,
                group: id,
                row: chosen.row,
                responses: [p.chosen, p.rejected],
                lens: [chosen.num_tokens, rejected.num_tokens],
            };
            pairs.push((at[p.id as usize], pair));
        }
    }
    if pairs.is_empty() {
        let has = match ledger.epochs().as_slice() {
            [] => "it has no step yet".to_owned(),
            epochs => format!("it has epochs {epochs:?}"),
        };
        return Err(Error::file(ledger.path(), format!("has no pair of epoch {epoch} with finite numbers: {has}")));
    }
    pairs.sort_unstable_by_key(|(at, _)| *at);
    Ok((pairs.into_iter().map(|(_, pair)| pair).collect(), not_finite))
}
