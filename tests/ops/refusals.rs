//! Wrong lengths are refused by name before anything is written; nothing is allocated while ops run.

use super::support::*;
use fusedpo::Error;
use fusedpo::backend::cpu::GemmPrecision;
use fusedpo::backend::*;
use fusedpo::loss::{LossSpec, LossType};

/// The op and the argument that an error names.
fn shape_error(r: fusedpo::Result<()>) -> (&'static str, &'static str) {
    match r {
        Err(Error::Shape { op, name, .. }) => (op, name),
        other => panic!("expected a shape error, got {other:?}"),
    }
}

/// Calls `$call` once per listed argument with that argument one element longer.
macro_rules! one_too_long {
    ($op:literal, $cpu:ident.$f:ident, [$($len:expr => $name:literal),* $(,)?], |$v:ident| $arg:expr) => {{
        let lens = [$(($len, $name)),*];
        for wrong in 0..=lens.len() {
            let mut $v: Vec<Vec<f64>> = lens.iter().enumerate().map(|(i, l)| vec![0.5; l.0 + usize::from(i == wrong)]).collect();
            let mut $v: Vec<&mut [f64]> = $v.iter_mut().map(|v| v.as_mut_slice()).collect();
            $v.reverse();
            let mut $v = || $v.pop().unwrap();
            let r = $cpu.$f($arg);
            if wrong == lens.len() {
                r.unwrap();
            } else {
                let (op, name) = shape_error(r);
                assert_eq!(op, $op);
                assert!(name == lens[wrong].1 || lens[wrong].1 == "*", "{}: {} was wrong, {name} is blamed", $op, lens[wrong].1);
            }
        }
    }};
}

