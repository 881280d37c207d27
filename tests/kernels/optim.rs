//! Gradient norm and updates.

use crate::{Case, Noise, Outputs, both, buf, compare, compare_under, fetch, on_devices, unset, v};
use fusedpo::backend::gpu::GpuFloat;
use fusedpo::backend::*;

struct Steps {
    w: Vec<f64>,
    g: Vec<Vec<f64>>,
    max_grad_norm: f64,
    rmsprop: bool,
}
impl Case for Steps {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let n = self.w.len();
        let mut w = buf::<B, B::Act>(be, &self.w);
        let mut master = B::MASTER_WEIGHTS.then(|| buf::<B, B::Acc>(be, &self.w));
        let (mut m, mut v) = (buf::<B, B::Acc>(be, &vec![0.0; n]), buf::<B, B::Acc>(be, &vec![0.0; n]));
        let mut norms = Vec::new();
        for (i, g) in self.g.iter().enumerate() {
            let (g, mut norm) = (buf::<B, B::Acc>(be, g), unset::<B, f64>(be, 1));
            be.grad_norm(GradNorm { norm: v!(be, mut norm), g: v!(be, g) }).unwrap();
            norms.extend(fetch::<B, f64>(be, &norm));
            let (lr, eps, weight_decay) = (1e-2, 1e-8, 0.1);
            let update = if self.rmsprop {
                Rule::RmsProp { lr, alpha: 0.99, eps, weight_decay }
            } else {
                Rule::AdamW { lr, beta1: 0.9, beta2: 0.999, eps, weight_decay, step: i as u64 + 1 }
            };
            let shadow = master.as_mut().map(|m| v!(be, mut *m));
            let (first, second) = (v!(be, mut m), v!(be, mut v));
            be.update(Update {
                w: v!(be, mut w),
                master: shadow,
                m: first,
                v: second,
                g: v!(be, g),
                norm: v!(be, norm),
                max_grad_norm: self.max_grad_norm,
                rule: update,
            })
            .unwrap();
        }
        let finite: Vec<f64> = norms.iter().map(|n| if n.is_finite() { *n } else { -1.0 }).collect();
        let master = master.map_or_else(|| fetch::<B, B::Act>(be, &w), |m| fetch::<B, B::Acc>(be, &m));
        vec![
            ("norm", finite, false),
            ("m", fetch(be, &m), false),
            ("v", fetch(be, &v), false),
            ("master", master, false),
            ("w", fetch(be, &w), true),
        ]
    }
}

fn updates<A: GpuFloat>() {
    for (n, max_grad_norm, rmsprop) in
        [(1, 0.0, false), (37, 1.0, false), (5000, 1e6, false), (2055, 1.0, true), (8, 0.0, true)]
    {
        let mut noise = Noise(n as u64);
        // Gradients of the first step are not small beside eps; the third one's are not all finite.
        let mut g: Vec<Vec<f64>> = (0..4).map(|_| noise.vec::<f32>(n, 0.5)).collect();
        g[2][n / 2] = f64::NAN;
        let case = Steps { w: noise.vec::<A>(n, 1.0), g, max_grad_norm, rmsprop };
        compare::<A>(&format!("update of {n}, clip {max_grad_norm}, rmsprop {rmsprop}"), &case);
    }
}
both!(updates);

/// A norm that is not finite leaves every number as it was, whatever the options.
fn not_finite_changes_nothing<A: GpuFloat>() {
    for bad in [f64::NAN, f64::INFINITY] {
        let w: Vec<f64> = Noise(5).vec::<A>(20, 1.0);
        let case = Steps { w: w.clone(), g: vec![vec![bad; 20]], max_grad_norm: 1.0, rmsprop: false };
        on_devices!(A, [1], |gpu, place| {
            let got = case.run(gpu);
            assert_eq!(got[3].1, w, "{place}");
            assert_eq!(got[4].1, w.iter().map(|x| A::from_f64(*x).to_f64()).collect::<Vec<_>>(), "{place}");
            assert!(got[1].1.iter().chain(&got[2].1).all(|x| *x == 0.0), "{place}");
        });
    }
}
both!(not_finite_changes_nothing);

