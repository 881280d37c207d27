//! What a run's ledger says of its data: plain functions of the ledger and the training split.
//!
//! ```no_run
//! use fusedpo::analyze::{self, Wanted};
//! use fusedpo::data::shard::{Dataset, Split};
//! use fusedpo::train::ledger::Ledger;
//! use std::path::Path;
//!
//! let data = Dataset::open(Path::new("data"), Split::Train)?;
//! if let Some(ledger) = Ledger::open(Path::new("run-dpo"))? {
//!     let found = analyze::analyze(&ledger, &data, &Wanted { epoch: None, examples: 10 })?;
//!     found.flipped.examples.iter().for_each(|e| println!("row {}: {}", e.row, e.prompt));
//! }
//! # Ok::<(), fusedpo::Error>(())
//! ```

mod column;
mod duplicates;
mod flips;
mod pairs;
mod shape;
mod text;

pub use column::{Column, column};
pub use duplicates::contradicting;
pub use flips::{DISAGREES_BY, Flips, LEARNED, Suspect, likely_flipped};
pub use pairs::{SeenPair, of_epoch};
pub use shape::{Displacement, LengthBias, Part, both_fell, displacement, length_bias, part, slices};
pub use text::{Example, Texts, rows_to_exclude};

use crate::data::pack::ExcludedRow;
use crate::data::shard::Dataset;
use crate::error::{Error, Result};
use crate::train::ledger::{HasReference, Ledger};
use serde::Serialize;

/// What to look at.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The epoch, from 0; `None`: [`usual_epoch`].
    pub epoch: Option<u32>,
    /// Pairs that are shown of each kind, at most.
    pub examples: usize,
}

/// Pairs of a kind: how many there are, and the first of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// How many.
    pub pairs: u64,
    /// The foremost.
    pub examples: Vec<Example>,
}

/// What [`analyze`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Analysis {
    /// The epoch that was looked at, from 0.
    pub epoch: u32,
    /// Epochs that the ledger has something of.
    pub epochs: Vec<u32>,
    /// Pairs of the training split.
    pub num_pairs: u64,
    /// Whether the loss read a reference. Without one no label is judged and no displacement is told: a gain is then a difference of
    /// two log-probs, which is as much of their lengths.
    pub reference: bool,
    /// All pairs of the epoch.
    pub all: Part,
    /// Pairs of the epoch whose numbers are not finite; they are in nothing else.
    pub not_finite: u64,
    /// Pairs of which it was judged whether their label is flipped.
    pub judged: u64,
    /// Likely flipped labels, the surest first.
    pub flipped: Found,
    /// The hardest pairs: those of the largest loss.
    pub hardest: Found,
    /// Length and gain.
    pub length_bias: LengthBias,
    /// What became of both log-probs.
    pub displacement: Displacement,
    /// Pairs of which both responses became less likely, those whose chosen one fell most first.
    pub displaced: Found,
    /// Pairs of which another says the opposite, two and two.
    pub contradicting: Found,
    /// The rows of all likely flipped pairs, for `pack` to leave out.
    #[serde(skip)]
    pub exclude: Vec<ExcludedRow>,
}

/// The epoch to look at where none is named: the last that is whole, or else the one that most pairs were seen in; `None`: there is none.
pub fn usual_epoch(ledger: &Ledger) -> Option<u32> {
    let seen = |epoch: &u32| ledger.epoch(*epoch).len() as u64;
    let epochs = ledger.epochs();
    let whole = epochs.iter().rev().find(|epoch| seen(epoch) == ledger.header().num_pairs);
    whole.or_else(|| epochs.iter().max_by_key(|epoch| seen(epoch))).copied()
}

/// What `ledger` says of `data`, the training split that it is of. Errors: as of [`of_epoch`]; a tokenizer beside the shards that is
/// not theirs.
pub fn analyze(ledger: &Ledger, data: &Dataset, wanted: &Wanted) -> Result<Analysis> {
    let epochs = ledger.epochs();
    let Some(epoch) = wanted.epoch.or(usual_epoch(ledger)) else {
        return Err(Error::file(ledger.path(), "has no step yet: nothing is known of a pair"));
    };
    let (pairs, not_finite) = of_epoch(ledger, data, epoch)?;
    let texts = Texts::of(data)?;
    let found = |of: &[usize]| -> Result<Found> {
        let examples = of.iter().take(wanted.examples).map(|i| texts.example(&pairs[*i])).collect::<Result<_>>()?;
        Ok(Found { pairs: of.len() as u64, examples })
    };
    let ordered = |is: &dyn Fn(&SeenPair) -> bool, by: &dyn Fn(&SeenPair) -> f64| {
        let mut of: Vec<usize> = (0..pairs.len()).filter(|i| is(&pairs[*i])).collect();
        of.sort_by(|a, b| by(&pairs[*a]).total_cmp(&by(&pairs[*b])));
        of
    };
    let reference = ledger.header().reference() == HasReference::Yes;
    let flips = if reference { likely_flipped(&pairs) } else { Flips::default() };
    let suspects: Vec<usize> = flips.suspects.iter().map(|s| s.at).collect();
    let contradicting: Vec<usize> = contradicting(&pairs, data).into_iter().flatten().collect();
    let flipped = found(&suspects)?;
    Ok(Analysis {
        epoch,
        epochs,
        num_pairs: data.num_pairs(),
        reference,
        all: part(&pairs),
        not_finite,
        judged: flips.judged,
        flipped,
        hardest: found(&ordered(&|_| true, &|p| -f64::from(p.record.loss)))?,
        length_bias: length_bias(&pairs),
        displacement: displacement(&pairs),
        displaced: found(&ordered(&|p| reference && both_fell(p), &SeenPair::change_chosen))?,
        contradicting: found(&contradicting)?,
        exclude: rows_to_exclude(suspects.iter().map(|i| &pairs[*i]), data, "likely flipped"),
    })
}
