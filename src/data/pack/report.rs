//! What `pack` did with the rows: counted, with every drop's reason and the first rows it hit.

use crate::data::numbers::{Lengths, grouped};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Why a row, or a response of a scored row, is not in the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// A response is empty.
    EmptyResponse,
    /// A response is neither a string nor a list of messages.
    NonStringResponse,
    /// Chosen and rejected are the same tokens.
    ChosenEqualsRejected,
    /// Chosen and rejected are the same tokens once cut to `max_length`.
    EqualAfterTruncation,
    /// The prompt alone fills `max_length`.
    PromptFillsMaxLength,
    /// Longer than `max_length` under `truncation` drop, or a response that fills it under `prompt-left`.
    TooLong,
    /// No common `\n\nAssistant:` under `prompt_boundary` last-turn.
    NoLastTurn,
    /// `exclude` names it.
    Excluded,
    /// The row cannot be understood, or its template refuses it: [`PackReport::unusable_rows`] says why.
    Unusable,
}

impl DropReason {
    /// The reason in the report's table.
    pub fn text(self) -> &'static str {
        match self {
            Self::EmptyResponse => "empty response",
            Self::NonStringResponse => "response is not a string",
            Self::ChosenEqualsRejected => "chosen equals rejected",
            Self::EqualAfterTruncation => "chosen equals rejected once truncated",
            Self::PromptFillsMaxLength => "prompt fills max_length",
            Self::TooLong => "longer than max_length",
            Self::Excluded => "excluded by the list",
            Self::Unusable => "not usable",
            Self::NoLastTurn => "no common \\n\\nAssistant:",
        }
    }
}

/// How often something was dropped, and where first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Whole rows.
    pub rows: u64,
    /// Single responses of scored rows that stay otherwise.
    pub responses: u64,
    /// The first places, `FILE line N`.
    pub first: Vec<String>,
}

/// Groups, responses, pairs and tokens of one split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitCounts {
    /// Prompts with their responses.
    pub groups: u64,
    /// Responses.
    pub responses: u64,
    /// Pairs.
    pub pairs: u64,
    /// Tokens stored: each prompt once, each response once.
    pub tokens: u64,
    /// Tokens of the same data as rows of two (or one) sequences, the prompt repeated in each.
    pub tokens_prompt_repeated: u64,
    /// Shard files.
    pub shards: u64,
}

impl SplitCounts {
    /// Share of tokens that prompt sharing saves, in percent.
    pub fn saving_percent(&self) -> f64 {
        match self.tokens_prompt_repeated {
            0 => 0.0,
            all => 100.0 * (1.0 - self.tokens as f64 / all as f64),
        }
    }
}

