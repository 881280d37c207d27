//! Ops without a batch: SwiGLU, norms, biases, matrix products, the key/value cache.

use crate::{Case, Noise, Outputs, both, buf, compare, fetch, unset, v};
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::backend::{AttnShape, Backend, Write};

struct Swiglu {
    ffn: usize,
    gate_up: Vec<f64>,
    dact: Vec<f64>,
}
impl Case for Swiglu {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let mut gate_up = buf::<B, B::Act>(be, &self.gate_up);
        let mut act = unset::<B, B::Act>(be, self.dact.len());
        be.swiglu_fwd(v!(be, mut act), v!(be, gate_up), self.ffn).unwrap();
        let dact = buf::<B, B::Act>(be, &self.dact);
        be.swiglu_bwd(v!(be, mut gate_up), v!(be, dact), self.ffn).unwrap();
        vec![("act", fetch(be, &act), true), ("dgate_up", fetch(be, &gate_up), true)]
    }
}
fn swiglu<A: GpuFloat>() {
    for (rows, ffn) in [(1, 1), (3, 37), (5, 64), (2, 2056), (7, 8)] {
        let mut noise = Noise(rows as u64 * 1000 + ffn as u64);
        let case = Swiglu { ffn, gate_up: noise.vec::<A>(rows * 2 * ffn, 2.0), dact: noise.vec::<A>(rows * ffn, 1.0) };
        compare::<A>(&format!("swiglu {rows} x {ffn}"), &case);
    }
}
both!(swiglu);

struct RmsNorm {
    rows: usize,
    x: Vec<f64>,
    w: Vec<f64>,
    dy: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
}
impl Case for RmsNorm {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let (x, w, dy) = (buf::<B, B::Act>(be, &self.x), buf(be, &self.w), buf(be, &self.dy));
        let mut y = unset::<B, B::Act>(be, self.x.len());
        let mut rstd = unset::<B, B::Acc>(be, self.rows);
        be.rmsnorm_fwd(v!(be, mut y), v!(be, mut rstd), v!(be, x), v!(be, w), 1e-5).unwrap();
        let mut again = unset::<B, B::Act>(be, self.x.len());
        be.rmsnorm_again(v!(be, mut again), v!(be, rstd), v!(be, x), v!(be, w)).unwrap();
        assert_eq!(fetch(be, &again), fetch(be, &y), "rmsnorm_again gives the same bits");
        let mut set = unset::<B, B::Act>(be, self.x.len());
        let mut added = buf::<B, B::Act>(be, &self.dx);
        let mut dw = buf::<B, B::Acc>(be, &self.dw);
        let inputs = (v!(be, dy), v!(be, x), v!(be, w), v!(be, rstd));
        let (dy, x, w, r) = inputs;
        be.rmsnorm_bwd(v!(be, mut set), Some(v!(be, mut dw)), dy, x, w, r, Write::Set).unwrap();
        be.rmsnorm_bwd(v!(be, mut added), None, dy, x, w, r, Write::Add).unwrap();
        vec![
            ("y", fetch(be, &y), true),
            ("rstd", fetch(be, &rstd), false),
            ("dx", fetch(be, &set), true),
            ("dx added", fetch(be, &added), true),
            ("dw", fetch(be, &dw), false),
        ]
    }
    /// `w dy` and `x rstd^2 mean(w dy x)` cancel in full where a row has one element.
    fn terms(&self, output: &str) -> f64 {
        if output == "dx" { 4.0 } else { 0.0 }
    }
}
fn rmsnorm<A: GpuFloat>() {
    for (rows, dim) in [(1, 1), (5, 37), (13, 576), (3, 2056), (2, 4104), (1100, 5)] {
        let mut noise = Noise(rows as u64 * 1000 + dim as u64);
        let case = RmsNorm {
            rows,
            x: noise.vec::<A>(rows * dim, 2.0),
            w: noise.vec::<A>(dim, 1.0),
            dy: noise.vec::<A>(rows * dim, 1.0),
            dx: noise.vec::<A>(rows * dim, 1.0),
            dw: noise.vec::<f32>(dim, 1.0),
        };
        compare::<A>(&format!("rmsnorm {rows} x {dim}"), &case);
    }
}
both!(rmsnorm);

