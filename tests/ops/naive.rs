//! Attention with a mask, one row at a time, in f64.

use fusedpo::backend::AttnShape;
use fusedpo::batch::MicroBatch;

/// Rows that row `t` attends to.
fn visible(m: &MicroBatch, t: usize) -> Vec<usize> {
    let Some(s) = m.segments().iter().find(|s| (s.start..s.start + s.len).contains(&(t as u32))) else { return vec![] };
    let prefix = s.prefix_start as usize..(s.prefix_start + s.prefix_len) as usize;
    prefix.chain(s.start as usize..t + 1).collect()
}

/// Output and log-sum-exp.
pub fn attention(qkv: &[f64], m: &MicroBatch, shape: AttnShape) -> (Vec<f64>, Vec<f64>) {
    let AttnShape { heads, kv_heads, head_dim: d } = shape;
    let (mut out, mut lse) = (vec![0.0; m.used() * shape.q_width()], vec![0.0; m.used() * heads]);
    let at = |t: usize, column: usize| &qkv[t * shape.qkv_width() + column..][..d];
    for t in 0..m.used() {
        let keys = visible(m, t);
        for h in 0..heads {
            let kv = h / (heads / kv_heads) * d;
            let q = at(t, h * d);
            let score = |k: &usize| super::support::inner(q, at(*k, shape.q_width() + kv)) / (d as f64).sqrt();
            let scores: Vec<f64> = keys.iter().map(score).collect();
            if scores.is_empty() {
                continue;
            }
            let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse[t * heads + h] = max + sum.ln();
            for (k, s) in keys.iter().zip(&scores) {
                let p = (s - max).exp() / sum;
                let v = at(*k, shape.q_width() + shape.kv_width() + kv);
                let out = &mut out[t * shape.q_width() + h * d..][..d];
                out.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
            }
        }
    }
    (out, lse)
}
