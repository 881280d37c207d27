//! Weights in four bits: the same numbers as on the host, to the bit, on every device.

use crate::on_devices;
use crate::{Noise, both, fetch, unset};
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::backend::*;
use fusedpo::quant::{Absmax, Dynamic, Nf4Tensor, Precision};

fn put<B: Backend, T: Storage>(be: &B, data: &[T]) -> B::Buf<T> {
    let mut buf = be.zeros::<T>("test", data.len()).unwrap();
    be.upload(be.view_mut(&mut buf, 0..data.len()), data).unwrap();
    buf
}

/// `t` on a device, its codes `before` bytes from where they could be, written `shift` elements into a buffer.
fn numbers<B: Backend>(be: &B, t: &Nf4Tensor, (before, shift): (usize, usize)) -> Vec<f64> {
    let all = [vec![0xaa; before], t.codes.clone()].concat();
    let codes = put(be, &all);
    let mut w = unset::<B, B::Act>(be, t.len() + 2 * shift);
    let (to, from, round) = (shift..shift + t.len(), before..all.len(), t.dtype);
    match &t.absmax {
        Absmax::Plain(absmax) => {
            let n = absmax.len();
            let absmax = put(be, absmax);
            let absmax = Nf4Absmax::Plain(be.view(&absmax, 0..n));
            let (w, codes) = (be.view_mut(&mut w, to), be.view(&codes, from));
            be.dequantize_nf4(DequantizeNf4 { w, codes, absmax, round }).unwrap();
        }
        Absmax::Nested { codes: nested, absmax, map, offset } => {
            let (n, m) = (nested.len(), absmax.len());
            let (nested, absmax) = (put(be, nested), put(be, absmax));
            let (map, offset) = (put(be, &map[..]), put(be, &[*offset]));
            let absmax = Nf4Absmax::Nested {
                codes: be.view(&nested, 0..n),
                absmax: be.view(&absmax, 0..m),
                map: be.view(&map, 0..256),
                offset: be.view(&offset, 0..1),
            };
            let (w, codes) = (be.view_mut(&mut w, to), be.view(&codes, from));
            be.dequantize_nf4(DequantizeNf4 { w, codes, absmax, round }).unwrap();
        }
    }
    let all = fetch(be, &w);
    assert!(all[..shift].iter().chain(&all[shift + t.len()..]).all(|x| x.is_nan()), "nothing beside it is written");
    all[shift..shift + t.len()].to_vec()
}

fn dequantize_nf4<A: GpuFloat>() {
    let dynamic = Dynamic::new();
    // From one element to more than a block of threads takes, and more blocks of 64 than a nested magnitude is for.
    for (rows, columns) in
        [(1, 1), (1, 2), (3, 21), (1, 64), (5, 13), (8, 64), (7, 36), (3, 2731), (260, 64), (17, 1031)]
    {
        for (i, round) in [Precision::F32, Precision::Bf16, Precision::F16].into_iter().enumerate() {
            let mut noise = Noise((rows * 1000 + columns + i) as u64);
            // Down to what is denormal in f16.
            let scale = [1.0, 1e-3, 1e-7][(rows + i) % 3];
            let values: Vec<f32> = noise.vec::<f32>(rows * columns, scale).iter().map(|x| *x as f32).collect();
            for double in [None, Some(&dynamic)] {
                let t = Nf4Tensor::quantize(&values, &[rows, columns], round, double).unwrap();
                let want: Vec<f64> = t.values(0..t.len()).iter().map(|x| A::from_f64((*x).into()).to_f64()).collect();
                for shift in [(0, 0), (1, 1), (4, 4), (1, 0), (0, 1), (2, 8)] {
                    let what = format!("{rows} x {columns}, {round:?}, {}, {shift:?}", double.is_some());
                    on_devices!(A, [0, 1], |gpu, place| {
                        assert!(numbers(gpu, &t, shift) == want, "{what} ({place})");
                    });
                    let exact: Vec<f64> = t.values(0..t.len()).iter().map(|x| (*x).into()).collect();
                    assert!(numbers(&Cpu::<f64>::new().unwrap(), &t, shift) == exact, "{what}");
                    assert!(numbers(&Cpu::<f32>::new().unwrap(), &t, shift) == exact, "{what}");
                }
            }
        }
    }
}
both!(dequantize_nf4);
