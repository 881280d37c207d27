//! Per-response sums, losses and coefficients, for every loss of the table, and for sums of them.

use crate::batches::{ANY_HEADS, capacity, chunk, micro_batch};
use crate::check::assert_close;
use crate::host::host_driver;
use crate::{Case, Noise, Outputs, buf, compare, compare_under, fetch, unset, v};
use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::gpu::Gpu;
use fusedpo::backend::{self, Backend, PAIR_STATS, RESPONSE_STATS};
use fusedpo::batch::MicroBatch;
use fusedpo::choice::Choice;
use fusedpo::loss::{Divergence, LossSpec, LossType, Param, Rule, Scales, Term};
use std::ops::Range;

struct Loss {
    micro: MicroBatch,
    groups: Range<usize>,
    spec: LossSpec,
    given: bool,
    logp: Vec<f64>,
    entropy: Vec<f64>,
    hit: Vec<f64>,
    log_sum_p2: Vec<f64>,
}

impl Case for Loss {
    fn run<B: Backend>(&self, be: &B) -> Outputs {
        let mut batch = be.new_batch(capacity(&self.micro), ANY_HEADS).unwrap();
        be.load_batch(&mut batch, &self.micro).unwrap();
        let chunk = chunk(&self.micro, self.groups.clone());
        let stats = [&self.logp, &self.entropy, &self.hit, &self.log_sum_p2].map(|s| buf::<B, B::Acc>(be, s));
        let mut coef = unset::<B, B::Acc>(be, chunk.predictions.len());
        let mut responses = unset::<B, f64>(be, chunk.responses.len() * RESPONSE_STATS);
        let mut pairs = unset::<B, f64>(be, chunk.pairs.len() * PAIR_STATS);
        let [logp, entropy, hit, log_sum_p2] = &stats;
        be.loss(backend::Loss {
            coef: v!(be, mut coef),
            responses: v!(be, mut responses),
            pairs: v!(be, mut pairs),
            logp: v!(be, *logp),
            entropy: v!(be, *entropy),
            hit: v!(be, *hit),
            log_sum_p2: v!(be, *log_sum_p2),
            batch: &batch,
            chunk: &chunk,
            spec: &self.spec,
            scales: Scales { pairs: 0.125, tokens: 0.01, units: 0.25 },
            given: self.given,
        })
        .unwrap();
        // Number by number, as they are of different sizes.
        let mut responses = column_by_column(&fetch(be, &responses), RESPONSE_STATS);
        // The last is scratch.
        responses.truncate(responses.len() / RESPONSE_STATS * (RESPONSE_STATS - 1));
        let pairs = column_by_column(&fetch(be, &pairs), PAIR_STATS);
        vec![("coef", fetch(be, &coef), false), ("responses", responses, false), ("pairs", pairs, false)]
    }

    /// What the losses of a sum give a token, each by itself: they are added in f32.
    fn terms(&self, output: &str) -> f64 {
        if output != "coef" || self.spec.terms().len() < 2 && !self.given {
            return 0.0;
        }
        let of_term = |term: &Term| {
            let mut spec = LossSpec::sum(&[*term, Term { weight: 0.0, ..Term::of(other_than(term.loss_type)) }]);
            (spec.divergence, spec.f_alpha, spec.ld_alpha, spec.use_weighting) =
                (self.spec.divergence, self.spec.f_alpha, self.spec.ld_alpha, self.spec.use_weighting);
            let case = Loss { micro: clone(&self.micro), given: false, spec, ..self.part(self.groups.clone()) };
            case.run(&Cpu::<f64>::new().unwrap())[0].1.iter().fold(0f64, |m, x| m.max(x.abs()))
        };
        let given = if self.given { GIVEN } else { 0.0 };
        self.spec.terms().iter().map(of_term).sum::<f64>() + given
    }
}

/// A loss that may stand beside `loss` in a sum.
fn other_than(loss: LossType) -> LossType {
    if loss == LossType::Sigmoid { LossType::Hinge } else { LossType::Sigmoid }
}

fn column_by_column(rows: &[f64], width: usize) -> Vec<f64> {
    (0..width).flat_map(|c| rows.iter().skip(c).step_by(width).copied()).collect()
}

fn clone(m: &MicroBatch) -> MicroBatch {
    let mut to = MicroBatch::default();
    to.clone_from(m);
    to
}

/// Largest coefficient that batches here are given.
const GIVEN: f64 = 2.0;

