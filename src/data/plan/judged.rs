//! Judgements of a step, and the mismatched rows that go with them.

use super::pieces::{Selection, best_fit_decreasing, taken};
use super::planner::{Planner, push_response};
use crate::batch::{Outline, Outliner, Role};
use crate::data::shard::Dataset;
use crate::error::Result;
use std::collections::BTreeMap;

/// A response beside a prompt that it does not answer: group, response, both ids of the data set.
pub type Mismatch = (u64, u64);

/// A response, by its group and its place there.
#[derive(Clone, Copy, Debug)]
struct Place {
    group: u64,
    local: u32,
    id: u64,
}

/// A judgement of a step.
#[derive(Clone, Copy, Debug)]
struct Unit {
    of: Place,
    weight: f32,
}

/// A response in a group of a micro-batch.
#[derive(Clone, Copy, Debug)]
struct Row {
    of: Place,
    /// Tokens that are taken of it.
    tokens: u64,
    role: Role,
}

/// A group, or a part of one, with its prompt.
#[derive(Debug)]
struct Part {
    group: u64,
    rows: Vec<Row>,
    slots: u64,
}

impl Planner<'_> {
    /// [`Planner::outlines`], with every mismatched row that a loss of judgements reads before it gives coefficients.
    pub fn first_outlines(&self, epoch: u64, step: u64) -> Result<Vec<Outline>> {
        match self.is_judged() {
            true => self.judged_step(epoch, step, true),
            false => self.outlines(epoch, step),
        }
    }

    /// The outlines of a step of judged responses, with its mismatched rows or without.
    pub(super) fn judged_step(&self, epoch: u64, step: u64, mismatched: bool) -> Result<Vec<Outline>> {
        self.data().check_unchanged()?;
        let (mut groups, units) = self.judgements(epoch, step);
        if mismatched {
            for ((group, _), (of, weight)) in self.mismatches(&units) {
                let row = Row { of, tokens: self.taken_of(group, of), role: Role::Mismatched { group, weight } };
                groups.iter_mut().filter(|(id, _)| *id == group).for_each(|(_, rows)| rows.push(row));
            }
        }
        self.lay_out(groups)
    }

    /// The mismatched rows that `steps` steps read, the first being step `place` of `epoch`: each once, ascending. None but of
    /// judgements.
    pub fn mismatched(&self, (mut epoch, mut place): (u64, u64), steps: u64) -> Vec<Mismatch> {
        let mut all = std::collections::BTreeSet::new();
        for _ in 0..if self.is_judged() { steps } else { 0 } {
            while place >= self.steps_in_epoch(epoch) {
                (epoch, place) = (epoch + 1, 0);
            }
            // Without a shuffle every epoch is as the first.
            if epoch > 0 && !self.shuffles() {
                break;
            }
            all.extend(self.mismatches(&self.judgements(epoch, place).1).into_keys());
            place += 1;
        }
        all.into_iter().collect()
    }

    /// Outlines of mismatched rows alone; as many as go into a step's at a time ([`Planner::mismatched_at_once`]).
    pub fn mismatched_rows(&self, of: &[Mismatch]) -> Result<Vec<Outline>> {
        self.data().check_unchanged()?;
        let mut groups: Vec<(u64, Vec<Row>)> = Vec::new();
        for &(group, id) in of {
            let of = self.place(id);
            let row = Row { of, tokens: self.taken_of(group, of), role: Role::Mismatched { group, weight: 1.0 } };
            match groups.last_mut() {
                Some((last, rows)) if *last == group => rows.push(row),
                _ => groups.push((group, vec![row])),
            }
        }
        self.lay_out(groups)
    }

    /// Groups of a step with their judged responses, and the judgements in order.
    #[allow(clippy::type_complexity)]
    fn judgements(&self, epoch: u64, step: u64) -> (Vec<(u64, Vec<Row>)>, Vec<Unit>) {
        let (mut groups, mut units, mut selection) = (Vec::new(), Vec::new(), Selection::default());
        for id in self.step_groups(epoch, step) {
            let g = self.data().group(id);
            self.select(&mut selection, &g);
            let place = |local: u32| Place { group: id, local, id: g.response_id(local as usize) };
            let mut judged: BTreeMap<u32, [f32; 2]> = BTreeMap::new();
            for j in &selection.judgements {
                judged.entry(j.response).or_default()[usize::from(!j.desirable)] += j.weight;
                units.push(Unit { of: place(j.response), weight: j.weight });
            }
            let row = |(&local, &[desirable, undesirable]): (&u32, &[f32; 2])| Row {
                of: place(local),
                tokens: g.response_records()[local as usize].num_tokens.into(),
                role: Role::Own { desirable, undesirable },
            };
            groups.push((id, judged.iter().map(row).collect()));
        }
        (groups, units)
    }

    /// Each judgement's prompt with the response of another's: those of all judgements, moved by as many places as the largest
    /// group has. Where every prompt has one judgement that is TRL's cycle; where no prompt has more than half of a step's, no
    /// response meets its own prompt, and those that do are left out. Rows that are the same are one, of both's weight.
    fn mismatches(&self, units: &[Unit]) -> BTreeMap<Mismatch, (Place, f32)> {
        let runs = units.chunk_by(|a, b| a.of.group == b.of.group);
        let by = runs.map(<[Unit]>::len).max().unwrap_or(0);
        let mut all = BTreeMap::new();
        for (i, unit) in units.iter().enumerate() {
            let other = units[(i + units.len() - by) % units.len()].of;
            if other.group != unit.of.group {
                all.entry((unit.of.group, other.id)).or_insert((other, 0.0)).1 += unit.weight;
            }
        }
        all
    }

    fn place(&self, id: u64) -> Place {
        let group = self.data().group_of_response(id);
        let local = (id - self.data().group(group).response_id(0)) as u32;
        Place { group, local, id }
    }

    fn taken_of(&self, group: u64, of: Place) -> u64 {
        let data = self.data();
        let tokens = data.group(of.group).response_records()[of.local as usize].num_tokens;
        let longest = data.meta().max_length;
        taken(data.group(group).record().prompt_len.into(), tokens.into(), longest.into())
    }

    fn lay_out(&self, groups: Vec<(u64, Vec<Row>)>) -> Result<Vec<Outline>> {
        let budget = self.token_budget() as u64;
        let mut parts = Vec::new();
        for (group, rows) in groups {
            let prompt = u64::from(self.data().group(group).record().prompt_len);
            let sizes: Vec<u64> = rows.iter().map(|r| r.tokens).collect();
            for bin in best_fit_decreasing(&sizes, budget - prompt) {
                let slots = prompt + bin.iter().map(|i| sizes[*i]).sum::<u64>();
                parts.push(Part { group, rows: bin.into_iter().map(|i| rows[i]).collect(), slots });
            }
        }
        let sizes: Vec<u64> = parts.iter().map(|p| p.slots).collect();
        self.in_bins(&sizes, |bin| outline(self.data(), self.token_budget(), bin.iter().map(|i| &parts[*i])))
    }
}

fn outline<'p>(data: &Dataset, slots: usize, parts: impl Iterator<Item = &'p Part>) -> Result<Outline> {
    let mut o = Outliner::default();
    for part in parts {
        o.group(part.group, data.group(part.group).record().prompt_len as usize)?;
        for row in &part.rows {
            push_response(&mut o, &data.group(row.of.group), row.of.local, Some(row.tokens as usize))?;
            o.role(row.role)?;
        }
    }
    o.finish(slots)
}
