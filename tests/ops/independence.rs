//! The same bits whatever the number of rows, their place, what is packed beside them, and the number of threads.

use super::run;
use super::support::*;
use fusedpo::backend::cpu::{Cpu, GemmPrecision, Level, Real};
use fusedpo::backend::*;
use fusedpo::batch::MicroBatch;

fn bits<S: Real>(x: &[S]) -> &[u8] {
    bytemuck::cast_slice(x)
}

/// Rows `from..from + n` of a longer matrix, alone, give the rows that the whole gave.
fn rows_alone<S: Real>(cpu: &Cpu<S>, out: usize, inp: usize, noise: &mut Noise) {
    let rows = 61;
    let (x, w) = (of::<S>(&noise.vec(rows * inp)), of::<S>(&noise.vec(out * inp)));
    let whole = run::linear(cpu, &x, &w, out, inp);
    let plus = of::<S>(&noise.vec(rows * out));
    let mut whole_plus = nan(rows * out);
    cpu.linear_fwd(LinearFwd { y: &mut whole_plus, x: &x, w: &w, out, inp, write: Write::Plus(&plus) }).unwrap();
    let few = |x: &[S], n: usize| {
        let (mut y, mut logits) = (nan(n * out), nan(n * out));
        cpu.linear_few(LinearFwd { y: &mut y, x, w: &w, out, inp, write: Write::Set }).unwrap();
        cpu.logits_few(Logits { logits: &mut logits, x, w: &w, dim: inp }).unwrap();
        assert_eq!(bits(&y), bits(&logits));
        y
    };
    let whole_few = few(&x, rows);
    for n in [1, 2, 3, 4, 5, 7, 12, 13, 24, 31, 60] {
        for from in [0, 1, 11, 12, 37] {
            if from + n > rows {
                continue;
            }
            let x = &x[from * inp..(from + n) * inp];
            let at = from * out..(from + n) * out;
            let part = run::linear(cpu, x, &w, out, inp);
            assert_eq!(bits(&part), bits(&whole[at.clone()]), "{n} rows from {from}, {out} x {inp}");
            assert_eq!(bits(&few(x, n)), bits(&whole_few[at.clone()]), "few, {n} rows from {from}, {out} x {inp}");
            let mut part = nan(n * out);
            cpu.linear_fwd(LinearFwd { y: &mut part, x, w: &w, out, inp, write: Write::Plus(&plus[at.clone()]) })
                .unwrap();
            assert_eq!(bits(&part), bits(&whole_plus[at]), "plus, {n} rows from {from}");
            let mut logits = nan(n * out);
            cpu.logits(Logits { logits: &mut logits, x, w: &w, dim: inp }).unwrap();
            assert_eq!(bits(&logits), bits(&part_of(&whole, from, n, out)));
        }
    }
}

fn part_of<S: Real>(x: &[S], from: usize, n: usize, width: usize) -> Vec<S> {
    x[from * width..(from + n) * width].to_vec()
}

#[test]
fn rows_of_a_product() {
    let mut noise = Noise(40);
    for level in Level::available() {
        for (out, inp) in [(1, 1), (33, 7), (97, 385), (32, 577), (5, 1536), (3, 2049), (1025, 64), (960, 576)] {
            rows_alone::<f32>(&Cpu::at(level, GemmPrecision::Native).unwrap(), out, inp, &mut noise);
        }
        rows_alone::<f64>(&Cpu::at(level, GemmPrecision::Native).unwrap(), 97, 577, &mut noise);
    }
    for cpu in cpus_bf16() {
        for (out, inp) in [(1, 1), (33, 7), (97, 769), (32, 577), (3, 2049), (960, 576)] {
            rows_alone::<f32>(&cpu, out, inp, &mut noise);
        }
    }
}

/// SmolLM2's shapes over hundreds of rows; also gradients with respect to the input.
#[test]
fn rows_of_large_products() {
    let (cpu, mut noise) = (cpu32(), Noise(41));
    for (out, inp) in [(960, 576), (3072, 576), (576, 1536), (8192, 576)] {
        let rows = 617;
        let (x, w) = (of::<f32>(&noise.vec(rows * inp)), of::<f32>(&noise.vec(out * inp)));
        let whole = run::linear(&cpu, &x, &w, out, inp);
        for (from, n) in [(0, 1), (616, 1), (3, 2), (100, 3), (17, 64), (5, 300), (1, 599)] {
            let part = run::linear(&cpu, &x[from * inp..(from + n) * inp], &w, out, inp);
            assert_eq!(bits(&part), bits(&whole[from * out..(from + n) * out]), "{n} rows from {from}, {out} x {inp}");
        }
    }
}

/// A group alone, or in the middle of other groups, gives its rows and its gradients the same bits.
#[test]
fn a_group_does_not_see_its_neighbours() {
    for cpu in [cpu32()].into_iter().chain(cpus_bf16()) {
        a_group_does_not_see_its_neighbours_on(&cpu);
    }
}