struct QkNorm {
    shape: AttnShape,
    rows: usize,
    qkv: Vec<f64>,
    w: Vec<f64>,
    dqkv: Vec<f64>,
}
impl Case for QkNorm {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let s = self.shape;
        let w = buf::<B, B::Act>(be, &self.w);
        let mut qkv = buf::<B, B::Act>(be, &self.qkv);
        let mut raw = unset::<B, B::Act>(be, self.rows * (s.q_width() + s.kv_width()));
        let mut rstd = unset::<B, B::Acc>(be, self.rows * (s.heads + s.kv_heads));
        be.qk_norm_fwd(v!(be, mut qkv), v!(be, mut raw), v!(be, mut rstd), v!(be, w), s, 1e-6).unwrap();
        let mut dqkv = buf::<B, B::Act>(be, &self.dqkv);
        let mut dw = buf::<B, B::Acc>(be, &vec![0.5; 2 * s.head_dim]);
        let (kept, stats) = (v!(be, raw), v!(be, rstd));
        be.qk_norm_bwd(v!(be, mut dqkv), Some(v!(be, mut dw)), kept, stats, v!(be, w), s).unwrap();
        let mut frozen = buf::<B, B::Act>(be, &self.dqkv);
        be.qk_norm_bwd(v!(be, mut frozen), None, kept, stats, v!(be, w), s).unwrap();
        assert_eq!(fetch(be, &frozen), fetch(be, &dqkv), "a frozen weight changes nothing else");
        vec![
            ("qkv", fetch(be, &qkv), true),
            ("raw", fetch(be, &raw), true),
            ("rstd", fetch(be, &rstd), false),
            ("dqkv", fetch(be, &dqkv), true),
            ("dw", fetch(be, &dw), false),
        ]
    }
}
fn qk_norm<A: GpuFloat>() {
    for (rows, heads, kv_heads, head_dim) in
        [(1, 1, 1, 5), (7, 6, 2, 64), (3, 3, 1, 96), (520, 2, 1, 16), (2, 4, 4, 128)]
    {
        let shape = AttnShape { heads, kv_heads, head_dim };
        let mut noise = Noise(rows as u64 * 1000 + head_dim as u64);
        let case = QkNorm {
            shape,
            rows,
            qkv: noise.vec::<A>(rows * shape.qkv_width(), 2.0),
            w: noise.vec::<A>(2 * head_dim, 1.0),
            dqkv: noise.vec::<A>(rows * shape.qkv_width(), 1.0),
        };
        compare::<A>(&format!("qk_norm {rows} x {heads}/{kv_heads} x {head_dim}"), &case);
    }
}
both!(qk_norm);

