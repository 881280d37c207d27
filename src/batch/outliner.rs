//! The one way to make an outline.

use super::outline::{GroupSpan, Outline, PairSlot, ResponseSlot, Role, refused};
use crate::error::Result;
use std::ops::Range;

/// Most token slots: tables hold rows as `u32`, and kernels as `i32`.
const MOST: usize = u32::MAX as usize / 2;

/// Lays groups out one behind the other by how many tokens they have, and gives an [`Outline`] in the end;
/// [`super::Builder`] does the same with the tokens themselves.
///
/// A group is its prompt ([`Outliner::group`]), then its responses ([`Outliner::response`]) and its pairs
/// ([`Outliner::pair`]); it ends where the next begins. Whatever is refused is refused with
/// [`Error::Training`](crate::Error::Training), and leaves it as it was.
///
/// ```
/// use fusedpo::batch::{MicroBatch, Outliner};
/// let mut o = Outliner::default();
/// o.group(0, 3)?;
/// o.response(0, 2)?;
/// o.response(1, 1)?;
/// o.pair(0, 1, 1.0, 0)?;
/// let outline = o.finish(8)?;
/// assert_eq!((outline.used(), outline.num_predictions()), (6, 3));
/// // With its tokens it is a micro-batch.
/// let batch = MicroBatch::of(outline, vec![5, 6, 7, 8, 9, 10])?;
/// assert_eq!(batch.positions(), [0, 1, 2, 3, 4, 3, 0, 0]);
/// # Ok::<(), fusedpo::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Outliner {
    outline: Outline,
    /// The group that responses and pairs go to; its ends are those of the arrays.
    open: Option<GroupSpan>,
}

impl Outliner {
    /// Rows so far.
    pub fn used(&self) -> usize {
        self.outline.used
    }

    /// Begins group `id` of the data set with a prompt of `tokens` tokens, which may be none.
    ///
    /// Refused: after a group without responses, and beside [`super::Builder::cached`] rows.
    pub fn group(&mut self, id: u64, tokens: usize) -> Result<()> {
        self.check_open()?;
        if self.has_cached() {
            return Err(refused(format!("group {id} stands beside rows that attend to a cache")));
        }
        let prompt = self.next(tokens)?;
        self.close();
        let o = &mut self.outline;
        let segments = o.segments..o.segments;
        o.used = prompt.end as usize;
        o.segments += u32::from(!prompt.is_empty());
        let from = |at: u32| at..at;
        self.open = Some(GroupSpan {
            id,
            segments,
            responses: from(o.responses.len() as u32),
            predictions: from(o.predictions),
            pairs: from(o.pairs.len() as u32),
            end: prompt.end,
            prompt,
        });
        Ok(())
    }

    /// Adds response `id` of the data set to the group: of `tokens` tokens, at least one. Each is predicted from the row before
    /// it; the first from the prompt's last, or where the prompt is empty not at all.
    ///
    /// Refused: without a group, and without tokens.
    pub fn response(&mut self, id: u64, tokens: usize) -> Result<()> {
        let prompt = self.group_of(id)?;
        let rows = self.next(tokens)?;
        if rows.is_empty() {
            return Err(refused(format!("response {id} has no tokens")));
        }
        let predictions = rows.len() as u32 - u32::from(prompt.is_empty());
        self.outline.used = rows.end as usize;
        self.outline.segments += 1;
        self.push(id, rows, predictions);
        Ok(())
    }

    /// Says what the data say that the last response is worth.
    ///
    /// Refused: without a response.
    pub fn score(&mut self, score: f32) -> Result<()> {
        match self.outline.responses.last_mut() {
            Some(response) => response.score = Some(score),
            None => return Err(refused(format!("a score of {score} belongs to no response"))),
        }
        Ok(())
    }

    /// Says what the last response is there for.
    ///
    /// Refused: without a response, and weights that are no numbers of 0 or more.
    pub fn role(&mut self, role: Role) -> Result<()> {
        let weights = match role {
            Role::Own { desirable, undesirable } => [desirable, undesirable],
            Role::Mismatched { weight, .. } => [weight; 2],
        };
        let sound = weights.iter().all(|w| w.is_finite() && *w >= 0.0);
        match self.outline.responses.last_mut() {
            Some(response) if sound => response.role = role,
            Some(response) => return Err(refused(format!("response {} has weights {weights:?}", response.id))),
            None => return Err(refused(format!("weights {weights:?} belong to no response"))),
        }
        Ok(())
    }

