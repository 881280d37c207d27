//! Which responses steps read.

use super::pieces::Selection;
use super::planner::Planner;
use super::set::ResponseSet;
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
