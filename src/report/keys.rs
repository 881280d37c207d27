//! What the keys of `metrics.jsonl` mean: titles, groups, which may have an axis of powers.

/// A quantity of a step, and what is said of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Known {
    /// Its key, without `eval_`.
    pub key: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// The heading that it stands under.
    pub group: &'static str,
    /// Whether its axis may be one of powers.
    pub log: bool,
}

const fn of(group: &'static str, key: &'static str, title: &'static str, about: &'static str) -> Known {
    Known { key, title, about, group, log: false }
}

const fn powers(known: Known) -> Known {
    Known { log: true, ..known }
}

const LEARNING: &str = "Learning";
const PREFERENCE: &str = "Preference";
const LIKELIHOOD: &str = "Likelihood";
const OPTIMISER: &str = "Optimiser";
const SPEED: &str = "Speed and memory";
/// The heading of keys that this table does not have.
pub(super) const OTHER: &str = "More";

/// Every key that a run is known to write, in the order of the page.
pub(super) const KNOWN: &[Known] = &[
    of(LEARNING, "loss", "Loss", "mean over the pairs of a step, or the tokens of one of SFT"),
    of(LEARNING, "rewards/accuracies", "Accuracy", "share of pairs whose chosen response has the higher reward"),
    of(LEARNING, "rewards/margins", "Reward margin", "reward of chosen less that of rejected"),
    of(LEARNING, "kl", "KL divergence", "of the policy from its reference, nats"),
    of(PREFERENCE, "rewards/chosen", "Reward, chosen", "beta (log-prob - reference's)"),
    of(PREFERENCE, "rewards/rejected", "Reward, rejected", "beta (log-prob - reference's); same scale as chosen"),
    of(LIKELIHOOD, "logps/chosen", "Log-prob, chosen", "of a whole response, nats"),
    of(LIKELIHOOD, "logps/rejected", "Log-prob, rejected", "of a whole response, nats; same scale as chosen"),
    of(LIKELIHOOD, "entropy", "Entropy", "of the next token, nats"),
    of(LIKELIHOOD, "mean_token_accuracy", "Token accuracy", "share of tokens that are the most likely one"),
    powers(of(OPTIMISER, "learning_rate", "Learning rate", "that the step used")),
    powers(of(OPTIMISER, "grad_norm", "Gradient norm", "before clipping")),
    of(SPEED, "tokens_per_second", "Tokens a second", "each prompt once"),
    of(SPEED, "pairs_per_second", "Pairs a second", "of the step"),
    of(SPEED, "samples_per_second", "Responses a second", "of the step"),
    powers(of(SPEED, "step_seconds", "Seconds a step", "wall time")),
    powers(of(SPEED, "seconds", "Seconds an evaluation", "of all sets and samples")),
    of(SPEED, "peak_memory_bytes", "Memory, bytes", "the most so far: of the process on a CPU, of the device on a GPU"),
];

/// Keys that are no quantity to look at.
pub(super) const NO_CURVE: &[&str] = &["step", "epoch", "num_tokens"];

/// Two keys that are compared, so that their panels have one scale.
pub(super) const SAME_SCALE: &[[&str; 2]] =
    &[["rewards/chosen", "rewards/rejected"], ["logps/chosen", "logps/rejected"]];

/// What is known of a key.
pub(super) fn known(key: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|k| k.key == key)
}

/// `eval_KEY` and `eval_NAME_KEY`: the set's name, empty for the one without, and the key. `None`: it is of training.
pub(super) fn held_out(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix("eval_")?;
    // An interval is of the same set as its number.
    let bare = rest.strip_suffix(INTERVAL).unwrap_or(rest);
    let all = || KNOWN.iter().map(|k| k.key).chain(HELD_OUT.iter().copied());
    if all().any(|key| key == bare) {
        return Some(("", rest));
    }
    // The longest key that it ends with: a set may be called as a key is.
    let fits = all().filter_map(|key| Some((bare.strip_suffix(key)?.strip_suffix('_')?, key)));
    let found = fits.filter(|(set, _)| !set.is_empty()).max_by_key(|(_, key)| key.len());
    Some(found.map_or(("", rest), |(set, _)| (set, &rest[set.len() + 1..])))
}

/// What the key of a number's 95 % interval ends with.
pub(super) const INTERVAL: &str = "_ci95";

/// Keys of held-out sets that are none of training.
const HELD_OUT: &[&str] = &[
    "accuracy",
    "pairs",
    "responses",
    "kl_mismatched",
    "samples/tokens",
    "samples/finished",
    "samples/repeated",
    "samples/tokens_reference",
    "samples/finished_reference",
    "samples/repeated_reference",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_names() {
        for (key, want) in [
            ("loss", None),
            ("eval_loss", Some(("", "loss"))),
            ("eval_rewards/chosen", Some(("", "rewards/chosen"))),
            ("eval_mine_rewards/chosen", Some(("mine", "rewards/chosen"))),
            ("eval_a_b_loss", Some(("a_b", "loss"))),
            ("eval_loss_loss", Some(("loss", "loss"))),
            ("eval_rewards/margins_ci95", Some(("", "rewards/margins_ci95"))),
            ("eval_a_b_loss_ci95", Some(("a_b", "loss_ci95"))),
            ("eval_kl_mismatched", Some(("", "kl_mismatched"))),
            ("eval_what_is_it", Some(("", "what_is_it"))),
            ("eval__loss", Some(("", "_loss"))),
        ] {
            assert_eq!(held_out(key), want, "{key}");
        }
        let mut keys: Vec<_> = KNOWN.iter().map(|k| k.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), KNOWN.len());
    }
}