#[test]
fn wrong_lengths_are_refused() {
    let (cpu, mut noise) = (cpu64(), Noise(80));
    let m = micro(FEW, 2, 11, &mut noise);
    let (batch, chunk) = (loaded(&cpu, &m), whole(&m));
    let (rows, n, dim) = (m.used(), m.predictions().len(), 7);
    let s = AttnShape { heads: 4, kv_heads: 2, head_dim: 6 };
    let spec = LossSpec::of(LossType::Sigmoid).beta(0.1);
    one_too_long!("embed_fwd", cpu.embed_fwd, [rows * dim => "x", 11 * dim => "table"],
        |v| EmbedFwd { x: v(), table: v(), batch: &batch, dim });
    one_too_long!("embed_bwd", cpu.embed_bwd, [11 * dim => "dtable", rows * dim => "dx"],
        |v| EmbedBwd { dtable: v(), dx: v(), batch: &batch, dim });
    one_too_long!("rmsnorm_fwd", cpu.rmsnorm_fwd, [14 => "y", 2 => "rstd", 14 => "x", 7 => "*"],
        |v| RmsNormFwd { y: v(), rstd: v(), x: v(), w: v(), eps: 1e-5 });
    one_too_long!("rmsnorm_bwd", cpu.rmsnorm_bwd, [14 => "dx", 7 => "dw", 14 => "dy", 14 => "x", 7 => "*", 2 => "rstd"],
        |v| RmsNormBwd { dx: v(), dw: Some(v()), dy: v(), x: v(), w: v(), rstd: v(), write: Write::Set, again: false });
    one_too_long!("linear_fwd", cpu.linear_fwd, [6 => "*", 10 => "x", 15 => "w", 6 => "plus"],
        |v| LinearFwd { y: v(), x: v(), w: v(), out: 3, inp: 5, write: Write::Plus(v()) });
    one_too_long!("linear_bwd_input", cpu.linear_bwd_input, [10 => "dx", 6 => "*", 15 => "w"],
        |v| LinearBwdInput { dx: v(), dy: v(), w: v(), out: 3, inp: 5, write: Write::Set });
    one_too_long!("linear_bwd_weight", cpu.linear_bwd_weight, [15 => "dw", 6 => "*", 10 => "x"],
        |v| LinearBwdWeight { dw: v(), dy: v(), x: v(), out: 3, inp: 5, write: Write::Add });
    one_too_long!("linear_bwd_part", cpu.linear_bwd_part, [10 => "dw", 6 => "*", 10 => "x"],
        |v| LinearBwdPart { dw: v(), dy: v(), x: v(), columns: 1..3, out: 3, inp: 5 });
    // Two of three layers in a product of 3 outputs, of rank 4.
    let parts = AdapterParts { columns: &[0..1, 2..3], rank: 4, out: 3, inp: 5, scale: 0.5 };
    one_too_long!("adapter_fwd", cpu.adapter_fwd, [6 => "*", 16 => "low", 10 => "x", 40 => "a", 8 => "b"],
        |v| AdapterFwd { y: v(), low: v(), x: v(), a: v(), b: v(), parts });
    one_too_long!("adapter_bwd_low", cpu.adapter_bwd_low, [16 => "dlow", 6 => "*", 8 => "b"],
        |v| AdapterBwdLow { dlow: v(), dy: v(), b: v(), parts });
    one_too_long!("adapter_bwd_weight", cpu.adapter_bwd_weight, [8 => "db", 16 => "low", 6 => "*", 10 => "x", 40 => "a"],
        |v| AdapterBwdWeight { db: v(), low: v(), dy: v(), x: v(), a: v(), parts });
    let capacity = m.capacity();
    let mut drawing = m.clone();
    drawing.draw_from(1);
    let mut drawn = cpu.new_batch(capacity, s).unwrap();
    let quiet = |batch: &_| {
        let dropout = Dropout { batch, predicting: false, site: 3, p: 0.5 };
        let (mut y, x) = (vec![0.0; 5 * m.used()], vec![0.0; 5 * m.used()]);
        let e = cpu.dropout_fwd(DropoutFwd { y: &mut y, x: &x, dim: 5, dropout }).unwrap_err().to_string();
        assert!(e.contains("loaded without draws"), "{e}");
    };
    cpu.load_batch(&mut drawn, &drawing).unwrap();
    quiet(&drawn);
    cpu.make_room(&mut drawn, capacity).unwrap();
    cpu.load_batch(&mut drawn, &m).unwrap();
    quiet(&drawn);
    cpu.load_batch(&mut drawn, &drawing).unwrap();
    let dropout = Dropout { batch: &drawn, predicting: false, site: 3, p: 0.5 };
    let many = 5 * rows;
    one_too_long!("dropout_fwd", cpu.dropout_fwd, [many => "y", many => "x"],
        |v| DropoutFwd { y: v(), x: v(), dim: 5, dropout });
    one_too_long!("dropout_bwd", cpu.dropout_bwd, [many => "dx", many => "dy"],
        |v| DropoutBwd { dx: v(), dy: v(), dim: 5, dropout });
    let dropout = Dropout { p: 1.0, ..dropout };
    let whole = cpu.dropout_fwd(DropoutFwd { y: &mut vec![0.0; many], x: &vec![0.0; many], dim: 5, dropout });
    assert!(whole.unwrap_err().to_string().contains("not a share"));
    one_too_long!("bias_fwd", cpu.bias_fwd, [10 => "y", 5 => "*"], |v| BiasFwd { y: v(), bias: v() });
    one_too_long!("bias_bwd", cpu.bias_bwd, [5 => "*", 10 => "dy"], |v| BiasBwd { dbias: v(), dy: v() });
    let (qkv, qk, heads) = (rows * s.qkv_width(), rows * (s.q_width() + s.kv_width()), rows * 6);
    let turns = [0.5; 9 * 6];
    one_too_long!("qk_norm_fwd", cpu.qk_norm_fwd, [qkv => "qkv", qk => "raw", heads => "rstd", 12 => "w"],
        |v| QkNormFwd { qkv: v(), raw: v(), rstd: v(), w: v(), table: &turns, batch: &batch, shape: s, eps: 1e-6 });
    one_too_long!("qk_norm_bwd", cpu.qk_norm_bwd,
        [qkv => "qkv", 12 => "dw", qk => "raw", heads => "rstd", 12 => "w"],
        |v| QkNormBwd { dqkv: v(), dw: Some(v()), raw: v(), rstd: v(), w: v(), table: &turns, batch: &batch, shape: s });
    let out = rows * s.q_width();
    one_too_long!("attention_fwd", cpu.attention_fwd, [out => "out", rows * 4 => "lse", qkv => "qkv"],
        |v| AttentionFwd { out: v(), lse: v(), qkv: v(), batch: &batch, shape: s });
    one_too_long!("attention_bwd", cpu.attention_bwd,
        [qkv => "dqkv", rows * 4 => "delta", out => "dout", out => "out", rows * 4 => "lse", qkv => "qkv"],
        |v| AttentionBwd { dqkv: v(), delta: v(), partial: &mut [], dout: v(), out: v(), lse: v(), qkv: v(), batch: &batch, shape: s });
    one_too_long!("swiglu_fwd", cpu.swiglu_fwd, [10 => "*", 20 => "gate_up"], |v| SwigluFwd { act: v(), gate_up: v(), ffn: 5 });
    one_too_long!("swiglu_bwd", cpu.swiglu_bwd, [20 => "gate_up", 10 => "*"], 
        |v| SwigluBwd { gate_up: v(), dact: v(), ffn: 5, again: true });
    one_too_long!("gather_rows", cpu.gather_rows, [n * dim => "out", rows * dim => "x"],
        |v| GatherRows { out: v(), x: v(), batch: &batch, dim });
    one_too_long!("scatter_rows", cpu.scatter_rows, [rows * dim => "dx", n * dim => "dout"],
        |v| ScatterRows { dx: v(), dout: v(), batch: &batch, dim });
    one_too_long!("head_bwd", cpu.head_bwd, [n * dim => "*", 11 * dim => "dw"],
        |v| HeadBwd { dx: v(), dw: Some((v(), Write::Add)), scaled: &mut vec![0.0; n * dim], logits: &vec![0.0; n * 11], x: &vec![0.5; n * dim], w: &vec![0.5; 11 * dim], coef: &vec![1.0; n] });
    let head = |stats: [usize; 4], logits: usize, x: usize, w: usize| {
        let [mut a, mut b, mut c, mut d] = stats.map(|n| vec![0.0; n]);
        cpu.head_fwd(HeadFwd {
            logp: &mut a,
            entropy: &mut b,
            log_sum_p2: &mut c,
            hit: &mut d,
            logits: &mut vec![0.0; logits],
            x: &vec![0.0; x],
            w: &vec![0.0; w],
            batch: &batch,
            chunk: &chunk,
            mode: HeadMode::Score,
        })
    };
    head([n; 4], n * 11, n * dim, 11 * dim).unwrap();
    head([n; 4], n * 11 + 3, n * dim, 11 * dim).unwrap(); // a larger logits buffer is allowed
    assert_eq!(shape_error(head([n + 1, n, n, n], n * 11, n * dim, 11 * dim)).1, "logp");
    assert_eq!(shape_error(head([n, n, n, n + 1], n * 11, n * dim, 11 * dim)).1, "hit");
    assert_eq!(shape_error(head([n; 4], n * 11 - 1, n * dim, 11 * dim)).1, "logits");
    assert_eq!(shape_error(head([n; 4], n * 11, n * dim + 1, 11 * dim)).1, "x");
    assert_eq!(shape_error(head([n; 4], n * 11, n * dim, 11 * dim + 1)).1, "w");
    let (r, p) = (m.responses().len(), m.pairs().len());
    let loss = |coef: usize, responses: usize, pairs: usize, stat: usize| {
        let (mut a, mut b, mut c) = (vec![0.0; coef], vec![0.0; responses], vec![0.0; pairs]);
        cpu.loss(Loss {
            coef: &mut a,
            responses: &mut b,
            pairs: &mut c,
            logp: &vec![0.0; stat],
            entropy: &vec![0.0; n],
            hit: &vec![0.0; n],
            log_sum_p2: &vec![0.0; n],
            batch: &batch,
            chunk: &chunk,
            spec: &spec,
            scales: 1.0.into(),
            given: false,
        })
    };
    let (r, p) = (r * RESPONSE_STATS, p * PAIR_STATS);
    loss(n, r, p, n).unwrap();
    assert_eq!(shape_error(loss(n + 1, r, p, n)).1, "coef");
    assert_eq!(shape_error(loss(n, r + 1, p, n)).1, "responses");
    assert_eq!(shape_error(loss(n, r, p + 1, n)).1, "pairs");
    assert_eq!(shape_error(loss(n, r, p, n + 1)).1, "logp");
}

