//! `fusedpo loss`: every loss of the table at given numbers, and what the pages say of it.

use crate::cli_common;

use cli_common::*;
use fusedpo::choice::Choice;
use fusedpo::loss::{Given, Judged, LOSSES, Lengths, LossDef, LossSpec, LossType, Rule, Scope, explain, notation};
use fusedpo::model::sample::uniform;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::f64::consts::LN_2;
use std::path::Path;
use std::process::Command;

/// A number in `[low, high)`, the `k`-th of stream `stream`.
fn draw(stream: u64, k: u64, low: f64, high: f64) -> f64 {
    low + (high - low) * uniform(14, stream, k)
}

/// A pair of the size of real ones, with all that `def` reads.
fn random_pair(def: &LossDef, stream: u64) -> Given {
    let at = |k, low, high| Some(draw(stream, k, low, high));
    let whole = |k| at(k, 1.0, 60.0).map(f64::floor);
    let reference = |k| def.reference.then(|| draw(stream, k, -90.0, -20.0));
    Given {
        chosen: at(0, -90.0, -20.0),
        rejected: at(1, -90.0, -20.0),
        ref_chosen: reference(2),
        ref_rejected: reference(3),
        chosen_len: whole(4),
        rejected_len: whole(5),
        chosen_score: at(6, 5.0, 9.0),
        rejected_score: at(7, 0.0, 4.9),
        kl: def.rule_is_judged().then(|| draw(stream, 8, 0.0, 3.0)),
        ..Given::default()
    }
}

trait Kind {
    fn rule_is_judged(&self) -> bool;
}

impl Kind for LossDef {
    fn rule_is_judged(&self) -> bool {
        matches!(self.rule, Rule::Judged(_))
    }
}

fn as_args(given: &Given) -> String {
    let all = [
        ("chosen", given.chosen),
        ("rejected", given.rejected),
        ("ref-chosen", given.ref_chosen),
        ("ref-rejected", given.ref_rejected),
        ("chosen-len", given.chosen_len),
        ("rejected-len", given.rejected_len),
        ("chosen-score", given.chosen_score),
        ("rejected-score", given.rejected_score),
        ("kl", given.kl),
    ];
    all.iter().filter_map(|(name, x)| Some(format!(" --{name} {}", (*x)?))).collect()
}

fn value(spec: &LossSpec, given: &Given) -> f64 {
    explain(spec, given).unwrap_or_else(|e| panic!("{e}: {given:?}")).loss
}

#[track_caller]
fn near(what: &str, got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{what}: got {got}, want {want}");
}

