//! Pairs whose labels are likely the wrong way round: the model that learned from all the others disagrees, and by much.

use super::pairs::SeenPair;

/// How many pairs are compared with one another: those that the run saw at about the same time.
const WINDOW: usize = 128;
/// A pair is named where its gain is below minus this times the median size of gains around it.
pub const DISAGREES_BY: f64 = 0.5;
/// Of this share of the pairs around it, at least, the model must agree with the label: before it has learned that much, its
/// disagreement says nothing.
pub const LEARNED: f64 = 0.75;

/// A pair that was named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suspect {
    /// Index of the slice that was asked.
    pub at: usize,
    /// Its gain over the median size of gains around it; below 0.
    pub score: f64,
}

/// What [`likely_flipped`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flips {
    /// Those named, the surest first.
    pub suspects: Vec<Suspect>,
    /// Pairs that were judged: the model had learned enough when it saw them.
    pub judged: u64,
}

/// The likely flipped among `pairs`, which are in the order in which the run saw them.
///
/// The rule, which `docs/ledger.md` fixes: the pairs are cut into runs of `WINDOW` in the order of the steps. Where
/// the model agrees with at least [`LEARNED`] of a run's labels, its pairs are judged: one is named whose gain is below
/// `-DISAGREES_BY` times the run's median size of gains. Fewer pairs than half a `WINDOW` are not judged.
pub fn likely_flipped(pairs: &[SeenPair]) -> Flips {
    let mut found = Flips::default();
    if pairs.len() < WINDOW / 2 {
        return found;
    }
    let windows = (pairs.len() / WINDOW).max(1);
    for w in 0..windows {
        let range = w * pairs.len() / windows..(w + 1) * pairs.len() / windows;
        let gains: Vec<f64> = pairs[range.clone()].iter().map(SeenPair::gain).collect();
        let agrees = gains.iter().filter(|g| **g > 0.0).count() as f64 / gains.len() as f64;
        let typical = median_size(&gains);
        if agrees < LEARNED || typical == 0.0 {
            continue;
        }
        found.judged += gains.len() as u64;
        let scores = range.zip(&gains).map(|(at, gain)| Suspect { at, score: gain / typical });
        found.suspects.extend(scores.filter(|s| s.score < -DISAGREES_BY));
    }
    found.suspects.sort_by(|a, b| a.score.total_cmp(&b.score));
    found
}

fn median_size(gains: &[f64]) -> f64 {
    let mut sizes: Vec<f64> = gains.iter().map(|g| g.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.get(sizes.len() / 2).copied().unwrap_or(0.0)
}
