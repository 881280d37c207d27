//! Every backward pass against central differences of its forward pass, in f64, on odd sizes.

use super::run;
use super::support::*;
use fusedpo::backend::*;
use fusedpo::loss::{LossSpec, LossType};

#[test]
fn linear() {
    let (cpu, mut noise) = (cpu64(), Noise(1));
    let (rows, out, inp) = (7, 13, 5);
    let (x, w, dy) = (noise.vec(rows * inp), noise.vec(out * inp), noise.vec(rows * out));
    let mut dx = nan(rows * inp);
    cpu.linear_bwd_input(LinearBwdInput { dx: &mut dx, dy: &dy, w: &w, out, inp, write: Write::Set }).unwrap();
    check_gradient("dx", &x, &dx, |x| inner(&run::linear(&cpu, x, &w, out, inp), &dy));
    let mut dw = vec![2.0; out * inp];
    cpu.linear_bwd_weight(LinearBwdWeight { dw: &mut dw, dy: &dy, x: &x, out, inp, write: Write::Add }).unwrap();
    let added: Vec<f64> = dw.iter().map(|d| d - 2.0).collect();
    check_gradient("dw", &w, &added, |w| inner(&run::linear(&cpu, &x, w, out, inp), &dy));
    let mut set = nan(out * inp);
    cpu.linear_bwd_weight(LinearBwdWeight { dw: &mut set, dy: &dy, x: &x, out, inp, write: Write::Set }).unwrap();
    assert_close("dw set", &set, &added, 1e-14);
    cpu.linear_bwd_weight(LinearBwdWeight { dw: &mut set, dy: &[], x: &[], out, inp, write: Write::Set }).unwrap();
    assert_eq!(set, vec![0.0; out * inp], "no rows");
    let before = dx.clone();
    cpu.linear_bwd_input(LinearBwdInput { dx: &mut dx, dy: &dy, w: &w, out, inp, write: Write::Add }).unwrap();
    assert_close("dx added", &dx, &before.iter().map(|d| 2.0 * d).collect::<Vec<_>>(), 1e-14);
}

#[test]
fn linear_writes() {
    let (cpu, mut noise) = (cpu64(), Noise(2));
    let (rows, out, inp) = (5, 37, 801);
    let (x, w, plus) = (noise.vec(rows * inp), noise.vec(out * inp), noise.vec(rows * out));
    let product = run::linear(&cpu, &x, &w, out, inp);
    let want: Vec<f64> = product.iter().zip(&plus).map(|(a, b)| a + b).collect();
    let mut y = nan(rows * out);
    cpu.linear_fwd(LinearFwd { y: &mut y, x: &x, w: &w, out, inp, write: Write::Plus(&plus) }).unwrap();
    assert_close("plus", &y, &want, 1e-13);
    y.clone_from(&plus);
    cpu.linear_fwd(LinearFwd { y: &mut y, x: &x, w: &w, out, inp, write: Write::Add }).unwrap();
    assert_close("add", &y, &want, 1e-13);
}

#[test]
fn bias() {
    let (cpu, mut noise) = (cpu64(), Noise(3));
    let (rows, dim) = (9, 131);
    let (x, b, dy) = (noise.vec(rows * dim), noise.vec(dim), noise.vec(rows * dim));
    let mut db = vec![1.5; dim];
    cpu.bias_bwd(BiasBwd { dbias: &mut db, dy: &dy }).unwrap();
    db.iter_mut().for_each(|d| *d -= 1.5);
    check_gradient("dbias", &b, &db, |b| {
        let mut y = x.clone();
        cpu.bias_fwd(BiasFwd { y: &mut y, bias: b }).unwrap();
        inner(&y, &dy)
    });
}