#[test]
fn indices_beyond_a_table_are_refused() {
    let (cpu, mut noise) = (cpu64(), Noise(81));
    let m = micro(FEW, 2, 11, &mut noise);
    let batch = loaded(&cpu, &m);
    let largest = *m.tokens()[..m.used()].iter().max().unwrap() as usize;
    let r = cpu.embed_fwd(EmbedFwd {
        x: &mut vec![0.0; m.used() * 3],
        table: &vec![0.0; largest * 3],
        batch: &batch,
        dim: 3,
    });
    assert_eq!(shape_error(r), ("embed_fwd", "table"));
    let s = AttnShape { heads: 2, kv_heads: 1, head_dim: 4 };
    let mut qkv = vec![0.0; m.used() * s.qkv_width()];
    let r = cpu.rope_fwd(RopeFwd { qkv: &mut qkv, bias: None, table: &[0.0; 5 * 4], batch: &batch, shape: s });
    assert_eq!(shape_error(r), ("rope_fwd", "table"));
    let (raw, rstd, w, short) = (&mut vec![0.0; m.used() * 12], &mut vec![0.0; m.used() * 3], &[0.0; 8], &[0.0; 5 * 4]);
    let r =
        cpu.qk_norm_fwd(QkNormFwd { qkv: &mut qkv, raw, rstd, w, table: short, batch: &batch, shape: s, eps: 1e-6 });
    assert_eq!(shape_error(r), ("qk_norm_fwd", "table"));
    let dqkv = &mut qkv[..];
    let r = cpu.qk_norm_bwd(QkNormBwd { dqkv, dw: None, raw, rstd, w, table: short, batch: &batch, shape: s });
    assert_eq!(shape_error(r), ("qk_norm_bwd", "table"));
    let (dqkv, dbias) = (&mut qkv[..], Some(&mut [0.0; 15][..]));
    let r = cpu.rope_bwd(RopeBwd { dqkv, dbias, table: &[0.0; 99 * 4], batch: &batch, shape: s });
    assert_eq!(shape_error(r), ("rope_bwd", "bias"));
    let (mut k, mut v) = (vec![0.0; 12], vec![0.0; 12]);
    assert_eq!(
        shape_error(cpu.kv_store(KvStore { k: &mut k, v: &mut v, qkv: &[0.0; 16], dst: &[3], shape: s })).0,
        "kv_store"
    );
    for lens in [[0, 1], [1, 3]] {
        let r = cpu.attention_decode(AttentionDecode {
            out: &mut [0.0; 16],
            qkv: &[0.0; 32],
            k: &[0.0; 16],
            v: &[0.0; 16],
            lens: &lens,
            stride: 2,
            shape: s,
        });
        assert_eq!(shape_error(r), ("attention_decode", "lens"));
    }
    let uneven = AttnShape { heads: 3, kv_heads: 2, head_dim: 4 };
    let r = cpu.attention_fwd(AttentionFwd { out: &mut [], lse: &mut [], qkv: &[], batch: &batch, shape: uneven });
    assert_eq!(shape_error(r), ("attention_fwd", "heads"));
}