/// By hand: at equal log-ratios, and at a margin of 3.
#[test]
fn values_by_hand() {
    let cli = Cli::new();
    let at = |args: &str| {
        let v = cli.ok(&format!("loss explain {args} --json")).json();
        ["loss", "d_chosen", "d_rejected"].map(|key| v[key].as_f64().unwrap_or_else(|| panic!("{key}: {v}")))
    };
    let equal = "--chosen -40 --rejected -52 --ref-chosen -42 --ref-rejected -54";
    let three = "--chosen -40 --rejected -52 --ref-chosen -42 --ref-rejected -51";
    let lengths = "--chosen-len 20 --rejected-len 25";
    let (s, e) = (1.0 / (1.0 + 0.3_f64.exp()), (-0.3_f64).exp());
    // Where the policy is the reference; without one, equal sums and equal means.
    let zero = "--chosen -42 --rejected -54 --ref-chosen -42 --ref-rejected -54";
    let (sums, means) = ("--chosen -42 --rejected -42", "--chosen -20 --rejected -25");
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let softplus = |x: f64| x.exp().ln_1p();
    let odds = 1.0 / (1.0 - (-1.0_f64).exp());
    let exo = [0.999_f64.ln(), 0.001_f64.ln()];
    for (args, want) in [
        (format!("sigmoid {equal}"), [LN_2, -0.05, 0.05]),
        (format!("sigmoid {equal} --beta 0.5 --label-smoothing 0.2"), [LN_2, -0.15, 0.15]),
        (format!("sigmoid {three}"), [e.ln_1p(), -0.1 * s, 0.1 * s]),
        // The order of a list is that of a pair.
        (format!("plackett_luce {three}"), [e.ln_1p(), -0.1 * s, 0.1 * s]),
        (format!("hinge {three}"), [0.7, -0.1, 0.1]),
        (format!("hinge {three} --beta 0.4"), [0.0, 0.0, 0.0]),
        // 2/20 - (-1/25) - 5 = -4.86
        (format!("ipo {three} {lengths}"), [23.6196, -0.486, 0.3888]),
        ("sft --chosen -42.5 --chosen-len 20".into(), [2.125, -0.05, 0.0]),
        (format!("sigmoid,sft {equal} {lengths} --loss-weights 2,0.5"), [2.0 * LN_2 + 1.0, -0.125, 0.1]),
        // Forward KL: 1 - exp(-2) of both.
        (
            format!("sigmoid {equal} --f-divergence-type forward_kl"),
            [LN_2, -0.05 * (-2.0_f64).exp(), 0.05 * (-2.0_f64).exp()],
        ),
        (format!("robust {zero}"), [LN_2, -0.0625, 0.0625]),
        (format!("ipo_sum {three}"), [4.0, -4.0, 4.0]),
        (
            format!("exo_pair {zero}"),
            [-LN_2 - (exo[0] + exo[1]) / 2.0, 0.025 * (exo[1] - exo[0]), 0.025 * (exo[0] - exo[1])],
        ),
        (format!("bco_pair {zero}"), [2.0 * LN_2, -0.05, 0.05]),
        (format!("nca_pair {zero}"), [2.0 * LN_2, -0.025, 0.025]),
        (format!("sppo_hard {zero}"), [50.0, -10.0, 10.0]),
        (format!("apo_zero {zero}"), [1.0, -0.025, 0.025]),
        (format!("apo_down {zero}"), [1.0, 0.0, 0.025]),
        (format!("discopop {zero}"), [(1.0 + LN_2) / 2.0, 0.425 - LN_2 / 2.0, LN_2 / 2.0 - 0.425]),
        (format!("sigmoid_norm {zero} {lengths}"), [LN_2, -0.125, 0.1]),
        (format!("rpo {zero} {lengths}"), [LN_2 + 2.1, -0.1, 0.05]),
        (format!("dpop {equal}"), [LN_2, -0.15, 0.15]),
        (format!("odpo {zero} --chosen-score 3 --rejected-score 2"), [LN_2, -0.05, 0.05]),
        (format!("soft_label {zero} --chosen-score 3 --rejected-score 3"), [LN_2, 0.0, 0.0]),
        (format!("rdpo {zero} {lengths}"), [softplus(0.25), -0.1 * sigmoid(0.25), 0.1 * sigmoid(0.25)]),
        (format!("simpo {means} {lengths}"), [softplus(0.5), -0.005 * sigmoid(0.5), 0.004 * sigmoid(0.5)]),
        (
            format!("alphapo {means} {lengths}"),
            [softplus(0.5), -0.005 * sigmoid(0.5) * 0.25_f64.exp(), 0.004 * sigmoid(0.5) * 0.25_f64.exp()],
        ),
        (format!("cpo {sums} --chosen-len 20"), [LN_2 + 2.1, -0.1, 0.05]),
        (format!("orpo {means} {lengths}"), [1.0 + 0.1 * LN_2, -0.05 - 0.0025 * odds, 0.002 * odds]),
        (format!("slic {sums}"), [5.2, -1.1, 1.0]),
        (format!("unlikelihood {sums}"), [37.8, -1.0, 0.1]),
    ] {
        let got = at(&args);
        for (i, (got, want)) in got.into_iter().zip(want).enumerate() {
            near(&format!("{args}: {i}"), got, want, 1e-14);
        }
    }
}

