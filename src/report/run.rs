//! A run's folder, read: however it ended, and whatever became of it.

use super::keys::{NO_CURVE, held_out};
use crate::chart::Series;
use crate::error::{Error, Result};
use crate::files::{Inside, RunDir};
use crate::train::record::{Outcome, Record};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

const METRICS: &str = "metrics.jsonl";
const RECORD: &str = "run.json";
/// Longest `run.json`: one that went on many thousand times has a long one.
const MOST_RECORD: u64 = 64 << 20;
/// Longest line of `metrics.jsonl`. What is longer is no row of a run.
const MOST_LINE: u64 = 1 << 20;
/// Quantities of one run that are kept: a run has about twenty, and as many of each held-out set.
const MOST_KEYS: usize = 400;

/// A quantity over the steps of a run.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    /// Its key, without `eval_` and without the set's name.
    pub key: String,
    /// The held-out set, by its name; `None`: of training.
    pub set: Option<String>,
    /// Its values.
    pub series: Series,
}

/// The first, the best and the last evaluation on a held-out set.
#[derive(Clone, Debug)]
pub(super) struct HeldOut {
    /// The set's name; empty for the one without.
    pub set: String,
    /// Step and numbers of the first evaluation, by their keys.
    pub first: (f64, Map<String, Value>),
    /// Of the last, where there is another.
    pub last: Option<(f64, Map<String, Value>)>,
    /// Of the best, where the run compared them.
    pub best: Option<(f64, Map<String, Value>)>,
}

impl HeldOut {
    fn new(set: &str, step: f64) -> Self {
        Self { set: set.to_owned(), first: (step, Map::new()), last: None, best: None }
    }

    /// First, best and last by their steps, each once, with whether it is the best.
    pub fn columns(&self) -> Vec<(f64, &Map<String, Value>, bool)> {
        let best = self.best.as_ref().map(|(step, _)| *step);
        let mut all: Vec<&(f64, Map<String, Value>)> = vec![&self.first];
        for more in [self.best.as_ref(), self.last.as_ref()].into_iter().flatten() {
            if all.iter().all(|(step, _)| *step != more.0) {
                all.push(more);
            }
        }
        all.into_iter().map(|(step, numbers)| (*step, numbers, best == Some(*step))).collect()
    }
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// What the page calls it.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// What `run.json` says, where it can be read.
    pub record: Option<Record>,
    /// All quantities, in the order of their first appearance.
    pub curves: Vec<Curve>,
    /// The held-out sets, likewise.
    pub held_out: Vec<HeldOut>,
    /// The last step that has a row.
    pub last_step: f64,
    /// What a reader should know of the folder.
    pub notes: Vec<String>,
}

impl Run {
    /// Reads `folder`. `most`: buckets of a series.
    ///
    /// # Errors
    /// [`Error::File`]: it is no run's folder, a newer version wrote it, or nothing in its metrics can be read.
    pub fn read(folder: &Path, most: usize) -> Result<Self> {
        if !RunDir::is_there(folder) {
            return Err(Error::file(folder, "is not the folder of a run: it has no metrics.jsonl"));
        }
        let inside = Inside::new(folder)?;
        let mut run = Self {
            name: String::new(),
            folder: folder.to_owned(),
            record: None,
            curves: Vec::new(),
            held_out: Vec::new(),
            last_step: 0.0,
            notes: Vec::new(),
        };
        run.read_record(&inside)?;
        let metrics = inside.open(METRICS)?.ok_or_else(|| inside.missing(METRICS))?;
        run.read_metrics(metrics, most)?;
        let backward: u64 = run.curves.iter().map(|c| c.series.backward).max().unwrap_or(0);
        if backward > 0 {
            run.notes.push(format!(
                "{METRICS}: {backward} rows have a step that is not after the one before; they are left out"
            ));
        }
        if run.curves.is_empty() {
            run.notes.push("no step has been written down".into());
        }
        Ok(run)
    }

