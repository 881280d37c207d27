//! An adapter's products and weights in four bits, of more rows and blocks than are taken at a time, against the formulas.

use super::support::*;
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::*;
use fusedpo::quant::{Absmax, Dynamic, Nf4Tensor, Precision};
use std::ops::Range;

/// `x` (n x k) times `y` (m x k) transposed.
fn product(x: &[f64], y: &[f64], k: usize) -> Vec<f64> {
    x.chunks(k).flat_map(|x| y.chunks(k).map(move |y| inner(x, y))).collect()
}

fn adapter(n: usize, columns: &[Range<usize>], rank: usize, out: usize, inp: usize) {
    let (cpu, mut noise) = (cpu64(), Noise((n + out) as u64));
    let parts = AdapterParts { columns, rank, out, inp, scale: 0.7 };
    let (width, covered) = (parts.low(), parts.covered());
    let (x, a, b) = (noise.vec(n * inp), noise.vec(width * inp), noise.vec(covered * rank));
    let (y, dy, db) = (noise.vec(n * out), noise.vec(n * out), noise.vec(covered * rank));
    let low: Vec<f64> = product(&x, &a, inp).iter().map(|v| 0.7 * v).collect();
    let (mut want_y, mut want_dlow, mut want_db) = (y.clone(), vec![0.0; n * width], db.clone());
    let mut at = 0;
    for (i, of) in columns.iter().enumerate() {
        for (c, t) in of.clone().flat_map(|c| (0..n).map(move |t| (c, t))) {
            for r in 0..rank {
                let place = (at + c - of.start) * rank + r;
                want_y[t * out + c] += low[t * width + i * rank + r] * b[place];
                want_dlow[t * width + i * rank + r] += 0.7 * dy[t * out + c] * b[place];
                want_db[place] += dy[t * out + c] * low[t * width + i * rank + r];
            }
        }
        at += of.len();
    }
    let (mut got_y, mut got_low, mut got_dlow, mut got_db) = (y, nan(n * width), nan(n * width), db);
    cpu.adapter_fwd(AdapterFwd { y: &mut got_y, low: &mut got_low, x: &x, a: &a, b: &b, parts }).unwrap();
    cpu.adapter_bwd_low(AdapterBwdLow { dlow: &mut got_dlow, dy: &dy, b: &b, parts }).unwrap();
    let mut again = nan(n * width);
    let op: AdapterBwdWeight<'_, Cpu<f64>> =
        AdapterBwdWeight { db: &mut got_db[..], low: &mut again[..], dy: &dy[..], x: &x[..], a: &a[..], parts };
    cpu.adapter_bwd_weight(op).unwrap();
    for (name, got, want) in [("y", got_y, want_y), ("dlow", got_dlow, want_dlow), ("db", got_db, want_db)] {
        assert_close(name, &got, &want, 1e-11);
    }
}

#[test]
fn adapters_of_many_rows() {
    adapter(70, std::slice::from_ref(&(1..2001)), 2, 2001, 3);
    adapter(1100, &[0..1, 2..3], 64, 3, 2);
    adapter(9, &[0..4, 4..7, 9..12], 3, 12, 5);
}

/// Whole tasks of blocks and some more, the last block incomplete and of an odd length; magnitudes that differ from block to block.
#[test]
fn four_bits_of_many_blocks() {
    let (n, dynamic, mut noise) = (64 * 256 * 2 + 64 * 3 + 5, Dynamic::new(), Noise(4));
    let numbers: Vec<f32> =
        noise.vec(n).iter().enumerate().map(|(i, x)| (x * (1.0 + (i / 64 % 97) as f64)) as f32).collect();
    for (round, nested) in [(Precision::F32, None), (Precision::F32, Some(&dynamic)), (Precision::Bf16, Some(&dynamic))]
    {
        let t = Nf4Tensor::quantize(&numbers, &[n], round, nested).unwrap();
        let mut w = vec![f32::NAN; n];
        let one;
        let absmax = match &t.absmax {
            Absmax::Plain(all) => Nf4Absmax::Plain(&all[..]),
            Absmax::Nested { codes, absmax, map, offset } => {
                one = [*offset];
                Nf4Absmax::Nested { codes: &codes[..], absmax: &absmax[..], map: &map[..], offset: &one[..] }
            }
        };
        cpu32().dequantize_nf4(DequantizeNf4 { w: &mut w, codes: &t.codes, absmax, round }).unwrap();
        let want = t.values(0..n);
        assert!(w == want, "{round:?} {:?}", w.iter().zip(&want).position(|(a, b)| a != b));
    }
}

/// Gradients whose squares f32 does not hold: moments stay numbers, and so do the weights.
#[test]
fn moments_do_not_overflow() {
    let (n, cpu) = (300, cpu32());
    let rule = Rule::AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1 };
    let (g, rounding) = (vec![3e19f32; n], fusedpo::backend::rounding::Rounding::of(1, 1, 0));
    let (mut w, mut m, mut v) = (vec![1f32; n], vec![127u8; n], vec![0u8; n]);
    let (mut m_scale, mut v_scale) = (vec![0f32; 2], vec![0f32; 2]);
    let op: Update8bit<'_, Cpu<f32>, f32> = Update8bit {
        w: &mut w[..],
        m: &mut m[..],
        m_scale: &mut m_scale[..],
        v: &mut v[..],
        v_scale: &mut v_scale[..],
        g: &g[..],
        norm: &[1.0][..],
        max_grad_norm: 0.0,
        rule,
        rounding,
    };
    cpu.update_8bit(op).unwrap();
    assert!(w.iter().chain(&m_scale).chain(&v_scale).all(|x| x.is_finite()), "{} {v_scale:?}", w[0]);
    assert!(v_scale.iter().all(|s| *s == f32::MAX));
}