/// `report.json`, and the table that `pack` prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PackReport {
    /// Rows read.
    pub rows_read: u64,
    /// [`RowsHash`](crate::data::input::RowsHash) of them, empty where shards are older: whether rows that come later are these.
    #[serde(default)]
    pub rows_sha256: String,
    /// Rows with at least one response in the shards.
    pub rows_kept: u64,
    /// Rows by shape.
    pub shapes: BTreeMap<String, u64>,
    /// What was dropped, by reason.
    pub dropped: BTreeMap<DropReason, Dropped>,
    /// The first rows that cannot be used: file, line and what is wrong.
    #[serde(default)]
    pub unusable_rows: Vec<String>,
    /// Files of which no row was kept.
    #[serde(default)]
    pub empty_files: Vec<String>,
    /// Rows that are conversations, rendered with the chat template.
    #[serde(default)]
    pub rows_chat: u64,
    /// Rows that are text as it stands, or ids.
    #[serde(default)]
    pub rows_plain: u64,
    /// Turns of the assistant's that conversations teach, under `assistant_turns` all.
    #[serde(default)]
    pub assistant_turns: u64,
    /// Training split.
    pub train: SplitCounts,
    /// Held-out split; no prompt of it is in the other.
    pub eval: SplitCounts,
    /// Rows kept with a judgement (`label`).
    #[serde(default)]
    pub rows_judged: u64,
    /// Scored rows kept without a pair, because all their scores are equal.
    pub rows_without_pair: u64,
    /// Pairs of scored rows left out because both responses are the same tokens.
    pub identical_pairs: u64,
    /// Pairs that repeat an earlier one (kept).
    pub duplicate_pairs: u64,
    /// Pairs whose reverse is also there (kept).
    pub contradictory_pairs: u64,
    /// Responses cut at `max_length`; their EOS is lost.
    pub truncated_responses: u64,
    /// Prompts cut on the left.
    pub truncated_prompts: u64,
    /// Responses without EOS that were not cut.
    pub responses_without_eos: u64,
    /// Responses with two or more EOS.
    pub responses_with_many_eos: u64,
    /// Rows that begin with two BOS.
    pub rows_with_double_bos: u64,
    /// Rows without the BOS that the tokenizer puts first.
    pub rows_without_bos: u64,
    /// Rows whose prompt lost its last tokens to the responses, because tokens merge across the boundary or the template
    /// renders the prompt alone differently.
    pub rows_with_moved_boundary: u64,
    /// Rows whose responses all begin with the prompt's text, which is then there twice.
    pub rows_repeating_prompt: u64,
    /// Columns that played no part.
    pub ignored_columns: BTreeMap<String, u64>,
    /// Lengths of prompts, in tokens.
    pub prompt_lengths: Lengths,
    /// Lengths of responses, in tokens.
    pub response_lengths: Lengths,
    /// Lengths of prompt + response, in tokens.
    pub total_lengths: Lengths,
    /// Lengths of whole rows that were dropped because of `max_length`.
    #[serde(default)]
    pub too_long_lengths: Lengths,
    /// What a reader should look at.
    pub warnings: Vec<String>,
    /// What a reader may not expect.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl PackReport {
    /// Places named for each reason.
    pub const NAMED: usize = 5;

    /// Counts a dropped row, or a dropped response of a row.
    pub fn dropped(&mut self, reason: DropReason, whole_row: bool, place: impl FnOnce() -> String) {
        let entry = self.dropped.entry(reason).or_default();
        *(if whole_row { &mut entry.rows } else { &mut entry.responses }) += 1;
        if entry.first.len() < Self::NAMED {
            entry.first.push(place());
        }
    }

    /// Both splits together.
    pub fn total(&self) -> SplitCounts {
        let (a, b) = (&self.train, &self.eval);
        SplitCounts {
            groups: a.groups + b.groups,
            responses: a.responses + b.responses,
            pairs: a.pairs + b.pairs,
            tokens: a.tokens + b.tokens,
            tokens_prompt_repeated: a.tokens_prompt_repeated + b.tokens_prompt_repeated,
            shards: a.shards + b.shards,
        }
    }

    /// Says that plain rows do not use the tokenizer's chat template, where it has one.
    pub(super) fn note_plain_rows(&mut self, rows: u64, has_template: bool) {
        if rows > 0 && has_template {
            self.notes.push(format!(
                "{} rows are plain text and do not use the tokenizer's chat template; `options.wrap_prompts` makes prompt and response a user's and an assistant's turn",
                grouped(rows)
            ));
        }
    }

    /// Adds the warnings that follow from the counts.
    pub fn warn(&mut self) {
        let mut warn = |n: u64, text: &str| {
            if n > 0 {
                self.warnings.push(format!("{} {text}", grouped(n)));
            }
        };
        warn(self.rows_with_double_bos, "rows begin with two BOS: the text brings one and the tokenizer adds one");
        warn(
            self.rows_without_bos,
            "rows lack the BOS that the tokenizer puts first (pre-tokenised rows must bring it)",
        );
        warn(self.responses_without_eos, "responses have no EOS: the model will not learn to stop there");
        warn(self.rows_repeating_prompt, "rows repeat the prompt's text inside their responses: it is there twice");
        let implicit = self.shapes.get("chosen, rejected").copied().unwrap_or(0);
        let inputs = ["instruction", "input", "question", "query", "context"]
            .iter()
            .any(|c| self.ignored_columns.contains_key(*c));
        if implicit > 0 && inputs {
            warn(
                implicit,
                "rows have no `prompt` but a column that looks like one; rename it with `options.map` prompt=COLUMN",
            );
        }
        let total = self.total();
        if total.pairs == 0 && total.groups > 0 && self.rows_judged == 0 {
            self.warnings.push("no pairs: `dpo` has nothing to learn from here, `sft` and `score` have".into());
        }
    }
}