#[test]
fn a_list_of_responses() {
    let cli = Cli::new();
    let at = |logps: &str, refs: &str| {
        cli.ok(&format!("loss explain plackett_luce --beta 0.5 --logps {logps} --ref-logps {refs} --json")).json()
    };
    // Equal log-ratios: K! orders are alike.
    for k in 1..=8 {
        let refs: Vec<String> = (0..k).map(|i| format!("{}", -10 - i)).collect();
        let v = at(&refs.join(","), &refs.join(","));
        let orders: f64 = (1..=k).map(f64::from).product();
        near(&format!("{k} alike"), v["loss"].as_f64().unwrap(), orders.ln(), 1e-14);
        let d: Vec<f64> = v["d_logps"].as_array().unwrap().iter().map(|d| d.as_f64().unwrap()).collect();
        assert_eq!(d.len(), k as usize);
        // The i-th is preferred once, and stands in the sums of its own and all before it.
        for (i, d) in d.iter().enumerate() {
            let mut want: f64 = (0..=i).map(|j| 0.5 / f64::from(k - j as i32)).sum();
            want -= 0.5;
            near(&format!("{k} alike, {i}"), *d, want, 1e-14);
        }
        assert!(v.get("d_chosen").is_none() && v["rewards"].as_array().unwrap().len() == k as usize, "{v}");
    }
    let (two, pair) = (
        at("-40,-52", "-42,-51"),
        cli.ok(
            "loss explain sigmoid --beta 0.5 --chosen -40 --rejected -52 --ref-chosen -42 --ref-rejected -51 --json",
        ),
    );
    let pair = pair.json();
    near("of two", two["loss"].as_f64().unwrap(), pair["loss"].as_f64().unwrap(), 1e-15);
    near("of two", two["d_logps"][1].as_f64().unwrap(), pair["d_rejected"].as_f64().unwrap(), 1e-15);
}

/// Rewards as the metrics have them: beta times the log-ratio, or its mean where the loss is of means.
#[test]
fn rewards_and_margin() {
    let cli = Cli::new();
    let at = |args: &str| {
        let v = cli.ok(&format!("loss explain {args} --json")).json();
        [&v["rewards"]["chosen"], &v["rewards"]["rejected"], &v["margin"]].map(|x| x.as_f64().unwrap())
    };
    let three = "--chosen -40 --rejected -52 --ref-chosen -42 --ref-rejected -51 --chosen-len 20 --rejected-len 25";
    let means = "--chosen -40 --rejected -55 --chosen-len 20 --rejected-len 25";
    for (args, want) in [
        (format!("sigmoid {three}"), [0.2, -0.1, 0.3]),
        (format!("ipo {three} --beta 0.5"), [1.0, -0.5, 1.5]),
        (format!("sigmoid_norm {three}"), [0.5, -0.2, 0.7]),
        (format!("simpo {means} --beta 2"), [-4.0, -4.4, 0.4]),
    ] {
        at(&args).into_iter().zip(want).for_each(|(got, want)| near(&args, got, want, 1e-14));
    }
    let ran = cli.ok("loss explain sft --chosen -40 --chosen-len 20 --json").json();
    assert!(ran["rewards"].get("rejected").is_none() && ran.get("margin").is_none(), "{ran}");
    let list = "loss explain plackett_luce --logps -3,-4 --ref-logps -5,-1 --json";
    let [one, two] = ["", " --loss-weights 2"].map(|weights| cli.ok(&format!("{list}{weights}")).json());
    assert_eq!(one["rewards"], json!([0.2, -0.30000000000000004]));
    for v in [&one["loss"], &one["d_logps"][0], &one["d_logps"][1]].iter().zip([
        &two["loss"],
        &two["d_logps"][0],
        &two["d_logps"][1],
    ]) {
        near("twice", v.1.as_f64().unwrap(), 2.0 * v.0.as_f64().unwrap(), 1e-15);
    }
}

