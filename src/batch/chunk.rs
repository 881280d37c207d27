//! Parts of a micro-batch that share a logits buffer.

use super::micro::MicroBatch;
use std::ops::Range;

/// Groups of a micro-batch whose predictions share one logits buffer: contiguous ranges of each array of [`MicroBatch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Responses.
    pub responses: Range<usize>,
    /// Predictions.
    pub predictions: Range<usize>,
    /// Pairs.
    pub pairs: Range<usize>,
}

/// Cuts a micro-batch into runs of whole groups with at most `head_rows` predictions each, in order. A group with more
/// stands alone: the engine takes its head in parts.
pub fn chunks(from: &MicroBatch, head_rows: usize) -> Vec<Chunk> {
    let range = |r: &Range<u32>| r.start as usize..r.end as usize;
    let mut chunks: Vec<Chunk> = Vec::new();
    for g in from.groups() {
        let (responses, predictions, pairs) = (range(&g.responses), range(&g.predictions), range(&g.pairs));
        match chunks.last_mut() {
            Some(c) if predictions.end - c.predictions.start <= head_rows => {
                c.responses.end = responses.end;
                c.predictions.end = predictions.end;
                c.pairs.end = pairs.end;
            }
            _ => chunks.push(Chunk { responses, predictions, pairs }),
        }
    }
    chunks
}
