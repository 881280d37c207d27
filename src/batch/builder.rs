//! The one way to make a micro-batch.

use super::micro::{GroupSpan, MicroBatch, PairSlot, Prediction, ResponseSlot, Role, Segment};
use crate::error::{Error, Result};

/// Most token slots: tables hold rows as `u32`, and kernels as `i32`.
const MOST: usize = u32::MAX as usize / 2;

/// Lays groups out one behind the other, and gives a [`MicroBatch`] in the end.
///
/// A group is its prompt ([`Builder::group`]), then its responses ([`Builder::response`]) and its pairs
/// ([`Builder::pair`]); it ends where the next begins. Whatever is refused is refused with [`Error::Training`], and leaves
/// the builder as it was.
///
/// ```
/// use fusedpo::batch::Builder;
/// let mut b = Builder::default();
/// b.group(0, [5, 6, 7])?;
/// b.response(0, [8, 9])?;
/// b.response(1, [10])?;
/// b.pair(0, 1, 1.0, 0)?;
/// let batch = b.finish(8)?;
/// assert_eq!((batch.used(), batch.positions()), (6, &[0, 1, 2, 3, 4, 3, 0, 0][..]));
/// // The prompt's last row predicts the first token of both responses.
/// assert_eq!(batch.predictions().iter().map(|p| (p.row, p.target)).collect::<Vec<_>>(), [(2, 8), (3, 9), (2, 10)]);
/// # Ok::<(), fusedpo::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Builder {
    batch: MicroBatch,
    /// The group that responses and pairs go to; its ends are those of the arrays.
    open: Option<GroupSpan>,
}

impl Builder {
    /// An empty builder with memory for `slots` tokens.
    pub fn with_capacity(slots: usize) -> Self {
        let mut this = Builder::default();
        this.batch.tokens.reserve(slots);
        this.batch.positions.reserve(slots);
        this
    }

    /// Rows so far.
    pub fn used(&self) -> usize {
        self.batch.tokens.len()
    }

    /// Begins group `id` of the data set with the tokens of its prompt, which may be none.
    ///
    /// Refused: after a group without responses, and beside [`Builder::cached`] rows.
    pub fn group(&mut self, id: u64, prompt: impl IntoIterator<Item = u32>) -> Result<()> {
        self.check_open()?;
        if self.has_cached() {
            return Err(refused(format!("group {id} stands beside rows that attend to a cache")));
        }
        let start = self.extend(prompt)?;
        self.close(start);
        let m = &mut self.batch;
        let (end, len) = (m.tokens.len() as u32, m.tokens.len() as u32 - start);
        let segments = m.segments.len() as u32;
        if len > 0 {
            m.segments.push(Segment { start, len, prefix_start: start, prefix_len: 0 });
        }
        m.positions.extend(0..len);
        let from = |len: usize| len as u32..len as u32;
        self.open = Some(GroupSpan {
            id,
            prompt: start..end,
            segments: segments..segments,
            responses: from(m.responses.len()),
            predictions: from(m.predictions.len()),
            pairs: from(m.pairs.len()),
            end,
        });
        Ok(())
    }

    /// Adds response `id` of the data set to the group: at least one token. Each is predicted from the row before it; the
    /// first from the prompt's last, or where the prompt is empty not at all.
    ///
    /// Refused: without a group, and without tokens.
    pub fn response(&mut self, id: u64, tokens: impl IntoIterator<Item = u32>) -> Result<()> {
        let prompt = self.group_of(id)?;
        let at = self.extend(tokens)?;
        let m = &mut self.batch;
        let (end, prefix_len, response) = (m.tokens.len() as u32, prompt.len() as u32, m.responses.len() as u32);
        if end == at {
            return Err(refused(format!("response {id} has no tokens")));
        }
        let len = end - at;
        m.positions.extend(prefix_len..prefix_len + len);
        m.segments.push(Segment { start: at, len, prefix_start: prompt.start, prefix_len });
        let first = m.predictions.len() as u32;
        if prefix_len > 0 {
            m.predictions.push(Prediction { row: prompt.end - 1, target: m.tokens[at as usize], response });
        }
        let follow = (at..).zip(&m.tokens[at as usize + 1..]);
        m.predictions.extend(follow.map(|(row, &target)| Prediction { row, target, response }));
        let predictions = first..m.predictions.len() as u32;
        m.responses.push(ResponseSlot { id, predictions, ref_logp: 0.0, score: None, given: 0.0, role: Role::PLAIN });
        Ok(())
    }

