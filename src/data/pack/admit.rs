//! One row after the other into its group: what is unusable is dropped and counted, what is too long is cut by the
//! stated policy, and every oddity that spoils training without an error is counted.

use super::bad::FileRows;
use super::exclude::Excluded;
use super::groups::Groups;
use super::options::{AssistantTurns, PackOptions, PairChoice, Truncation};
use super::report::{DropReason, PackReport};
use super::stream::{Outcome, Unpacked};
use crate::data::input::{Pairs, Place, RowsHash, Unusable};
use crate::data::numbers::Histogram;
use crate::data::shard::format::hex;
use crate::data::text::{TextTokenizer, TokenResponse, TokenRow};
use crate::error::{Error, Result};

/// Rows taken in so far.
pub(super) struct Admission<'a> {
    o: &'a PackOptions,
    tok: &'a TextTokenizer,
    pub groups: Groups,
    pub report: PackReport,
    pub used_template: bool,
    /// Whether any row has responses with scores.
    scored: bool,
    /// Whether any row's prompt was found by the rule for prompts that are not given.
    split: bool,
    /// Rows of plain text with a prompt.
    pub plain_rows: u64,
    pub tokens: u64,
    prompts: Histogram,
    responses: Histogram,
    totals: Histogram,
    /// Whole lengths of the rows that `max_length` drops.
    too_long: Histogram,
    file: FileRows,
    /// Whether the row at hand teaches several turns, which are dropped one by one; and why one of them was.
    several: bool,
    reason: DropReason,
    /// Whether any plain prompt became a user's turn.
    wrapped: bool,
    /// Rows that are left out by name.
    excluded: Option<Excluded>,
    hash: RowsHash,
}

impl<'a> Admission<'a> {
    pub fn new(o: &'a PackOptions, tok: &'a TextTokenizer, groups: Groups, excluded: Option<Excluded>) -> Self {
        let mut report = PackReport::default();
        if excluded.as_ref().is_some_and(Excluded::is_empty) {
            report.notes.push("`options.exclude`: the list names no row, and none is left out".into());
        }
        let (prompts, responses, totals, too_long) = Default::default();
        let file = FileRows::default();
        let (several, reason) = (false, DropReason::Unusable);
        let (used_template, tokens) = (false, 0);
        Self {
            o,
            tok,
            groups,
            report,
            used_template,
            scored: false,
            split: false,
            plain_rows: 0,
            tokens,
            prompts,
            responses,
            totals,
            too_long,
            file,
            several,
            reason,
            wrapped: false,
            excluded,
            hash: RowsHash::default(),
        }
    }

    /// Takes in the next row of the input.
    pub fn row(&mut self, outcome: Outcome) -> Result<()> {
        let Outcome { place, sha256, rows, ignored, wrapped } = outcome;
        self.wrapped |= wrapped;
        let row_number = self.report.rows_read;
        self.report.rows_read += 1;
        self.hash.add(&sha256);
        self.file.row(&place, &mut self.report)?;
        for column in ignored {
            *self.report.ignored_columns.entry(column).or_default() += 1;
        }
        let rows = match rows {
            Ok(rows) => rows,
            Err(Unpacked::NoLastTurn) => {
                self.split = true;
                self.drop_row(DropReason::NoLastTurn, &place);
                return Ok(());
            }
            Err(Unpacked::Bad(e)) => return self.file.bad(e, &place, self.o.on_bad_row, &mut self.report),
        };
        let Some(first) = rows.first() else { return Ok(()) };
        *self.report.shapes.entry(first.shape.to_string()).or_default() += 1;
        let chat = rows.iter().any(|row| row.chat);
        self.used_template |= chat;
        self.scored |= rows.iter().any(|row| matches!(row.pairs, Pairs::FromScores { .. }));
        self.split |= rows.iter().any(|row| row.split);
        self.plain_rows += u64::from(rows.iter().any(|row| row.plain));
        self.several = rows.len() > 1;
        let mut kept = false;
        for row in rows {
            let in_part = self.part(row, row_number, &place)?;
            self.report.assistant_turns += u64::from(in_part && self.o.assistant_turns == AssistantTurns::All && chat);
            kept |= in_part;
        }
        if kept {
            *(if chat { &mut self.report.rows_chat } else { &mut self.report.rows_plain }) += 1;
            self.report.rows_kept += 1;
            self.file.kept();
        } else if std::mem::take(&mut self.several) {
            self.drop_row(self.reason, &place);
        }
        Ok(())
    }