impl Loss {
    /// Groups of a pair, of several, of a response without any, and of responses that several pairs share.
    fn new(spec: LossSpec, groups: Range<usize>) -> Self {
        let mut noise = Noise(7);
        let sizes: [(u32, &[u32]); 6] = [
            (2, &[40, 3]),
            (3, &[2, 1, 70, 4, 9]),
            (1, &[1, 1]),
            (2, &[6]),
            (4, &[5, 33, 2, 8, 1, 64, 65, 31]),
            (1, &[7, 7]),
        ];
        let mut micro = micro_batch(400, &sizes, 50, || noise.uniform());
        let lengths: Vec<usize> = micro.responses().iter().map(|r| r.predictions.len()).collect();
        for r in micro.outline_mut().responses_mut() {
            r.score = Some(noise.normal() as f32);
            r.given = GIVEN * (2.0 * noise.uniform() - 1.0);
        }
        let refs: Vec<f64> = micro.responses().iter().map(|r| r.ref_logp).collect();
        for p in micro.outline_mut().pairs_mut() {
            let ends = [p.chosen as usize, p.rejected as usize];
            let shared = lengths[ends[0]].min(lengths[ends[1]]) as f64;
            p.ref_heads = ends.map(|r| refs[r] * shared / lengths[r] as f64);
            p.given = [0; 2].map(|_| GIVEN * (2.0 * noise.uniform() - 1.0));
        }
        let n = chunk(&micro, groups.clone()).predictions.len();
        let (logp, entropy, hit, log_sum_p2) = stats(&mut noise, n);
        Self { micro, groups, spec, given: false, logp, entropy, hit, log_sum_p2 }
    }

    /// With a reference near the policy: exponentials of log-ratios stay within f32.
    fn near_the_reference(mut self) -> Self {
        let (mut noise, logp) = (Noise(4), &self.logp);
        let sums = |from: usize, len: usize| logp[from..from + len].iter().sum::<f64>();
        let spans: Vec<_> =
            self.micro.responses().iter().map(|r| (r.predictions.start as usize, r.predictions.len())).collect();
        self.micro
            .set_ref_logps(|r| Ok(sums(r.predictions.start as usize, r.predictions.len()) + 3.0 * noise.normal()))
            .unwrap();
        for p in self.micro.outline_mut().pairs_mut() {
            let ends = [p.chosen, p.rejected].map(|r| spans[r as usize]);
            let shared = ends[0].1.min(ends[1].1);
            p.ref_heads = ends.map(|(from, _)| sums(from, shared) + 2.0 * noise.normal());
        }
        self
    }

    /// The same statistics without a batch.
    fn part(&self, groups: Range<usize>) -> Self {
        let [logp, entropy, hit, log_sum_p2] = [&self.logp, &self.entropy, &self.hit, &self.log_sum_p2].map(Vec::clone);
        let (micro, spec) = (MicroBatch::default(), self.spec);
        Self { micro, groups, spec, given: self.given, logp, entropy, hit, log_sum_p2 }
    }
}

/// Log-probs, entropies, hits and `log sum p^2` of `n` predictions.
fn stats(noise: &mut Noise, n: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut negative = |least: f64| (0..n).map(|_| f64::from((least * noise.uniform()) as f32)).collect();
    let (logp, log_sum_p2) = (negative(-3.0), negative(-2.5));
    (logp, noise.vec::<f32>(n, 1.0), (0..n).map(|_| noise.uniform().round()).collect(), log_sum_p2)
}

/// What the kernel keeps in f64 is the CPU's but for the order of sums.
fn f64_is_f64(what: &str, case: &Loss) {
    let Some(driver) = host_driver(1) else { return };
    let (got, want) = (case.run(&Gpu::<_, f32>::new(driver).unwrap()), case.run(&Cpu::<f64>::new().unwrap()));
    for (got, want) in got.iter().zip(&want).skip(1) {
        assert_close(&format!("{what}: {}", got.0), &got.1, &want.1, 1e-12, 1e-13);
    }
}

/// Those of a sum or alone whose coefficients the launch gives.
fn fused() -> impl Iterator<Item = LossType> {
    let fused = |l: &LossType| matches!(l.def().rule, Rule::Pair(_) | Rule::Tokens | Rule::List(_));
    LossType::EVERY.iter().copied().filter(fused)
}

#[test]
fn loss() {
    for loss_type in fused() {
        let spec = LossSpec::of(loss_type);
        // Other values than the defaults, and none of them alike.
        let moved = spec.terms()[0].def().options.iter().zip([0.3, 0.2, 0.45, 0.11]);
        let moved = moved.fold(spec, |s, ((param, _), x)| s.with(*param, x));
        for (spec, groups) in [(spec, 0..6), (moved, 0..6), (moved, 1..3), (moved, 4..5)] {
            spec.check().unwrap();
            let case = Loss::new(spec, groups.clone());
            compare_under::<f32>(&format!("{loss_type} of {groups:?}"), &case, &[0, 3]);
            f64_is_f64(&format!("{loss_type} of {groups:?}"), &case);
        }
    }
}

