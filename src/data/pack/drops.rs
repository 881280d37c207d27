//! Warnings about rows that are not in the shards: when, why, and what mends it.

use super::report::{DropReason, PackReport};
use crate::data::numbers::grouped;

/// Share of the rows that may be dropped without a warning.
const MANY: f64 = 0.2;

impl PackReport {
    /// Adds the warnings that follow from the drops: more than a fifth of the rows gone, in words for each reason that took
    /// at least a twentieth; files of which nothing is left; text and conversations in one pack; halves of pairs.
    pub(super) fn warn_of_drops(&mut self, max_length: usize) {
        let (read, all) = (self.rows_read, self.dropped.values().map(|d| d.rows).sum::<u64>());
        let percent = |n: u64| 100.0 * n as f64 / read.max(1) as f64;
        if all as f64 > MANY * read as f64 {
            for (reason, d) in self.dropped.iter().filter(|(_, d)| percent(d.rows) >= 5.0) {
                let (n, of) = (grouped(d.rows), grouped(read));
                let mend = self.mend(*reason, max_length);
                self.warnings.push(format!("{n} of {of} rows ({:.1} %) are dropped: {mend}", percent(d.rows)));
            }
        }
        for file in &self.empty_files {
            self.warnings.push(format!("no row of {file} is left"));
        }
        if self.rows_chat > 0 && self.rows_plain > 0 {
            self.warnings.push(format!(
                "{} rows are conversations and {} are text as it stands: the model learns two formats",
                grouped(self.rows_chat),
                grouped(self.rows_plain)
            ));
        }
        let alone = ["chosen", "prompt, chosen"].iter().filter_map(|shape| self.shapes.get(*shape)).sum();
        if alone > 0 {
            self.warnings.push(format!(
                "{} rows have `chosen` and no `rejected`: each judges its one response as desirable, and makes no pair",
                grouped(alone)
            ));
        }
    }

    fn mend(&self, reason: DropReason, max_length: usize) -> String {
        let l = self.too_long_lengths;
        let longer = format!(
            "`options.max_length` {} keeps all of them whole, {} nine in ten (or see `options.truncation`)",
            l.max, l.p90
        );
        match reason {
            DropReason::PromptFillsMaxLength => {
                format!("their prompt alone fills `options.max_length` {max_length}; {longer}")
            }
            DropReason::TooLong => format!("they are longer than `options.max_length` {max_length}; {longer}"),
            DropReason::EqualAfterTruncation => {
                format!("within `options.max_length` {max_length} chosen and rejected are the same; {longer}")
            }
            DropReason::ChosenEqualsRejected => {
                "chosen and rejected are the same tokens, so there is nothing to compare; look at how the two were made"
                    .into()
            }
            DropReason::EmptyResponse => {
                "a response is empty; if another column holds the responses, name it with `options.map`".into()
            }
            DropReason::NonStringResponse => {
                "a response is neither a string nor a list of messages; if another column \
                holds the responses, name it with `options.map`"
                    .into()
            }
            DropReason::NoLastTurn => {
                "the two texts share no \\n\\nAssistant:; `options.prompt_boundary` trl splits them where they part"
                    .into()
            }
            DropReason::Excluded => "`options.exclude` names them".into(),
            DropReason::Unusable => {
                let first = self.unusable_rows.first().map_or("", String::as_str);
                format!("they cannot be used, the first for this: {first}")
            }
        }
    }
}