/// A synced reference, mixed twice: elements behind the range are not touched.
struct Mixed {
    reference: Vec<f64>,
    policy: Vec<f64>,
    range: std::ops::Range<usize>,
    alpha: f64,
}
impl Case for Mixed {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let at = &self.range;
        let mut w = buf::<B, B::Act>(be, &self.reference);
        let mut master = B::MASTER_WEIGHTS.then(|| buf::<B, B::Acc>(be, &self.reference));
        let from = buf::<B, B::Act>(be, &self.policy);
        let from_master = B::MASTER_WEIGHTS.then(|| buf::<B, B::Acc>(be, &self.policy));
        for _ in 0..2 {
            be.mix(Mix {
                w: be.view_mut(&mut w, at.clone()),
                master: master.as_mut().map(|m| be.view_mut(m, at.clone())),
                from: be.view(&from, at.clone()),
                from_master: from_master.as_ref().map(|m| be.view(m, at.clone())),
                alpha: self.alpha,
            })
            .unwrap();
        }
        let master = master.map_or_else(|| fetch::<B, B::Act>(be, &w), |m| fetch::<B, B::Acc>(be, &m));
        vec![("master", master, false), ("w", fetch(be, &w), true)]
    }
}

fn mixes<A: GpuFloat>() {
    for (n, range, alpha) in
        [(1, 0..1, 0.6), (40, 0..37, 1e-4), (5000, 8..4999, 0.25), (2055, 0..2055, 1.0), (24, 8..8, 0.5)]
    {
        let mut noise = Noise(n as u64 + 1);
        // A reference of the storage's values, a policy between them: what the masters are for.
        let (reference, policy) = (noise.vec::<A>(n, 1.0), noise.vec::<f32>(n, 1.0));
        let case = Mixed { reference, policy, range, alpha };
        compare::<A>(&format!("mix of {n} at {alpha}"), &case);
    }
}
both!(mixes);

/// At 1 the reference is the policy, to the bit; what is no number in the policy is none in the reference.
fn all_of_the_policy<A: GpuFloat>() {
    let mut policy: Vec<f64> = Noise(3).vec::<A>(21, 1.0);
    policy[7] = f64::NAN;
    let case = Mixed { reference: Noise(4).vec::<A>(21, 1.0), policy: policy.clone(), range: 0..21, alpha: 1.0 };
    on_devices!(A, [1], |gpu, place| {
        let got = case.run(gpu);
        for (i, want) in policy.iter().enumerate() {
            let same = |got: f64| got == *want || got.is_nan() && want.is_nan();
            assert!(same(got[0].1[i]) && same(got[1].1[i]), "{place}: {i}");
        }
    });
}
both!(all_of_the_policy);

/// Gradients of a lane added to those of another, and the norm of their sum by blocks; elements beside the range stay.
struct Lanes {
    to: Vec<f64>,
    from: Vec<f64>,
    range: std::ops::Range<usize>,
    block: usize,
}
impl Case for Lanes {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let (mut to, from) = (buf::<B, B::Acc>(be, &self.to), buf::<B, B::Acc>(be, &self.from));
        let at = self.range.clone();
        be.add(Add { to: be.view_mut(&mut to, at.clone()), from: be.view(&from, 0..at.len()) }).unwrap();
        let blocks = at.len().div_ceil(self.block);
        let (mut sums, mut norm) = (unset::<B, f64>(be, blocks), unset::<B, f64>(be, 1));
        let squares = Squares { sums: v!(be, mut sums), g: be.view(&to, at), block: self.block };
        be.squares(squares).unwrap();
        be.root(Root { norm: v!(be, mut norm), sums: v!(be, sums) }).unwrap();
        let few = Add { to: be.view_mut(&mut to, 0..1), from: be.view(&from, 0..0) };
        assert!(be.add(few).is_err());
        vec![
            ("to", fetch::<B, B::Acc>(be, &to), false),
            ("sums", fetch::<B, f64>(be, &sums), false),
            ("norm", fetch::<B, f64>(be, &norm), false),
        ]
    }
}

fn lanes<A: GpuFloat>() {
    for (n, range, block) in
        [(1, 0..1, 1024), (40, 1..38, 1024), (5000, 8..4999, 1024), (9001, 3..9001, 4096), (70_000, 0..70_000, 16_384)]
    {
        let mut noise = Noise(n as u64 + 5);
        let case = Lanes { to: noise.vec::<f32>(n, 1.0), from: noise.vec::<f32>(n, 1.0), range, block };
        compare::<A>(&format!("lanes of {n}"), &case);
    }
}
both!(lanes);

/// The norm of a range so long that blocks, and the threads of one, go round several times; its last part is short.
struct LongNorm(Vec<f64>);
impl Case for LongNorm {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let (g, mut norm) = (buf::<B, B::Acc>(be, &self.0), unset::<B, f64>(be, 1));
        be.grad_norm(GradNorm { norm: v!(be, mut norm), g: v!(be, g) }).unwrap();
        vec![("norm", fetch::<B, f64>(be, &norm), false)]
    }
}
#[test]
fn norm_of_a_long_range() {
    let mut noise = Noise(67);
    let g = (0..8192 * 1024 + 1501).map(|_| f64::from(noise.uniform() as f32)).collect();
    compare_under::<f32>("norm of a long range", &LongNorm(g), &[1]);
}
