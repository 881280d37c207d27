//! The one pass over a data set's records that a plan needs.

use super::options::{Objective, PlanOptions};
use super::pieces::{Piece, Selection, predictions, taken};
use super::set::ResponseSet;
use crate::batch::Capacity;
use crate::data::shard::Dataset;
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Groups a parallel task surveys.
const TASK: u64 = 1 << 14;

/// What an objective finds in a data set.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Ids of the groups that have a unit, ascending.
    pub usable: Vec<u32>,
    /// Units of each of them; `None` where each has one.
    pub counts: Option<Vec<u32>>,
    /// Units in all.
    pub units: u64,
    /// Units that cannot be scored.
    pub unscorable: u64,
    /// The unit that needs most token slots: slots, input row.
    pub largest: (u64, u64),
    /// Most predictions of a unit.
    pub unit_predictions: u64,
    /// Most units of a group.
    pub group_units: u64,
    /// Longest prompt and shortest, longest response and shortest, of those taken.
    longest: [u64; 2],
    shortest: [u64; 2],
    /// Tokens of the longest row that judgements may be mismatched to; `None` where there are none.
    pub mismatched: Option<usize>,
}

/// Surveys `data`, checking the records on the way so that planning cannot run outside of a table.
pub(crate) fn survey(data: &Dataset, objective: Objective, only: Option<&ResponseSet>) -> Result<Survey> {
    if u32::try_from(data.num_groups()).is_err() {
        return Err(Error::usage("more than 2^32 - 1 groups: pack them as several data sets"));
    }
    data.check_unchanged()?;
    let tasks = data.num_groups().div_ceil(TASK);
    let parts: Vec<Result<Survey>> = (0..tasks).into_par_iter().map(|t| part(data, (objective, only), t)).collect();
    let mut all = Survey { shortest: [u64::MAX; 2], ..Default::default() };
    let mut counts = Vec::new();
    for p in parts {
        let p = p?;
        all.longest = [0, 1].map(|i| all.longest[i].max(p.longest[i]));
        all.shortest = [0, 1].map(|i| all.shortest[i].min(p.shortest[i]));
        all.usable.extend(p.usable);
        counts.push(p.counts.unwrap_or_default());
        all.units += p.units;
        all.unscorable += p.unscorable;
        all.largest = if p.largest.0 > all.largest.0 { p.largest } else { all.largest };
        all.unit_predictions = all.unit_predictions.max(p.unit_predictions);
        all.group_units = all.group_units.max(p.group_units);
    }
    if all.group_units > 1 || objective == Objective::Judgement {
        all.counts = Some(counts.concat());
    }
    if all.usable.is_empty() {
        return Err(nothing(data, objective, &all));
    }
    if objective == Objective::Judgement {
        all.mismatch(data)?;
    }
    Ok(all)
}

fn nothing(data: &Dataset, objective: Objective, s: &Survey) -> Error {
    let first = data.shards()[0].path().display();
    let groups = data.num_groups();
    let unscorable = match s.unscorable {
        0 => String::new(),
        n => format!(", {n} with a response of one token after an empty prompt"),
    };
    let what = match objective {
        Objective::Preference | Objective::Ranking if data.has_labels() => {
            "responses judged one by one and no usable pair: use `loss_type` kto, or pack rows with chosen and rejected"
        }
        Objective::Preference | Objective::Ranking => {
            "no usable pair: pack rows with chosen and rejected, or with different scores"
        }
        Objective::Judgement => "no judgement: pack rows with a label of true or false, or with chosen and rejected",
        Objective::Sft => "nothing to imitate: pack rows with a completion, or with chosen and rejected",
        Objective::Score => "no response: pack some rows",
    };
    Error::usage(format!("{first}: the data ({groups} groups{unscorable}) have {what}"))
}

fn part(data: &Dataset, (objective, only): (Objective, Option<&ResponseSet>), task: u64) -> Result<Survey> {
    let range = task * TASK..data.num_groups().min((task + 1) * TASK);
    let mut s = Survey { shortest: [u64::MAX; 2], ..Default::default() };
    let mut counts = Vec::with_capacity(TASK as usize);
    let mut selection = Selection::default();
    for id in range.clone() {
        let g = data.try_group(id)?;
        selection.select(&g, objective, |id| only.is_none_or(|o| o.contains(id)));
        s.unscorable += selection.unscorable;
        let Some(unit) = selection.largest_unit(&g, objective) else { continue };
        if unit.slots > s.largest.0 {
            s.largest = (unit.slots, unit.row);
        }
        s.unit_predictions = s.unit_predictions.max(unit.predictions);
        for &i in &selection.responses {
            let lengths = [g.record().prompt_len, g.response_records()[i as usize].num_tokens].map(u64::from);
            s.longest = [0, 1].map(|i| s.longest[i].max(lengths[i]));
            s.shortest = [0, 1].map(|i| s.shortest[i].min(lengths[i]));
        }
        let units = selection.units(objective);
        s.group_units = s.group_units.max(units as u64);
        s.units += units as u64;
        s.usable.push(id as u32);
        counts.push(units as u32);
    }
    data.release(range);
    s.counts = Some(counts);
    Ok(s)
}

