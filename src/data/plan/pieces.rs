//! What a step takes from a group, and how a group that does not fit into a micro-batch is cut into pieces that do.

use super::options::Objective;
use crate::data::shard::Group;
use crate::data::shard::format::{DESIRABLE, HAS_LABEL, HAS_SCORE, ResponseRecord};

/// The part of a group that an [`Objective`] uses. Kept between groups to save allocations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Local indices of responses, ascending.
    pub responses: Vec<u32>,
    /// Local indices of pairs, ascending.
    pub pairs: Vec<u32>,
    /// What was judged, in order: labels by response, then pairs, the chosen response first ([`Objective::Judgement`]).
    pub judgements: Vec<Judgement>,
    /// Pairs ([`Objective::Preference`]), responses ([`Objective::Sft`]) or judgements left out because nothing predicts them.
    pub unscorable: u64,
    marks: Vec<bool>,
}

/// A judgement of a response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Judgement {
    /// Local index of the response.
    pub response: u32,
    pub desirable: bool,
    pub weight: f32,
}

/// Some groups' part in a micro-batch: a whole selection or a piece of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub group: u64,
    pub responses: Vec<u32>,
    pub pairs: Vec<u32>,
    /// Token slots, with the prompt.
    pub slots: u64,
}

/// Predictions of a response: the first token has no predictor where the prompt is empty.
pub(crate) fn predictions(prompt_len: u32, r: &ResponseRecord) -> u32 {
    if prompt_len == 0 { r.num_tokens - 1 } else { r.num_tokens }
}

/// Tokens that are taken of a response of `response` tokens beside a prompt of `prompt`: rows are cut where the packer cuts
/// rows (`longest`; 0: nowhere), as TRL cuts them, but never to nothing.
pub(crate) fn taken(prompt: u64, response: u64, longest: u64) -> u64 {
    if longest == 0 { response } else { response.min(longest.saturating_sub(prompt).max(1)) }
}

/// What a pair or response needs, with its prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    pub slots: u64,
    pub predictions: u64,
    /// Input row.
    pub row: u64,
}

impl Unit {
    fn larger(self, o: Unit) -> Unit {
        // Slots and predictions grow together within a group, as its prompt is the same.
        if o.slots > self.slots { o } else { self }
    }
}

impl Selection {
    /// Selects from `g`, of single responses and of pairs only those whose responses `only` says.
    pub fn select(&mut self, g: &Group<'_>, objective: Objective, only: impl Fn(u64) -> bool) {
        self.responses.clear();
        self.pairs.clear();
        self.judgements.clear();
        self.unscorable = 0;
        match objective {
            Objective::Preference | Objective::Ranking => self.preference(g, only),
            Objective::Sft => self.sft(g),
            Objective::Judgement => self.judged(g),
            Objective::Score => {
                self.responses.extend((0..g.num_responses() as u32).filter(|&i| only(g.response_id(i as usize))));
            }
        }
    }

    fn preference(&mut self, g: &Group<'_>, only: impl Fn(u64) -> bool) {
        let records = g.response_records();
        let scored = |i: usize| predictions(g.record().prompt_len, &records[i]) > 0;
        self.mark_none(records.len());
        for (i, p) in g.pairs().enumerate() {
            if ![p.chosen, p.rejected].into_iter().all(|r| only(g.response_id(r))) {
                continue;
            }
            if scored(p.chosen) && scored(p.rejected) {
                self.pairs.push(i as u32);
                self.marks[p.chosen] = true;
                self.marks[p.rejected] = true;
            } else {
                self.unscorable += 1;
            }
        }
        self.take_marked();
    }

