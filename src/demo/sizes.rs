//! How large a demo is.

/// Reviews of a step of SFT.
const SFT_BATCH: usize = 36;

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Steps of SFT.
    pub sft_steps: u64,
    /// Reviews a step.
    pub sft_batch: usize,
    /// Reviews to train on.
    pub reviews: usize,
    /// Prompts, held-out ones included.
    pub prompts: usize,
    /// Responses a prompt.
    pub responses: usize,
    /// Pairs a step of DPO.
    pub dpo_batch: usize,
}

impl Sizes {
    /// Steps of SFT in the full demo.
    pub const STEPS: u64 = 1600;

    /// Sizes for `steps` steps of SFT, and so many prompts where it is said.
    pub(super) fn new(steps: u64, prompts: Option<usize>) -> Self {
        let share = (steps as f64 / Self::STEPS as f64).min(1.0);
        Self {
            sft_steps: steps,
            sft_batch: SFT_BATCH,
            // One epoch: no text twice.
            reviews: steps as usize * SFT_BATCH,
            prompts: prompts.unwrap_or((2500.0 * share).max(1200.0) as usize),
            responses: 4,
            dpo_batch: 32,
        }
    }
}