#[test]
fn the_shape_of_the_json() {
    let cli = Cli::new();
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let v = cli.ok(&format!(
        "loss explain sigmoid,sft --beta 0.2 --json {}",
        as_args(&random_pair(LossType::Sigmoid.def(), 1))
    ));
    let v = v.json();
    assert_eq!(keys(&v), ["name", "loss", "d_chosen", "d_rejected", "rewards", "margin", "f_divergence_type", "terms"]);
    assert_eq!((&v["name"], &v["terms"][1]["name"]), (&json!("sigmoid,sft"), &json!("sft")));
    assert_eq!(v["terms"][0]["options"], json!({"beta": 0.2, "label_smoothing": 0.0}));
    let rewards = ["chosen", "rejected"].map(|k| v["rewards"][k].as_f64().unwrap());
    assert_eq!(v["margin"].as_f64(), Some(rewards[0] - rewards[1]));
    for key in ["loss", "d_chosen", "d_rejected"] {
        let parts: f64 = (0..2).map(|i| v["terms"][i][key].as_f64().unwrap()).sum();
        near(key, v[key].as_f64().unwrap(), parts, 1e-15);
    }
    // Without numbers: the rows of the table, at the values asked for.
    let v = cli.ok("loss explain ipo --beta 0.3 --json").json();
    assert_eq!(v["terms"][0]["options"][0]["value"], json!(0.3));
    assert_eq!(v["terms"][0]["options"][0]["default"], json!(0.1));
    let rows = cli.ok("loss list --json").json();
    let names: Vec<&str> = rows.as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, LOSSES.iter().map(|d| d.name).collect::<Vec<_>>());
    for (row, def) in rows.as_array().unwrap().iter().zip(LOSSES) {
        assert_eq!(row["reference"], json!(def.reference));
        assert_eq!(row["scope"] == "step", def.rule.scope() == Scope::Step);
        let options = row["options"].as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap());
        assert!(options.eq(def.options.iter().map(|(p, _)| p.name())), "{row}");
    }
    let listed = cli.ok("loss list").out;
    assert_eq!(listed.lines().count(), LOSSES.len());
    for (line, def) in listed.lines().zip(LOSSES) {
        assert!(line.starts_with(def.name) && line.contains(def.about), "{line}");
        assert_eq!(line.contains("whole step"), def.rule.scope() == Scope::Step, "{line}");
        assert!(
            def.options.iter().all(|(p, x)| line.contains(&format!("--{} {x}", p.name().replace('_', "-")))),
            "{line}"
        );
    }
}

/// Every loss of the table by the program: finite, and what the library gives, to the bit; its text names what it should.
#[test]
fn every_loss_is_explained() {
    let cli = Cli::new();
    for loss in LossType::EVERY {
        let def = loss.def();
        let given = random_pair(def, 2);
        let want = explain(&LossSpec::of(*loss), &given).unwrap();
        let args = as_args(&given);
        let v = cli.ok(&format!("loss explain {}{args} --json", def.name)).json();
        let got = ["loss", "d_chosen", "d_rejected"].map(|key| v[key].as_f64());
        assert_eq!(got, [Some(want.loss), Some(want.d[0]), Some(want.d[1])], "{}{args}", def.name);
        let text = cli.ok(&format!("loss explain {}{args}", def.name)).out;
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [def.about, def.formula, def.source] {
            let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(flat.contains(&part), "{}: `{part}` is not in\n{text}", def.name);
        }
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }
}

