//! Micro-batches of random groups.

use fusedpo::backend::{AttnShape, Capacity, Chunk};
use fusedpo::data::batch::{GroupSpan, MicroBatch, PairSlot, Prediction, ResponseSlot, Segment};

/// A group: tokens of its prompt, and of each response.
pub type Sizes<'a> = (u32, &'a [u32]);

/// Packs groups of these sizes into `slots` slots, with random tokens below `vocab`; every two responses of a group in
/// turn are a pair, as is the first with the last.
pub fn micro_batch(slots: usize, groups: &[Sizes], vocab: u32, mut random: impl FnMut() -> f64) -> MicroBatch {
    let mut m = MicroBatch { slots, ..Default::default() };
    for (id, (prompt, responses)) in groups.iter().enumerate() {
        let start = m.tokens.len() as u32;
        let first = (m.segments.len(), m.responses.len(), m.predictions.len(), m.pairs.len());
        let push = |m: &mut MicroBatch, position, random: &mut dyn FnMut() -> f64| {
            m.tokens.push((random() * f64::from(vocab)) as u32 % vocab);
            m.positions.push(position);
        };
        (0..*prompt).for_each(|i| push(&mut m, i, &mut random));
        if *prompt > 0 {
            m.segments.push(Segment { start, len: *prompt, prefix_start: 0, prefix_len: 0 });
        }
        for len in *responses {
            let at = m.tokens.len() as u32;
            (0..*len).for_each(|i| push(&mut m, prompt + i, &mut random));
            m.segments.push(Segment { start: at, len: *len, prefix_start: start, prefix_len: *prompt });
            let from = m.predictions.len() as u32;
            for i in 0..*len {
                let row = if i > 0 { at + i - 1 } else { (start + prompt).wrapping_sub(1) };
                if i > 0 || *prompt > 0 {
                    let target = m.tokens[(at + i) as usize];
                    m.predictions.push(Prediction { row, target, response: m.responses.len() as u32 });
                }
            }
            let predictions = from..m.predictions.len() as u32;
            m.responses.push(ResponseSlot { id: 0, predictions, ref_logp: -3.0 * f64::from(*len) * random() });
        }
        let k = responses.len() as u32;
        for i in 0..k / 2 {
            let (a, b) = (first.1 as u32 + 2 * i, first.1 as u32 + 2 * i + 1);
            let (chosen, rejected) = if i % 2 == 0 { (a, b) } else { (b, a) };
            m.pairs.push(PairSlot { chosen, rejected, weight: 1.0 + 0.5 * i as f32, id: m.pairs.len() as u64 });
        }
        if k > 2 {
            let (chosen, rejected) = (first.1 as u32, first.1 as u32 + k - 1);
            m.pairs.push(PairSlot { chosen, rejected, weight: 0.75, id: m.pairs.len() as u64 });
        }
        let end = |len: usize| len as u32;
        m.groups.push(GroupSpan {
            id: id as u64,
            prompt: start..start + prompt,
            segments: first.0 as u32..end(m.segments.len()),
            responses: first.1 as u32..end(m.responses.len()),
            predictions: first.2 as u32..end(m.predictions.len()),
            pairs: first.3 as u32..end(m.pairs.len()),
            end: end(m.tokens.len()),
        });
    }
    m.used = m.tokens.len();
    assert!(m.used <= slots, "{} rows in {slots} slots", m.used);
    m.tokens.resize(slots, 0);
    m.positions.resize(slots, 0);
    m.rows_by_token = (0..m.used as u32).collect();
    m.rows_by_token.sort_by_key(|r| (m.tokens[*r as usize], *r));
    m.predictions_by_row = (0..m.predictions.len() as u32).collect();
    m.predictions_by_row.sort_by_key(|p| (m.predictions[*p as usize].row, *p));
    m
}

/// For ops that look at no heads.
#[allow(dead_code)]
pub const ANY_HEADS: AttnShape = AttnShape { heads: 1, kv_heads: 1, head_dim: 1 };

/// Room for `m` and a little more.
pub fn capacity(m: &MicroBatch) -> Capacity {
    Capacity {
        slots: m.slots + 3,
        predictions: m.predictions.len() + 2,
        responses: m.responses.len() + 1,
        pairs: m.pairs.len() + 1,
    }
}

/// Groups `range` of `m` as a chunk.
pub fn chunk(m: &MicroBatch, range: std::ops::Range<usize>) -> Chunk {
    let (a, b) = (&m.groups[range.start], &m.groups[range.end - 1]);
    Chunk {
        responses: a.responses.start as usize..b.responses.end as usize,
        predictions: a.predictions.start as usize..b.predictions.end as usize,
        pairs: a.pairs.start as usize..b.pairs.end as usize,
    }
}
