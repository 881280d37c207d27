//! Ops that follow a micro-batch: embedding, RoPE by itself and behind the q/k norm, gather and scatter.

use crate::batches::{ANY_HEADS, capacity, micro_batch};
use crate::{Case, MANY_ROWS, Noise, Outputs, both, buf, compare, compare_under, fetch, unset, v};
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::backend::*;
use fusedpo::batch::MicroBatch;

const VOCAB: usize = 11;

/// Groups of many shapes: a lone response, an empty prompt, several responses, and a dummy tail.
fn mixed(noise: &mut Noise, vocab: usize) -> MicroBatch {
    micro_batch(70, &[(5, &[3, 1]), (0, &[4]), (1, &[2, 2, 7]), (9, &[6, 5, 4, 3])], vocab as u32, || noise.uniform())
}

struct Rows {
    micro: MicroBatch,
    dim: usize,
    table: Vec<f64>,
    x: Vec<f64>,
    out: Vec<f64>,
}
impl Case for Rows {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let (m, dim) = (&self.micro, self.dim);
        let mut batch = be.new_batch(capacity(m), ANY_HEADS).unwrap();
        be.load_batch(&mut batch, m).unwrap();
        // The GPU computes all slots, the CPU the live ones: those are compared.
        let (rows, live) = (be.rows(&batch), m.used() * dim);
        let table = buf::<B, B::Act>(be, &self.table);
        let mut x = unset::<B, B::Act>(be, rows * dim);
        be.embed_fwd(EmbedFwd { x: v!(be, mut x), table: v!(be, table), batch: &batch, dim }).unwrap();
        let dx = buf::<B, B::Act>(be, &self.x[..rows * dim]);
        let mut dtable = buf::<B, B::Acc>(be, &self.table);
        be.embed_bwd(EmbedBwd { dtable: v!(be, mut dtable), dx: v!(be, dx), batch: &batch, dim }).unwrap();
        let mut gathered = unset::<B, B::Act>(be, m.predictions().len() * dim);
        be.gather_rows(GatherRows { out: v!(be, mut gathered), x: v!(be, dx), batch: &batch, dim }).unwrap();
        let out = buf::<B, B::Act>(be, &self.out);
        let mut scattered = unset::<B, B::Act>(be, rows * dim);
        be.scatter_rows(ScatterRows { dx: v!(be, mut scattered), dout: v!(be, out), batch: &batch, dim }).unwrap();
        let scattered = fetch::<B, B::Act>(be, &scattered);
        assert!(scattered[live..].iter().all(|x| *x == 0.0), "rows that predict nothing get no gradient");
        let mut outputs = vec![
            ("x", fetch::<B, B::Act>(be, &x)[..live].to_vec(), true),
            ("dtable", fetch(be, &dtable), false),
            ("gathered", fetch(be, &gathered), true),
            ("scattered", scattered[..live].to_vec(), true),
        ];
        // Gradients in bf16 are of weights in bf16, and of the CPU.
        if size_of::<B::Act>() != size_of::<f32>() {
            let mut narrow = buf::<B, half::bf16>(be, &self.table);
            be.embed_bwd(EmbedBwd { dtable: v!(be, mut narrow), dx: v!(be, dx), batch: &batch, dim }).unwrap();
            outputs.push(("dtable in bf16", fetch(be, &narrow), true));
        }
        outputs
    }
}
fn rows<A: GpuFloat>() {
    // Of three tokens each occurs more often than the kernel takes rows at a time.
    for (dim, vocab) in [(1, VOCAB), (13, VOCAB), (64, VOCAB), (2056, VOCAB), (13, 3), (72, 3)] {
        let mut noise = Noise(dim as u64);
        let micro = mixed(&mut noise, vocab);
        let case = Rows {
            dim,
            table: noise.vec::<A>(vocab * dim, 1.0),
            x: noise.vec::<A>(micro.slots() * dim, 1.0),
            out: noise.vec::<A>(micro.predictions().len() * dim, 1.0),
            micro,
        };
        compare::<A>(&format!("rows of {dim}, {vocab} tokens"), &case);
    }
}
both!(rows);

