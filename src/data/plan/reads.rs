//! Which responses steps read.

use super::pieces::{Selection, predictions};
use super::planner::Planner;
use super::set::ResponseSet;
use crate::data::shard::Group;
use std::collections::HashSet;

impl Planner<'_> {
    /// The responses that `steps` steps read, the first being step `place` of `epoch`.
    pub fn responses(&self, (mut epoch, mut place): (u64, u64), steps: u64) -> ResponseSet {
        let mut used = ResponseSet::none(self.data().num_responses());
        let mut groups = HashSet::new();
        let mut selection = Selection::default();
        for _ in 0..steps {
            while place >= self.steps_in_epoch(epoch) {
                (epoch, place) = (epoch + 1, 0);
            }
            for id in self.step_groups(epoch, place) {
                if groups.insert(id) {
                    let g = self.data().group(id);
                    self.select(&mut selection, &g);
                    selection.responses.iter().for_each(|&i| used.insert(g.response_id(i as usize)));
                }
            }
            // What comes later was there before.
            if groups.len() as u64 == self.data().num_groups() - self.skipped_groups() {
                break;
            }
            place += 1;
        }
        used
    }
}

/// The usable pairs of `g`: ids of chosen and rejected response, and how many predictions the one that has fewer has.
pub fn shared_lens(g: &Group<'_>) -> impl Iterator<Item = ([u64; 2], u64)> {
    let (prompt, records) = (g.record().prompt_len, g.response_records());
    let pairs = g.pairs().map(|p| [p.chosen, p.rejected]);
    let of = move |ends: [usize; 2]| ends.map(|i| u64::from(predictions(prompt, &records[i])));
    let ids = |ends: [usize; 2]| ends.map(|i| g.response_id(i));
    let all: Vec<_> = pairs.map(|ends| (ids(ends), of(ends).into_iter().min().unwrap_or(0))).collect();
    all.into_iter().filter(|(_, shared)| *shared > 0)
}
