//! Steps from a survey.

use super::lanes;
use super::options::{Objective, PlanOptions};
use super::order;
use super::pieces::{Piece, Selection};
use super::set::ResponseSet;
use super::survey::{Survey, survey};
use crate::batch::{Capacity, Outline, Outliner};
use crate::data::shard::{Dataset, Group};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// Cuts a data set into steps.
#[derive(Debug)]
pub struct Planner<'a> {
    data: &'a Dataset,
    options: PlanOptions,
    /// Of single responses these alone.
    only: Option<ResponseSet>,
    survey: Survey,
    budget: usize,
    capacity: Capacity,
    /// At least 1.
    lanes: usize,
    /// The epoch asked for last: steps are mostly asked for in order.
    cache: Mutex<Option<Arc<Epoch>>>,
}

/// One epoch's order and cuts.
#[derive(Debug)]
struct Epoch {
    number: u64,
    /// Indices into `Survey::usable`; `None`: ascending.
    order: Option<Vec<u32>>,
    /// First position of each step; `None`: every `batch_size`, as every group is one unit.
    cuts: Option<Vec<u32>>,
}

impl<'a> Planner<'a> {
    /// Surveys `data`: one parallel pass over the records (tokens are not read). Memory: at most 8 bytes a group, and
    /// 8 more for the epoch at hand.
    ///
    /// Errors: [`Error::Usage`] where nothing can be planned (no pairs), a pair or response does not fit into the budget
    /// (naming its input row and the budget it needs), or an option is out of range; [`Error::File`] for damaged records.
    pub fn new(data: &'a Dataset, o: &PlanOptions) -> Result<Self> {
        Self::make(data, o, None)
    }

    /// [`Planner::new`] for [`Objective::Score`] of some responses alone, at least one, or for pairs of them alone.
    pub fn only(data: &'a Dataset, o: &PlanOptions, responses: ResponseSet) -> Result<Self> {
        Self::make(data, o, Some(responses))
    }

    fn make(data: &'a Dataset, o: &PlanOptions, only: Option<ResponseSet>) -> Result<Self> {
        if o.batch_size == 0 {
            return Err(Error::usage("batch size 0: give at least 1"));
        }
        if o.objective == Objective::Judgement && o.batch_size == 1 {
            let why = "`batch_size` 1: kto compares each prompt of a step with a response to another; give at least 2";
            return Err(Error::usage(why));
        }
        let survey = survey(data, o.objective, only.as_ref())?;
        let budget = budget(&survey, o)?;
        let capacity = survey.capacity(data, (o, only.as_ref()), budget);
        Ok(Planner { data, options: *o, only, survey, budget, capacity, lanes: 1, cache: Mutex::new(None) })
    }

    /// With the groups of each step shared out among `lanes` (at least 1), micro-batches within each.
    pub fn in_lanes(self, lanes: usize) -> Self {
        Self { lanes: lanes.max(1), ..self }
    }

    /// What the plan takes of `g`.
    pub(crate) fn select(&self, selection: &mut Selection, g: &Group<'_>) {
        selection.select(g, self.options.objective, |id| self.only.as_ref().is_none_or(|only| only.contains(id)));
    }

