//! Sums of metrics: the parts of a batch merged give the batch, field by field.

use fusedpo::train::metrics::Totals;

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
            off_reference: n + 17,
        }
    };
    let mut got = part(100.0);
    got.merge(part(1000.0));
    let want = Totals { non_finite: vec![116, 1016], ..part_sum(100.0, 1000.0) };
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
        off_reference: count(17),
    }
}