impl fmt::Display for PackReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, n: u64| writeln!(f, "  {name:<42}{:>14}", grouped(n));
        let rows_dropped: u64 = self.dropped.values().map(|d| d.rows).sum();
        writeln!(f, "rows")?;
        line(f, "read", self.rows_read)?;
        for (shape, n) in &self.shapes {
            line(f, &format!("  {shape}"), *n)?;
        }
        line(f, "dropped", rows_dropped)?;
        for (reason, d) in &self.dropped {
            let responses =
                if d.responses > 0 { format!(" and {} single responses", grouped(d.responses)) } else { String::new() };
            writeln!(
                f,
                "  {:<42}{:>14}{responses}: {}{}",
                format!("  {}", reason.text()),
                grouped(d.rows),
                d.first.join(", "),
                if d.rows + d.responses > d.first.len() as u64 { ", ..." } else { "" }
            )?;
        }
        for row in &self.unusable_rows {
            writeln!(f, "      {row}")?;
        }
        line(f, "kept", self.rows_kept)?;
        let column = |name: &str, get: &dyn Fn(&SplitCounts) -> String, f: &mut fmt::Formatter<'_>| {
            write!(f, "  {name:<42}{:>14}", get(&self.train))?;
            if self.eval.groups > 0 { writeln!(f, "{:>14}", get(&self.eval)) } else { writeln!(f) }
        };
        let head = if self.eval.groups > 0 { format!("{:>55}{:>14}", "train", "eval") } else { String::new() };
        writeln!(f, "shards{}", head.strip_prefix("     ").unwrap_or(&head))?;
        column("groups (prompts)", &|s| grouped(s.groups), f)?;
        column("responses", &|s| grouped(s.responses), f)?;
        column("pairs", &|s| grouped(s.pairs), f)?;
        column("tokens, each prompt once", &|s| grouped(s.tokens), f)?;
        column("tokens, prompt repeated", &|s| grouped(s.tokens_prompt_repeated), f)?;
        column("saved by sharing prompts", &|s| format!("{:.1} %", s.saving_percent()), f)?;
        writeln!(f, "lengths in tokens{:>34}{:>10}{:>10}{:>10}", "median", "90 %", "99 %", "longest")?;
        for (name, l) in [
            ("prompt", self.prompt_lengths),
            ("response", self.response_lengths),
            ("prompt + response", self.total_lengths),
        ] {
            writeln!(f, "  {name:<42}{:>7}{:>10}{:>10}{:>10}", l.p50, l.p90, l.p99, l.max)?;
        }
        let counts = [
            ("turns that conversations teach", self.assistant_turns),
            ("responses cut at max_length (EOS lost)", self.truncated_responses),
            ("prompts cut on the left", self.truncated_prompts),
            ("responses without EOS, not cut", self.responses_without_eos),
            ("responses with two or more EOS", self.responses_with_many_eos),
            ("prompt tokens moved to the responses, rows", self.rows_with_moved_boundary),
            ("scored rows without a pair (equal scores)", self.rows_without_pair),
            ("pairs of identical responses, left out", self.identical_pairs),
            ("duplicate pairs, kept", self.duplicate_pairs),
            ("contradictory pairs, kept", self.contradictory_pairs),
        ];
        if counts.iter().any(|(_, n)| *n > 0) {
            writeln!(f, "noticed")?;
        }
        for (name, n) in counts.into_iter().filter(|(_, n)| *n > 0) {
            line(f, name, n)?;
        }
        if !self.ignored_columns.is_empty() {
            let names: Vec<_> = self.ignored_columns.keys().map(|k| k.escape_debug().to_string()).collect();
            writeln!(f, "ignored columns: {}", names.join(", "))?;
        }
        self.warnings.iter().try_for_each(|w| writeln!(f, "warning: {w}"))?;
        self.notes.iter().try_for_each(|n| writeln!(f, "note: {n}"))
    }
}
