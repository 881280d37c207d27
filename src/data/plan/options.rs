//! What a plan is made for.

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// The pairs, and the responses that are in one.
    Preference,
    /// The pairs, all those of a group together: a ranking.
    Ranking,
    /// What imitation learning should imitate: of a group's judged responses every best one, those with the highest score
    /// and, without scores, those chosen in a pair and rejected in none; and every response that nobody compared: in no
    /// pair, without a score, of a row with a single response or labelled desirable. Never one labelled undesirable.
    Sft,
    /// Every response that was judged: labelled desirable or undesirable, or in a pair, each of its pairs being a judgement of
    /// its chosen response as desirable and of its rejected one as undesirable, by the pair's weight.
    Judgement,
    /// Every response; no pairs.
    Score,
}

impl Objective {
    /// Whether its units are pairs.
    pub fn is_of_pairs(self) -> bool {
        matches!(self, Self::Preference | Self::Ranking)
    }
}

/// Options of a [`super::Planner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// What the steps are for.
    pub objective: Objective,
    /// Pairs a step, or responses, or judgements; at least 1 (judgements: 2).
    pub batch_size: usize,
    /// Token slots of a micro-batch. `None`: 2048, or as many as the largest pair (response) needs, rounded up to a
    /// multiple of 256.
    pub token_budget: Option<usize>,
    /// Seed of the order.
    pub seed: u64,
    /// Whether epochs are shuffled, each in its own way.
    pub shuffle: bool,
}
