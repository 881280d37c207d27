//! The one way to make a micro-batch of tokens at hand.

use super::micro::MicroBatch;
use super::outline::Role;
use super::outliner::Outliner;
use crate::error::Result;

/// Lays groups out one behind the other, and gives a [`MicroBatch`] in the end.
///
/// A group is its prompt ([`Builder::group`]), then its responses ([`Builder::response`]) and its pairs
/// ([`Builder::pair`]); it ends where the next begins. Whatever is refused is refused with
/// [`Error::Training`](crate::Error::Training), and leaves the builder as it was.
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
    outliner: Outliner,
    tokens: Vec<u32>,
    /// Of rows that attend to a cache.
    positions: Vec<u32>,
}

impl Builder {
    /// An empty builder with memory for `slots` tokens.
    pub fn with_capacity(slots: usize) -> Self {
        Self { tokens: Vec::with_capacity(slots), ..Self::default() }
    }

    /// Rows so far.
    pub fn used(&self) -> usize {
        self.outliner.used()
    }

    /// Begins group `id` of the data set with the tokens of its prompt, which may be none.
    ///
    /// Refused: after a group without responses, and beside [`Builder::cached`] rows.
    pub fn group(&mut self, id: u64, prompt: impl IntoIterator<Item = u32>) -> Result<()> {
        self.extend(prompt, |outliner, tokens| outliner.group(id, tokens))
    }

    /// Adds response `id` of the data set to the group: at least one token. Each is predicted from the row before it; the
    /// first from the prompt's last, or where the prompt is empty not at all.
    ///
    /// Refused: without a group, and without tokens.
    pub fn response(&mut self, id: u64, tokens: impl IntoIterator<Item = u32>) -> Result<()> {
        self.extend(tokens, |outliner, tokens| outliner.response(id, tokens))
    }

    /// See [`Outliner::score`].
    pub fn score(&mut self, score: f32) -> Result<()> {
        self.outliner.score(score)
    }

    /// See [`Outliner::role`].
    pub fn role(&mut self, role: Role) -> Result<()> {
        self.outliner.role(role)
    }

    /// See [`Outliner::open_response`]; what is predicted is a target of 0.
    pub fn open_response(&mut self, id: u64) -> Result<()> {
        self.outliner.open_response(id)
    }

    /// See [`Outliner::pair`].
    pub fn pair(&mut self, chosen: usize, rejected: usize, weight: f32, id: u64) -> Result<()> {
        self.outliner.pair(chosen, rejected, weight, id)
    }

    /// Adds the newest token of a sequence that is being continued, at `position`: a row in no segment, as it attends to a
    /// cache, which predicts what follows (target 0). It is a response of its own, numbered from 0.
    ///
    /// Refused: beside groups.
    pub fn cached(&mut self, token: u32, position: u32) -> Result<()> {
        self.extend([token], |outliner, _| outliner.cached())?;
        self.positions.push(position);
        Ok(())
    }

    /// The micro-batch, with a dummy tail up to `slots` token slots.
    ///
    /// Refused: fewer slots than rows, more than half of what a `u32` can number, and a last group without responses.
    pub fn finish(self, slots: usize) -> Result<MicroBatch> {
        let outline = self.outliner.finish(slots)?;
        Ok(if self.positions.is_empty() {
            MicroBatch::laid_out(outline, self.tokens)
        } else {
            MicroBatch::of_cached(outline, self.tokens, self.positions)
        })
    }

    /// Appends tokens that `lay` has a place for, given how many they are.
    fn extend(
        &mut self,
        tokens: impl IntoIterator<Item = u32>,
        lay: impl FnOnce(&mut Outliner, usize) -> Result<()>,
    ) -> Result<()> {
        let at = self.tokens.len();
        self.tokens.extend(tokens);
        lay(&mut self.outliner, self.tokens.len() - at).inspect_err(|_| self.tokens.truncate(at))
    }
}
