//! Known values: of one pair by 40 digits, at the reference, and of what two losses have in common.

use crate::{loss, on_pair, pair_losses, with};
use fusedpo::loss::math::{log_sigmoid, sigmoid};
use fusedpo::loss::{Divergence, Lengths, LossSpec, LossType, Pair, Param, Rule};
use std::f64::consts::LN_2;

/// What the log-probs below are compared with.
const REFERENCE: Pair = Pair {
    chosen: -42.0,
    rejected: -50.0,
    ref_chosen: -42.0,
    ref_rejected: -50.0,
    chosen_len: 20.0,
    rejected_len: 25.0,
    chosen_score: 4.5,
    rejected_score: 3.0,
};

/// With each loss's defaults: value and derivatives at log-probs of -40.5 and -52.25, and the value at the reference. Computed
/// from the formulas with 40 digits, derivatives by differences.
#[rustfmt::skip]
const KNOWN: &[(&str, [f64; 3], f64)] = &[
    ("sigmoid", [0.52312326413984, -0.040733340004593, 0.040733340004593], LN_2),
    ("robust", [0.47624826413984006, -0.053233340004593, 0.053233340004593], LN_2),
    ("hinge", [0.625, -0.1, 0.1], 1.0),
    ("ipo", [23.377225, -0.4835, 0.3868], 25.0),
    ("ipo_sum", [1.5625, -2.5, 2.5], 25.0),
    ("exo_pair", [2.138479118446911, -0.157684987138638, 0.157684987138638], 2.761230709097915),
    ("nca_pair", [1.29991657270915, -0.0193855231984376, 0.022199305472769], 1.3862943611198906),
    ("bco_pair", [1.2079190498392358, -0.046257015465625, 0.044398610945538], 1.3862943611198906),
    ("sppo_hard", [19.8125, -7.0, 5.5], 50.0),
    ("apo_zero", [0.9065562641116305, -0.0248599006677543, 0.0246862444066055], 1.0),
    ("apo_down", [0.9447632453896798, 0.000718610542459059, 0.0241412901252952], 1.0),
    ("discopop", [0.6871985313251642, -0.0685320579110969, 0.0685320579110969], 0.8465735902799727),
    ("sigmoid_norm", [0.36341666212657087, -0.0761758326631087, 0.0609406661304869], LN_2),
    ("rpo", [2.54812326413984, -0.090733340004593, 0.040733340004593], 2.7931471805599455),
    ("dpop", [0.28115013624831475, -0.0735255039397115, 0.0735255039397115], LN_2),
    ("odpo", [0.7084957454792897, -0.0507615688011671, 0.0507615688011671], 0.9162907318741551),
    ("soft_label", [0.5915328355672237, -0.0224907876239574, 0.0224907876239574], LN_2),
    ("rdpo", [0.6325990353171691, -0.0468790626626244, 0.0468790626626244], 0.8259394198788436),
    ("simpo", [0.9700359656079605, -0.0031046529780168, 0.00248372238241344], 0.980313318044875),
    ("alphapo", [0.9673235241981736, -0.00514225868275371, 0.00418120241421155], 0.9845016677009961),
    ("cpo", [2.2941251883565683, -0.0735952400202534, 0.0235952400202534], 2.4711006659477777),
    ("orpo", [2.0906579070021984, -0.0527728923450625, 0.00219728613016478], 2.1752185614343214),
    ("slic", [4.05, -0.1, 0.0], 4.2),
    ("unlikelihood", [35.275, -1.0, 0.1], 37.0),
];

/// The same, where the chosen response has lost: at -45 and -44.5.
#[rustfmt::skip]
const LOST: &[(&str, [f64; 3])] = &[
    ("robust", [1.3121150684421958, -0.0825567142473973, 0.0825567142473973]),
    ("hinge", [1.85, -0.1, 0.1]),
    ("discopop", [1.2058651153800537, -0.0700566271573733, 0.0700566271573733]),
    ("dpop", [47.55, -15.3, 0.3]),
    ("odpo", [1.5061796916026782, -0.0778244463678308, 0.0778244463678308]),
    ("slic", [6.0, -1.1, 1.0]),
];

fn close(what: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= 2e-14 * (1.0 + want.abs()), "{what}: {got}, not {want}");
}