    fn sft(&mut self, g: &Group<'_>) {
        let records = g.response_records();
        self.mark_none(records.len());
        let undesirable = |r: &ResponseRecord| r.flags & (HAS_LABEL | DESIRABLE) == HAS_LABEL;
        g.pairs().for_each(|p| {
            self.marks[p.chosen] = true;
            self.marks[p.rejected] = true;
        });
        // From "is in a pair" to "nobody compared it". The turns of one conversation are told apart by their label.
        for (mark, r) in self.marks.iter_mut().zip(records) {
            let alone = r.index == 0 || r.flags & DESIRABLE != 0;
            *mark = !*mark && r.flags & HAS_SCORE == 0 && alone && !undesirable(r);
        }
        let scored = |r: &ResponseRecord| r.flags & HAS_SCORE != 0 && !undesirable(r);
        let best = records.iter().filter(|r| scored(r)).map(|r| r.score).reduce(f32::max);
        for (mark, r) in self.marks.iter_mut().zip(records) {
            *mark |= scored(r) && Some(r.score) == best;
        }
        // Of responses without scores those that were chosen, but for those that something else was preferred to.
        let judged = |i: usize| records[i].flags & HAS_SCORE == 0 && !undesirable(&records[i]);
        g.pairs().filter(|p| judged(p.chosen)).for_each(|p| self.marks[p.chosen] = true);
        g.pairs().filter(|p| judged(p.rejected)).for_each(|p| self.marks[p.rejected] = false);
        for (mark, r) in self.marks.iter_mut().zip(records) {
            if *mark && predictions(g.record().prompt_len, r) == 0 {
                *mark = false;
                self.unscorable += 1;
            }
        }
        self.take_marked();
    }

    fn judged(&mut self, g: &Group<'_>) {
        let records = g.response_records();
        let labels = records.iter().enumerate().filter(|(_, r)| r.flags & HAS_LABEL != 0);
        let labels = labels.map(|(i, r)| (i, r.flags & DESIRABLE != 0, 1.0));
        let pairs = g.pairs().flat_map(|p| [(p.chosen, true, p.weight), (p.rejected, false, p.weight)]);
        self.mark_none(records.len());
        for (i, desirable, weight) in labels.chain(pairs) {
            if predictions(g.record().prompt_len, &records[i]) > 0 {
                self.marks[i] = true;
                self.judgements.push(Judgement { response: i as u32, desirable, weight });
            } else {
                self.unscorable += 1;
            }
        }
        self.take_marked();
    }

    fn mark_none(&mut self, n: usize) {
        self.marks.clear();
        self.marks.resize(n, false);
    }
    fn take_marked(&mut self) {
        self.responses.extend((0..self.marks.len()).filter(|&i| self.marks[i]).map(|i| i as u32));
    }

    /// What the objective counts a step by.
    pub fn units(&self, objective: Objective) -> usize {
        match objective {
            Objective::Preference | Objective::Ranking => self.pairs.len(),
            Objective::Judgement => self.judgements.len(),
            Objective::Sft | Objective::Score => self.responses.len(),
        }
    }

    /// The unit that needs most token slots, and the most predictions of a unit.
    pub fn largest_unit(&self, g: &Group<'_>, objective: Objective) -> Option<Unit> {
        let records = g.response_records();
        let prompt = g.record().prompt_len;
        let unit = |of: &[usize]| Unit {
            slots: u64::from(prompt) + of.iter().map(|&i| u64::from(records[i].num_tokens)).sum::<u64>(),
            predictions: of.iter().map(|&i| u64::from(predictions(prompt, &records[i]))).sum(),
            row: records[of[0]].row,
        };
        if objective == Objective::Ranking {
            let all: Vec<usize> = self.responses.iter().map(|&i| i as usize).collect();
            return (!all.is_empty()).then(|| unit(&all));
        }
        if objective == Objective::Preference {
            let ends = |&i: &u32| [g.pair(i as usize).chosen, g.pair(i as usize).rejected];
            return self.pairs.iter().map(|i| unit(&ends(i))).reduce(Unit::larger);
        }
        self.responses.iter().map(|&i| unit(&[i as usize])).reduce(Unit::larger)
    }

    /// Appends the selection to `out` as pieces of at most `budget` slots. Every unit must fit on its own.
    pub fn pieces(&self, g: &Group<'_>, budget: u64, out: &mut Vec<Piece>) {
        let records = g.response_records();
        let prompt = u64::from(g.record().prompt_len);
        let len = |i: u32| u64::from(records[i as usize].num_tokens);
        let slots = prompt + self.responses.iter().map(|&i| len(i)).sum::<u64>();
        if slots <= budget {
            let (responses, pairs) = (self.responses.clone(), self.pairs.clone());
            out.push(Piece { group: g.id, responses, pairs, slots });
            return;
        }
        let from = out.len();
        if self.pairs.is_empty() {
            let sizes: Vec<u64> = self.responses.iter().map(|&i| len(i)).collect();
            for bin in best_fit_decreasing(&sizes, budget - prompt) {
                let responses: Vec<u32> = bin.iter().map(|&b| self.responses[b]).collect();
                let slots = prompt + responses.iter().map(|&i| len(i)).sum::<u64>();
                out.push(Piece { group: g.id, responses, pairs: Vec::new(), slots });
            }
        } else {
            self.split_pairs(g, budget, out);
        }
        out[from..].iter_mut().for_each(|p| p.responses.sort_unstable());
    }

