//! Ops without a batch: SwiGLU, norms, biases, matrix products.

use crate::{Case, Noise, Outputs, both, buf, compare, fetch, unset, v};
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::backend::*;

pub struct Swiglu {
    pub ffn: usize,
    pub gate_up: Vec<f64>,
    pub dact: Vec<f64>,
}
impl Case for Swiglu {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let mut gate_up = buf::<B, B::Act>(be, &self.gate_up);
        let mut act = unset::<B, B::Act>(be, self.dact.len());
        be.swiglu_fwd(SwigluFwd { act: v!(be, mut act), gate_up: v!(be, gate_up), ffn: self.ffn }).unwrap();
        let mut dact = buf::<B, B::Act>(be, &self.dact);
        let mut over = buf::<B, B::Act>(be, &self.gate_up);
        be.swiglu_bwd(SwigluBwd { gate_up: v!(be, mut over), dact: v!(be, mut dact), ffn: self.ffn, again: false })
            .unwrap();
        assert_eq!(fetch(be, &dact), self.dact, "left alone");
        be.swiglu_bwd(SwigluBwd { gate_up: v!(be, mut gate_up), dact: v!(be, mut dact), ffn: self.ffn, again: true })
            .unwrap();
        assert_eq!(fetch(be, &dact), fetch(be, &act), "the same bits again");
        assert_eq!(fetch(be, &over), fetch(be, &gate_up), "the output again changes nothing else");
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
        let (x, w, mut dy) = (buf::<B, B::Act>(be, &self.x), buf(be, &self.w), buf(be, &self.dy));
        let mut y = unset::<B, B::Act>(be, self.x.len());
        let mut rstd = unset::<B, B::Acc>(be, self.rows);
        be.rmsnorm_fwd(RmsNormFwd { y: v!(be, mut y), rstd: v!(be, mut rstd), x: v!(be, x), w: v!(be, w), eps: 1e-5 })
            .unwrap();
        let mut set = unset::<B, B::Act>(be, self.x.len());
        let mut added = buf::<B, B::Act>(be, &self.dx);
        let mut dw = buf::<B, B::Acc>(be, &self.dw);
        let mut frozen = unset::<B, B::Act>(be, self.x.len());
        let given = fetch(be, &dy);
        let mut backward = |dx: &mut B::Buf<B::Act>, dw: Option<&mut B::Buf<B::Acc>>, write, again| {
            let (x, w, rstd, dx) = (v!(be, x), v!(be, w), v!(be, rstd), v!(be, mut *dx));
            let dw = dw.map(|dw| v!(be, mut *dw));
            be.rmsnorm_bwd(RmsNormBwd { dx, dw, dy: v!(be, mut dy), x, w, rstd, write, again }).unwrap();
            fetch(be, &dy)
        };
        assert_eq!(backward(&mut added, None, Write::Add, false), given, "left alone");
        backward(&mut frozen, None, Write::Set, false);
        assert_eq!(backward(&mut set, Some(&mut dw), Write::Set, true), fetch(be, &y), "the same bits again");
        assert_eq!(fetch(be, &frozen), fetch(be, &set), "a frozen weight and the output again change nothing else");
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
    // The last: more rows than slabs times the rows that a block has in hand, so that its rows go round, through several warps each.
    for (rows, dim) in [(1, 1), (5, 37), (13, 576), (3, 2056), (2, 4104), (1100, 5), (1030, 520)] {
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
        be.linear_fwd(LinearFwd { y: v!(be, mut set), x: v!(be, x), w: v!(be, w), out, inp, write: Write::Set })
            .unwrap();
        be.linear_fwd(LinearFwd { y: v!(be, mut added), x: v!(be, x), w: v!(be, w), out, inp, write: Write::Add })
            .unwrap();
        be.linear_fwd(LinearFwd {
            y: v!(be, mut plus),
            x: v!(be, x),
            w: v!(be, w),
            out,
            inp,
            write: Write::Plus(v!(be, kept)),
        })
        .unwrap();
        let mut biased = buf::<B, B::Act>(be, &self.y);
        be.bias_fwd(BiasFwd { y: v!(be, mut biased), bias: v!(be, bias) }).unwrap();
        let mut dx = unset::<B, B::Act>(be, self.x.len());
        let mut dx_added = buf::<B, B::Act>(be, &self.x);
        be.linear_bwd_input(LinearBwdInput {
            dx: v!(be, mut dx),
            dy: v!(be, kept),
            w: v!(be, w),
            out,
            inp,
            write: Write::Set,
        })
        .unwrap();
        be.linear_bwd_input(LinearBwdInput {
            dx: v!(be, mut dx_added),
            dy: v!(be, kept),
            w: v!(be, w),
            out,
            inp,
            write: Write::Add,
        })
        .unwrap();
        let mut dw = buf::<B, B::Acc>(be, &self.dw);
        be.linear_bwd_weight(LinearBwdWeight {
            dw: v!(be, mut dw),
            dy: v!(be, kept),
            x: v!(be, x),
            out,
            inp,
            write: Write::Add,
        })
        .unwrap();
        let mut dw_set = unset::<B, B::Acc>(be, self.dw.len());
        let (dy, rows) = (v!(be, kept), v!(be, x));
        be.linear_bwd_weight(LinearBwdWeight { dw: v!(be, mut dw_set), dy, x: rows, out, inp, write: Write::Set })
            .unwrap();
        let mut dbias = buf::<B, B::Acc>(be, &vec![0.25; out]);
        be.bias_bwd(BiasBwd { dbias: v!(be, mut dbias), dy: v!(be, kept) }).unwrap();
        let mut logits = unset::<B, B::Acc>(be, self.y.len() + 3);
        be.logits(Logits { logits: v!(be, mut logits), x: v!(be, x), w: v!(be, w), dim: inp }).unwrap();
        vec![
            ("y", fetch(be, &set), true),
            ("y added", fetch(be, &added), true),
            ("y plus", fetch(be, &plus), true),
            ("y + bias", fetch(be, &biased), true),
            ("dx", fetch(be, &dx), true),
            ("dx added", fetch(be, &dx_added), true),
            ("dw", fetch(be, &dw), false),
            ("dw set", fetch(be, &dw_set), false),
            ("dbias", fetch(be, &dbias), false),
            ("logits", fetch(be, &logits)[..self.y.len()].to_vec(), false),
        ]
    }
    /// The length of the sums: their terms are about 1.
    fn product_terms(&self, output: &str) -> f64 {
        let terms = match output {
            "dw" | "dw set" => self.y.len() / self.out,
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
