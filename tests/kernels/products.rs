//! A row of a forward product has the same bits whatever the number of rows: a reference log-prob that was computed in one
//! micro-batch must equal the policy's in another. On a GPU with the shapes of models, as the library chooses by shape.

use crate::device::Place;
use crate::{Noise, both, buf, v};
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::backend::*;
use std::ops::Range;

/// Outputs and inputs of a product.
type Shape = (usize, usize);
/// A buffer of activations.
type Acts<B> = <B as Device>::Buf<<B as Device>::Act>;

const SMALL: [Shape; 3] = [(33, 40), (5, 24), (64, 8)];
/// SmolLM2-135M's, Qwen2.5-0.5B's, Llama-3.2-1B's.
const REAL: [Shape; 8] =
    [(960, 576), (3072, 576), (576, 1536), (1152, 896), (9728, 896), (896, 4864), (3072, 2048), (2048, 8192)];
/// Heads, whose products leave f32.
const HEADS: [Shape; 2] = [(49152, 576), (151936, 896)];

/// The product of rows `range` of `x`, of which the rows `shown` of the result are given.
fn rows_of<B: Backend>(
    be: &B,
    (out, inp): Shape,
    (x, w, plus): (&Acts<B>, &Acts<B>, Option<&Acts<B>>),
    range: Range<usize>,
    shown: Range<usize>,
) -> Vec<B::Act> {
    let mut y = be.zeros::<B::Act>("y", range.len() * out).unwrap();
    let write = plus.map_or(Write::Set, |p| Write::Plus(be.view(p, range.start * out..range.end * out)));
    let rows = be.view(x, range.start * inp..range.end * inp);
    be.linear_fwd(LinearFwd { y: v!(be, mut y), x: rows, w: v!(be, *w), out, inp, write }).unwrap();
    download(be, &y, shown.start * out..shown.end * out)
}

fn logits_of<B: Backend>(
    be: &B,
    (out, inp): Shape,
    (x, w): (&Acts<B>, &Acts<B>),
    range: Range<usize>,
    shown: Range<usize>,
) -> Vec<B::Acc> {
    let mut z = be.zeros::<B::Acc>("z", range.len() * out).unwrap();
    be.logits(Logits {
        logits: v!(be, mut z),
        x: be.view(x, range.start * inp..range.end * inp),
        w: v!(be, *w),
        dim: inp,
    })
    .unwrap();
    download(be, &z, shown.start * out..shown.end * out)
}

fn download<B: Backend, T: Float>(be: &B, from: &B::Buf<T>, range: Range<usize>) -> Vec<T> {
    let mut to = vec![T::from_f64(0.0); range.len()];
    be.download(&mut to, be.view(from, range)).unwrap();
    to
}

/// Rows `from..from + n` alone, against the same of all `rows`.
fn alone<B: Backend>(be: &B, shape: Shape, head: bool, rows: usize, parts: &[(usize, usize)]) {
    let (out, inp) = shape;
    let mut noise = Noise((out + inp) as u64);
    let x = buf::<B, B::Act>(be, &noise.vec::<B::Act>(rows * inp, 1.0));
    let w = buf::<B, B::Act>(be, &noise.vec::<B::Act>(out * inp, 0.05));
    let plus = (!head).then(|| buf::<B, B::Act>(be, &noise.vec::<B::Act>(rows * out, 1.0)));
    for &(from, n) in parts {
        let (all, part) = (0..rows, from..from + n);
        let what = format!("{n} rows from {from} of {rows}, {out} x {inp}, {}", B::Act::NAME);
        if head {
            let whole = logits_of(be, shape, (&x, &w), all, part.clone());
            assert!(whole.iter().filter(|z| z.to_f64() != 0.0).count() > whole.len() / 2);
            assert!(logits_of(be, shape, (&x, &w), part, 0..n) == whole, "logits, {what}");
            continue;
        }
        for plus in [None, plus.as_ref()] {
            let whole = rows_of(be, shape, (&x, &w, plus), all.clone(), part.clone());
            assert!(whole.iter().filter(|y| y.to_f64() != 0.0).count() > whole.len() / 2);
            let added = if plus.is_some() { "added" } else { "set" };
            assert!(rows_of(be, shape, (&x, &w, plus), part.clone(), 0..n) == whole, "{added}, {what}");
        }
    }
}

fn rows_alone<A: GpuFloat>() {
    crate::on_devices!(A, [0], |gpu, place| {
        match place {
            Place::Host(_) => {
                let parts = [(0, 1), (60, 1), (3, 2), (11, 37)];
                SMALL.iter().for_each(|s| alone(gpu, *s, false, 61, &parts));
                SMALL.iter().for_each(|s| alone(gpu, *s, true, 61, &parts));
            }
            // The second run would ask the same algorithms again.
            Place::Cuda(run) if run > 1 => {}
            Place::Cuda(_) => {
                let parts = [(0, 1), (8, 7), (16, 99), (256, 512), (0, 2048), (64, 3533)];
                REAL.iter().for_each(|s| alone(gpu, *s, false, 4608, &parts));
                HEADS.iter().for_each(|s| alone(gpu, *s, true, 1100, &[(0, 1), (8, 7), (16, 99), (512, 300)]));
            }
        }
    });
}
both!(rows_alone);