    /// Adds a response that has yet to be drawn: one prediction, from the prompt's last row.
    ///
    /// Refused: without a group, and after an empty prompt.
    pub fn open_response(&mut self, id: u64) -> Result<()> {
        let prompt = self.group_of(id)?;
        if prompt.is_empty() {
            return Err(refused(format!("response {id} would begin after an empty prompt")));
        }
        let at = self.used() as u32;
        self.push(id, at..at, 1);
        Ok(())
    }

    /// Adds pair `id` of the data set: `chosen` is preferred to `rejected`, both numbers of responses within the group, from
    /// 0, in the order of their pushes. `weight` is the pair's in the mean.
    ///
    /// Refused: without a group, responses that it does not have, a response preferred to itself, and a weight that is
    /// not a positive number.
    pub fn pair(&mut self, chosen: usize, rejected: usize, weight: f32, id: u64) -> Result<()> {
        let Some(group) = &self.open else { return Err(refused(format!("pair {id} belongs to no group"))) };
        let first = group.responses.start;
        let n = self.outline.responses.len() - first as usize;
        if let Some(i) = [chosen, rejected].into_iter().find(|i| *i >= n) {
            return Err(refused(format!("pair {id} names response {i} of a group of {n}")));
        }
        if chosen == rejected {
            return Err(refused(format!("pair {id} prefers response {chosen} to itself")));
        }
        if !(weight.is_finite() && weight > 0.0) {
            return Err(refused(format!("pair {id} has weight {weight}, not a positive number")));
        }
        let slot = |i: usize| first + i as u32;
        let (chosen, rejected) = (slot(chosen), slot(rejected));
        self.outline.pairs.push(PairSlot { chosen, rejected, weight, id, ref_heads: [0.0; 2], given: [0.0; 2] });
        Ok(())
    }

    /// Adds a row in no segment, which attends to a cache and predicts what follows: a response of its own, numbered from 0.
    ///
    /// Refused: beside groups.
    pub(super) fn cached(&mut self) -> Result<()> {
        if self.open.is_some() {
            return Err(refused("a row that attends to a cache stands beside groups".into()));
        }
        let row = self.next(1)?;
        self.outline.used = row.end as usize;
        self.push(row.start.into(), row, 1);
        Ok(())
    }

    /// The outline, with a dummy tail up to `slots` token slots.
    ///
    /// Refused: fewer slots than rows, more than half of what a `u32` can number, and a last group without responses.
    pub fn finish(mut self, slots: usize) -> Result<Outline> {
        self.check_open()?;
        let used = self.used();
        if used > slots || slots > MOST {
            return Err(refused(format!("{used} rows do not go into {slots} slots (of at most {MOST})")));
        }
        self.close();
        Ok(Outline { slots, ..self.outline })
    }

    /// Whether there are rows that attend to a cache.
    fn has_cached(&self) -> bool {
        self.open.is_none() && self.used() > 0
    }

    /// Rows of the prompt of the group that is open, for response `id`.
    fn group_of(&self, id: u64) -> Result<Range<u32>> {
        match &self.open {
            Some(group) => Ok(group.prompt.clone()),
            None => Err(refused(format!("response {id} belongs to no group"))),
        }
    }

    /// The rows of the next `tokens` tokens.
    fn next(&self, tokens: usize) -> Result<Range<u32>> {
        let (at, end) = (self.used(), self.used().saturating_add(tokens));
        match end > MOST {
            true => Err(refused(format!("{end} rows are more than the {MOST} that can be numbered"))),
            false => Ok(at as u32..end as u32),
        }
    }

    fn push(&mut self, id: u64, rows: Range<u32>, predictions: u32) {
        let o = &mut self.outline;
        let first = o.predictions;
        o.predictions += predictions;
        o.responses.push(ResponseSlot {
            id,
            rows,
            predictions: first..o.predictions,
            ref_logp: 0.0,
            score: None,
            given: 0.0,
            role: Role::PLAIN,
        });
    }

    /// Refuses to go on from a group without responses.
    fn check_open(&self) -> Result<()> {
        match &self.open {
            Some(g) if g.responses.start as usize == self.outline.responses.len() => {
                Err(refused(format!("group {} has no responses", g.id)))
            }
            _ => Ok(()),
        }
    }

    /// Ends the group that is open.
    fn close(&mut self) {
        let Some(mut group) = self.open.take() else { return };
        let o = &mut self.outline;
        group.segments.end = o.segments;
        group.responses.end = o.responses.len() as u32;
        group.predictions.end = o.predictions;
        group.pairs.end = o.pairs.len() as u32;
        group.end = o.used as u32;
        o.groups.push(group);
    }
}
