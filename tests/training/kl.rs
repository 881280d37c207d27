//! The KL estimate against its definition: the mean of `log pi(y|x) - log pi_ref(y|x)` over responses drawn from the policy.

use crate::cli_common;
use crate::model_common;

use cli_common::*;
use fusedpo::data::shard::{Dataset, Split};
use fusedpo::model::{Model, ModelDir, generate};
use fusedpo::observe::Silent;
use fusedpo::train::kl::{KlOptions, KlPlan, estimate};
use fusedpo::train::team::Team;
use model_common::{Group, cpu64, pack, score};

/// Log-prob of each response after its prompt, the sum over its tokens.
fn sums(cli: &Cli, model: &str, texts: &[(Vec<u32>, Vec<u32>)]) -> Vec<f64> {
    let be = cpu64();
    let model = Model::load(&be, &ModelDir::open(&cli.path(model)).unwrap(), 64).unwrap();
    let group = |(prompt, response): &(Vec<u32>, Vec<u32>)| Group {
        prompt: prompt.clone(),
        responses: vec![response.clone()],
        ..Group::default()
    };
    let all: Vec<Group> = texts.iter().map(group).collect();
    score(&be, &model, &[pack(&all, 0)]).iter().map(|t| t.iter().sum()).collect()
}

#[test]
fn the_estimate_is_the_mean_gap_of_the_policys_own_samples() {
    let cli = Cli::with_data();
    cli.model("other", "qwen3");
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let be = cpu64();
    let policy = Model::load(&be, &ModelDir::open(&cli.path("m")).unwrap(), 64).unwrap();
    let options = KlOptions { samples: 12, max_new_tokens: 9, seed: 5 };
    let plan = KlPlan::new(&policy.config, 64, &data, &options).unwrap();
    let prompts: Vec<Vec<u32>> = (0..12).map(|g| data.group(g).prompt().to_vec()).collect();
    assert_eq!(plan.prompts, prompts, "the first of the data set");
    let o = &plan.options;
    assert_eq!(
        (o.temperature, o.top_p, o.num_return_sequences, o.seed),
        (1.0, 1.0, 1, 5),
        "drawn from the policy itself"
    );

    let drawn = generate(&be, &policy, &plan.prompts, &plan.options).unwrap();
    let texts: Vec<(Vec<u32>, Vec<u32>)> =
        prompts.into_iter().zip(drawn.into_iter().map(|mut d| d.remove(0).tokens)).collect();
    let (own, reference) = (sums(&cli, "m", &texts), sums(&cli, "other", &texts));
    let gaps: Vec<f64> = own.iter().zip(&reference).map(|(a, b)| a - b).collect();
    let n = gaps.len() as f64;
    let mean = gaps.iter().sum::<f64>() / n;
    let variance = gaps.iter().map(|g| (g - mean) * (g - mean)).sum::<f64>() / (n - 1.0);
    assert!(mean > 1.0, "two random models are nats apart: {mean}");

    let got = estimate(
        &be,
        policy,
        &ModelDir::open(&cli.path("other")).unwrap(),
        (&data, &plan, 64),
        Team::ALONE,
        &mut Silent,
    )
    .unwrap();
    let close = |got: f64, want: f64| assert!((got - want).abs() <= 1e-9 * want.abs(), "{got}, not {want}");
    close(got.mean, mean);
    close(got.half_width_95, 1.96 * (variance / n).sqrt());
    assert_eq!((got.samples, got.max_new_tokens), (12, 9));
}

/// Prompts that leave room for a response, in the order of the data, and no more than asked for.
#[test]
fn samples_have_room_for_a_response() {
    let cli = Cli::with_data();
    let data = Dataset::open(&cli.path("d"), Split::Train).unwrap();
    let policy = ModelDir::open(&cli.path("m")).unwrap().config().clone();
    let all: Vec<Vec<u32>> = (0..data.num_groups()).map(|g| data.group(g).prompt().to_vec()).collect();
    for (positions, asked, new) in [(64, 9, 9), (14, 9, 7), (13, 9, 6), (12, 9, 6), (12, 3, 3), (10, 1, 1)] {
        for samples in [1, 5, 1000] {
            let o = KlOptions { samples, max_new_tokens: asked, seed: 5 };
            let plan = KlPlan::new(&policy, positions, &data, &o).unwrap();
            assert_eq!(plan.options.max_new_tokens, new, "at most half of the positions");
            let want: Vec<_> = all.iter().filter(|p| p.len() + new <= positions).take(samples).cloned().collect();
            assert_eq!(plan.prompts, want, "{positions} {asked} {samples}");
        }
    }
    assert!(all.iter().any(|p| p.len() + 6 > 12), "some must have no room");
    assert!(KlPlan::new(&policy, 2, &data, &KlOptions { samples: 5, max_new_tokens: 9, seed: 5 }).is_none());
}

/// Of a model from itself it is 0, and from another one positive, in what `eval` prints.
#[test]
fn eval_prints_it_with_its_sign() {
    let cli = Cli::with_data();
    cli.model("other", "qwen3");
    let kl = |reference: &str| {
        let e = cli.ok(&format!("eval --model m --ref-model {reference} --data d --json")).json();
        let ci = &e["kl_ci95"];
        (e["kl"].as_f64().unwrap(), ci[0].as_f64().unwrap(), ci[1].as_f64().unwrap())
    };
    let (own, ..) = kl("m");
    assert!(own.abs() <= 1e-4, "rounding of f32 between drawing and scoring: {own}");
    let (mean, low, high) = kl("other");
    assert!(
        mean > 1.0 && low < mean && mean < high && (high - mean - (mean - low)).abs() <= 1e-9,
        "{mean} {low} {high}"
    );
}