#[test]
fn rmsnorm() {
    let (cpu, mut noise) = (cpu64(), Noise(4));
    for (rows, dim) in [(1, 1), (4, 3), (5, 16), (6, 77), (3, 200)] {
        let (x, w, dy) = (noise.vec(rows * dim), noise.vec(dim), noise.vec(rows * dim));
        let (y, rstd) = run::rmsnorm(&cpu, &x, &w);
        let mut over = dy.clone();
        let (mut dx, mut dw) = (nan(rows * dim), vec![0.25; dim]);
        cpu.rmsnorm_bwd(RmsNormBwd {
            dx: &mut dx,
            dw: Some(&mut dw),
            dy: &mut over,
            x: &x,
            w: &w,
            rstd: &rstd,
            write: Write::Set,
            again: true,
        })
        .unwrap();
        assert_eq!(over, y);
        dw.iter_mut().for_each(|d| *d -= 0.25);
        if dim > 1 {
            check_gradient("dx", &x, &dx, |x| inner(&run::rmsnorm(&cpu, x, &w).0, &dy));
        }
        check_gradient("dw", &w, &dw, |w| inner(&run::rmsnorm(&cpu, &x, w).0, &dy));
        let mut added = vec![3.0; rows * dim];
        let mut over = dy.clone();
        cpu.rmsnorm_bwd(RmsNormBwd {
            dx: &mut added,
            dw: None,
            dy: &mut over,
            x: &x,
            w: &w,
            rstd: &rstd,
            write: Write::Add,
            again: false,
        })
        .unwrap();
        assert_eq!(over, dy);
        assert_close("dx added", &added, &dx.iter().map(|d| d + 3.0).collect::<Vec<_>>(), 1e-14);
    }
}

#[test]
fn qk_norm() {
    let (cpu, mut noise) = (cpu64(), Noise(5));
    for shape in SHAPES {
        let m = micro(FEW, 3, 11, &mut noise);
        let (batch, table, rows) = (&loaded(&cpu, &m), &run::rope_table(9, shape.head_dim), m.used());
        let (shape, width, heads) = (*shape, shape.q_width() + shape.kv_width(), shape.heads + shape.kv_heads);
        let qkv = noise.vec(rows * shape.qkv_width());
        let w = noise.vec(2 * shape.head_dim);
        let d = noise.vec(qkv.len());
        let forward = |qkv: &[f64], w: &[f64]| {
            let (mut y, mut raw, mut rstd) = (qkv.to_vec(), nan(rows * width), nan(rows * heads));
            let (qkv, kept, stats) = (&mut y, &mut raw, &mut rstd);
            cpu.qk_norm_fwd(QkNormFwd { qkv, raw: kept, rstd: stats, w, table, batch, shape, eps: 1e-6 }).unwrap();
            (y, raw, rstd)
        };
        let (_, raw, rstd) = forward(&qkv, &w);
        let backward = |dw: Option<&mut [f64]>| {
            let mut dqkv = d.clone();
            let (raw, rstd) = (&raw, &rstd);
            cpu.qk_norm_bwd(QkNormBwd { dqkv: &mut dqkv, dw, raw, rstd, w: &w, table, batch, shape }).unwrap();
            dqkv
        };
        let mut dw = vec![1.0; w.len()];
        let dqkv = backward(Some(&mut dw));
        dw.iter_mut().for_each(|d| *d -= 1.0);
        check_gradient("dqkv", &qkv, &dqkv, |x| inner(&forward(x, &w).0, &d));
        check_gradient("dw", &w, &dw, |w| inner(&forward(&qkv, w).0, &d));
        assert_eq!(backward(None), dqkv);
    }
}

#[test]
fn rope() {
    let (cpu, mut noise) = (cpu64(), Noise(6));
    for shape in SHAPES {
        let m = micro(FEW, 3, 11, &mut noise);
        let batch = loaded(&cpu, &m);
        let table = run::rope_table(9, shape.head_dim);
        let (width, shape) = (shape.qkv_width(), *shape);
        let (qkv, bias) = (noise.vec(m.used() * width), noise.vec(width));
        let d = noise.vec(qkv.len());
        let forward = |x: &[f64], bias: Option<&[f64]>| {
            let mut y = x.to_vec();
            cpu.rope_fwd(RopeFwd { qkv: &mut y, bias, table: &table, batch: &batch, shape }).unwrap();
            y
        };
        let mut dqkv = d.clone();
        cpu.rope_bwd(RopeBwd { dqkv: &mut dqkv, dbias: None, table: &table, batch: &batch, shape }).unwrap();
        check_gradient("dqkv", &qkv, &dqkv, |x| inner(&forward(x, None), &d));
        let (mut again, mut dbias) = (d.clone(), vec![0.25; width]);
        cpu.rope_bwd(RopeBwd { dqkv: &mut again, dbias: Some(&mut dbias), table: &table, batch: &batch, shape })
            .unwrap();
        assert_eq!(again, dqkv);
        dbias.iter_mut().for_each(|d| *d -= 0.25);
        check_gradient("dbias", &bias, &dbias, |bias| inner(&forward(&qkv, Some(bias)), &d));
        check_gradient("dqkv with bias", &qkv, &dqkv, |x| inner(&forward(x, Some(&bias)), &d));
    }
}