    fn read_record(&mut self, inside: &Inside) -> Result<()> {
        let unknown = "so its configuration is not known";
        let text = match inside.read_text(RECORD, MOST_RECORD) {
            Ok(Some(text)) => text,
            none => {
                let why = none.map_or_else(|e| format!("{e};"), |_| format!("{RECORD} is missing,"));
                self.notes.push(format!("{why} {unknown}"));
                return Ok(());
            }
        };
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if let Some(why) = Record::newer(&text) {
            return Err(Error::file(inside.path(RECORD), why));
        }
        match serde_json::from_value(value) {
            Ok(record) => self.record = Some(record),
            Err(_) => self.notes.push(format!("{RECORD} is damaged, {unknown}")),
        }
        Ok(())
    }

    fn read_metrics(&mut self, file: File, most: usize) -> Result<()> {
        let path = self.folder.join(METRICS);
        let mut from = BufReader::new(file);
        let (mut line, mut number, mut rows, mut within) = (Vec::new(), 0u64, 0u64, false);
        let mut unreadable: (u64, u64) = (0, 0);
        loop {
            line.clear();
            let read = from.by_ref().take(MOST_LINE).read_until(b'\n', &mut line).map_err(Error::io(&path, "read"))?;
            if read == 0 {
                break;
            }
            // What is too long for a line is read in pieces, the first of which says that nothing of it can be used.
            let (goes_on, ends) = (within, line.last() == Some(&b'\n'));
            within = !ends && read as u64 == MOST_LINE;
            if goes_on {
                continue;
            }
            number += 1;
            let row: Option<Map<String, Value>> = (!within).then(|| serde_json::from_slice(&line).ok()).flatten();
            match row.as_ref().and_then(|row| Some((row.get("step")?.as_f64()?, row))) {
                Some((step, row)) => {
                    rows += 1;
                    self.take(step, row, most);
                }
                None if !within && line.iter().all(u8::is_ascii_whitespace) => {}
                None if !ends && !within => self
                    .notes
                    .push(format!("{METRICS}: line {number} is cut short, as by a run that was killed or is still writing; it is left out")),
                None => unreadable = (unreadable.0 + 1, if unreadable.0 == 0 { number } else { unreadable.1 }),
            }
        }
        let (bad, first) = unreadable;
        if bad > 0 && rows == 0 {
            let why = format!("none of its {number} lines is a row of a run: a JSON object with a `step`");
            return Err(Error::file(&path, why));
        }
        if bad > 0 {
            self.notes
                .push(format!("{METRICS}: {bad} lines cannot be read, the first is line {first}; they are left out"));
        }
        Ok(())
    }

    fn take(&mut self, step: f64, row: &Map<String, Value>, most: usize) {
        self.last_step = self.last_step.max(step);
        for (full, value) in row {
            // What is no finite number stands as null.
            let Some(number) = value.as_f64().or(value.is_null().then_some(f64::NAN)) else { continue };
            let (set, key) = held_out(full).map_or((None, full.as_str()), |(set, key)| (Some(set), key));
            if NO_CURVE.contains(&key) {
                continue;
            }
            let at = self.curves.iter().position(|c| c.key == key && c.set.as_deref() == set);
            match at {
                Some(at) => self.curves[at].series.add(step, number),
                None if self.curves.len() < MOST_KEYS => {
                    let mut series = Series::new(most);
                    series.add(step, number);
                    self.curves.push(Curve { key: key.to_owned(), set: set.map(str::to_owned), series });
                }
                None => {}
            }
        }
        self.take_held_out(step, row);
    }

