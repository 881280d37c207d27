//! Progress for people: a bar on a terminal, a plain line now and then elsewhere. Always on stderr.

use crate::note;
use crate::say::{self, Level};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shortest time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// And between two lines of a run's log.
const LOGGED_EVERY: Duration = Duration::from_secs(30);

/// Progress of one stage.
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
    label: String,
    total: u64,
    begun: Instant,
    said: Option<Instant>,
    logged: Option<Instant>,
}

impl Progress {
    /// A stage of `total` units called `label`.
    pub fn new(label: &str, total: u64) -> Self {
        // Where nobody is to see it, a bar is drawn nowhere.
        let plain = !std::io::stderr().is_terminal() || !say::shows(Level::Info);
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} [{elapsed} < {eta}]")
            .expect("the template is constant");
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style).with_prefix(label.to_owned());
        Self { bar, plain, label: label.to_owned(), total, begun: Instant::now(), said: None, logged: None }
    }

    /// Shows that `done` units are through, with `note` beside.
    pub fn set(&mut self, done: u64, note: impl FnOnce() -> String) {
        let last = done == self.total;
        let due = |at: Option<Instant>, every| last || at.is_none_or(|at| at.elapsed() >= every);
        let said = self.plain && say::shows(Level::Info) && due(self.said, PLAIN_EVERY);
        let logged = due(self.logged, LOGGED_EVERY);
        if self.plain && !said && !logged {
            return;
        }
        let note = note();
        let line = self.line(done, &note);
        if !self.plain {
            self.bar.set_message(say::one_line(&note));
            self.bar.set_position(done);
        }
        if logged {
            self.logged = Some(Instant::now());
        }
        match (said, logged) {
            (true, _) => {
                self.said = Some(Instant::now());
                note!("{line}");
            }
            (false, true) => say::log(&line),
            (false, false) => {}
        }
    }

    /// As a line for people.
    fn line(&self, done: u64, note: &str) -> String {
        let spent = self.begun.elapsed().as_secs_f64();
        let left = if done > 0 { spent / done as f64 * self.total.saturating_sub(done) as f64 } else { 0.0 };
        let space = if note.is_empty() { "" } else { " " };
        format!("{} {done}/{}{space}{note} ({spent:.0} s, {left:.0} s left)", self.label, self.total)
    }

    /// A line that stays.
    pub fn say(&self, level: Level, line: &str) {
        self.bar.suspend(|| say::at(level, line));
    }

    /// Ends the stage; the bar disappears, what was said stays.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