/// Dropout of all rows and of those that predict.
struct Drops {
    micro: MicroBatch,
    dim: usize,
    p: f64,
    x: Vec<f64>,
    dx: Vec<f64>,
}
impl Case for Drops {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let (m, dim) = (&self.micro, self.dim);
        let mut batch = be.new_batch(capacity(m), ANY_HEADS).unwrap();
        be.make_room(&mut batch, capacity(m)).unwrap();
        be.load_batch(&mut batch, m).unwrap();
        let mut outputs = Vec::new();
        for (predicting, names) in [(false, ["y", "dx"]), (true, ["y predicting", "dx predicting"])] {
            let (rows, live) = match predicting {
                true => (m.predictions().len(), m.predictions().len()),
                false => (be.rows(&batch), m.used()),
            };
            let x = buf::<B, B::Act>(be, &self.x[..rows * dim]);
            let mut y = unset::<B, B::Act>(be, rows * dim);
            let mut dx = buf::<B, B::Act>(be, &self.dx[..rows * dim]);
            let dropout = Dropout { batch: &batch, predicting, site: 17, p: self.p };
            be.dropout_fwd(DropoutFwd { y: v!(be, mut y), x: v!(be, x), dim, dropout }).unwrap();
            be.dropout_bwd(DropoutBwd { dx: v!(be, mut dx), dy: v!(be, x), dim, dropout }).unwrap();
            let (y, dx) = (fetch::<B, B::Act>(be, &y), fetch::<B, B::Act>(be, &dx));
            // What is dropped forward adds nothing backward, to the bit.
            let still = |i: &usize| dx[*i] == B::Act::from_f64(self.dx[*i]).to_f64();
            assert!((0..live * dim).filter(|i| y[*i] == 0.0).all(|i| still(&i)));
            outputs.push((names[0], y[..live * dim].to_vec(), true));
            outputs.push((names[1], dx[..live * dim].to_vec(), true));
        }
        outputs
    }
}
fn drops<A: GpuFloat>() {
    for (dim, p) in [(1, 0.5), (13, 0.05), (64, 0.0), (72, 0.9), (2056, 0.3)] {
        let mut noise = Noise(dim as u64 + 5);
        let mut micro = mixed(&mut noise, VOCAB);
        micro.draw_from(99 + dim as u64);
        let n = micro.slots().max(micro.predictions().len()) * dim;
        let case = Drops { dim, p, x: noise.vec::<A>(n, 1.0), dx: noise.vec::<A>(n, 1.0), micro };
        compare::<A>(&format!("dropout {p} of {dim}"), &case);
    }
}
both!(drops);

/// More rows than a grid has, and tokens whose rows begin behind those that a grid has.
#[test]
fn many_rows() {
    let (vocab, mut noise) = (90_000, Noise(66));
    let micro = micro_batch(MANY_ROWS, &[(1, &[MANY_ROWS as u32 - 1])], vocab as u32, || noise.uniform());
    let case = Rows {
        dim: 1,
        table: noise.vec::<f32>(vocab, 1.0),
        x: noise.vec::<f32>(MANY_ROWS, 1.0),
        out: noise.vec::<f32>(micro.predictions().len(), 1.0),
        micro,
    };
    compare_under::<f32>("many rows", &case, &[1]);
}