#[test]
fn every_loss_has_its_known_value() {
    let won = Pair { chosen: -40.5, rejected: -52.25, ..REFERENCE };
    for l in pair_losses() {
        let known = KNOWN.iter().find(|(name, ..)| *name == l.def().name);
        let (name, [value, d_chosen, d_rejected], at_reference) = known.unwrap_or_else(|| panic!("{l} is not known"));
        let (got, start) = (on_pair(&LossSpec::of(l), &won), on_pair(&LossSpec::of(l), &REFERENCE));
        close(name, got.loss, *value);
        close(name, got.d_chosen, *d_chosen);
        close(name, got.d_rejected, *d_rejected);
        close(name, start.loss, *at_reference);
    }
    let lost = Pair { chosen: -45.0, rejected: -44.5, ..REFERENCE };
    for (name, [value, d_chosen, d_rejected]) in LOST {
        let got = on_pair(&LossSpec::of(loss(name)), &lost);
        close(name, got.loss, *value);
        close(name, got.d_chosen, *d_chosen);
        close(name, got.d_rejected, *d_rejected);
    }
}

/// At the reference an f-divergence is worth nothing, and its slope is that of the log-ratio: step 0 is the same under all.
#[test]
fn divergences_agree_at_the_reference() {
    for l in pair_losses().filter(|l| l.def().divergence) {
        let plain = on_pair(&LossSpec::of(l), &REFERENCE);
        for (divergence, slope) in
            [(Divergence::ForwardKl, 1.0), (Divergence::JsDivergence, 0.5), (Divergence::AlphaDivergence, 1.0)]
        {
            let got = on_pair(&with(LossSpec::of(l), |s| s.divergence = divergence), &REFERENCE);
            let what = format!("{l} under {divergence}");
            close(&what, got.loss, plain.loss);
            close(&what, got.d_chosen, slope * plain.d_chosen);
            close(&what, got.d_rejected, slope * plain.d_rejected);
        }
    }
}

/// Losses without a reference read none.
#[test]
fn losses_without_a_reference_read_none() {
    let mut n = 0;
    for l in pair_losses() {
        let moved = Pair { ref_chosen: -7.0, ref_rejected: -90.0, ..REFERENCE };
        let same = on_pair(&LossSpec::of(l), &moved) == on_pair(&LossSpec::of(l), &REFERENCE);
        assert_eq!(same, !l.def().reference, "{l}");
        n += usize::from(same);
    }
    assert!(n >= 6);
}

/// Losses that read lengths say whose.
#[test]
fn lengths() {
    for l in pair_losses() {
        let same = |moved: Pair| on_pair(&LossSpec::of(l), &moved) == on_pair(&LossSpec::of(l), &REFERENCE);
        let read = [!same(Pair { chosen_len: 9.0, ..REFERENCE }), !same(Pair { rejected_len: 9.0, ..REFERENCE })];
        let says = match l.def().lengths {
            Lengths::Unread => [false, false],
            Lengths::Chosen => [true, false],
            Lengths::Both => [true, true],
        };
        assert_eq!(read, says, "{l}");
    }
}

/// Losses that read scores say so; equal scores are a label of one half, and for odpo nothing to learn.
#[test]
fn scores() {
    for l in pair_losses() {
        let moved = Pair { chosen_score: 9.0, rejected_score: 1.0, ..REFERENCE };
        let same = on_pair(&LossSpec::of(l), &moved) == on_pair(&LossSpec::of(l), &REFERENCE);
        assert_eq!(same, !l.def().scores, "{l}");
    }
    let won = Pair { chosen: -30.0, ..REFERENCE };
    for (chosen_score, rejected_score) in [(2.0, 2.0), (1.0, 2.0)] {
        let got = on_pair(&LossSpec::of(loss("odpo")), &Pair { chosen_score, rejected_score, ..won });
        assert_eq!((got.loss, got.d_chosen, got.d_rejected), (0.0, 0.0, 0.0));
    }
    let plain = on_pair(&LossSpec::of(LossType::Sigmoid), &won);
    let without = LossSpec::of(loss("odpo")).with(Param::OdpoAlpha, 0.0);
    assert_eq!(on_pair(&without, &Pair { chosen_score: 1.0, rejected_score: 2.0, ..won }), plain);
    let half = on_pair(&LossSpec::of(loss("soft_label")), &Pair { chosen_score: 2.0, rejected_score: 2.0, ..won });
    close("soft_label", half.loss, -0.5 * log_sigmoid(1.2) - 0.5 * log_sigmoid(-1.2));
}