struct Linear {
    out: usize,
    inp: usize,
    x: Vec<f64>,
    w: Vec<f64>,
    bias: Vec<f64>,
    y: Vec<f64>,
    dw: Vec<f64>,
}
impl Case for Linear {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let (x, w, bias) = (buf::<B, B::Act>(be, &self.x), buf::<B, B::Act>(be, &self.w), buf(be, &self.bias));
        let (out, inp) = (self.out, self.inp);
        let kept = buf::<B, B::Act>(be, &self.y);
        let mut set = unset::<B, B::Act>(be, self.y.len());
        let mut added = buf::<B, B::Act>(be, &self.y);
        let mut plus = unset::<B, B::Act>(be, self.y.len());
        be.linear_fwd(v!(be, mut set), v!(be, x), v!(be, w), out, inp, Write::Set).unwrap();
        be.linear_fwd(v!(be, mut added), v!(be, x), v!(be, w), out, inp, Write::Add).unwrap();
        be.linear_fwd(v!(be, mut plus), v!(be, x), v!(be, w), out, inp, Write::Plus(v!(be, kept))).unwrap();
        let mut biased = buf::<B, B::Act>(be, &self.y);
        be.bias_fwd(v!(be, mut biased), v!(be, bias)).unwrap();
        let mut dx = unset::<B, B::Act>(be, self.x.len());
        let mut dx_added = buf::<B, B::Act>(be, &self.x);
        be.linear_bwd_input(v!(be, mut dx), v!(be, kept), v!(be, w), out, inp, Write::Set).unwrap();
        be.linear_bwd_input(v!(be, mut dx_added), v!(be, kept), v!(be, w), out, inp, Write::Add).unwrap();
        let mut dw = buf::<B, B::Acc>(be, &self.dw);
        be.linear_bwd_weight(v!(be, mut dw), v!(be, kept), v!(be, x), out, inp).unwrap();
        let mut dbias = buf::<B, B::Acc>(be, &vec![0.25; out]);
        be.bias_bwd(v!(be, mut dbias), v!(be, kept)).unwrap();
        let mut logits = unset::<B, B::Acc>(be, self.y.len() + 3);
        be.logits(v!(be, mut logits), v!(be, x), v!(be, w), inp).unwrap();
        vec![
            ("y", fetch(be, &set), true),
            ("y added", fetch(be, &added), true),
            ("y plus", fetch(be, &plus), true),
            ("y + bias", fetch(be, &biased), true),
            ("dx", fetch(be, &dx), true),
            ("dx added", fetch(be, &dx_added), true),
            ("dw", fetch(be, &dw), false),
            ("dbias", fetch(be, &dbias), false),
            ("logits", fetch(be, &logits)[..self.y.len()].to_vec(), false),
        ]
    }
    /// The length of the sums: their terms are about 1.
    fn product_terms(&self, output: &str) -> f64 {
        let terms = match output {
            "dw" => self.y.len() / self.out,
            "dx" | "dx added" => self.out,
            "dbias" => 0,
            _ => self.inp,
        };
        terms as f64
    }
}
fn linear<A: GpuFloat>() {
    for (rows, out, inp) in [(1, 1, 1), (5, 37, 8), (530, 13, 7), (3, 2056, 16)] {
        let mut noise = Noise(rows as u64 * 1000 + out as u64);
        let case = Linear {
            out,
            inp,
            x: noise.vec::<A>(rows * inp, 1.0),
            w: noise.vec::<A>(out * inp, 1.0),
            bias: noise.vec::<A>(out, 1.0),
            y: noise.vec::<A>(rows * out, 1.0),
            dw: noise.vec::<f32>(out * inp, 1.0),
        };
        compare::<A>(&format!("linear {rows} x {out} x {inp}"), &case);
    }
}
both!(linear);

struct Decode {
    shape: AttnShape,
    stride: usize,
    lens: Vec<u32>,
    dst: Vec<u32>,
    qkv: Vec<f64>,
    cache: Vec<f64>,
}
impl Case for Decode {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let qkv = buf::<B, B::Act>(be, &self.qkv);
        let (mut k, mut value) = (buf::<B, B::Act>(be, &self.cache), buf::<B, B::Act>(be, &self.cache));
        be.kv_store(v!(be, mut k), v!(be, mut value), v!(be, qkv), &self.dst, self.shape).unwrap();
        let mut out = unset::<B, B::Act>(be, self.lens.len() * self.shape.q_width());
        let (keys, values) = (v!(be, k), v!(be, value));
        be.attention_decode(v!(be, mut out), v!(be, qkv), keys, values, &self.lens, self.stride, self.shape).unwrap();
        vec![("k", fetch(be, &k), true), ("v", fetch(be, &value), true), ("out", fetch(be, &out), true)]
    }
}
fn decode<A: GpuFloat>() {
    for (heads, kv_heads, head_dim, lens) in
        [(1, 1, 3, vec![1]), (6, 2, 20, vec![9, 1, 300]), (2, 1, 136, vec![128, 129]), (4, 4, 8, vec![260])]
    {
        let shape = AttnShape { heads, kv_heads, head_dim };
        let stride = lens.iter().max().copied().unwrap_or(1) as usize + 2;
        let mut noise = Noise(head_dim as u64);
        // Every sequence's new row goes to its end; the last stays out of the cache.
        let dst = lens.iter().enumerate().map(|(s, l)| (s * stride) as u32 + l - 1);
        let n = lens.len();
        let dst = dst.enumerate().map(|(s, d)| if n > 1 && s + 1 == n { u32::MAX } else { d }).collect();
        let case = Decode {
            shape,
            stride,
            dst,
            qkv: noise.vec::<A>(n * shape.qkv_width(), 1.0),
            cache: noise.vec::<A>(n * stride * shape.kv_width(), 1.0),
            lens,
        };
        compare::<A>(&format!("decode {heads}/{kv_heads} x {head_dim}"), &case);
    }
}
both!(decode);