fn a_group_does_not_see_its_neighbours_on(cpu: &Cpu<f32>) {
    fn rows<S: Real>(x: &[S], width: usize, at: usize, n: usize) -> Vec<S> {
        x[at * width..(at + n) * width].to_vec()
    }
    let (mut noise, dim, vocab) = (Noise(42), 17, 301);
    for shape in SHAPES {
        let packed = micro(GROUPS, 9, vocab, &mut noise);
        let (alone, g) = (only(&packed, 3), &packed.groups()[3]);
        let (at, n) = (g.prompt.start as usize, (g.end - g.prompt.start) as usize);
        assert_eq!(n, alone.used());
        let table: Vec<f32> = run::rope_table(200, shape.head_dim);
        let mut qkv = of::<f32>(&noise.vec(packed.used() * shape.qkv_width()));
        let mut own = rows(&qkv, shape.qkv_width(), at, n);
        let (all, one) = (loaded(cpu, &packed), loaded(cpu, &alone));
        let bias = of::<f32>(&noise.vec(shape.qkv_width()));
        let rope = |qkv: &mut [f32], batch: &_| {
            cpu.rope_fwd(RopeFwd { qkv, bias: Some(&bias), table: &table, batch, shape: *shape }).unwrap();
        };
        rope(&mut qkv, &all);
        rope(&mut own, &one);
        assert_eq!(rows(&qkv, shape.qkv_width(), at, n), own);
        let (out, lse) = run::attention(cpu, &qkv, &all, *shape);
        let (out1, lse1) = run::attention(cpu, &own, &one, *shape);
        assert_eq!(rows(&out, shape.q_width(), at, n), out1);
        assert_eq!(rows(&lse, shape.heads, at, n), lse1);
        let dout = of::<f32>(&noise.vec(out.len()));
        let d = run::attention_bwd(cpu, &dout, &qkv, &all, *shape);
        let d1 = run::attention_bwd(cpu, &rows(&dout, shape.q_width(), at, n), &own, &one, *shape);
        assert_eq!(rows(&d, shape.qkv_width(), at, n), d1);
        let p = g.predictions.start as usize..g.predictions.end as usize;
        let (x, w) = (of::<f32>(&noise.vec(packed.predictions().len() * dim)), of::<f32>(&noise.vec(vocab * dim)));
        let many = run::head(cpu, &x, &w, vocab, &all, &whole(&packed), HeadMode::Train);
        let few = run::head(cpu, &x[p.start * dim..p.end * dim], &w, vocab, &one, &whole(&alone), HeadMode::Train);
        assert_eq!(many.logp[p.clone()], few.logp);
        assert_eq!(many.entropy[p.clone()], few.entropy);
        assert_eq!(many.logits[p.start * vocab..p.end * vocab], few.logits);
    }
}

/// Forward, in bf16: a prompt shared by its responses gives each the bits that a prompt of its own would.
#[test]
fn a_shared_prompt_in_bf16() {
    let mut noise = Noise(44);
    for cpu in cpus_bf16() {
        for shape in SHAPES {
            let (prompt, responses) = (101, [40usize, 3, 97]);
            let shared = micro(&[(prompt, &responses)], 0, 11, &mut noise);
            let qkv = of::<f32>(&noise.vec(shared.used() * shape.qkv_width()));
            let (out, lse) = run::attention(&cpu, &qkv, &loaded(&cpu, &shared), *shape);
            let mut start = prompt;
            for len in responses {
                let alone = micro(&[(prompt, &[len])], 0, 11, &mut noise);
                let take = |x: &[f32], w: usize| [&x[..prompt * w], &x[start * w..(start + len) * w]].concat();
                let own = run::attention(&cpu, &take(&qkv, shape.qkv_width()), &loaded(&cpu, &alone), *shape);
                assert_eq!(own, (take(&out, shape.q_width()), take(&lse, shape.heads)));
                start += len;
            }
        }
    }
}

/// A prompt shared by its responses gives each response what it would have with a prompt of its own: forward to the bit
/// (the same tiles are visited), and the prompt's gradients are the sum of theirs.
#[test]
fn a_shared_prompt_equals_prompts_of_their_own() {
    let (cpu, mut noise) = (cpu64(), Noise(43));
    for shape in SHAPES {
        let AttnShape { heads, .. } = *shape;
        let (prompt, responses) = (101, [40usize, 3, 97]);
        let shared = micro(&[(prompt, &responses)], 0, 11, &mut noise);
        let w = shape.qkv_width();
        let qkv = noise.vec(shared.used() * w);
        let dout = noise.vec(shared.used() * shape.q_width());
        let (out, lse) = run::attention(&cpu, &qkv, &loaded(&cpu, &shared), *shape);
        let d = run::attention_bwd(&cpu, &dout, &qkv, &loaded(&cpu, &shared), *shape);
        let mut d_prompt = vec![0.0; prompt * w];
        let mut start = prompt;
        for (i, len) in responses.into_iter().enumerate() {
            let alone = micro(&[(prompt, &[len])], 0, 11, &mut noise);
            let take = |x: &[f64], w: usize| [&x[..prompt * w], &x[start * w..(start + len) * w]].concat();
            let own = take(&qkv, w);
            let (o, l) = run::attention(&cpu, &own, &loaded(&cpu, &alone), *shape);
            assert_eq!((o, l), (take(&out, shape.q_width()), take(&lse, heads)));
            let mut own_dout = take(&dout, shape.q_width());
            if i > 0 {
                own_dout[..prompt * shape.q_width()].fill(0.0); // the prompt's own loss counts once
            }
            let own_d = run::attention_bwd(&cpu, &own_dout, &own, &loaded(&cpu, &alone), *shape);
            assert_close("response", &own_d[prompt * w..], &d[start * w..(start + len) * w], 1e-12);
            d_prompt.iter_mut().zip(&own_d).for_each(|(a, b)| *a += b);
            start += len;
        }
        assert_close("prompt", &d_prompt, &d[..prompt * w], 1e-11);
    }
}

