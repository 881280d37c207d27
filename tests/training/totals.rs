//! Sums of metrics: the parts of a batch merged give the batch, field by field.

use fusedpo::batch::{Builder, MicroBatch, Role};
use fusedpo::choice::Choice;
use fusedpo::data::plan::draw;
use fusedpo::loss::{LossSpec, LossType, Scope};
use fusedpo::train::metrics::Totals;
use fusedpo::train::spread::Squares;
use serde_json::json;

#[test]
fn merging_adds_every_field() {
    // A different number in every field, all exact. A field that is added later must be written here to compile.
    let part = |x: f64| {
        let n = x as u64;
        Totals {
            pairs: n + 1,
            weight: x + 2.0,
            loss: x + 3.0,
            reward_chosen: x + 4.0,
            reward_rejected: x + 5.0,
            correct: x + 6.0,
            logp_chosen: x + 7.0,
            logp_rejected: x + 8.0,
            responses: n + 9,
            scored_tokens: n + 10,
            entropy: x + 11.0,
            chosen_tokens: n + 12,
            hits: x + 13.0,
            tokens: n + 14,
            tokens_with_prompts: n + 15,
            non_finite: vec![n + 16],
            non_finite_responses: vec![n + 18],
            off_reference: n + 17,
            token_loss: x + 19.0,
            token_weight: x + 20.0,
            response_loss: x + 21.0,
            response_weight: x + 22.0,
            at_reference: Some([x + 23.0, x + 24.0, x + 25.0]),
            desirable: x + 26.0,
            undesirable: x + 27.0,
            divergence: x + 28.0,
            divergences: n + 29,
            squares: Squares {
                loss: [x + 30.0, x + 31.0, x + 32.0],
                pairs: [33.0, 34.0, 35.0, 36.0, 37.0].map(|k| x + k),
            },
        }
    };
    let mut got = part(100.0);
    got.merge(part(1000.0));
    let non_finite_responses = vec![118, 1018];
    let want = Totals { non_finite: vec![116, 1016], non_finite_responses, ..part_sum(100.0, 1000.0) };
    assert_eq!(got, want);
    let mut from_nothing = Totals::default();
    from_nothing.merge(part(100.0));
    assert_eq!(from_nothing, part(100.0));
}

fn part_sum(a: f64, b: f64) -> Totals {
    let float = |k: f64| a + k + b + k;
    let count = |k: u64| a as u64 + k + b as u64 + k;
    Totals {
        pairs: count(1),
        weight: float(2.0),
        loss: float(3.0),
        reward_chosen: float(4.0),
        reward_rejected: float(5.0),
        correct: float(6.0),
        logp_chosen: float(7.0),
        logp_rejected: float(8.0),
        responses: count(9),
        scored_tokens: count(10),
        entropy: float(11.0),
        chosen_tokens: count(12),
        hits: float(13.0),
        tokens: count(14),
        tokens_with_prompts: count(15),
        non_finite: Vec::new(),
        non_finite_responses: Vec::new(),
        off_reference: count(17),
        token_loss: float(19.0),
        token_weight: float(20.0),
        response_loss: float(21.0),
        response_weight: float(22.0),
        at_reference: Some([float(23.0), float(24.0), float(25.0)]),
        desirable: float(26.0),
        undesirable: float(27.0),
        divergence: float(28.0),
        divergences: count(29),
        squares: Squares { loss: [30.0, 31.0, 32.0].map(float), pairs: [33.0, 34.0, 35.0, 36.0, 37.0].map(float) },
    }
}

