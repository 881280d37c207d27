//! From outlines to micro-batches: the only reader of tokens in a plan.

use super::planner::Planner;
use crate::batch::{Batches, MicroBatch, Outline};
use crate::error::Result;
use rayon::prelude::*;
use std::ops::Range;

impl Planner<'_> {
    /// The micro-batches of a step (0-based), all of them: [`Planner::outlines`] with their tokens. Errors: as there.
    pub fn step(&self, epoch: u64, step: u64) -> Result<Vec<MicroBatch>> {
        self.all(self.outlines(epoch, step)?)
    }

    /// [`Planner::step`], with every mismatched row that a loss of judgements reads before it gives coefficients.
    pub fn first(&self, epoch: u64, step: u64) -> Result<Vec<MicroBatch>> {
        self.all(self.first_outlines(epoch, step)?)
    }

    /// The micro-batches that `outlines`, which are of this plan, are of; only those of `mine` get tokens.
    ///
    /// Errors: [`Error::Training`](crate::Error::Training) where a shard is not as it was.
    pub fn batches(&self, mut outlines: Vec<Outline>, mine: Range<usize>) -> Result<Batches> {
        let after = outlines.split_off(mine.end);
        let own = self.all(outlines.split_off(mine.start))?;
        Ok(Batches { before: outlines, own, after })
    }

    /// All of `batches`, with the tokens of those of other processes too.
    ///
    /// Errors: as [`Planner::outlines`].
    pub fn whole(&self, batches: &Batches) -> Result<Vec<MicroBatch>> {
        let Batches { before, own, after } = batches;
        if before.len() + after.len() > 0 {
            self.data().check_unchanged()?;
        }
        Ok([self.all(before.clone())?, own.clone(), self.all(after.clone())?].concat())
    }

    /// The micro-batch that `outline`, which is of this plan, is of. Errors: as [`Planner::batches`].
    pub fn with_tokens(&self, outline: Outline) -> Result<MicroBatch> {
        let data = self.data();
        let mut tokens = Vec::with_capacity(outline.slots());
        for span in outline.groups() {
            let group = data.group(span.id);
            group.prompt().extend_into(&mut tokens);
            for slot in &outline.responses()[span.responses.start as usize..span.responses.end as usize] {
                let from = if slot.role.is_mismatched() { data.group(data.group_of_response(slot.id)) } else { group };
                from.response_by_id(slot.id).tokens.slice(0..slot.rows.len()).extend_into(&mut tokens);
            }
        }
        MicroBatch::of(outline, tokens)
    }

    fn all(&self, outlines: Vec<Outline>) -> Result<Vec<MicroBatch>> {
        outlines.into_par_iter().map(|outline| self.with_tokens(outline)).collect()
    }
}