/// The largest ratio seen, exactly.
#[derive(Clone, Copy, Debug)]
struct Density {
    count: u64,
    slots: u64,
}

impl Density {
    fn max(self, o: Density) -> Density {
        let more = u128::from(o.count) * u128::from(self.slots) > u128::from(self.count) * u128::from(o.slots);
        if more { o } else { self }
    }
    /// Pieces of at most this density hold at most this many in `slots`.
    fn bound(self, slots: u64) -> u64 {
        (u128::from(self.count) * u128::from(slots) / u128::from(self.slots)) as u64
    }
}

/// Densities of responses, pairs and predictions.
type Densities = [Density; 3];
const NONE: Densities = [Density { count: 0, slots: 1 }; 3];

impl Survey {
    /// What mismatched rows need: a prompt may meet any response to another.
    fn mismatch(&mut self, data: &Dataset) -> Result<()> {
        if self.usable.len() < 2 {
            let first = data.shards()[0].path().display();
            return Err(Error::usage(format!(
                "{first}: all judgements are of one prompt, and kto compares each prompt with a response to another: pack more"
            )));
        }
        let [prompt, response] = self.longest;
        let row = prompt + taken(prompt, response, data.meta().max_length.into());
        if row > self.largest.0 {
            self.largest.0 = row;
        }
        self.unit_predictions = self.unit_predictions.max(response);
        self.mismatched = Some(row as usize);
        Ok(())
    }

    /// Most rows of a step of judgements, each with its mismatched one. A step ends with the group that completes it, or with the
    /// second, or with another behind that.
    pub fn judged_rows(&self, o: &PlanOptions) -> u64 {
        (o.batch_size as u64 - 1).saturating_add(3 * self.group_units).saturating_mul(2)
    }

    /// [`Survey::capacity`] of judgements, each with its mismatched row. Which rows meet in a micro-batch depends on the epoch, so
    /// it is a bound for any of them.
    fn judged_capacity(&self, o: &PlanOptions, budget: usize) -> Capacity {
        let rows = self.judged_rows(o);
        // Every response has the tokens of the shortest at least, but those that are cut.
        let fits = (budget as u64 - self.shortest[0]) / if self.is_cut() { 1 } else { self.shortest[1] };
        let scored = (budget as u64 - self.shortest[0]).min(rows.saturating_mul(self.unit_predictions));
        Capacity { slots: budget, predictions: scored as usize, responses: rows.min(fits) as usize, pairs: 0 }
    }

    /// Whether a mismatched row may be cut.
    fn is_cut(&self) -> bool {
        self.mismatched.is_some_and(|row| (row as u64) < self.longest[0] + self.longest[1])
    }

    /// Bounds over every micro-batch of `budget` slots. A micro-batch holds whole pieces, which are the same in every
    /// epoch, so it is no denser than the densest of them; and it holds no more than the largest possible step.
    pub fn capacity(&self, data: &Dataset, (o, only): (&PlanOptions, Option<&ResponseSet>), budget: usize) -> Capacity {
        if o.objective == Objective::Judgement {
            return self.judged_capacity(o, budget);
        }
        let merge = |a: Densities, b: Densities| [a[0].max(b[0]), a[1].max(b[1]), a[2].max(b[2])];
        let per_task = self.usable.par_chunks(TASK as usize).map(|ids| {
            let (mut selection, mut pieces, mut densest) = (Selection::default(), Vec::new(), NONE);
            for &id in ids {
                let g = data.group(id.into());
                selection.select(&g, o.objective, |id| only.is_none_or(|o| o.contains(id)));
                pieces.clear();
                selection.pieces(&g, budget as u64, &mut pieces);
                densest = pieces.iter().map(|p| densities(data, p)).fold(densest, merge);
            }
            if let [first, .., last] = ids {
                data.release(u64::from(*first)..u64::from(*last) + 1);
            }
            densest
        });
        let [responses, pairs, rows] = per_task.reduce(|| NONE, merge).map(|d| d.bound(budget as u64));
        let units = (o.batch_size as u64 - 1).saturating_add(self.group_units);
        let ends = if o.objective.is_of_pairs() { 2 } else { 1 };
        Capacity {
            slots: budget,
            predictions: rows.min(units.saturating_mul(self.unit_predictions)) as usize,
            responses: responses.min(units.saturating_mul(ends)) as usize,
            pairs: pairs.min(units) as usize,
        }
    }
}

fn densities(data: &Dataset, p: &Piece) -> Densities {
    let g = data.group(p.group);
    let records = g.response_records();
    let scored = p.responses.iter().map(|&i| u64::from(predictions(g.record().prompt_len, &records[i as usize]))).sum();
    [p.responses.len() as u64, p.pairs.len() as u64, scored].map(|count| Density { count, slots: p.slots })
}