/// Gradients by central differences, and which inputs count.
#[test]
fn gradients_and_what_is_read() {
    for (n, loss) in LossType::EVERY.iter().enumerate() {
        let (def, spec) = (loss.def(), LossSpec::of(*loss));
        let mut by: [bool; 8] = [false; 8];
        for round in 0..20 {
            let given = random_pair(def, 100 * n as u64 + round);
            let at = explain(&spec, &given).unwrap();
            type Field = fn(&mut Given) -> &mut Option<f64>;
            let fields: [(Field, f64); 8] = [
                (|g| &mut g.chosen, 1e-5),
                (|g| &mut g.rejected, 1e-5),
                (|g| &mut g.ref_chosen, 0.5),
                (|g| &mut g.ref_rejected, 0.5),
                (|g| &mut g.chosen_len, 1.0),
                (|g| &mut g.rejected_len, 1.0),
                (|g| &mut g.chosen_score, 0.5),
                (|g| &mut g.rejected_score, 0.5),
            ];
            for (i, (field, step)) in fields.into_iter().enumerate() {
                if field(&mut given.clone()).is_none() {
                    continue;
                }
                let moved = |by: f64| {
                    let mut given = given.clone();
                    *field(&mut given) = field(&mut given).map(|x| x + by);
                    value(&spec, &given)
                };
                let (up, down) = (moved(step), if i < 4 { moved(-step) } else { at.loss });
                by[i] |= up != down;
                if i < 2 {
                    let what = format!("{}: d {i} at {given:?}", def.name);
                    near(&what, at.d[i], (up - down) / (2.0 * step), 2e-6);
                }
            }
        }
        let lengths = match def.lengths {
            Lengths::Unread => [false, false],
            Lengths::Chosen => [true, false],
            Lengths::Both => [true, true],
        };
        assert_eq!(by[4..6], lengths, "{}: lengths", def.name);
        assert_eq!(by[6..8], [def.scores; 2], "{}: scores", def.name);
        assert!(by[0] && by[1] == (*loss != LossType::Sft), "{}: {by:?}", def.name);
        assert_eq!(by[2] || by[3], def.reference, "{}: reference", def.name);
    }
}

/// A pair is two judgements, and the loss their mean, as in a step of the two.
#[test]
fn judgements_are_a_mean_of_two() {
    for loss in LossType::EVERY {
        let Rule::Judged(f) = loss.def().rule else { continue };
        let (spec, given) = (LossSpec::of(*loss), random_pair(loss.def(), 3));
        let at = explain(&spec, &given).unwrap();
        let judged = |desirable, policy: Option<f64>, reference: Option<f64>| Judged {
            desirable,
            policy: policy.unwrap(),
            reference: reference.unwrap(),
        };
        let good = judged(true, given.chosen, given.ref_chosen);
        let bad = judged(false, given.rejected, given.ref_rejected);
        let both = f(&spec.terms()[0].params, &[good, bad], given.kl.unwrap());
        near(loss.def().name, at.loss, (both[0][0] + both[1][0]) / 2.0, 1e-15);
        near(loss.def().name, at.d[1], both[1][1] / 2.0, 1e-15);
        let without = Given { kl: None, ..given.clone() };
        let zero = Given { kl: Some(0.0), ..given };
        assert_eq!(explain(&spec, &without).unwrap(), explain(&spec, &zero).unwrap());
        let below = Given { kl: Some(-0.5), ..zero };
        let why = explain(&spec, &below).unwrap_err().to_string();
        assert_eq!(why, "`kl` -0.5: must be a finite number, 0 or more");
    }
}

/// Every letter of a formula has a meaning, is an option, or is made in the formula itself.
#[test]
fn formulas_have_no_unknown_letters() {
    for def in LOSSES {
        let letters: BTreeSet<&str> = notation(def).into_iter().map(|(letter, _)| letter).collect();
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '|';
        for w in def.formula.split(|c| !word(c)).filter(|w| w.starts_with(|c: char| c.is_alphabetic() || c == '|')) {
            let made = [" = ", "(x) = ", ": ", ", "].iter().any(|is| def.formula.contains(&format!("{w}{is}")));
            // Words of prose are longer, but for these.
            let prose = w.len() > 2 && !w.contains('|') && !w.contains('_')
                || ["a", "an", "as", "at", "by", "in", "is", "no", "of", "on", "or", "to", "th", "x", "k", "j"]
                    .contains(&w);
            let option = def.options.iter().any(|(p, _)| p.name() == w);
            assert!(letters.contains(w) || made || prose || option, "{}: what is `{w}` in {}?", def.name, def.formula);
        }
    }
    let of =
        |name: &str| notation(LossType::named(name).unwrap().def()).into_iter().map(|(l, _)| l).collect::<Vec<_>>();
    assert_eq!(of("sigmoid"), ["w", "l", "rw", "rl", "dw", "dl", "h", "ls", "e"]);
}