    /// The data set that is cut.
    pub fn data(&self) -> &'a Dataset {
        self.data
    }
    /// Token slots of every micro-batch.
    pub fn token_budget(&self) -> usize {
        self.budget
    }
    /// Bounds that hold for every micro-batch of every epoch.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }
    /// [`Planner::capacity`] with another token budget, at least [`Planner::least_budget`].
    pub fn capacity_at(&self, budget: usize) -> Capacity {
        self.survey.capacity(self.data, (&self.options, self.only.as_ref()), budget)
    }
    /// The least token budget that these data allow: slots of the largest pair, or response, with its prompt.
    pub fn least_budget(&self) -> usize {
        self.survey.largest.0 as usize
    }
    /// Groups without anything for the objective.
    pub fn skipped_groups(&self) -> u64 {
        self.data.num_groups() - self.survey.usable.len() as u64
    }
    /// Pairs or responses left out because a response has no predicted token: see the module's notes.
    pub fn unscorable(&self) -> u64 {
        self.survey.unscorable
    }
    /// Whether its steps are of judgements.
    pub fn is_judged(&self) -> bool {
        self.options.objective == Objective::Judgement
    }
    pub(super) fn shuffles(&self) -> bool {
        self.options.shuffle
    }
    /// Tokens of the longest row that a step holds: a prompt with a response, its own or, of judgements, another's.
    pub fn longest_row(&self) -> usize {
        self.data.longest_row().max(self.survey.mismatched.unwrap_or(0))
    }
    /// Most mismatched rows that [`Planner::mismatched_rows`] takes within [`Planner::capacity`].
    pub fn mismatched_at_once(&self) -> usize {
        self.survey.judged_rows(&self.options) as usize
    }
    /// Pairs (responses, judgements) an epoch.
    pub fn units(&self) -> u64 {
        self.survey.units
    }

    /// Steps of `epoch`. Epochs may differ by a few where groups hold several pairs.
    pub fn steps_in_epoch(&self, epoch: u64) -> u64 {
        if self.survey.counts.is_none() {
            return self.survey.usable.len().div_ceil(self.options.batch_size) as u64;
        }
        self.epoch(epoch).cuts.as_ref().map_or(0, |c| c.len() as u64)
    }

    /// Ids of the groups of a step, in order; empty unless `step < steps_in_epoch(epoch)`.
    pub fn step_groups(&self, epoch: u64, step: u64) -> Vec<u64> {
        let e = self.epoch(epoch);
        let n = self.survey.usable.len();
        let Ok(step) = usize::try_from(step) else { return Vec::new() };
        let range = match &e.cuts {
            Some(c) if step < c.len() => c[step] as usize..c.get(step + 1).map_or(n, |&c| c as usize),
            Some(_) => 0..0,
            None => {
                let at = |s: usize| s.saturating_mul(self.options.batch_size).min(n);
                at(step)..at(step + 1)
            }
        };
        range.map(|i| self.survey.usable[e.order.as_ref().map_or(i, |o| o[i] as usize)].into()).collect()
    }

    /// The first steps of the first epoch that hold `units` pairs (responses, judgements), or all of them; and how many they hold.
    pub fn steps_of(&self, units: u64) -> (u64, u64) {
        let steps = self.steps_in_epoch(0);
        let epoch = self.epoch(0);
        let count = |i: usize| {
            let at = epoch.order.as_ref().map_or(i, |o| o[i] as usize);
            self.survey.counts.as_ref().map_or(1, |counts| u64::from(counts[at]))
        };
        let (mut seen, mut at) = (0, 0);
        for step in 0..steps {
            if seen >= units {
                return (step, seen);
            }
            let groups = self.step_groups(0, step).len();
            seen += (at..at + groups).map(count).sum::<u64>();
            at += groups;
        }
        (steps, seen)
    }

    /// What lies where in the micro-batches of a step (0-based), from the records of its groups alone; empty unless
    /// `step < steps_in_epoch(epoch)`. Reference log-probs are 0: the caller sets them ([`Outline::set_ref_logps`]).
    ///
    /// Errors: [`Error::File`] where a shard changed since it was opened; [`Error::Training`] where one that was sound when
    /// the plan was made no longer is.
    pub fn outlines(&self, epoch: u64, step: u64) -> Result<Vec<Outline>> {
        if self.is_judged() {
            return self.judged_step(epoch, step, false);
        }
        self.data.check_unchanged()?;
        let mut pieces = Vec::new();
        let mut selection = Selection::default();
        for id in self.step_groups(epoch, step) {
            let g = self.data.group(id);
            self.select(&mut selection, &g);
            selection.pieces(&g, self.budget as u64, &mut pieces);
        }
        let sizes: Vec<u64> = pieces.iter().map(|p| p.slots).collect();
        let outline = |bin: &[usize]| outline(self.data, self.budget, bin.iter().map(|&i| &pieces[i]));
        self.in_bins(&sizes, outline)
    }

    /// The outlines of what needs `sizes`, which `outline` makes of each one's members.
    pub(super) fn in_bins(
        &self,
        sizes: &[u64],
        outline: impl Fn(&[usize]) -> Result<Outline> + Sync,
    ) -> Result<Vec<Outline>> {
        let bins = lanes::bins(sizes, self.budget as u64, self.lanes);
        let of = |(lane, bin): &(usize, Vec<usize>)| outline(bin).map(|o| o.in_lane(*lane));
        bins.par_iter().map(of).collect()
    }

    fn epoch(&self, number: u64) -> Arc<Epoch> {
        let number = if self.options.shuffle { number } else { 0 };
        // The lock is held while the epoch is made, so that threads do not make it twice. The cache is whole or absent
        // at any time: a poisoned lock is no harm.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cache {
            Some(e) if e.number == number => e.clone(),
            _ => cache.insert(Arc::new(self.make_epoch(number))).clone(),
        }
    }

    fn make_epoch(&self, number: u64) -> Epoch {
        let n = self.survey.usable.len() as u32;
        let order = self.options.shuffle.then(|| order::permutation(n, self.options.seed, number));
        // Judgements of one prompt alone have no other prompt's responses beside them.
        let least = if self.is_judged() { 2 } else { 1 };
        let cuts = self.survey.counts.as_ref().map(|counts| {
            let (mut cuts, mut held) = (vec![0], 0);
            for i in 0..n {
                if held >= self.options.batch_size && i - cuts[cuts.len() - 1] >= least {
                    cuts.push(i);
                    held = 0;
                }
                held += counts[order.as_ref().map_or(i, |o| o[i as usize]) as usize] as usize;
            }
            if cuts.len() > 1 && n - cuts[cuts.len() - 1] < least {
                cuts.pop();
            }
            cuts
        });
        Epoch { number, order, cuts }
    }
}