struct Rope {
    micro: MicroBatch,
    shape: AttnShape,
    table: Vec<f64>,
    qkv: Vec<f64>,
    bias: Vec<f64>,
}
impl Case for Rope {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let mut batch = be.new_batch(capacity(&self.micro), self.shape).unwrap();
        be.load_batch(&mut batch, &self.micro).unwrap();
        let width = self.shape.qkv_width();
        let (rows, live) = (be.rows(&batch) * width, self.micro.used() * width);
        let table = buf::<B, B::Acc>(be, &self.table);
        let shape = self.shape;
        let bias = buf::<B, B::Act>(be, &self.bias);
        let forward = |biased: bool| {
            let mut qkv = buf::<B, B::Act>(be, &self.qkv[..rows]);
            let bias = biased.then(|| v!(be, bias));
            be.rope_fwd(RopeFwd { qkv: v!(be, mut qkv), bias, table: v!(be, table), batch: &batch, shape }).unwrap();
            fetch::<B, B::Act>(be, &qkv)[..live].to_vec()
        };
        // Rows beyond the live ones have no gradient.
        let given: Vec<f64> = (0..rows).map(|i| if i < live { self.qkv[i] } else { 0.0 }).collect();
        let mut sums = buf::<B, B::Acc>(be, &self.bias);
        let backward = |sums: Option<&mut B::Buf<B::Acc>>| {
            let mut dqkv = buf::<B, B::Act>(be, &given);
            let dbias = sums.map(|sums| v!(be, mut *sums));
            be.rope_bwd(RopeBwd { dqkv: v!(be, mut dqkv), dbias, table: v!(be, table), batch: &batch, shape }).unwrap();
            fetch::<B, B::Act>(be, &dqkv)[..live].to_vec()
        };
        let (plain, summed) = (backward(None), backward(Some(&mut sums)));
        assert_eq!(plain, summed, "a bias changes nothing else");
        vec![
            ("forward", forward(false), true),
            ("forward with bias", forward(true), true),
            ("backward", plain, true),
            ("dbias", fetch(be, &sums), false),
        ]
    }
}
/// Cosines and sines of positions, as f32 has them.
fn rope_table(positions: usize, head_dim: usize) -> Vec<f64> {
    let half = head_dim / 2;
    let angle = |i: usize| (i / head_dim) as f64 * 0.7_f64.powi((i % half) as i32);
    let table = (0..positions * head_dim).map(|i| if i % head_dim < half { angle(i).cos() } else { angle(i).sin() });
    table.map(|x| f64::from(x as f32)).collect()
}

fn rope<A: GpuFloat>() {
    for (heads, kv_heads, head_dim) in [(1, 1, 2), (3, 1, 6), (4, 2, 64), (9, 3, 40), (5, 1, 128), (70, 2, 64)] {
        let shape = AttnShape { heads, kv_heads, head_dim };
        let mut noise = Noise(head_dim as u64);
        let micro = mixed(&mut noise, VOCAB);
        let table = rope_table(20, head_dim);
        let bias = noise.vec::<A>(shape.qkv_width(), 1.0);
        let case = Rope { shape, table, qkv: noise.vec::<A>(micro.slots() * shape.qkv_width(), 1.0), bias, micro };
        compare::<A>(&format!("rope {heads}/{kv_heads} x {head_dim}"), &case);
    }
}
both!(rope);