    /// Takes in a row of ids; false where it is dropped.
    fn part(&mut self, mut row: TokenRow, row_number: u64, place: &Place) -> Result<bool> {
        if !self.usable(&row, place) {
            return Ok(false);
        }
        let same = |row: &TokenRow| {
            matches!(row.pairs, Pairs::Given { .. }) && row.responses[0].tokens == row.responses[1].tokens
        };
        if same(&row) {
            self.drop_row(DropReason::ChosenEqualsRejected, place);
            return Ok(false);
        }
        self.notice(&row);
        let longest = row.responses.iter().map(|r| r.tokens.len()).max().unwrap_or(0);
        let whole = row.prompt.len() + longest;
        if !self.truncate(&mut row, place) {
            self.too_long.add(whole);
            return Ok(false);
        }
        if same(&row) {
            self.too_long.add(whole);
            self.drop_row(DropReason::EqualAfterTruncation, place);
            return Ok(false);
        }
        if let Some(excluded) = &mut self.excluded
            && excluded.takes(row_number, &row.prompt, row.responses.iter().map(|r| &r.tokens[..]))?
        {
            self.drop_row(DropReason::Excluded, place);
            return Ok(false);
        }
        refuse_many_pairs(&row, self.o.pairs).map_err(|why| place.error(why))?;
        self.store(&row, row_number)?;
        Ok(true)
    }

    /// The finished report's quantiles, and the warnings about what was dropped. Errors: a file without a row that can be
    /// used, an option without effect.
    pub fn finish(&mut self) -> Result<()> {
        self.file.finish(&mut self.report)?;
        self.excluded.as_ref().map_or(Ok(()), |excluded| excluded.finish(self.report.rows_read))?;
        // Under other names files may be read otherwise: whoever reads them later knows those not.
        self.report.rows_sha256 = if self.o.map.0.is_empty() { hex(&self.hash.sha256()) } else { String::new() };
        self.report.prompt_lengths = self.prompts.lengths();
        self.report.response_lengths = self.responses.lengths();
        self.report.total_lengths = self.totals.lengths();
        self.report.too_long_lengths = self.too_long.lengths();
        if self.report.rows_kept > 0 {
            self.refuse_unused()?;
        }
        self.report.warn_of_drops(self.o.max_length);
        Ok(())
    }

    /// Refuses what was asked for and met no row that it is about, among those that can be used.
    fn refuse_unused(&self) -> Result<()> {
        let (o, asked) = (self.o, &self.o.asked);
        let turns = o.assistant_turns == AssistantTurns::All && self.report.assistant_turns == 0;
        let bad = self.report.unusable_rows.first();
        let row = if bad.is_none() { "no row" } else { "no row that can be used" };
        let unused = [
            (turns, format!("`options.assistant_turns` all has no effect: {row} is a conversation")),
            (asked.pairs && !self.scored, format!("`options.pairs` has no effect: {row} has responses with scores")),
            (
                asked.prompt_boundary && !self.split,
                format!("`options.prompt_boundary` has no effect: {row} is a pair of plain texts without a prompt"),
            ),
            (
                o.wrap_prompts && !self.wrapped,
                format!("`options.wrap_prompts` has no effect: {row} has a prompt of plain text"),
            ),
        ];
        let Some((_, why)) = unused.into_iter().find(|(unused, _)| *unused) else { return Ok(()) };
        let or = bad.map_or_else(String::new, |why| format!(", or mend the rows that cannot be used; {why}"));
        let why = format!("{why}; leave it out{or}");
        Err(Error::file(&o.inputs[0], why))
    }

