//! Micro-batches of random groups.

use fusedpo::backend::AttnShape;
use fusedpo::batch::{Builder, Capacity, Chunk, MicroBatch};

/// A group: tokens of its prompt, and of each response.
pub type Sizes<'a> = (u32, &'a [u32]);

/// Packs groups of these sizes into `slots` slots, with random tokens below `vocab`; every two responses of a group in
/// turn are a pair, as is the first with the last.
pub fn micro_batch(slots: usize, groups: &[Sizes], vocab: u32, mut random: impl FnMut() -> f64) -> MicroBatch {
    let mut b = Builder::default();
    let mut ref_logps = Vec::new();
    let mut pairs = 0..;
    for (id, (prompt, responses)) in (0..).zip(groups) {
        let mut tokens =
            |n: u32| -> Vec<u32> { (0..n).map(|_| (random() * f64::from(vocab)) as u32 % vocab).collect() };
        b.group(id, tokens(*prompt)).unwrap();
        for len in *responses {
            b.response(ref_logps.len() as u64, tokens(*len)).unwrap();
            ref_logps.push(-3.0 * f64::from(*len));
        }
        let k = responses.len();
        for i in 0..k / 2 {
            let (chosen, rejected) = if i % 2 == 0 { (2 * i, 2 * i + 1) } else { (2 * i + 1, 2 * i) };
            b.pair(chosen, rejected, 1.0 + 0.5 * i as f32, pairs.next().unwrap()).unwrap();
        }
        if k > 2 {
            b.pair(0, k - 1, 0.75, pairs.next().unwrap()).unwrap();
        }
    }
    let mut m = b.finish(slots).unwrap();
    m.set_ref_logps(|r| Ok(ref_logps[r.id as usize] * random())).unwrap();
    m
}

/// For ops that look at no heads.
#[allow(dead_code)]
pub const ANY_HEADS: AttnShape = AttnShape { heads: 1, kv_heads: 1, head_dim: 1 };

/// Room for `m` and a little more.
pub fn capacity(m: &MicroBatch) -> Capacity {
    let c = m.capacity();
    Capacity { slots: c.slots + 3, predictions: c.predictions + 2, responses: c.responses + 1, pairs: c.pairs + 1 }
}

/// Groups `range` of `m` as a chunk.
pub fn chunk(m: &MicroBatch, range: std::ops::Range<usize>) -> Chunk {
    let (a, b) = (&m.groups()[range.start], &m.groups()[range.end - 1]);
    Chunk {
        responses: a.responses.start as usize..b.responses.end as usize,
        predictions: a.predictions.start as usize..b.predictions.end as usize,
        pairs: a.pairs.start as usize..b.pairs.end as usize,
    }
}