struct QkNorm {
    micro: MicroBatch,
    shape: AttnShape,
    table: Vec<f64>,
    qkv: Vec<f64>,
    w: Vec<f64>,
    dqkv: Vec<f64>,
}
impl Case for QkNorm {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let (s, batch) = (self.shape, &mut be.new_batch(capacity(&self.micro), self.shape).unwrap());
        be.load_batch(batch, &self.micro).unwrap();
        let batch = &*batch;
        let (rows, live) = (be.rows(batch), self.micro.used());
        let (width, kept, heads) = (s.qkv_width(), s.q_width() + s.kv_width(), s.heads + s.kv_heads);
        let (w, turns) = (buf::<B, B::Act>(be, &self.w), buf::<B, B::Acc>(be, &self.table));
        let mut qkv = buf::<B, B::Act>(be, &self.qkv[..rows * width]);
        let mut raw = unset::<B, B::Act>(be, rows * kept);
        let mut rstd = unset::<B, B::Acc>(be, rows * heads);
        be.qk_norm_fwd(QkNormFwd {
            qkv: v!(be, mut qkv),
            raw: v!(be, mut raw),
            rstd: v!(be, mut rstd),
            w: v!(be, w),
            table: v!(be, turns),
            batch,
            shape: s,
            eps: 1e-6,
        })
        .unwrap();
        // Rows beyond the live ones have no gradient.
        let given: Vec<f64> = (0..rows * width).map(|i| if i < live * width { self.dqkv[i] } else { 0.0 }).collect();
        let backward = |dw: Option<&mut B::Buf<B::Acc>>| {
            let mut dqkv = buf::<B, B::Act>(be, &given);
            be.qk_norm_bwd(QkNormBwd {
                dqkv: v!(be, mut dqkv),
                dw: dw.map(|dw| v!(be, mut *dw)),
                raw: v!(be, raw),
                rstd: v!(be, rstd),
                w: v!(be, w),
                table: v!(be, turns),
                batch,
                shape: s,
            })
            .unwrap();
            fetch::<B, B::Act>(be, &dqkv)[..live * width].to_vec()
        };
        let mut dw = buf::<B, B::Acc>(be, &vec![0.5; 2 * s.head_dim]);
        let (dqkv, frozen) = (backward(Some(&mut dw)), backward(None));
        assert_eq!(frozen, dqkv, "a frozen weight changes nothing else");
        vec![
            ("qkv", fetch::<B, B::Act>(be, &qkv)[..live * width].to_vec(), true),
            ("raw", fetch::<B, B::Act>(be, &raw)[..live * kept].to_vec(), true),
            ("rstd", fetch::<B, B::Acc>(be, &rstd)[..live * heads].to_vec(), false),
            ("dqkv", dqkv, true),
            ("dw", fetch(be, &dw), false),
        ]
    }
}
fn qk_norm<A: GpuFloat>() {
    // Odd widths and whole ones, groups of lanes that are not full; the last but one: more heads than a block has groups of
    // lanes, so that its groups take several in turn. Prompts of all rows but one: the last row is a response's.
    for (rows, heads, kv_heads, head_dim) in [
        (1, 1, 1, 2),
        (3, 1, 1, 6),
        (7, 6, 2, 64),
        (3, 3, 1, 96),
        (5, 2, 1, 40),
        (520, 2, 1, 16),
        (2, 4, 4, 128),
        (3, 18, 18, 128),
        (2, 2, 1, 256),
    ] {
        let shape = AttnShape { heads, kv_heads, head_dim };
        let mut noise = Noise(rows as u64 * 1000 + head_dim as u64);
        let groups = [(rows as u32 - 1, &[1][..])];
        let micro = micro_batch(rows, &groups, VOCAB as u32, || noise.uniform());
        compare::<A>(&format!("qk_norm {rows} x {heads}/{kv_heads} x {head_dim}"), &qk_case::<A>(micro, shape, noise));
    }
    let (mut noise, shape) = (Noise(77), AttnShape { heads: 4, kv_heads: 2, head_dim: 64 });
    let micro = mixed(&mut noise, VOCAB);
    compare::<A>("qk_norm of groups, and rows behind them", &qk_case::<A>(micro, shape, noise));
}
both!(qk_norm);

fn qk_case<A: GpuFloat>(micro: MicroBatch, shape: AttnShape, mut noise: Noise) -> QkNorm {
    let n = micro.slots() * shape.qkv_width();
    let positions = micro.positions().iter().max().map_or(1, |p| *p as usize + 1);
    QkNorm {
        table: rope_table(positions, shape.head_dim),
        qkv: noise.vec::<A>(n, 2.0),
        w: noise.vec::<A>(2 * shape.head_dim, 1.0),
        dqkv: noise.vec::<A>(n, 1.0),
        micro,
        shape,
    }
}