    fn drop_row(&mut self, reason: DropReason, place: &Place) {
        self.reason = reason;
        self.report.dropped(reason, !self.several, || place.to_string());
    }

    /// Counts unusable responses; false where they take the row with them.
    fn usable(&mut self, row: &TokenRow, place: &Place) -> bool {
        let fatal = row.responses.is_empty() || (matches!(row.pairs, Pairs::Given { .. }) && row.responses.len() < 2);
        for (i, (_, why)) in row.unusable.iter().enumerate() {
            let reason = match why {
                Unusable::Empty => DropReason::EmptyResponse,
                Unusable::NotText => DropReason::NonStringResponse,
            };
            // A row is dropped once, for its first reason.
            if !fatal || i == 0 {
                self.reason = if fatal { reason } else { self.reason };
                self.report.dropped(reason, fatal && !self.several, || place.to_string());
            }
        }
        if fatal && row.unusable.is_empty() {
            self.drop_row(DropReason::EmptyResponse, place); // `responses: []`
        }
        !fatal
    }

    /// Counts what spoils training quietly.
    fn notice(&mut self, row: &TokenRow) {
        let report = &mut self.report;
        report.rows_with_moved_boundary += u64::from(row.prompt_tokens_cut > 0);
        report.rows_repeating_prompt += u64::from(row.repeats_prompt);
        if let Some(bos) = self.tok.bos.as_ref().map(|b| b.id) {
            let first = row.prompt.iter().chain(&row.responses[0].tokens).take(2).collect::<Vec<_>>();
            report.rows_with_double_bos += u64::from(first == [&bos, &bos]);
            let wanted = !row.chat && self.tok.prefix().first() == Some(&bos);
            report.rows_without_bos += u64::from(wanted && first.first() != Some(&&bos));
        }
        if let Some(eos) = self.tok.eos.as_ref().map(|e| e.id) {
            for r in &row.responses {
                match r.tokens.iter().filter(|t| **t == eos).count() {
                    0 => report.responses_without_eos += 1,
                    1 => {}
                    _ => report.responses_with_many_eos += 1,
                }
            }
        }
    }

    /// Cuts the row to `max_length`; false where it is dropped.
    fn truncate(&mut self, row: &mut TokenRow, place: &Place) -> bool {
        let max = self.o.max_length;
        let longest = row.responses.iter().map(|r| r.tokens.len()).max().unwrap_or(0);
        if max == 0 || row.prompt.len() + longest <= max {
            return true;
        }
        match self.o.truncation {
            Truncation::KeepStart => {
                if row.prompt.len() >= max {
                    self.drop_row(DropReason::PromptFillsMaxLength, place);
                    return false;
                }
                let room = max - row.prompt.len();
                for r in row.responses.iter_mut().filter(|r| r.tokens.len() > room) {
                    r.tokens.truncate(room);
                    self.report.truncated_responses += 1;
                }
            }
            Truncation::Drop => {
                let room = max.saturating_sub(row.prompt.len());
                return self.keep_responses(row, place, |r| r.tokens.len() <= room);
            }
            Truncation::PromptLeft => {
                if !self.keep_responses(row, place, |r| r.tokens.len() < max) {
                    return false;
                }
                let longest = row.responses.iter().map(|r| r.tokens.len()).max().unwrap_or(0);
                let cut = (row.prompt.len() + longest).saturating_sub(max);
                // What the tokenizer puts first (BOS) stays first.
                let first = if row.prompt.starts_with(self.tok.prefix()) { self.tok.prefix().len() } else { 0 };
                let first = first.min(row.prompt.len() - cut);
                row.prompt.drain(first..first + cut);
                self.report.truncated_prompts += u64::from(cut > 0);
            }
        }
        true
    }