fn budget(s: &Survey, o: &PlanOptions) -> Result<usize> {
    let unit = match o.objective {
        Objective::Preference => "pair",
        Objective::Ranking => "ranking of a prompt's responses",
        Objective::Judgement => "response, to its prompt or another,",
        Objective::Sft | Objective::Score => "response",
    };
    let needed = s.largest.0;
    if needed > u64::from(u32::MAX / 2) {
        return Err(Error::usage(format!(
            "input row {}: a {unit} needs {needed} token slots: pack with a smaller `max_length`",
            s.largest.1
        )));
    }
    let rounded = (needed as usize).div_ceil(256) * 256;
    let Some(budget) = o.token_budget else { return Ok(rounded.max(2048)) };
    if budget as u64 >= needed && budget <= (u32::MAX / 2) as usize {
        return Ok(budget);
    }
    Err(Error::usage(if budget as u64 >= needed {
        format!("`token_budget` {budget} is too large: at most {}", u32::MAX / 2)
    } else {
        format!(
            "`token_budget` {budget} is too small: the largest {unit} (input row {}) needs {needed} token slots with its \
             prompt: give at least that ({rounded} is a good size), or pack with a smaller `max_length`",
            s.largest.1
        )
    }))
}

/// Lays `pieces` out in `slots` token slots.
fn outline<'p>(data: &Dataset, slots: usize, pieces: impl Iterator<Item = &'p Piece>) -> Result<Outline> {
    let mut o = Outliner::default();
    for piece in pieces {
        push(&mut o, data, piece)?;
    }
    o.finish(slots)
}

fn push(o: &mut Outliner, data: &Dataset, piece: &Piece) -> Result<()> {
    let g = data.group(piece.group);
    o.group(g.id, g.record().prompt_len as usize)?;
    for &i in &piece.responses {
        push_response(o, &g, i, None)?;
    }
    // `responses` ascends, and holds both ends of each of the piece's pairs.
    let place = |local: usize| piece.responses.partition_point(|&r| (r as usize) < local);
    for &i in &piece.pairs {
        let p = g.pair(i as usize);
        o.pair(place(p.chosen), place(p.rejected), p.weight, p.id)?;
    }
    Ok(())
}

/// Adds response `local` of `g`, or the first `tokens` tokens of it, to the group that was begun.
pub(super) fn push_response(o: &mut Outliner, g: &Group<'_>, local: u32, tokens: Option<usize>) -> Result<()> {
    let r = g.response(local as usize);
    o.response(r.id, tokens.unwrap_or(r.tokens.len()))?;
    r.score.map_or(Ok(()), |score| o.score(score))
}
