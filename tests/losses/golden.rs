//! TRL's own numbers (`golden/losses.json`, made by scripts/make_loss_golden.py): through the backend's op, token by token.

use fusedpo::backend::cpu::Cpu;
use fusedpo::backend::{AttnShape, Device, Loss, LossOps, PAIR_STATS, RESPONSE_STATS};
use fusedpo::batch::{Builder, Chunk, MicroBatch};
use fusedpo::choice::Choice;
use fusedpo::loss::{Divergence, LossSpec, Param, Scales, Scope, Term};
use serde_json::Value;

/// Log-probs of chosen responses, then of rejected ones, token by token.
struct Batch {
    policy: Vec<Vec<f64>>,
    reference: Vec<Vec<f64>>,
    log_sum_p2: Vec<Vec<f64>>,
}

fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn sum(tokens: &[f64]) -> f64 {
    tokens.iter().sum()
}

impl Batch {
    fn read(v: &Value) -> Self {
        let rows = |name: &str| v[name].as_array().unwrap().iter().map(numbers).collect();
        Self { policy: rows("policy"), reference: rows("reference"), log_sum_p2: rows("log_sum_p2") }
    }

    fn pairs(&self) -> usize {
        self.policy.len() / 2
    }

    /// Its responses in the order of a micro-batch of pairs: chosen, rejected, chosen, rejected.
    fn order(&self) -> impl Iterator<Item = usize> {
        let pairs = self.pairs();
        (0..pairs).flat_map(move |p| [p, p + pairs])
    }

    fn in_order(&self, rows: &[Vec<f64>]) -> Vec<f64> {
        self.order().flat_map(|r| rows[r].iter().copied()).collect()
    }

    fn micro(&self) -> MicroBatch {
        let mut b = Builder::default();
        for p in 0..self.pairs() as u64 {
            b.group(p, [1]).unwrap();
            for r in [p, p + self.pairs() as u64] {
                b.response(r, self.policy[r as usize].iter().map(|_| 2)).unwrap();
            }
            b.pair(0, 1, 1.0, p).unwrap();
        }
        let slots = b.used();
        let mut m = b.finish(slots).unwrap();
        m.set_ref_logps(|r| Ok(sum(&self.reference[r.id as usize]))).unwrap();
        for pair in m.outline_mut().pairs_mut() {
            let [w, l] = [pair.id as usize, pair.id as usize + self.pairs()];
            let shared = self.policy[w].len().min(self.policy[l].len());
            pair.ref_heads = [w, l].map(|r| sum(&self.reference[r][..shared]));
        }
        m
    }

    /// The value of `spec`, a mean over pairs or chosen tokens, and its derivative by each response's first token.
    fn loss(&self, spec: &LossSpec) -> (f64, Vec<f64>) {
        let (be, micro) = (Cpu::<f64>::new().unwrap(), self.micro());
        let heads = AttnShape { heads: 1, kv_heads: 1, head_dim: 1 };
        let mut batch = be.new_batch(micro.capacity(), heads).unwrap();
        be.load_batch(&mut batch, &micro).unwrap();
        let (n, pairs) = (micro.predictions().len(), micro.pairs().len());
        let chunk = Chunk { responses: 0..2 * pairs, predictions: 0..n, pairs: 0..pairs };
        let tokens: usize = self.policy[..pairs].iter().map(Vec::len).sum();
        let scales = Scales { pairs: 1.0 / pairs as f64, tokens: 1.0 / tokens as f64, units: f64::NAN };
        let [logp, p2] = [&self.policy, &self.log_sum_p2].map(|rows| self.in_order(rows));
        let other = vec![0.0; n];
        let (mut coef, mut out) = (vec![f64::NAN; n], vec![f64::NAN; pairs * PAIR_STATS]);
        let mut responses = vec![f64::NAN; 2 * pairs * RESPONSE_STATS];
        be.loss(Loss {
            coef: &mut coef,
            responses: &mut responses,
            pairs: &mut out,
            logp: &logp,
            entropy: &other,
            hit: &other,
            log_sum_p2: &p2,
            batch: &batch,
            chunk: &chunk,
            spec,
            scales,
            given: false,
        })
        .unwrap();
        let value = out.chunks(PAIR_STATS).map(|p| scales.pairs * p[0] + scales.tokens * p[3]).sum();
        let firsts = micro.responses().iter().map(|r| r.predictions.start as usize).collect::<Vec<_>>();
        self.check_tokens(spec, &coef, &firsts);
        let mut by = vec![0.0; 2 * pairs];
        self.order().zip(firsts).for_each(|(r, first)| by[r] = coef[first]);
        (value, by)
    }

