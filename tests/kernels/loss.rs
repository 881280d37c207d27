//! Per-response sums, losses and coefficients, for every loss of the table.

use crate::batches::{ANY_HEADS, capacity, chunk, micro_batch};
use crate::{Case, Noise, Outputs, buf, compare, compare_under, fetch, unset, v};
use fusedpo::backend::{self, Backend, PAIR_STATS, RESPONSE_STATS};
use fusedpo::batch::MicroBatch;
use fusedpo::loss::{LossSpec, LossType};
use std::ops::Range;

struct Loss {
    micro: MicroBatch,
    groups: Range<usize>,
    spec: LossSpec,
    logp: Vec<f64>,
    entropy: Vec<f64>,
    hit: Vec<f64>,
    log_sum_p2: Vec<f64>,
}
impl Case for Loss {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let mut batch = be.new_batch(capacity(&self.micro), ANY_HEADS).unwrap();
        be.load_batch(&mut batch, &self.micro).unwrap();
        let chunk = chunk(&self.micro, self.groups.clone());
        let stats = [&self.logp, &self.entropy, &self.hit, &self.log_sum_p2].map(|s| buf::<B, B::Acc>(be, s));
        let mut coef = unset::<B, B::Acc>(be, chunk.predictions.len());
        let mut responses = unset::<B, f64>(be, chunk.responses.len() * RESPONSE_STATS);
        let mut pairs = unset::<B, f64>(be, chunk.pairs.len() * PAIR_STATS);
        let [logp, entropy, hit, log_sum_p2] = &stats;
        be.loss(backend::Loss {
            coef: v!(be, mut coef),
            responses: v!(be, mut responses),
            pairs: v!(be, mut pairs),
            logp: v!(be, *logp),
            entropy: v!(be, *entropy),
            hit: v!(be, *hit),
            log_sum_p2: v!(be, *log_sum_p2),
            batch: &batch,
            chunk: &chunk,
            spec: &self.spec,
            scales: 0.125.into(),
            given: false,
        })
        .unwrap();
        vec![
            ("coef", fetch(be, &coef), false),
            ("responses", fetch(be, &responses), false),
            ("pairs", fetch(be, &pairs), false),
        ]
    }
}

#[test]
fn loss() {
    for loss_type in LossType::EVERY.iter().copied() {
        for (label_smoothing, groups) in [(0.0, 0..4), (0.1, 1..3), (0.0, 3..4)] {
            let label_smoothing = if loss_type == LossType::ExoPair { 0.1 } else { label_smoothing };
            let mut noise = Noise(7);
            let sizes: [(u32, &[u32]); 4] = [(2, &[40, 3]), (3, &[2, 1, 70, 4, 9]), (1, &[1, 1]), (4, &[5, 33, 2, 8])];
            let micro = micro_batch(200, &sizes, 50, || noise.uniform());
            let n = chunk(&micro, groups.clone()).predictions.len();
            let case = Loss {
                micro,
                groups: groups.clone(),
                spec: LossSpec::of(loss_type).beta(0.3).label_smoothing(label_smoothing),
                logp: (0..n).map(|_| f64::from(-3.0 * noise.uniform() as f32)).collect(),
                entropy: noise.vec::<f32>(n, 1.0),
                hit: (0..n).map(|_| noise.uniform().round()).collect(),
                log_sum_p2: noise.vec::<f32>(n, 1.0),
            };
            compare::<f32>(&format!("loss {:?} of {groups:?}", loss_type), &case);
        }
    }
}

/// More pairs in a group than a block has threads.
#[test]
fn many_pairs() {
    let mut noise = Noise(8);
    let micro = micro_batch(270, &[(2, &[1; 264])], 50, || noise.uniform());
    assert!(micro.pairs().len() > 128);
    let n = micro.predictions().len();
    let case = Loss {
        micro,
        groups: 0..1,
        spec: LossSpec::of(LossType::Sigmoid).beta(0.3).label_smoothing(0.1),
        logp: (0..n).map(|_| f64::from(-3.0 * noise.uniform() as f32)).collect(),
        entropy: noise.vec::<f32>(n, 1.0),
        hit: vec![1.0; n],
        log_sum_p2: vec![-1.0; n],
    };
    compare_under::<f32>("loss of many pairs", &case, &[1]);
}
