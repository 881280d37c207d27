//! Progress for people: a bar on a terminal, a plain line now and then elsewhere. Always on stderr.

use crate::{note, say};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shortest time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Progress of one stage.
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
    label: String,
    total: u64,
    begun: Instant,
    said: Option<Instant>,
}

impl Progress {
    /// A stage of `total` units called `label`.
    pub fn new(label: &str, total: u64) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} [{elapsed} < {eta}]")
            .expect("the template is constant");
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style).with_prefix(label.to_owned());
        Self { bar, plain, label: label.to_owned(), total, begun: Instant::now(), said: None }
    }

    /// Shows that `done` units are through, with `note` beside.
    pub fn set(&mut self, done: u64, note: impl FnOnce() -> String) {
        if !self.plain {
            self.bar.set_message(say::one_line(&note()));
            return self.bar.set_position(done);
        }
        let due = self.said.is_none_or(|at| at.elapsed() >= PLAIN_EVERY) || done == self.total;
        if due {
            self.said = Some(Instant::now());
            let spent = self.begun.elapsed().as_secs_f64();
            let left = if done > 0 { spent / done as f64 * self.total.saturating_sub(done) as f64 } else { 0.0 };
            let said = note();
            let space = if said.is_empty() { "" } else { " " };
            note!("{} {done}/{}{space}{said} ({spent:.0} s, {left:.0} s left)", self.label, self.total);
        }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| note!("{line}"));
    }

    /// Ends the stage; the bar disappears, what was said stays.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