/// Everything that sums, run on one thread and on two (and twice), in bits.
fn everything(m: &MicroBatch) -> Vec<Vec<u8>> {
    let (cpu, mut noise, shape) = (cpu32(), Noise(44), SHAPES[3]);
    let batch = loaded(&cpu, m);
    let (rows, dim, vocab) = (m.used(), 300, 3001);
    let mut v = |n: usize| of::<f32>(&noise.vec(n));
    let (x, w, wn, dy) = (v(rows * dim), v(576 * dim), v(dim), v(rows * 576));
    let (qkv, dout, table) = (v(rows * shape.qkv_width()), v(rows * shape.q_width()), v(vocab * dim));
    let n = m.predictions().len();
    let head = run::head(&cpu, &x[..n * dim], &table, vocab, &batch, &whole(m), HeadMode::Train);
    let (mut dx, mut dw, mut dtable) = (nan(rows * dim), vec![0f32; 576 * dim], vec![0f32; vocab * dim]);
    cpu.linear_bwd_input(LinearBwdInput { dx: &mut dx, dy: &dy, w: &w, out: 576, inp: dim, write: Write::Set })
        .unwrap();
    cpu.linear_bwd_weight(LinearBwdWeight { dw: &mut dw, dy: &dy, x: &x, out: 576, inp: dim, write: Write::Add })
        .unwrap();
    cpu.embed_bwd(EmbedBwd { dtable: &mut dtable, dx: &x, batch: &batch, dim }).unwrap();
    let (mut y, rstd) = run::rmsnorm(&cpu, &x, &wn);
    let (mut dxn, mut dwn) = (nan(rows * dim), vec![0f32; dim]);
    cpu.rmsnorm_bwd(RmsNormBwd {
        dx: &mut dxn,
        dw: Some(&mut dwn),
        dy: &mut y,
        x: &x,
        w: &wn,
        rstd: &rstd,
        write: Write::Set,
        again: true,
    })
    .unwrap();
    let coef = v(n);
    let (mut dxh, mut scaled) = (nan(n * dim), nan(n * dim));
    cpu.head_bwd(HeadBwd {
        dx: &mut dxh,
        dw: Some((&mut dtable, Write::Add)),
        scaled: &mut scaled,
        logits: &head.logits,
        x: &x[..n * dim],
        w: &table,
        coef: &coef,
    })
    .unwrap();
    let mut norm = [f64::NAN];
    cpu.grad_norm(GradNorm { norm: &mut norm, g: &dtable }).unwrap();
    let (mut mo, mut ve, mut weights) = (vec![0f32; dtable.len()], vec![0f32; dtable.len()], table.clone());
    let update =
        fusedpo::backend::Rule::AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1 };
    cpu.update(Update {
        w: &mut weights,
        master: None,
        m: &mut mo,
        v: &mut ve,
        g: &dtable,
        norm: &norm,
        max_grad_norm: 1.0,
        rule: update,
    })
    .unwrap();
    let (out, lse) = run::attention(&cpu, &qkv, &batch, shape);
    let dqkv = run::attention_bwd(&cpu, &dout, &qkv, &batch, shape);
    let floats = [
        y,
        dx,
        dw,
        dtable,
        dxn,
        dwn,
        head.logp,
        head.entropy,
        head.logits,
        dxh,
        weights,
        mo,
        ve,
        out,
        lse,
        dqkv,
        run::linear(&cpu, &x, &w, 576, dim),
    ];
    let mut all: Vec<Vec<u8>> = floats.iter().map(|x| bits(x).to_vec()).collect();
    all.push(norm[0].to_le_bytes().to_vec());
    all
}

#[test]
fn threads_and_repetition_do_not_change_a_bit() {
    let m = micro(GROUPS, 7, 3001, &mut Noise(45));
    let on = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| everything(&m))
    };
    let one = on(1);
    for other in [on(2), on(2), on(5)] {
        assert!(one == other);
    }
}
