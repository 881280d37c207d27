//! A ranking as choices: each response against all that it is preferred to.

use super::{Lengths, LossDef, Param, Params, Rule};

pub(super) const DEF: LossDef = LossDef {
    name: "plackett_luce",
    about: "DPO over rankings of K responses",
    formula: "-sum over chosen k: beta dk - log(exp(beta dk) + sum over j that k is preferred to: exp(beta dj))",
    source: "Rafailov et al. 2023 (arXiv 2305.18290) appendix A.3, eq. 20; responses with the same score stand in nobody's sum but \
             their own",
    guidance: "For prompts with several scored responses: one term a response instead of one a pair. With two responses it is \
               sigmoid. Needs all responses of a prompt in one micro-batch.",
    options: &[(Param::Beta, 0.1)],
    reference: true,
    scores: false,
    lengths: Lengths::Unread,
    divergence: false,
    mean_reward: false,
    rule: Rule::List(loss),
};

fn loss(p: &Params, ratios: &[f64], d: &mut [f64]) -> f64 {
    let beta = p[Param::Beta];
    let top = ratios.iter().fold(f64::NEG_INFINITY, |top, r| top.max(beta * r));
    // From the largest term; the chosen one's comes last, as in the kernel.
    let sum: f64 = ratios[1..].iter().chain(&ratios[..1]).map(|r| (beta * r - top).exp()).sum();
    let log_sum = top + sum.ln();
    d.iter_mut().zip(ratios).for_each(|(d, r)| *d = beta * (beta * r - log_sum).exp());
    d[0] = beta * ((beta * ratios[0] - log_sum).exp() - 1.0);
    log_sum - beta * ratios[0]
}