/// All that a device can refuse of a micro-batch: the rest is sound by construction (tests/data/batch.rs).
#[test]
fn batches_beyond_the_capacity_are_refused() {
    let (cpu, mut noise) = (cpu64(), Noise(82));
    let good = micro(FEW, 2, 11, &mut noise);
    let c = good.capacity();
    let mut less = [c; 4];
    less[0].slots -= 1;
    less[1].predictions -= 1;
    less[2].responses -= 1;
    less[3].pairs -= 1;
    let small = micro(&FEW[2..], 0, 11, &mut noise);
    for (less, name) in less.into_iter().zip(["slots", "predictions", "responses", "pairs"]) {
        let mut batch = cpu.new_batch(less, ANY_HEADS).unwrap();
        cpu.load_batch(&mut batch, &small).unwrap();
        assert_eq!(cpu.rows(&batch), small.used());
        assert_eq!(shape_error(cpu.load_batch(&mut batch, &good)), ("load_batch", name));
        assert_eq!(cpu.rows(&batch), 0, "a refused batch is empty");
    }
    let mut batch = cpu.new_batch(c, ANY_HEADS).unwrap();
    cpu.load_batch(&mut batch, &good).unwrap();
    assert_eq!(cpu.rows(&batch), good.used());
}

#[test]
fn memory_is_named_and_counted() {
    let cpu = cpu32();
    let a = cpu.zeros::<f32>("weights", 10).unwrap();
    let b = cpu.zeros::<f64>("norm", 3).unwrap();
    assert_eq!((cpu.len(&a), cpu.len(&b)), (10, 3));
    assert_eq!(cpu.memory_table(), [("weights".into(), 40), ("norm".into(), 24)]);
    let why = cpu.zeros::<f64>("far too much", usize::MAX / 16).unwrap_err().to_string();
    assert!(why.contains("far too much") && why.contains("out of memory"), "{why}");
}

#[test]
fn copies_check_their_lengths() {
    let (cpu, mut three) = (cpu32(), [0f32; 3]);
    assert_eq!(shape_error(cpu.upload(&mut three, &[1.0; 4])).0, "upload");
    assert_eq!(shape_error(cpu.download(&mut three, &[1.0; 2])).0, "download");
    assert_eq!(shape_error(cpu.copy(&mut three, &[1.0; 2])).0, "copy");
    cpu.copy(&mut three, &[1.0, 2.0, 3.0]).unwrap();
    assert_eq!(three, [1.0, 2.0, 3.0]);
    cpu.clear(&mut three).unwrap();
    assert_eq!(three, [0.0; 3]);
}

#[test]
fn it_says_what_it_is() {
    let (c32, c64) = (cpu32(), cpu64());
    assert!(c32.fingerprint().starts_with("cpu-f32-") && c64.fingerprint().starts_with("cpu-f64-"));
    assert!(c32.description().starts_with("CPU, "));
    assert!(
        fusedpo::backend::cpu::Cpu::<f64>::with(GemmPrecision::Bf16).is_err(),
        "bf16 products of f64 make no sense"
    );
}