    /// Every token of a response has the coefficient of the first; under LD-DPO those beyond the shorter response less.
    fn check_tokens(&self, spec: &LossSpec, coef: &[f64], firsts: &[usize]) {
        if spec.terms().len() > 1 {
            return;
        }
        for (r, first) in self.order().zip(firsts) {
            let other = &self.policy[(r + self.pairs()) % self.policy.len()];
            for t in 0..self.policy[r].len() {
                let by = if t < other.len() { 1.0 } else { spec.ld_alpha.unwrap_or(1.0) };
                let (got, want) = (coef[first + t], by * coef[*first]);
                assert!((got - want).abs() <= 1e-15 * want.abs(), "token {t} of response {r}: {got}, not {want}");
            }
        }
    }
}

/// A case's loss: option by option, none left out.
fn spec(case: &Value) -> LossSpec {
    let names = case["loss"].as_array().unwrap();
    let terms: Vec<Term> = names
        .iter()
        .zip(numbers(&case["weights"]))
        .map(|(name, weight)| Term { weight, ..Term::of(crate::loss(name.as_str().unwrap())) })
        .collect();
    // TRL's defaults where ours are others.
    let mut spec = LossSpec::sum(&terms).beta(0.1);
    if names.iter().any(|n| n == "cpo") {
        spec = spec.with(Param::CpoAlpha, 0.0);
    }
    for (name, value) in case["options"].as_object().unwrap() {
        match (name.as_str(), value.as_f64()) {
            ("f_divergence_type", _) => {
                let named = |d: &&Divergence| d.name() == value.as_str().unwrap();
                spec.divergence = *Divergence::ALL.iter().find(named).unwrap();
            }
            ("f_alpha_divergence_coef", Some(x)) => spec.f_alpha = x,
            ("ld_alpha", x) => spec.ld_alpha = x,
            ("use_weighting", _) => spec.use_weighting = value.as_bool().unwrap(),
            ("alpha", Some(x)) => spec = spec.with(Param::AlphapoAlpha, x),
            (other, Some(x)) => spec = spec.with(Param::named(other).unwrap_or_else(|| panic!("{other}")), x),
            (other, None) => panic!("{other}"),
        }
    }
    spec
}

#[test]
fn losses_and_gradients_are_those_of_trl() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/losses.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let batches: Vec<Batch> = golden["batches"].as_array().unwrap().iter().map(Batch::read).collect();
    let (mut worst, mut compared) = (0f64, 0);
    for case in golden["cases"].as_array().unwrap() {
        let (batch, spec) = (&batches[case["batch"].as_u64().unwrap() as usize], spec(case));
        spec.check().unwrap();
        assert_eq!(spec.scope(), Scope::Group);
        let (value, by) = batch.loss(&spec);
        let want = case["by"].as_array().unwrap().iter().flat_map(|side| side.as_array().unwrap());
        for (got, want) in [(value, &case["value"])].into_iter().chain(by.into_iter().zip(want)) {
            // Where TRL overflows we do not.
            assert!(got.is_finite(), "{case}");
            if let Some(want) = want.as_f64() {
                let off = (got - want).abs() / want.abs().max(1e-12);
                assert!(off < 1e-9, "{got}, TRL says {want}: {case}");
                (worst, compared) = (worst.max(off), compared + 1);
            }
        }
    }
    assert!(compared > 1000, "{compared}");
    println!("{compared} numbers, at most {worst:.1e} apart");
}

/// What TRL names and we do not have would be missed above.
#[test]
fn every_loss_that_trl_has_is_compared() {
    let text = include_str!("../golden/losses.json");
    let trl = "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard apo_zero apo_down discopop sigmoid_norm cpo simpo \
               alphapo orpo";
    for name in trl.split_whitespace() {
        assert!(text.contains(&format!("\"loss\": [\"{name}\"]")), "{name}");
    }
    assert!(text.contains("\"loss\": [\"sft\", \"sigmoid\"]"));
    for d in Divergence::ALL.iter().filter(|d| **d != Divergence::ReverseKl) {
        assert!(text.contains(&format!("\"{}\"", d.name())), "{d}");
    }
}
