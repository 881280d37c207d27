//! What an epoch's pairs come to together: by length, by what became of both log-probs, by a column of the rows.

use super::pairs::SeenPair;
use serde::Serialize;
use std::collections::BTreeMap;

/// Some pairs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Part {
    /// How many.
    pub pairs: u64,
    /// Share of them whose gain is above 0, ties one half.
    pub accuracy: f64,
    /// Mean gain, nats.
    pub gain: f64,
    /// Mean loss.
    pub loss: f64,
}

/// What `pairs` come to; all 0 where there is none.
pub fn part<'a>(pairs: impl IntoIterator<Item = &'a SeenPair>) -> Part {
    let mut sum = Part::default();
    for p in pairs {
        let gain = p.gain();
        sum.pairs += 1;
        sum.accuracy += if gain == 0.0 { 0.5 } else { f64::from(u8::from(gain > 0.0)) };
        sum.gain += gain;
        sum.loss += f64::from(p.record.loss);
    }
    let n = sum.pairs.max(1) as f64;
    Part { pairs: sum.pairs, accuracy: sum.accuracy / n, gain: sum.gain / n, loss: sum.loss / n }
}

/// How lengths and gains go together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LengthBias {
    /// Pairs whose chosen response has more tokens.
    pub chosen_longer: Part,
    /// Fewer.
    pub chosen_shorter: Part,
    /// As many.
    pub same_length: Part,
    /// Mean tokens of chosen less rejected.
    pub tokens_more: f64,
    /// Pearson's correlation of tokens (chosen less rejected) and gain; 0 where one of them is always the same. A model that learns
    /// length has a large one.
    pub correlation: f64,
}

/// See [`LengthBias`].
pub fn length_bias(pairs: &[SeenPair]) -> LengthBias {
    let more = |p: &SeenPair| f64::from(p.lens[0]) - f64::from(p.lens[1]);
    let (x, y): (Vec<f64>, Vec<f64>) = pairs.iter().map(|p| (more(p), p.gain())).unzip();
    let of = |is: fn(f64) -> bool| part(pairs.iter().filter(|p| is(more(p))));
    LengthBias {
        chosen_longer: of(|x| x > 0.0),
        chosen_shorter: of(|x| x < 0.0),
        same_length: of(|x| x == 0.0),
        tokens_more: mean(&x),
        correlation: correlation(&x, &y),
    }
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

/// Pearson's.
fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let (mx, my) = (mean(x), mean(y));
    let sum = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(x, y)| f(x - mx, y - my)).sum::<f64>();
    let by = (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt();
    if by > 0.0 { sum(&|x, y| x * y) / by } else { 0.0 }
}

/// What became of both log-probs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Displacement {
    /// Share of pairs of which both responses are less likely than under the reference.
    pub both_fell: f64,
    /// Share of which the chosen one is.
    pub chosen_fell: f64,
    /// Mean change of the chosen response's log-prob, nats.
    pub change_chosen: f64,
    /// Of the rejected one's.
    pub change_rejected: f64,
}

/// Whether both of its responses became less likely.
pub fn both_fell(p: &SeenPair) -> bool {
    p.change_chosen() < 0.0 && p.change_rejected() < 0.0
}

/// See [`Displacement`].
pub fn displacement(pairs: &[SeenPair]) -> Displacement {
    let n = pairs.len().max(1) as f64;
    let share = |is: fn(&SeenPair) -> bool| pairs.iter().filter(|p| is(p)).count() as f64 / n;
    let mean = |f: fn(&SeenPair) -> f64| pairs.iter().map(f).sum::<f64>() / n;
    Displacement {
        both_fell: share(both_fell),
        chosen_fell: share(|p| p.change_chosen() < 0.0),
        change_chosen: mean(SeenPair::change_chosen),
        change_rejected: mean(SeenPair::change_rejected),
    }
}

/// The pairs by a value of their rows, the most frequent first.
pub fn slices<'v>(pairs: &[SeenPair], value: impl Fn(u64) -> &'v str) -> Vec<(String, Part)> {
    let mut by: BTreeMap<&str, Vec<&SeenPair>> = BTreeMap::new();
    pairs.iter().for_each(|p| by.entry(value(p.row)).or_default().push(p));
    let mut all: Vec<_> = by.into_iter().map(|(value, of)| (value.to_owned(), part(of))).collect();
    all.sort_by_key(|(_, part)| std::cmp::Reverse(part.pairs));
    all
}
