//! Masked attention written out, over groups with a shared prompt, and micro-batches that hold nothing else.

use fusedpo::backend::AttnShape;
use fusedpo::batch::{Builder, Capacity, MicroBatch};
use std::ops::Range;

/// Lengths of a prompt (0: empty) and of its responses.
#[derive(Clone, Debug)]
pub struct Group {
    pub prompt: usize,
    pub responses: Vec<usize>,
}

impl Group {
    pub fn rows(&self) -> usize {
        self.prompt + self.responses.iter().sum::<usize>()
    }
}

/// Pseudo-random numbers.
pub struct Noise(pub u64);

impl Noise {
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Roughly normal.
    pub fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.uniform()).sum::<f64>() * 1.4 - 4.2
    }
    /// `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }
    /// `1..=most`, often just at a tile's border.
    pub fn length(&mut self, most: usize) -> usize {
        let near = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129][self.below(11)];
        if self.below(2) == 0 && near <= most { near } else { 1 + self.below(most) }
    }
}

pub fn capacity(slots: usize, responses: usize) -> Capacity {
    Capacity { slots, predictions: slots, responses, pairs: responses }
}

/// The groups one behind the other; every token is 0.
pub fn batch(groups: &[Group], slots: usize) -> MicroBatch {
    let mut b = Builder::default();
    for (id, g) in (0..).zip(groups) {
        b.group(id, std::iter::repeat_n(0, g.prompt)).unwrap();
        g.responses.iter().for_each(|len| b.response(id, std::iter::repeat_n(0, *len)).unwrap());
    }
    b.finish(slots).unwrap()
}

/// What an attention op gives, forward and backward.
#[derive(Clone, Debug)]
pub struct Results {
    pub out: Vec<f64>,
    pub lse: Vec<f64>,
    pub dqkv: Vec<f64>,
    pub shape: AttnShape,
}

fn same(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

impl Results {
    pub fn same_forward(&self, o: &Results) -> bool {
        same(&self.out, &o.out) && same(&self.lse, &o.lse)
    }
    pub fn same_bits(&self, o: &Results) -> bool {
        self.same_forward(o) && same(&self.dqkv, &o.dqkv)
    }
    /// Every number's bits, to compare in full.
    pub fn bits(&self) -> Vec<u64> {
        self.out.iter().chain(&self.lse).chain(&self.dqkv).map(|x| x.to_bits()).collect()
    }
    pub fn rows(&self, r: Range<usize>) -> Results {
        let cut = |x: &[f64], w: usize| x[r.start * w..r.end * w].to_vec();
        let s = self.shape;
        Results {
            out: cut(&self.out, s.q_width()),
            lse: cut(&self.lse, s.heads),
            dqkv: cut(&self.dqkv, s.qkv_width()),
            shape: s,
        }
    }
    /// Output, and gradients of queries, keys and values apart: each has its own size.
    pub fn parts(&self) -> [(&'static str, Vec<f64>); 4] {
        let s = self.shape;
        let columns = |r: Range<usize>| {
            self.dqkv.chunks(s.qkv_width()).flat_map(|row| row[r.clone()].to_vec()).collect::<Vec<_>>()
        };
        let (q, k) = (s.q_width(), s.q_width() + s.kv_width());
        [("out", self.out.clone()), ("dq", columns(0..q)), ("dk", columns(q..k)), ("dv", columns(k..s.qkv_width()))]
    }
}

/// Attention and its gradient, query by query, in f64; `round` is applied wherever an implementation that stores every
/// intermediate result would round it: scores, probabilities, and their gradients; sums of products are exact.
pub fn naive(
    groups: &[Group],
    slots: usize,
    s: AttnShape,
    qkv: &[f64],
    dout: &[f64],
    round: impl Fn(f64) -> f64 + Copy,
) -> Results {
    let (w, d, ratio, scale) = (s.qkv_width(), s.head_dim, s.heads / s.kv_heads, 1.0 / (s.head_dim as f64).sqrt());
    let mut r = Results {
        out: vec![0.0; slots * s.q_width()],
        lse: vec![0.0; slots * s.heads],
        dqkv: vec![0.0; slots * w],
        shape: s,
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for seg in batch(groups, slots).segments() {
        for row in seg.start as usize..(seg.start + seg.len) as usize {
            let prefix = seg.prefix_start as usize..(seg.prefix_start + seg.prefix_len) as usize;
            let keys: Vec<usize> = prefix.chain(seg.start as usize..row + 1).collect();
            for h in 0..s.heads {
                let (q, k, v) = (h * d, s.q_width() + h / ratio * d, s.q_width() + s.kv_width() + h / ratio * d);
                let at = |row: usize, col: usize| &qkv[row * w + col..][..d];
                let scores: Vec<f64> =
                    keys.iter().map(|key| round(round(dot(at(row, q), at(*key, k))) * scale)).collect();
                let top = scores.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
                let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|x| round((x - top).exp() / sum)).collect();
                r.lse[row * s.heads + h] = top + sum.ln();
                let g = &dout[row * s.q_width() + h * d..][..d];
                let dp: Vec<f64> = keys.iter().map(|key| round(dot(g, at(*key, v)))).collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                let out = &mut r.out[row * s.q_width() + h * d..][..d];
                for ((key, p), dp) in keys.iter().zip(&p).zip(&dp) {
                    out.iter_mut().zip(at(*key, v)).for_each(|(o, v)| *o += p * v);
                    let ds = round(round(p * (dp - delta)) * scale);
                    for (c, g) in g.iter().enumerate() {
                        r.dqkv[row * w + q + c] += ds * at(*key, k)[c];
                        r.dqkv[key * w + k + c] += ds * at(row, q)[c];
                        r.dqkv[key * w + v + c] += p * g;
                    }
                }
            }
        }
    }
    r.out.iter_mut().chain(&mut r.dqkv).for_each(|x| *x = round(*x));
    r
}
