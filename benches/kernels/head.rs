//! The head with its products, its kernel by difference, and the loss.

use crate::batched::{Groups, HEADS};
use crate::clock::{Bench, Clock, Work, random};
use fusedpo::backend::*;
use fusedpo::batch::Chunk;
use fusedpo::loss::{LossSpec, LossType, Term};

/// Hidden size of Qwen2.5-0.5B; a vocabulary that leaves the CPU some time, and its own for a GPU.
const DIM: usize = 896;
const VOCAB: usize = 32768;
const VOCAB_QWEN: usize = 151_936;

/// Vocabularies, each with the most predictions: a chunk's logits.
fn sizes<B: Clock>() -> impl Iterator<Item = (usize, usize)> {
    let of = |vocab| (vocab, B::LOGITS_BYTES / 4 / vocab);
    [(VOCAB, usize::MAX)].into_iter().chain(B::ASYNC.then(|| of(VOCAB_QWEN)))
}

pub fn benches<B: Clock>(bench: &mut Bench<'_, B>) {
    let groups = Groups::new(bench.be, 256, 256, VOCAB, HEADS);
    sizes::<B>().for_each(|size| head(bench, &groups, size, 4));
    loss(bench, &groups);
}

/// The head on a backend whose logits are bf16.
pub fn narrow<B: Clock>(bench: &mut Bench<'_, B>) {
    let groups = Groups::new(bench.be, 256, 256, VOCAB, HEADS);
    sizes::<B>().for_each(|size| head(bench, &groups, size, 2));
}

/// `logit`: bytes of a logit.
fn head<B: Clock>(bench: &mut Bench<'_, B>, groups: &Groups<B>, (vocab, most): (usize, usize), logit: usize) {
    let name = |op: &str| if logit == 4 { op.to_owned() } else { format!("{op}, logits in bf16") };
    let (act, n) = (size_of::<B::Act>(), groups.chunk.predictions.len().min(most));
    let chunk = &Chunk { predictions: 0..n, ..groups.chunk.clone() };
    let (hidden, weights, logits) = (n * DIM, vocab * DIM, n * vocab);
    let set = |be: &B| {
        let r = |n| random::<B, B::Act>(be, n);
        let zeros = |n| be.zeros::<B::Acc>("bench", n).expect("device memory");
        (r(hidden), r(weights), random::<B, B::Acc>(be, logits), [(); 4].map(|()| zeros(n)))
    };
    let shape = format!("{n}x{vocab}x{DIM}");
    let work = Work::flop(2 * n * vocab * DIM, (hidden + weights) * act + logit * logits);
    let product = bench.run("logits", &shape, work, set, |be, (x, w, z, _)| {
        let (x, w) = (be.view(x, 0..hidden), be.view(w, 0..weights));
        be.logits(Logits { logits: be.view_mut(z, 0..logits), x, w, dim: DIM }).expect("logits");
    });
    let whole = bench.run(&name("head_fwd"), &shape, work, set, |be, (x, w, z, stats)| {
        let [logp, entropy, p2, hit] = stats;
        let view = |b| be.view_mut(b, 0..n);
        be.head_fwd(HeadFwd {
            logp: view(logp),
            entropy: view(entropy),
            log_sum_p2: view(p2),
            hit: view(hit),
            logits: be.view_mut(z, 0..logits),
            x: be.view(x, 0..hidden),
            w: be.view(w, 0..weights),
            batch: &groups.batch,
            chunk,
            mode: HeadMode::Train,
        })
        .expect("head_fwd");
    });
    if let (Some(product), Some(whole)) = (product, whole) {
        // Read once, written once: logits in f32, their gradient in the storage type.
        let work = Work::bytes(logits * (logit + act));
        bench.say(&name("head_kernel"), "(head_fwd less logits)", work, (whole - product).max(f64::MIN_POSITIVE));
    }
    let set = |be: &B| {
        let r = |n| random::<B, B::Act>(be, n);
        let acc = |n| random::<B, B::Acc>(be, n);
        (r(hidden), r(hidden), r(hidden), r(weights), acc(logits), acc(weights), acc(n))
    };
    let work = Work::flop(4 * n * vocab * DIM, (2 * hidden + weights + logits) * act + 8 * weights);
    bench.run(&name("head_bwd"), &shape, work, set, |be, (dx, scaled, x, w, z, dw, coef)| {
        let (dx, dw) = (be.view_mut(dx, 0..hidden), Some((be.view_mut(dw, 0..weights), Write::Add)));
        let (scaled, z, coef) = (be.view_mut(scaled, 0..hidden), be.view(z, 0..logits), be.view(coef, 0..n));
        be.head_bwd(HeadBwd { dx, dw, scaled, logits: z, x: be.view(x, 0..hidden), w: be.view(w, 0..weights), coef })
            .expect("head_bwd");
    });
}

/// Three statistics of every prediction in, a coefficient out: a launch's time, whatever its bytes. One loss, a sum of
/// three, which is three launches, and the loss that reads lists.
fn loss<B: Clock>(bench: &mut Bench<'_, B>, groups: &Groups<B>) {
    let (n, responses, pairs) =
        (groups.chunk.predictions.len(), groups.chunk.responses.len(), groups.chunk.pairs.len());
    let set = |be: &B| {
        let zeros = |n| be.zeros::<f64>("bench", n).expect("device memory");
        let stats = [(); 4].map(|()| random::<B, B::Acc>(be, n));
        (stats, zeros(responses * RESPONSE_STATS), zeros(pairs * PAIR_STATS))
    };
    for spec in [
        LossSpec::of(LossType::Sigmoid),
        LossSpec::of(LossType::Orpo),
        LossSpec::sum(&[LossType::Sigmoid, LossType::BcoPair, LossType::Sft].map(Term::of)),
        LossSpec::of(LossType::PlackettLuce),
    ] {
        let launches = spec.terms().len();
        let work = Work::bytes(launches * (16 * n + 8 * (responses * RESPONSE_STATS + pairs * PAIR_STATS)));
        let name = format!("{} {n} of {responses}", spec.name());
        bench.run("loss", &name, work, set, |be, ([logp, entropy, hit, coef], out, per_pair)| {
            be.loss(Loss {
                coef: be.view_mut(coef, 0..n),
                responses: be.view_mut(out, 0..responses * RESPONSE_STATS),
                pairs: be.view_mut(per_pair, 0..pairs * PAIR_STATS),
                logp: be.view(logp, 0..n),
                entropy: be.view(entropy, 0..n),
                hit: be.view(hit, 0..n),
                log_sum_p2: be.view(entropy, 0..n),
                batch: &groups.batch,
                chunk: &groups.chunk,
                spec: &spec,
                scales: 0.01.into(),
                given: false,
            })
            .expect("loss");
        });
    }
}