#[test]
fn swiglu() {
    let (cpu, mut noise) = (cpu64(), Noise(7));
    for (rows, ffn) in [(1, 1), (3, 5), (7, 33)] {
        let (gate_up, d) = (noise.vec(2 * rows * ffn), noise.vec(rows * ffn));
        let mut grad = gate_up.clone();
        let (mut left, mut over, mut other) = (d.clone(), d.clone(), gate_up.clone());
        cpu.swiglu_bwd(SwigluBwd { gate_up: &mut other, dact: &mut left, ffn, again: false }).unwrap();
        cpu.swiglu_bwd(SwigluBwd { gate_up: &mut grad, dact: &mut over, ffn, again: true }).unwrap();
        assert_eq!((&left, &other, &over), (&d, &grad, &run::swiglu(&cpu, &gate_up, ffn)));
        check_gradient("gate_up", &gate_up, &grad, |x| inner(&run::swiglu(&cpu, x, ffn), &d));
    }
}

#[test]
fn attention() {
    let (cpu, mut noise) = (cpu64(), Noise(8));
    for (shape, groups) in SHAPES.iter().flat_map(|s| [(*s, FEW), (*s, GROUPS)]) {
        let m = micro(groups, 5, 11, &mut noise);
        let batch = loaded(&cpu, &m);
        let (qkv, dout) = (noise.vec(m.used() * shape.qkv_width()), noise.vec(m.used() * shape.q_width()));
        let dqkv = run::attention_bwd(&cpu, &dout, &qkv, &batch, shape);
        check_gradient("dqkv", &qkv, &dqkv, |x| inner(&run::attention(&cpu, x, &batch, shape).0, &dout));
    }
}

#[test]
fn embedding_and_rows() {
    let (cpu, mut noise) = (cpu64(), Noise(9));
    let (vocab, dim) = (13, 7);
    let m = micro(GROUPS, 4, vocab, &mut noise);
    let batch = loaded(&cpu, &m);
    let (table, dx) = (noise.vec(vocab * dim), noise.vec(m.used() * dim));
    let mut dtable = vec![0.5; vocab * dim];
    cpu.embed_bwd(EmbedBwd { dtable: &mut dtable, dx: &dx, batch: &batch, dim }).unwrap();
    dtable.iter_mut().for_each(|d| *d -= 0.5);
    check_gradient("dtable", &table, &dtable, |table| {
        let mut x = nan(m.used() * dim);
        cpu.embed_fwd(EmbedFwd { x: &mut x, table, batch: &batch, dim }).unwrap();
        inner(&x, &dx)
    });
    let (x, dout) = (noise.vec(m.used() * dim), noise.vec(m.predictions().len() * dim));
    let mut scattered = nan(m.used() * dim);
    cpu.scatter_rows(ScatterRows { dx: &mut scattered, dout: &dout, batch: &batch, dim }).unwrap();
    check_gradient("scatter", &x, &scattered, |x| {
        let mut out = nan(dout.len());
        cpu.gather_rows(GatherRows { out: &mut out, x, batch: &batch, dim }).unwrap();
        inner(&out, &dout)
    });
}