    /// Keeps the responses that `fit`; false where the row is dropped as too long.
    fn keep_responses(&mut self, row: &mut TokenRow, place: &Place, fit: impl Fn(&TokenResponse) -> bool) -> bool {
        let fitting = row.responses.iter().filter(|r| fit(r)).count();
        let pair = matches!(row.pairs, Pairs::Given { .. });
        if fitting == 0 || (pair && fitting < row.responses.len()) {
            self.drop_row(DropReason::TooLong, place);
            return false;
        }
        for _ in fitting..row.responses.len() {
            self.report.dropped(DropReason::TooLong, false, || place.to_string());
        }
        row.responses.retain(fit);
        true
    }

    fn store(&mut self, row: &TokenRow, row_number: u64) -> Result<()> {
        self.prompts.add(row.prompt.len());
        self.tokens += row.prompt.len() as u64;
        for r in &row.responses {
            self.responses.add(r.tokens.len());
            self.totals.add(row.prompt.len() + r.tokens.len());
            self.tokens += r.tokens.len() as u64;
        }
        let (mut pairs, weight) = match row.pairs {
            Pairs::Given { weight } => (vec![(0, 1)], weight),
            Pairs::FromScores { weight } => {
                let pairs = scored_pairs(&row.responses, self.o.pairs);
                self.report.rows_without_pair += u64::from(pairs.is_empty());
                (pairs, weight)
            }
            Pairs::None => (Vec::new(), 1.0),
        };
        self.report.rows_judged += u64::from(row.responses.iter().any(|r| r.label.is_some()));
        let tokens = |i: u32| &row.responses[i as usize].tokens;
        let all = pairs.len();
        pairs.retain(|&(chosen, rejected)| tokens(chosen) != tokens(rejected));
        self.report.identical_pairs += (all - pairs.len()) as u64;
        self.groups.add(row, row_number, &pairs, weight)
    }
}

/// Most pairs of one row: a row of 337 kB made 112 million.
const MOST_PAIRS: usize = 1 << 20;

/// Pairs grow as the square of the responses. Many more than anybody wants of one row are no more than a mistake, or an attack.
fn refuse_many_pairs(row: &TokenRow, choice: PairChoice) -> Result<(), String> {
    let n = row.responses.len();
    if !matches!(row.pairs, Pairs::FromScores { .. }) || choice != PairChoice::All || n * n / 2 <= MOST_PAIRS {
        return Ok(());
    }
    let mut scores: Vec<f32> = row.responses.iter().map(|r| r.score.unwrap_or(0.0)).collect();
    scores.sort_by(f32::total_cmp);
    // Equal scores make none.
    let equal: usize = scores.chunk_by(|a, b| a == b).map(|same| same.len() * same.len()).sum();
    let pairs = (n * n - equal) / 2;
    if pairs <= MOST_PAIRS {
        return Ok(());
    }
    Err(format!(
        "{n} scored responses make {pairs} pairs, and a row at most {MOST_PAIRS}: split the row, or take \
         `options.pairs` best-worst, which makes one"
    ))
}

/// Pairs of indices of `responses`, the better first; equal scores make none.
fn scored_pairs(responses: &[TokenResponse], choice: PairChoice) -> Vec<(u32, u32)> {
    let score = |i: u32| responses[i as usize].score.unwrap_or(0.0);
    let n = responses.len() as u32;
    match choice {
        PairChoice::All => {
            let two = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
            two.filter(|&(i, j)| score(i) != score(j))
                .map(|(i, j)| if score(i) > score(j) { (i, j) } else { (j, i) })
                .collect()
        }
        PairChoice::BestWorst => {
            let first = |better: fn(f32, f32) -> bool| {
                (1..n).fold(0u32, |at, i| if better(score(i), score(at)) { i } else { at })
            };
            let (best, worst) = (first(|a, b| a > b), first(|a, b| a < b));
            if n > 0 && score(best) > score(worst) { vec![(best, worst)] } else { Vec::new() }
        }
    }
}