#[test]
fn what_is_missing_ignored_or_out_of_range() {
    let cli = Cli::new();
    let sums = "--chosen -40 --rejected -52";
    let refs = "--ref-chosen -42 --ref-rejected -51";
    for (args, want) in [
        (format!("sigmoid {sums}"), "sigmoid also needs --ref-chosen, --ref-rejected"),
        ("sigmoid --chosen-len 3".into(), "sigmoid also needs --chosen, --rejected, --ref-chosen, --ref-rejected"),
        (format!("ipo {sums} {refs}"), "ipo also needs --chosen-len, --rejected-len"),
        (format!("ipo {sums} {refs} --chosen-len 4"), "ipo also needs --rejected-len"),
        ("sft --chosen -4".into(), "sft also needs --chosen-len"),
        (format!("odpo {sums} {refs} --rejected-score 1"), "odpo also needs --chosen-score"),
        (format!("odpo {sums} {refs} --chosen-score 1"), "odpo also needs --rejected-score"),
        (format!("sigmoid,sft {sums} {refs}"), "sigmoid,sft also needs --chosen-len"),
        (
            format!("sigmoid {sums} {refs} --chosen-len 0"),
            "--chosen-len 0: must be a number of tokens: whole, 1 or more",
        ),
        (
            format!("sigmoid {sums} {refs} --rejected-len 2.5"),
            "--rejected-len 2.5: must be a number of tokens: whole, 1 or more",
        ),
        (format!("sigmoid {sums} --ref-chosen nan --ref-rejected -1"), "--ref-chosen NaN: must be a finite number"),
        (format!("sigmoid {refs} --chosen -inf --rejected -1"), "--chosen -inf: must be a finite number"),
        (format!("sigmoid {refs} --chosen 1e400 --rejected -1"), "--chosen inf: must be a finite number"),
        (format!("sigmoid {sums} {refs} --chosen-score inf"), "--chosen-score inf: must be a finite number"),
        (format!("sigmoid {sums} {refs} --beta -0.1"), "--beta -0.1: must be a finite number greater than 0"),
        ("sigmoid --beta 0".into(), "--beta 0: must be a finite number greater than 0"),
        ("sigmoid --label-smoothing 0.5".into(), "--label-smoothing 0.5: must be in [0, 0.5)"),
        ("sigmoid --loss-weights 1,2".into(), "--loss-weights: 2 weights for 1 losses; give one each"),
        (
            "sft --f-divergence-type js_divergence".into(),
            "--f-divergence-type: not with --loss-type sft: it has no reference",
        ),
        ("plackett_luce --logps -1,-2".into(), "--logps names 2 responses, --ref-logps 0: give both, as many of each"),
        (
            "plackett_luce --logps -1,-2 --ref-logps -1".into(),
            "--logps names 2 responses, --ref-logps 1: give both, as many of each",
        ),
        ("plackett_luce --logps -1,-inf --ref-logps -1,-2".into(), "--logps -inf: must be a finite number"),
        (
            "plackett_luce --logps -1 --ref-logps -1 --chosen -1".into(),
            "--chosen: not with --logps, which names every response",
        ),
        (
            "sigmoid --logps -1,-2 --ref-logps -1,-2".into(),
            "--logps: sigmoid reads no lists; give --chosen and --rejected",
        ),
        (
            "ipo --chosen 1e200 --rejected -1 --ref-chosen -1 --ref-rejected -1 --chosen-len 1 --rejected-len 1".into(),
            "ipo: no finite value in f64 at these log-probs",
        ),
    ] {
        cli.bad(&format!("loss explain {args}"), 2, want);
    }
    for (args, part) in [
        ("hinge --label-smoothing 0.1", "--label-smoothing: not defined for --loss-type hinge"),
        ("nonsense", "invalid value 'nonsense'"),
        ("sigmoid hinge", "unexpected argument 'hinge'"),
        ("sigmoid,", "a value is required"),
        ("", "required arguments were not provided"),
        ("sigmoid --logps -1 --logps -2", "cannot be used multiple times"),
        ("sigmoid --chosen --json", "invalid value '--json'"),
        ("sigmoid --chosen one", "invalid value 'one'"),
        ("sigmoid,hinge,sigmoid", "sigmoid stands twice"),
        ("sigmoid --kl 1 --chosen -1", "--kl: sigmoid reads no judgements"),
    ] {
        let ran = cli.run(&format!("loss explain {args}"));
        assert!(ran.code == 2 && ran.err.contains(part) && ran.err.lines().count() == 1, "{args}: {ran:?}");
    }
}

