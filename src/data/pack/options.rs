//! Everything that decides what `pack` writes.

use super::groups::IN_MEMORY;
use crate::choice;
use crate::data::input::{FieldMap, Limits};
use crate::data::text::{PromptBoundary, TokenizerOptions};
use crate::error::{Error, Result};
use std::path::PathBuf;

choice! {
    /// What happens to rows longer than `max_length`.
    pub enum Truncation: default KeepStart {
        /// TRL's: keep the start of prompt + response; drop rows whose prompt alone fills `max_length`. EOS is lost, none
        /// is made up.
        KeepStart = "keep-start",
        /// Drop the row (of scored rows, the response).
        Drop = "drop",
        /// Cut the prompt on the left until the row's longest response fits; drop rows with a response that fills
        /// `max_length`.
        PromptLeft = "prompt-left",
    }
}

impl Truncation {
    /// [`Meta::truncation`](crate::data::shard::format::Meta::truncation)'s code.
    pub fn code(self) -> u32 {
        match self {
            Self::KeepStart => 1,
            Self::Drop => 2,
            Self::PromptLeft => 3,
        }
    }
}

choice! {
    /// Which pairs scored responses make.
    pub enum PairChoice: default All {
        /// Every two responses with different scores.
        All = "all",
        /// The first best against the first worst.
        BestWorst = "best-worst",
    }
}

choice! {
    /// What happens at a row that cannot be used.
    pub enum OnBadRow: default Drop {
        /// Count it, name the first few with what is wrong, and go on. A file of which no row can be used is still refused.
        Drop = "drop",
        /// End the pack.
        Stop = "stop",
    }
}

choice! {
    /// Which of the assistant's turns a demonstration in messages teaches.
    pub enum AssistantTurns: default Last {
        /// The last of `messages`; a completion as it stands.
        Last = "last",
        /// Every one, each after all that was said before it. Refused for pairs, scores and judgements.
        All = "all",
    }
}

/// Options that somebody asked for by name, be it for their default: where no row has a use for one, that is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// [`PackOptions::pairs`].
    pub pairs: bool,
    /// [`PackOptions::prompt_boundary`].
    pub prompt_boundary: bool,
}

/// Everything that decides what `pack` writes.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Model directory or tokenizer file.
    pub tokenizer: PathBuf,
    /// EOS and chat template.
    pub tokenizer_options: TokenizerOptions,
    /// Input files, in order; row numbers run on from one to the next.
    pub inputs: Vec<PathBuf>,
    /// Folder to make.
    pub out: PathBuf,
    /// List of rows to leave out, as `analyze` writes it.
    pub exclude: Option<PathBuf>,
    /// Replace `out` if it is a folder of shards.
    pub overwrite: bool,
    /// Longest prompt + response in tokens; 0: no limit.
    pub max_length: usize,
    /// What to do about longer ones.
    pub truncation: Truncation,
    /// Column names.
    pub map: FieldMap,
    /// What a file may ask for.
    pub limits: Limits,
    /// Pairs of scored rows.
    pub pairs: PairChoice,
    /// What happens at a row that cannot be used.
    pub on_bad_row: OnBadRow,
    /// Which turns of a conversation are demonstrations.
    pub assistant_turns: AssistantTurns,
    /// Plain prompts become a user's turn, their responses the assistant's.
    pub wrap_prompts: bool,
    /// Rule for prompts that are not given.
    pub prompt_boundary: PromptBoundary,
    /// Which of these were asked for.
    pub asked: Asked,
    /// Share of prompts held out, in [0, 1).
    pub eval_fraction: f64,
    /// Seed of the split.
    pub seed: u64,
    /// A shard ends when its tokens reach this many bytes.
    pub shard_bytes: u64,
    /// Bytes that rows may take in memory before the rest goes to temporary files on the disk of `out`: no result depends on
    /// it. The program itself, the tokenizer and the rows on their way between threads come on top.
    pub memory: usize,
}

impl PackOptions {
    /// The defaults of the command line for what has one.
    pub fn new(tokenizer: impl Into<PathBuf>, inputs: Vec<PathBuf>, out: impl Into<PathBuf>) -> Self {
        Self {
            tokenizer: tokenizer.into(),
            tokenizer_options: TokenizerOptions::default(),
            inputs,
            out: out.into(),
            exclude: None,
            overwrite: false,
            max_length: 1024,
            truncation: Truncation::default(),
            map: FieldMap::default(),
            limits: Limits::default(),
            pairs: PairChoice::default(),
            on_bad_row: OnBadRow::default(),
            assistant_turns: AssistantTurns::default(),
            wrap_prompts: false,
            prompt_boundary: PromptBoundary::default(),
            asked: Asked::default(),
            eval_fraction: 0.0,
            seed: 0,
            shard_bytes: 1 << 30,
            memory: IN_MEMORY,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.inputs.is_empty() {
            return Err(Error::usage("`inputs`: give at least one file"));
        }
        if !(0.0..1.0).contains(&self.eval_fraction) {
            return Err(Error::usage(format!("`eval_fraction` {} is not in [0, 1)", self.eval_fraction)));
        }
        for (name, limit) in [("max_row_bytes", self.limits.row_bytes), ("max_expansion", self.limits.expansion)] {
            if limit == 0 {
                return Err(Error::usage(format!("`{name}` 0: must be at least 1")));
            }
        }
        if u32::try_from(self.max_length).is_err() {
            return Err(Error::usage(format!("`max_length` {} is too large", self.max_length)));
        }
        Ok(())
    }
}