    /// Says what the data say that the last response is worth.
    ///
    /// Refused: without a response.
    pub fn score(&mut self, score: f32) -> Result<()> {
        match self.batch.responses.last_mut() {
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
        match self.batch.responses.last_mut() {
            Some(response) if sound => response.role = role,
            Some(response) => return Err(refused(format!("response {} has weights {weights:?}", response.id))),
            None => return Err(refused(format!("weights {weights:?} belong to no response"))),
        }
        Ok(())
    }

    /// Adds a response that has yet to be drawn: one prediction, from the prompt's last row, of a target 0.
    ///
    /// Refused: without a group, and after an empty prompt.
    pub fn open_response(&mut self, id: u64) -> Result<()> {
        let prompt = self.group_of(id)?;
        if prompt.is_empty() {
            return Err(refused(format!("response {id} would begin after an empty prompt")));
        }
        self.predict_next(id, prompt.end - 1);
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
        let n = self.batch.responses.len() - first as usize;
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
        self.batch.pairs.push(PairSlot { chosen, rejected, weight, id, ref_heads: [0.0; 2], given: [0.0; 2] });
        Ok(())
    }

    /// Adds the newest token of a sequence that is being continued, at `position`: a row in no segment, as it attends to a
    /// cache, which predicts what follows (target 0). It is a response of its own, numbered from 0.
    ///
    /// Refused: beside groups.
    pub fn cached(&mut self, token: u32, position: u32) -> Result<()> {
        if self.open.is_some() {
            return Err(refused("a row that attends to a cache stands beside groups".into()));
        }
        let row = self.extend([token])?;
        self.batch.positions.push(position);
        self.predict_next(row.into(), row);
        Ok(())
    }

    /// The micro-batch, with a dummy tail up to `slots` token slots.
    ///
    /// Refused: fewer slots than rows, more than half of what a `u32` can number, and a last group without responses.
    pub fn finish(mut self, slots: usize) -> Result<MicroBatch> {
        self.check_open()?;
        let used = self.used();
        if used > slots || slots > MOST {
            return Err(refused(format!("{used} rows do not go into {slots} slots (of at most {MOST})")));
        }
        self.close(used as u32);
        let mut m = self.batch;
        m.used = used;
        m.slots = slots;
        m.tokens.resize(slots, 0);
        m.positions.resize(slots, 0);
        m.rows_by_token = sorted(m.tokens[..used].iter().copied());
        m.predictions_by_row = sorted(m.predictions.iter().map(|p| p.row));
        Ok(m)
    }

    /// Whether there are rows that attend to a cache.
    fn has_cached(&self) -> bool {
        self.open.is_none() && !self.batch.tokens.is_empty()
    }

    /// Rows of the prompt of the group that is open, for response `id`.
    fn group_of(&self, id: u64) -> Result<std::ops::Range<u32>> {
        match &self.open {
            Some(group) => Ok(group.prompt.clone()),
            None => Err(refused(format!("response {id} belongs to no group"))),
        }
    }

    /// Appends tokens; gives the row of the first.
    fn extend(&mut self, tokens: impl IntoIterator<Item = u32>) -> Result<u32> {
        let all = &mut self.batch.tokens;
        let at = all.len();
        all.extend(tokens);
        if all.len() > MOST {
            let rows = all.len();
            all.truncate(at);
            return Err(refused(format!("{rows} rows are more than the {MOST} that can be numbered")));
        }
        Ok(at as u32)
    }

    /// A response of one prediction, from `row`.
    fn predict_next(&mut self, id: u64, row: u32) {
        let m = &mut self.batch;
        let (first, response) = (m.predictions.len() as u32, m.responses.len() as u32);
        m.predictions.push(Prediction { row, target: 0, response });
        m.responses.push(ResponseSlot {
            id,
            predictions: first..first + 1,
            ref_logp: 0.0,
            score: None,
            given: 0.0,
            role: Role::PLAIN,
        });
    }

    /// Refuses to go on from a group without responses.
    fn check_open(&self) -> Result<()> {
        match &self.open {
            Some(g) if g.responses.start as usize == self.batch.responses.len() => {
                Err(refused(format!("group {} has no responses", g.id)))
            }
            _ => Ok(()),
        }
    }

    /// Ends the group that is open, before row `end`.
    fn close(&mut self, end: u32) {
        let Some(mut group) = self.open.take() else { return };
        let m = &mut self.batch;
        group.segments.end = m.segments.len() as u32;
        group.responses.end = m.responses.len() as u32;
        group.predictions.end = m.predictions.len() as u32;
        group.pairs.end = m.pairs.len() as u32;
        group.end = end;
        m.groups.push(group);
    }
}

/// Indices in the order of (value, index). One key of both each: a plain integer sort, and no ties.
fn sorted(values: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut keys: Vec<u64> = values.enumerate().map(|(i, v)| u64::from(v) << 32 | i as u64).collect();
    keys.sort_unstable();
    keys.into_iter().map(|k| k as u32).collect()
}

fn refused(why: String) -> Error {
    Error::Training(format!("micro-batch: {why}; it was put together wrongly"))
}