/// Divergences, LD-DPO and WPO, wherever they are allowed.
#[test]
fn variants() {
    for loss_type in fused() {
        let of = |change: &dyn Fn(&mut LossSpec)| {
            let mut spec = LossSpec::of(loss_type);
            change(&mut spec);
            spec
        };
        let mut all: Vec<LossSpec> = vec![
            of(&|s| s.ld_alpha = Some(0.3)),
            of(&|s| s.ld_alpha = Some(0.0)),
            of(&|s| s.use_weighting = true),
            of(&|s| (s.ld_alpha, s.use_weighting) = (Some(0.6), true)),
        ];
        for d in Divergence::ALL {
            for f_alpha in [0.4, 1.0, 1.6] {
                all.push(of(&|s| (s.divergence, s.f_alpha) = (*d, f_alpha)));
                all.push(of(&|s| (s.divergence, s.f_alpha, s.ld_alpha) = (*d, f_alpha, Some(0.5))));
            }
        }
        for (i, spec) in all.into_iter().enumerate().filter(|(_, s)| s.check().is_ok()) {
            let case = Loss::new(spec, 0..6).near_the_reference();
            compare_under::<f32>(&format!("{loss_type}, variant {i}"), &case, &[i as u64 % 4]);
            f64_is_f64(&format!("{loss_type}, variant {i}"), &case);
        }
    }
}

fn sum(terms: &[(LossType, f64)]) -> LossSpec {
    LossSpec::sum(&terms.iter().map(|(l, weight)| Term { weight: *weight, ..Term::of(*l) }).collect::<Vec<_>>())
}

#[test]
fn sums() {
    use LossType::*;
    let weighed = [
        sum(&[(Sigmoid, 1.0), (Sft, 0.5)]),
        sum(&[(Sft, 1.0), (PlackettLuce, 0.7)]),
        sum(&[(Sigmoid, 0.8), (BcoPair, 0.2), (Sft, 1.0)]),
        sum(&[(PlackettLuce, 2.0), (Odpo, 0.3), (Orpo, 0.0)]),
        sum(&[
            (Hinge, 0.5),
            (Dpop, 0.01),
            (Simpo, 1.5),
            (Ipo, 0.1),
            (Rpo, 1.0),
            (Cpo, 1.0),
            (Slic, 0.2),
            (ApoDown, 3.0),
        ]),
    ];
    for (i, spec) in weighed.into_iter().enumerate() {
        for given in [false, true] {
            let case = Loss { given, ..Loss::new(spec.with(Param::Beta, 0.2), 0..6) };
            compare::<f32>(&format!("sum {i}, given {given}"), &case);
            f64_is_f64(&format!("sum {i}, given {given}"), &case);
        }
    }
    let mut spec = sum(&[(Sigmoid, 1.0), (SigmoidNorm, 0.5), (Sft, 0.3)]);
    (spec.ld_alpha, spec.use_weighting, spec.divergence) = (Some(0.4), true, Divergence::ForwardKl);
    spec.check().unwrap();
    compare::<f32>("a sum with everything", &Loss::new(spec, 0..6).near_the_reference());
}

/// Coefficients that a loss of the whole step came to, alone.
#[test]
fn given_coefficients() {
    for ld_alpha in [None, Some(0.3)] {
        for groups in [0..6, 2..5] {
            let mut spec = LossSpec::STATISTICS;
            spec.ld_alpha = ld_alpha;
            let case = Loss { given: true, ..Loss::new(spec, groups) };
            compare::<f32>("given coefficients", &case);
            let out = case.run(&Cpu::<f64>::new().unwrap());
            assert!(out[0].1.iter().any(|c| c.abs() > 0.1));
            let nothing = Loss { given: false, ..case };
            compare::<f32>("statistics alone", &nothing);
            assert!(nothing.run(&Cpu::<f64>::new().unwrap())[0].1.iter().all(|c| *c == 0.0));
        }
    }
}

/// Log-ratios of thousands of nats: nothing is lost on the way to the coefficients.
#[test]
fn far_out() {
    for loss_type in fused() {
        for sign in [1.0, -1.0] {
            let mut case = Loss::new(LossSpec::of(loss_type), 0..6);
            let mut turn = sign;
            case.micro
                .set_ref_logps(|_| {
                    turn = -turn;
                    Ok(-20_000.0 + turn * 10_000.0)
                })
                .unwrap();
            compare_under::<f32>(&format!("{loss_type} far out"), &case, &[2]);
        }
    }
}

/// More pairs in a group than a block has threads.
#[test]
fn many_pairs() {
    for spec in [
        LossSpec::of(LossType::Sigmoid).beta(0.3).label_smoothing(0.1),
        LossSpec::of(LossType::PlackettLuce),
        sum(&[(LossType::Orpo, 1.0), (LossType::Sft, 1.0)]),
    ] {
        let mut noise = Noise(8);
        let micro = micro_batch(270, &[(2, &[1; 264])], 50, || noise.uniform());
        assert!(micro.pairs().len() > 128);
        let n = micro.predictions().len();
        let (logp, entropy, hit, log_sum_p2) = stats(&mut noise, n);
        let case = Loss { micro, groups: 0..1, spec, given: false, logp, entropy, hit, log_sum_p2 };
        compare_under::<f32>("loss of many pairs", &case, &[1]);
    }
}
