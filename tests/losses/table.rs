//! The table as such: what its rows must say, one order for the kernel, and combinations that mean nothing.

use crate::{loss, with};
use fusedpo::loss::{Divergence, LossSpec, LossType, MOST_PARAMS, Param, Rule, Term};

/// The kernel counts the losses in the order of its table, and has a function of the same name for each that sees a pair.
#[test]
fn the_kernel_has_the_same_losses_in_the_same_order() {
    let kernel = include_str!("../../kernels/losses.cuh");
    let table = kernel.split("#define LOSS_TABLE(PAIR, ELSE)").nth(1).unwrap().split("\n\n").next().unwrap();
    let rows: Vec<(&str, &str)> = table
        .lines()
        .filter_map(|line| line.trim_end_matches('\\').trim().strip_suffix(')')?.split_once('('))
        .collect();
    let ours: Vec<(&str, &str)> = LossType::EVERY
        .iter()
        .map(|l| (if matches!(l.def().rule, Rule::Pair(_)) { "PAIR" } else { "ELSE" }, l.def().name))
        .collect();
    assert_eq!(rows, ours);
    for (kind, name) in rows {
        let function = format!("PairLoss loss_{name}(const double* p, const Pair& x)");
        assert_eq!(kernel.contains(&function), kind == "PAIR", "{name}");
    }
}

/// A loss's parameters reach its kernel by their place: what is read there is what the row has.
#[test]
fn the_kernel_reads_as_many_parameters_as_a_row_has() {
    let kernel = include_str!("../../kernels/losses.cuh");
    for l in LossType::EVERY.iter().filter(|l| matches!(l.def().rule, Rule::Pair(_))) {
        let name = l.def().name;
        let body = kernel.split(&format!("PairLoss loss_{name}(")).nth(1).unwrap().split("\n}").next().unwrap();
        let body = body.split("; }\n").next().unwrap();
        let read = |i: usize| body.contains(&format!("p[{i}]"));
        for i in 0..MOST_PARAMS {
            assert_eq!(read(i), i < l.def().options.len(), "{name}: p[{i}]");
        }
    }
}

#[test]
fn rows_are_whole() {
    for (i, l) in LossType::EVERY.iter().enumerate() {
        let def = l.def();
        assert_eq!(*l as usize, i);
        assert_eq!(LossType::EVERY.iter().filter(|o| o.def().name == def.name).count(), 1, "{}", def.name);
        assert!(def.options.len() <= MOST_PARAMS, "{}", def.name);
        for text in [def.about, def.formula, def.source, def.guidance] {
            assert!(!text.is_empty() && text.trim() == text && !text.contains("  "), "{}: {text:?}", def.name);
        }
        assert!(def.guidance.ends_with('.') && !def.about.ends_with('.'), "{}", def.name);
        let with_defaults = LossSpec::of(*l);
        with_defaults.check().unwrap_or_else(|e| panic!("{}: {e}", def.name));
        for (i, (param, _)) in def.options.iter().enumerate() {
            assert!(def.options[..i].iter().all(|(other, _)| other != param), "{}: {param:?} twice", def.name);
            let bad = with_defaults.with(*param, f64::NAN).check().unwrap_err().to_string();
            assert!(bad.contains(&format!("`{}`", param.name())), "{bad}");
        }
    }
}

/// Every hyper-parameter belongs to a loss.
#[test]
fn parameters_are_used() {
    for param in Param::ALL {
        let used = LossType::EVERY.iter().any(|l| Term::of(*l).has(*param));
        assert!(used, "{}", param.name());
    }
}

#[test]
fn combinations_without_a_meaning_are_refused() {
    let refused = |spec: LossSpec, with: &str| {
        let error = spec.check().expect_err(&spec.name()).to_string();
        assert!(error.contains(with), "{}: {error}", spec.name());
    };
    let sum = |names: &[&str]| LossSpec::sum(&names.iter().map(|n| Term::of(loss(n))).collect::<Vec<_>>());
    // TRL's list, and what is like it; sft beside one of them.
    let allowed = "sigmoid sigmoid_norm hinge ipo ipo_sum exo_pair robust discopop odpo soft_label rdpo";
    for l in LossType::EVERY {
        let spec = with(LossSpec::of(*l), |s| s.divergence = Divergence::JsDivergence);
        assert_eq!(spec.check().is_ok(), allowed.split(' ').any(|name| name == l.def().name), "{l}");
        let spec = with(LossSpec::of(*l), |s| s.ld_alpha = Some(0.5));
        let pair = matches!(l.def().rule, Rule::Pair(_) | Rule::Step(_));
        assert_eq!(spec.check().is_ok(), pair && l.def().reference && l.def().name != "rpo", "{l}");
    }
    refused(with(sum(&["sigmoid", "simpo"]), |s| s.ld_alpha = Some(0.5)), "simpo");
    refused(with(sum(&["sigmoid", "rpo"]), |s| s.divergence = Divergence::ForwardKl), "rpo");
    with(sum(&["sigmoid", "sft"]), |s| {
        s.ld_alpha = Some(0.0);
        s.divergence = Divergence::ForwardKl
    })
    .check()
    .unwrap();
    refused(with(sum(&["plackett_luce"]), |s| s.use_weighting = true), "plackett_luce");
    refused(with(sum(&["sigmoid"]), |s| s.ld_alpha = Some(1.5)), "`ld_alpha` 1.5");
    refused(with(sum(&["sigmoid"]), |s| s.f_alpha = f64::NAN), "`f_alpha_divergence_coef`");
    refused(sum(&["sigmoid", "hinge", "sigmoid"]), "twice");
    refused(sum(&["exo_pair"]).label_smoothing(0.0), "exo_pair takes its logarithm");
    for name in ["sigmoid", "robust", "cpo"] {
        refused(sum(&[name]).label_smoothing(0.5), "`label_smoothing` 0.5");
        sum(&[name]).label_smoothing(0.499).check().unwrap();
    }
    refused(sum(&["alphapo"]).with(Param::AlphapoAlpha, 0.0), "`alphapo_alpha` 0");
    refused(sum(&["dpop"]).with(Param::DpopLambda, -1e-9), "`dpop_lambda`");
    refused(sum(&["simpo"]).beta(0.0), "`beta` 0");
    let weighed = |weight: f64| LossSpec::sum(&[Term { weight, ..Term::of(LossType::Sigmoid) }]);
    refused(weighed(-1.0), "`loss_weights`");
    refused(weighed(0.0), "nothing would be learned");
}