/// What a loss becomes where one of its terms is switched off.
#[test]
fn losses_that_are_others_at_a_corner() {
    let p = Pair { chosen: -45.0, rejected: -44.5, ..REFERENCE };
    let same = |a: LossSpec, b: LossSpec| {
        let (a, b) = (on_pair(&a, &p), on_pair(&b, &p));
        close("loss", a.loss, b.loss);
        close("d_chosen", a.d_chosen, b.d_chosen);
        close("d_rejected", a.d_rejected, b.d_rejected);
    };
    let of = |name: &str| LossSpec::of(loss(name)).beta(0.2);
    same(of("robust").label_smoothing(0.0), of("sigmoid"));
    same(of("rpo").with(Param::RpoAlpha, 0.0), of("sigmoid"));
    same(of("dpop").with(Param::DpopLambda, 0.0), of("sigmoid"));
    same(of("rdpo").with(Param::RdpoAlpha, 0.0), of("sigmoid"));
    for alpha in [1e-15, -1e-15, 1e-300] {
        same(
            of("alphapo").with(Param::AlphapoAlpha, alpha).with(Param::Beta, 1e-3),
            of("simpo").with(Param::Beta, 1e-3),
        );
    }
    same(of("soft_label").with(Param::SoftLabelScale, 3f64.ln() / 1.5), of("sigmoid").label_smoothing(0.25));
}

/// A list of two is a pair; longer ones are the likelihood of a choice among all.
#[test]
fn plackett_luce() {
    let spec = LossSpec::of(loss("plackett_luce")).beta(0.3);
    let Rule::List(f) = spec.terms()[0].def().rule else { panic!() };
    let params = &spec.terms()[0].params;
    for (a, b) in [(3.0, -2.0), (-1e4, 1e4), (1e4, -1e4), (0.5, 0.5), (-30.0, 7.0)] {
        let mut d = [f64::NAN; 2];
        let value = f(params, &[a, b], &mut d);
        let pair = on_pair(&LossSpec::of(LossType::Sigmoid).beta(0.3), &Pair { chosen: a, rejected: b, ..Pair::ZERO });
        close("value", value, pair.loss);
        close("chosen", d[0], pair.d_chosen);
        close("rejected", d[1], pair.d_rejected);
    }
    let mut d = [f64::NAN; 1];
    assert_eq!((f(params, &[-5.0], &mut d), d[0]), (0.0, 0.0));
    let ratios = [1.0, -3.0, 2.5, 0.0];
    let mut d = [f64::NAN; 4];
    let value = f(params, &ratios, &mut d);
    let weights = ratios.map(|r| (0.3 * r).exp());
    let all: f64 = weights.iter().sum();
    close("value", value, -(weights[0] / all).ln());
    close("chosen", d[0], 0.3 * (weights[0] / all - 1.0));
    close("another", d[2], 0.3 * weights[2] / all);
}

/// ORPO at certainty: finite, where the formula has a limit and where it has none.
#[test]
fn orpo_at_certainty() {
    let spec = LossSpec::of(loss("orpo"));
    let near = |chosen: f64, rejected: f64| on_pair(&spec, &Pair { chosen, rejected, ..Pair::ZERO });
    // The chosen response is certain: nothing is left to learn of it but its own likelihood.
    let got = near(0.0, -1.0);
    assert!((0.0..1e-12).contains(&got.loss), "{got:?}");
    assert!((got.d_chosen + 1.0).abs() < 1e-12, "{got:?}");
    // The rejected one is: the loss without the bound would be infinite.
    let got = near(-1.0, 0.0);
    let log_odds_apart = -1.0 - (1.0 - (-1f64).exp()).ln() + 1e-12f64.ln();
    assert!((got.loss - (1.0 - 0.1 * log_sigmoid(log_odds_apart))).abs() < 1e-12, "{got:?}");
    assert!((got.d_rejected - 0.1 * sigmoid(-log_odds_apart)).abs() < 1e-12, "{got:?}");
    let close_by = near(-1.0, -1e-11);
    assert!(close_by.d_rejected > 9e9, "just before the bound the slope is the formula's: {close_by:?}");
}
