//! Every loss of the table: TRL's numbers, derivatives against differences, known values, and one order for kernel and table.

mod derivatives;
mod golden;
mod table;
mod values;

use fusedpo::loss::{LossSpec, LossType, Pair, PairLoss, Param, Rule};

/// The loss called `name`, with its defaults.
fn loss(name: &str) -> LossType {
    *LossType::EVERY.iter().find(|l| l.def().name == name).unwrap_or_else(|| panic!("no loss {name}"))
}

/// Those of the table that see a pair.
fn pair_losses() -> impl Iterator<Item = LossType> {
    LossType::EVERY.iter().copied().filter(|l| matches!(l.def().rule, Rule::Pair(_)))
}

/// `spec`, changed.
fn with(mut spec: LossSpec, change: impl FnOnce(&mut LossSpec)) -> LossSpec {
    change(&mut spec);
    spec
}

/// The only loss of `spec`, on a pair.
fn on_pair(spec: &LossSpec, p: &Pair) -> PairLoss {
    spec.of_pair(&spec.terms()[0], p)
}

/// Hyper-parameters that a loss may have, each from a few, mixed by `n`.
fn some_params(loss: LossType, n: usize) -> LossSpec {
    const TRIED: [f64; 9] = [0.1, 0.03, 0.4, 2.0, 0.0, 0.25, -0.5, 6.0, 0.7];
    let allowed = |param: Param| TRIED.into_iter().filter(move |x| param.check(*x).is_ok()).collect::<Vec<_>>();
    let set = |spec: LossSpec, (i, (param, _)): (usize, &(Param, f64))| {
        let allowed = allowed(*param);
        spec.with(*param, allowed[(n + i * 3) % allowed.len()])
    };
    loss.def().options.iter().enumerate().fold(LossSpec::of(loss), set)
}
