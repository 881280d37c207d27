//! Chosen up, rejected down, without any brake.

use super::{Lengths, LossDef, Pair, PairLoss, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "unlikelihood",
    about: "Likelihood of chosen, unlikelihood of rejected: the baseline of DPO's paper",
    formula: "-w + unlikelihood_alpha l",
    source: "Rafailov et al. 2023 (arXiv 2305.18290) section 6, which tries alpha 0.05, 0.1, 0.5 and 1; Welleck et \
             al. 2019 (arXiv 1908.04319)",
    guidance: "A baseline to compare with. Nothing ends it: rejected responses go to probability 0 and take language \
               with them, so keep alpha small and runs short.",
    options: &[(Param::UnlikelihoodAlpha, 0.1)],
    reference: false,
    scores: false,
    lengths: Lengths::Unread,
    divergence: false,
    mean_reward: false,
    rule: Rule::Pair(loss),
};

fn loss(p: &Params, x: &Pair) -> PairLoss {
    let alpha = p[Param::UnlikelihoodAlpha];
    PairLoss { loss: alpha * x.rejected - x.chosen, d_chosen: -1.0, d_rejected: alpha }
}
