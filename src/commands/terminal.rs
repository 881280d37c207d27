//! What a person sees of long work, on stderr; and the signals that end it.

use super::flags::Flags;
use super::progress::Progress;
use super::signal;
use crate::error::Result;
use crate::observe::{Event, Flow, InUse, Observe};
use crate::say::{self, Level};
use crate::units::bytes;
use std::path::Path;

/// Bars on a terminal, plain lines elsewhere; pauses the work once a signal came.
pub struct Terminal {
    flags: Flags,
    /// Tasks within tasks.
    tasks: Vec<Progress>,
}

impl Terminal {
    /// Names options as `flags` does.
    pub fn new(flags: Flags) -> Self {
        Self { flags, tasks: Vec::new() }
    }

    /// The options of the program.
    pub fn flags(&self) -> &Flags {
        &self.flags
    }

    /// A line that stays.
    fn say(&self, line: &str) {
        self.at(Level::Info, line);
    }

    fn at(&self, level: Level, line: &str) {
        let line = &say::one_line(line);
        match self.tasks.last() {
            Some(task) => task.say(level, line),
            None => say::at(level, line),
        }
    }

    fn saved(&self, path: &Path, updated: f64, changed: f64) {
        let [u, c] = [updated, changed].map(|x| 100.0 * x);
        let path = path.display();
        if updated.is_nan() {
            return self.say(&format!("saved {path}"));
        }
        self.say(&format!("saved {path}: training changed {u:.1} % of the weights, {c:.1} % in the saved precision"));
        if c < 0.5 * u {
            self.say("most updates are smaller than the saved precision can show; --save-dtype f32 keeps them");
        }
    }

    /// What is about to be taken: the sum, what is in use and free on the device, and the largest parts.
    fn memory(&self, parts: &[(String, usize)], device: Option<InUse>) {
        let mib = |bytes: usize| bytes >> 20;
        let beside = device.map_or_else(String::new, |d| {
            format!(", {} MiB in use already (program and data), {} MiB free", mib(d.used), mib(d.free))
        });
        self.say(&format!("memory: {} MiB planned{beside}", mib(parts.iter().map(|(_, b)| b).sum())));
        for (name, size) in largest(parts, 8) {
            self.say(&format!("  {:>10}  {name}", bytes(size)));
        }
    }
}

impl Observe for Terminal {
    fn on(&mut self, event: &Event<'_>) -> Result<Flow> {
        match *event {
            Event::Note(text) => self.say(&self.flags.text(text)),
            Event::Warning(text) => self.at(Level::Warning, &format!("warning: {}", self.flags.text(text))),
            Event::Begin { task, total, keeps } => {
                if keeps {
                    signal::saves();
                }
                self.tasks.push(Progress::new(task, total));
            }
            Event::Progress { done, beside } => {
                if let Some(task) = self.tasks.last_mut() {
                    task.set(done, || beside.to_string());
                }
            }
            Event::End => {
                if let Some(task) = self.tasks.pop() {
                    task.finish();
                }
            }
            Event::Memory { parts, device } => self.memory(parts, device),
            Event::RunBegins { .. } => signal::saves(),
            Event::Checkpoint { step, path, bytes: size, seconds } => {
                let path = path.display();
                self.say(&format!("step {step}: saved {path}, {} in {seconds:.1} s", bytes(size as usize)));
            }
            Event::Saved { path, updated, changed } => self.saved(path, updated, changed),
            _ => {}
        }
        Ok(if signal::stop_requested() { Flow::Pause } else { Flow::On })
    }
}

/// The `n` largest entries of a memory table, equal names added up, the rest as one.
fn largest(table: &[(String, usize)], n: usize) -> Vec<(String, usize)> {
    let mut sums: Vec<(String, usize)> = Vec::new();
    for (name, bytes) in table {
        match sums.iter_mut().find(|(k, _)| k == name) {
            Some((_, sum)) => *sum += bytes,
            None => sums.push((name.clone(), *bytes)),
        }
    }
    sums.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let rest: usize = sums.iter().skip(n).map(|(_, b)| b).sum();
    sums.truncate(n);
    if rest > 0 {
        sums.push(("everything else".into(), rest));
    }
    sums
}