/// Large margins of either sign, lengths of 1, equal log-probs: finite, or one line.
#[test]
fn extreme_numbers_are_finite_or_refused() {
    for loss in LossType::EVERY {
        let spec = LossSpec::of(*loss);
        for (chosen, rejected) in [(-1e4, -1e-3), (-1e-3, -1e4), (-1.0, -1.0), (-2e4, -2e4), (-1e-9, -1e-9)] {
            let given = Given {
                chosen: Some(chosen),
                rejected: Some(rejected),
                chosen_len: Some(1.0),
                rejected_len: Some(1.0),
                chosen_score: Some(2.0),
                rejected_score: Some(1.0),
                ..Given::default()
            };
            let reference = |x: f64| loss.def().reference.then_some(x);
            let given = Given { ref_chosen: reference(-1.0), ref_rejected: reference(-1.0), ..given };
            match explain(&spec, &given) {
                Ok(at) => assert!(at.loss.is_finite() && at.d.iter().all(|d| d.is_finite())),
                // exp(1000) is no number.
                Err(e) => assert!(e.to_string().contains("no finite value") && *loss != LossType::Sigmoid, "{e}"),
            }
        }
    }
}

/// README.md and docs/losses.md are what the table says; the pictures too.
#[test]
fn pages_and_pictures_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var("FUSEDPO_PYTHON").unwrap_or_else(|_| "python3".into());
    if !Command::new(&python).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return println!("skipped: pages and pictures of losses (no python3; FUSEDPO_PYTHON names one)");
    }
    for script in ["loss_docs.py", "plot_losses.py"] {
        let args = ["-B", &format!("scripts/{script}"), "--check", "--fusedpo", env!("CARGO_BIN_EXE_fusedpo")];
        let ran = Command::new(&python).args(args).current_dir(root).output().unwrap();
        assert!(ran.status.success(), "{script}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    // Whoever adds a loss says when to take it.
    let page = std::fs::read_to_string(root.join("docs/losses.md")).unwrap();
    let by_hand = page.split("<!-- losses: ").next().unwrap();
    let missing = LOSSES.iter().map(|d| d.name).filter(|name| !by_hand.contains(&format!("`{name}`")));
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "not in the table of data in docs/losses.md");
}

/// The same facts of a pair can be given to every loss: one without a reference reads none of them.
#[test]
fn a_reference_that_is_not_read_changes_nothing() {
    let pair = "--chosen -40 --rejected -52 --chosen-len 10 --rejected-len 12 --json";
    for name in ["simpo", "alphapo", "cpo", "orpo", "slic", "unlikelihood", "sft", "cpo,sft"] {
        let without = Cli::new().ok(&format!("loss explain {name} {pair}")).out;
        let with = Cli::new().ok(&format!("loss explain {name} {pair} --ref-chosen -42 --ref-rejected -51")).out;
        assert_eq!(with, without, "{name}");
    }
}