/// From the hidden rows and the head's weight to the loss: statistics, loss and both gradients, for every loss.
#[test]
fn head_and_loss() {
    let (cpu, mut noise) = (cpu64(), Noise(10));
    let (vocab, dim, scale) = (67, 5, 0.37);
    let m = micro(FEW, 2, vocab, &mut noise);
    let (batch, chunk, n) = (loaded(&cpu, &m), whole(&m), m.predictions().len());
    let (x, w) = (noise.vec(n * dim), noise.vec(vocab * dim));
    for loss_type in [LossType::Sigmoid, LossType::Hinge, LossType::Ipo, LossType::Sft] {
        let label_smoothing = if loss_type == LossType::Sigmoid { 0.1 } else { 0.0 };
        let spec = LossSpec::of(loss_type).beta(0.3).label_smoothing(label_smoothing);
        let total = |x: &[f64], w: &[f64]| {
            let h = run::head(&cpu, x, w, vocab, &batch, &chunk, HeadMode::Score);
            let l = run::loss(&cpu, &h, &batch, &chunk, &spec, scale);
            if loss_type == LossType::Sft {
                return scale * l.responses.chunks(RESPONSE_STATS).map(|r| r[3]).sum::<f64>();
            }
            scale * l.pairs.chunks(PAIR_STATS).zip(m.pairs()).map(|(l, p)| f64::from(p.weight) * l[0]).sum::<f64>()
        };
        let h = run::head(&cpu, &x, &w, vocab, &batch, &chunk, HeadMode::Train);
        let l = run::loss(&cpu, &h, &batch, &chunk, &spec, scale);
        let (mut dx, mut dw, mut scaled) = (nan(n * dim), vec![1.0; vocab * dim], nan(n * dim));
        cpu.head_bwd(HeadBwd {
            dx: &mut dx,
            dw: Some((&mut dw, Write::Add)),
            scaled: &mut scaled,
            logits: &h.logits,
            x: &x,
            w: &w,
            coef: &l.coef,
        })
        .unwrap();
        dw.iter_mut().for_each(|d| *d -= 1.0);
        check_gradient("dx", &x, &dx, |x| total(x, &w));
        check_gradient("dw", &w, &dw, |w| total(&x, w));
        let mut frozen = nan(n * dim);
        cpu.head_bwd(HeadBwd::<_, f64> {
            dx: &mut frozen,
            dw: None,
            scaled: &mut [],
            logits: &h.logits,
            x: &x,
            w: &w,
            coef: &l.coef,
        })
        .unwrap();
        assert_eq!(frozen, dx);
    }
}

/// The decode op has no backward pass: it must equal the last row of ordinary attention.
#[test]
fn decode_is_the_last_row() {
    let (cpu, mut noise) = (cpu64(), Noise(11));
    for shape in SHAPES {
        let AttnShape { .. } = *shape;
        let lens = [7usize, 1, 101];
        let stride = 103;
        let groups: Vec<Lens> = vec![(0, &[7]), (0, &[1]), (0, &[101])];
        let m = micro(&groups, 0, 11, &mut noise);
        let batch = loaded(&cpu, &m);
        let qkv = noise.vec(m.used() * shape.qkv_width());
        let (want, _) = run::attention(&cpu, &qkv, &batch, *shape);
        let (mut k, mut v) = (nan(3 * stride * shape.kv_width()), nan(3 * stride * shape.kv_width()));
        let dst: Vec<u32> =
            lens.iter().enumerate().flat_map(|(s, l)| (0..*l).map(move |i| (s * stride + i) as u32)).collect();
        cpu.kv_store(KvStore { k: &mut k, v: &mut v, qkv: &qkv, dst: &dst, shape: *shape }).unwrap();
        let last: Vec<usize> = vec![6, 7, 108];
        let queries: Vec<f64> =
            last.iter().flat_map(|t| qkv[t * shape.qkv_width()..][..shape.qkv_width()].to_vec()).collect();
        let mut out = nan(3 * shape.q_width());
        cpu.attention_decode(AttentionDecode {
            out: &mut out,
            qkv: &queries,
            k: &k,
            v: &v,
            lens: &lens.map(|l| l as u32),
            stride,
            shape: *shape,
        })
        .unwrap();
        let want: Vec<f64> =
            last.iter().flat_map(|t| want[t * shape.q_width()..][..shape.q_width()].to_vec()).collect();
        assert_close("decode", &out, &want, 1e-12);
    }
}