/// What a row of metrics says of a micro-batch, from the numbers of its responses and pairs.
#[test]
fn a_row_is_the_means_by_hand() {
    let mut b = Builder::default();
    // Two responses of 3 and 2 tokens, and after an empty prompt two of 4 and 2, of which 3 and 1 are scored.
    for (id, (prompt, lens)) in [(0, (vec![5, 6], [3, 2])), (1, (vec![], [4, 2]))] {
        b.group(id, prompt).unwrap();
        lens.iter().for_each(|n| b.response(0, 7..7 + n).unwrap());
    }
    let (of_pairs, of_responses) = {
        let mut with = Builder::default();
        for (id, (prompt, lens)) in [(0, (vec![5, 6], [3, 2])), (1, (vec![], [4, 2]))] {
            with.group(id, prompt).unwrap();
            lens.iter().for_each(|n| with.response(0, 7..7 + n).unwrap());
            with.pair(1 - id as usize, id as usize, [3.0, 1.0][id as usize], id).unwrap();
        }
        (with.finish(16).unwrap(), b.finish(16).unwrap())
    };
    // Log-prob, entropy, hits and own loss of each response.
    let responses = [[-3.0, 1.0, 2.0, 0.5], [-2.0, 4.0, 1.0, 0.25], [-6.0, 16.0, 3.0, 1.5], [-1.0, 64.0, 0.0, 2.0]];
    let responses = responses.map(|[a, b, c, d]| [a, b, c, d, 0.0, 0.0]).concat();
    // Loss and both rewards; the first prefers the second response, the second the first.
    let pairs = [[0.5, 0.25, -0.75, 0.0, 0.0, 0.0, 0.0, 0.0], [1.5, -0.5, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]].concat();
    let row = |batch, loss_type, pairs: &[f64]| {
        let mut t = Totals::default();
        t.add(MicroBatch::outline(batch), &LossSpec::of(loss_type), &responses, pairs);
        assert_eq!((t.tokens, t.tokens_with_prompts, t.scored_tokens, t.responses), (13, 15, 9, 4));
        serde_json::Value::Object(t.to_json("eval_"))
    };
    assert_eq!(
        row(&of_pairs, LossType::Sigmoid, &pairs),
        json!({
            "eval_loss": (3.0 * 0.5 + 1.5) / 4.0,
            "eval_entropy": 85.0 / 9.0,
            // Of the chosen: 1 of 2, and 3 of 3.
            "eval_mean_token_accuracy": 4.0 / 5.0,
            "eval_rewards/chosen": -0.125,
            "eval_rewards/rejected": 0.125,
            "eval_rewards/accuracies": 0.5,
            "eval_rewards/margins": -0.25,
            "eval_logps/chosen": -4.0,
            "eval_logps/rejected": -2.0,
        })
    );
    assert_eq!(
        row(&of_responses, LossType::Sft, &[]),
        json!({"eval_loss": 4.25 / 9.0, "eval_entropy": 85.0 / 9.0, "eval_mean_token_accuracy": 6.0 / 9.0})
    );
}

/// A rank does not know the reference's log-probs of what others compute, but where losses compare a whole step: what all have to know
/// of a step does not read them.
#[test]
fn sums_of_a_step_do_not_read_the_reference() {
    let mut b = Builder::default();
    for id in 0..3 {
        b.group(id, 1..3 + id as u32).unwrap();
        for r in 0..3 {
            b.response(3 * id + r, 7..9 + r as u32).unwrap();
            b.score(r as f32 - 0.5).unwrap();
            b.role(Role::Own { desirable: 0.5, undesirable: 1.5 }).unwrap();
        }
        b.pair(0, 1, 1.5, 2 * id).unwrap();
        b.pair(2, 0, 0.5, 2 * id + 1).unwrap();
    }
    let unknown = b.finish(64).unwrap();
    let mut known = unknown.clone();
    known.set_ref_logps(|r| Ok(-3.5 - r.id as f64)).unwrap();
    known.outline_mut().pairs_mut().for_each(|p| p.ref_heads = [-1.0 - p.id as f64, -2.5]);
    let numbers =
        |of: u64, n: usize| -> Vec<f64> { (0..n as u64).map(|i| -(draw(3, of, i) as f64) / u64::MAX as f64).collect() };
    let responses = numbers(0, 9 * fusedpo::backend::RESPONSE_STATS);
    let pairs = numbers(1, 6 * fusedpo::backend::PAIR_STATS);
    let mut differ = 0;
    for loss_type in LossType::ALL {
        for (ld_alpha, use_weighting) in [(None, false), (Some(0.5), false), (None, true)] {
            let mut spec = LossSpec::of(*loss_type);
            (spec.ld_alpha, spec.use_weighting) = (ld_alpha, use_weighting);
            let [is, was] = [&known, &unknown].map(|mb| {
                let mut totals = Totals::proving();
                totals.add(mb.outline(), &spec, &responses, &pairs);
                totals
            });
            match spec.scope() {
                Scope::Group => assert_eq!(is, was, "{}", spec.name()),
                Scope::Step => differ += u64::from(is != was),
            }
        }
    }
    assert!(differ > 0, "the sums of judgements are over rewards");
}