    fn take_held_out(&mut self, step: f64, row: &Map<String, Value>) {
        for (full, value) in row {
            let Some((set, key)) = held_out(full) else { continue };
            let at = match self.held_out.iter().position(|h| h.set == set) {
                Some(at) => at,
                None if self.held_out.len() < MOST_KEYS => {
                    self.held_out.push(HeldOut::new(set, step));
                    self.held_out.len() - 1
                }
                None => continue,
            };
            let of = &mut self.held_out[at];
            let evaluation = match of.first.0 == step {
                true => &mut of.first,
                false => of.last.get_or_insert_with(|| (step, Map::new())),
            };
            if evaluation.0 != step {
                *evaluation = (step, Map::new());
            }
            let kept = value.is_number() || value.is_null() || value.as_array().is_some_and(|ends| ends.len() == 2);
            if kept && (evaluation.1.len() < MOST_KEYS || evaluation.1.contains_key(key)) {
                evaluation.1.insert(key.to_owned(), value.clone());
            }
        }
        let best = self.record.as_ref().and_then(|r| r.best.as_ref()).is_some_and(|best| best.step as f64 == step);
        let of =
            |h: &HeldOut| [Some(&h.first), h.last.as_ref()].into_iter().flatten().find(|(at, _)| *at == step).cloned();
        for set in self.held_out.iter_mut().filter(|_| best) {
            set.best = of(set).or(set.best.take());
        }
    }

    /// A series by its key and set.
    pub fn series(&self, key: &str, set: Option<&str>) -> Option<&Series> {
        self.curves.iter().find(|c| c.key == key && c.set.as_deref() == set).map(|c| &c.series)
    }

    /// An option of its configuration.
    pub fn option(&self, key: &str) -> Option<&Value> {
        self.record.as_ref()?.options.get(key)
    }

    /// How it ended, in words.
    pub fn outcome(&self) -> &'static str {
        match self.record.as_ref().map(|r| r.outcome) {
            None => "not known",
            Some(Outcome::Running) if RunDir::is_taken(&self.folder) => "running",
            Some(Outcome::Running | Outcome::Killed) => "killed",
            Some(Outcome::Finished) => "finished",
            Some(Outcome::Stopped) => "stopped",
            Some(Outcome::Failed) => "failed",
        }
    }
}

/// Calls `f` with every line of a file in the run's folder that is a JSON object; how many lines are none. `None` where there is no such
/// file, or none that may be read.
pub(super) fn each_line(run: &Run, name: &str, f: &mut dyn FnMut(Map<String, Value>)) -> Option<usize> {
    let mut from = BufReader::new(Inside::new(&run.folder).ok()?.open(name).ok()??);
    let (mut line, mut damaged) = (Vec::new(), 0);
    loop {
        line.clear();
        if from.by_ref().take(MOST_LINE).read_until(b'\n', &mut line).ok()? == 0 {
            return Some(damaged);
        }
        match serde_json::from_slice(&line) {
            Ok(row) => f(row),
            Err(_) => damaged += 1,
        }
    }
}

/// What the page calls each folder: its own name; where two have the same, as much of the path before it as tells them apart.
///
/// Errors: [`Error::Usage`] where one folder is named twice.
pub(super) fn names(folders: &[PathBuf]) -> Result<Vec<String>> {
    let real: Vec<PathBuf> = folders.iter().map(|f| f.canonicalize().unwrap_or_else(|_| f.clone())).collect();
    for (i, folder) in real.iter().enumerate() {
        if real[..i].contains(folder) {
            return Err(Error::usage(format!("{} is named twice; name each run once", folders[i].display())));
        }
    }
    let parts: Vec<Vec<String>> = real
        .iter()
        .map(|f| f.iter().map(|p| p.to_string_lossy().into_owned()).filter(|p| p != "/").collect())
        .collect();
    let tail = |i: usize, n: usize| parts[i][parts[i].len().saturating_sub(n)..].join("/");
    let name = |i: usize| {
        let n = (1..=parts[i].len()).find(|n| (0..real.len()).all(|j| j == i || tail(j, *n) != tail(i, *n)));
        tail(i, n.unwrap_or(usize::MAX))
    };
    Ok((0..real.len()).map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_name_are_told_apart() {
        let of = |all: &[&str]| names(&all.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["/a/x", "/a/y"]).unwrap(), ["x", "y"]);
        assert_eq!(of(&["/a/x", "/b/x", "/y"]).unwrap(), ["a/x", "b/x", "y"]);
        assert_eq!(of(&["/c/a/x", "/b/a/x", "/x"]).unwrap(), ["c/a/x", "b/a/x", "x"]);
        assert!(of(&["/a/x", "/a/x"]).unwrap_err().to_string().contains("is named twice"));
    }
}