    /// Pairs in order, each to the piece, among the last few, that has to grow least to take it.
    fn split_pairs(&self, g: &Group<'_>, budget: u64, out: &mut Vec<Piece>) {
        /// Bounds the search in a group of thousands of pairs; neighbours share responses, so older pieces rarely win.
        const OPEN: usize = 16;
        let records = g.response_records();
        let from = out.len();
        let all: Vec<_> = g.pairs().collect();
        for &i in &self.pairs {
            let ends = [all[i as usize].chosen as u32, all[i as usize].rejected as u32];
            let growth = |p: &Piece| -> u64 {
                let new = ends.iter().filter(|&e| !p.responses.contains(e));
                new.map(|&e| u64::from(records[e as usize].num_tokens)).sum()
            };
            let first = from.max(out.len().saturating_sub(OPEN));
            let fits =
                (first..out.len()).map(|p| (growth(&out[p]), p)).filter(|&(more, p)| out[p].slots + more <= budget);
            let at = fits.min().map(|(_, p)| p).unwrap_or_else(|| {
                let slots = u64::from(g.record().prompt_len);
                out.push(Piece { group: g.id, responses: Vec::new(), pairs: Vec::new(), slots });
                out.len() - 1
            });
            out[at].slots += growth(&out[at]);
            for e in ends {
                if !out[at].responses.contains(&e) {
                    out[at].responses.push(e);
                }
            }
            out[at].pairs.push(i);
        }
    }
}

/// Packs `sizes`, each at most `room`, into bins of `room`: the largest first (the first among equals), each into the
/// fullest bin that takes it (the oldest among equals). Bins are in the order of their first members, members ascend.
pub(crate) fn best_fit_decreasing(sizes: &[u64], room: u64) -> Vec<Vec<usize>> {
    let mut by_size: Vec<usize> = (0..sizes.len()).collect();
    by_size.sort_by_key(|&i| (std::cmp::Reverse(sizes[i]), i));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut open = std::collections::BTreeSet::new(); // (room left, bin)
    for i in by_size {
        let found = open.range((sizes[i], 0)..).next().copied();
        let (left, bin) = found.unwrap_or_else(|| {
            bins.push(Vec::new());
            (room, bins.len() - 1)
        });
        open.remove(&(left, bin));
        bins[bin].push(i);
        open.insert((left - sizes[i], bin));
    }
    bins.iter_mut().for_each(|b| b.sort_unstable());
    bins.sort_by_key(|b| b[0]);
    bins
}

#[cfg(test)]
mod tests {
    use super::{Unit, best_fit_decreasing};

    #[test]
    fn the_larger_unit_stays_and_the_first_among_equals() {
        let unit = |slots, row| Unit { slots, predictions: slots - 1, row };
        let larger = |a: Unit, b| a.larger(b).row;
        assert_eq!(
            [larger(unit(5, 0), unit(3, 1)), larger(unit(3, 0), unit(5, 1)), larger(unit(5, 0), unit(5, 1))],
            [0, 1, 0]
        );
    }

    #[test]
    fn each_goes_into_the_fullest_bin_that_takes_it() {
        assert_eq!(best_fit_decreasing(&[5, 6, 4], 10), [vec![0], vec![1, 2]]);
        assert_eq!(best_fit_decreasing(&[7, 8, 2, 3], 10), [vec![0, 3], vec![1, 2]]);
        assert_eq!(best_fit_decreasing(&[6, 6, 4, 4], 10), [vec![0, 2], vec![1, 3]], "the oldest among equals");
        assert!(best_fit_decreasing(&[], 10).is_empty());
    }
}
